//! Journals of volumes on disks that refuse, fail and lose power at the wrong moment.

use std::{collections::BTreeMap, io::ErrorKind, path::Path};

use bytes::Bytes;
use futures::future::join_all;

use super::{
    Random,
    apart::soon,
    block_on,
    machine::Machine,
    pending::pending,
    seed,
    volume_data::{new_volume, read},
};
use crate::{Error, NewVolume, Store, Volume, format::names, io::sim::Call};

const BLOCK: usize = 4096;

async fn with_volume(store: &Store, size_bytes: usize) -> Volume {
    let new = NewVolume {
        name: "v".to_owned(),
        size_bytes: Some(size_bytes as u64),
        ..NewVolume::default()
    };
    store.create_volume(new).await.unwrap();
    store.open_volume(&"v".into()).await.unwrap()
}

async fn block(volume: &Volume, number: usize) -> Vec<u8> {
    read(volume, number * BLOCK, BLOCK).await
}

/// Blocks that contain the number of their write.
fn data_of(write: u64, blocks: usize) -> Bytes {
    let block = write.to_le_bytes().repeat(BLOCK / 8);
    Bytes::from(block.repeat(blocks))
}

fn write_of(block: &[u8]) -> u64 {
    let write = block[..8].try_into().map(u64::from_le_bytes).unwrap();
    assert!(block == data_of(write, 1), "a block of several writes");
    write
}

#[test]
fn a_flush_behind_one_that_fails_fails_too() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = with_volume(&store, 1 << 20).await;
        volume.write(0, data_of(1, 1)).await.unwrap();
        machine.disk.fail_sync(1);
        let outcomes = tokio::join!(volume.flush(), volume.flush(), volume.flush());
        outcomes.0.unwrap_err();
        outcomes.1.unwrap_err();
        outcomes.2.unwrap_err();
    });
}

#[test]
fn writes_that_the_disk_refuses_leave_nothing_behind_that_comes_back() {
    const BLOCKS: usize = 4000;
    let mut random = Random::new(seed());
    let mut refused_in_all = 0;
    let mut waited = [0, 0];
    for round in 0..40 {
        let machine = Machine::new();
        // For each block, the write that it has for certain, and others that it may have.
        let mut certain = vec![0u64; BLOCKS];
        let mut possible: Vec<Vec<u64>> = vec![Vec::new(); BLOCKS];
        let mut next = 1;
        let check = async |volume: &Volume, certain: &[u64], possible: &[Vec<u64>]| {
            for number in 0..BLOCKS {
                let found = write_of(&block(volume, number).await);
                assert!(
                    found == certain[number] || possible[number].contains(&found),
                    "round {round}: block {number} is of write {found}, not {} or one of {:?}",
                    certain[number],
                    possible[number]
                );
            }
        };
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = with_volume(&store, BLOCKS * BLOCK).await;
            for turn in 0..6 {
                // Undoing a batch waits for the end of a shortage as well.
                for call in [Call::SetLen, Call::Remove] {
                    waited[usize::from(call == Call::Remove)] +=
                        usize::from(machine.disk.still_refused(call) == 0);
                    machine
                        .disk
                        .refuse(call, 2, SHORTAGES[turn % SHORTAGES.len()]);
                }
                machine
                    .disk
                    .fail_write(1 + random.below(6) as u64, ErrorKind::StorageFull);
                // Apart from one another, some of them larger than a batch, in flight together.
                let writes: Vec<_> = (0..5)
                    .map(|part| {
                        let start = part * 800 + random.below(100);
                        let most = [3, 40, 700][random.below(3)];
                        let blocks = 1 + random.below(most);
                        next += 1;
                        (start, blocks, next)
                    })
                    .collect();
                let outcomes = join_all(writes.iter().map(|(start, blocks, write)| {
                    volume.write((start * BLOCK) as u64, data_of(*write, *blocks))
                }))
                .await;
                for ((start, blocks, write), outcome) in writes.into_iter().zip(outcomes) {
                    for number in start..start + blocks {
                        match &outcome {
                            Ok(()) => {
                                certain[number] = write;
                                possible[number].clear();
                            }
                            Err(Error::Full { .. }) => possible[number].push(write),
                            Err(other) => panic!("{other}"),
                        }
                    }
                    refused_in_all += usize::from(outcome.is_err());
                }
                check(&volume, &certain, &possible).await;
            }
            assert_eq!(store.engine().commit.poisoned(), None);
            if round % 2 == 0 {
                volume.flush().await.unwrap();
            }
        });
        // The process is killed; and where all was flushed, the power fails as well.
        let machine = if round % 2 == 0 {
            machine.crash(&mut random)
        } else {
            machine
        };
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            check(&volume, &certain, &possible).await;
        });
    }
    assert!(refused_in_all > 40, "{refused_in_all} were refused");
    // The first look at each machine comes before there is anything to wait for.
    assert!(waited.iter().all(|times| *times > 40 + 20), "{waited:?}");
}

