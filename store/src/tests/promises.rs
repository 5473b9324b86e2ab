//! The promise of a pending snapshot is a witness, and so is the clean end of a journal: damage to
//! durable data is never taken for a torn end.

use std::path::{Path, PathBuf};

use super::{
    Random,
    apart::soon,
    assert_holds, block_on,
    machine::Machine,
    pending::{completed, fill, pending},
    volume_data::{BLOCK, contents, new_volume},
};
use crate::{
    Error, SnapshotState, VolumeId, VolumeRecord,
    format::{journal::first_sequence_of, names},
    io::Disk as _,
};

const BLOCKS: usize = 8;
/// Where the second batch of a file of single blocks is.
const SECOND: u64 = 3 * BLOCK as u64;

fn path(id: VolumeId, number: u64) -> PathBuf {
    names::journal_file(Path::new("/data"), id, number)
}

fn image(blocks: &[u8]) -> Vec<u8> {
    let mut image: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; BLOCK]).collect();
    image.resize(BLOCKS * BLOCK, 0);
    image
}

/// Snapshot `s` is pending: it has the two blocks in file 1. Perhaps another is behind it, in file
/// 2.
async fn with_pending(machine: &Machine, more: bool, by_earlier_version: bool) -> VolumeId {
    let (store, _) = machine.open().await.unwrap();
    let new = new_volume("v", BLOCKS * BLOCK);
    let id = store.create_volume(new).await.unwrap().id;
    let volume = store.open_volume(&"v".into()).await.unwrap();
    let _turn = super::pending::hold_checkpoints(&store).await;
    fill(&volume, 0, 1).await;
    fill(&volume, 1, 2).await;
    pending(&store, "v", "s").await.unwrap();
    let promised = store.volume(&"v".into()).await.unwrap().promised_sequence;
    assert_eq!(promised, first_sequence_of(1) + 1);
    if more {
        fill(&volume, 2, 3).await;
    }
    if by_earlier_version {
        let change = |record: VolumeRecord| {
            Ok(VolumeRecord {
                promised_sequence: 0,
                ..record
            })
        };
        store.engine().commit.update(id, change).await.unwrap();
    }
    id
}

/// Checks that the volume is refused, with these words.
async fn assert_damaged(machine: &Machine, words: &[&str]) {
    let (store, _) = machine.open().await.unwrap();
    let refused = store.open_volume(&"v".into()).await.unwrap_err();
    assert!(matches!(refused, Error::Damaged(_)), "{refused}");
    let said = refused.to_string();
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    store.resume_snapshots().await.unwrap();
    if let Ok(shown) = store.snapshot(&"s".into()).await {
        let SnapshotState::Failed { reason } = shown.state else {
            panic!("{shown:?}");
        };
        assert_eq!(reason, said);
    }
}

#[test]
fn one_bit_in_front_of_a_cut_is_damage() {
    // In the data, in its checksum, in the number of the batch, in the part that binds the
    // descriptor to this file, in its magic.
    let bits = [BLOCK as u64 + 9, 60, 16, 40, 1];
    for (more, by_earlier_version) in [(false, false), (true, false), (true, true)] {
        for bit in bits {
            let machine = Machine::new();
            let id = block_on(with_pending(&machine, more, by_earlier_version));
            let path = path(id, 1);
            let before = machine.disk.contents(&path).unwrap();
            machine.disk.flip(&path, SECOND + bit, 4).unwrap();
            let place = format!("{} at offset {SECOND}", path.display());
            let words = [&*place, "snapshot \"s\"", "before journal file 2"];
            block_on(assert_damaged(&machine, &words));
            // It stays as it is: nothing is cut off.
            machine.disk.flip(&path, SECOND + bit, 4).unwrap();
            assert!(machine.disk.contents(&path).unwrap() == before);
            block_on(async {
                let (store, _) = machine.open().await.unwrap();
                let volume = store.open_volume(&"v".into()).await.unwrap();
                let now = image(&[1, 2, if more { 3 } else { 0 }]);
                assert!(contents(&volume).await == now);
                completed(&store, "s").await;
                assert_holds(&store, "s", &image(&[1, 2])).await;
                let record = store.volume(&"v".into()).await.unwrap();
                assert_eq!((record.promised_sequence, record.journal_from), (0, 2));
            });
        }
    }
}

/// Without a file behind the cut, a record of an earlier version does not reveal the loss of a
/// batch that looks as if it had never been written.
#[test]
fn what_cannot_be_read_in_front_of_a_cut_is_damage_by_an_old_record_too() {
    for bit in [BLOCK as u64 + 9, 60, 16] {
        let machine = Machine::new();
        let id = block_on(with_pending(&machine, false, true));
        let path = path(id, 1);
        machine.disk.flip(&path, SECOND + bit, 4).unwrap();
        let place = format!("{} at offset {SECOND}", path.display());
        block_on(assert_damaged(&machine, &[&place, "snapshot \"s\""]));
    }
}

#[test]
fn a_file_that_is_missing_in_front_of_a_cut_is_damage() {
    for more in [false, true] {
        for by_earlier_version in [false, true] {
            let machine = Machine::new();
            let id = block_on(with_pending(&machine, more, by_earlier_version));
            machine.disk.remove(&path(id, 1)).unwrap();
            let place = format!("{} at offset 0", path(id, 1).display());
            block_on(assert_damaged(&machine, &[&place, "snapshot \"s\""]));
        }
    }
}

