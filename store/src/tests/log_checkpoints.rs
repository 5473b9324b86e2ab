//! Checkpoints of the catalog log: the catalog is the same with and without them, whatever fails
//! and whenever the power does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{
    Random, block_on,
    machine::Machine,
    pending::fill,
    seed,
    volume_data::{BLOCK, contents, new_volume},
};
use crate::{
    Error, Result, Sharing, SnapshotId, SnapshotRecord, SnapshotState, Store, VolumeId,
    VolumeRecord,
    format::{
        AccountId, Change, Kinds,
        catalog_log::{CheckpointId, LogHeader},
        names,
        record::Entry,
    },
    io::{Disk as _, sim::Call},
    limits,
    meta::Meta,
};

const DATA_DIR: &str = "/data";

pub(super) fn log_path() -> PathBuf {
    names::catalog_log(Path::new(DATA_DIR))
}

pub(super) fn old_path() -> PathBuf {
    names::catalog_log_old(Path::new(DATA_DIR))
}

fn new_path() -> PathBuf {
    names::catalog_log_new(Path::new(DATA_DIR))
}

pub(super) fn header(machine: &Machine, path: &Path) -> LogHeader {
    LogHeader::decode(&machine.disk.contents(path).unwrap()).unwrap()
}

/// The checkpoint that the log of a machine begins with.
fn checkpoint_of(machine: &Machine) -> Option<CheckpointId> {
    header(machine, &log_path()).checkpoint
}

fn has(machine: &Machine, path: &Path) -> bool {
    let names = machine.disk.list(Path::new(DATA_DIR)).unwrap();
    names.iter().any(|name| Some(&**name) == path.file_name())
}

/// All records of a catalog by kind and id, the number of its last change, and the sums.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Everything {
    sequence: u64,
    records: Vec<Entry>,
    sums: (u64, u64, u128),
}

pub(super) fn everything(store: &Store) -> Everything {
    everything_in(&*store.engine().meta)
}

