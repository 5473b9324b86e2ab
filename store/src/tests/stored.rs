//! Quotas of stored bytes: counts against a plain model, and what they refuse.

use std::{collections::BTreeMap, fs};

use varve_content::tree::Leaf;

use super::{
    Random, block_on, cut,
    machine::{Machine, pack_path},
    new_snapshot, random_image,
    repairs::closed,
    seed, send,
    volume_data::{self, BLOCK, Change, options},
};
use crate::{
    AccountId, AccountRecord, CloneSource, Error, GcSettings, NewClone, NewSnapshot, NewSnapshots,
    NewVolume, Quota, Result, Store, Volume,
    engine::Due,
    format::{PackKind, names},
    gc::{pace::Pace, stored},
    meta::{SnapshotKey, VolumeKey},
    volume::Tried,
};

const KIB4: u64 = 4096;
const MIB: u64 = 1 << 20;

fn id(number: u64) -> AccountId {
    AccountId::from_number(number).unwrap()
}

async fn create_account(store: &Store, number: u64) {
    let account = AccountRecord {
        id: id(number),
        name: format!("account{number}"),
        ..AccountRecord::administrator()
    };
    store.create_account(account).await.unwrap();
}

async fn limit(store: &Store, number: u64, bytes: Option<u64>) {
    let change = move |record: &mut AccountRecord| {
        match bytes {
            Some(bytes) => record.quotas.insert(Quota::StoredBytes, bytes),
            None => record.quotas.remove(&Quota::StoredBytes),
        };
        Ok(())
    };
    store.update_account(id(number), change).await.unwrap();
}

/// Counts all accounts with a quota now.
async fn count(store: &Store) {
    store.engine().ledgers.make_due();
    store.count_all_stored_bytes().await;
}

async fn uploaded(store: &Store, owner: u64, name: &str, image: &[u8]) -> Result<()> {
    let cut = cut(image);
    let new = NewSnapshot {
        owner: id(owner),
        ..new_snapshot(name, image.len())
    };
    let ingest = store.begin_ingest(new).await?;
    send(&ingest, &cut).await?;
    ingest.commit(cut.root).await.map(drop)
}

fn snapshot_key(owner: u64, name: &str) -> SnapshotKey {
    SnapshotKey::Name {
        owner: id(owner),
        name: name.to_owned(),
    }
}

fn volume_key(owner: u64, name: &str) -> VolumeKey {
    VolumeKey::Name {
        owner: id(owner),
        name: name.to_owned(),
    }
}

/// Leaves count in whole blocks.
fn bytes_of_leaf(leaf: &Leaf) -> u64 {
    leaf.encode().len().next_multiple_of(BLOCK) as u64
}

fn leaf_bytes(image: &[u8]) -> u64 {
    cut(image)
        .leaves
        .iter()
        .map(|(_, leaf)| bytes_of_leaf(leaf))
        .sum()
}

/// What accounts have: contents by owner and name.
type Contents = BTreeMap<(u64, String), Vec<u8>>;

#[derive(Default)]
struct Model {
    snapshots: Contents,
    volumes: Contents,
    /// Each volume, kept open so that a count takes its journal in.
    open: BTreeMap<(u64, String), Volume>,
}

fn some(of: &Contents, random: &mut Random) -> Option<(u64, String)> {
    let at = random.below(of.len().max(1));
    of.keys().nth(at).cloned()
}

impl Model {
    fn stored_bytes(&self, owner: u64) -> u64 {
        let all = self.snapshots.iter().chain(&self.volumes);
        let own = all.filter(|((of, _), _)| *of == owner);
        let (mut chunks, mut leaves) = (BTreeMap::new(), BTreeMap::new());
        for (_, image) in own {
            let cut = cut(image);
            chunks.extend(cut.chunks);
            leaves.extend(cut.leaves.into_iter().map(|(_, leaf)| (leaf.id(), leaf)));
        }
        let chunks = chunks.values().map(|chunk| chunk.len() as u64);
        chunks.chain(leaves.values().map(bytes_of_leaf)).sum()
    }

