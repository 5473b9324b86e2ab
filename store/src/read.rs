//! Content out: ranges for guests, segments for downloads.
//!
//! Bytes leave the store in one of two forms: as a [`VerifiedChunk`], whose bytes were hashed and have the id
//! they are asked for by, or as a [`StoredChunk`], still packed, whose receiver has to do that.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::sync::SemaphorePermit;
use varve_content::{
    ChunkId, NodeId, RootId,
    block::{self, BLOCK_BYTES, SEGMENT_BYTES},
    codec::Codec,
    tree::{Inner, Leaf, LeafEntry, LeafWalk, NodeSource, Root, TreeError, WalkError, find_leaf},
};

use crate::{
    Damage, Error, Result,
    format::Location,
    limits,
    meta::{NodeKey, SnapshotRecord},
    pack::{ReadSpan, Span, plan_spans},
    store::Shared,
    workers::{Priority, Scratch},
};

/// A chunk whose bytes have been checked against its id. There is no other way to make one.
#[derive(Clone)]
pub struct VerifiedChunk {
    id: ChunkId,
    plain: Bytes,
}

impl VerifiedChunk {
    fn check(id: ChunkId, plain: Bytes) -> std::result::Result<Self, String> {
        let found = ChunkId::of(&plain);
        if found != id {
            return Err(format!("its bytes have id {found}"));
        }
        Ok(Self { id, plain })
    }

    /// The same, keeping no more in memory than its own bytes: one that is stored plain is a slice of the read.
    fn detached(self) -> Self {
        if self.plain.is_unique() {
            return self;
        }
        Self {
            id: self.id,
            plain: Bytes::copy_from_slice(&self.plain),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Its bytes.
    #[must_use]
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }
}

impl fmt::Debug for VerifiedChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedChunk({}, {} bytes)", self.id, self.plain.len())
    }
}

/// A chunk as it is in its pack. Only the checksum of the packed bytes was checked: whoever unpacks it checks the id.
#[derive(Debug, Clone)]
pub struct StoredChunk {
    /// Its id.
    pub id: ChunkId,
    /// How the payload is packed.
    pub codec: Codec,
    /// Its plain length.
    pub plain_bytes: u32,
    /// The packed bytes.
    pub payload: Bytes,
}

/// A part of a range that was read, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// That many zeros.
    Zero(usize),
}

/// A stretch of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How long.
    pub len_bytes: u64,
    /// Whether it is all zeros because nothing is stored there.
    pub hole: bool,
}

/// A leaf, and where its chunks are: found once, and then as long as the leaf stays in the cache.
#[derive(Debug)]
pub(crate) struct LocatedLeaf {
    leaf: Arc<Leaf>,
    /// One for each entry. `None`: the index does not know the chunk.
    places: Vec<Option<Location>>,
}

impl LocatedLeaf {
    pub(crate) fn leaf(&self) -> &Leaf {
        &self.leaf
    }
}

/// A decoded node in the cache.
#[derive(Debug, Clone)]
pub(crate) enum CachedNode {
    Leaf(Arc<LocatedLeaf>),
    Inner(Arc<Inner>),
}

impl CachedNode {
    /// What it takes in memory, for the cache's bound.
    pub(crate) fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Leaf(leaf) => {
                leaf.places.len() * (size_of::<LeafEntry>() + size_of::<Option<Location>>())
            }
            Self::Inner(inner) => inner.children().len() * size_of::<(u8, NodeId)>(),
        };
        bytes as u64 + 128
    }
}

/// 8 MiB of a snapshot that hold data.
#[derive(Debug, Clone)]
pub struct Segment {
    index: u32,
    located: Arc<LocatedLeaf>,
}

impl Segment {
    /// Its number: offset / 8 MiB.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its chunks.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.located.leaf
    }

    /// Its distinct chunks with their places, in the order of their first one; with the entry's position.
    fn distinct(&self) -> Vec<(usize, ChunkId, Option<Location>)> {
        let mut seen = std::collections::HashSet::with_capacity(self.located.places.len());
        let entries = self
            .located
            .leaf
            .entries()
            .iter()
            .zip(&self.located.places)
            .enumerate();
        entries
            .filter(|(_, (entry, _))| seen.insert(entry.chunk))
            .map(|(position, (entry, place))| (position, entry.chunk, *place))
            .collect()
    }
}

/// Reads one snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SnapshotReader {
    shared: Arc<Shared>,
    record: Arc<SnapshotRecord>,
    root: Root,
}

