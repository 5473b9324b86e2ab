//! One checkpoint: it stores the content of a volume at a cut as its new base. It serves a
//! snapshot, a clone, or only frees space in the journal.
//!
//! 1. The epoch has ended. Later writes go to another one, and to other journal files. Writers
//!    notice nothing else, and the switch takes no longer for a large volume.
//! 2. The changed segments are cut again around the changes, and their new chunks are stored.
//!    Guests continue.
//! 3. The tree is derived from the base's: only inner nodes above changes are read and made.
//! 4. The new root becomes the volume's base, and the content of the snapshot if there is one,
//!    durably and in one step.
//! 5. The owner record follows the catalog.
//! 6. The journal files whose content is in the base now are removed.
//!
//! Its cost follows the amount of writes. It skips zeroed segments, however many there are.
//! Checkpoints of several volumes run concurrently, and take turns by the segment.
//!
//! A crash or a full disk before 4 changes nothing: the ended epochs stay layers of the volume, and
//! the next checkpoint includes them. After 4, remaining files are removed when the volume is
//! opened again.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use tokio::runtime::Handle as Runtime;
use varve_content::{
    BLOCK_BYTES, ChunkId, RootId,
    block::{self, SEGMENT_BLOCKS, SEGMENT_BYTES},
    chunker::{CHUNKER_VERSION, Recut, recut},
    codec::Codec,
    tree::{Leaf, LeafEntry, LeafWalk, NodeId, TreeUpdate, UpdateError},
};

use super::Cut;
use crate::{
    Error, Result,
    engine::{Priority, RootPin, apart, joined, needed_by, walked},
    ingest::{IncomingChunk, Ingest, NewSnapshot},
    limits::{CHECKPOINT_NODES_MAX, CHECKPOINT_SEGMENTS_IN_FLIGHT},
    meta::{Lookup as _, SnapshotContent, SnapshotId, SnapshotRecord, SnapshotState, VolumeRecord},
    read::ContentReader,
    volume::{
        layers::{Changed, Place, Stack},
        snapshot::{self, Progress},
        volume::VolumeState,
    },
};

/// Chunks handed to the store at a time, in plain bytes.
const PUT_BYTES: usize = 1 << 20;

/// Leaves that are read at a time to be counted.
const LEAVES_AT_A_TIME: usize = 16;

/// The outcome of cutting a segment again.
#[derive(Debug, Default)]
struct SegmentPut {
    /// Its leaf; `None` if it is all zeros.
    leaf: Option<NodeId>,
    /// Blocks of data.
    blocks: u64,
    /// Blocks of data that it had in the base.
    replaced_blocks: u64,
}

impl VolumeState {
    /// Takes the content of a volume at a cut into the store, and puts the volume on it. All cuts
    /// before it were taken in.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] once the snapshot is deleted; those of reading the base and of storing
    /// chunks.
    pub(in crate::volume) async fn checkpoint(
        self: &Arc<Self>,
        cut: Cut,
        snapshot: Option<(SnapshotId, &Progress)>,
    ) -> Result<RootPin> {
        let progress = snapshot.map(|(_, progress)| progress);
        let permits = &self.volumes.checkpoint_permits;
        let _permit = permits.acquire().await.map_err(|_| Error::Closing)?;
        if let Some(progress) = progress {
            progress.check()?;
        }
        self.record_failures().await?;
        let new = NewSnapshot {
            owner: self.record.owner,
            lineage: None,
            name: self.name.clone(),
            size_bytes: cut.size_bytes,
            tags: BTreeMap::new(),
            chunker_version: CHUNKER_VERSION,
        };
        let ingest = Arc::new(Ingest::begin(Arc::clone(&self.engine), new)?);
        let stack = self.layers.read().below.before(cut.next_file);
        let content = self
            .put_changes(&ingest, &stack, cut.size_bytes, progress)
            .await?;
        self.ledger.read().note(content.new_bytes);
        // The ingest answers for the content until the record names its root.
        let pin = self.engine.pins.pin(content.root);
        let base = ContentReader::open(Arc::clone(&self.engine), pin.clone(), &self.name).await?;
        let id = snapshot.map(|(id, _)| id);
        let held = (pin.clone(), Arc::clone(ingest.guard()));
        let volume = self.record.id;
        snapshot::complete(&self.engine, volume, cut.next_file, content, id, held).await?;
        // The owner record names the file that the journal begins with, so it must not name one
        // that is gone.
        self.record_owner().await?;
        self.layers.write().rebase(cut.next_file, base);
        *self.checkpoints.data_blocks.lock() = Some((content.root, content.data_blocks()));
        if let Err(error) = self.journal.remove_before(cut.next_file).await {
            // They go when the volume is opened again.
            tracing::warn!(volume = self.name, %error, "journal files were not removed");
        }
        Ok(pin)
    }