fn everything_in(meta: &dyn Meta) -> Everything {
    let (mut records, mut sequence) = (Vec::new(), 0);
    let looked = meta.view_catalog(&mut |view| {
        sequence = view.catalog_sequence()?;
        for kind in Kinds::ALL.iter() {
            view.all_entries(kind, &mut |entry| {
                records.push(entry);
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    });
    looked.unwrap();
    let totals = meta.totals().unwrap();
    Everything {
        sequence,
        records,
        sums: (totals.snapshots, totals.volumes, totals.logical_bytes),
    }
}

/// A change of a few records, or of as many as make it several KiB long.
fn random_change(random: &mut Random) -> Change {
    let number = random.below(12) as u8;
    let tags = |random: &mut Random| -> BTreeMap<_, _> {
        let count = [0, 1, 3, 50][random.below(4)];
        let tag = |n: usize| (format!("key{n}"), "v".repeat(random.below(255)));
        (0..count).map(tag).collect()
    };
    let snapshot = SnapshotId::from_low_bits([number; 9]);
    let volume = VolumeId::from_low_bits([number; 9]);
    match random.below(8) {
        0..=3 => Change::put(&SnapshotRecord {
            id: snapshot,
            name: Some(format!("s{number}")),
            owner: AccountId::ADMINISTRATOR,
            description: String::new(),
            size_bytes: random.next() >> 20,
            state: SnapshotState::Pending,
            created_at_ns: random.next() >> 1,
            tags: tags(random),
            origin: None,
            parent: None,
            sharing: Sharing::default(),
        }),
        4 | 5 => Change::put(&VolumeRecord {
            id: volume,
            name: Some(format!("v{number}")),
            owner: AccountId::ADMINISTRATOR,
            description: String::new(),
            size_bytes: 4096 * (1 + random.below(9)) as u64,
            base: None,
            parent: None,
            created_at_ns: 1,
            tags: tags(random),
            attached_at_ns: None,
            attachments: random.next() >> 50,
            journal_from: 1,
            pending: Vec::new(),
            promised_sequence: 0,
        }),
        6 => Change::delete::<SnapshotRecord>(&snapshot),
        _ => Change::delete::<VolumeRecord>(&volume),
    }
}

/// Makes changes of the catalog, one or several at a time.
pub(super) async fn make_changes(store: &Store, random: &mut Random, count: usize) -> Result<()> {
    for _ in 0..count {
        let changes: Vec<_> = (0..1 + random.below(3))
            .map(|_| random_change(random))
            .collect();
        let plan = move |_: &dyn Meta| Ok((changes.clone(), ()));
        store.engine().commit.change((), plan).await?;
    }
    Ok(())
}

/// Replaces the log, however short it is.
pub(super) async fn checkpoint(store: &Store) -> Result<()> {
    let made = store.engine().checkpoint_log(0, 0).await?;
    assert!(made.is_some());
    Ok(())
}

/// The catalog of each log is that of the log which it replaced, with the changes since: for a
/// complete index, for one that is lost or older, and for a rebuild.
#[test]
fn the_catalog_is_the_same_from_checkpoints_and_from_the_whole_log() {
    let mut random = Random::new(seed());
    for _ in 0..40 {
        let machine = Machine::new();
        let mut older = machine.index_of_now();
        let mut expected = None;
        for generation in 1..=1 + random.below(3) as u64 {
            block_on(async {
                let (store, report) = machine.open().await.unwrap();
                assert!(!report.made_from_checkpoint);
                let before = random.below(40);
                make_changes(&store, &mut random, before).await.unwrap();
                if random.below(2) == 0 {
                    older = machine.index_of_now();
                }
                let whole_log = machine.disk.contents(&log_path()).unwrap();
                // Changes go on meanwhile.
                let mut others = Random::new(random.next());
                let beside = random.below(30);
                let (made, changed) = tokio::join!(
                    checkpoint(&store),
                    make_changes(&store, &mut others, beside)
                );
                made.unwrap();
                changed.unwrap();
                let found = checkpoint_of(&machine).unwrap();
                assert_eq!(found.generation, generation);
                assert!(found.base_sequence <= everything(&store).sequence);
                assert!(!has(&machine, &new_path()));
                // The log that was replaced is whole, and as it was.
                let old = machine.disk.contents(&old_path()).unwrap();
                assert!(old.starts_with(&whole_log));
                let behind = random.below(20);
                make_changes(&store, &mut random, behind).await.unwrap();
                expected = Some(everything(&store));
                if random.below(2) == 0 {
                    store.close().await.unwrap();
                }
            });
        }
        let expected = expected.unwrap();
        let base_sequence = checkpoint_of(&machine).unwrap().base_sequence;
        for what in [
            "as it was",
            "older",
            "lost",
            "rebuilt",
            "from the log before",
        ] {
            let mut machine = machine.copy();
            match what {
                "older" => older(&mut machine),
                "lost" => machine.lose_index(),
                "rebuilt" => {
                    let report = block_on(machine.rebuild(false)).unwrap();
                    assert!(report.is_whole(), "{report}");
                }
                // A flipped bit of the checkpoint makes the rebuild take the log before.
                "from the log before" => {
                    machine.disk.flip(&log_path(), 4100, 1).unwrap();
                    let report = block_on(machine.rebuild(false)).unwrap();
                    let mended = report.mended_log.unwrap();
                    assert_eq!(mended.source, old_path());
                }
                _ => {}
            }
            let applied = machine.catalog_sequence();
            block_on(async {
                let (store, report) = machine.open().await.unwrap();
                assert_eq!(everything(&store), expected, "{what}");
                assert_eq!(
                    report.made_from_checkpoint,
                    applied < base_sequence,
                    "{what}"
                );
                make_changes(&store, &mut random, 3).await.unwrap();
                checkpoint(&store).await.unwrap();
            });
        }
    }
}

/// Some changes with checkpoints in between. Counts those that were acknowledged.
async fn work(machine: &Machine, done: &mut u64) -> Result<()> {
    let (store, _) = machine.open().await?;
    for round in 0..3 {
        for change in 0..4 {
            let name = format!("v{round}-{change}");
            store.create_volume(new_volume(&name, BLOCK)).await?;
            *done += 1;
        }
        checkpoint(&store).await?;
    }
    let name = "v0-0";
    store.delete_volume(&name.into()).await?;
    *done += 1;
    store.close().await
}

async fn check(machine: &Machine, done: u64, context: &str) -> u64 {
    let (store, report) = machine
        .open()
        .await
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!((report.damage, report.stranded_journals), (vec![], vec![]));
    let found = everything(&store);
    // One more change may have been under way.
    assert!(
        (done..=done + 1).contains(&found.sequence),
        "{context}: {done} changes were made, and there are {}",
        found.sequence
    );
    assert_eq!(found.sums.1, found.records.len() as u64);
    assert!(!has(machine, &new_path()), "{context}");
    found.sequence
}

/// Each operation of the disk is the last one once: all changes are there, by the log that has the
/// name, and also if the index is lost.
#[test]
fn no_crash_at_any_operation_loses_a_change() {
    let seed = seed();
    let mut last = 0;
    loop {
        last += 1;
        let mut random = Random::new(seed ^ last);
        let machine = Machine::new();
        machine.disk.power_off_after(last);
        let mut done = 0;
        let worked = block_on(work(&machine, &mut done));
        let is_cut = random.below(3) > 0;
        let context = format!("operation {last}, the power fails: {is_cut}");
        let machine = if is_cut {
            machine.crash(&mut random)
        } else {
            machine.kill(random.next())
        };
        let found = block_on(check(&machine, done, &context));
        // The state that was found is durable, and the index only repeats it.
        let mut machine = machine.crash(&mut random);
        machine.lose_index();
        block_on(async {
            assert_eq!(check(&machine, found, &context).await, found, "{context}");
            let (store, _) = machine.copy().open().await.unwrap();
            checkpoint(&store).await.unwrap();
        });
        if worked.is_ok() {
            break;
        }
    }
    assert!(last > 60, "{last} operations");
}

/// A catalog that is made anew from a checkpoint, with a loss of power at any moment of it.
#[test]
fn a_catalog_that_is_made_from_a_checkpoint_survives_any_loss_of_power() {
    let mut random = Random::new(seed());
    let machine = Machine::new();
    let mut older = Vec::new();
    let expected = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        older.push(machine.index_of_now());
        for _ in 0..4 {
            make_changes(&store, &mut random, 30).await.unwrap();
            older.push(machine.index_of_now());
        }
        checkpoint(&store).await.unwrap();
        make_changes(&store, &mut random, 30).await.unwrap();
        everything(&store)
    });
    for _ in 0..100 {
        let mut machine = machine.copy();
        older[random.below(older.len())](&mut machine);
        for _ in 0..1 + random.below(3) {
            // It ends with an error if the power fails, and otherwise with the crash.
            machine.disk.power_off_after(random.below(6) as u64);
            drop(block_on(machine.open()));
            machine = machine.crash(&mut random);
        }
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            assert_eq!(everything(&store), expected);
        });
    }
}

