#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::{collections::BTreeMap, fs, process::Command};

use tempfile::TempDir;

use super::*;
use crate::{
    AccountId,
    format::{CatalogRecord as _, catalog_log::Record},
    meta::{
        Batch, Catalog as _, Change, CopyRecord, Filter, Meta, Outcome, Page, Records as _,
        RemoteRecord, SnapshotRecord, VolumeRecord,
        conformance::{STORE, chunk, chunk_at, snapshot, volume},
    },
};

fn index_in(directory: &TempDir) -> PathBuf {
    directory.path().join("index")
}

/// The reason why an index is not opened.
fn refusal(path: &Path, store: StoreId) -> String {
    match RocksMeta::open(path, store) {
        Err(Error::Incompatible { path: named, why }) if named == path => why,
        other => panic!("{other:?}"),
    }
}

fn database_of(meta: &mut RocksMeta) -> &mut Database {
    meta.database.get_mut().as_mut().unwrap()
}

/// A batch that adds one chunk and one snapshot.
fn numbered(number: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(chunk(number), chunk_at(1, number, 100));
    let snapshot = snapshot(number as u8, &format!("s{number}"));
    batch.catalog(number, Record::One(Change::put(&snapshot)));
    batch
}

/// Checks that batches 1 to n are there for some n, all of each, and nothing else. Returns n.
fn whole_batches(meta: &RocksMeta, most: u64) -> u64 {
    let last = meta.catalog_sequence().unwrap();
    let names: Vec<_> = (1..=most).map(chunk).collect();
    for (number, place) in (1..).zip(meta.lookup(&names).unwrap()) {
        assert_eq!(place.is_some(), number <= last, "chunk {number} of {last}");
    }
    let totals = meta.totals().unwrap();
    assert_eq!((totals.chunks, totals.snapshots), (last, last));
    assert_eq!(meta.all::<SnapshotRecord>().unwrap().len() as u64, last);
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
    drop(Database::with_options(&path, &options, Kinds::ALL).unwrap());
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
    {
        let open = meta.database().unwrap();
        let family = open.family(keys::META).unwrap();
        open.db.put_cf(family, keys::IDENTITY, identity).unwrap();
    }
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
    for kind in [VolumeRecord::KIND, CopyRecord::KIND, RemoteRecord::KIND] {
        for family in kind.families() {
            database_of(&mut meta).db.drop_cf(family).unwrap();
        }
    }
    drop(meta);

    let meta = RocksMeta::open(&path, STORE).unwrap();
    whole_batches(&meta, 1);
    assert_eq!(meta.all::<VolumeRecord>().unwrap(), []);
    assert_eq!(meta.all::<CopyRecord>().unwrap(), []);
    assert_eq!(meta.all::<RemoteRecord>().unwrap(), []);
    let mut batch = Batch::default();
    batch.catalog(2, Record::One(Change::put(&volume(1, "v"))));
    meta.apply(batch, true).unwrap();
    drop(meta);
    let meta = RocksMeta::open(&path, STORE).unwrap();
    assert_eq!(
        meta.get_named(AccountId::ADMINISTRATOR, "v").unwrap(),
        Some(volume(1, "v"))
    );
    assert_eq!(meta.totals().unwrap().volumes, 1);
}