    async fn step(&mut self, store: &Store, random: &mut Random, number: usize) {
        let (owner, name) = (7 + random.next() % 2, format!("n{number}"));
        let key = (owner, name.clone());
        let snapshot = some(&self.snapshots, random);
        let volume = some(&self.volumes, random);
        match (random.below(8), snapshot, volume) {
            (0, Some((of, name)), _) => {
                let key = snapshot_key(of, &name);
                store.delete_snapshot(&key).await.unwrap();
                self.snapshots.remove(&(of, name));
            }
            (1, _, Some((of, name))) => {
                store.delete_volume(&volume_key(of, &name)).await.unwrap();
                self.volumes.remove(&(of, name.clone()));
                self.open.remove(&(of, name));
            }
            // Also of the snapshots of others.
            (2 | 3, Some(of), _) => {
                let new = NewClone {
                    source: CloneSource::Snapshot(snapshot_key(of.0, &of.1)),
                    owner: id(owner),
                    name: name.clone(),
                    size_bytes: None,
                    tags: BTreeMap::new(),
                };
                store.clone_volume(new).await.unwrap();
                self.volumes
                    .insert(key.clone(), self.snapshots[&of].clone());
                let volume = store.open_volume(&volume_key(owner, &name)).await;
                self.open.insert(key, volume.unwrap());
            }
            (4 | 5, _, Some(of)) => {
                let image = self.volumes.get_mut(&of).unwrap();
                for _ in 0..8 {
                    let change = Change::random(random, image.len(), 50 * BLOCK);
                    change.make(&self.open[&of]).await.unwrap();
                    change.apply(image);
                }
            }
            (6, _, Some(of)) => {
                let new = NewSnapshots {
                    owner: id(of.0),
                    volumes: vec![volume_key(of.0, &of.1)],
                    name: name.clone(),
                    tags: BTreeMap::new(),
                };
                let made = store.snapshot_volumes(new).await.unwrap();
                store.completed_snapshot(made[0].id).await.unwrap();
                let image = self.volumes[&of].clone();
                self.snapshots.insert((of.0, name), image);
            }
            _ => {
                let blocks = 1 + random.below(300);
                let image = random_image(random, blocks);
                uploaded(store, owner, &name, &image).await.unwrap();
                self.snapshots.insert(key, image);
            }
        }
    }
}

#[test]
fn what_is_counted_is_what_the_contents_of_an_account_have() {
    let seed = seed();
    let mut random = Random::new(seed);
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        for owner in [7, 8] {
            create_account(&store, owner).await;
            limit(&store, owner, Some(u64::MAX)).await;
        }
        let mut model = Model::default();
        for number in 0..120 {
            model.step(&store, &mut random, number).await;
            if number % 10 == 9 {
                // As if it could be full: then the journals are taken in.
                for owner in [7, 8] {
                    limit(&store, owner, Some(0)).await;
                }
                count(&store).await;
                for owner in [7, 8] {
                    limit(&store, owner, Some(u64::MAX)).await;
                    let counted = store.stored_bytes(id(owner));
                    assert_eq!(counted, Some(model.stored_bytes(owner)), "step {number}");
                }
                store.gc_run(GcSettings::default()).await.unwrap();
            }
        }
        drop(model);
        closed(store).await;
    });
}

#[test]
fn a_sample_of_an_account_is_near_to_what_it_has() {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        create_account(&store, 7).await;
        let mut image = vec![0; 64 << 20];
        image
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        uploaded(&store, 7, "large", &image).await.unwrap();
        let pace = Pace::new(None);
        let mut counted = Vec::new();
        for (owner, most) in [(7, 1 << 20), (7, 1000), (8, 1000)] {
            let own = stored::roots_of(store.engine(), id(owner)).await.unwrap();
            let bytes = stored::stored_bytes(store.engine(), &pace, &own, most).await;
            counted.push(bytes.unwrap());
        }
        assert_eq!(counted[0], (64 << 20) + leaf_bytes(&image));
        assert_eq!(counted[2], 0);
        // Five times the standard error of 500 chunks.
        let off = counted[1].abs_diff(counted[0]);
        assert!(off < counted[0] / 4, "{counted:?}");
        closed(store).await;
    });
}