/// A store of which the log was replaced once, and changes behind that.
async fn with_changes(machine: &Machine) -> Store {
    let (store, _) = machine.open().await.unwrap();
    let mut random = Random::new(3);
    make_changes(&store, &mut random, 200).await.unwrap();
    checkpoint(&store).await.unwrap();
    make_changes(&store, &mut random, 200).await.unwrap();
    store
}

/// After a checkpoint that failed: the log is as it was, changes go on, and the next one succeeds.
async fn assert_unharmed(machine: &Machine, store: &Store, context: &str) {
    assert_eq!(store.engine().commit.poisoned(), None, "{context}");
    assert!(!has(machine, &new_path()), "{context}");
    assert_eq!(checkpoint_of(machine).unwrap().generation, 1, "{context}");
    let mut random = Random::new(4);
    make_changes(store, &mut random, 3).await.unwrap();
    let expected = everything(store);
    let mut copy = machine.copy();
    copy.lose_index();
    let (again, _) = copy.open().await.unwrap();
    assert_eq!(everything(&again), expected, "{context}");
    checkpoint(store).await.unwrap();
    assert_eq!(checkpoint_of(machine).unwrap().generation, 2, "{context}");
    let mut copy = machine.copy();
    copy.lose_index();
    let (again, _) = copy.open().await.unwrap();
    assert_eq!(everything(&again), expected, "{context}");
}