impl SnapshotReader {
    pub(crate) async fn open(shared: Arc<Shared>, record: SnapshotRecord) -> Result<Self> {
        let root = shared
            .root(record.root)
            .await
            .map_err(|error| needed_by(error, &record.name))?;
        if root.size_bytes != record.size_bytes {
            return Err(Error::Damaged(
                Damage::missing(format_args!("a root of {} bytes", record.size_bytes))
                    .needed_by(&record.name),
            ));
        }
        Ok(Self {
            shared,
            record: Arc::new(record),
            root,
        })
    }

    /// The snapshot's record, as it was when the reader was opened.
    #[must_use]
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    /// The snapshot's size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.record.size_bytes
    }

    /// The root of the content.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Names the snapshot in an error about its content.
    pub(crate) fn named(&self, error: Error) -> Error {
        needed_by(error, &self.record.name)
    }

    fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{len_bytes} bytes at offset {offset_bytes} are past the end of snapshot {:?} at {}",
                self.record.name,
                self.size_bytes()
            ))),
        }
    }

    /// Reads a range. What is in the cache comes without waiting.
    pub async fn read(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        self.check_range(offset_bytes, len_bytes as u64)?;
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
        let first = pieces.len();
        // What is not in the cache: which piece it belongs to, and which of its bytes.
        let mut absent = Vec::new();
        let mut position = start;
        for (from, to, entry, place) in overlapping(segment, start, end) {
            push_zeros(pieces, from - position);
            let chunk_start = entry.start_block as usize * BLOCK_BYTES;
            let range = from - chunk_start..to - chunk_start;
            match self.shared.chunk_cache.get(&entry.chunk) {
                Some(chunk) => pieces.push(Piece::Data(slice(&chunk, range))),
                None => {
                    absent.push((pieces.len(), entry.chunk, place, range));
                    pieces.push(Piece::Data(Bytes::new()));
                }
            }
            position = to;
        }
        push_zeros(pieces, end - position);
        if absent.is_empty() {
            return Ok(());
        }
        let loads = absent
            .iter()
            .map(|(_, id, place, _)| self.shared.load_chunk(*id, *place));
        let chunks = try_join_all(loads)
            .await
            .map_err(|error| self.named(error))?;
        debug_assert!(first <= pieces.len());
        for ((position, _, _, range), chunk) in absent.into_iter().zip(chunks) {
            if let Some(piece) = pieces.get_mut(position) {
                *piece = Piece::Data(slice(&chunk, range));
            }
        }
        Ok(())
    }

    /// Where data and holes are in a range, neighbours of a kind as one.
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

    /// Brings a range into the cache, as far as it fits there.
    pub async fn prefetch(&self, offset_bytes: u64, len_bytes: usize) -> Result<()> {
        self.read(offset_bytes, len_bytes).await.map(drop)
    }

    /// A segment, if it holds data.
    pub async fn segment(&self, index: u32) -> Result<Option<Segment>> {
        let located = self
            .shared
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
        let wanted = self.present(segment)?;
        let places: Vec<_> = wanted.iter().map(|(_, place)| *place).collect();
        let reads = plan_spans(&places)
            .into_iter()
            .map(|span| self.shared.read_span(span));
        let spans = try_join_all(reads)
            .await
            .map_err(|error| self.named(error))?;
        let mut chunks = Vec::with_capacity(wanted.len());
        for (span, read) in &spans {
            for position in span.members.iter().copied() {
                let Some((id, place)) = wanted.get(position) else {
                    continue;
                };
                let record = read
                    .record(place, id.as_bytes())
                    .map_err(|error| self.named(error))?;
                let chunk = StoredChunk {
                    id: *id,
                    codec: place.payload.codec,
                    plain_bytes: place.payload.plain_bytes,
                    payload: record.payload().clone(),
                };
                chunks.push((position, chunk));
            }
        }
        chunks.sort_unstable_by_key(|(position, _)| *position);
        Ok(chunks.into_iter().map(|(_, chunk)| chunk).collect())
    }

    /// A segment's distinct chunks, unpacked and checked, in the order of their first place. The cache is left
    /// alone: who reads whole snapshots reads each chunk once.
    pub async fn chunks(&self, segment: &Segment) -> Result<Vec<VerifiedChunk>> {
        let checked = self.check_chunks(segment).await?;
        checked
            .into_iter()
            .map(|(_, chunk)| chunk.map_err(|damage| self.named(damage.into())))
            .collect()
    }

    /// A segment's distinct chunks, each with the position of its first entry: checked, or what is wrong with it.
    pub(crate) async fn check_chunks(&self, segment: &Segment) -> Result<Vec<CheckedChunk>> {
        let distinct = segment.distinct();
        let mut checked = Vec::with_capacity(distinct.len());
        let mut wanted = Vec::with_capacity(distinct.len());
        for (position, id, place) in distinct {
            match place {
                Some(place) => wanted.push((position, id, place)),
                None => checked.push((position, Err(missing_chunk(id)))),
            }
        }
        let places: Vec<_> = wanted.iter().map(|(.., place)| *place).collect();
        let reads = plan_spans(&places).into_iter().map(|span| {
            let members: Vec<_> = span
                .members
                .iter()
                .filter_map(|at| wanted.get(*at).copied())
                .collect();
            self.check_span(span, members)
        });
        checked.extend(try_join_all(reads).await?.into_iter().flatten());
        checked.sort_unstable_by_key(|(position, _)| *position);
        Ok(checked)
    }

    async fn check_span(
        &self,
        span: Span,
        members: Vec<(usize, ChunkId, Location)>,
    ) -> Result<Vec<CheckedChunk>> {
        let read = match self.shared.read_span(span).await {
            Ok((_, read)) => read,
            // The pack is gone, or shorter than it was.
            Err(Error::Damaged(damage)) => {
                return Ok(members
                    .into_iter()
                    .map(|(position, ..)| (position, Err(damage.clone())))
                    .collect());
            }
            Err(error) => return Err(error),
        };
        let open_all = move |scratch: &mut Scratch| {
            let opened = members.into_iter().map(|(position, id, place)| {
                match read.record(&place, id.as_bytes()) {
                    Ok(record) => Ok((position, open_chunk(scratch, id, place, record.payload()))),
                    Err(Error::Damaged(damage)) => Ok((position, Err(damage))),
                    Err(error) => Err(error),
                }
            });
            opened.collect::<Result<Vec<_>>>()
        };
        self.shared.workers.run(Priority::Read, open_all).await?
    }

    fn present(&self, segment: &Segment) -> Result<Vec<(ChunkId, Location)>> {
        let distinct = segment.distinct().into_iter();
        distinct
            .map(|(_, id, place)| {
                let place = place.ok_or_else(|| self.named(missing_chunk(id).into()))?;
                Ok((id, place))
            })
            .collect()
    }
}

