//! Snapshots of volumes on their way into the store: what they hold is what was there at their instant, whatever happens meanwhile.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Random, assert_holds, block_on,
    crash::Machine,
    seed, upload,
    volume_data::{BLOCK, Change, contents, new_volume, options},
};
use crate::{
    Error, NewClone, NewSnapshots, Result, SnapshotRecord, SnapshotState, Store, Volume, limits,
};

fn of(volumes: &[&str], name: &str) -> NewSnapshots {
    NewSnapshots {
        volumes: volumes.iter().map(|&volume| volume.to_owned()).collect(),
        name: name.to_owned(),
        tags: BTreeMap::new(),
    }
}

fn clone_of(source: &str, name: &str) -> NewClone {
    NewClone {
        source: source.to_owned(),
        name: name.to_owned(),
        ..NewClone::default()
    }
}

async fn pending(store: &Store, volume: &str, name: &str) -> Result<SnapshotRecord> {
    let mut made = store.snapshot_volumes(of(&[volume], name)).await?;
    assert_eq!(made.len(), 1);
    Ok(made.remove(0))
}

async fn completed(store: &Store, name: &str) -> SnapshotRecord {
    let id = store.snapshot(name).await.unwrap().id;
    store.completed_snapshot(id).await.unwrap()
}

async fn fill(volume: &Volume, block: usize, byte: u8) {
    let bytes = Bytes::from(vec![byte; BLOCK]);
    volume.write((block * BLOCK) as u64, bytes).await.unwrap();
}

/// Waits for what the store does by itself.
async fn settle() {
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
}

/// A volume and its model, with whatever was made of it.
struct Scene {
    names: u64,
    random: Random,
    /// Those that were promised, whether complete or not.
    snapshots: BTreeMap<String, Vec<u8>>,
    volumes: BTreeMap<String, Vec<u8>>,
}