#[test]
fn a_write_that_fails_leaves_the_log_as_it_was() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let mut failed = 0;
        loop {
            let machine = Machine::new();
            let is_over = block_on(async {
                let store = with_changes(&machine).await;
                machine.disk.fail_write(failed + 1, kind);
                match checkpoint(&store).await {
                    Ok(()) => true,
                    Err(error) => {
                        let context = format!("write {failed}: {error}");
                        assert!(context.contains("catalog.log.new"), "{context}");
                        assert_unharmed(&machine, &store, &context).await;
                        false
                    }
                }
            });
            if is_over {
                break;
            }
            failed += 1;
        }
        // The header; blocks and end mark.
        assert!(failed >= 2, "{failed} writes");
    }
}

#[test]
fn a_sync_that_fails_leaves_the_log_as_it_was() {
    for nth in 1..=2 {
        let machine = Machine::new();
        block_on(async {
            let store = with_changes(&machine).await;
            machine.disk.fail_sync(nth);
            let error = checkpoint(&store).await.unwrap_err().to_string();
            assert!(error.contains("sync"), "{error}");
            assert_unharmed(&machine, &store, &error).await;
        });
    }
}

#[test]
fn names_that_are_refused_leave_the_log_as_it_was() {
    // EIO, ENOSPC, EACCES
    for errno in [5, 28, 13] {
        for call in [Call::Create, Call::Rename, Call::Link, Call::List] {
            let machine = Machine::new();
            block_on(async {
                let store = with_changes(&machine).await;
                machine.disk.refuse(call, 1, errno);
                let error = checkpoint(&store).await.unwrap_err();
                let context = format!("{call:?}: {error}");
                assert_unharmed(&machine, &store, &context).await;
            });
        }
        // The old log cannot be removed from its place.
        let machine = Machine::new();
        block_on(async {
            let store = with_changes(&machine).await;
            machine.disk.refuse_later(Call::Remove, 1, 1, errno);
            let error = checkpoint(&store).await.unwrap_err();
            assert_unharmed(&machine, &store, &error.to_string()).await;
        });
    }
}

/// A shortage of descriptors or memory is waited for once the log has its new name.
#[test]
fn a_shortage_behind_the_rename_is_waited_for() {
    for errno in [24, 23, 12, 11, 4] {
        let machine = Machine::new();
        block_on(async {
            let store = with_changes(&machine).await;
            machine.disk.refuse(Call::SyncDir, 2, errno);
            checkpoint(&store).await.unwrap();
            assert_eq!(machine.disk.still_refused(Call::SyncDir), 0);
            make_changes(&store, &mut Random::new(5), 3).await.unwrap();
        });
    }
}

/// It is unknown which of both logs a loss of power would leave.
#[test]
fn a_directory_that_cannot_be_synced_stops_the_store() {
    let machine = Machine::new();
    let expected = block_on(async {
        let store = with_changes(&machine).await;
        let expected = everything(&store);
        machine.disk.refuse(Call::SyncDir, 1, 5);
        let error = checkpoint(&store).await.unwrap_err();
        assert!(matches!(error, Error::Io { verb: "sync", .. }), "{error}");
        let refused = make_changes(&store, &mut Random::new(5), 1).await;
        assert!(matches!(refused, Err(Error::Poisoned { .. })));
        let refused = checkpoint(&store).await;
        assert!(matches!(refused, Err(Error::Poisoned { .. })));
        expected
    });
    for seed in 0..16 {
        let mut machine = machine.copy();
        machine.disk = machine.disk.crash(seed);
        machine.lose_index();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            assert_eq!(everything(&store), expected);
        });
    }
}

