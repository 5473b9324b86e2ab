//! One upload: chunks in, leaves in, commit.
//!
//! Everything is checked before it counts: that a chunk's bytes have its id, that it is cut as the chunker
//! cuts, that a leaf names only chunks that are there and leaves no gap that the chunker would not leave. So the
//! root depends on the content alone, whoever cut it.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use varve_content::{
    ChunkId, NodeId, RootId,
    block::{self, BLOCK_BYTES},
    chunker::{self, CHUNKER_VERSION},
    codec::Codec,
    tree::{InnerNode, Leaf, LeafEntry, Root, TreeBuilder},
};

use crate::{
    Error, Result,
    engine::{Engine, Generation, Priority, RootPin, Scratch},
    format::pack::Payload,
    limits,
    meta::{self, SnapshotContent, SnapshotId, SnapshotOrigin, SnapshotRecord, SnapshotState},
    pack::EncodedRecord,
};

/// What is to become a snapshot.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// How the sender cuts.
    pub chunker_version: u32,
    /// Where it comes from, if it was a snapshot before, in another store. `None`: it is made now.
    pub lineage: Option<Lineage>,
}

/// Where a snapshot of another store comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The instant whose content it has, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// The volume it was made of.
    pub origin: Option<SnapshotOrigin>,
    /// The snapshot before it.
    pub parent: Option<SnapshotId>,
}

/// A chunk from outside, nothing of it believed yet.
#[derive(Debug, Clone)]
pub struct IncomingChunk {
    /// The id it is said to have.
    pub id: ChunkId,
    /// How the payload is packed.
    pub codec: Codec,
    /// Its plain length, in bytes.
    pub plain_bytes: u32,
    /// The packed bytes.
    pub payload: Bytes,
}

/// What became of some chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOutcome {
    /// Chunks that were accepted.
    pub chunks: u64,
    /// Plain bytes of those that the store did not have.
    pub new_bytes: u64,
}

/// An upload under way. Methods may run at the same time; dropping it leaves nothing visible, and the chunks that
/// arrived stay for the next try.
#[derive(Debug)]
pub struct Ingest {
    engine: Arc<Engine>,
    new: NewSnapshot,
    generation: Generation,
    leaves: Mutex<Leaves>,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    /// Whether chunks stay packed as they came.
    keeps_packed: bool,
}

#[derive(Debug, Default)]
struct Leaves {
    /// By segment, in the order they came.
    ids: Vec<(u32, NodeId)>,
    /// Room for them, of all that open uploads share.
    room: LeafRoom,
    data_blocks: u64,
    /// What vouches for leaves that were taken over.
    pins: Vec<RootPin>,
    committed: bool,
}

