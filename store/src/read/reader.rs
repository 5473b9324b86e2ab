//! Content, read by its root; and one snapshot's.

use std::{ops::Deref, sync::Arc};

use bytes::Bytes;
use futures::future::try_join_all;
use varve_content::{
    ChunkId,
    block::BLOCK_BYTES,
    tree::{Leaf, LeafWalk, NodeId, NodePlace, Root, diff_leaves, find_leaf, find_node},
};

use super::{
    Extent, Piece, Segment, SegmentStream,
    range::{
        ChangeExtent, overlapping, push_change, push_extent, push_zeros, segment_parts, slice,
    },
};
use crate::{
    Damage, Error, Result,
    engine::{
        CheckedChunk, Engine, PACK_MOVES_MAX, Priority, RootPin, Scratch, StoredChunk,
        VerifiedChunk, apart_if_it_waits, needed_by, open_chunk, plain_bytes, walked,
    },
    format::{Location, Name},
    meta::SnapshotRecord,
    pack::{PackGone, PackReader, ReadError, Span, plan_spans},
};

/// Reads one snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SnapshotReader {
    record: Arc<SnapshotRecord>,
    content: ContentReader,
}

impl SnapshotReader {
    pub(crate) async fn open(engine: Arc<Engine>, record: SnapshotRecord) -> Result<Self> {
        let root_of = |record: &SnapshotRecord| Ok(record.completed()?.root);
        let (record, pin) = engine.pin_root(record, root_of).await?;
        let content = ContentReader::open(engine, pin, &record.label()).await?;
        if content.size_bytes() != record.size_bytes {
            return Err(Error::Damaged(
                Damage::missing(format!("a root of {} bytes", record.size_bytes))
                    .needed_by(&record.label()),
            ));
        }
        Ok(Self {
            record: Arc::new(record),
            content,
        })
    }

    /// The snapshot's record, as of the opening of the reader.
    #[must_use]
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }
}

impl Deref for SnapshotReader {
    type Target = ContentReader;

    fn deref(&self) -> &ContentReader {
        &self.content
    }
}

/// Reads the content under a root. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ContentReader {
    engine: Arc<Engine>,
    pin: Arc<RootPin>,
    root: Root,
    /// The name of the snapshot or volume with this content, for errors.
    owner: Arc<str>,
}

impl ContentReader {
    /// A reader of the content under a root that is pinned, for as long as the reader lives.
    pub(crate) async fn open(engine: Arc<Engine>, pin: RootPin, owner: &str) -> Result<Self> {
        let root = engine
            .root(pin.root())
            .await
            .map_err(|error| needed_by(error, owner))?;
        Ok(Self {
            engine,
            pin: Arc::new(pin),
            root,
            owner: owner.into(),
        })
    }

