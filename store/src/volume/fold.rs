//! Takes what was written to a volume into the store: for a snapshot, for a clone, or only to make room in the journal.
//!
//! 1. The epoch ends: what is written from now on is in another, and in other journal files. That is all a writer
//!    notices, and it takes no longer for a large volume.
//! 2. The segments that were changed are cut again around the changes, and what is new of them is stored. Guests go on.
//! 3. The new root is the volume's base, and the content of the snapshot if it is one's, durably and in one step. After that the journal
//!    files of what it holds are removed.
//!
//! Of one volume one cut after the other is taken in, in their order, by a task that keeps the volume open. What was written after a
//! cut stays in its own epochs, above the new base.
//!
//! If it is cut short, by a crash or a full disk, the volume is as it was: the epochs that ended stay layers of it, and the
//! next cut takes them along.
//!
//! A journal that has grown to half of its limit is taken into the store without being asked. If it fills up all the same, its writers wait
//! for the room that comes free at the end.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex as SyncMutex;
use tokio::{
    runtime::Handle as Runtime,
    sync::{Mutex, oneshot, watch},
    time::sleep_until,
};
use varve_content::{
    BLOCK_BYTES, ChunkId, RootId,
    block::{self, SEGMENT_BLOCKS, SEGMENT_BYTES},
    chunker::{CHUNKER_VERSION, Recut, recut},
    codec::Codec,
    tree::{Leaf, LeafEntry, LeafWalk, NodeId},
};

use super::{
    device::{Inner, Volume},
    layers::{Place, Stack},
    pending::{self, Progress},
    writer::Queue,
};
use crate::{
    Error, Result,
    commit::{PoisonOnPanic, joined},
    ingest::{IncomingChunk, Ingest, NewSnapshot},
    limits::FOLD_SEGMENTS_IN_FLIGHT,
    meta::{Named as _, SnapshotId, SnapshotRecord, SnapshotState, VolumeRecord},
    read::{ContentReader, walked},
    workers::Priority,
};

/// Chunks handed to the store at a time, in plain bytes.
const PUT_BYTES: usize = 1 << 20;
/// Until a journal is tried again in the background.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// A cut through a volume's journal.
#[derive(Debug, Copy, Clone)]
pub(super) struct Cut {
    /// The journal file that the time after it begins with.
    pub(super) next_file: u64,
    /// Size of the volume at that instant.
    pub(super) size_bytes: u64,
}

/// A cut up to which a volume is to be taken into the store, and for what.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) cut: Cut,
    pub(super) purpose: Purpose,
}

#[derive(Debug)]
pub(super) enum Purpose {
    /// The journal has grown large.
    Room,
    /// A snapshot.
    Snapshot(SnapshotId, Arc<Progress>),
    /// Whoever waits for the root.
    Root(oneshot::Sender<Result<RootId>>),
}

/// What of a volume is to be taken into the store.
#[derive(Debug, Default)]
pub(super) struct Folds {
    jobs: SyncMutex<Jobs>,
    /// How many are under way or wait for their turn: when one ends there is room in the journal.
    under_way: watch::Sender<u32>,
    /// Held from a cut until its job waits in its place: so jobs are in the order of their cuts.
    pub(super) cutting: Arc<Mutex<()>>,
    /// The last root that became the base, and how many of its blocks are data: or all its leaves would have to be read to count them.
    data_blocks: SyncMutex<Option<(RootId, u64)>>,
    /// Snapshots that have failed, and whose records do not say so yet.
    unrecorded: SyncMutex<Vec<(SnapshotId, String)>>,
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Whether there is a task that carries them out.
    is_running: bool,
    /// Whether one to make room is on its way.
    for_room: bool,
    /// When the last of those failed.
    failed_at: Option<Instant>,
}

impl Folds {
    /// To see how many are under way, and wait for one to end.
    pub(super) fn watch(&self) -> watch::Receiver<u32> {
        self.under_way.subscribe()
    }

    /// Whether any is.
    pub(super) fn is_under_way(&self) -> bool {
        *self.under_way.borrow() > 0
    }

