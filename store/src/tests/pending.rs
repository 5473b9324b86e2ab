//! Snapshots of volumes on their way into the store: they hold the content of their instant,
//! whatever happens meanwhile.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;

use super::{
    Random, assert_holds, block_on,
    machine::Machine,
    seed, upload,
    volume_data::{BLOCK, Change, contents, new_volume, options},
};
use crate::{
    AccountId, CloneSource, Error, NewClone, NewSnapshots, Result, SnapshotRecord, SnapshotState,
    Store, Volume, limits,
};

pub(super) fn of(volumes: &[&str], name: &str) -> NewSnapshots {
    NewSnapshots {
        owner: AccountId::ADMINISTRATOR,
        volumes: volumes.iter().map(|&volume| volume.into()).collect(),
        name: name.to_owned(),
        tags: BTreeMap::new(),
    }
}

pub(super) fn clone_of(source: CloneSource, name: &str) -> NewClone {
    NewClone {
        owner: AccountId::ADMINISTRATOR,
        source,
        name: name.to_owned(),
        size_bytes: None,
        tags: BTreeMap::new(),
    }
}

/// Keeps all volumes from being taken into the store.
pub(super) async fn hold_checkpoints(store: &Store) -> SemaphorePermit<'_> {
    let all = u32::try_from(limits::CHECKPOINTS_MAX).unwrap();
    let places = &store.volumes().checkpoint_permits;
    places.acquire_many(all).await.unwrap()
}

pub(super) async fn pending(store: &Store, volume: &str, name: &str) -> Result<SnapshotRecord> {
    let mut made = store.snapshot_volumes(of(&[volume], name)).await?;
    assert_eq!(made.len(), 1);
    Ok(made.remove(0))
}

pub(super) async fn completed(store: &Store, name: &str) -> SnapshotRecord {
    let id = store.snapshot(&name.into()).await.unwrap().id;
    store.completed_snapshot(id).await.unwrap()
}

pub(super) async fn fill(volume: &Volume, block: usize, byte: u8) {
    let bytes = Bytes::from(vec![byte; BLOCK]);
    volume.write((block * BLOCK) as u64, bytes).await.unwrap();
}

/// A volume with its model, and all that was made of it.
struct Scene {
    names: u64,
    random: Random,
    /// The promised ones, completed or not.
    snapshots: BTreeMap<String, Vec<u8>>,
    volumes: BTreeMap<String, Vec<u8>>,
}

impl Scene {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    async fn write(&mut self, store: &Store, name: &str) {
        let volume = store.open_volume(&name.into()).await.unwrap();
        let model = self.volumes.get_mut(name).unwrap();
        for _ in 0..1 + self.random.below(12) {
            let longest = [600, 20_000, 1 << 20][self.random.below(3)];
            let change = Change::random(&mut self.random, model.len(), longest);
            change.make(&volume).await.unwrap();
            change.apply(model);
        }
    }

