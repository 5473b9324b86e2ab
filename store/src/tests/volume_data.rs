//! Volumes against a plain array: whatever is written, and however the process ends.

use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;

use super::{Random, assert_holds, block_on, machine::Machine, random_image, seed, upload};
use crate::{AccountId, Error, NewVolume, Options, Result, Store, Volume, format::names, limits};

pub(super) const BLOCK: usize = 4096;

pub(crate) fn options(dir: &std::path::Path) -> Options {
    let mut options = Options::new(dir);
    // Small files, so that there are several.
    options.journal_bytes_max = 1 << 30;
    options
}

pub(crate) fn new_volume(name: &str, size_bytes: usize) -> NewVolume {
    NewVolume {
        owner: AccountId::ADMINISTRATOR,
        name: name.to_owned(),
        size_bytes: Some(size_bytes as u64),
        from: None,
        tags: BTreeMap::new(),
    }
}

pub(crate) async fn contents(volume: &Volume) -> Vec<u8> {
    read(volume, 0, volume.size_bytes() as usize).await
}

pub(super) async fn read(volume: &Volume, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for piece in volume.read(offset as u64, len).await.unwrap() {
        piece.append_to(&mut bytes);
    }
    assert_eq!(bytes.len(), len);
    bytes
}

/// One change of a volume, as bytes.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    Zeroes(usize, usize),
    Trim(usize, usize),
}

impl Change {
    /// Of whole blocks, of sectors, or of any bytes.
    pub(super) fn random(random: &mut Random, size: usize, longest: usize) -> Self {
        let grain = [BLOCK, BLOCK, 512, 1][random.below(4)];
        let start = random.below(size) / grain * grain;
        let len = (1 + random.below(longest))
            .next_multiple_of(grain)
            .min(size - start);
        match random.below(6) {
            0 => Self::Zeroes(start, len),
            1 => Self::Trim(start, len),
            _ => {
                let mut bytes = vec![0; len];
                bytes.chunks_mut(8).for_each(|word| {
                    word.copy_from_slice(&random.next().to_le_bytes()[..word.len()])
                });
                Self::Write(start, bytes)
            }
        }
    }

    pub(super) fn apply(&self, model: &mut [u8]) {
        let size = model.len();
        match self {
            Self::Write(start, bytes) => model[*start..start + bytes.len()].copy_from_slice(bytes),
            Self::Zeroes(start, len) => model[*start..start + len].fill(0),
            Self::Trim(start, len) => {
                let end = start + len;
                let end = if end == size {
                    size
                } else {
                    end / BLOCK * BLOCK
                };
                let start = start.next_multiple_of(BLOCK);
                if start < end {
                    model[start..end].fill(0);
                }
            }
        }
    }

    pub(super) async fn make(&self, volume: &Volume) -> Result<()> {
        match self.clone() {
            Self::Write(start, bytes) => volume.write(start as u64, Bytes::from(bytes)).await,
            Self::Zeroes(start, len) => volume.write_zeroes(start as u64, len as u64).await,
            Self::Trim(start, len) => volume.trim(start as u64, len as u64).await,
        }
    }
}

/// Holes read as zeros, extents cover all of a range.
async fn check_extents(volume: &Volume, model: &[u8], random: &mut Random) {
    let offset = random.below(model.len());
    let len = 1 + random.below(model.len() - offset);
    let mut position = offset;
    for extent in volume.extents(offset as u64, len as u64).await.unwrap() {
        let end = position + extent.len_bytes as usize;
        if extent.hole {
            assert!(model[position..end].iter().all(|byte| *byte == 0));
        }
        position = end;
    }
    assert_eq!(position, offset + len);
}