#[test]
fn what_was_never_promised_is_no_damage() {
    let mut random = Random::new(seed());
    for round in 0..150 {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = with_volume(&store, 1 << 20).await;
            for number in 0..4 {
                let write = volume.write((number * BLOCK) as u64, data_of(1 + number as u64, 1));
                write.await.unwrap();
            }
            // Ends the epoch, and is durable. The following writes are not.
            volume.snapshot("s", BTreeMap::new()).await.unwrap();
            for number in 0..1 + random.below(4) {
                let write = volume.write((number * BLOCK) as u64, data_of(100 + number as u64, 1));
                write.await.unwrap();
            }
        });
        let machine = machine.crash(&mut random);
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store
                .open_volume(&"v".into())
                .await
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            for number in 0..4 {
                let found = write_of(&block(&volume, number).await);
                assert!([1, 100].contains(&(found - number as u64)), "{found}");
            }
        });
    }
}

#[test]
fn damage_is_named_where_it_is() {
    let machine = Machine::new();
    let id = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = with_volume(&store, 64 << 20).await;
        // Two files, and a part of a third.
        for number in 0..10u64 {
            volume
                .write(number << 20, data_of(number + 1, 256))
                .await
                .unwrap();
            volume.flush().await.unwrap();
        }
        let id = volume.record().id;
        store.close().await.unwrap();
        id
    });
    // The last descriptor of the first file reads as if it had never been written.
    let path = names::journal_file(Path::new("/data"), id, 1);
    let mut bytes = machine.disk.contents(&path).unwrap();
    let last = bytes
        .chunks(BLOCK)
        .rposition(|block| block.starts_with(b"VJBT"))
        .unwrap();
    bytes[last * BLOCK..(last + 1) * BLOCK].fill(0);
    machine.disk.put(&path, &bytes).unwrap();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let damage = store
            .open_volume(&"v".into())
            .await
            .unwrap_err()
            .to_string();
        let place = format!("offset {}", last * BLOCK);
        assert!(
            damage.contains(&path.display().to_string()) && damage.contains(&place),
            "{damage}"
        );
    });
}

/// EMFILE, ENFILE, ENOMEM, EAGAIN, EINTR.
const SHORTAGES: [i32; 5] = [24, 23, 12, 11, 4];

