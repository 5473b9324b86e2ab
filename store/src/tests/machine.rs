//! A machine with a store: a simulated disk and a model of RocksDB, which lose power together.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use varve_content::{RootId, codec::Compression};

use super::{Random, block_on};
use crate::{
    AccountId, Error, Options, RebuildReport, RecoveryReport, Result, Store,
    engine::DirectoryLock,
    format::{
        Kind, LastRun, Location, Name, PackId, StoreId, catalog_log::LogHeader, keys::Holdings,
        names, record::Entry,
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
#[derive(Debug)]
struct PowerlessMeta {
    applied: MemoryMeta,
    /// Loses power with it.
    disk: Arc<SimDisk>,
    batches: Mutex<Vec<(Batch, bool)>>,
    /// Looks that are to stop.
    stops: Mutex<Vec<Stop>>,
    /// The next look-up is refused.
    refuses_lookup: AtomicBool,
}

/// A look at all of something, as it is at one moment. A collection looks at the catalog, then at
/// the index for ranks and for counts, and at the catalog again once packs are condemned.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Look {
    Catalog,
    /// The same at its end: later changes come too late to be seen.
    CatalogSeen,
    Index,
}

/// A look that is to stop before it begins, or at its end.
#[derive(Debug)]
struct Stop {
    look: Look,
    /// Number of looks that do not stop.
    after: usize,
    stopped: oneshot::Sender<()>,
    may_go_on: mpsc::Receiver<()>,
}

/// A look that is to stop, for the test that lets it go on.
#[derive(Debug)]
pub(super) struct Stopping {
    stopped: oneshot::Receiver<()>,
    go_on: mpsc::SyncSender<()>,
}

impl Stopping {
    /// Waits until the look has stopped, does something, and lets the look go on.
    pub(super) async fn meanwhile<T>(self, work: impl Future<Output = T>) -> T {
        self.stopped.await.unwrap();
        let done = work.await;
        self.go_on.send(()).unwrap();
        done
    }
}

impl PowerlessMeta {
    /// An empty one, which loses power with a disk.
    fn beside(disk: &Arc<SimDisk>) -> Self {
        Self {
            applied: MemoryMeta::default(),
            disk: Arc::clone(disk),
            batches: Mutex::default(),
            stops: Mutex::default(),
            refuses_lookup: AtomicBool::default(),
        }
    }

    fn add(&self, batch: Batch, sync: bool) -> Result<Outcome> {
        let mut batches = self.batches.lock();
        let outcome = self.applied.apply(batch.clone(), sync)?;
        batches.push((batch, sync));
        Ok(outcome)
    }

    fn crash(&self, disk: &Arc<SimDisk>, random: &mut Random) -> Self {
        let batches = self.batches.lock();
        let synced = batches
            .iter()
            .rposition(|(_, sync)| *sync)
            .map_or(0, |last| last + 1);
        let kept = synced + random.below(batches.len() - synced + 1);
        let after = Self::beside(disk);
        for (batch, _) in &batches[..kept] {
            after.add(batch.clone(), true).unwrap();
        }
        after
    }

    /// Stops where a look of this kind is to stop, until the test lets it go on.
    fn begin(&self, look: Look) {
        let stop = {
            let mut stops = self.stops.lock();
            let stop = stops.iter().position(|stop| stop.look == look);
            match stop.and_then(|at| stops.get_mut(at).map(|stop| (at, stop))) {
                Some((_, stop)) if stop.after > 0 => {
                    stop.after -= 1;
                    None
                }
                Some((at, _)) => Some(stops.remove(at)),
                None => None,
            }
        };
        if let Some(stop) = stop {
            stop.stopped.send(()).unwrap();
            // The test may have failed meanwhile.
            let _ = stop.may_go_on.recv();
        }
    }

    /// As the page cache has it: all writes to the log are there, and no more durable than before.
    fn kill(&self, disk: &Arc<SimDisk>) -> Self {
        let after = Self::beside(disk);
        for (batch, sync) in &*self.batches.lock() {
            after.add(batch.clone(), *sync).unwrap();
        }
        after
    }
}

impl Index for PowerlessMeta {
    fn lookup(&self, names: &[Name]) -> Result<Vec<Option<Location>>> {
        if self.refuses_lookup.swap(false, Ordering::Relaxed) {
            return Err(Error::Shortage {
                verb: "read the index",
                path: PathBuf::new(),
                source: std::io::ErrorKind::Other.into(),
            });
        }
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
        self.begin(Look::Index);
        self.applied.view(look)
    }
}

impl Catalog for PowerlessMeta {
    fn entry(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>> {
        self.applied.entry(kind, id)
    }
    fn entry_named(
        &self,
        kind: &'static Kind,
        owner: AccountId,
        name: &str,
    ) -> Result<Option<Entry>> {
        self.applied.entry_named(kind, owner, name)
    }
    fn entry_of_root(
        &self,
        kind: &'static Kind,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<Entry>> {
        self.applied.entry_of_root(kind, root, owner)
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
    fn holdings(&self, account: AccountId) -> Result<Holdings> {
        self.applied.holdings(account)
    }
    fn catalog_sequence(&self) -> Result<u64> {
        self.applied.catalog_sequence()
    }
    fn view_catalog(&self, look: &mut dyn FnMut(&dyn CatalogView) -> Result<()>) -> Result<()> {
        self.begin(Look::Catalog);
        self.applied.view_catalog(&mut |view| {
            look(view)?;
            self.begin(Look::CatalogSeen);
            Ok(())
        })
    }
}

impl Meta for PowerlessMeta {
    fn apply(&self, batch: Batch, sync: bool) -> Result<Outcome> {
        let powered = self.disk.operate();
        powered.map_err(|error| Error::Index {
            verb: "write",
            message: error.to_string(),
        })?;
        self.add(batch, sync)
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
            meta: Arc::new(PowerlessMeta::beside(&disk)),
            disk,
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

    /// Stops a look of this kind, after so many that do not stop. Of stops of the same kind the
    /// first is used up before the next counts.
    pub(super) fn stop(&self, look: Look, after: usize) -> Stopping {
        let (stopped, is_stopped) = oneshot::channel();
        let (go_on, may_go_on) = mpsc::sync_channel(1);
        self.meta.stops.lock().push(Stop {
            look,
            after,
            stopped,
            may_go_on,
        });
        Stopping {
            stopped: is_stopped,
            go_on,
        }
    }

    /// Refuses the next look-up in the index, as if the system was short of something.
    pub(super) fn refuse_lookup(&self) {
        self.meta.refuses_lookup.store(true, Ordering::Relaxed);
    }

    /// Opens a store in which nothing is damaged.
    pub(super) async fn open_undamaged(&self) -> Store {
        let (store, report) = self.open().await.unwrap();
        assert_eq!(report.damage, []);
        store
    }

    /// Loses the catalog log, and makes the catalog again without it, from packs and journals only.
    pub(super) async fn lose_catalog(&mut self) -> RebuildReport {
        let log = names::catalog_log(Path::new(DATA_DIR));
        if self.disk.remove(&log).is_ok() {
            self.disk.sync_dir(Path::new(DATA_DIR)).await.unwrap();
        }
        // As if there never were any: with packs the log is not begun anew.
        let empty = LogHeader::without_checkpoint(STORE).encode();
        self.disk.put(&log, &empty).unwrap();
        self.meta = Arc::new(PowerlessMeta::beside(&self.disk));
        let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(&self.disk);
        refill(&disk, &Options::new(DATA_DIR), STORE, &*self.meta, None)
            .await
            .unwrap()
    }

    /// Loses index and catalog.
    pub(super) fn lose_index(&mut self) {
        self.meta = Arc::new(PowerlessMeta::beside(&self.disk));
    }

    /// Number of the last change of the catalog that the index has.
    pub(super) fn catalog_sequence(&self) -> u64 {
        self.meta.catalog_sequence().unwrap()
    }

    /// Returns a function that brings index and catalog back to their state of now.
    pub(super) fn index_of_now(&self) -> impl Fn(&mut Self) + use<> {
        let now = self.meta.kill(&self.disk);
        move |machine: &mut Self| machine.meta = Arc::new(now.kill(&machine.disk))
    }

    /// Makes index and catalog again: from packs, the log and, if it is there, the old index.
    pub(super) async fn rebuild(&mut self, has_old: bool) -> Result<RebuildReport> {
        let new = Arc::new(PowerlessMeta::beside(&self.disk));
        let old = std::mem::replace(&mut self.meta, new);
        let old: Arc<dyn Meta> = old;
        let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(&self.disk);
        let options = Options::new(DATA_DIR);
        let old = has_old.then_some(old);
        refill(&disk, &options, STORE, &*self.meta, old).await
    }

    /// Another machine with the same disk content.
    pub(super) fn copy(&self) -> Self {
        let disk = self.disk.copy();
        Self {
            meta: Arc::new(self.meta.kill(&disk)),
            disk,
            real: tempfile::tempdir().unwrap(),
            journal_bytes_max: self.journal_bytes_max,
            pack_bytes_max: self.pack_bytes_max,
            journal_files_open_max: self.journal_files_open_max,
            cpu_threads: self.cpu_threads,
        }
    }

    /// The state that the next process finds after a kill.
    pub(super) fn kill(self, seed: u64) -> Self {
        let disk = self.disk.kill(seed);
        Self {
            meta: Arc::new(self.meta.kill(&disk)),
            disk,
            real: self.real,
            journal_bytes_max: self.journal_bytes_max,
            pack_bytes_max: self.pack_bytes_max,
            journal_files_open_max: self.journal_files_open_max,
            cpu_threads: self.cpu_threads,
        }
    }

    /// The state after a loss of power.
    pub(super) fn crash(self, random: &mut Random) -> Self {
        let disk = self.disk.crash(random.next());
        Self {
            meta: Arc::new(self.meta.crash(&disk, random)),
            disk,
            real: self.real,
            journal_bytes_max: self.journal_bytes_max,
            pack_bytes_max: self.pack_bytes_max,
            journal_files_open_max: self.journal_files_open_max,
            cpu_threads: self.cpu_threads,
        }
    }
}
