//! A volume that is open: reads and writes of any bytes.

use std::{
    fmt,
    panic::resume_unwind,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{
        Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, RwLock as AsyncRwLock,
        Semaphore, oneshot,
    },
    task::JoinHandle,
};
use varve_content::BLOCK_BYTES;

use super::{
    Volumes,
    checkpoint::Checkpoints,
    journal::{Change, Host, Journal, JournalDir, JournalReport, MakesDurable, OwnerFile, recover},
    layers::{Epoch, Layers, Place, ReplayedEpochs, Stack, Stretch},
    snapshot,
    writer::{self, BlockLock, Op, Queue},
};
use crate::{
    Error, Result,
    engine::{Engine, joined},
    failpoints::{Failpoint, reach},
    format::volume::VolumeRecord,
    limits::{JOURNAL_CHANGE_BYTES, VOLUME_QUEUE_BYTES},
    read::{ContentReader, Extent, Piece, push_extent},
};

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// A volume, open for reading and writing. Copies are the same volume; it is closed when the last of them is dropped.
///
/// Requests may overlap in time. Each block is then as one order or another of them leaves it, never a mix. What is read
/// after a write has returned is what was written.
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

/// What reads and the writing task share.
pub(super) struct VolumeState {
    pub(super) engine: Arc<Engine>,
    pub(super) volumes: Arc<Volumes>,
    pub(super) name: String,
    pub(super) journal: Arc<Journal>,
    pub(super) layers: RwLock<Layers>,
    pub(super) queue: Queue,
    /// As it was when the volume was opened.
    pub(super) record: VolumeRecord,
    pub(super) checkpoints: Checkpoints,
    pub(super) owner_file: AsyncMutex<OwnerFile>,
    /// It only grows.
    size_bytes: AtomicU64,
    /// To keep it open.
    handle: OnceLock<Weak<OpenVolume>>,
    /// Held alone by changes of parts of blocks, which read what they do not change.
    block_lock: Arc<AsyncRwLock<()>>,
    /// Room for its changes that wait.
    room: Arc<Semaphore>,
    /// Whether what was written is being made durable without anybody having asked.
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
                volume = %record.label(),
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
            room: Arc::new(Semaphore::new(VOLUME_QUEUE_BYTES)),
            syncs_by_itself: AtomicBool::new(false),
            report,
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
            // Whoever had it last may not have flushed it. An error has stopped the store, which is how others learn of it.
            let _ = task.sync().await;
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

    /// The volume's record, as it was when it was opened.
    #[must_use]
    pub fn record(&self) -> &VolumeRecord {
        &self.0.inner.record
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.inner.size_bytes()
    }

    /// Lets it be as large as its record says by now.
    pub(super) fn grow(&self, size_bytes: u64) {
        let inner = &self.0.inner;
        // Between changes: those past the old end are of an epoch that was cut off at the new one.
        inner
            .queue
            .between(|| inner.size_bytes.fetch_max(size_bytes, Ordering::AcqRel));
    }

    /// What its journal held when it was opened.
    #[must_use]
    pub fn journal_report(&self) -> &JournalReport {
        &self.0.inner.report
    }