#[test]
fn it_holds_what_an_array_holds() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed());
    // Not a multiple of a block.
    let size = 9 * (1 << 20) + 512;
    let base = random_image(&mut random, 1500);
    let mut model = base.clone();
    model.resize(size, 0);
    let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        upload(&store, "base", &base).await.unwrap();
        let mut new = new_volume("v", size);
        new.from = Some("base".into());
        store.create_volume(new).await.unwrap();
        store.close().await.unwrap();
    });
    for round in 0..8 {
        block_on(async {
            let (store, _) = Store::open(options(dir.path())).await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            assert_eq!(volume.journal_report().torn, None);
            assert!(contents(&volume).await == model, "after {round} restarts");
            for step in 0..120 {
                let longest = [600, 20_000, 3 << 20][random.below(3)];
                let change = Change::random(&mut random, size, longest);
                change.make(&volume).await.unwrap();
                change.apply(&mut model);
                if step % 10 == 0 {
                    volume.flush().await.unwrap();
                    check_extents(&volume, &model, &mut random).await;
                }
                if step % 25 == 24 {
                    let name = format!("s{round}-{step}");
                    volume.snapshot(&name, BTreeMap::new()).await.unwrap();
                    let refused = volume.snapshot(&name, BTreeMap::new()).await.unwrap_err();
                    assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
                    // Also by its root: an upload of the same bytes would have it, too.
                    assert_holds(&store, &name, &model).await;
                    assert!(contents(&volume).await == model, "after snapshot {name}");
                    snapshots.push((name, model.clone()));
                }
                let offset = random.below(size);
                let len = random.below((size - offset).min(100_000) + 1);
                assert!(
                    read(&volume, offset, len).await == model[offset..offset + len],
                    "{len} bytes at {offset} after {change:?}"
                );
            }
            assert!(contents(&volume).await == model);
            for refused in [
                volume.write(size as u64, Bytes::from_static(&[1])).await,
                volume.trim(u64::MAX, 2).await,
                volume.write_zeroes(1, size as u64).await,
            ] {
                assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
            }
            for (name, image) in &snapshots {
                assert_holds(&store, name, image).await;
            }
            // Half of the time as if killed: all writes are in the kernel.
            if round % 2 == 0 {
                store.close().await.unwrap();
            }
        });
    }
}

#[test]
fn writers_of_parts_of_a_block_lose_nothing_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap()
        .block_on(async {
            let (store, _) = Store::open(options(dir.path())).await.unwrap();
            store
                .create_volume(new_volume("v", 64 << 10))
                .await
                .unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            let write_sector = |sector: u64| {
                let volume = volume.clone();
                async move {
                    for value in 1..=100u8 {
                        let bytes = Bytes::from(vec![value; 512]);
                        volume.write(sector * 512, bytes).await.unwrap();
                        // Whole blocks beside it.
                        let bytes = Bytes::from(vec![value; BLOCK]);
                        volume
                            .write(BLOCK as u64 * (2 + sector), bytes)
                            .await
                            .unwrap();
                    }
                }
            };
            futures::future::join_all((0..8).map(write_sector)).await;
            assert!(read(&volume, 0, BLOCK).await == vec![100; BLOCK]);
            store.close().await.unwrap();
        });
}

#[test]
fn a_volume_is_open_once_and_closed_with_its_last_handle() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store.create_volume(new_volume("v", 1 << 20)).await.unwrap();
        for value in 0..20 {
            let first = store.open_volume(&"v".into()).await.unwrap();
            let second = store.open_volume(&"v".into()).await.unwrap();
            let bytes = Bytes::from(vec![value; BLOCK]);
            first.write(0, bytes).await.unwrap();
            drop(first);
            assert_eq!(read(&second, 0, 1).await, [value]);
            // A write whose caller goes away may still be under way when it is opened again.
            let bytes = Bytes::from(vec![0xaa; BLOCK]);
            let unwatched = second.write(BLOCK as u64, bytes);
            drop(unwatched);
            drop(second);
        }
        store.close().await.unwrap();
    });
}

#[test]
fn a_snapshot_is_what_was_there_at_one_instant_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let blocks = 64u64;
        let size = blocks as usize * BLOCK;
        store.create_volume(new_volume("v", size)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        // Each write puts the next number in the next block, round and round: the content at an
        // instant follows from the highest number.
        let writes = async {
            for number in 1..=3000u64 {
                let block = number.to_le_bytes().repeat(BLOCK / 8);
                let offset = number % blocks * BLOCK as u64;
                volume.write(offset, Bytes::from(block)).await.unwrap();
            }
        };
        let snapshots = async {
            for number in 0..12 {
                let name = format!("s{number}");
                volume.snapshot(&name, BTreeMap::new()).await.unwrap();
                let image = super::read(&store, &name, 0, size).await.unwrap();
                let numbers: Vec<u64> = image
                    .chunks(BLOCK)
                    .map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()))
                    .collect();
                let last = *numbers.iter().max().unwrap();
                for (block, found) in (0u64..).zip(numbers) {
                    let since = (last % blocks + blocks - block) % blocks;
                    assert_eq!(found, last.saturating_sub(since), "block {block} of {name}");
                }
            }
        };
        tokio::join!(writes, snapshots);
        store.close().await.unwrap();
    });
}

