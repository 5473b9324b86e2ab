//! An open volume, and opening and closing it.

use std::{
    fmt,
    panic::resume_unwind,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, RwLock as AsyncRwLock, Semaphore},
    task::JoinHandle,
};
use varve_content::BLOCK_BYTES;

use super::{
    Volumes,
    checkpoint::Checkpoints,
    journal::{Host, Journal, JournalDir, JournalReport, MakesDurable, OwnerFile, recover},
    layers::{Epoch, Layers, ReplayedEpochs},
    queue::Queue,
    snapshot, writer,
};
use crate::{
    Error, Result,
    engine::{Engine, Ledger, joined},
    failpoints::{Failpoint, reach},
    format::volume::VolumeRecord,
    limits::VOLUME_QUEUE_BYTES,
    read::ContentReader,
};

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// A volume, open for reading and writing. Clones are handles of the same volume, which is closed
/// with the last of them.
///
/// Requests may overlap in time. The result for each block is that of some order of them, never a
/// mix. A read that begins after a write has returned sees that write.
#[derive(Debug, Clone)]
pub struct Volume(pub(super) Arc<OpenVolume>);

#[derive(Debug)]
pub(super) struct OpenVolume {
    pub(super) inner: Arc<VolumeState>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for OpenVolume {
    fn drop(&mut self) {
        self.inner.queue.close();
    }
}

/// The state of an open volume, which requests and its tasks share.
pub(super) struct VolumeState {
    pub(super) engine: Arc<Engine>,
    pub(super) volumes: Arc<Volumes>,
    pub(super) name: String,
    pub(super) journal: Arc<Journal>,
    pub(super) layers: RwLock<Layers>,
    pub(super) queue: Queue,
    /// The record as it was when the volume was opened.
    pub(super) record: VolumeRecord,
    /// The ledger of the account that it belongs to now.
    pub(super) ledger: RwLock<Arc<Ledger>>,
    pub(super) checkpoints: Checkpoints,
    pub(super) owner_file: AsyncMutex<OwnerFile>,
    /// Only grows.
    size_bytes: AtomicU64,
    /// For tasks that keep the volume open.
    handle: OnceLock<Weak<OpenVolume>>,
    /// Held alone by a change of a part of a block, which reads the rest of the block.
    pub(super) block_lock: Arc<AsyncRwLock<()>>,
    /// Bytes of its changes that wait or are in flight.
    pub(super) queue_budget: Arc<Semaphore>,
    /// True if a sync is under way that the store has begun by itself.
    syncs_by_itself: AtomicBool,
    report: JournalReport,
}

impl fmt::Debug for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// Opens a volume: brings its owner record up to date, reads its journal, and starts the task
    /// that writes it, which holds `writing` to its end.
    pub(super) async fn open(
        volumes: Arc<Volumes>,
        record: VolumeRecord,
        writing: OwnedMutexGuard<()>,
    ) -> Result<Self> {
        let engine = Arc::clone(&volumes.engine);
        engine.commit.writable()?;
        let (record, pin) = engine.pin_named(record, |it| Ok(it.base)).await?;
        let host: Arc<dyn Host> = Arc::<Engine>::clone(&engine);
        let dir = JournalDir {
            disk: Arc::clone(&engine.disk),
            data_dir: engine.options.data_dir.clone(),
            store: engine.store_id,
            volume: record.id,
            bytes_max: engine.options.journal_bytes_max,
            pool: Arc::clone(&volumes.journal_files),
            host,
        };
        dir.create().await?;
        let promises = snapshot::promises(&engine, &record).await?;
        let owner_file = OwnerFile::open(&dir, &record).await?;
        let mut replayed = ReplayedEpochs::default();
        let permits = &volumes.journal_scan_permits;
        let (recovered, report) = recover(&dir, promises, permits, &mut replayed).await?;
        let mut epochs = replayed.0;
        if report != JournalReport::default() {
            tracing::info!(
                volume = &*record.label(),
                batches = report.batches,
                blocks = report.blocks,
                files = report.files,
                torn = report.torn,
                "journal read"
            );
        }
        let base = match pin {
            Some(pin) => {
                Some(ContentReader::open(Arc::clone(&engine), pin, &record.label()).await?)
            }
            None => None,
        };
        let jobs = snapshot::resumed(&volumes, &record).await?;
        let current = epochs
            .pop()
            .unwrap_or_else(|| Epoch::new(record.journal_from))
            .counted(&volumes.map_memory);
        let ended = epochs
            .into_iter()
            .map(|epoch| epoch.counted(&volumes.map_memory));
        let layers = RwLock::new(Layers::new(current, ended, base));
        let inner = Arc::new(VolumeState {
            name: record.label().into_owned(),
            journal: Arc::new(Journal::new(dir, recovered)),
            layers,
            queue: Queue::default(),
            checkpoints: Checkpoints::default(),
            owner_file: AsyncMutex::new(owner_file),
            size_bytes: AtomicU64::new(record.size_bytes),
            handle: OnceLock::new(),
            block_lock: Arc::default(),
            queue_budget: Arc::new(Semaphore::new(VOLUME_QUEUE_BYTES)),
            syncs_by_itself: AtomicBool::new(false),
            report,
            ledger: RwLock::new(engine.ledgers.of(record.owner)),
            record,
            engine,
            volumes,
        });
        let task = Arc::clone(&inner);
        #[expect(
            clippy::disallowed_methods,
            reason = "`close` waits for it; and the volume is opened again only after it has ended"
        )]
        let writer = tokio::spawn(async move {
            let _writing = writing;
            writer::run(Arc::clone(&task)).await;
            // The last user may not have flushed it. An error has stopped the store, which is how
            // others learn of it.
            if task.sync().await.is_ok() {
                let last = task.journal.last_sequence();
                task.volumes.record_closed(task.record.id, last).await;
            }
            task.journal.stop_recycling().await;
        });
        let volume = Self(Arc::new(OpenVolume {
            inner,
            writer: Mutex::new(Some(writer)),
        }));
        drop(volume.0.inner.handle.set(Arc::downgrade(&volume.0)));
        let inner: Arc<dyn MakesDurable> = Arc::<VolumeState>::clone(&volume.0.inner);
        volume.0.inner.journal.register(Arc::downgrade(&inner));
        for job in jobs {
            volume.checkpoint_later(job);
        }
        Ok(volume)
    }

    pub(super) fn inner(&self) -> &Arc<VolumeState> {
        &self.0.inner
    }

    /// The volume's record, as of its opening.
    #[must_use]
    pub fn record(&self) -> &VolumeRecord {
        &self.0.inner.record
    }

    /// Its size, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.inner.size_bytes()
    }

    /// Lets it be as large as its record says now.
    pub(super) fn grow(&self, size_bytes: u64) {
        let inner = &self.0.inner;
        // Between changes: a change behind the old end is in an epoch that ends at the new one.
        inner
            .queue
            .between(|| inner.size_bytes.fetch_max(size_bytes, Ordering::AcqRel));
    }

    /// The content of its journal when the volume was opened.
    #[must_use]
    pub fn journal_report(&self) -> &JournalReport {
        &self.0.inner.report
    }

    /// Bytes that its journal takes on disk.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        self.0.inner.journal.len_bytes()
    }

    /// Approximate memory of the journal's map, in bytes.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        let layers = self.0.inner.layers.read();
        let ended = layers.below.ended.iter();
        let ended: u64 = ended.map(|epoch| epoch.map.memory_bytes()).sum();
        layers.current.map.memory_bytes() + ended
    }

    /// Makes all writes durable that have returned before.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] if a write or a sync of the store has failed before; the error of a
    /// failed sync.
    pub async fn flush(&self) -> Result<()> {
        let inner = Arc::clone(&self.0.inner);
        inner.engine.commit.writable()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "it is waited for here; it runs to its end for the sake of its error"
        )]
        let task = tokio::spawn(async move { inner.sync().await });
        joined(task).await
    }

    /// Writes and syncs the queued changes, and takes no more.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn close(&self) -> Result<()> {
        self.0.inner.checkpoints.close();
        self.0.inner.queue.close();
        let writer = self.0.writer.lock().take();
        if let Some(writer) = writer
            && let Err(ended) = writer.await
            && let Ok(panic) = ended.try_into_panic()
        {
            resume_unwind(panic);
        }
        // Waits for the owner record, if it is being written.
        drop(self.0.inner.owner_file.lock().await);
        self.flush().await
    }
}