fn exceeds<T: std::fmt::Debug>(outcome: Result<T>, of: u64) {
    let refused = outcome.unwrap_err();
    let quota = Quota::StoredBytes;
    let is_right =
        matches!(refused, Error::Quota { quota: it, limit, .. } if (it, limit) == (quota, of));
    assert!(is_right, "{refused}");
}

#[test]
fn what_is_too_much_is_refused_until_something_is_gone() {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let mut noise = |blocks: usize| {
        let mut image = vec![0; blocks * BLOCK];
        image
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        image
    };
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        for number in [7, 8] {
            create_account(&store, number).await;
        }
        limit(&store, 7, Some(4 * MIB)).await;
        let used = |store: &Store| store.stored_bytes(id(7)).map(|it| it / MIB * MIB);
        uploaded(&store, 7, "first", &noise(512)).await.unwrap();
        count(&store).await;
        assert_eq!(store.stored_bytes(id(7)), Some(2 * MIB + KIB4));
        // An upload that does not fit ends where it does not, and leaves nothing.
        let large = uploaded(&store, 7, "large", &noise(1024)).await;
        assert!(matches!(large, Err(Error::Quota { .. })), "{large:?}");
        let others = uploaded(&store, 8, "large", &noise(1024)).await;
        others.unwrap();
        count(&store).await;
        assert_eq!(store.stored_bytes(id(7)), Some(2 * MIB + KIB4));

        // A guest writes to the same place as often as it likes.
        let new = NewVolume {
            owner: id(7),
            ..volume_data::new_volume("v", 8 << 20)
        };
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume(&volume_key(7, "v")).await.unwrap();
        for _ in 0..6 {
            volume.write(0, noise(256).into()).await.unwrap();
            count(&store).await;
        }
        assert_eq!(used(&store), Some(3 * MIB));
        volume.write(2 * MIB, noise(512).into()).await.unwrap();
        count(&store).await;
        let full = used(&store);
        assert_eq!(full, Some(5 * MIB));
        exceeds(volume.write(0, noise(1).into()).await, 4 * MIB);
        exceeds(volume.write_zeroes(1, 2).await, 4 * MIB);
        exceeds(uploaded(&store, 7, "more", &noise(1)).await, 4 * MIB);
        let clone = NewClone {
            source: CloneSource::Snapshot(snapshot_key(8, "large")),
            owner: id(7),
            name: "clone".to_owned(),
            size_bytes: None,
            tags: BTreeMap::new(),
        };
        exceeds(store.clone_volume(clone.clone()).await, 4 * MIB);
        let from = NewVolume {
            owner: id(7),
            from: Some(snapshot_key(8, "large")),
            ..volume_data::new_volume("from", 8 << 20)
        };
        exceeds(store.create_volume(from).await, 4 * MIB);
        // It would keep what is overwritten with zeros.
        let snapshot = NewSnapshots {
            owner: id(7),
            volumes: vec![volume_key(7, "v")],
            name: "keeps".to_owned(),
            tags: BTreeMap::new(),
        };
        exceeds(store.snapshot_volumes(snapshot.clone()).await, 4 * MIB);

        // Nothing is lost, and what makes room is never refused.
        assert_eq!(volume_data::read(&volume, 4 << 20, BLOCK).await, [0; BLOCK]);
        volume.trim(2 * MIB, 2 * MIB).await.unwrap();
        count(&store).await;
        volume.write(0, noise(1).into()).await.unwrap();
        // The content of others counts in full.
        store.clone_volume(clone).await.unwrap();
        count(&store).await;
        exceeds(volume.write(0, noise(1).into()).await, 4 * MIB);

        // A new limit holds at once, and that of another owner after a gift.
        limit(&store, 7, None).await;
        assert_eq!(store.stored_bytes(id(7)), None);
        volume.write(0, noise(1).into()).await.unwrap();
        limit(&store, 7, Some(MIB)).await;
        count(&store).await;
        exceeds(volume.write(0, noise(1).into()).await, MIB);
        store.give_volume(&volume_key(7, "v"), id(0)).await.unwrap();
        volume.write(0, noise(1).into()).await.unwrap();
        drop(volume);
        closed(store).await;

        // The quotas are those of the catalog after a restart.
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        assert_eq!(store.stored_bytes(id(7)), None);
        count(&store).await;
        assert_eq!(used(&store), Some(6 * MIB));
        exceeds(uploaded(&store, 7, "more", &noise(1)).await, MIB);
        closed(store).await;
    });
}