#[test]
fn journals_are_emptied_by_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut options = options(dir.path());
        options.journal_bytes_max = limits::JOURNAL_BYTES_LEAST;
        let (store, _) = Store::open(options).await.unwrap();
        let size = 32 << 20;
        store.create_volume(new_volume("v", size)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut model = vec![0; size];
        for round in 0..8usize {
            for number in 0..6usize {
                let start = (round * 3 + number) << 20;
                let bytes = vec![(round * 10 + number + 1) as u8; 1 << 20];
                model[start..start + (1 << 20)].copy_from_slice(&bytes);
                volume
                    .write(start as u64, Bytes::from(bytes))
                    .await
                    .unwrap();
            }
            let name = format!("s{round}");
            let snapshot = store
                .snapshot_volume(&"v".into(), &name, BTreeMap::new())
                .await
                .unwrap();
            assert_eq!(volume.journal_bytes(), 0);
            assert_holds(&store, &name, &model).await;
            let record = store.volume(&"v".into()).await.unwrap();
            assert_eq!(record.parent, Some(snapshot.id));
            assert_eq!(record.base, snapshot.root());
        }
        store.close().await.unwrap();
    });
}

/// The possible content after a loss of power: all changes up to some point, which is not before
/// the last flush.
#[derive(Default)]
struct Promised {
    states: Vec<Vec<u8>>,
    flushed: usize,
    snapshots: BTreeMap<String, Vec<u8>>,
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
    let volume = store.open_volume(&"v".into()).await?;
    for step in 0..24 {
        let change = Change::random(random, size, if step % 5 == 0 { 200_000 } else { 9000 });
        change.apply(&mut model);
        promised.states.push(model.clone());
        change.make(&volume).await?;
        if step % 4 == 3 {
            volume.flush().await?;
            promised.flushed = promised.states.len() - 1;
        }
        if step % 8 == 6 {
            let name = format!("s{step}");
            volume.snapshot(&name, BTreeMap::new()).await?;
            promised.snapshots.insert(name, model.clone());
            // A snapshot makes its content durable.
            promised.flushed = promised.states.len() - 1;
        }
    }
    Ok(())
}

fn cut_after(operations: u64, seed: u64) -> bool {
    let size = 300 * BLOCK;
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
    let mut expected: Option<Vec<u8>> = None;
    // Twice: the next recovery finds the same as the first.
    for _ in 0..2 {
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = match store.open_volume(&"v".into()).await {
                Ok(volume) => volume,
                Err(Error::NotFound { .. }) => {
                    assert_eq!(promised.flushed, 0, "after {operations} operations");
                    return;
                }
                Err(error) => panic!("after {operations} operations: {error}"),
            };
            let found = contents(&volume).await;
            for (name, image) in &promised.snapshots {
                assert_holds(&store, name, image).await;
            }
            match &expected {
                Some(expected) => assert!(found == *expected, "after {operations} operations"),
                None => assert!(
                    promised.states[promised.flushed..].contains(&found),
                    "after {operations} operations: not what any writes since the last flush left"
                ),
            }
            // It goes on.
            volume.write(512, Bytes::from(vec![7; 5000])).await.unwrap();
            volume.flush().await.unwrap();
            let mut after = found;
            after[512..5512].fill(7);
            expected = Some(after);
        });
        machine = machine.crash(&mut random);
    }
    cut
}

#[test]
fn a_power_cut_at_every_operation_takes_nothing_that_was_flushed() {
    let seed = seed();
    let mut operations = 1;
    while cut_after(operations, seed) {
        operations += 1;
    }
    assert!(operations > 40, "{operations} operations");
}