    /// Stores the changes since the base, and the resulting tree. Its cost follows the amount of
    /// writes: it skips known zeros, and takes over subtrees without a change.
    async fn put_changes(
        self: &Arc<Self>,
        ingest: &Arc<Ingest>,
        stack: &Stack,
        size_bytes: u64,
        progress: Option<&Progress>,
    ) -> Result<SnapshotContent> {
        let below = stack.clone();
        let listing = move || Ok(Arc::<[Changed]>::from(changed_segments(&below, size_bytes)));
        let changes = joined(tokio::task::spawn_blocking(listing)).await?;
        if let Some(progress) = progress {
            let is_mixed = |changed: &&Changed| matches!(changed, Changed::Mixed(_));
            progress.begin(changes.iter().filter(is_mixed).count() as u64);
        }
        let mut puts = stream::iter(changes.iter().cloned())
            .map(async |changed| {
                if let Some(progress) = progress {
                    progress.check()?;
                }
                let Changed::Mixed(segment) = changed else {
                    return Ok((changed, SegmentPut::default()));
                };
                // A task of its own: nobody polls this future while the tree waits for nodes or for
                // earlier segments.
                let (volume, ingest) = (Arc::clone(self), Arc::clone(ingest));
                let put = volume.put_in_turn(ingest, stack.clone(), size_bytes, segment);
                let put = apart(put).await?;
                if let Some(progress) = progress {
                    progress.step();
                }
                Ok::<_, Error>((changed, put))
            })
            .buffered(CHECKPOINT_SEGMENTS_IN_FLIGHT);

        let base = stack.base.as_ref();
        let mut tree = TreeUpdate::new(base.map(ContentReader::root), size_bytes)?;
        let (mut added, mut replaced) = (0, 0);
        while let Some((changed, put)) = puts.try_next().await? {
            let nodes = &*self.engine;
            let done = match (changed, put.leaf) {
                (Changed::Mixed(segment), Some(leaf)) => tree.put(nodes, segment, leaf).await,
                (changed, _) => tree.remove(nodes, changed.segments()).await,
            };
            done.map_err(|error| self.not_updated(error))?;
            added += put.blocks;
            replaced += put.replaced_blocks;
            if tree.finished_count() >= CHECKPOINT_NODES_MAX {
                ingest.store_inner(tree.take_finished()).await?;
            }
        }
        let root = tree.finish(&*self.engine).await;
        let root = root.map_err(|error| self.not_updated(error))?;
        ingest.store_inner(tree.take_finished()).await?;
        let kept = match base {
            Some(base) if root.top.is_some() => {
                self.kept_blocks(base, &changes, replaced, progress).await?
            }
            _ => 0,
        };
        ingest.store_root(&root, kept + added).await
    }

    fn not_updated(&self, error: UpdateError<Error>) -> Error {
        match error {
            UpdateError::Change(error) => error.into(),
            UpdateError::Base(error) => needed_by(walked(error), &self.name),
        }
    }

    /// Returns how many blocks of the base are data in segments without a change. Counts either
    /// those that stay, or those in zeroed segments, which are then subtracted with the replaced
    /// ones: whichever are fewer.
    async fn kept_blocks(
        &self,
        base: &ContentReader,
        changes: &Arc<[Changed]>,
        replaced: u64,
        progress: Option<&Progress>,
    ) -> Result<u64> {
        let leaves = |which| LeavesIn::new(base, changes, which);
        let known = self.known_data_blocks(base.root().id()).await?;
        let Some(known) = known else {
            return leaves(Which::Kept).count_blocks(progress).await;
        };
        let (mut zeroed, mut kept) = (leaves(Which::Zeroed), leaves(Which::Kept));
        loop {
            if zeroed.next().await?.is_none() {
                let zeroed = leaves(Which::Zeroed).count_blocks(progress).await?;
                return Ok(known.saturating_sub(replaced + zeroed));
            }
            if kept.next().await?.is_none() {
                return leaves(Which::Kept).count_blocks(progress).await;
            }
        }
    }