/// Trims are not refused, and make new chunks of what is left of the old ones. Snapshots would keep
/// each version: a count comes, and then there are no more of them.
#[test]
fn an_account_does_not_grow_by_trims_and_snapshots() {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        create_account(&store, 7).await;
        limit(&store, 7, Some(4 * MIB)).await;
        let new = NewVolume {
            owner: id(7),
            ..volume_data::new_volume("v", 4 << 20)
        };
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume(&volume_key(7, "v")).await.unwrap();
        let mut image = vec![0; 4 << 20];
        image
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        volume.write(0, image.into()).await.unwrap();
        let mut kept = 0;
        for round in 0..4 {
            for group in 0..256 {
                let block = group * 4 + round;
                volume.trim(block * KIB4, KIB4).await.unwrap();
            }
            let new = NewSnapshots {
                owner: id(7),
                volumes: vec![volume_key(7, "v")],
                name: format!("s{round}"),
                tags: BTreeMap::new(),
            };
            match store.snapshot_volumes(new).await {
                Ok(made) => {
                    store.completed_snapshot(made[0].id).await.unwrap();
                    kept += 1;
                    store.engine().ledgers.make_due();
                    let due = store.engine().ledgers.due(false);
                    assert_eq!(due.map(|(due, _)| due), Some(Due::Urgent));
                    count(&store).await;
                }
                Err(error) => {
                    exceeds::<()>(Err(error), 4 * MIB);
                    break;
                }
            }
        }
        // 3 MiB in the first one, and 2 MiB in other chunks in the second one.
        assert_eq!(kept, 2);
        drop(volume);
        closed(store).await;
    });
}

/// What cannot be read is not counted, and the rest is: an account can always become smaller.
#[test]
fn an_account_is_counted_without_what_cannot_be_read() {
    let machine = Machine::new();
    block_on(async {
        let store = machine.open_undamaged().await;
        create_account(&store, 7).await;
        limit(&store, 7, Some(4 * MIB)).await;
        uploaded(&store, 7, "a", &[1; 8 * BLOCK]).await.unwrap();
        store.close().await.unwrap();
        drop(store);
        let store = machine.open_undamaged().await;
        let packs = store.engine().meta.pack_states().unwrap();
        let mut packs = packs.iter().map(|state| state.pack);
        let nodes = packs.find(|pack| pack.kind == PackKind::Nodes).unwrap();
        machine.disk.fail_reads(&pack_path(nodes)).unwrap();
        count(&store).await;
        assert_eq!(store.stored_bytes(id(7)), Some(0));
    });
}

/// The journal of a closed volume that is damaged holds up no count: nobody writes to it.
#[test]
fn a_damaged_journal_is_tried_once_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        create_account(&store, 7).await;
        let new = NewVolume {
            owner: id(7),
            ..volume_data::new_volume("v", 4 << 20)
        };
        let volume_id = store.create_volume(new).await.unwrap().id;
        let volume = store.open_volume(&volume_key(7, "v")).await.unwrap();
        volume.write(0, vec![7; 8 * BLOCK].into()).await.unwrap();
        volume.flush().await.unwrap();
        drop(volume);
        closed(store).await;
        let journal = names::volume(dir.path(), volume_id);
        for entry in fs::read_dir(journal).unwrap() {
            let path = entry.unwrap().path();
            if names::journal_number_of(path.file_name().unwrap()).is_some() {
                let mut bytes = fs::read(&path).unwrap();
                bytes[4096..4096 + 512].fill(0xa5);
                fs::write(&path, bytes).unwrap();
            }
        }
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store.open_volume(&volume_key(7, "v")).await.unwrap_err();
        let mut tried = Tried::new();
        for _ in 0..2 {
            assert!(store.volumes().take_in(id(7), &mut tried).await.unwrap());
            assert_eq!(tried.len(), 1);
        }
        closed(store).await;
    });
}