/// A volume with some flushed batches, and its journal file.
async fn written(machine: &Machine, batches: u8, closes: bool) -> PathBuf {
    let (store, _) = machine.open().await.unwrap();
    let record = store.create_volume(new_volume("v", 1 << 20)).await.unwrap();
    let volume = store.open_volume(&"v".into()).await.unwrap();
    for number in 0..batches {
        let bytes = Bytes::from(vec![number + 1; BLOCK]);
        volume
            .write(u64::from(number) * BLOCK as u64, bytes)
            .await
            .unwrap();
        volume.flush().await.unwrap();
    }
    if closes {
        store.close().await.unwrap();
    }
    names::journal_file(std::path::Path::new("/data"), record.id, 1)
}

#[test]
fn damage_to_what_was_durable_is_told_and_a_torn_end_is_cut_off() {
    // Of each batch: its descriptor, and its data.
    for (block, closes) in (1..=10).flat_map(|block| [(block, false), (block, true)]) {
        let machine = Machine::new();
        let path = block_on(written(&machine, 5, closes));
        machine
            .disk
            .flip(&path, block * BLOCK as u64 + 100, 1)
            .unwrap();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let opened = store.open_volume(&"v".into()).await;
            if block < 9 || closes {
                let said = opened.unwrap_err().to_string();
                let place = (block - 1) / 2 * 2 + 1;
                assert!(said.contains(&path.display().to_string()), "{said}");
                assert!(said.contains(&(place * BLOCK as u64).to_string()), "{said}");
            } else {
                // Nothing proves that the last batch was ever promised.
                let volume = opened.unwrap();
                let torn = volume.journal_report().torn.clone().unwrap();
                assert!(torn.contains(&(9 * BLOCK).to_string()), "{torn}");
                assert_eq!(volume.journal_report().batches, 4);
                assert!(read(&volume, 0, BLOCK).await == vec![1; BLOCK]);
                assert!(read(&volume, 4 * BLOCK, BLOCK).await == vec![0; BLOCK]);
            }
        });
    }
}

/// The first file of a journal whose beginning is in the base: a torn header is damage only if
/// something behind it was durable.
#[test]
fn a_torn_header_behind_a_snapshot_is_no_damage() {
    for flushes in [0, 1] {
        let machine = Machine::new();
        let path = block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let record = store.create_volume(new_volume("v", 1 << 20)).await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            for value in 1..4 {
                let bytes = Bytes::from(vec![value; BLOCK]);
                volume.write(0, bytes).await.unwrap();
                volume.flush().await.unwrap();
            }
            volume.snapshot("s", BTreeMap::new()).await.unwrap();
            for value in 4..6 {
                let bytes = Bytes::from(vec![value; BLOCK]);
                volume.write(0, bytes).await.unwrap();
                if flushes > 0 {
                    volume.flush().await.unwrap();
                }
            }
            let from = store.volume(&"v".into()).await.unwrap().journal_from;
            names::journal_file(std::path::Path::new("/data"), record.id, from)
        });
        let mut bytes = machine.disk.contents(&path).unwrap();
        bytes[..BLOCK].fill(0);
        machine.disk.put(&path, &bytes).unwrap();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let opened = store.open_volume(&"v".into()).await;
            if flushes > 0 {
                let damage = opened.unwrap_err();
                assert!(matches!(damage, Error::Damaged(_)), "{damage}");
            } else {
                assert!(read(&opened.unwrap(), 0, BLOCK).await == vec![3; BLOCK]);
            }
        });
    }
}

#[test]
fn a_journal_of_another_volume_is_refused() {
    let machine = Machine::new();
    let path = block_on(written(&machine, 3, true));
    let bytes = machine.disk.contents(&path).unwrap();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let other = store.create_volume(new_volume("w", 1 << 20)).await.unwrap();
        drop(store.open_volume(&"w".into()).await.unwrap());
        let path = names::journal_file(std::path::Path::new("/data"), other.id, 1);
        machine.disk.put(&path, &bytes).unwrap();
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let refused = store.open_volume(&"w".into()).await.unwrap_err();
        assert!(matches!(refused, Error::Incompatible { .. }), "{refused}");
        store.open_volume(&"v".into()).await.unwrap();
    });
}