/// The segments of a snapshot that hold data.
#[derive(Debug)]
pub struct SegmentStream {
    walk: LeafWalk,
    reader: SnapshotReader,
}

impl SegmentStream {
    /// The next one.
    pub async fn next(&mut self) -> Result<Option<Segment>> {
        let next = self
            .walk
            .next(&*self.reader.shared)
            .await
            .map_err(|error| self.reader.named(walked(error)))?;
        let Some((index, id)) = next else {
            return Ok(None);
        };
        let located = self
            .reader
            .shared
            .located_leaf(id)
            .await
            .map_err(|error| self.reader.named(error))?;
        Ok(Some(Segment { index, located }))
    }
}

/// What a walk's error is to a reader.
pub(crate) fn walked(error: WalkError<Error>) -> Error {
    match error {
        WalkError::Source(error) => error,
        WalkError::Level { node, .. } | WalkError::Outside { node, .. } => {
            Damage::in_tree(format_args!("node {node}"), &error).into()
        }
    }
}

fn needed_by(error: Error, snapshot: &str) -> Error {
    match error {
        Error::Damaged(damage) => Error::Damaged(damage.needed_by(snapshot)),
        other => other,
    }
}

fn missing_chunk(id: ChunkId) -> Damage {
    Damage::missing(format_args!("chunk {id}"))
}

/// Part of a range that is within one segment, in bytes of it.
struct SegmentPart {
    segment: u32,
    start: usize,
    end: usize,
}

fn segment_parts(offset_bytes: u64, len_bytes: u64) -> impl Iterator<Item = SegmentPart> {
    let segment_bytes = SEGMENT_BYTES as u64;
    let end = offset_bytes + len_bytes;
    let first = offset_bytes / segment_bytes;
    let behind = end.div_ceil(segment_bytes);
    (first..behind)
        .filter(move |_| len_bytes > 0)
        .map(move |segment| {
            let base = segment * segment_bytes;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a volume has at most 2^21 segments of 2^23 bytes"
            )]
            SegmentPart {
                segment: segment as u32,
                start: offset_bytes.saturating_sub(base) as usize,
                end: (end - base).min(segment_bytes) as usize,
            }
        })
}

