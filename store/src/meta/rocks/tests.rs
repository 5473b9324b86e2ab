#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{
    format::catalog_log::Record,
    meta::{
        Batch, Meta,
        tests::{STORE, chunk_at, chunk_id, snapshot},
    },
};

fn index_in(directory: &TempDir) -> PathBuf {
    directory.path().join("index")
}

/// The reason that an index is not opened for.
fn refusal(path: &Path, store: StoreId) -> String {
    match RocksMeta::open(path, store) {
        Err(Error::Incompatible { path: named, why }) if named == path => why,
        other => panic!("{other:?}"),
    }
}

/// A batch that adds one chunk and one snapshot.
fn numbered(number: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put_chunk(chunk_id(number), chunk_at(1, number, 100));
    let snapshot = snapshot(number as u8, &format!("s{number}"));
    batch.catalog(number, Record::PutSnapshot(snapshot));
    batch
}

/// That batches 1 to n are there for some n, which is returned, all of each, and nothing else.
fn whole_batches(meta: &RocksMeta, most: u64) -> u64 {
    let last = meta.catalog_sequence().unwrap();
    let ids: Vec<_> = (1..=most).map(chunk_id).collect();
    for (number, place) in (1..).zip(meta.chunks(&ids).unwrap()) {
        assert_eq!(place.is_some(), number <= last, "chunk {number} of {last}");
    }
    let totals = meta.totals().unwrap();
    assert_eq!((totals.chunks, totals.snapshots), (last, last));
    assert_eq!(meta.snapshots(None, "", 1000).unwrap().len() as u64, last);
    last
}

#[test]
fn what_is_no_index_of_this_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let why = refusal(&path, STORE);
    assert!(why.contains("does not exist") && why.contains("rebuild"), "{why}");

    drop(RocksMeta::create(&path, STORE).unwrap());
    let why = refusal(&path, StoreId::from_bytes([8; 16]));
    assert!(why.contains("store 07070707"), "{why}");
    drop(RocksMeta::open(&path, STORE).unwrap());
    assert!(matches!(RocksMeta::create(&path, STORE), Err(Error::Incompatible { .. })));
}

#[test]
fn an_index_that_was_not_completed_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let mut options = options::database();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    drop(RocksMeta::with_options(&path, &options).unwrap());
    let why = refusal(&path, STORE);
    assert!(why.contains("not made to its end"), "{why}");
}

#[test]
fn an_index_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let meta = RocksMeta::create(&path, STORE).unwrap();
    let mut identity = keys::Identity { store: STORE }.encode();
    identity[0] = 2;
    meta.db.put_cf(meta.family(keys::META).unwrap(), keys::IDENTITY, identity).unwrap();
    drop(meta);
    let why = refusal(&path, STORE);
    assert!(why.contains("it knows 1, found 2"), "{why}");
}

#[test]
fn a_destroyed_index_can_be_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    RocksMeta::destroy(&path).unwrap();
    let meta = RocksMeta::create(&path, STORE).unwrap();
    meta.apply(numbered(1), true).unwrap();
    drop(meta);
    RocksMeta::destroy(&path).unwrap();
    let meta = RocksMeta::create(&path, STORE).unwrap();
    assert_eq!(whole_batches(&meta, 1), 0);
}

#[test]
fn values_that_cannot_be_decoded_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let meta = RocksMeta::create(&index_in(&directory), STORE).unwrap();
    meta.db.put_cf(meta.family(keys::CHUNKS).unwrap(), chunk_id(1).as_bytes(), [1, 2, 3]).unwrap();
    let error = meta.chunks(&[chunk_id(1)]).unwrap_err().to_string();
    assert!(error.contains("place of a record is cut short") && error.contains("rebuild"), "{error}");
    meta.db.put_cf(meta.family(keys::NAMES).unwrap(), "lost", [1; 9]).unwrap();
    let error = meta.snapshots(None, "", 10).unwrap_err().to_string();
    assert!(error.contains("has a name and no record"), "{error}");
}

/// The log that RocksDB writes to.
fn log_of(index: &Path) -> PathBuf {
    let logs = fs::read_dir(index).unwrap().map(|entry| entry.unwrap().path());
    logs.filter(|path| path.extension().is_some_and(|suffix| suffix == "log")).max().unwrap()
}

/// Lets `change` spoil the log of an index with batches 1 to 20, and gives how many of them are left.
fn batches_after(change: impl FnOnce(&mut Vec<u8>)) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let meta = RocksMeta::create(&path, STORE).unwrap();
    for number in 1..=20 {
        meta.apply(numbered(number), number % 2 == 0).unwrap();
    }
    drop(meta);
    let log = log_of(&path);
    let mut bytes = fs::read(&log).unwrap();
    change(&mut bytes);
    fs::write(&log, &bytes).unwrap();

    let meta = RocksMeta::open(&path, STORE).unwrap();
    let left = whole_batches(&meta, 25);
    // And it can be gone on with from there.
    for number in left + 1..=25 {
        meta.apply(numbered(number), false).unwrap();
    }
    drop(meta);
    assert_eq!(whole_batches(&RocksMeta::open(&path, STORE).unwrap(), 25), 25);
    left
}