#[test]
fn a_full_disk_refuses_writes_and_goes_on_when_there_is_room() {
    let machine = Machine::new();
    let mut random = Random::new(seed());
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .create_volume(new_volume("v", 64 << 20))
            .await
            .unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut model = vec![0; 64 << 20];
        // Less than journals leave, a little more than chunks do, and the writes cannot be made
        // smaller.
        let capacity = limits::FREE_BYTES_MIN + (10 << 20);
        machine.disk.set_capacity(Some(capacity));
        let mut refused = 0;
        for number in 0..48usize {
            let start = number << 20;
            let mut bytes = vec![0; 1 << 20];
            bytes
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
            match volume.write(start as u64, Bytes::from(bytes.clone())).await {
                Ok(()) => model[start..start + (1 << 20)].copy_from_slice(&bytes),
                Err(error) if error.is_full() => refused += 1,
                Err(other) => panic!("{other}"),
            }
            volume.flush().await.unwrap();
        }
        assert!(refused > 0 && refused < 48, "{refused} were refused");
        machine.disk.set_capacity(None);
        volume.write(0, Bytes::from(vec![9; BLOCK])).await.unwrap();
        model[..BLOCK].fill(9);
        assert!(contents(&volume).await == model);
        store.close().await.unwrap();
    });
}

#[test]
fn a_journal_that_grows_large_is_taken_into_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .unwrap();
    let (size, seed) = (24 << 20, seed());
    let mut model = vec![0; size];
    let mut limited = options(dir.path());
    limited.journal_bytes_max = limits::JOURNAL_BYTES_LEAST;
    runtime.block_on(async {
        let (store, _) = Store::open(limited.clone()).await.unwrap();
        store.create_volume(new_volume("v", size)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        // Each writer has a third of the volume to itself.
        let writers = model
            .chunks_mut(size / 3)
            .enumerate()
            .map(|(number, part)| {
                let (volume, mut random) = (volume.clone(), Random::new(seed + number as u64));
                async move {
                    let start = number * part.len();
                    for _ in 0..60 {
                        let at = random.below(part.len() / BLOCK - 100) * BLOCK;
                        let len = (1 + random.below(100)) * BLOCK;
                        let word = random.next().to_le_bytes();
                        let bytes: Vec<u8> = word.repeat(len / 8);
                        part[at..at + len].copy_from_slice(&bytes);
                        volume
                            .write((start + at) as u64, Bytes::from(bytes))
                            .await
                            .unwrap();
                    }
                }
            });
        futures::future::join_all(writers).await;
        assert!(contents(&volume).await == model);
        let record = store.volume(&"v".into()).await.unwrap();
        assert!(
            record.journal_from > 1 && record.base.is_some(),
            "{record:?}"
        );
        assert_eq!(record.parent, None);
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "s", &model).await;
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = Store::open(limited).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == model);
    });
}

#[test]
fn a_journal_that_can_neither_grow_nor_be_emptied_refuses_writes() {
    let mut machine = Machine::new();
    machine.journal_bytes_max = limits::JOURNAL_BYTES_LEAST;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 1 << 30)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let bytes = Bytes::from(vec![1; 2 << 20]);
        volume.write(0, bytes).await.unwrap();
        let mut written = 2 << 20;
        // Less than chunks and journals have to leave free.
        machine.disk.set_capacity(Some(limits::FREE_BYTES_MIN - 1));
        let refused = loop {
            let bytes = Bytes::from(vec![1; 1 << 20]);
            match volume.write(written, bytes).await {
                Ok(()) => written += 1 << 20,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::Full { .. }), "{refused}");
        // The writes that fit into the existing file, and the one after the attempt to checkpoint
        // it.
        assert!((3 << 20..8 << 20).contains(&written), "{written}");
        assert!(volume.journal_bytes() <= limits::JOURNAL_BYTES_LEAST);
        assert!(read(&volume, 0, 1 << 20).await == vec![1; 1 << 20]);
        // With room again, it is emptied, and goes on.
        machine.disk.set_capacity(None);
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        volume
            .write(written, Bytes::from(vec![2; BLOCK]))
            .await
            .unwrap();
        assert!(read(&volume, written as usize - 1, 2).await == [1, 2]);
        store.close().await.unwrap();
    });
}

#[test]
fn a_sync_that_fails_stops_all_writing() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 1 << 20)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        volume.write(0, Bytes::from(vec![1; BLOCK])).await.unwrap();
        machine.disk.fail_sync(1);
        volume.flush().await.unwrap_err();
        let refused = volume.flush().await.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        let refused = volume
            .write(0, Bytes::from(vec![2; BLOCK]))
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        assert!(read(&volume, 0, BLOCK).await == vec![1; BLOCK]);
    });
}
