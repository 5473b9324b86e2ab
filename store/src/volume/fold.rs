//! Takes what was written to a volume into the store: as a snapshot, or only to make room in the journal.
//!
//! 1. The epoch ends: what is written from now on is in another, and in other journal files. That is all a writer
//!    notices, and it takes no longer for a large volume.
//! 2. The segments that were changed are cut again around the changes, and what is new of them is stored. Guests go on.
//! 3. The new root is the volume's base, durably, and after that the journal files of what it holds are removed.
//!
//! If it is cut short, by a crash or a full disk, the volume is as it was: the epochs that ended stay layers of it, and the
//! next try takes them along.
//!
//! A journal that has grown to half of its limit is taken into the store without being asked. If it fills up all the same, its writers wait
//! for the room that comes free at the end.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex as SyncMutex;
use tokio::{
    runtime::Handle as Runtime,
    sync::{Mutex, watch},
};
use varve_content::{
    BLOCK_BYTES, ChunkId,
    block::{self, SEGMENT_BLOCKS, SEGMENT_BYTES},
    chunker::{CHUNKER_VERSION, Recut, recut},
    codec::Codec,
    tree::{Leaf, LeafEntry, LeafWalk, NodeId},
};

use super::{
    device::{Inner, Volume},
    layers::{Place, Stack},
};
use crate::{
    Error, Result, Store,
    ingest::{IncomingChunk, Ingest, NewSnapshot},
    limits::FOLD_SEGMENTS_IN_FLIGHT,
    meta::{SnapshotRecord, VolumeRecord},
    read::{ContentReader, Piece, walked},
};

/// Chunks handed to the store at a time, in plain bytes.
const PUT_BYTES: usize = 1 << 20;
/// Until a journal is tried again in the background.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What of a volume is being taken into the store.
#[derive(Debug, Default)]
pub(super) struct Folds {
    /// Whose turn it is.
    turn: Mutex<()>,
    /// How many are under way or wait for their turn: when one ends there is room in the journal.
    under_way: watch::Sender<u32>,
    /// Whether one without a snapshot is under way, or waits for its turn.
    in_background: AtomicBool,
    /// When the last of those failed.
    failed_at: SyncMutex<Option<Instant>>,
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

    /// Whether one in the background may be begun: if so, it has been. Not at every write, where the last one failed.
    fn may_begin(&self) -> bool {
        let failed_at = *self.failed_at.lock();
        failed_at.is_none_or(|at| at.elapsed() >= PAUSE_AFTER_FAILURE)
            && !self.in_background.swap(true, Ordering::AcqRel)
    }

