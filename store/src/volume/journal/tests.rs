//! Journals on a simulated disk, without a store around them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests: what is counted is little"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::{
    Batch, Change, ChecksummedBlocks, FilePool, Host, Journal, JournalDir, JournalReport,
    PromisedCut, Promises, Replay, Slot, append::BatchPlace, files::Reservation, recover,
};
use crate::{
    Error, Result,
    format::{
        StoreId, VolumeId,
        journal::{Entry, FileHeader, JOURNAL_BLOCK_BYTES, first_sequence_of},
        names,
    },
    io::{
        AlignedBuf, Disk,
        sim::{Call, SimDisk},
    },
    limits::{JOURNAL_FILE_BYTES_MIN, JOURNAL_SCANS},
    tests::{Random, block_on, seed},
};

const DATA_DIR: &str = "/data";
const VOLUME: VolumeId = VolumeId::from_low_bits([7; 9]);
const DESCRIPTORS_MAX: usize = 4;
const BLOCK: usize = JOURNAL_BLOCK_BYTES;

/// A store that counts how often it was stopped.
#[derive(Debug, Default)]
pub(super) struct TestHost {
    stops: AtomicU64,
}

impl Host for TestHost {
    fn stop_writing(&self, _: &Error) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }

    fn checksum(&self, bytes: AlignedBuf) -> BoxFuture<'_, Result<ChecksummedBlocks>> {
        Box::pin(std::future::ready(Ok(ChecksummedBlocks::new(bytes))))
    }
}

/// A replayed journal: the first files of epochs, and of each block the slot that it was last seen
/// in.
#[derive(Debug, Default)]
struct Replayed {
    epochs: Vec<u64>,
    blocks: BTreeMap<u32, (u64, Slot)>,
}

impl Replay for Replayed {
    fn begin_epoch(&mut self, first_file: u64) {
        self.epochs.push(first_file);
    }

    fn batch(&mut self, entries: &[Entry], mut slot: Slot) {
        let epoch = *self.epochs.last().unwrap();
        for entry in entries {
            for block in entry.start_block..entry.start_block + entry.blocks {
                self.blocks.insert(block, (epoch, slot));
                slot += 1;
            }
        }
    }
}

/// The directory of a journal on a disk, which is made if it is not there.
fn dir_on(disk: &Arc<SimDisk>, host: &Arc<TestHost>) -> JournalDir {
    let data_dir = Path::new(DATA_DIR);
    // Fails where there is one. A store makes it durable when it is made.
    let _ = disk.create_dir(data_dir);
    disk.sync_dir(Path::new("/")).blocking_wait().unwrap();
    let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(disk);
    JournalDir {
        pool: Arc::new(FilePool::new(Arc::clone(&disk), DESCRIPTORS_MAX)),
        disk,
        data_dir: data_dir.to_owned(),
        store: StoreId::from_bytes([1; 16]),
        volume: VOLUME,
        bytes_max: 64 << 20,
        host: Arc::<TestHost>::clone(host),
    }
}

fn promises(cuts: &[u64], sequence: u64) -> Promises {
    let cut = |next_file: &u64| PromisedCut {
        next_file: *next_file,
        snapshot: "s".to_owned(),
    };
    Promises {
        first_file: 1,
        cuts: cuts.iter().map(cut).collect(),
        sequence,
    }
}

/// Opens the journal that is on a disk, and empty if none is.
async fn open(
    dir: JournalDir,
    promises: Promises,
) -> Result<(Arc<Journal>, Replayed, JournalReport)> {
    dir.create().await?;
    let mut replayed = Replayed::default();
    let permits = Semaphore::new(JOURNAL_SCANS);
    let (recovered, report) = recover(&dir, promises, &permits, &mut replayed).await?;
    Ok((Arc::new(Journal::new(dir, recovered)), replayed, report))
}

async fn new_journal(disk: &Arc<SimDisk>) -> Arc<Journal> {
    let dir = dir_on(disk, &Arc::default());
    open(dir, promises(&[], 0)).await.unwrap().0
}