impl VolumeState {
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The volume, unless it is being closed.
    pub(super) fn volume(&self) -> Option<Volume> {
        self.handle.get()?.upgrade().map(Volume)
    }

    /// Checks that a range is within the volume.
    pub(super) fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{len_bytes} bytes at offset {offset_bytes} are past the end of volume {:?} at {}",
                self.name,
                self.size_bytes()
            ))),
        }
    }

    /// Makes all batches durable that were written before. Must run to its end.
    async fn sync(&self) -> Result<()> {
        let synced = self.journal.sync().await;
        reach(Failpoint::JournalSynced);
        synced.map_err(|error| match error {
            // The store closes, and the flush is refused.
            Error::Shortage { .. } => error,
            error => self.stop_writing(error),
        })
    }

    /// Writes the catalog's current state of the volume beside the journal. The record is looked up
    /// in turn, so that an older one does not overtake a newer one.
    pub(super) async fn record_owner(self: &Arc<Self>) -> Result<()> {
        let volume = Arc::clone(self);
        let write = async move |_| {
            let mut owner_file = volume.owner_file.lock().await;
            match volume
                .engine
                .find(crate::meta::Key::Id(volume.record.id))
                .await
            {
                Ok(record) => owner_file.follow(volume.journal.dir(), &record).await,
                // It was deleted, and so is its journal.
                Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.engine.commit.to_the_end(write).await
    }

    /// Begins an automatic sync, if enough is unsynced that a writer would soon wait for it.
    pub(super) fn sync_if_much(self: &Arc<Self>) {
        if self.journal.wants_sync() {
            Arc::clone(self).make_durable();
        }
    }
}

impl MakesDurable for VolumeState {
    fn make_durable(self: Arc<Self>) {
        if self.syncs_by_itself.swap(true, Ordering::AcqRel) {
            return;
        }
        let volume = self;
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends by itself, and nobody is promised anything by it"
        )]
        drop(tokio::spawn(async move {
            // An error has stopped the store, and all writers get it.
            let _ = volume.sync().await;
            volume.syncs_by_itself.store(false, Ordering::Release);
        }));
    }
}