/// A power cut leaves the log cut off somewhere behind the last sync. Wherever that is, whole batches are left.
#[test]
fn a_torn_log_leaves_whole_batches() {
    let mut left: Vec<u64> = (0..16)
        .map(|part| batches_after(|bytes| bytes.truncate(bytes.len() * part / 16)))
        .collect();
    left.push(batches_after(|_| {}));
    assert!(left.is_sorted(), "{left:?}");
    assert_eq!((left[0], left[16]), (0, 20));
}

/// Damage, too, leaves only whole batches in order: what is behind it is brought in by recovery.
#[test]
fn a_damaged_log_leaves_whole_batches() {
    for part in 1..16 {
        let left = batches_after(|bytes| {
            let at = bytes.len() * part / 16;
            bytes[at] ^= 0x40;
        });
        assert!(left < 20, "damage at {part}/16 was not noticed");
    }
}

/// Damage in a log that one family has left behind and others have not would leave parts of batches: that is refused.
#[test]
fn parts_of_batches_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let meta = RocksMeta::create(&path, STORE).unwrap();
    (1..=10).for_each(|number| meta.apply(numbered(number), false).unwrap());
    let log = log_of(&path);
    meta.db.flush_cf(meta.family(keys::CHUNKS).unwrap()).unwrap();
    (11..=20).for_each(|number| meta.apply(numbered(number), false).unwrap());
    drop(meta);
    assert_ne!(log_of(&path), log);
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(&log, bytes).unwrap();
    let error = RocksMeta::open(&path, STORE).unwrap_err();
    assert!(matches!(error, Error::Index { .. }), "{error:?}");
    assert!(error.to_string().contains("rebuild"), "{error}");
}

#[test]
fn a_failure_that_is_not_a_full_disk_is_not_taken_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let path = file.join("index");
    let error = RocksMeta::create(&path, STORE).unwrap_err();
    assert!(matches!(error, Error::Index { .. }), "{error:?}");
}

#[test]
#[ignore]
fn scratch_full() {
    let path = PathBuf::from("/tmp/small/index");
    let _ = fs::remove_dir_all(&path);
    let fill = PathBuf::from("/tmp/small/fill");
    let _ = fs::remove_file(&fill);
    let meta = RocksMeta::create(&path, STORE).unwrap();
    let mut number = 0u64;
    let fillbytes = std::env::var("FILL").ok().and_then(|s| s.parse().ok()).unwrap_or(0usize);
    fs::write(&fill, vec![1u8; fillbytes]).unwrap();
    let mut failures = 0;
    let started = std::time::Instant::now();
    loop {
        let mut batch = Batch::default();
        for n in 0..500 { batch.put_chunk(chunk_id(number * 500 + n), chunk_at(1, n, 100)); }
        number += 1;
        match meta.apply(batch, true) {
            Ok(()) => {}
            Err(error) => {
                println!("batch {number}: {error:?}; background errors {:?} stopped {:?}",
                    meta.db.property_int_value("rocksdb.background-errors"), meta.db.property_int_value("rocksdb.is-write-stopped"));
                failures += 1;
                if failures > 2 { break; }
            }
        }
        if number > 1500 { println!("no failure"); break; }
    }
    let ids: Vec<_> = (0..(number - failures) * 500).map(chunk_id).collect();
    println!("found {}/{} health {}", meta.chunks(&ids).unwrap().iter().flatten().count(), ids.len(), meta.is_healthy());
    // What RocksDB itself does, our own refusal aside.
    for _ in 0..10 {
        let mut options = rocksdb::WriteOptions::default();
        options.set_sync(true);
        let mut write = rocksdb::WriteBatch::default();
        write.put_cf(meta.family(keys::NAMES).unwrap(), "raw", [1; 9]);
        println!("raw write: {:?}", meta.db.write_opt(write, &options));
        std::thread::sleep(std::time::Duration::from_secs(1));
        let _ = fs::remove_file(&fill);
    }
    let totals = meta.totals().unwrap();
    drop(meta);
    let meta = RocksMeta::open(&path, STORE).unwrap();
    println!("before {totals:?}\nafter  {:?} in {:?}", meta.totals().unwrap(), started.elapsed());
    let ids: Vec<_> = (0..number * 500).map(chunk_id).collect();
    println!("found {}", meta.chunks(&ids).unwrap().iter().flatten().count());
}