    async fn step(&mut self, store: &Store) {
        let names: Vec<_> = self.volumes.keys().cloned().collect();
        let name = names[self.random.below(names.len())].clone();
        match self.random.below(12) {
            0..=4 => self.write(store, &name).await,
            5 | 6 => {
                let snapshot = self.name("s");
                match pending(store, &name, &snapshot).await {
                    Ok(record) => {
                        assert_eq!(record.state, SnapshotState::Pending);
                        let model = self.volumes[&name].clone();
                        assert_eq!(record.size_bytes, model.len() as u64);
                        self.snapshots.insert(snapshot, model);
                    }
                    Err(Error::Limit(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            7 => {
                let snapshot = self.name("all");
                let volumes: Vec<_> = names.iter().take(3).map(|name| &**name).collect();
                match store.snapshot_volumes(of(&volumes, &snapshot)).await {
                    Ok(made) => {
                        for record in made {
                            let volume = &record.origin.as_ref().unwrap().name;
                            let expected = match volumes.len() {
                                1 => snapshot.clone(),
                                _ => format!("{snapshot}-{volume}"),
                            };
                            assert_eq!(record.label(), expected);
                            self.snapshots
                                .insert(record.label().into_owned(), self.volumes[volume].clone());
                        }
                    }
                    Err(Error::Limit(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            8 => {
                // Often one that is pending.
                if let Some(snapshot) = self.snapshots.keys().next_back().cloned() {
                    store
                        .delete_snapshot(&snapshot.as_str().into())
                        .await
                        .unwrap();
                    self.snapshots.remove(&snapshot);
                }
            }
            9 if names.len() < 5 => {
                let clone = self.name("c");
                let of_snapshot = self.random.below(2) == 0;
                let snapshot = self.snapshots.keys().next().cloned();
                let (source, model) = match snapshot.filter(|_| of_snapshot) {
                    Some(snapshot) => {
                        completed(store, &snapshot).await;
                        let model = self.snapshots[&snapshot].clone();
                        (CloneSource::Snapshot(snapshot.as_str().into()), model)
                    }
                    None => {
                        let model = self.volumes[&name].clone();
                        (CloneSource::Volume(name.as_str().into()), model)
                    }
                };
                store.clone_volume(clone_of(source, &clone)).await.unwrap();
                self.volumes.insert(clone, model);
            }
            10 => {
                let model = self.volumes.get_mut(&name).unwrap();
                // Not always a multiple of a block.
                let size = model.len() + (1 + self.random.below(200)) * 512;
                store
                    .resize_volume(&name.as_str().into(), size as u64)
                    .await
                    .unwrap();
                model.resize(size, 0);
            }
            _ => {
                let volume = store.open_volume(&name.as_str().into()).await.unwrap();
                assert!(contents(&volume).await == self.volumes[&name], "{name}");
            }
        }
    }

    async fn check(&self, store: &Store) {
        for (name, model) in &self.volumes {
            let volume = store.open_volume(&name.as_str().into()).await.unwrap();
            assert_eq!(volume.size_bytes(), model.len() as u64);
            assert!(contents(&volume).await == *model, "{name}");
        }
        for (name, image) in &self.snapshots {
            completed(store, name).await;
            assert_holds(store, name, image).await;
        }
        for name in self.volumes.keys() {
            assert_eq!(
                store.volume(&name.as_str().into()).await.unwrap().pending,
                []
            );
        }
    }
}

#[test]
fn volumes_snapshots_and_clones_are_what_arrays_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed());
    let size = 9 * (1 << 20) + 512;
    let mut options = options(dir.path());
    // Taken into the store without being asked, too.
    options.journal_bytes_max = 64 << 20;
    let base = super::random_image(&mut random, 700);
    let mut model = base.clone();
    model.resize(size, 0);
    let mut scene = Scene {
        names: 0,
        random,
        snapshots: BTreeMap::new(),
        volumes: BTreeMap::from([("v".to_owned(), model)]),
    };
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        upload(&store, "base", &base).await.unwrap();
        let mut new = new_volume("v", size);
        new.from = Some("base".into());
        store.create_volume(new).await.unwrap();
        store.close().await.unwrap();
    });
    for round in 0..8 {
        block_on(async {
            let (store, _) = Store::open(options.clone()).await.unwrap();
            store.resume_snapshots().await.unwrap();
            scene.check(&store).await;
            for _ in 0..25 {
                scene.step(&store).await;
            }
            // Half of the time as if killed. Some are pending then.
            if round % 2 == 0 {
                store.close().await.unwrap();
            }
        });
    }
    block_on(async {
        let (store, _) = Store::open(options).await.unwrap();
        scene.check(&store).await;
        for name in scene.volumes.keys() {
            store.delete_volume(&name.as_str().into()).await.unwrap();
        }
        let left: Vec<_> = std::fs::read_dir(dir.path().join("volumes"))
            .unwrap()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn a_snapshot_is_pending_first_and_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store
            .create_volume(new_volume("v", 8 * BLOCK))
            .await
            .unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 1, 1).await;
        let made = pending(&store, "v", "s").await.unwrap();
        assert_eq!(made.state, SnapshotState::Pending);
        assert_eq!(made.origin.as_ref().unwrap().name, "v");
        let refused = [
            store.open_snapshot(&"s".into()).await.map(drop),
            store.diff(&"s".into(), &"s".into()).await.map(drop),
            store.verify(&"s".into()).await.map(drop),
            store
                .clone_volume(clone_of(CloneSource::Snapshot("s".into()), "c"))
                .await
                .map(drop),
        ];
        for refused in refused {
            let Err(Error::NotCompleted { name, state, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!((&*name, state), ("s", "pending"));
        }
        let refused = store.delete_volume(&"v".into()).await.unwrap_err();
        assert!(
            matches!(refused, Error::HasPending { count: 1, .. }),
            "{refused}"
        );
        // The name is taken already.
        let taken = pending(&store, "v", "s").await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        let taken = upload(&store, "s", &[1; BLOCK]).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        let tags = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        store
            .tag_snapshot(&"s".into(), tags.clone(), Vec::new())
            .await
            .unwrap();

        let done = store.completed_snapshot(made.id).await.unwrap();
        assert_eq!((done.tags, done.created_at_ns), (tags, made.created_at_ns));
        let mut image = vec![0; 8 * BLOCK];
        image[BLOCK..2 * BLOCK].fill(1);
        assert_holds(&store, "s", &image).await;
        assert_eq!(volume.journal_bytes(), 0);
    });
}

#[test]
fn lineage_is_kept_over_pending_cancelled_and_unnamed_ones() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let base = upload(&store, "base", &[7; 4 * BLOCK]).await.unwrap();
        let mut new = new_volume("v", 8 * BLOCK);
        new.from = Some("base".into());
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut ids = Vec::new();
        // None is completed before all have been made.
        let turn = hold_checkpoints(&store).await;
        for number in 0..3 {
            fill(&volume, number, 1).await;
            let made = pending(&store, "v", &format!("s{number}")).await.unwrap();
            ids.push(made.id);
        }
        let parent = |record: SnapshotRecord| record.parent;
        assert_eq!(
            parent(store.snapshot(&"s1".into()).await.unwrap()),
            Some(ids[0])
        );
        store.delete_snapshot(&"s1".into()).await.unwrap();
        drop(turn);
        assert_eq!(parent(completed(&store, "s0").await), Some(base.id));
        // A cancelled snapshot is nobody's parent.
        assert_eq!(parent(completed(&store, "s2").await), Some(ids[0]));
        assert_eq!(
            store.volume(&"v".into()).await.unwrap().parent,
            Some(ids[2])
        );
        // A checkpoint without a snapshot leaves no trace.
        fill(&volume, 5, 2).await;
        let clone = store
            .clone_volume(clone_of(CloneSource::Volume("v".into()), "w"))
            .await
            .unwrap();
        let record = store.volume(&"v".into()).await.unwrap();
        assert_eq!(record.parent, Some(ids[2]));
        assert_eq!((clone.parent, clone.base), (record.parent, record.base));
        let of_clone = store
            .snapshot_volume(&"w".into(), "t", BTreeMap::new())
            .await;
        assert_eq!(parent(of_clone.unwrap()), Some(ids[2]));
    });
}

#[test]
fn a_cancelled_snapshot_leaves_the_volume_and_frees_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = vec![0; 8 * BLOCK];
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store
            .create_volume(new_volume("v", 8 * BLOCK))
            .await
            .unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        for number in 0..6 {
            fill(&volume, number, number as u8 + 1).await;
            model[number * BLOCK..(number + 1) * BLOCK].fill(number as u8 + 1);
            pending(&store, "v", "s").await.unwrap();
            let deleted = store.delete_snapshot(&"s".into()).await.unwrap();
            assert_eq!(deleted.state, SnapshotState::Pending);
            assert!(contents(&volume).await == model);
        }
        assert_eq!(store.volume(&"v".into()).await.unwrap().pending, []);
    });
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == model);
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "s", &model).await;
        assert_eq!(volume.journal_bytes(), 0);
    });
}