impl Scene {
    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    async fn write(&mut self, store: &Store, name: &str) {
        let volume = store.open_volume(name).await.unwrap();
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
                            let volume = &record.origin.unwrap().name;
                            let expected = match volumes.len() {
                                1 => snapshot.clone(),
                                _ => format!("{snapshot}-{volume}"),
                            };
                            assert_eq!(record.name, expected);
                            self.snapshots
                                .insert(record.name, self.volumes[volume].clone());
                        }
                    }
                    Err(Error::Limit(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            8 => {
                // Often one that is pending.
                if let Some(snapshot) = self.snapshots.keys().next_back().cloned() {
                    store.delete_snapshot(&snapshot).await.unwrap();
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
                        (format!("snapshot/{snapshot}"), model)
                    }
                    None => (format!("volume/{name}"), self.volumes[&name].clone()),
                };
                store.clone_volume(clone_of(&source, &clone)).await.unwrap();
                self.volumes.insert(clone, model);
            }
            10 => {
                let model = self.volumes.get_mut(&name).unwrap();
                // Not always a multiple of a block.
                let size = model.len() + (1 + self.random.below(200)) * 512;
                store.resize_volume(&name, size as u64).await.unwrap();
                model.resize(size, 0);
            }
            _ => {
                let volume = store.open_volume(&name).await.unwrap();
                assert!(contents(&volume).await == self.volumes[&name], "{name}");
            }
        }
    }

    async fn check(&self, store: &Store) {
        for (name, model) in &self.volumes {
            let volume = store.open_volume(name).await.unwrap();
            assert_eq!(volume.size_bytes(), model.len() as u64);
            assert!(contents(&volume).await == *model, "{name}");
        }
        for (name, image) in &self.snapshots {
            completed(store, name).await;
            assert_holds(store, name, image).await;
        }
        for name in self.volumes.keys() {
            assert_eq!(store.volume(name).await.unwrap().pending, []);
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
        new.from = Some("base".to_owned());
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
            store.delete_volume(name).await.unwrap();
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
        let volume = store.open_volume("v").await.unwrap();
        fill(&volume, 1, 1).await;
        let made = pending(&store, "v", "s").await.unwrap();
        assert_eq!(made.state, SnapshotState::Pending);
        assert_eq!(made.origin.as_ref().unwrap().name, "v");
        let refused = [
            store.open_snapshot("s").await.map(drop),
            store.diff("s", "s").await.map(drop),
            store.verify("s").await.map(drop),
            store
                .clone_volume(clone_of("snapshot/s", "c"))
                .await
                .map(drop),
        ];
        for refused in refused {
            let Err(Error::NotCompleted { name, state, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!((&*name, state), ("s", "pending"));
        }
        let refused = store.delete_volume("v").await.unwrap_err();
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
            .tag_snapshot("s", tags.clone(), Vec::new())
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
        new.from = Some("base".to_owned());
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
        let mut ids = Vec::new();
        // None is completed before all have been made.
        let turn = store.shared().fold_turn.acquire().await.unwrap();
        for number in 0..3 {
            fill(&volume, number, 1).await;
            let made = pending(&store, "v", &format!("s{number}")).await.unwrap();
            ids.push(made.id);
        }
        let parent = |record: SnapshotRecord| record.parent;
        assert_eq!(parent(store.snapshot("s1").await.unwrap()), Some(ids[0]));
        store.delete_snapshot("s1").await.unwrap();
        drop(turn);
        assert_eq!(parent(completed(&store, "s0").await), Some(base.id));
        // One that was cancelled is nobody's parent.
        assert_eq!(parent(completed(&store, "s2").await), Some(ids[0]));
        assert_eq!(store.volume("v").await.unwrap().parent, Some(ids[2]));
        // What is taken into the store without a name leaves it.
        fill(&volume, 5, 2).await;
        let clone = store.clone_volume(clone_of("v", "w")).await.unwrap();
        let record = store.volume("v").await.unwrap();
        assert_eq!(record.parent, Some(ids[2]));
        assert_eq!((clone.parent, clone.base), (record.parent, record.base));
        let of_clone = store.snapshot_volume("w", "t", BTreeMap::new()).await;
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
        let volume = store.open_volume("v").await.unwrap();
        for number in 0..6 {
            fill(&volume, number, number as u8 + 1).await;
            model[number * BLOCK..(number + 1) * BLOCK].fill(number as u8 + 1);
            pending(&store, "v", "s").await.unwrap();
            let deleted = store.delete_snapshot("s").await.unwrap();
            assert_eq!(deleted.state, SnapshotState::Pending);
            assert!(contents(&volume).await == model);
        }
        assert_eq!(store.volume("v").await.unwrap().pending, []);
    });
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
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
        let volume = store.open_volume("v").await.unwrap();
        // Chunks are refused, so the first waits for ever, nearly.
        let turn = store.shared().fold_turn.acquire().await.unwrap();
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

/// What a writer writes to one volume after it was told that it is on the other is never in a snapshot without that.
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
            volumes.push(store.open_volume(name).await.unwrap());
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
                // The order in which they are named does not matter.
                let order = [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]][round % 3];
                let name = format!("s{round}");
                let made = store.snapshot_volumes(of(&order, &name)).await.unwrap();
                let mut numbers = BTreeMap::new();
                for record in &made {
                    store.completed_snapshot(record.id).await.unwrap();
                    let bytes = super::read(&store, &record.name, 0, 8).await.unwrap();
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
            new.volumes.push(name);
        }
        new.tags = tags;
        let refused = store.snapshot_volumes(new).await.unwrap_err();
        assert!(refused.to_string().contains("too long"), "{refused}");
        assert_eq!(store.status().await.unwrap().snapshots, 1);
    });
}

