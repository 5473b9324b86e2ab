//! Power cuts on a simulated disk: after each, everything that was promised is there, and nothing
//! half.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use varve_content::{RootId, codec::Compression};

use super::{Random, assert_holds, block_on, random_image, scribble, seed, upload};
use crate::{
    Error, Options, RebuildReport, RecoveryReport, Result, Store,
    engine::DirectoryLock,
    format::{
        Kind, LastRun, Location, Name, PackId, StoreId, catalog_log::LogHeader, names,
        record::Entry,
    },
    io::{
        Disk,
        sim::{Call, SimDisk},
    },
    limits,
    meta::{
        Batch, Catalog, CatalogView, Filter, Index, IndexView, MemoryMeta, Meta, Outcome,
        PackState, Page, Totals,
    },
    recovery::{Base, assemble, refill},
};

/// A model of RocksDB that can lose power: the latest batches that were not synced are lost, never
/// one in the middle.
#[derive(Debug, Default)]
struct PowerlessMeta {
    applied: MemoryMeta,
    batches: Mutex<Vec<(Batch, bool)>>,
}

impl PowerlessMeta {
    fn crash(&self, random: &mut Random) -> Self {
        let batches = self.batches.lock();
        let synced = batches
            .iter()
            .rposition(|(_, sync)| *sync)
            .map_or(0, |last| last + 1);
        let kept = synced + random.below(batches.len() - synced + 1);
        let after = Self::default();
        for (batch, _) in &batches[..kept] {
            after.apply(batch.clone(), true).unwrap();
        }
        after
    }

    /// As the page cache has it: what was written to the log is there, and no more durable than
    /// before.
    fn kill(&self) -> Self {
        let after = Self::default();
        for (batch, sync) in &*self.batches.lock() {
            after.apply(batch.clone(), *sync).unwrap();
        }
        after
    }
}

impl Index for PowerlessMeta {
    fn lookup(&self, names: &[Name]) -> Result<Vec<Option<Location>>> {
        self.applied.lookup(names)
    }
    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>> {
        self.applied.pack_state(pack)
    }
    fn pack_states(&self) -> Result<Vec<PackState>> {
        self.applied.pack_states()
    }
    fn last_pack_number(&self) -> Result<u64> {
        self.applied.last_pack_number()
    }
    fn last_run(&self) -> Result<Option<LastRun>> {
        self.applied.last_run()
    }
    fn view(&self, look: &mut dyn FnMut(&dyn IndexView) -> Result<()>) -> Result<()> {
        self.applied.view(look)
    }
}

impl Catalog for PowerlessMeta {
    fn entry(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>> {
        self.applied.entry(kind, id)
    }
    fn entry_named(&self, kind: &'static Kind, name: &str) -> Result<Option<Entry>> {
        self.applied.entry_named(kind, name)
    }
    fn entry_of_root(&self, kind: &'static Kind, root: RootId) -> Result<Option<Entry>> {
        self.applied.entry_of_root(kind, root)
    }
    fn entries(
        &self,
        kind: &'static Kind,
        filter: &Filter,
        from: &[u8],
        steps: usize,
    ) -> Result<Page<Entry>> {
        self.applied.entries(kind, filter, from, steps)
    }
    fn catalog_sequence(&self) -> Result<u64> {
        self.applied.catalog_sequence()
    }
    fn view_catalog(&self, look: &mut dyn FnMut(&dyn CatalogView) -> Result<()>) -> Result<()> {
        self.applied.view_catalog(look)
    }
}

impl Meta for PowerlessMeta {
    fn apply(&self, batch: Batch, sync: bool) -> Result<Outcome> {
        let mut batches = self.batches.lock();
        let outcome = self.applied.apply(batch.clone(), sync)?;
        batches.push((batch, sync));
        Ok(outcome)
    }
    fn totals(&self) -> Result<Totals> {
        self.applied.totals()
    }
    fn is_healthy(&self) -> bool {
        self.applied.is_healthy()
    }
}

pub(super) struct Machine {
    pub(super) disk: Arc<SimDisk>,
    meta: Arc<PowerlessMeta>,
    /// Only for the lock, which is not part of the simulation.
    real: tempfile::TempDir,
    pub(super) journal_bytes_max: u64,
    pub(super) pack_bytes_max: u64,
    pub(super) journal_files_open_max: usize,
}

const DATA_DIR: &str = "/data";
const STORE: StoreId = StoreId::from_bytes([7; 16]);

impl Machine {
    pub(super) fn new() -> Self {
        let disk = SimDisk::new();
        disk.create_dir(Path::new(DATA_DIR)).unwrap();
        block_on(disk.sync_dir(Path::new("/"))).unwrap();
        Self {
            disk,
            meta: Arc::default(),
            real: tempfile::tempdir().unwrap(),
            // In files of 4 MiB.
            journal_bytes_max: 256 << 20,
            pack_bytes_max: limits::PACK_BYTES_MAX,
            journal_files_open_max: limits::JOURNAL_FILES_OPEN_MAX,
        }
    }