#[test]
fn pending_snapshots_are_bounded() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .create_volume(new_volume("v", 8 * BLOCK))
            .await
            .unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        // Chunks are refused, so the first waits for ever, nearly.
        let turn = hold_checkpoints(&store).await;
        for number in 0..limits::PENDING_SNAPSHOTS_MAX {
            fill(&volume, 0, number as u8).await;
            pending(&store, "v", &format!("s{number}")).await.unwrap();
        }
        let refused = pending(&store, "v", "more").await.unwrap_err();
        assert!(matches!(refused, Error::Limit(_)), "{refused}");
        assert!(refused.to_string().contains("are pending"), "{refused}");
        drop(turn);
        for number in 0..limits::PENDING_SNAPSHOTS_MAX {
            let name = format!("s{number}");
            completed(&store, &name).await;
            let mut image = vec![0; 8 * BLOCK];
            image[..BLOCK].fill(number as u8);
            assert_holds(&store, &name, &image).await;
        }
        pending(&store, "v", "more").await.unwrap();
    });
}

/// A write to one volume that followed an acknowledged write to another one is never in a snapshot
/// without the latter.
#[test]
fn snapshots_of_several_volumes_are_of_one_instant() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .build()
        .unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let mut volumes = Vec::new();
        for name in ["a", "b", "c"] {
            store.create_volume(new_volume(name, BLOCK)).await.unwrap();
            volumes.push(store.open_volume(&name.into()).await.unwrap());
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        let writes = async {
            for number in 1u64.. {
                for volume in &volumes {
                    let block = Bytes::from(number.to_le_bytes().repeat(BLOCK / 8));
                    volume.write(0, block).await.unwrap();
                }
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return number;
                }
            }
            unreachable!()
        };
        let snapshots = async {
            let mut last = 0;
            for round in 0..20 {
                // The order of their names does not matter.
                let order = [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]][round % 3];
                let name = format!("s{round}");
                let made = store.snapshot_volumes(of(&order, &name)).await.unwrap();
                let mut numbers = BTreeMap::new();
                for record in &made {
                    store.completed_snapshot(record.id).await.unwrap();
                    let bytes = super::read(&store, &record.label(), 0, 8).await.unwrap();
                    let number = u64::from_le_bytes(bytes.try_into().unwrap());
                    numbers.insert(record.origin.clone().unwrap().name, number);
                    assert_eq!(record.created_at_ns, made[0].created_at_ns);
                }
                let (a, b, c) = (numbers["a"], numbers["b"], numbers["c"]);
                assert!(a >= b && b >= c && a <= c + 1, "{numbers:?}");
                assert!(c >= last, "{numbers:?} after {last}");
                last = c;
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            last
        };
        let (written, seen) = tokio::join!(writes, snapshots);
        assert!(seen > 0 && written > seen, "{seen} of {written}");
        store.close().await.unwrap();
    });
}