#[test]
fn a_full_disk_fails_a_snapshot_and_leaves_its_volume() {
    let mut machine = Machine::new();
    let mut model = vec![0; 4 << 20];
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 4 << 20)).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
        let change = Change::Write(
            4096,
            (0..1_000_000u32)
                .map(|n| n.wrapping_mul(7919) as u8)
                .collect(),
        );
        change.make(&volume).await.unwrap();
        change.apply(&mut model);
        // Room for the journal and the catalog, and less than chunks have to leave free.
        machine.disk.set_capacity(Some(limits::FREE_BYTES_MIN - 1));
        let made = pending(&store, "v", "s").await.unwrap();
        let behind = pending(&store, "v", "t").await.unwrap();
        let failed = store.completed_snapshot(made.id).await.unwrap_err();
        let said = failed.to_string();
        assert!(said.contains("\"s\" is failed: no space left"), "{said}");
        assert!(store.completed_snapshot(behind.id).await.is_err());
        // The guest goes on.
        fill(&volume, 0, 9).await;
        model[..BLOCK].fill(9);
        assert!(contents(&volume).await == model);
        assert_eq!(store.volume("v").await.unwrap().pending, []);
        let refused = store.open_snapshot("s").await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::NotCompleted {
                    state: "failed",
                    ..
                }
            ),
            "{refused}"
        );
    });
    machine = machine.crash(&mut Random::new(1));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.resume_snapshots().await.unwrap();
        let shown = store.snapshot("s").await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        let volume = store.open_volume("v").await.unwrap();
        machine.disk.set_capacity(None);
        store.delete_snapshot("s").await.unwrap();
        // All that was written is in the next, and nothing is left of the journal.
        volume.flush().await.unwrap();
        let now = contents(&volume).await;
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "s", &now).await;
        assert!(now[BLOCK..] == model[BLOCK..]);
        assert_eq!(volume.journal_bytes(), 0);
        store.delete_snapshot("t").await.unwrap();
        store.delete_volume("v").await.unwrap();
    });
}

/// When not even the failure can be written down it is told all the same, and what comes later does not overtake it.
#[test]
fn a_disk_without_any_room_fails_a_snapshot_too() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .create_volume(new_volume("v", 64 << 10))
            .await
            .unwrap();
        let volume = store.open_volume("v").await.unwrap();
        fill(&volume, 0, 1).await;
        let turn = store.shared().fold_turn.acquire().await.unwrap();
        let made = pending(&store, "v", "s").await.unwrap();
        machine.disk.set_capacity(Some(0));
        drop(turn);
        let failed = store.completed_snapshot(made.id).await.unwrap_err();
        assert!(failed.to_string().contains("no space left"), "{failed}");
        let shown = store.snapshot("s").await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        assert_eq!(store.volume("v").await.unwrap().pending.len(), 1);
        machine.disk.set_capacity(None);
        fill(&volume, 1, 2).await;
        volume.snapshot("t", BTreeMap::new()).await.unwrap();
        assert_eq!(store.volume("v").await.unwrap().pending, []);
        let mut image = vec![0; 64 << 10];
        image[..BLOCK].fill(1);
        image[BLOCK..2 * BLOCK].fill(2);
        assert_holds(&store, "t", &image).await;
        let shown = store.snapshot("s").await.unwrap();
        assert!(
            matches!(shown.state, SnapshotState::Failed { .. }),
            "{shown:?}"
        );
        store.delete_snapshot("s").await.unwrap();
    });
}

/// What a loss of power may leave.
#[derive(Default)]
struct Promised {
    states: Vec<Vec<u8>>,
    flushed: usize,
    /// Acknowledged, pending or not.
    there: BTreeMap<String, Vec<u8>>,
    /// Asked for, or being deleted.
    perhaps: BTreeMap<String, Vec<u8>>,
    clones: BTreeMap<String, Vec<u8>>,
}