    pub(super) async fn open(&self) -> Result<(Store, RecoveryReport)> {
        let mut options = Options::new(PathBuf::from(DATA_DIR));
        options.cpu_threads = 1;
        options.journal_bytes_max = self.journal_bytes_max;
        options.pack_bytes_max = self.pack_bytes_max;
        options.journal_files_open_max = self.journal_files_open_max;
        let base = Base {
            disk: Arc::<SimDisk>::clone(&self.disk),
            store: STORE,
            compression: Compression::Lz4,
            options,
            lock: DirectoryLock::take(self.real.path())?,
        };
        let mut report = RecoveryReport::default();
        let meta: Arc<dyn Meta> = Arc::<PowerlessMeta>::clone(&self.meta);
        let engine = assemble(base, &mut report, |_| Ok(meta)).await?;
        Ok((Store::of(engine).await, report))
    }

    /// Loses the catalog log, and makes the catalog again without it, packs and journals being all
    /// there is.
    pub(super) async fn lose_catalog(&mut self) -> RebuildReport {
        let log = names::catalog_log(Path::new(DATA_DIR));
        if self.disk.remove(&log).is_ok() {
            self.disk.sync_dir(Path::new(DATA_DIR)).await.unwrap();
        }
        // As where there never were any: with packs the log is not begun anew.
        let empty = LogHeader::without_checkpoint(STORE).encode();
        self.disk.put(&log, &empty).unwrap();
        self.meta = Arc::default();
        let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(&self.disk);
        refill(&disk, &Options::new(DATA_DIR), STORE, &*self.meta, None)
            .await
            .unwrap()
    }

    /// Loses index and catalog.
    pub(super) fn lose_index(&mut self) {
        self.meta = Arc::default();
    }

    /// Number of the last change of the catalog that the index has.
    pub(super) fn catalog_sequence(&self) -> u64 {
        self.meta.catalog_sequence().unwrap()
    }

    /// Returns a function that brings index and catalog back to their state of now.
    pub(super) fn index_of_now(&self) -> impl Fn(&mut Self) + use<> {
        let now = self.meta.kill();
        move |machine: &mut Self| machine.meta = Arc::new(now.kill())
    }

    /// Makes index and catalog again: from packs, the log and, if it is there, the old index.
    pub(super) async fn rebuild(&mut self, has_old: bool) -> Result<RebuildReport> {
        let old = std::mem::take(&mut self.meta);
        let old: Arc<dyn Meta> = old;
        let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(&self.disk);
        let options = Options::new(DATA_DIR);
        let old = has_old.then_some(old);
        refill(&disk, &options, STORE, &*self.meta, old).await
    }

    /// Another machine with the same on its disk.
    pub(super) fn copy(&self) -> Self {
        Self {
            disk: self.disk.copy(),
            meta: Arc::new(self.meta.kill()),
            real: tempfile::tempdir().unwrap(),
            journal_bytes_max: self.journal_bytes_max,
            pack_bytes_max: self.pack_bytes_max,
            journal_files_open_max: self.journal_files_open_max,
        }
    }

    /// The state that the next process finds after a kill.
    pub(super) fn kill(self, seed: u64) -> Self {
        Self {
            disk: self.disk.kill(seed),
            meta: Arc::new(self.meta.kill()),
            real: self.real,
            journal_bytes_max: self.journal_bytes_max,
            pack_bytes_max: self.pack_bytes_max,
            journal_files_open_max: self.journal_files_open_max,
        }
    }