#[test]
fn an_index_that_lacks_families_of_tags_and_roots_gets_them_when_it_is_opened() {
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
    batch.catalog(1, Record::One(Change::put(&gold)));
    batch.catalog(2, Record::One(Change::put(&tin)));
    batch.catalog(3, Record::One(Change::put(&volume(2, "w"))));
    meta.apply(batch, true).unwrap();
    let database = database_of(&mut meta);
    database.db.drop_cf("volume-tags").unwrap();
    database.db.drop_cf("snapshot-tags").unwrap();
    database.db.drop_cf("snapshot-roots").unwrap();
    let family = database.family(keys::META).unwrap();
    let marks = [keys::TAGS_INDEXED, keys::ROOTS_INDEXED];
    for mark in marks {
        database.db.delete_cf(family, mark).unwrap();
    }
    drop(meta);

    // The second time there is nothing to do.
    for _ in 0..2 {
        let meta = RocksMeta::open(&path, STORE).unwrap();
        let filter = |value| Filter {
            tags: tags(value),
            ..Filter::default()
        };
        let volumes = |value| meta.page(&filter(value), &[], 10).unwrap();
        let snapshots = |value| meta.page(&filter(value), &[], 10).unwrap();
        assert_eq!(volumes("gold"), whole(vec![gold.clone()]));
        assert_eq!(volumes("tin"), whole(vec![]));
        assert_eq!(snapshots("tin"), whole(vec![tin.clone()]));
        assert_eq!(snapshots("gold"), whole(vec![]));
        let root = tin.root().unwrap();
        assert_eq!(meta.get_of_root(root, None).unwrap(), Some(tin.clone()));
        let database = meta.database().unwrap();
        for mark in marks {
            assert!(database.get(keys::META, mark).unwrap().is_some());
        }
    }
}

#[test]
fn holdings_are_counted_in_an_older_index_and_after_an_older_program() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let mut meta = RocksMeta::create(&path, STORE).unwrap();
    let owner = AccountId::from_number(7).unwrap();
    let owned = |number: u8| VolumeRecord {
        owner,
        ..volume(number, &number.to_string())
    };
    let mut batch = Batch::default();
    batch.catalog(1, Record::One(Change::put(&owned(1))));
    batch.catalog(2, Record::One(Change::put(&owned(2))));
    meta.apply(batch, true).unwrap();
    for wrong in [None, Some(keys::encode_sequence(1))] {
        let database = database_of(&mut meta);
        let family = database.family(keys::META).unwrap();
        // As an older program leaves it: it knows neither the mark nor the counts.
        match wrong {
            None => database.db.delete_cf(family, keys::HOLDINGS_COUNTED),
            Some(sequence) => database.db.put_cf(family, keys::HOLDINGS_COUNTED, sequence),
        }
        .unwrap();
        for (account, volumes) in [(owner, 9), (AccountId::ADMINISTRATOR, 3)] {
            let holdings = keys::Holdings {
                volumes,
                ..keys::Holdings::default()
            };
            let key = keys::Holdings::key_of(account);
            database.db.put_cf(family, key, holdings.encode()).unwrap();
        }
        drop(meta);
        meta = RocksMeta::open(&path, STORE).unwrap();
        assert_eq!(meta.holdings(owner).unwrap().volumes, 2);
        let others = meta.holdings(AccountId::ADMINISTRATOR).unwrap();
        assert_eq!(others, keys::Holdings::default());
    }
}

