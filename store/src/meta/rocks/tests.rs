#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::{collections::BTreeMap, fs, process::Command};

use tempfile::TempDir;

use super::*;
use crate::{
    format::catalog_log::Record,
    meta::{
        Batch, Catalog as _, Meta, SnapshotRecord, VolumeRecord,
        tests::{STORE, chunk_at, chunk_id, snapshot, volume},
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
    assert!(
        why.contains("does not exist") && why.contains("rebuild"),
        "{why}"
    );

    drop(RocksMeta::create(&path, STORE).unwrap());
    let why = refusal(&path, StoreId::from_bytes([8; 16]));
    assert!(why.contains("store 07070707"), "{why}");
    drop(RocksMeta::open(&path, STORE).unwrap());
    assert!(matches!(
        RocksMeta::create(&path, STORE),
        Err(Error::Incompatible { .. })
    ));
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
    meta.db
        .put_cf(meta.family(keys::META).unwrap(), keys::IDENTITY, identity)
        .unwrap();
    drop(meta);
    let why = refusal(&path, STORE);
    assert!(why.contains("it knows 1, found 2"), "{why}");
}

#[test]
fn an_index_from_before_there_were_volumes_copies_and_remotes_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let mut meta = RocksMeta::create(&path, STORE).unwrap();
    meta.apply(numbered(1), true).unwrap();
    meta.db.drop_cf(keys::VOLUMES).unwrap();
    meta.db.drop_cf(keys::VOLUME_NAMES).unwrap();
    meta.db.drop_cf(keys::COPIES).unwrap();
    meta.db.drop_cf(keys::REMOTES).unwrap();
    drop(meta);

    let meta = RocksMeta::open(&path, STORE).unwrap();
    whole_batches(&meta, 1);
    assert_eq!(meta.volumes(None, "", 10).unwrap(), []);
    assert_eq!(meta.copies().unwrap(), []);
    assert_eq!(meta.remotes().unwrap(), []);
    let mut batch = Batch::default();
    batch.catalog(2, Record::PutVolume(volume(1, "v")));
    meta.apply(batch, true).unwrap();
    drop(meta);
    let meta = RocksMeta::open(&path, STORE).unwrap();
    assert_eq!(meta.volume_by_name("v").unwrap(), Some(volume(1, "v")));
    assert_eq!(meta.totals().unwrap().volumes, 1);
}

#[test]
fn an_index_from_before_tags_were_indexed_gets_them_when_it_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let tags = |value: &str| BTreeMap::from([("tier".to_owned(), value.to_owned())]);
    let mut meta = RocksMeta::create(&path, STORE).unwrap();
    let mut batch = Batch::default();
    let gold = VolumeRecord {
        tags: tags("gold"),
        ..volume(1, "v")
    };
    let tin = SnapshotRecord {
        tags: tags("tin"),
        ..snapshot(1, "s")
    };
    batch.catalog(1, Record::PutVolume(gold.clone()));
    batch.catalog(2, Record::PutSnapshot(tin.clone()));
    batch.catalog(3, Record::PutVolume(volume(2, "w")));
    meta.apply(batch, true).unwrap();
    meta.db.drop_cf(keys::VOLUME_TAGS).unwrap();
    meta.db.drop_cf(keys::SNAPSHOT_TAGS).unwrap();
    let family = meta.family(keys::META).unwrap();
    meta.db.delete_cf(family, keys::TAGS_INDEXED).unwrap();
    drop(meta);

    // The second time there is nothing to do.
    for _ in 0..2 {
        let meta = RocksMeta::open(&path, STORE).unwrap();
        let volumes = |value| meta.tagged_volumes(&tags(value), "", "", 10).unwrap();
        assert_eq!(volumes("gold"), (vec![gold.clone()], None));
        assert_eq!(volumes("tin"), (vec![], None));
        let snapshots = |value| meta.tagged_snapshots(&tags(value), "", "", 10).unwrap();
        assert_eq!(snapshots("tin"), (vec![tin.clone()], None));
        assert_eq!(snapshots("gold"), (vec![], None));
        assert!(meta.get(keys::META, keys::TAGS_INDEXED).unwrap().is_some());
    }
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
    meta.db
        .put_cf(
            meta.family(keys::CHUNKS).unwrap(),
            chunk_id(1).as_bytes(),
            [1, 2, 3],
        )
        .unwrap();
    let error = meta.chunks(&[chunk_id(1)]).unwrap_err().to_string();
    assert!(
        error.contains("place of a record is cut short") && error.contains("rebuild"),
        "{error}"
    );
    meta.db
        .put_cf(meta.family(keys::NAMES).unwrap(), "lost", [1; 9])
        .unwrap();
    let error = meta.snapshots(None, "", 10).unwrap_err().to_string();
    assert!(error.contains("has a name and no record"), "{error}");
}

/// The log that RocksDB writes to.
fn log_of(index: &Path) -> PathBuf {
    let logs = fs::read_dir(index)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    logs.filter(|path| path.extension().is_some_and(|suffix| suffix == "log"))
        .max()
        .unwrap()
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
    assert_eq!(
        whole_batches(&RocksMeta::open(&path, STORE).unwrap(), 25),
        25
    );
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
    meta.db
        .flush_cf(meta.family(keys::CHUNKS).unwrap())
        .unwrap();
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

/// A file system of 16 MiB in memory, for as long as this lives.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where file systems may not be mounted.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(directory.path())
            .output();
        mount
            .is_ok_and(|output| output.status.success())
            .then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// What was applied stays, what was not may come back whole, and nothing is written in between.
#[test]
fn a_full_disk_ends_writing_until_the_index_is_opened_again() {
    const CHUNKS: u64 = 500;
    let batch = |number: u64| {
        let mut batch = Batch::default();
        for chunk in CHUNKS * number..CHUNKS * (number + 1) {
            batch.put_chunk(chunk_id(chunk), chunk_at(1, chunk, 100));
        }
        batch
    };
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let path = index_in(&disk.0);
    let reserve = disk.0.path().join("reserve");
    // Half of it: opening writes out what the log holds.
    fs::write(&reserve, vec![1; 8 << 20]).unwrap();
    let meta = RocksMeta::create(&path, STORE).unwrap();
    let mut applied = 0;
    let error = loop {
        match meta.apply(batch(applied), true) {
            Ok(()) => applied += 1,
            Err(error) => break error,
        }
        assert!(applied < 1000, "16 MiB are full by now");
    };
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(!meta.is_healthy());

    // Space alone does not mend it.
    fs::remove_file(&reserve).unwrap();
    assert!(matches!(
        meta.apply(batch(applied), true),
        Err(Error::Poisoned { .. })
    ));
    let ids: Vec<_> = (0..CHUNKS * applied).map(chunk_id).collect();
    assert!(
        meta.chunks(&ids).unwrap().iter().all(Option::is_some),
        "reads go on"
    );
    assert_eq!(meta.totals().unwrap().chunks, CHUNKS * applied);
    drop(meta);

    let meta = RocksMeta::open(&path, STORE).unwrap();
    assert!(meta.chunks(&ids).unwrap().iter().all(Option::is_some));
    let ids: Vec<_> = (CHUNKS * applied..CHUNKS * (applied + 1))
        .map(chunk_id)
        .collect();
    let back = meta.chunks(&ids).unwrap().iter().flatten().count() as u64;
    assert!(back == 0 || back == CHUNKS);
    assert_eq!(meta.totals().unwrap().chunks, CHUNKS * applied + back);
    meta.apply(batch(applied), true).unwrap();
    assert_eq!(meta.totals().unwrap().chunks, CHUNKS * (applied + 1));
}