    fn ended(&self, failed: bool) {
        *self.failed_at.lock() = failed.then(Instant::now);
        self.in_background.store(false, Ordering::Release);
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

impl Store {
    /// Makes a snapshot of what a volume holds now. What is written to it meanwhile is not in it.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when there is a snapshot of that name; [`Error::Full`] when the disk is. The volume stays as
    /// it is then.
    pub async fn snapshot_volume(
        &self,
        volume: &str,
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        let volume = self.open_volume(volume).await?;
        volume.snapshot(name, tags).await
    }
}

impl Volume {
    /// Makes a snapshot of what the volume holds now: see [`Store::snapshot_volume`].
    pub async fn snapshot(
        &self,
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        let inner = self.inner();
        let store = Store::from_shared(Arc::clone(&inner.shared));
        let _under_way = UnderWay::begin(inner);
        let _turn = inner.folds.turn.lock().await;
        let new = NewSnapshot {
            name: name.to_owned(),
            size_bytes: inner.record.size_bytes,
            tags,
            chunker_version: CHUNKER_VERSION,
        };
        // Refused before anything is done.
        let ingest = store.begin_ingest(new).await?;
        let (stack, next_file) = inner.end_epoch_here().await?;
        let folds = &inner.shared.fold_turn;
        let _fold = folds.acquire().await.map_err(|_| Error::Closing)?;
        inner.put_changes(&ingest, &stack).await?;
        let record = ingest.commit_whatever().await?;
        let parent = record.id;
        let change = move |volume: VolumeRecord| VolumeRecord {
            base: Some(record.root),
            parent: Some(parent),
            journal_from: next_file,
            ..volume
        };
        let root = record.root;
        inner.rebase(&store, root, next_file, change).await?;
        store.snapshot(&parent.to_string()).await
    }
}

impl Inner {
    /// Begins to take the journal into the store if it has grown large.
    pub(super) fn fold_if_large(self: &Arc<Self>) {
        if self.journal.is_large() {
            self.begin_fold();
        }
    }

    /// Begins to take the journal into the store, if there is anything in it and the last try did not fail just now.
    pub(super) fn begin_fold(self: &Arc<Self>) -> bool {
        if self.journal.len_bytes() == 0 || !self.folds.may_begin() {
            return false;
        }
        let volume = Arc::clone(self);
        let under_way = UnderWay::begin(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "whatever becomes of it the volume holds what it held; once the store is closed it is refused what it needs"
        )]
        drop(tokio::spawn(async move {
            let outcome = volume.fold().await;
            match &outcome {
                Ok(()) => {
                    tracing::info!(volume = volume.name, "the journal was taken into the store")
                }
                Err(Error::Closing) => {}
                Err(error) => {
                    tracing::warn!(volume = volume.name, %error, "the journal was not taken into the store");
                }
            }
            volume.folds.ended(outcome.is_err());
            drop(under_way);
        }));
        true
    }

    /// Takes what the volume holds into the store, without a snapshot.
    async fn fold(self: &Arc<Self>) -> Result<()> {
        let store = Store::from_shared(Arc::clone(&self.shared));
        let _turn = self.folds.turn.lock().await;
        let new = NewSnapshot {
            name: self.name.clone(),
            size_bytes: self.record.size_bytes,
            tags: BTreeMap::new(),
            chunker_version: CHUNKER_VERSION,
        };
        let ingest = Ingest::begin(Arc::clone(&self.shared), new)?;
        let (stack, next_file) = self.end_epoch_here().await?;
        let folds = &self.shared.fold_turn;
        let _fold = folds.acquire().await.map_err(|_| Error::Closing)?;
        self.put_changes(&ingest, &stack).await?;
        let root = ingest.store_whatever().await?;
        let change = move |volume: VolumeRecord| VolumeRecord {
            base: Some(root),
            // It is no snapshot's any more.
            parent: None,
            journal_from: next_file,
            ..volume
        };
        self.rebase(&store, root, next_file, change).await
    }

    /// Ends the epoch that is being written. All that have ended, and the journal file behind them.
    async fn end_epoch_here(&self) -> Result<(Stack, u64)> {
        let ended = self.queue.end_epoch()?;
        let next_file = ended.await.map_err(|_| Error::Closing)?;
        Ok((self.layers.read().below.clone(), next_file))
    }

    /// Stores what was changed since the base, and tells the upload all leaves.
    async fn put_changes(self: &Arc<Self>, ingest: &Ingest, stack: &Stack) -> Result<()> {
        let segments = block::segment_count(self.record.size_bytes);
        let changed: Vec<_> = stack
            .changed_segments()
            .into_iter()
            .filter(|segment| *segment < segments)
            .collect();
        let puts = stream::iter(changed.iter().copied())
            .map(|segment| self.put_segment(ingest, stack, segment))
            .buffer_unordered(FOLD_SEGMENTS_IN_FLIGHT);
        puts.try_collect::<Vec<()>>().await?;
        let Some(base) = &stack.base else {
            return Ok(());
        };
        let mut kept = Vec::new();
        let mut blocks = 0;
        let mut walk = LeafWalk::new(base.root(), 0);
        while let Some((segment, id)) = self.next_leaf(base, &mut walk).await? {
            if changed.binary_search(&segment).is_err() {
                blocks += u64::from(base.leaf(id).await?.data_blocks());
                kept.push((segment, id));
            }
        }
        ingest.keep_leaves(kept, blocks)
    }

    async fn next_leaf(
        &self,
        base: &ContentReader,
        walk: &mut LeafWalk,
    ) -> Result<Option<(u32, NodeId)>> {
        let next = walk.next(&*self.shared).await;
        next.map_err(|error| base.named(walked(error)))
    }

    /// Cuts a segment again, and stores what is new of it.
    async fn put_segment(
        self: &Arc<Self>,
        ingest: &Ingest,
        stack: &Stack,
        segment: u32,
    ) -> Result<()> {
        let old = match &stack.base {
            Some(base) if segment < block::segment_count(base.size_bytes()) => {
                base.segment(segment).await?
            }
            _ => None,
        };
        let entries: Vec<LeafEntry> =
            old.map_or_else(Vec::new, |old| old.leaf().entries().to_vec());
        let changed = changed_blocks(stack, segment);
        let blocks = block::segment_blocks(self.record.size_bytes, segment);
        let ranges: Vec<_> = entries.iter().map(LeafEntry::block_range).collect();

        let (volume, stack) = (Arc::clone(self), stack.clone());
        let runtime = Runtime::current();
        // Where cuts fall decides what is read, so cutting waits for reads, on a thread that may.
        let cutting = tokio::task::spawn_blocking(move || {
            recut(&ranges, &changed, blocks, |range, bytes| {
                runtime.block_on(volume.read_blocks(&stack, segment, range, bytes))
            })
        });
        let recuts = cutting.await.map_err(|_| Error::Closing)??;

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
        if leaf.is_empty() {
            return Ok(());
        }
        ingest.put_leaves(vec![(segment, Leaf::new(leaf)?)]).await
    }

    /// Reads blocks of a segment, zeros where the volume is shorter than the last of them.
    async fn read_blocks(
        &self,
        stack: &Stack,
        segment: u32,
        range: Range<u32>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let start =
            u64::from(segment) * SEGMENT_BYTES as u64 + u64::from(range.start) * BLOCK_BYTES as u64;
        let len = range.len() * BLOCK_BYTES;
        let within = (len as u64).min(self.record.size_bytes.saturating_sub(start));
        for piece in self.read_ended(stack, start, within).await? {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(&data),
                Piece::Zero(zeros) => bytes.resize(bytes.len() + zeros, 0),
            }
        }
        bytes.resize(len, 0);
        Ok(())
    }