/// A page that is the whole list.
fn whole<R>(records: Vec<R>) -> Page<R> {
    Page {
        records,
        next: None,
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
    let put = |family, key: &[u8], value: &[u8]| {
        let open = meta.database().unwrap();
        let family = open.family(family).unwrap();
        open.db.put_cf(family, key, value).unwrap();
    };
    put(keys::CHUNKS, chunk(1).as_bytes(), &[1, 2, 3]);
    let error = meta.lookup(&[chunk(1)]).unwrap_err().to_string();
    assert!(
        error.contains("place of a record is cut short") && error.contains("rebuild"),
        "{error}"
    );
    put("names", b"lost", &[1; 9]);
    let error = meta.all::<SnapshotRecord>().unwrap_err().to_string();
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

/// Lets `change` spoil the log of an index with batches 1 to 20. Returns the number of batches
/// left.
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
    // Writing can continue from there.
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

/// A power cut leaves the log cut off somewhere behind the last sync. Wherever that is, whole
/// batches are left.
#[test]
fn a_torn_log_leaves_whole_batches() {
    let mut left: Vec<u64> = (0..16)
        .map(|part| batches_after(|bytes| bytes.truncate(bytes.len() * part / 16)))
        .collect();
    left.push(batches_after(|_| {}));
    assert!(left.is_sorted(), "{left:?}");
    assert_eq!((left[0], left[16]), (0, 20));
}

/// Damage, too, leaves only whole batches in order: recovery adds the rest.
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

/// Damage in a log that one family has left behind and others have not would leave parts of
/// batches: that is refused.
#[test]
fn parts_of_batches_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let meta = RocksMeta::create(&path, STORE).unwrap();
    (1..=10).for_each(|number| drop(meta.apply(numbered(number), false).unwrap()));
    let log = log_of(&path);
    {
        let open = meta.database().unwrap();
        open.db
            .flush_cf(open.family(keys::CHUNKS).unwrap())
            .unwrap();
    }
    (11..=20).for_each(|number| drop(meta.apply(numbered(number), false).unwrap()));
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

/// Batches of many chunks, which fill their disk soon.
fn many(number: u64) -> Batch {
    let mut batch = Batch::default();
    for nth in MANY * number..MANY * (number + 1) {
        batch.put(chunk(nth), chunk_at(1, nth, 100));
    }
    let snapshot = snapshot(number as u8, &format!("s{number}"));
    batch.catalog(number + 1, Record::One(Change::put(&snapshot)));
    batch
}

const MANY: u64 = 2000;

/// Checks that the first batches are there, whole, and no others.
fn check_many(meta: &RocksMeta, batches: u64) {
    let names: Vec<_> = (0..MANY * (batches + 2)).map(chunk).collect();
    for (number, place) in (0..).zip(meta.lookup(&names).unwrap()) {
        assert_eq!(
            place.is_some(),
            number < MANY * batches,
            "chunk {number} of {batches} batches"
        );
    }
    assert_eq!(meta.totals().unwrap().chunks, MANY * batches);
    assert_eq!(meta.totals().unwrap().snapshots, batches);
    assert_eq!(meta.catalog_sequence().unwrap(), batches);
}

/// Applies batches until one is refused. Returns how many were applied, and the error.
fn until_refused(meta: &RocksMeta, mut applied: u64, sync: bool) -> (u64, Error) {
    loop {
        match meta.apply(many(applied), sync) {
            Ok(_) => applied += 1,
            Err(error) => return (applied, error),
        }
        assert!(
            applied < 250,
            "{applied} batches found enough of everything"
        );
    }
}

#[test]
fn a_full_disk_refuses_batches_until_there_is_space_again() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let path = index_in(&disk.0);
    let reserve = disk.0.path().join("reserve");
    // Most of it: opening writes out what the log holds.
    fs::write(&reserve, vec![1; 12 << 20]).unwrap();
    let meta = RocksMeta::create(&path, STORE).unwrap();
    let (applied, error) = until_refused(&meta, 0, true);
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(meta.is_healthy());
    // Still full: refused in the same way, and reads go on.
    for _ in 0..3 {
        let error = meta.apply(many(applied), true).unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{error:?}");
        let error = meta.writes_again().unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{error:?}");
        check_many(&meta, applied);
    }

    fs::remove_file(&reserve).unwrap();
    meta.writes_again().unwrap();
    // Applied once, even if it was already in the log.
    for number in applied..applied + 5 {
        meta.apply(many(number), true).unwrap();
        check_many(&meta, number + 1);
    }
    drop(meta);
    check_many(&RocksMeta::open(&path, STORE).unwrap(), applied + 5);
}

/// Descriptors that are open.
fn descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1
}