/// Deleting the snapshot does not give up the writes that were flushed for it.
#[test]
fn the_promise_outlives_its_snapshot() {
    let machine = Machine::new();
    let id = block_on(with_pending(&machine, false, false));
    let path = path(id, 1);
    machine.disk.flip(&path, SECOND + 1, 4).unwrap();
    let place = format!("{} at offset {SECOND}", path.display());
    block_on(assert_damaged(&machine, &[&place, "snapshot \"s\""]));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.delete_snapshot(&"s".into()).await.unwrap();
        assert_eq!(store.volume(&"v".into()).await.unwrap().pending, []);
    });
    let promised = format!("batch {} was durable", first_sequence_of(1) + 1);
    block_on(assert_damaged(&machine, &[&place, &promised]));
}

/// Writes behind the cut were not promised: a torn end there is not damage.
#[test]
fn a_torn_end_behind_a_cut_is_no_damage() {
    for bit in [BLOCK + 9, 60, 16, 40, 1] {
        let machine = Machine::new();
        let id = block_on(with_pending(&machine, true, false));
        // It is not durable: the flipped byte is only in the cache.
        let mut bytes = machine.disk.contents(&path(id, 2)).unwrap();
        bytes[BLOCK + bit] ^= 4;
        machine.disk.put(&path(id, 2), &bytes).unwrap();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            assert!(contents(&volume).await == image(&[1, 2]));
            completed(&store, "s").await;
            assert_holds(&store, "s", &image(&[1, 2])).await;
        });
    }
}

/// A volume with two blocks in file 1, closed: with its store, or by its last user.
async fn closed(machine: &Machine, with_store: bool) -> VolumeId {
    let (store, _) = machine.open().await.unwrap();
    let new = new_volume("v", BLOCKS * BLOCK);
    let id = store.create_volume(new).await.unwrap().id;
    let volume = store.open_volume(&"v".into()).await.unwrap();
    fill(&volume, 0, 1).await;
    fill(&volume, 1, 2).await;
    if with_store {
        store.close().await.unwrap();
    } else {
        drop(volume);
        let recorded = async {
            while store.volume(&"v".into()).await.unwrap().promised_sequence == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon("the end of the journal", recorded).await;
    }
    id
}

#[test]
fn damage_to_the_last_batch_of_a_closed_journal_is_no_torn_end() {
    let bits = [BLOCK as u64 + 9, 60, 16, 40, 1];
    for with_store in [true, false] {
        for bit in bits {
            let machine = Machine::new();
            let id = block_on(closed(&machine, with_store));
            let machine = machine.crash(&mut Random::new(bit));
            let path = path(id, 1);
            machine.disk.flip(&path, SECOND + bit, 4).unwrap();
            let place = format!("{} at offset {SECOND}", path.display());
            let promised = format!("batch {} was durable", first_sequence_of(1) + 1);
            block_on(assert_damaged(&machine, &[&place, &promised]));
            machine.disk.flip(&path, SECOND + bit, 4).unwrap();
            block_on(async {
                let (store, _) = machine.open().await.unwrap();
                let volume = store.open_volume(&"v".into()).await.unwrap();
                assert!(contents(&volume).await == image(&[1, 2]));
            });
        }
    }
}

#[test]
fn a_closed_journal_that_is_missing_or_shorter_is_not_taken_for_an_empty_one() {
    let machine = Machine::new();
    let id = block_on(closed(&machine, true));
    let path = path(id, 1);
    let whole = machine.disk.contents(&path).unwrap();
    let promised = format!("batch {} was durable", first_sequence_of(1) + 1);
    for len in [0, BLOCK, SECOND as usize, SECOND as usize + BLOCK] {
        machine.disk.put(&path, &whole[..len]).unwrap();
        block_on(assert_damaged(
            &machine,
            &[&path.display().to_string(), &promised],
        ));
    }
    machine.disk.remove(&path).unwrap();
    block_on(assert_damaged(
        &machine,
        &[&path.display().to_string(), &promised],
    ));
    machine.disk.put(&path, &whole).unwrap();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == image(&[1, 2]));
    });
}

/// Batches behind the end of a closed journal are like the rest of any journal.
#[test]
fn a_torn_end_behind_the_end_of_a_closed_journal_is_no_damage() {
    let machine = Machine::new();
    let id = block_on(closed(&machine, true));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 2, 3).await;
        volume.flush().await.unwrap();
    });
    machine
        .disk
        .flip(&path(id, 2), BLOCK as u64 + 9, 4)
        .unwrap();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == image(&[1, 2]));
    });
}

#[test]
fn the_ends_of_many_journals_take_few_changes_of_the_catalog() {
    const VOLUMES: usize = 120;
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut volumes = Vec::new();
        for number in 0..VOLUMES {
            let name = format!("v{number}");
            store.create_volume(new_volume(&name, BLOCK)).await.unwrap();
            let volume = store.open_volume(&(&*name).into()).await.unwrap();
            fill(&volume, 0, 1).await;
            volumes.push(volume);
        }
        let before = store.engine().meta.catalog_sequence().unwrap();
        store.close().await.unwrap();
        let changes = store.engine().meta.catalog_sequence().unwrap() - before;
        assert!((1..VOLUMES as u64 / 10).contains(&changes), "{changes}");
        for number in 0..VOLUMES {
            let record = store
                .volume(&(&*format!("v{number}")).into())
                .await
                .unwrap();
            assert_eq!(record.promised_sequence, first_sequence_of(1));
        }
    });
    block_on(async {
        // A second time there is nothing new.
        let (store, _) = machine.open().await.unwrap();
        drop(store.open_volume(&"v0".into()).await.unwrap());
        let before = store.engine().meta.catalog_sequence().unwrap();
        store.close().await.unwrap();
        assert_eq!(store.engine().meta.catalog_sequence().unwrap(), before);
    });
}