    /// Size of the content in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.root.size_bytes
    }

    /// The root of the content.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The pin that keeps the content in the store.
    #[must_use]
    pub fn pin(&self) -> &RootPin {
        &self.pin
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// A leaf of the content, by its id.
    pub(crate) async fn leaf(&self, id: NodeId) -> Result<Arc<Leaf>> {
        self.engine
            .plain_leaf(id)
            .await
            .map_err(|error| self.named(error))
    }

    /// Names the owner in an error about its content.
    pub(crate) fn named(&self, error: Error) -> Error {
        needed_by(error, &self.owner)
    }

    fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{len_bytes} bytes at offset {offset_bytes} are past the end of {:?} at {}",
                self.owner,
                self.size_bytes()
            ))),
        }
    }

    /// Reads a range. Cached bytes come without waiting. The others are read even if the caller
    /// stops polling, because other readers may wait for the same chunks.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] past the end; [`Error::Damaged`], which names the snapshot or volume;
    /// errors of reading.
    pub async fn read(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        self.check_range(offset_bytes, len_bytes as u64)?;
        let reader = self.clone();
        apart_if_it_waits(async move { reader.pieces(offset_bytes, len_bytes).await }).await
    }

    async fn pieces(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for part in segment_parts(offset_bytes, len_bytes as u64) {
            match self.segment(part.segment).await? {
                None => push_zeros(&mut pieces, part.end - part.start),
                Some(segment) => {
                    self.read_segment(&segment, part.start, part.end, &mut pieces)
                        .await?
                }
            }
        }
        Ok(pieces)
    }

    /// Reads bytes `start..end` of a segment.
    async fn read_segment(
        &self,
        segment: &Segment,
        start: usize,
        end: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        // The bytes that are not in the cache: their piece, and their range in the chunk.
        let (mut absent, mut positions) = (Vec::new(), Vec::new());
        let mut position = start;
        for (from, to, entry, at) in overlapping(segment, start, end) {
            push_zeros(pieces, from - position);
            let chunk_start = entry.start_block as usize * BLOCK_BYTES;
            let range = from - chunk_start..to - chunk_start;
            // A chunk of another length contradicts the leaf.
            let cached = self.engine.cache.chunk(Name::chunk(entry.chunk));
            match cached.filter(|chunk| chunk.plain().len() == plain_bytes(entry) as usize) {
                Some(chunk) => pieces.push(Piece::Data(slice(&chunk, range))),
                None => {
                    absent.push((pieces.len(), entry.chunk, range));
                    positions.push(at);
                    pieces.push(Piece::Data(Bytes::new()));
                }
            }
            position = to;
        }
        push_zeros(pieces, end - position);
        if absent.is_empty() {
            return Ok(());
        }
        let (engine, located) = (&self.engine, &segment.located);
        let load = async {
            let places = engine.places(located, &positions).await?;
            let ids = absent.iter().map(|(_, id, _)| *id);
            let wanted: Vec<_> = ids.zip(places).collect();
            engine.load_chunks(located, &wanted).await
        };
        let chunks = load.await.map_err(|error| self.named(error))?;
        for ((position, _, range), chunk) in absent.into_iter().zip(chunks) {
            if let Some(piece) = pieces.get_mut(position) {
                *piece = Piece::Data(slice(&chunk, range));
            }
        }
        Ok(())
    }

    /// Data and holes of a range, with neighbours of one kind merged.
    pub async fn extents(&self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<Extent>> {
        self.check_range(offset_bytes, len_bytes)?;
        let mut extents = Vec::new();
        for part in segment_parts(offset_bytes, len_bytes) {
            let mut position = part.start;
            if let Some(segment) = self.segment(part.segment).await? {
                for (from, to, ..) in overlapping(&segment, part.start, part.end) {
                    push_extent(&mut extents, from - position, true);
                    push_extent(&mut extents, to - from, false);
                    position = to;
                }
            }
            push_extent(&mut extents, part.end - position, true);
        }
        Ok(extents)
    }

    /// The parts of a range that may differ in `target`, by their chunks: all other parts are
    /// equal. The space past the end of either counts as a hole; a missing target is all hole.
    pub async fn changes_to(
        &self,
        target: Option<&Self>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<ChangeExtent>> {
        let mut extents = Vec::new();
        for part in segment_parts(offset_bytes, len_bytes) {
            let before = self.leaf_id(part.segment).await?;
            let after = match target {
                Some(target) => target.leaf_id(part.segment).await?,
                None => None,
            };
            let mut position = part.start;
            if before != after {
                let before = match before {
                    Some(id) => Some(self.leaf(id).await?),
                    None => None,
                };
                let after = match (target, after) {
                    (Some(target), Some(id)) => Some(target.leaf(id).await?),
                    _ => None,
                };
                for differs in diff_leaves(before.as_deref(), after.as_deref()) {
                    let from = differs.start_block as usize * BLOCK_BYTES;
                    let to = from + differs.blocks as usize * BLOCK_BYTES;
                    let (from, to) = (from.clamp(position, part.end), to.min(part.end));
                    if to > from {
                        push_change(&mut extents, from - position, false);
                        push_change(&mut extents, to - from, true);
                        position = to;
                    }
                }
            }
            push_change(&mut extents, part.end - position, false);
        }
        Ok(extents)
    }

    /// The id of the node that stands at a place of the content's tree; `None` if all is hole
    /// there. Reads the inner nodes above it.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`], which names the snapshot or volume; errors of reading.
    pub async fn node_at(&self, at: NodePlace) -> Result<Option<NodeId>> {
        find_node(&*self.engine, &self.root, at)
            .await
            .map_err(|error| self.named(walked(error)))
    }

    async fn leaf_id(&self, segment: u32) -> Result<Option<NodeId>> {
        find_leaf(&*self.engine, &self.root, segment)
            .await
            .map_err(|error| self.named(walked(error)))
    }

    /// Reads a range into the cache, as far as it fits there.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub async fn prefetch(&self, offset_bytes: u64, len_bytes: usize) -> Result<()> {
        self.read(offset_bytes, len_bytes).await.map(drop)
    }

    /// Reads a range into the cache ahead of a reader, unless the limit of readaheads is reached.
    pub async fn read_ahead(&self, offset_bytes: u64, len_bytes: usize) {
        if let Ok(_permit) = self.engine.budgets.readaheads.try_acquire() {
            // The caller that requests it gets the error.
            let _ = self.prefetch(offset_bytes, len_bytes).await;
        }
    }

    /// A segment, if it holds data.
    pub async fn segment(&self, index: u32) -> Result<Option<Segment>> {
        let located = self
            .engine
            .descend(&self.root, index)
            .await
            .map_err(|error| self.named(error))?;
        Ok(located.map(|located| Segment { index, located }))
    }

    /// The segments that hold data, in ascending order.
    #[must_use]
    pub fn segments(&self) -> SegmentStream {
        SegmentStream {
            walk: LeafWalk::new(&self.root, 0),
            reader: self.clone(),
        }
    }

    /// A segment's distinct chunks as they are stored, in the order of their first place.
    pub async fn stored_chunks(&self, segment: &Segment) -> Result<Vec<StoredChunk>> {
        let load = async {
            let distinct = segment.distinct(&self.engine).await?.into_iter();
            let wanted: Vec<_> = distinct.map(|(_, id, place)| (id, place)).collect();
            self.engine.stored_chunks(&segment.located, &wanted).await
        };
        load.await.map_err(|error| self.named(error))
    }

    /// A segment's distinct chunks, unpacked and checked, in the order of their first place. This
    /// bypasses the cache: a reader of whole snapshots reads each chunk once.
    pub async fn chunks(&self, segment: &Segment) -> Result<Vec<VerifiedChunk>> {
        let checked = self.check_chunks(&self.engine.packs, segment).await?;
        checked
            .into_iter()
            .map(|(_, chunk)| chunk.map_err(|damage| self.named(damage.into())))
            .collect()
    }

    /// A segment's distinct chunks, or their errors, each with the position of its first entry.
    pub(crate) async fn check_chunks(
        &self,
        packs: &PackReader,
        segment: &Segment,
    ) -> Result<Vec<CheckedChunk>> {
        let distinct = segment.distinct(&self.engine).await?;
        let mut checked = Vec::with_capacity(distinct.len());
        let mut wanted = Vec::with_capacity(distinct.len());
        for (position, id, place) in distinct {
            match place {
                Some(place) => wanted.push((position, id, place)),
                None => checked.push((position, Err(Damage::missing(Name::chunk(id))))),
            }
        }
        let mut moves = 0;
        while !wanted.is_empty() {
            let places: Vec<_> = wanted.iter().map(|(.., place)| *place).collect();
            let reads = plan_spans(&places).into_iter().map(|span| {
                let members: Vec<_> = span
                    .members
                    .iter()
                    .filter_map(|at| wanted.get(*at).copied())
                    .collect();
                self.check_span(packs, span, members)
            });
            let mut moved = Vec::new();
            for outcome in try_join_all(reads).await? {
                match outcome {
                    SpanOutcome::Checked(chunks) => checked.extend(chunks),
                    SpanOutcome::Gone(gone, members) => {
                        let names = members.iter().map(|(_, id, _)| Name::chunk(*id));
                        let mut now = self.engine.moved_chunks(gone, names.collect()).await?;
                        now.retain(|_| moves < PACK_MOVES_MAX);
                        let mut now = now.into_iter().peekable();
                        for (at, (position, id, place)) in members.into_iter().enumerate() {
                            match now.next_if(|(moved, _)| *moved == at) {
                                Some((_, now)) => moved.push((position, id, now)),
                                None => checked
                                    .push((position, Err(in_pack(id, place, "the pack is gone")))),
                            }
                        }
                    }
                }
            }
            wanted = moved;
            moves += 1;
        }
        for (_, damage) in &checked {
            if let Err(damage) = damage {
                self.engine.note_damage(damage);
            }
        }
        checked.sort_unstable_by_key(|(position, _)| *position);
        Ok(checked)
    }

    async fn check_span(
        &self,
        packs: &PackReader,
        span: Span,
        members: Vec<WantedChunk>,
    ) -> Result<SpanOutcome> {
        let read = match self.engine.read_span(packs, span).await {
            Ok((_, read)) => read,
            Err(ReadError::PackGone(gone)) => return Ok(SpanOutcome::Gone(gone, members)),
            // The pack is shorter than before: each chunk is reported with its own place.
            Err(ReadError::Other(Error::Damaged(damage))) => {
                let told = members.into_iter().map(|(position, id, place)| {
                    (position, Err(in_pack(id, place, &damage.problem)))
                });
                return Ok(SpanOutcome::Checked(told.collect()));
            }
            Err(ReadError::Other(error)) => return Err(error),
        };
        let open_all = move |scratch: &mut Scratch| {
            let opened = members.into_iter().map(|(position, id, place)| {
                match read.record(&place, Name::chunk(id)) {
                    Ok(record) => Ok((position, open_chunk(scratch, id, place, record.payload()))),
                    Err(Error::Damaged(damage)) => Ok((position, Err(damage))),
                    Err(error) => Err(error),
                }
            });
            opened.collect::<Result<Vec<_>>>()
        };
        let checked = self.engine.workers.run(Priority::Read, open_all).await??;
        Ok(SpanOutcome::Checked(checked))
    }
}

/// A chunk that is wanted: the position of its first entry, its id, its place.
type WantedChunk = (usize, ChunkId, Location);

/// The outcome of reading the chunks of a span.
enum SpanOutcome {
    Checked(Vec<CheckedChunk>),
    Gone(PackGone, Vec<WantedChunk>),
}

fn in_pack(id: ChunkId, place: Location, problem: &str) -> Damage {
    Damage::in_pack(place.pack, place.offset_bytes, Name::chunk(id), problem)
}