fn permit_descriptors(count: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(count);
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[test]
fn a_want_of_descriptors_refuses_batches_until_there_are_some_again() {
    if !crate::tests::is_alone(
        "meta::rocks::tests::a_want_of_descriptors_refuses_batches_until_there_are_some_again",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = index_in(&directory);
    let meta = RocksMeta::create(&path, STORE).unwrap();
    let mut applied = 0;
    for sync in [false, true] {
        // No log can follow the one that is full.
        permit_descriptors(descriptors());
        let refused = until_refused(&meta, applied, sync);
        applied = refused.0;
        assert!(
            matches!(refused.1, Error::Shortage { .. }),
            "{:?}",
            refused.1
        );
        for _ in 0..3 {
            let error = meta.apply(many(applied), sync).unwrap_err();
            assert!(matches!(error, Error::Shortage { .. }), "{error:?}");
        }
        assert!(meta.is_healthy());
        permit_descriptors(1024);
        for number in applied..applied + 3 {
            meta.apply(many(number), sync).unwrap();
            check_many(&meta, number + 1);
        }
        applied += 3;
    }
    drop(meta);
    check_many(&RocksMeta::open(&path, STORE).unwrap(), applied);
}

/// An error of RocksDB's, as of a write for which there was no descriptor.
fn want_of_descriptors(directory: &TempDir) -> rocksdb::Error {
    permit_descriptors(descriptors());
    let failed = DB::open_default(directory.path().join("other"));
    permit_descriptors(1024);
    let error = failed.err().unwrap();
    assert!(shortage(&error).is_some(), "{error}");
    error
}

/// A lost chunk is sent again and put elsewhere: no total shows whether that was written.
#[test]
fn a_batch_that_changes_no_total_is_applied_after_all_when_it_is_tried_again() {
    if !crate::tests::is_alone(
        "meta::rocks::tests::a_batch_that_changes_no_total_is_applied_after_all_when_it_is_tried_again",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let meta = RocksMeta::create(&index_in(&directory), STORE).unwrap();
    let at = |number| {
        let mut batch = Batch::default();
        batch.put(chunk(1), chunk_at(1, number, 100));
        batch
    };
    meta.apply(at(1), true).unwrap();
    for is_written in [false, true] {
        let number = 2 + u64::from(is_written);
        let known = *meta.known.read();
        let error = want_of_descriptors(&directory);
        if is_written {
            meta.apply(at(number), true).unwrap();
        }
        assert_eq!(*meta.known.read(), known);
        let mut applying = meta.applying.lock();
        let told = meta.interrupted(
            &mut applying,
            (at(number), Outcome::default()),
            known,
            known,
            error,
        );
        drop(applying);
        assert!(matches!(told, Error::Shortage { .. }), "{told:?}");
        meta.apply(at(number), true).unwrap();
        let found = meta.lookup(&[chunk(1)]).unwrap();
        assert_eq!(found, [Some(chunk_at(1, number, 100))]);
        assert_eq!(*meta.known.read(), known);
    }
}

/// RocksDB is not the truth: a catalog that lacks a record must not replace the log.
#[test]
fn a_catalog_that_has_lost_a_record_is_no_source_of_a_log_checkpoint() {
    use std::sync::Arc;

    use crate::{
        catalog_log::begin_checkpoint,
        io::{Disk, sim::SimDisk},
    };
    let directory = tempfile::tempdir().unwrap();
    let meta = RocksMeta::create(&index_in(&directory), STORE).unwrap();
    for number in 1..=5 {
        meta.apply(numbered(number), true).unwrap();
    }
    let meta = Arc::new(meta);
    let disk: Arc<dyn Disk> = SimDisk::new();
    let begin = || {
        let id = (STORE, Kinds::ALL, 1);
        let meta: Arc<dyn Meta> = Arc::<RocksMeta>::clone(&meta);
        let begun = begin_checkpoint(&disk, Path::new("/"), id, meta, || Ok(()));
        crate::tests::block_on(begun)
    };
    begin().unwrap();
    {
        let open = meta.database().unwrap();
        let family = open.family(SnapshotRecord::KIND.records).unwrap();
        let id = snapshot(3, "").id;
        open.db.delete_cf(family, id.as_bytes()).unwrap();
    }
    let refused = begin().unwrap_err().to_string();
    assert!(refused.contains("varved rebuild"), "{refused}");
}