    /// Puts the volume on a new base, which holds all epochs that have ended.
    async fn rebase<F>(
        &self,
        store: &Store,
        root: varve_content::RootId,
        next_file: u64,
        change: F,
    ) -> Result<()>
    where
        F: FnOnce(VolumeRecord) -> VolumeRecord + Send + 'static,
    {
        let base = ContentReader::open(Arc::clone(&self.shared), root, &self.name).await?;
        let key = self.record.id.to_string();
        store
            .change_volume(&key, move |record| Ok(change(record)))
            .await?;
        {
            let mut layers = self.layers.write();
            layers.below = Stack {
                ended: Vec::new(),
                base: Some(base),
            };
        }
        self.journal.remove_before(next_file)
    }
}

/// Blocks of a segment that were changed since the base, in blocks of it.
fn changed_blocks(stack: &Stack, segment: u32) -> Vec<Range<u32>> {
    let first = u64::from(segment) * u64::from(SEGMENT_BLOCKS);
    let mut changed = Vec::new();
    for stretch in stack.stretches(first, SEGMENT_BLOCKS) {
        if stretch.place != Place::Base {
            let start = u32::try_from(stretch.start - first).unwrap_or(SEGMENT_BLOCKS);
            changed.push(start..start + stretch.blocks);
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