    /// Whether room may be made: if so, it is on its way. Not at every write, where the last try failed.
    fn may_make_room(&self) -> bool {
        let mut jobs = self.jobs.lock();
        let failed_at = jobs.failed_at;
        failed_at.is_none_or(|at| at.elapsed() >= PAUSE_AFTER_FAILURE)
            && !std::mem::replace(&mut jobs.for_room, true)
    }

    /// When room may be made again, if the last try failed just now.
    fn may_try_at(&self) -> Option<Instant> {
        let failed_at = self.jobs.lock().failed_at;
        failed_at.map(|at| at + PAUSE_AFTER_FAILURE)
    }

    fn room_ended(&self, failed: bool) {
        let mut jobs = self.jobs.lock();
        jobs.failed_at = failed.then(Instant::now);
        jobs.for_room = false;
    }

    /// The next one; none if there is none, and then nobody carries them out any more.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        let next = jobs.waiting.pop_front();
        jobs.is_running = next.is_some();
        next
    }
}

/// One is under way for as long as this is there.
struct UnderWay(Arc<Inner>);

impl UnderWay {
    fn begin(volume: &Arc<Inner>) -> Self {
        volume.folds.under_way.send_modify(|count| *count += 1);
        Self(Arc::clone(volume))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.folds.under_way.send_modify(|count| *count -= 1);
    }
}

impl Volume {
    /// Puts a job behind all others. Only while cuts are kept from overtaking each other.
    pub(super) fn fold_later(&self, job: Job) {
        let folds = &self.inner().folds;
        {
            let mut jobs = folds.jobs.lock();
            jobs.waiting.push_back(job);
            folds.under_way.send_modify(|count| *count += 1);
            if std::mem::replace(&mut jobs.is_running, true) {
                return;
            }
        }
        let volume = self.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "whatever becomes of it the volume holds what it held; once the store is closed it is refused what it needs"
        )]
        drop(tokio::spawn(async move {
            let inner = volume.inner();
            let _guard = PoisonOnPanic::new(&inner.shared.commit);
            while let Some(job) = inner.folds.next() {
                // Counted when it was put there.
                let _under_way = UnderWay(Arc::clone(inner));
                inner.carry_out(job).await;
            }
        }));
    }

    /// Ends the epoch that is being written, here and now.
    pub(super) async fn cut(&self) -> Result<Cut> {
        let inner = self.inner();
        let (ended, size_bytes) = Queue::end_epochs(&[&inner.queue], || inner.size_bytes())?;
        let mut cut = Cut {
            next_file: 0,
            size_bytes,
        };
        for ended in ended {
            cut.next_file = ended.await.map_err(|_| Error::Closing)?.next_file;
        }
        Ok(cut)
    }
}

impl Inner {
    /// Begins to take the journal into the store if it has grown large.
    pub(super) fn fold_if_large(self: &Arc<Self>) {
        if self.journal.is_large() {
            self.begin_fold();
        }
    }

    /// Begins to take the journal into the store because there is no room, if that would make some.
    pub(super) async fn fold_for_room(self: &Arc<Self>) -> bool {
        if !self.journal.can_be_emptied() {
            return false;
        }
        // Whoever is refused in the end was refused by a try of his own: space may have been freed since the last one.
        if let Some(at) = self.folds.may_try_at() {
            sleep_until(at.into()).await;
        }
        self.begin_fold()
    }

