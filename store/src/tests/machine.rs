//! A machine with a store: a simulated disk and a model of RocksDB, which lose power together.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use varve_content::{RootId, codec::Compression};

use super::{Random, block_on};
use crate::{
    Options, RebuildReport, RecoveryReport, Result, Store,
    engine::DirectoryLock,
    format::{
        Kind, LastRun, Location, Name, PackId, StoreId, catalog_log::LogHeader, names,
        record::Entry,
    },
    io::{Disk, sim::SimDisk},
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
    pub(super) cpu_threads: usize,
}

pub(super) const DATA_DIR: &str = "/data";
const STORE: StoreId = StoreId::from_bytes([7; 16]);

/// The path of a pack on its disk.
pub(super) fn pack_path(pack: PackId) -> PathBuf {
    names::pack(Path::new(DATA_DIR), pack)
}

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
            cpu_threads: 1,
        }
    }

    pub(super) async fn open(&self) -> Result<(Store, RecoveryReport)> {
        let mut options = Options::new(PathBuf::from(DATA_DIR));
        options.cpu_threads = self.cpu_threads;
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

    /// Opens a store in which nothing is damaged.
    pub(super) async fn open_undamaged(&self) -> Store {
        let (store, report) = self.open().await.unwrap();
        assert_eq!(report.damage, []);
        store
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
            cpu_threads: self.cpu_threads,
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
            cpu_threads: self.cpu_threads,
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
            cpu_threads: self.cpu_threads,
        }
    }
}