#[test]
fn snapshots_of_several_volumes_are_all_made_or_none() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        for name in ["a", "b"] {
            store.create_volume(new_volume(name, BLOCK)).await.unwrap();
        }
        upload(&store, "s-b", &[1; BLOCK]).await.unwrap();
        let taken = store.snapshot_volumes(of(&["a", "b"], "s")).await;
        assert!(
            matches!(taken, Err(Error::AlreadyExists { .. })),
            "{taken:?}"
        );
        for (volumes, why) in [
            (&["a", "a"][..], "twice"),
            (&[], "0 volumes"),
            (&["a"; limits::INSTANT_VOLUMES_MAX + 1], "17 volumes"),
        ] {
            let refused = store.snapshot_volumes(of(volumes, "t")).await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
        let absent = store.snapshot_volumes(of(&["a", "x"], "t")).await;
        assert!(matches!(absent, Err(Error::NotFound { .. })), "{absent:?}");
        let listed = store.status().await.unwrap().snapshots;
        assert_eq!(listed, 1);
        let tags = (0..50)
            .map(|number| {
                let key = format!("{number}{}", "🏔".repeat(120));
                (key, "🏔".repeat(255))
            })
            .collect();
        // As many names and tags as do not fit into one record of the catalog log.
        let mut new = of(&[], "long");
        for number in 0..8 {
            let name = format!("long{number}");
            store.create_volume(new_volume(&name, BLOCK)).await.unwrap();
            new.volumes.push(name.as_str().into());
        }
        new.tags = tags;
        let refused = store.snapshot_volumes(new).await.unwrap_err();
        assert!(refused.to_string().contains("too long"), "{refused}");
        assert_eq!(store.status().await.unwrap().snapshots, 1);
    });
}