/// The chunks that overlap bytes `start..end` of a segment: the overlap, the entry, the place.
fn overlapping(
    segment: &Segment,
    start: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize, &LeafEntry, Option<Location>)> {
    let entries = segment.located.leaf.entries();
    let chunk_end = |entry: &LeafEntry| (entry.start_block + entry.blocks) as usize * BLOCK_BYTES;
    let first = entries.partition_point(move |entry| chunk_end(entry) <= start);
    let places = segment.located.places.iter().copied();
    entries
        .iter()
        .zip(places)
        .skip(first)
        .map_while(move |(entry, place)| {
            let chunk_start = entry.start_block as usize * BLOCK_BYTES;
            (chunk_start < end).then(|| {
                (
                    chunk_start.max(start),
                    chunk_end(entry).min(end),
                    entry,
                    place,
                )
            })
        })
}

fn slice(chunk: &VerifiedChunk, range: std::ops::Range<usize>) -> Bytes {
    // A leaf's entry was checked to be as long as its chunk when it was located.
    chunk.plain.slice(range)
}

fn push_zeros(pieces: &mut Vec<Piece>, len: usize) {
    if len == 0 {
        return;
    }
    if let Some(Piece::Zero(before)) = pieces.last_mut() {
        *before += len;
    } else {
        pieces.push(Piece::Zero(len));
    }
}

fn push_extent(extents: &mut Vec<Extent>, len: usize, hole: bool) {
    if len == 0 {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.hole == hole => last.len_bytes += len as u64,
        _ => extents.push(Extent {
            len_bytes: len as u64,
            hole,
        }),
    }
}

/// A chunk by the position of its first entry: checked, or what is wrong with it.
pub(crate) type CheckedChunk = (usize, std::result::Result<VerifiedChunk, Damage>);

/// Unpacks one chunk and checks its id.
fn open_chunk(
    scratch: &mut Scratch,
    id: ChunkId,
    place: Location,
    payload: &Bytes,
) -> std::result::Result<VerifiedChunk, Damage> {
    let damage = |problem: &dyn fmt::Display| {
        Damage::in_pack(
            place.pack,
            place.offset_bytes,
            format_args!("chunk {id}"),
            problem,
        )
    };
    let plain = if place.payload.codec == Codec::Raw {
        payload.clone()
    } else {
        let mut plain = Vec::new();
        scratch
            .decoder
            .decode(
                place.payload.codec,
                payload,
                place.payload.plain_bytes as usize,
                &mut plain,
            )
            .map_err(|error| damage(&error))?;
        Bytes::from(plain)
    };
    VerifiedChunk::check(id, plain).map_err(|problem| damage(&problem))
}

/// That a node's bytes have its id.
fn verify_node(key: NodeKey, encoded: &[u8]) -> std::result::Result<(), String> {
    let found = match key {
        NodeKey::Leaf(_) => NodeKey::Leaf(NodeId::of_leaf(encoded)),
        NodeKey::Inner(_) => NodeKey::Inner(NodeId::of_inner(encoded)),
        NodeKey::Root(_) => NodeKey::Root(RootId::of(encoded)),
    };
    if found == key {
        Ok(())
    } else {
        Err(format!("its bytes have id {found}"))
    }
}

impl Shared {
    /// A chunk, from the cache or its pack. Readers of the same chunk wait for one read.
    async fn load_chunk(&self, id: ChunkId, place: Option<Location>) -> Result<VerifiedChunk> {
        let load = async {
            let place = place.ok_or_else(|| missing_chunk(id))?;
            let payload = self.read_one(place, id.as_bytes()).await?;
            let open = move |scratch: &mut Scratch| {
                open_chunk(scratch, id, place, &payload).map(VerifiedChunk::detached)
            };
            Ok::<_, Error>(self.workers.run(Priority::Read, open).await??)
        };
        self.chunk_cache.get_or_insert_async(&id, load).await
    }

    /// The payload of one record.
    async fn read_one(&self, place: Location, id: &[u8; 32]) -> Result<Bytes> {
        let bytes = u32::try_from(place.payload.record_bytes()).unwrap_or(u32::MAX);
        let _space = self.read_space(bytes).await?;
        Ok(self.packs.read_record(&place, id).await?.payload().clone())
    }