    /// Bytes that its journal takes on disk.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        self.0.inner.journal.len_bytes()
    }

    /// Bytes of memory that the map of its journal takes, about.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        let layers = self.0.inner.layers.read();
        let ended = layers.below.ended.iter();
        let ended: u64 = ended.map(|epoch| epoch.map.memory_bytes()).sum();
        layers.current.map.memory_bytes() + ended
    }

    /// Reads a range.
    pub async fn read(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        self.0.inner.check_range(offset_bytes, len_bytes as u64)?;
        self.0.inner.read(offset_bytes, len_bytes).await
    }

    /// Writes bytes. They are in the kernel when this returns: they survive the end of this process, and after a
    /// [`flush`](Self::flush) also a loss of power.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] when there is no room; any of the blocks may be as they were then. [`Error::Poisoned`] once a write or
    /// a sync of the store has failed.
    pub async fn write(&self, offset_bytes: u64, data: Bytes) -> Result<()> {
        let inner = &self.0.inner;
        inner.check_range(offset_bytes, data.len() as u64)?;
        let whole = offset_bytes.is_multiple_of(BLOCK) && data.len().is_multiple_of(BLOCK_BYTES);
        if whole {
            let lock = inner.shared_lock().await;
            let start_block = offset_bytes / BLOCK;
            return inner
                .change([Change::Data { start_block, data }], lock)
                .await;
        }
        let lock = inner.exclusive_lock().await;
        let changes = inner.with_edges(offset_bytes, data).await?;
        inner.change(changes, lock).await
    }

    /// Makes a range read as zeros, without writing them. Promises what [`write`](Self::write) does.
    pub async fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let inner = &self.0.inner;
        inner.check_range(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        let whole = offset_bytes.is_multiple_of(BLOCK);
        let lock = inner.lock_to_zero(whole, end).await;
        let (start_block, end_block) = inner.whole_blocks(offset_bytes, end);
        let mut changes = Vec::with_capacity(3);
        let head_end = end.min(start_block * BLOCK);
        if offset_bytes < head_end {
            changes.push(inner.zeroed(offset_bytes, head_end).await?);
        }
        if start_block < end_block {
            changes.push(Change::Zeros {
                start_block,
                blocks: end_block - start_block,
            });
        }
        let tail = head_end.max(end_block * BLOCK);
        if tail < end {
            changes.push(inner.zeroed(tail, end).await?);
        }
        inner.change(changes, lock).await
    }

    /// Gives a range back: its whole blocks read as zeros from now on, parts of blocks stay as they are.
    pub async fn trim(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let inner = &self.0.inner;
        inner.check_range(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        // What is before its first whole block is not touched.
        let lock = inner.lock_to_zero(true, end).await;
        let (start_block, end_block) = inner.whole_blocks(offset_bytes, end);
        let blocks = end_block.saturating_sub(start_block);
        inner
            .change(
                [Change::Zeros {
                    start_block,
                    blocks,
                }],
                lock,
            )
            .await
    }

    /// Waits for all changes that were begun before to be made or refused, those included whose callers have gone away.
    pub async fn settle(&self) {
        drop(self.0.inner.exclusive_lock().await);
    }

    /// Makes all writes durable that returned before.
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

    /// Where data and holes are in a range, neighbours of a kind as one.
    pub async fn extents(&self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<Extent>> {
        let (stretches, base) = self.0.inner.stretches(offset_bytes, len_bytes)?;
        let mut extents = Vec::new();
        for stretch in stretches {
            let (start, end) = bytes_of(&stretch, offset_bytes, len_bytes);
            let len = usize::try_from(end - start).unwrap_or(usize::MAX);
            match stretch.place {
                Place::Journal { .. } => push_extent(&mut extents, len, false),
                Place::Zeros => push_extent(&mut extents, len, true),
                Place::Base => {
                    let within = in_base(base.as_ref(), start, end);
                    if let (Some(base), true) = (&base, within > 0) {
                        for extent in base.extents(start, within as u64).await? {
                            let len = usize::try_from(extent.len_bytes).unwrap_or(usize::MAX);
                            push_extent(&mut extents, len, extent.hole);
                        }
                    }
                    push_extent(&mut extents, len - within, true);
                }
            }
        }
        Ok(extents)
    }

    /// Writes what is queued, makes it durable, and takes no more.
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
        // Whoever is writing the owner record is done then.
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

    /// Where the blocks of a range are at this moment, and the base that some of them are in.
    pub(super) fn stretches(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(Vec<Stretch>, Option<ContentReader>)> {
        self.check_range(offset_bytes, len_bytes)?;
        let (first, blocks) = blocks_of(offset_bytes, len_bytes)?;
        let layers = self.layers.read();
        Ok((layers.stretches(first, blocks), layers.below.base.clone()))
    }

    fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{len_bytes} bytes at offset {offset_bytes} are past the end of volume {:?} at {}",
                self.name,
                self.size_bytes()
            ))),
        }
    }

    /// The block lock of a change that zeroes a range up to `end`. A block that the volume's end cuts short counts as whole, and does
    /// not any more once the volume has grown: so where the range ends within a block, no other change goes beside this one.
    async fn lock_to_zero(&self, begins_whole: bool, end: u64) -> BlockLock {
        if begins_whole && end.is_multiple_of(BLOCK) {
            self.shared_lock().await
        } else {
            self.exclusive_lock().await
        }
    }

    /// From which block on, and up to which, a range covers blocks whole. The last of the volume may be shorter than a block. To be
    /// asked while the block lock is held: the volume may grow before.
    fn whole_blocks(&self, start: u64, end: u64) -> (u64, u64) {
        let end_block = if end == self.size_bytes() {
            end.div_ceil(BLOCK)
        } else {
            end / BLOCK
        };
        (start.div_ceil(BLOCK), end_block)
    }

    /// Makes durable what was written. To be run to its end.
    async fn sync(&self) -> Result<()> {
        let synced = self.journal.sync().await;
        reach(Failpoint::JournalSynced);
        synced.map_err(|error| match error {
            // The store closes, and the flush is refused.
            Error::Shortage { .. } => error,
            error => self.stop_writing(error),
        })
    }

    /// Writes beside the journal what the catalog says of the volume now. The record is looked up in turn, so that an
    /// older one does not overtake a newer one.
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

    /// Begins to make durable what was written, if it has become so much that somebody would have to wait for it in the end.
    pub(super) fn sync_if_much(self: &Arc<Self>) {
        if self.journal.wants_sync() {
            Arc::clone(self).make_durable();
        }
    }

    /// The block lock, shared with other changes of whole blocks.
    async fn shared_lock(&self) -> BlockLock {
        let block_lock = Arc::clone(&self.block_lock);
        let _guard = match block_lock.try_read_owned() {
            Ok(guard) => guard,
            Err(_) => Arc::clone(&self.block_lock).read_owned().await,
        };
        BlockLock::Shared { _guard }
    }

    /// Room for a change among those of the volume that wait. What all volumes share is only taken by what is on its way to the disk:
    /// a change that waits for room in the journal may wait for long.
    async fn room(&self, bytes: u32) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        let permit = Arc::clone(&self.room).acquire_many_owned(bytes).await;
        permit.map_err(|_| Error::Closing)
    }

    async fn exclusive_lock(&self) -> BlockLock {
        BlockLock::Exclusive {
            _guard: Arc::clone(&self.block_lock).write_owned().await,
        }
    }

    /// Queues changes, in this order, and waits until they are in the kernel. One that is larger than the volume's room is queued in
    /// pieces, each when there is room for it: what waits in the queue is counted to the byte.
    async fn change(
        &self,
        changes: impl IntoIterator<Item = Change>,
        lock: BlockLock,
    ) -> Result<()> {
        let lock = Arc::new(lock);
        let mut replies = Vec::new();
        for change in changes {
            for change in change.split(VOLUME_QUEUE_BYTES) {
                let bytes = match &change {
                    Change::Data { data, .. } => data.len(),
                    Change::Zeros { .. } => JOURNAL_CHANGE_BYTES as usize,
                };
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                let room = self.room(bytes).await?;
                let (reply, outcome) = oneshot::channel();
                self.queue.push(Op {
                    change,
                    is_begun: false,
                    reply,
                    _lock: Arc::clone(&lock),
                    _room: room,
                })?;
                replies.push(outcome);
            }
        }
        for outcome in replies {
            outcome.await.map_err(|_| Error::Closing)??;
        }
        Ok(())
    }

    /// The changes that write some bytes: of the blocks that they cover whole, and of those at their edges with what is left
    /// of these as it is.
    async fn with_edges(&self, offset_bytes: u64, mut data: Bytes) -> Result<Vec<Change>> {
        let mut changes = Vec::with_capacity(3);
        let mut position = offset_bytes;
        while !data.is_empty() {
            let in_block = position % BLOCK;
            let whole = data.len() / BLOCK_BYTES * BLOCK_BYTES;
            if in_block == 0 && whole > 0 {
                changes.push(Change::Data {
                    start_block: position / BLOCK,
                    data: data.split_to(whole),
                });
                position += whole as u64;
            } else {
                let rest = usize::try_from(BLOCK - in_block).unwrap_or(BLOCK_BYTES);
                let part = data.split_to(rest.min(data.len()));
                let len = part.len() as u64;
                changes.push(self.filled_up(position, part).await?);
                position += len;
            }
        }
        Ok(changes)
    }

    /// The whole block in which some bytes change, with what they leave as it is.
    async fn filled_up(&self, offset_bytes: u64, data: Bytes) -> Result<Change> {
        let end = offset_bytes + data.len() as u64;
        let start_block = offset_bytes / BLOCK;
        let end_of_block = (start_block + 1) * BLOCK;
        debug_assert!(end <= end_of_block);
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        self.read_into(start_block * BLOCK, offset_bytes, &mut block)
            .await?;
        block.extend_from_slice(&data);
        self.read_into(end, end_of_block, &mut block).await?;
        Ok(Change::Data {
            start_block,
            data: Bytes::from(block),
        })
    }

    /// The same for zeros, in one block.
    async fn zeroed(&self, start: u64, end: u64) -> Result<Change> {
        let zeros = usize::try_from(end - start).unwrap_or(0);
        self.filled_up(start, Bytes::from(vec![0; zeros])).await
    }

    /// Adds bytes of the volume, and zeros behind its end.
    async fn read_into(&self, start: u64, end: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let within = end.min(self.size_bytes()).saturating_sub(start);
        let wanted = bytes.len() + usize::try_from(end - start).unwrap_or(0);
        let within = usize::try_from(within).unwrap_or(0);
        if within > 0 {
            for piece in self.read(start, within).await? {
                piece.append_to(bytes);
            }
        }
        bytes.resize(wanted, 0);
        Ok(())
    }

    async fn read(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        if len_bytes == 0 {
            return Ok(Vec::new());
        }
        let (first, blocks) = blocks_of(offset_bytes, len_bytes as u64)?;
        let sources_now = || {
            let layers = self.layers.read();
            let stretches = layers.stretches(first, blocks);
            self.sources(stretches, layers.below.base.as_ref())
        };
        let patience = self.engine.disk.patience();
        let sources = patience.until_possible(sources_now).await?;
        self.gather(sources, offset_bytes, len_bytes as u64).await
    }

    /// The same of layers that have ended.
    pub(super) async fn read_ended(
        &self,
        stack: &Stack,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<Piece>> {
        let (first, blocks) = blocks_of(offset_bytes, len_bytes)?;
        let stretches = stack.stretches(first, blocks);
        let sources_now = || self.sources(stretches.clone(), stack.base.as_ref());
        let patience = self.engine.disk.patience();
        let sources = patience.until_possible(sources_now).await?;
        self.gather(sources, offset_bytes, len_bytes).await
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
            // An error has stopped the store, and is told to all who write.
            let _ = volume.sync().await;
            volume.syncs_by_itself.store(false, Ordering::Release);
        }));
    }
}

/// How many of these bytes the base has: the volume may be longer.
pub(super) fn in_base(base: Option<&ContentReader>, start: u64, end: u64) -> usize {
    let size_bytes = base.map_or(0, ContentReader::size_bytes);
    usize::try_from(end.min(size_bytes).saturating_sub(start)).unwrap_or(usize::MAX)
}

/// The blocks that bytes are in: the first, and how many.
fn blocks_of(offset_bytes: u64, len_bytes: u64) -> Result<(u64, u32)> {
    let first = offset_bytes / BLOCK;
    let blocks = (offset_bytes + len_bytes).div_ceil(BLOCK) - first;
    let blocks = u32::try_from(blocks).map_err(|_| {
        Error::Invalid(format!(
            "{len_bytes} bytes are more than can be asked for at once"
        ))
    })?;
    Ok((first, blocks))
}

/// The bytes of a stretch that are in a range.
pub(super) fn bytes_of(stretch: &Stretch, offset_bytes: u64, len_bytes: u64) -> (u64, u64) {
    let start = stretch.start * BLOCK;
    let end = start + u64::from(stretch.blocks) * BLOCK;
    (start.max(offset_bytes), end.min(offset_bytes + len_bytes))
}

#[cfg(test)]
mod tests;