impl Ingest {
    pub(crate) fn begin(engine: Arc<Engine>, new: NewSnapshot) -> Result<Self> {
        meta::check_name("snapshot", &new.name)?;
        meta::check_tags("snapshot", &new.tags)?;
        if new.size_bytes == 0 {
            return Err(Error::Invalid(
                "a snapshot of 0 bytes cannot be made".to_owned(),
            ));
        }
        if new.size_bytes > limits::VOLUME_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a snapshot has at most {} bytes, this one would have {}",
                limits::VOLUME_BYTES_MAX,
                new.size_bytes
            )));
        }
        if new.chunker_version != CHUNKER_VERSION {
            return Err(Error::Invalid(format!(
                "this store cuts with chunker version {CHUNKER_VERSION}, the sender with {}: they would share no chunks",
                new.chunker_version
            )));
        }
        if let Some(origin) = new.lineage.as_ref().and_then(|it| it.origin.as_ref()) {
            meta::check_name("volume", &origin.name)?;
        }
        let generation = engine.commit.generation()?;
        Ok(Self {
            engine,
            new,
            generation,
            leaves: Mutex::default(),
            new_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            keeps_packed: false,
        })
    }

    /// Keeps chunks packed as they come, instead of packing them as this store does: for those of another store, which has done it
    /// already.
    #[must_use]
    pub fn keep_packed(mut self) -> Self {
        self.keeps_packed = true;
        self
    }

    /// What it is to become.
    #[must_use]
    pub fn new_snapshot(&self) -> &NewSnapshot {
        &self.new
    }

    /// Positions of the chunks that the store lacks.
    pub async fn missing(&self, ids: &[ChunkId]) -> Result<Vec<u32>> {
        self.engine.commit.check(self.generation)?;
        self.engine.missing_chunks(ids).await
    }

    /// Takes chunks in. Waits while too many bytes are on their way to disk.
    pub async fn put_chunks(&self, chunks: Vec<IncomingChunk>) -> Result<PutOutcome> {
        self.engine.commit.check(self.generation)?;
        let count = chunks.len() as u64;
        let mut plain_bytes = 0usize;
        for chunk in &chunks {
            check_lengths(chunk)?;
            plain_bytes += chunk.plain_bytes as usize;
        }
        if plain_bytes > limits::INGEST_PLAIN_BYTES {
            return Err(Error::Invalid(format!(
                "{plain_bytes} bytes of chunks at once, at most {} are taken",
                limits::INGEST_PLAIN_BYTES
            )));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked against INGEST_PLAIN_BYTES just above"
        )]
        let space = Arc::clone(&self.engine.ingest_budget)
            .acquire_many_owned(plain_bytes as u32)
            .await
            .map_err(|_| Error::Closing)?;

        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
        let places = self.engine.known_chunks(ids).await?;
        let known: Vec<bool> = places.iter().map(Option::is_some).collect();
        let keeps_packed = self.keeps_packed;
        // The job keeps the space for as long as it keeps the chunks, which may be longer than anybody waits here.
        let (sealed, _space) = self
            .engine
            .workers
            .run(Priority::Write, move |scratch| {
                seal_all(scratch, &chunks, &known, keeps_packed).map(|sealed| (sealed, space))
            })
            .await??;
        if sealed.records.is_empty() {
            return Ok(PutOutcome {
                chunks: count,
                new_bytes: 0,
            });
        }
        self.engine.space.check()?;
        let stored = self
            .engine
            .commit
            .append_chunks(self.generation, sealed.records)
            .await?;
        self.new_bytes
            .fetch_add(sealed.new_bytes, Ordering::Relaxed);
        self.stored_bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(PutOutcome {
            chunks: count,
            new_bytes: sealed.new_bytes,
        })
    }

    /// Takes leaves in: segment number and content, each segment once over the whole upload, no segment twice in a call.
    pub async fn put_leaves(&self, leaves: Vec<(u32, Leaf)>) -> Result<()> {
        let room = self.reserve(leaves.len())?;
        let data_blocks = leaves.iter().map(|(_, leaf)| u64::from(leaf.data_blocks()));
        let data_blocks: u64 = data_blocks.sum();
        let accepted = self.store_leaves(leaves).await?;
        let mut state = self.leaves.lock();
        state.room.join(room);
        state.ids.extend(accepted);
        state.data_blocks += data_blocks;
        Ok(())
    }

    /// Stores leaves, and tells their ids.
    async fn store_leaves(&self, leaves: Vec<(u32, Leaf)>) -> Result<Vec<(u32, NodeId)>> {
        self.engine.commit.check(self.generation)?;
        let mut wanted = Vec::new();
        for (segment, leaf) in &leaves {
            self.check_extent(*segment, leaf)?;
            wanted.extend(leaf.entries().iter().map(|entry| entry.chunk));
        }
        let places = self.engine.known_chunks(wanted).await?;
        let mut places = places.iter();
        for (segment, leaf) in &leaves {
            let edge = block::segment_blocks(self.new.size_bytes, *segment);
            for (position, entry) in leaf.entries().iter().enumerate() {
                let open_fits = leaf.open_end_fits(position, edge);
                match places.next() {
                    Some(Some(payload)) => check_place(*segment, entry, payload, open_fits)?,
                    _ => {
                        return Err(Error::Invalid(format!(
                            "leaf of segment {segment}: chunk {} at block {} was not uploaded",
                            entry.chunk, entry.start_block
                        )));
                    }
                }
            }
        }

        let mut accepted = Vec::with_capacity(leaves.len());
        let mut records = Vec::with_capacity(leaves.len());
        for (segment, leaf) in &leaves {
            let id = leaf.id();
            accepted.push((*segment, id));
            records.push(EncodedRecord::leaf(id, &leaf.encode()));
        }
        self.store_nodes(records).await?;
        Ok(accepted)
    }

    fn reserve(&self, count: usize) -> Result<LeafRoom> {
        LeafRoom::take(&self.engine.leaf_permits, count).ok_or_else(|| {
            Error::Limit(format!(
                "open uploads hold {} leaves, the most at one time; commit or abort some",
                limits::UPLOAD_LEAVES_MAX
            ))
        })
    }

    fn check_extent(&self, segment: u32, leaf: &Leaf) -> Result<()> {
        let segments = block::segment_count(self.new.size_bytes);
        if segment >= segments {
            return Err(Error::Invalid(format!(
                "leaf of segment {segment}: a volume of {} bytes has {segments} segments",
                self.new.size_bytes
            )));
        }
        let edge = block::segment_blocks(self.new.size_bytes, segment);
        match leaf.entries().last() {
            Some(last) if last.end_block() > edge => Err(Error::Invalid(format!(
                "leaf of segment {segment}: chunk {} ends at block {}, the volume of {} bytes at block {edge} of it",
                last.chunk,
                last.end_block(),
                self.new.size_bytes
            ))),
            _ => Ok(()),
        }
    }

    /// Takes over leaves of a completed snapshot, each segment once; they have so many blocks of
    /// data. The pin of its root keeps them, and all that they name, in the store. That they are
    /// its leaves is the caller's word: one that does not belong makes another root.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] when open uploads hold as many leaves as they may.
    pub fn keep_leaves(
        &self,
        of: &RootPin,
        leaves: Vec<(u32, NodeId)>,
        data_blocks: u64,
    ) -> Result<()> {
        let room = self.reserve(leaves.len())?;
        let mut state = self.leaves.lock();
        if state.pins.iter().all(|pin| pin.root() != of.root()) {
            state.pins.push(of.clone());
        }
        state.room.join(room);
        state.ids.extend(leaves);
        state.data_blocks += data_blocks;
        Ok(())
    }

    /// Makes the snapshot, durable and visible, if its content has the root that the sender expects.
    ///
    /// An upload commits once; what was put is complete by the caller's word, and the root proves it.
    pub async fn commit(&self, expected: RootId) -> Result<SnapshotRecord> {
        let content = self.put_tree(expected).await?;
        let pins = mem::take(&mut self.leaves.lock().pins);
        self.make_snapshot(content, pins).await
    }

    async fn make_snapshot(
        &self,
        content: SnapshotContent,
        pins: Vec<RootPin>,
    ) -> Result<SnapshotRecord> {
        let lineage = self.new.lineage.clone().unwrap_or_else(|| Lineage {
            created_at_ns: meta::now_ns(),
            origin: None,
            parent: None,
        });
        let record = SnapshotRecord {
            id: SnapshotId::random()?,
            name: self.new.name.clone(),
            size_bytes: self.new.size_bytes,
            state: SnapshotState::Completed(content),
            created_at_ns: lineage.created_at_ns,
            tags: self.new.tags.clone(),
            origin: lineage.origin,
            parent: lineage.parent,
        };
        self.engine
            .commit
            .commit_snapshot(self.generation, record, pins)
            .await
    }

    /// Makes durable what arrived so far, so that not even a loss of power takes it.
    pub async fn flush(&self) -> Result<()> {
        self.engine.commit.flush(self.generation).await
    }

    /// Makes the snapshot of content that the store has already, as another snapshot of it says.
    pub async fn commit_same(&self, other: &SnapshotRecord) -> Result<SnapshotRecord> {
        let root_of = |other: &SnapshotRecord| Ok(other.completed()?.root);
        let (other, pin) = self.engine.pin_root(other.clone(), root_of).await?;
        let content = other.completed()?;
        if other.size_bytes != self.new.size_bytes {
            return Err(Error::Invalid(format!(
                "snapshot {:?} has {} bytes, and {:?} is to have {}",
                other.name, other.size_bytes, self.new.name, self.new.size_bytes
            )));
        }
        let content = SnapshotContent {
            new_bytes: 0,
            stored_bytes: 0,
            ..content
        };
        self.make_snapshot(content, vec![pin]).await
    }

    /// Stores a leaf of content that was cut here, which goes into a tree of the caller's.
    pub(crate) async fn store_leaf(&self, segment: u32, leaf: Leaf) -> Result<NodeId> {
        let id = leaf.id();
        self.store_leaves(vec![(segment, leaf)]).await?;
        Ok(id)
    }

    /// Stores inner nodes of that tree, behind their children.
    pub(crate) async fn store_inner(&self, inners: Vec<InnerNode>) -> Result<()> {
        let records = inners
            .iter()
            .map(|inner| EncodedRecord::inner(inner.id(), &inner.encode()));
        self.store_nodes(records.collect()).await
    }

    /// Makes that tree durable with all below, and no snapshot of it.
    pub(crate) async fn store_root(
        &self,
        root: &Root,
        data_blocks: u64,
    ) -> Result<SnapshotContent> {
        self.store_nodes(vec![EncodedRecord::root(root.id(), &root.encode())])
            .await?;
        self.engine.commit.flush(self.generation).await?;
        Ok(self.content(root, data_blocks))
    }

    async fn store_nodes(&self, records: Vec<EncodedRecord>) -> Result<()> {
        self.engine.commit.check(self.generation)?;
        let stored = self
            .engine
            .append_new_nodes(self.generation, records)
            .await?;
        self.stored_bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(())
    }

    fn content(&self, root: &Root, data_blocks: u64) -> SnapshotContent {
        SnapshotContent {
            root: root.id(),
            data_bytes: (data_blocks * BLOCK_BYTES as u64).min(root.size_bytes),
            new_bytes: self.new_bytes.load(Ordering::Relaxed),
            stored_bytes: self.stored_bytes.load(Ordering::Relaxed),
        }
    }

    /// Appends the nodes above the leaves.
    async fn put_tree(&self, expected: RootId) -> Result<SnapshotContent> {
        self.engine.commit.check(self.generation)?;
        let (mut ids, _room, data_blocks) = {
            let mut state = self.leaves.lock();
            if state.committed {
                return Err(Error::Invalid(format!(
                    "the upload of {:?} was committed before",
                    self.new.name
                )));
            }
            state.committed = true;
            (
                mem::take(&mut state.ids),
                mem::take(&mut state.room),
                state.data_blocks,
            )
        };
        let size_bytes = self.new.size_bytes;
        let (root, records) = self
            .engine
            .workers
            .run(Priority::Write, move |_| build(size_bytes, &mut ids))
            .await??;
        if expected != root.id() {
            return Err(Error::Invalid(format!(
                "the content that arrived has root {}, expected was {expected}: leaves are missing or differ",
                root.id()
            )));
        }
        self.store_nodes(records).await?;
        Ok(self.content(&root, data_blocks))
    }
}