/// An error of a rename says nothing about the names: the store looks, and stops if the new log is
/// there.
#[test]
fn a_rename_that_fails_and_is_made_stops_the_store() {
    let mut machine = Machine::new();
    let expected = block_on(async {
        let store = with_changes(&machine).await;
        machine.disk.fail_made_rename(5);
        checkpoint(&store).await.unwrap_err();
        assert_eq!(checkpoint_of(&machine).unwrap().generation, 2);
        let refused = make_changes(&store, &mut Random::new(5), 1).await;
        assert!(matches!(refused, Err(Error::Poisoned { .. })));
        everything(&store)
    });
    machine = machine.kill(1);
    machine.lose_index();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert_eq!(everything(&store), expected);
    });
}

#[test]
fn a_disk_without_space_for_another_log_gets_none() {
    let machine = Machine::new();
    block_on(async {
        let store = with_changes(&machine).await;
        machine.disk.set_capacity(Some(limits::FREE_BYTES_MIN));
        let operations = machine.disk.operations();
        let error = checkpoint(&store).await.unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{error}");
        assert_eq!(machine.disk.operations(), operations);
        machine.disk.set_capacity(None);
        assert_unharmed(&machine, &store, "full").await;
    });
}

#[test]
fn a_log_is_replaced_when_it_is_long_and_several_times_its_checkpoint() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let engine = store.engine();
        let mut random = Random::new(1);
        make_changes(&store, &mut random, 20).await.unwrap();
        let len = machine.disk.contents(&log_path()).unwrap().len() as u64;
        assert_eq!(engine.checkpoint_log(len, 4).await.unwrap(), None);
        let made = engine.checkpoint_log(len - 1, 4).await.unwrap().unwrap();
        assert_eq!(made.old_bytes, len);
        assert!(made.new_bytes < len);
        // As many records as are in the checkpoint are not enough.
        let mut count = 0;
        let checkpoint_bytes = made.new_bytes;
        while engine.checkpoint_log(0, 4).await.unwrap().is_none() {
            make_changes(&store, &mut random, 1).await.unwrap();
            count += 1;
        }
        let old = machine.disk.contents(&old_path()).unwrap().len() as u64;
        assert!(
            old > 4 * (checkpoint_bytes - 8192) && count > 3,
            "{count} changes"
        );
        store.close().await.unwrap();
    });
    // After a restart as before.
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let engine = store.engine();
        assert_eq!(engine.checkpoint_log(0, 4).await.unwrap(), None);
    });
}

/// Dropped half-way, as when the daemon stops: it runs to its end anyway.
#[test]
fn a_checkpoint_that_nobody_waits_for_does_no_harm() {
    for polls in 0..40 {
        let machine = Machine::new();
        let expected = block_on(async {
            let store = with_changes(&machine).await;
            let mut begun = Box::pin(checkpoint(&store));
            for _ in 0..polls {
                if futures::poll!(&mut begun).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(begun);
            make_changes(&store, &mut Random::new(6), 5).await.unwrap();
            let expected = everything(&store);
            store.close().await.unwrap();
            expected
        });
        let mut machine = machine;
        machine.lose_index();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            assert_eq!(everything(&store), expected);
        });
    }
}

#[test]
fn a_store_that_closes_does_not_wait_for_a_checkpoint_to_be_written() {
    let machine = Machine::new();
    block_on(async {
        let store = with_changes(&machine).await;
        let (made, closed) = tokio::join!(checkpoint(&store), store.close());
        closed.unwrap();
        assert!(matches!(made, Ok(()) | Err(Error::Closing)), "{made:?}");
        assert!(!has(&machine, &new_path()));
    });
}

/// A directory of a volume, without its record.
async fn leave_journal(machine: &Machine, store: &Store, name: &str) -> VolumeId {
    let record = store.create_volume(new_volume(name, 4 * BLOCK)).await;
    let id = record.unwrap().id;
    let volume = store.open_volume(&name.into()).await.unwrap();
    fill(&volume, 1, 7).await;
    volume.flush().await.unwrap();
    drop(volume);
    assert!(has_journal(machine, id));
    id
}