async fn work(
    store: &Store,
    random: &mut Random,
    promised: &mut Promised,
    size: usize,
) -> Result<()> {
    let mut model = vec![0; size];
    promised.states.push(model.clone());
    store.create_volume(new_volume("v", size)).await?;
    store.create_volume(new_volume("w", BLOCK)).await?;
    let volume = store.open_volume("v").await?;
    for step in 0..28 {
        let longest = if step % 5 == 0 { 100_000 } else { 9000 };
        let change = Change::random(random, model.len(), longest);
        change.apply(&mut model);
        promised.states.push(model.clone());
        change.make(&volume).await?;
        let name = format!("s{step}");
        match step % 7 {
            2 | 3 => {
                promised.perhaps.insert(name.clone(), model.clone());
                pending(store, "v", &name).await?;
                promised.perhaps.remove(&name);
                promised.there.insert(name, model.clone());
                promised.flushed = promised.states.len() - 1;
            }
            4 => {
                let both = [format!("{name}-v"), format!("{name}-w")];
                let zeros = vec![0; BLOCK];
                let images = [model.clone(), zeros];
                let all = both.into_iter().zip(images);
                promised.perhaps.extend(all.clone());
                store.snapshot_volumes(of(&["v", "w"], &name)).await?;
                promised.perhaps.retain(|it, _| !it.starts_with(&name));
                promised.there.extend(all);
                promised.flushed = promised.states.len() - 1;
            }
            5 if step == 5 || step == 19 => {
                let last = promised.there.pop_last().unwrap();
                promised.perhaps.extend([last.clone()]);
                store.delete_snapshot(&last.0).await?;
                promised.perhaps.remove(&last.0);
            }
            5 => {
                store.clone_volume(clone_of("v", &name)).await?;
                promised.clones.insert(name, model.clone());
            }
            6 => settle().await,
            _ => {}
        }
        if step == 16 {
            model.resize(size + 5 * 512, 0);
            promised.states.push(model.clone());
            store.resize_volume("v", model.len() as u64).await?;
            promised.flushed = promised.states.len() - 1;
            volume.flush().await?;
        }
    }
    Ok(())
}