/// Room for leaves, of the [`limits::UPLOAD_LEAVES_MAX`] that open uploads share; given back when it is dropped.
#[derive(Debug, Default)]
struct LeafRoom(Option<OwnedSemaphorePermit>);

impl LeafRoom {
    fn take(all: &Arc<Semaphore>, count: usize) -> Option<Self> {
        let permit = Arc::clone(all).try_acquire_many_owned(u32::try_from(count).ok()?);
        permit.ok().map(|permit| Self(Some(permit)))
    }

    fn join(&mut self, more: Self) {
        match (&mut self.0, more.0) {
            (Some(permit), Some(more)) => permit.merge(more),
            (none, more) => *none = more,
        }
    }
}

fn build(size_bytes: u64, leaves: &mut [(u32, NodeId)]) -> Result<(Root, Vec<EncodedRecord>)> {
    leaves.sort_unstable_by_key(|(segment, _)| *segment);
    if let Some(pair) = leaves
        .windows(2)
        .find(|pair| matches!(pair, [a, b] if a.0 == b.0))
    {
        let segment = pair.first().map_or(0, |(segment, _)| *segment);
        return Err(Error::Invalid(format!(
            "the leaf of segment {segment} was put twice"
        )));
    }
    let mut builder = TreeBuilder::new(size_bytes)?;
    for (segment, id) in leaves.iter() {
        builder.push(*segment, *id)?;
    }
    let (root, inners) = builder.finish();
    let mut records: Vec<_> = inners
        .iter()
        .map(|inner| EncodedRecord::inner(inner.id(), &inner.encode()))
        .collect();
    records.push(EncodedRecord::root(root.id(), &root.encode()));
    Ok((root, records))
}