fn has_journal(machine: &Machine, id: VolumeId) -> bool {
    machine
        .disk
        .list(&names::volume(Path::new(DATA_DIR), id))
        .is_ok()
}

/// The deletion of a volume outlives the records in front of the checkpoint, as long as its journal
/// is there. The next start removes the journal. A journal that nobody knows stays.
#[test]
fn deletions_are_kept_for_journals_that_are_still_there() {
    for checkpoints in 0..3 {
        let machine = Machine::new();
        let (deleted, unknown) = block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let deleted = leave_journal(&machine, &store, "deleted").await;
            let gone = leave_journal(&machine, &store, "gone").await;
            leave_journal(&machine, &store, "kept").await;
            // Its files cannot be removed.
            machine.disk.refuse(Call::Remove, u64::MAX, 5);
            store.delete_volume(&"deleted".into()).await.unwrap();
            machine.disk.refuse(Call::Remove, 0, 5);
            store.delete_volume(&"gone".into()).await.unwrap();
            assert!(has_journal(&machine, deleted) && !has_journal(&machine, gone));
            let unknown = VolumeId::from_low_bits([9; 9]);
            let dir = names::volume(Path::new(DATA_DIR), unknown);
            machine.disk.create_dir(&dir).unwrap();
            for _ in 0..checkpoints {
                make_changes(&store, &mut Random::new(1), 3).await.unwrap();
                checkpoint(&store).await.unwrap();
            }
            (deleted, unknown)
        });
        for is_rebuilt in [false, true] {
            let mut machine = machine.copy();
            block_on(async {
                if is_rebuilt {
                    let report = machine.rebuild(false).await.unwrap();
                    assert_eq!(report.adopted_volumes, Vec::<String>::new());
                }
                let (store, report) = machine.open().await.unwrap();
                let stranded: Vec<_> = report.stranded_journals.iter().collect();
                assert_eq!(stranded.len(), 1, "{stranded:?}");
                assert!(stranded[0].path.ends_with(unknown.to_string()));
                assert!(!has_journal(&machine, deleted) && has_journal(&machine, unknown));
                let volume = store.open_volume(&"kept".into()).await.unwrap();
                assert_eq!(contents(&volume).await[BLOCK], 7);
                drop(volume);
                // Its journal is gone: nothing has to be kept of it any more.
                make_changes(&store, &mut Random::new(2), 1).await.unwrap();
                checkpoint(&store).await.unwrap();
                let log = machine.disk.contents(&log_path()).unwrap();
                let id = deleted.as_bytes();
                assert!(!log.windows(id.len()).any(|bytes| bytes == id));
            });
        }
    }
}

/// Reads of a long log are of a fixed size, and so is what is decoded at a time.
#[test]
fn a_long_log_is_read_a_window_at_a_time() {
    use crate::catalog_log::{FoundLog, Piece, WINDOW_BYTES};
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut random = Random::new(1);
        make_changes(&store, &mut random, 1500).await.unwrap();
        store.close().await.unwrap();
        let len = machine.disk.contents(&log_path()).unwrap().len();
        assert!(len > 5 * WINDOW_BYTES);
        let disk: std::sync::Arc<dyn crate::io::Disk> = machine.disk.copy();
        let log = FoundLog::open(disk, log_path(), store.engine().store_id);
        let mut reader = log.await.unwrap().reader();
        let (mut at, mut numbers) = (reader.position().offset_bytes, BTreeSet::new());
        while let Some(piece) = reader.next().await.unwrap() {
            let next = reader.position().offset_bytes;
            assert!(next - at <= WINDOW_BYTES as u64);
            at = next;
            let Piece::Records(records) = piece else {
                panic!("{piece:?}");
            };
            numbers.extend(records.iter().map(|(sequence, _)| *sequence));
        }
        assert_eq!(at, len as u64);
        assert_eq!(numbers.len(), 1500);
    });
}