    /// Begins to take the journal into the store, unless the last try failed just now.
    fn begin_fold(self: &Arc<Self>) -> bool {
        if !self.folds.may_make_room() {
            return false;
        }
        // Nobody else has it: it is being closed.
        let Some(volume) = self.volume() else {
            self.folds.room_ended(true);
            return false;
        };
        // From here on: the writer waits for it where there is no room.
        let under_way = UnderWay::begin(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "it waits for the writer, which is open as long as this has the volume"
        )]
        drop(tokio::spawn(async move {
            let folds = &volume.inner().folds;
            let _cutting = folds.cutting.lock().await;
            match volume.cut().await {
                Ok(cut) => volume.fold_later(Job {
                    cut,
                    purpose: Purpose::Room,
                }),
                // It is being closed.
                Err(_) => folds.room_ended(true),
            }
            drop(under_way);
        }));
        true
    }

    async fn carry_out(self: &Arc<Self>, job: Job) {
        let Job { cut, purpose } = job;
        match purpose {
            Purpose::Room => {
                let outcome = self.fold(cut, None).await;
                match &outcome {
                    Ok(_) => {
                        tracing::info!(volume = self.name, "the journal was taken into the store");
                    }
                    Err(Error::Closing) => {}
                    Err(error) => {
                        tracing::warn!(volume = self.name, %error, "the journal was not taken into the store");
                    }
                }
                self.folds.room_ended(outcome.is_err());
            }
            // Who went away has no use for it.
            Purpose::Root(reply) => drop(reply.send(self.fold(cut, None).await)),
            Purpose::Snapshot(id, progress) => {
                let outcome = self.fold(cut, Some((id, &progress))).await;
                self.snapshot_ended(id, &progress, outcome.map(drop)).await;
            }
        }
    }

    /// Tells what became of a snapshot.
    async fn snapshot_ended(&self, id: SnapshotId, progress: &Progress, outcome: Result<()>) {
        let pending = &self.shared.pending_snapshots;
        match outcome {
            Ok(()) => {
                tracing::info!(volume = self.name, snapshot = %id, "a snapshot is completed");
                pending.remove(id);
            }
            // It was deleted meanwhile.
            Err(_) if progress.is_cancelled() => pending.remove(id),
            // It is pending still, and goes on when the store is opened again.
            Err(Error::Closing) if self.shared.commit.is_closing() => {}
            // The same: until the store closes it would have been waited for.
            Err(Error::Shortage { .. }) => {}
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(volume = self.name, snapshot = %id, %error, "a snapshot has failed");
                progress.fail(reason.clone());
                let volume = self.record.id;
                match pending::record_failure(&self.shared, volume, id, &reason).await {
                    Ok(()) => pending.remove(id),
                    Err(error) => {
                        tracing::warn!(snapshot = %id, %error, "its failure could not be written down");
                        self.folds.unrecorded.lock().push((id, reason));
                    }
                }
            }
        }
        progress.end();
    }

    /// Writes down what could not be written down before. Nothing may become the base before that: it would hold what is after the
    /// instant of a snapshot that looks pending.
    async fn record_failures(&self) -> Result<()> {
        loop {
            let Some((id, reason)) = self.folds.unrecorded.lock().first().cloned() else {
                return Ok(());
            };
            pending::record_failure(&self.shared, self.record.id, id, &reason).await?;
            self.shared.pending_snapshots.remove(id);
            self.folds.unrecorded.lock().retain(|(it, _)| *it != id);
        }
    }

    /// Takes what the volume held at a cut into the store, and puts the volume on it. All cuts before have had their turn.
    async fn fold(
        self: &Arc<Self>,
        cut: Cut,
        snapshot: Option<(SnapshotId, &Progress)>,
    ) -> Result<RootId> {
        let progress = snapshot.map(|(_, progress)| progress);
        let folds = &self.shared.fold_turn;
        let _turn = folds.acquire().await.map_err(|_| Error::Closing)?;
        if let Some(progress) = progress {
            progress.check()?;
        }
        self.record_failures().await?;
        let new = NewSnapshot {
            lineage: None,
            name: self.name.clone(),
            size_bytes: cut.size_bytes,
            tags: BTreeMap::new(),
            chunker_version: CHUNKER_VERSION,
        };
        let ingest = Ingest::begin(Arc::clone(&self.shared), new)?;
        let stack = self.layers.read().below.before(cut.next_file);
        self.put_changes(&ingest, &stack, cut.size_bytes, progress)
            .await?;
        let content = ingest.store_whatever().await?;
        let base = ContentReader::open(Arc::clone(&self.shared), content.root, &self.name).await?;
        let id = snapshot.map(|(id, _)| id);
        pending::complete(&self.shared, self.record.id, cut.next_file, content, id).await?;
        // Before files go that the journal begins with by the word of its owner record.
        self.record_owner().await?;
        self.layers.write().rebase(cut.next_file, base);
        *self.folds.data_blocks.lock() = Some((content.root, content.data_blocks()));
        let volume = Arc::clone(self);
        // Large files are not removed at once.
        let removal = move || volume.journal.remove_before(cut.next_file);
        let removed = tokio::task::spawn_blocking(removal).await;
        if let Ok(Err(error)) = removed {
            // They are not needed, and go when the volume is opened again.
            tracing::warn!(volume = self.name, %error, "journal files were not removed");
        }
        Ok(content.root)
    }

    /// Stores what was changed since the base, and tells the upload all leaves.
    async fn put_changes(
        self: &Arc<Self>,
        ingest: &Ingest,
        stack: &Stack,
        size_bytes: u64,
        progress: Option<&Progress>,
    ) -> Result<()> {
        let segments = block::segment_count(size_bytes);
        let mut changed = stack.changed_segments();
        changed.extend(ragged_end(stack, size_bytes).map(|(segment, _)| segment));
        changed.sort_unstable();
        changed.dedup();
        changed.retain(|segment| *segment < segments);
        if let Some(progress) = progress {
            progress.begin(changed.len() as u64);
        }
        let puts = stream::iter(changed.iter().copied())
            .map(async |segment| {
                if let Some(progress) = progress {
                    progress.check()?;
                }
                let replaced = self.put_segment(ingest, stack, size_bytes, segment).await?;
                if let Some(progress) = progress {
                    progress.step();
                }
                Ok::<_, Error>(replaced)
            })
            .buffer_unordered(FOLD_SEGMENTS_IN_FLIGHT);
        let replaced = puts
            .try_fold(0, async |sum, blocks| Ok(sum + blocks))
            .await?;
        let Some(base) = &stack.base else {
            return Ok(());
        };
        let known = self.known_data_blocks(base.root().id()).await?;
        let mut kept = Vec::new();
        let mut counted = 0;
        let mut walk = LeafWalk::new(base.root(), 0);
        while let Some((segment, id)) = self.next_leaf(base, &mut walk).await? {
            if changed.binary_search(&segment).is_err() {
                if known.is_none() {
                    counted += u64::from(base.leaf(id).await?.data_blocks());
                }
                kept.push((segment, id));
            }
        }
        ingest.keep_leaves(
            kept,
            known.map_or(counted, |all| all.saturating_sub(replaced)),
        )
    }

    /// How many blocks of a base are data, if that is written down somewhere.
    async fn known_data_blocks(&self, base: RootId) -> Result<Option<u64>> {
        let of_base = |(root, blocks): (RootId, u64)| (root == base).then_some(blocks);
        let last = *self.folds.data_blocks.lock();
        if let Some(known) = last.and_then(of_base) {
            return Ok(Some(known));
        }
        let volume = self.record.id;
        self.shared
            .meta(Priority::Read, move |meta| {
                let parent = VolumeRecord::by_id(meta, volume)?.and_then(|record| record.parent);
                let Some(parent) = parent else {
                    return Ok(None);
                };
                let content = match SnapshotRecord::by_id(meta, parent)?.map(|it| it.state) {
                    Some(SnapshotState::Completed(content)) => content,
                    _ => return Ok(None),
                };
                Ok((content.root == base).then(|| content.data_blocks()))
            })
            .await
    }

    async fn next_leaf(
        &self,
        base: &ContentReader,
        walk: &mut LeafWalk,
    ) -> Result<Option<(u32, NodeId)>> {
        let next = walk.next(&*self.shared).await;
        next.map_err(|error| base.named(walked(error)))
    }

    /// Cuts a segment again, and stores what is new of it. How many data blocks it had before.
    async fn put_segment(
        self: &Arc<Self>,
        ingest: &Ingest,
        stack: &Stack,
        size_bytes: u64,
        segment: u32,
    ) -> Result<u64> {
        let old = match &stack.base {
            Some(base) if segment < block::segment_count(base.size_bytes()) => {
                base.segment(segment).await?
            }
            _ => None,
        };
        let entries: Vec<LeafEntry> =
            old.map_or_else(Vec::new, |old| old.leaf().entries().to_vec());
        let replaced = entries.iter().map(|entry| u64::from(entry.blocks)).sum();
        let changed = changed_blocks(stack, size_bytes, segment);
        let blocks = block::segment_blocks(size_bytes, segment);
        let ranges: Vec<_> = entries.iter().map(LeafEntry::block_range).collect();

        let (volume, stack) = (Arc::clone(self), stack.clone());
        let runtime = Runtime::current();
        // Where cuts fall decides what is read, so cutting waits for reads, on a thread that may.
        let cutting = tokio::task::spawn_blocking(move || {
            recut(&ranges, &changed, blocks, |range, bytes| {
                runtime.block_on(volume.read_blocks(&stack, size_bytes, segment, range, bytes))
            })
        });
        let recuts = joined(cutting).await?;

        let mut leaf = Vec::with_capacity(recuts.len());
        let mut chunks = Vec::new();
        let mut chunk_bytes = 0;
        for part in recuts {
            match part {
                Recut::Kept(at) => leaf.extend(entries.get(at).copied()),
                Recut::New { cut, bytes } => {
                    let id = ChunkId::of(&bytes);
                    leaf.push(LeafEntry {
                        start_block: cut.start_block,
                        blocks: cut.blocks,
                        chunk: id,
                    });
                    chunk_bytes += bytes.len();
                    chunks.push(incoming(id, bytes));
                    if chunk_bytes >= PUT_BYTES {
                        ingest.put_chunks(std::mem::take(&mut chunks)).await?;
                        chunk_bytes = 0;
                    }
                }
            }
        }
        if !chunks.is_empty() {
            ingest.put_chunks(chunks).await?;
        }
        // A segment of zeros has no leaf.
        if !leaf.is_empty() {
            ingest.put_leaves(vec![(segment, Leaf::new(leaf)?)]).await?;
        }
        Ok(replaced)
    }

    /// Reads blocks of a segment, zeros where the volume is shorter than the last of them.
    async fn read_blocks(
        &self,
        stack: &Stack,
        size_bytes: u64,
        segment: u32,
        range: Range<u32>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let start =
            u64::from(segment) * SEGMENT_BYTES as u64 + u64::from(range.start) * BLOCK_BYTES as u64;
        let len = range.len() * BLOCK_BYTES;
        let within = (len as u64).min(size_bytes.saturating_sub(start));
        for piece in self.read_ended(stack, start, within).await? {
            piece.append_to(bytes);
        }
        bytes.resize(len, 0);
        Ok(())
    }
}