fn check_lengths(chunk: &IncomingChunk) -> Result<()> {
    let most = chunker::MAX_CHUNK_BLOCKS as usize * BLOCK_BYTES;
    let plain = chunk.plain_bytes as usize;
    if plain == 0 || plain > most || !plain.is_multiple_of(BLOCK_BYTES) {
        return Err(Error::Invalid(format!(
            "chunk {}: plain length {plain} is not a multiple of {BLOCK_BYTES} up to {most}",
            chunk.id
        )));
    }
    // The codec keeps plain bytes where packing does not save, so a payload is never longer.
    if chunk.payload.len() > plain {
        return Err(Error::Invalid(format!(
            "chunk {}: payload of {} bytes for {plain} plain bytes",
            chunk.id,
            chunk.payload.len()
        )));
    }
    Ok(())
}

/// That a leaf uses a chunk as it is, and where the chunker would have cut it.
fn check_place(segment: u32, entry: &LeafEntry, payload: &Payload, open_fits: bool) -> Result<()> {
    let found = payload.plain_bytes;
    if found as usize != entry.blocks as usize * BLOCK_BYTES {
        return Err(Error::Invalid(format!(
            "leaf of segment {segment}: chunk {} at block {} has {found} bytes, the leaf says {} blocks",
            entry.chunk, entry.start_block, entry.blocks
        )));
    }
    if payload.end_open && !open_fits {
        return Err(Error::Invalid(format!(
            "leaf of segment {segment}: chunk {} at block {} must be followed by a hole, for the chunker does not cut there",
            entry.chunk, entry.start_block
        )));
    }
    Ok(())
}