    /// Reads a span.
    async fn read_span(&self, span: Span) -> Result<(Span, ReadSpan)> {
        let _space = self
            .read_space(u32::try_from(span.len_bytes).unwrap_or(u32::MAX))
            .await?;
        let read = self.packs.read_span(&span).await?;
        Ok((span, read))
    }

    /// Waits until so many more bytes may be under way.
    async fn read_space(&self, bytes: u32) -> Result<SemaphorePermit<'_>> {
        const MOST: u32 = limits::READ_BYTES_IN_FLIGHT as u32;
        self.read_space
            .acquire_many(bytes.min(MOST))
            .await
            .map_err(|_| Error::Closing)
    }

    /// The leaf of a segment, from the root down.
    async fn descend(&self, root: &Root, segment: u32) -> Result<Option<Arc<LocatedLeaf>>> {
        match find_leaf(self, root, segment).await.map_err(walked)? {
            Some(id) => self.located_leaf(id).await.map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn located_leaf(&self, id: NodeId) -> Result<Arc<LocatedLeaf>> {
        let load = async {
            let leaf = self.decoded(NodeKey::Leaf(id), Leaf::decode).await?;
            let ids: Vec<_> = leaf.entries().iter().map(|entry| entry.chunk).collect();
            let mut places = self
                .meta(Priority::Read, move |meta| meta.chunks(&ids))
                .await?;
            for (entry, place) in leaf.entries().iter().zip(&mut places) {
                let expected = entry.blocks as usize * BLOCK_BYTES;
                if let Some(found) =
                    place.filter(|place| place.payload.plain_bytes as usize != expected)
                {
                    tracing::error!(chunk = %entry.chunk, leaf = %id, expected, found = found.payload.plain_bytes, "a chunk's length differs");
                    *place = None;
                }
            }
            let leaf = Arc::new(leaf);
            Ok::<_, Error>(CachedNode::Leaf(Arc::new(LocatedLeaf { leaf, places })))
        };
        match self.node_cache.get_or_insert_async(&id, load).await? {
            CachedNode::Leaf(leaf) => Ok(leaf),
            CachedNode::Inner(_) => Err(Damage::in_tree(
                format_args!("node {id}"),
                "an inner node stands where a leaf belongs",
            )
            .into()),
        }
    }

    async fn inner_node(&self, id: NodeId) -> Result<Arc<Inner>> {
        let load = async {
            let inner = self.decoded(NodeKey::Inner(id), Inner::decode).await?;
            Ok::<_, Error>(CachedNode::Inner(Arc::new(inner)))
        };
        match self.node_cache.get_or_insert_async(&id, load).await? {
            CachedNode::Inner(inner) => Ok(inner),
            CachedNode::Leaf(_) => Err(Damage::in_tree(
                format_args!("node {id}"),
                "a leaf stands where an inner node belongs",
            )
            .into()),
        }
    }

    pub(crate) async fn root(&self, id: RootId) -> Result<Root> {
        self.decoded(NodeKey::Root(id), Root::decode).await
    }

    /// A node, checked against its id and decoded.
    async fn decoded<T>(
        &self,
        key: NodeKey,
        decode: fn(&[u8]) -> std::result::Result<T, TreeError>,
    ) -> Result<T> {
        let places = self
            .meta(Priority::Read, move |meta| meta.nodes(&[key]))
            .await?;
        let place = places
            .into_iter()
            .next()
            .flatten()
            .ok_or_else(|| Damage::missing(key))?;
        let damage = |problem: &dyn fmt::Display| {
            Damage::in_pack(place.pack, place.offset_bytes, key, problem)
        };
        let payload = self.read_one(place, key.as_bytes()).await?;
        verify_node(key, &payload).map_err(|problem| damage(&problem))?;
        Ok(decode(&payload).map_err(|error| damage(&error))?)
    }
}

impl NodeSource for Shared {
    type Error = Error;

    async fn leaf(&self, id: NodeId) -> Result<Arc<Leaf>> {
        Ok(Arc::clone(&self.located_leaf(id).await?.leaf))
    }

    async fn inner(&self, id: NodeId) -> Result<Arc<Inner>> {
        self.inner_node(id).await
    }
}

const _: () = assert!(block::MAX_VOLUME_BYTES / SEGMENT_BYTES as u64 <= u32::MAX as u64);