async fn check(store: &Store, promised: &Promised) {
    for (name, image) in &promised.there {
        assert_holds(store, name, image).await;
    }
    for (name, image) in &promised.perhaps {
        match store.snapshot(name).await {
            Ok(record) => {
                store.completed_snapshot(record.id).await.unwrap();
                assert_holds(store, name, image).await;
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    // Both, or none.
    let perhaps: Vec<_> = promised.perhaps.keys().collect();
    if let [one, other] = &perhaps[..] {
        let (one, other) = (store.snapshot(one).await, store.snapshot(other).await);
        assert_eq!(one.is_ok(), other.is_ok());
    }
    for (name, image) in &promised.clones {
        let clone = store.open_volume(name).await.unwrap();
        assert!(contents(&clone).await == *image, "{name}");
    }
    match store.open_volume("v").await {
        Ok(volume) => {
            let found = contents(&volume).await;
            assert!(promised.states[promised.flushed..].contains(&found));
        }
        Err(Error::NotFound { .. }) => assert_eq!(promised.flushed, 0),
        Err(error) => panic!("{error}"),
    }
}

fn cut_after(operations: u64, seed: u64) -> bool {
    let size = 120 * BLOCK + 512;
    let mut random = Random::new(seed);
    let mut promised = Promised::default();
    let machine = Machine::new();
    machine.disk.power_off_after(operations);
    let finished = block_on(async {
        let (store, _) = machine.open().await?;
        work(&store, &mut random, &mut promised, size).await
    });
    let cut = finished.is_err();
    let mut random = Random::new(seed ^ operations);
    let mut machine = machine.crash(&mut random);
    // The second time power fails while the snapshots go on.
    let again = 1 + random.below(40) as u64;
    for round in 0..3 {
        if round == 0 {
            machine.disk.power_off_after(again);
        }
        let went_on: Result<()> = block_on(async {
            let (store, _) = machine.open().await?;
            store.resume_snapshots().await?;
            for name in promised.there.keys() {
                let id = store.snapshot(name).await?.id;
                store.completed_snapshot(id).await?;
            }
            if round > 0 {
                check(&store, &promised).await;
            }
            Ok(())
        });
        if round > 0 {
            went_on.unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
        }
        machine = machine.crash(&mut random);
    }
    cut
}

#[test]
fn a_power_cut_at_every_operation_leaves_what_was_promised() {
    let seed = seed();
    let mut operations = 1;
    while cut_after(operations, seed) {
        operations += 1;
    }
    assert!(operations > 60, "{operations} operations");
}

#[test]
fn a_volume_grows_and_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        // Ends in the middle of a block, and that block is full.
        let base = upload(&store, "base", &[5; 3 * BLOCK + 1000])
            .await
            .unwrap();
        let mut new = new_volume("v", 3 * BLOCK + 1024);
        new.from = Some("base".to_owned());
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
        let mut model = vec![5; 3 * BLOCK + 1000];
        model.resize(3 * BLOCK + 1024, 0);
        let write = Change::Write(3 * BLOCK + 512, vec![6; 512]);
        write.make(&volume).await.unwrap();
        write.apply(&mut model);
        let first = pending(&store, "v", "first").await.unwrap();
        for size in [3 * BLOCK + 1536, 5 * BLOCK, 3000 * BLOCK + 512] {
            let past = volume
                .write(model.len() as u64, Bytes::from_static(&[1]))
                .await;
            assert!(matches!(past, Err(Error::Invalid(_))), "{past:?}");
            let before = pending(&store, "v", &format!("at-{}", model.len()))
                .await
                .unwrap();
            let grown = store.resize_volume("v", size as u64).await.unwrap();
            assert_eq!(grown.size_bytes, size as u64);
            let image = model.clone();
            model.resize(size, 0);
            assert_eq!(volume.size_bytes(), size as u64);
            assert!(contents(&volume).await == model);
            let write = Change::Write(size - 700, vec![7; 700]);
            write.make(&volume).await.unwrap();
            write.apply(&mut model);
            // Of its instant, in size, too.
            let before = store.completed_snapshot(before.id).await.unwrap();
            assert_eq!(before.size_bytes, image.len() as u64);
            assert_holds(&store, &before.name, &image).await;
        }
        let refused = store.resize_volume("v", 4096).await.unwrap_err();
        assert!(refused.to_string().contains("only grow"), "{refused}");
        for (size, why) in [
            (3001 * BLOCK as u64 + 1, "multiple of 512"),
            (u64::MAX - 511, "at most"),
        ] {
            let refused = store.resize_volume("v", size).await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
        volume.snapshot("end", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "end", &model).await;
        assert_eq!(store.snapshot("first").await.unwrap().id, first.id);
        assert_eq!(first.parent, Some(base.id));
    });
    // Not open, too.
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store.resize_volume("v", 1 << 30).await.unwrap();
        let volume = store.open_volume("v").await.unwrap();
        assert_eq!(volume.size_bytes(), 1 << 30);
    });
}

#[test]
fn what_a_client_sent_behind_the_end_of_a_snapshot_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        // The last block is sent whole, and is not zero where the volume has ended.
        let cut = super::cut(&[3; 2 * BLOCK]);
        let size = BLOCK + 512;
        let ingest = store
            .begin_ingest(super::new_snapshot("odd", size))
            .await
            .unwrap();
        super::send(&ingest, &cut).await.unwrap();
        let mut tree = varve_content::tree::TreeBuilder::new(size as u64).unwrap();
        for (segment, leaf) in &cut.leaves {
            tree.push(*segment, leaf.id()).unwrap();
        }
        ingest.commit(tree.finish().0.id()).await.unwrap();
        let mut new = new_volume("v", 3 * BLOCK);
        new.from = Some("odd".to_owned());
        store.create_volume(new).await.unwrap();
        let mut image = vec![3; size];
        image.resize(3 * BLOCK, 0);
        let volume = store.open_volume("v").await.unwrap();
        assert!(contents(&volume).await == image);
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "s", &image).await;
    });
}