/// Where the base ends in the middle of a block and the volume goes on: segment, and block of it. What stands behind the end there is
/// none of the volume's, so the block is taken for changed.
fn ragged_end(stack: &Stack, size_bytes: u64) -> Option<(u32, u32)> {
    let end = stack.base.as_ref()?.size_bytes();
    let block = end / BLOCK_BYTES as u64;
    if end.is_multiple_of(BLOCK_BYTES as u64) || end >= size_bytes {
        return None;
    }
    let segment_blocks = u64::from(SEGMENT_BLOCKS);
    let segment = u32::try_from(block / segment_blocks).ok()?;
    let block = u32::try_from(block % segment_blocks).ok()?;
    Some((segment, block))
}

/// Blocks of a segment that were changed since the base, in blocks of it, up to the end of the volume.
fn changed_blocks(stack: &Stack, size_bytes: u64, segment: u32) -> Vec<Range<u32>> {
    let first = u64::from(segment) * u64::from(SEGMENT_BLOCKS);
    let edge = block::segment_blocks(size_bytes, segment);
    let ragged = ragged_end(stack, size_bytes).filter(|(at, _)| *at == segment);
    let mut changed: Vec<Range<u32>> = Vec::new();
    for stretch in stack.stretches(first, edge) {
        let start = u32::try_from(stretch.start - first).unwrap_or(SEGMENT_BLOCKS);
        let range = start..start + stretch.blocks;
        match ragged {
            _ if stretch.place != Place::Base => changed.push(range),
            Some((_, block)) if range.contains(&block) => changed.push(block..block + 1),
            _ => {}
        }
    }
    changed
}

fn incoming(id: ChunkId, bytes: Vec<u8>) -> IncomingChunk {
    IncomingChunk {
        id,
        codec: Codec::Raw,
        plain_bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        payload: Bytes::from(bytes),
    }
}