    /// Returns how many blocks of a base are data, if known from the last checkpoint or from the
    /// volume's last snapshot.
    async fn known_data_blocks(&self, base: RootId) -> Result<Option<u64>> {
        let of_base = |(root, blocks): (RootId, u64)| (root == base).then_some(blocks);
        let last = *self.checkpoints.data_blocks.lock();
        if let Some(known) = last.and_then(of_base) {
            return Ok(Some(known));
        }
        let volume = self.record.id;
        self.engine
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

    /// Cuts a segment again when it has a permit. All checkpoints are served in the order in which
    /// they ask, and each asks for no more segments than may be cut at a time, so that volumes take
    /// turns.
    async fn put_in_turn(
        self: Arc<Self>,
        ingest: Arc<Ingest>,
        stack: Stack,
        size_bytes: u64,
        segment: u32,
    ) -> Result<SegmentPut> {
        let permits = Arc::clone(&self.volumes.checkpoint_segment_permits);
        let permit = permits.acquire_owned().await;
        let _permit = permit.map_err(|_| Error::Closing)?;
        self.put_segment(&ingest, &stack, size_bytes, segment).await
    }

    /// Cuts a segment again, and stores its new chunks and its leaf.
    async fn put_segment(
        self: &Arc<Self>,
        ingest: &Ingest,
        stack: &Stack,
        size_bytes: u64,
        segment: u32,
    ) -> Result<SegmentPut> {
        let old = match &stack.base {
            Some(base) if segment < block::segment_count(base.size_bytes()) => {
                base.segment(segment).await?
            }
            _ => None,
        };
        let entries: Vec<LeafEntry> =
            old.map_or_else(Vec::new, |old| old.leaf().entries().to_vec());
        let replaced_blocks = entries.iter().map(|entry| u64::from(entry.blocks)).sum();
        let (changed, zeros) = changed_blocks(stack, size_bytes, segment);
        let blocks = block::segment_blocks(size_bytes, segment);
        let ranges: Vec<_> = entries.iter().map(LeafEntry::block_range).collect();

        let (volume, stack) = (Arc::clone(self), stack.clone());
        let runtime = Runtime::current();
        // The cut points decide what is read, so cutting waits for reads, on a thread that may
        // wait.
        let cutting = tokio::task::spawn_blocking(move || {
            recut(&ranges, &changed, &zeros, blocks, |range, bytes| {
                runtime.block_on(volume.read_blocks(&stack, size_bytes, segment, range, bytes))
            })
        });
        let recuts = joined(cutting).await?;

        let mut leaf = Vec::with_capacity(recuts.len());
        // The volume's base keeps them, which its reader has pinned.
        let mut kept = HashSet::new();
        let mut chunks = Vec::new();
        let mut chunk_bytes = 0;
        for recut in recuts {
            match recut {
                Recut::Kept(at) => {
                    let entry = entries.get(at).copied();
                    kept.extend(entry.map(|entry| entry.chunk));
                    leaf.extend(entry);
                }
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
            return Ok(SegmentPut {
                replaced_blocks,
                ..SegmentPut::default()
            });
        }
        let leaf = Leaf::new(leaf)?;
        Ok(SegmentPut {
            replaced_blocks,
            blocks: leaf.data_blocks().into(),
            leaf: Some(ingest.store_leaf(segment, leaf, &kept).await?),
        })
    }

    /// Reads blocks of a segment, with zeros behind the end of the volume.
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

/// The segment and the block in it where the base ends within a block and the volume goes on. The
/// bytes of the base's chunk behind its end do not belong to the volume, so the block counts as
/// changed.
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

/// The segments that were changed, up to the end of the volume.
fn changed_segments(stack: &Stack, size_bytes: u64) -> Vec<Changed> {
    let mut changes = stack.changes();
    if let Some((segment, _)) = ragged_end(stack, size_bytes) {
        let at = changes.partition_point(|changed| changed.segments().end <= segment);
        let is_there = changes
            .get(at)
            .is_some_and(|changed| changed.segments().start <= segment);
        if !is_there {
            changes.insert(at, Changed::Mixed(segment));
        }
    }
    let segments = block::segment_count(size_bytes);
    changes.retain(|changed| changed.segments().start < segments);
    changes
}

/// A choice of segments.
#[derive(Debug, Copy, Clone)]
enum Which {
    /// Segments that were zeroed whole.
    Zeroed,
    /// Segments without a change.
    Kept,
}

/// Walks over the leaves of a base in some segments.
struct LeavesIn {
    base: ContentReader,
    changes: Arc<[Changed]>,
    which: Which,
    /// The change that comes next, and the segment behind the last one.
    next: usize,
    position: u32,
    /// The walk through the current range, and where that ends.
    walk: Option<(LeafWalk, u32)>,
}

impl LeavesIn {
    fn new(base: &ContentReader, changes: &Arc<[Changed]>, which: Which) -> Self {
        Self {
            base: base.clone(),
            changes: Arc::clone(changes),
            which,
            next: 0,
            position: 0,
            walk: None,
        }
    }

    /// The next range of segments; `None` behind the last.
    fn next_range(&mut self) -> Option<Range<u32>> {
        loop {
            let kept_from = self.position;
            let changed = self.changes.get(self.next);
            let segments = match (changed, self.which) {
                (None, Which::Kept) if kept_from < u32::MAX => u32::MAX..u32::MAX,
                (None, _) => return None,
                (Some(changed), _) => changed.segments(),
            };
            self.next += 1;
            self.position = segments.end;
            let range = match (changed, self.which) {
                (_, Which::Kept) => kept_from..segments.start,
                (Some(Changed::Zeroed(_)), Which::Zeroed) => segments,
                _ => continue,
            };
            if !range.is_empty() {
                return Some(range);
            }
        }
    }

    async fn next(&mut self) -> Result<Option<NodeId>> {
        loop {
            let Some((walk, end)) = &mut self.walk else {
                let Some(range) = self.next_range() else {
                    return Ok(None);
                };
                let walk = LeafWalk::new(self.base.root(), range.start);
                self.walk = Some((walk, range.end));
                continue;
            };
            let next = walk.next(&**self.base.engine()).await;
            match next.map_err(|error| self.base.named(walked(error)))? {
                Some((segment, id)) if segment < *end => return Ok(Some(id)),
                _ => self.walk = None,
            }
        }
    }

    /// Returns the number of data blocks in all leaves.
    async fn count_blocks(mut self, progress: Option<&Progress>) -> Result<u64> {
        let mut sum = 0;
        loop {
            let mut some = Vec::with_capacity(LEAVES_AT_A_TIME);
            while some.len() < LEAVES_AT_A_TIME
                && let Some(id) = self.next().await?
            {
                some.push(id);
            }
            if some.is_empty() {
                return Ok(sum);
            }
            if let Some(progress) = progress {
                progress.check()?;
            }
            let leaves = try_join_all(some.into_iter().map(|id| self.base.leaf(id))).await?;
            sum += leaves
                .iter()
                .map(|leaf| u64::from(leaf.data_blocks()))
                .sum::<u64>();
        }
    }
}

/// Ranges of a segment's blocks that were written since the base, and ranges that were zeroed, up
/// to the end of the volume.
fn changed_blocks(
    stack: &Stack,
    size_bytes: u64,
    segment: u32,
) -> (Vec<Range<u32>>, Vec<Range<u32>>) {
    let first = u64::from(segment) * u64::from(SEGMENT_BLOCKS);
    let edge = block::segment_blocks(size_bytes, segment);
    let ragged = ragged_end(stack, size_bytes).filter(|(at, _)| *at == segment);
    let (mut changed, mut zeros) = (Vec::new(), Vec::new());
    for extent in stack.extents(first, edge) {
        let start = u32::try_from(extent.start - first).unwrap_or(SEGMENT_BLOCKS);
        let range = start..start + extent.blocks;
        match (extent.place, ragged) {
            (Place::Zeros, _) => zeros.push(range),
            (Place::Journal { .. }, _) => changed.push(range),
            (Place::Base, Some((_, block))) if range.contains(&block) => {
                changed.push(block..block + 1);
            }
            (Place::Base, _) => {}
        }
    }
    (changed, zeros)
}

fn incoming(id: ChunkId, bytes: Vec<u8>) -> IncomingChunk {
    IncomingChunk {
        id,
        codec: Codec::Raw,
        plain_bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        payload: Bytes::from(bytes),
    }
}