#[test]
fn guests_wait_for_what_the_system_is_short_of_and_are_told_nothing_else() {
    for errno in SHORTAGES {
        for call in [
            Call::Create,
            Call::Open,
            Call::Allocate,
            Call::SyncDir,
            Call::List,
        ] {
            let machine = Machine::new();
            block_on(async {
                let (store, _) = machine.open().await.unwrap();
                let new = NewVolume {
                    name: "v".to_owned(),
                    size_bytes: Some(8 << 20),
                    ..NewVolume::default()
                };
                store.create_volume(new).await.unwrap();
                // Opened, written, made durable, snapshot and all.
                machine.disk.refuse(call, 3, errno);
                let volume = store.open_volume(&"v".into()).await.unwrap();
                volume.write(0, data_of(1, 5)).await.unwrap();
                machine.disk.refuse(call, 3, errno);
                volume.write(5 * BLOCK as u64, data_of(2, 5)).await.unwrap();
                volume.flush().await.unwrap();
                let made = pending(&store, "v", "s").await.unwrap();
                volume.write(0, data_of(3, 1)).await.unwrap();
                volume.flush().await.unwrap();
                store.completed_snapshot(made.id).await.unwrap();
                for (number, write) in [(0, 3), (1, 1), (4, 1), (5, 2), (9, 2)] {
                    let found = write_of(&block(&volume, number).await);
                    assert_eq!(found, write, "{call:?} {errno}: block {number}");
                }
                assert_eq!(store.engine().commit.poisoned(), None, "{call:?} {errno}");
            });
        }
    }
}

/// For each kind of call that opening a volume makes.
#[test]
fn who_opens_a_volume_waits_for_descriptors_too() {
    for first in 0..12 {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = with_volume(&store, 8 << 20).await;
            volume.write(0, data_of(1, 5)).await.unwrap();
            volume.snapshot("s", BTreeMap::new()).await.unwrap();
            volume.write(0, data_of(2, 1)).await.unwrap();
            volume.flush().await.unwrap();
            drop(volume);
            store.close().await.unwrap();
        });
        // With a disk that somebody waits for.
        let machine = machine.copy();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            machine
                .disk
                .refuse_later(Call::Open, first, 2, SHORTAGES[0]);
            let volume = store.open_volume(&"v".into()).await.unwrap();
            assert_eq!(write_of(&block(&volume, 0).await), 2, "call {first}");
        });
    }
}

/// Then nobody closes the files that a write waits for.
#[test]
fn who_waits_for_descriptors_is_refused_once_nothing_is_made_durable_any_more() {
    let mut machine = Machine::new();
    machine.journal_files_open_max = 2;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let first = with_volume(&store, 1 << 20).await;
        let new = new_volume("w", 1 << 20);
        store.create_volume(new).await.unwrap();
        let second = store.open_volume(&"w".into()).await.unwrap();
        first.write(0, data_of(1, 1)).await.unwrap();
        machine.disk.fail_sync(1);
        let refused = soon("the write", second.write(0, data_of(2, 1))).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
    });
}

#[test]
fn what_waits_for_the_system_is_refused_when_the_store_closes() {
    for call in [Call::Create, Call::SyncDir] {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = with_volume(&store, 1 << 20).await;
            if call == Call::SyncDir {
                volume.write(0, data_of(1, 1)).await.unwrap();
            }
            machine.disk.refuse(call, u64::MAX, SHORTAGES[0]);
            let change = async {
                volume.write(BLOCK as u64, data_of(2, 1)).await?;
                volume.flush().await
            };
            let (refused, closed) = tokio::join!(change, async {
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                store.close().await
            });
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Shortage { .. }), "{call:?}: {error}");
            assert!(error.to_string().contains("/volumes/"), "{error}");
            drop((volume, closed));
            assert_eq!(store.engine().commit.poisoned(), None, "{call:?}");
        });
        machine.disk.refuse(call, 0, 0);
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            let found = write_of(&block(&volume, 0).await);
            assert_eq!(found, u64::from(call == Call::SyncDir), "{call:?}");
            volume.write(0, data_of(4, 1)).await.unwrap();
            volume.flush().await.unwrap();
        });
    }
}

#[test]
fn a_journal_file_that_cannot_be_made_refuses_a_write_and_stops_nothing() {
    // EIO, EACCES, EROFS
    for errno in [5, 13, 30] {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = with_volume(&store, 1 << 20).await;
            machine.disk.refuse(Call::Create, 1, errno);
            let error = volume.write(0, data_of(1, 1)).await.unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
            volume.write(0, data_of(2, 1)).await.unwrap();
            volume.flush().await.unwrap();
            assert_eq!(write_of(&block(&volume, 0).await), 2);
        });
    }
}