    /// The state after a loss of power.
    pub(super) fn crash(self, random: &mut Random) -> Self {
        Self {
            disk: self.disk.crash(random.next()),
            meta: Arc::new(self.meta.crash(random)),
            real: self.real,
            journal_bytes_max: self.journal_bytes_max,
            pack_bytes_max: self.pack_bytes_max,
            journal_files_open_max: self.journal_files_open_max,
        }
    }
}

/// The promises, and further changes that may have happened.
#[derive(Default)]
struct Promises {
    /// Acknowledged.
    there: BTreeMap<String, Vec<u8>>,
    /// Begun and not acknowledged: there whole, or not.
    perhaps: BTreeMap<String, Vec<u8>>,
}

/// Does the same with the same seed, until the power fails.
async fn work(store: &Store, random: &mut Random, promises: &mut Promises) -> Result<()> {
    let mut image = random_image(random, 300);
    for number in 0..6 {
        let name = format!("s{number}");
        promises.perhaps.insert(name.clone(), image.clone());
        let record = upload(store, &name, &image).await?;
        promises.perhaps.remove(&name);
        promises.there.insert(name.clone(), image.clone());
        assert_eq!(record.label(), *name);
        scribble(random, &mut image, 2);
        if number == 2 {
            let image = promises.there.remove("s0").unwrap();
            promises.perhaps.insert("s0".to_owned(), image);
            store.delete_snapshot(&"s0".into()).await?;
            promises.perhaps.remove("s0");
        }
        if number == 3 {
            store
                .tag_snapshot(
                    &"s1".into(),
                    BTreeMap::from([("k".to_owned(), "v".to_owned())]),
                    Vec::new(),
                )
                .await?;
        }
    }
    Ok(())
}

async fn check(store: &Store, promises: &Promises) {
    for (name, image) in &promises.there {
        assert_holds(store, name, image).await;
    }
    for (name, image) in &promises.perhaps {
        match store.snapshot(&name.as_str().into()).await {
            Ok(_) => assert_holds(store, name, image).await,
            Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// One power cut after so many operations of the disk. False when the work ended before.
fn cut_after(operations: u64, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let mut promises = Promises::default();
    let machine = Machine::new();
    machine.disk.power_off_after(operations);
    let finished = block_on(async {
        // Making the store may be cut short as well.
        let (store, _) = machine.open().await?;
        work(&store, &mut random, &mut promises).await
    });
    let cut = finished.is_err();
    let mut random = Random::new(seed ^ operations);
    let machine = machine.crash(&mut random);
    block_on(async {
        let (store, report) = machine
            .open()
            .await
            .unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
        // The store goes on.
        let image = random_image(&mut random, 50);
        upload(&store, "after", &image).await.unwrap();
        promises.there.insert("after".to_owned(), image);
        store.close().await.unwrap();
    });
    // And what it made since survives the next one, too.
    let machine = machine.crash(&mut random);
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
    });
    cut
}

#[test]
fn a_power_cut_at_every_operation_takes_nothing_that_was_promised() {
    let seed = seed();
    let mut operations = 1;
    while cut_after(operations, seed) {
        operations += 1;
    }
    assert!(
        operations > 30,
        "the work is long enough to be cut: {operations} operations"
    );
}

/// The process is killed after so many operations. The state that the next one finds is durable,
/// even if the power fails then.
fn kill_after(operations: u64, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let mut promises = Promises::default();
    let machine = Machine::new();
    machine.disk.power_off_after(operations);
    let finished = block_on(async {
        let (store, _) = machine.open().await?;
        work(&store, &mut random, &mut promises).await
    });
    let mut random = Random::new(seed ^ operations);
    let machine = machine.kill(random.next());
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
        for (name, image) in std::mem::take(&mut promises.perhaps) {
            if store.snapshot(&name.as_str().into()).await.is_ok() {
                promises.there.insert(name, image);
            }
        }
    });
    let machine = machine.crash(&mut random);
    block_on(async {
        let opened = machine.open().await;
        let (store, report) =
            opened.unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
    });
    finished.is_err()
}