fn path(number: u64) -> PathBuf {
    names::journal_file(Path::new(DATA_DIR), VOLUME, number)
}

/// A batch of one block, which is full of one value.
fn batch_of(block: u64, value: u8) -> Batch {
    let mut batch = Batch::default();
    let data = Bytes::from(vec![value; BLOCK]);
    batch.take(&mut Change::Data {
        start_block: block,
        data,
    });
    batch
}

async fn try_write(journal: &Arc<Journal>, block: u64, value: u8) -> Result<BatchPlace> {
    let batch = batch_of(block, value);
    let descriptors = journal.reserve_for(&batch).unwrap();
    let begun = journal.begin(&batch, descriptors).await?;
    begun.completion.await.unwrap();
    journal.written(begun.place);
    Ok(begun.place)
}

async fn write(journal: &Arc<Journal>, block: u64, value: u8) -> BatchPlace {
    try_write(journal, block, value).await.unwrap()
}

/// The value that a replayed block has.
async fn value(journal: &Journal, replayed: &Replayed, block: u32) -> Option<u8> {
    let (first_file, slot) = replayed.blocks.get(&block)?;
    let place = journal.place(*first_file, *slot).unwrap();
    let disk = &journal.dir().disk;
    let read = disk.read(&place.file, place.offset_bytes, BLOCK).await;
    let bytes = read.unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    Some(bytes[0])
}

/// The last file was made, and closed for another volume's before its first batch was begun. Then
/// it could not be opened again, and meanwhile a snapshot ended the epoch.
#[test]
fn no_file_follows_one_in_which_nothing_was_begun() {
    let disk = SimDisk::new();
    block_on(async {
        let journal = new_journal(&disk).await;
        write(&journal, 0, 1).await;
        journal.sync().await.unwrap();
        drop(journal.new_file(Reservation::none()).unwrap());
        let room = journal.open_files().reserve(DESCRIPTORS_MAX);
        assert!(room.is_some());
        drop(room);
        disk.refuse(Call::Open, 1, Errno::MFILE.raw_os_error());
        let refused = try_write(&journal, 1, 1).await.unwrap_err();
        assert!(matches!(refused, Error::Shortage { .. }), "{refused:?}");
        assert_eq!(disk.still_refused(Call::Open), 0);

        assert_eq!(journal.end_epoch(), 2);
        assert_eq!(write(&journal, 1, 1).await.number, 2);
        journal.sync().await.unwrap();
        for number in 1..3 {
            let header = FileHeader::decode(&disk.contents(&path(number)).unwrap()).unwrap();
            assert_eq!(header.number, number);
        }
        // The next one is another.
        assert_eq!(journal.end_epoch(), 3);
        assert_eq!(write(&journal, 2, 1).await.number, 3);
    });
}

#[test]
fn what_was_synced_survives_a_loss_of_power_and_what_was_not_goes_from_the_end() {
    let mut random = Random::new(seed());
    let mut lost = 0;
    for round in 0..100 {
        let disk = SimDisk::new();
        let (batches, synced, cut) = block_on(async {
            let journal = new_journal(&disk).await;
            let batches = 2 + random.below(6);
            let synced = 1 + random.below(batches - 1);
            let mut cut = None;
            for number in 0..batches {
                // One epoch ends among those that are synced.
                if number == synced / 2 && number > 0 {
                    cut = Some(journal.end_epoch());
                }
                write(&journal, number as u64, 1 + number as u8).await;
                if number + 1 == synced {
                    journal.sync().await.unwrap();
                }
            }
            (batches, synced, cut)
        });
        let disk = disk.crash(random.next());
        block_on(async {
            let dir = dir_on(&disk, &Arc::default());
            let cuts: Vec<_> = cut.into_iter().collect();
            let (journal, replayed, report) = open(dir, promises(&cuts, 0)).await.unwrap();
            let expected: Vec<_> = [1].into_iter().chain(cut).collect();
            assert_eq!(replayed.epochs, expected, "round {round}");
            let found = report.batches as usize;
            assert!(found >= synced, "round {round}: {found} of {synced}");
            lost += batches - found;
            for number in 0..8 {
                let expected = (number < found).then_some(1 + number as u8);
                let found = value(&journal, &replayed, number as u32).await;
                assert_eq!(found, expected, "round {round}: block {number}");
            }
            // It goes on where it ended.
            write(&journal, 100, 9).await;
            journal.sync().await.unwrap();
        });
    }
    assert!(lost > 0, "no batch was ever lost");
}