#[test]
fn clones_are_volumes_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store
            .create_volume(new_volume("v", 64 * BLOCK))
            .await
            .unwrap();
        // Of nothing at all.
        let clone = store.clone_volume(clone_of("v", "empty")).await.unwrap();
        assert_eq!((clone.base, clone.size_bytes), (None, 64 * BLOCK as u64));
        let volume = store.open_volume("v").await.unwrap();
        fill(&volume, 3, 3).await;
        let mut larger = clone_of("volume/v", "dirty");
        larger.size_bytes = Some(100 * BLOCK as u64);
        store.clone_volume(larger).await.unwrap();
        let dirty = store.open_volume("dirty").await.unwrap();
        let mut model = vec![0; 100 * BLOCK];
        model[3 * BLOCK..4 * BLOCK].fill(3);
        assert!(contents(&dirty).await == model);
        fill(&volume, 3, 4).await;
        fill(&dirty, 50, 5).await;
        model[50 * BLOCK..51 * BLOCK].fill(5);
        assert!(contents(&dirty).await == model);
        // With nothing in its journal.
        let snapshot = volume.snapshot("v", BTreeMap::new()).await.unwrap();
        let by_id = store
            .clone_volume(clone_of(&snapshot.id.to_string(), "by-id"))
            .await;
        assert_eq!(by_id.unwrap().parent, Some(snapshot.id));
        let clone = store
            .clone_volume(clone_of("volume/v", "clean"))
            .await
            .unwrap();
        assert_eq!(
            (clone.base, clone.parent),
            (snapshot.root(), Some(snapshot.id))
        );
        assert_eq!(clone.journal_from, 1);
        for (new, why) in [
            (clone_of("v", "x"), "write snapshot/v or volume/v"),
            (
                clone_of("nothing", "x"),
                "snapshot or volume \"nothing\" not found",
            ),
            (clone_of("volume/v", "dirty"), "already exists"),
            (clone_of("dirty", "a b"), "not allowed"),
            (
                NewClone {
                    size_bytes: Some(512),
                    ..clone_of("dirty", "x")
                },
                "do not hold volume \"dirty\"",
            ),
        ] {
            let refused = store.clone_volume(new).await.unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
    });
}

#[test]
fn the_journal_of_a_deleted_volume_is_removed_at_the_start() {
    let mut machine = Machine::new();
    let (kept, gone) = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut ids = Vec::new();
        for name in ["kept", "gone"] {
            let record = store
                .create_volume(new_volume(name, 8 * BLOCK))
                .await
                .unwrap();
            ids.push(record.id);
            let volume = store.open_volume(name).await.unwrap();
            fill(&volume, 0, 1).await;
            volume.flush().await.unwrap();
        }
        (ids[0], ids[1])
    });
    let dir = std::path::Path::new("/data");
    let exists = |machine: &Machine, id| {
        use crate::io::Disk as _;
        machine
            .disk
            .list(&crate::format::names::volume(dir, id))
            .is_ok()
    };
    // As if the process had died between the record and the files.
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .shared()
            .commit
            .delete(gone, |_: &crate::VolumeRecord| Ok(()))
            .await
            .unwrap();
        store.close().await.unwrap();
    });
    assert!(exists(&machine, gone));
    machine = machine.crash(&mut Random::new(3));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert!(!exists(&machine, gone) && exists(&machine, kept));
        let volume = store.open_volume("kept").await.unwrap();
        assert!(contents(&volume).await[..BLOCK] == [1; BLOCK]);
        drop(volume);
        store.delete_volume("kept").await.unwrap();
        assert!(!exists(&machine, kept));
        // Nothing of it is synced any more.
        store.close().await.unwrap();
    });
}