#[test]
fn what_is_found_after_a_kill_survives_a_power_cut() {
    let seed = seed();
    let mut operations = 1;
    while kill_after(operations, seed) {
        operations += 1;
    }
    assert!(operations > 30, "{operations} operations");
}

#[test]
fn a_sync_that_fails_stops_all_writing_and_no_reading() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let image = random_image(&mut Random::new(1), 100);
        upload(&store, "before", &image).await.unwrap();
        machine.disk.fail_sync(1);
        let failed = upload(&store, "during", &random_image(&mut Random::new(2), 100))
            .await
            .unwrap_err();
        assert!(
            matches!(failed, Error::Io { .. } | Error::Poisoned { .. }),
            "{failed}"
        );
        let refused = upload(&store, "later", &random_image(&mut Random::new(3), 100))
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        let refused = store.delete_snapshot(&"before".into()).await.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        assert_holds(&store, "before", &image).await;
        assert!(store.status().await.unwrap().read_only_reason.is_some());
    });
}

#[test]
fn a_full_disk_fails_the_upload_and_nothing_else() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let image = random_image(&mut Random::new(1), 100);
        upload(&store, "before", &image).await.unwrap();
        machine.disk.set_capacity(Some(3 << 20));
        let large = random_image(&mut Random::new(2), 4000);
        let failed = upload(&store, "large", &large).await.unwrap_err();
        assert!(failed.is_full(), "{failed}");
        assert!(matches!(
            store.snapshot(&"large".into()).await,
            Err(Error::NotFound { .. })
        ));
        assert_holds(&store, "before", &image).await;
        machine.disk.set_capacity(None);
        upload(&store, "large", &large).await.unwrap();
        assert_holds(&store, "large", &large).await;
        assert_holds(&store, "before", &image).await;
    });
}

/// A write that was refused for lack of space is not there after a loss of power either.
#[test]
fn a_change_that_was_refused_does_not_come_back() {
    let mut random = Random::new(seed());
    for round in 0..64 {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            machine.disk.fail_write(1, std::io::ErrorKind::StorageFull);
            // EMFILE, ENFILE, ENOMEM, EAGAIN, EINTR
            let errno = [24, 23, 12, 11, 4][round % 5];
            machine.disk.refuse(Call::SetLen, 2, errno);
            let new = super::volume_data::new_volume("v", 4096);
            let refused = store.create_volume(new).await.unwrap_err();
            assert!(matches!(refused, Error::Full { .. }), "{refused}");
            assert_eq!(machine.disk.still_refused(Call::SetLen), 0);
        });
        let machine = machine.crash(&mut random);
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let found = store.volume(&"v".into()).await;
            assert!(
                matches!(found, Err(Error::NotFound { .. })),
                "round {round}"
            );
        });
    }
}

/// Nor where the system was short of something for a moment when it was to be cut off the log.
#[test]
fn a_change_that_was_refused_is_cut_off_as_soon_as_that_can_be() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let log = names::catalog_log(Path::new(DATA_DIR));
        let len = |disk: &SimDisk| disk.contents(&log).unwrap().len();
        let before = len(&machine.disk);
        machine.disk.fail_write(1, std::io::ErrorKind::StorageFull);
        let errno = rustix::io::Errno::NOMEM.raw_os_error();
        machine.disk.refuse(Call::SetLen, 2, errno);
        let new = super::volume_data::new_volume("v", 4096);
        let refused = store.create_volume(new).await.unwrap_err();
        assert!(matches!(refused, Error::Full { .. }), "{refused}");
        assert_eq!(machine.disk.still_refused(Call::SetLen), 0);
        assert_eq!(len(&machine.disk), before);

        // If it cannot be until the store closes, nobody knows what the log holds.
        machine.disk.fail_write(1, std::io::ErrorKind::StorageFull);
        machine.disk.refuse(Call::SetLen, u64::MAX, errno);
        machine.disk.patience().end();
        let new = super::volume_data::new_volume("v", 4096);
        let refused = store.create_volume(new).await.unwrap_err();
        assert!(matches!(refused, Error::Io { .. }), "{refused}");
        let new = super::volume_data::new_volume("w", 4096);
        let refused = store.create_volume(new).await.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
    });
}