struct SealedChunks {
    records: Vec<EncodedRecord>,
    new_bytes: u64,
}

/// Checks chunks against their ids and the chunker, and packs those that the store does not know.
fn seal_all(
    scratch: &mut Scratch,
    chunks: &[IncomingChunk],
    known: &[bool],
    keeps_packed: bool,
) -> Result<SealedChunks> {
    let mut sealed = SealedChunks {
        records: Vec::with_capacity(chunks.len()),
        new_bytes: 0,
    };
    let mut seen = HashSet::with_capacity(chunks.len());
    let mut plain_buffer = Vec::new();
    for (chunk, known) in chunks.iter().zip(known) {
        let plain: &[u8] = if chunk.codec == Codec::Raw {
            &chunk.payload
        } else {
            scratch
                .decoder
                .decode(
                    chunk.codec,
                    &chunk.payload,
                    chunk.plain_bytes as usize,
                    &mut plain_buffer,
                )
                .map_err(|error| Error::Invalid(format!("chunk {}: {error}", chunk.id)))?;
            &plain_buffer
        };
        if plain.len() != chunk.plain_bytes as usize {
            return Err(Error::Invalid(format!(
                "chunk {}: {} bytes arrived, {} were announced",
                chunk.id,
                plain.len(),
                chunk.plain_bytes
            )));
        }
        let found = ChunkId::of(plain);
        if found != chunk.id {
            return Err(Error::Invalid(format!(
                "chunk {}: the bytes that arrived have id {found}",
                chunk.id
            )));
        }
        let end = chunker::check_canonical(plain).map_err(|source| Error::NotCanonical {
            id: chunk.id,
            source,
        })?;
        if *known || !seen.insert(chunk.id) {
            continue;
        }
        let (codec, packed) = if keeps_packed {
            (chunk.codec, &*chunk.payload)
        } else {
            scratch.encoder.encode(plain)
        };
        sealed.records.push(EncodedRecord::chunk(
            chunk.id,
            codec,
            end,
            chunk.plain_bytes,
            packed,
        ));
        sealed.new_bytes += plain.len() as u64;
    }
    Ok(sealed)
}