#[test]
fn a_synced_batch_that_is_gone_is_damage_by_the_word_of_the_record() {
    let disk = SimDisk::new();
    block_on(async {
        let journal = new_journal(&disk).await;
        for number in 0..3 {
            write(&journal, number, 1).await;
        }
        journal.sync().await.unwrap();
    });
    // The last descriptor reads as if it had never been written.
    let mut bytes = disk.contents(&path(1)).unwrap();
    bytes[5 * BLOCK..6 * BLOCK].fill(0);
    disk.put(&path(1), &bytes).unwrap();
    block_on(async {
        let dir = dir_on(&disk, &Arc::default());
        let last = first_sequence_of(1) + 2;
        let error = open(dir.clone(), promises(&[], last)).await.unwrap_err();
        assert!(matches!(error, Error::Damaged(_)), "{error}");
        let (_, _, report) = open(dir, promises(&[], last - 1)).await.unwrap();
        assert_eq!(report.batches, 2);
    });
}

#[test]
fn a_sync_that_fails_is_not_tried_again_and_one_at_recovery_stops_the_store() {
    let disk = SimDisk::new();
    block_on(async {
        let journal = new_journal(&disk).await;
        write(&journal, 0, 1).await;
        disk.fail_sync(1);
        assert!(matches!(
            journal.sync().await.unwrap_err(),
            Error::Io { .. }
        ));
        let refused = journal.sync().await.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused:?}");

        let host = Arc::default();
        disk.fail_sync(1);
        open(dir_on(&disk, &host), promises(&[], 0))
            .await
            .unwrap_err();
        assert_eq!(host.stops.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_file_that_is_done_with_is_written_again_until_the_journal_is_closed() {
    let disk = SimDisk::new();
    block_on(async {
        let journal = new_journal(&disk).await;
        write(&journal, 0, 1).await;
        journal.sync().await.unwrap();
        let next = journal.end_epoch();
        journal.remove_before(next).await.unwrap();
        assert!(disk.contents(&path(1)).is_ok());
        assert_eq!(journal.len_bytes(), 0);

        assert_eq!(write(&journal, 1, 2).await.number, 2);
        assert!(disk.contents(&path(1)).is_err());
        assert_eq!(journal.len_bytes(), JOURNAL_FILE_BYTES_MIN);
        let next = journal.end_epoch();
        journal.remove_before(next).await.unwrap();
        assert!(disk.contents(&path(2)).is_ok());

        journal.stop_recycling().await;
        assert!(disk.contents(&path(2)).is_err());
        write(&journal, 2, 3).await;
        let next = journal.end_epoch();
        journal.remove_before(next).await.unwrap();
        assert!(disk.contents(&path(3)).is_err());
    });
}

/// The caller goes away while the file is made, as when the runtime is shut down.
#[test]
fn a_file_that_is_being_made_is_found_by_the_next_batch() {
    let disk = SimDisk::new();
    block_on(async {
        let journal = new_journal(&disk).await;
        let batch = batch_of(0, 1);
        let descriptors = journal.reserve_for(&batch).unwrap();
        let mut begin = Box::pin(journal.begin(&batch, descriptors));
        let _ = futures::poll!(&mut begin);
        drop(begin);
        while journal.state.lock().tail.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(write(&journal, 0, 1).await.number, 1);
        assert_eq!(journal.state.lock().files.len(), 1);
        // Its descriptors are counted once.
        assert!(journal.open_files().reserve(DESCRIPTORS_MAX - 2).is_some());
        assert!(journal.open_files().reserve(DESCRIPTORS_MAX - 1).is_none());
    });
}
