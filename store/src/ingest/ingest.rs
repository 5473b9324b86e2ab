//! One upload: chunks in, leaves in, commit.

use std::{
    collections::HashSet,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use varve_content::{
    ChunkId, NodeId, RootId,
    block::{self, BLOCK_BYTES},
    tree::{InnerNode, Leaf, Root},
};

use super::{
    IncomingChunk, Lineage, NewSnapshot, PutOutcome,
    check::{check_extent, check_lengths, check_place},
    leaves::{LeafRoom, Leaves, build},
    possession::Possession,
    seal::{Kept, seal_all},
};
use crate::{
    Error, Result,
    engine::{Charge, Engine, Generation, Guard, Ledger, Priority, RootPin},
    format::{Name, PackKind, pack::Payload},
    limits,
    meta::{self, Sharing, SnapshotContent, SnapshotId, SnapshotRecord, SnapshotState},
    pack::EncodedRecord,
};

/// An upload under way. Methods may run at the same time; dropping it leaves nothing visible, and
/// the chunks that arrived stay for the next try.
#[derive(Debug)]
pub struct Ingest {
    engine: Arc<Engine>,
    new: NewSnapshot,
    generation: Generation,
    /// Keeps the records that it found or stored, until a root names them.
    guard: Arc<Guard>,
    leaves: Mutex<Leaves>,
    new_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    /// True if chunks stay packed as they came.
    keeps_packed: bool,
    /// The chunks that count as there; `None`: all that the store has.
    possession: Option<Possession>,
    /// True if chunks are written that the store has.
    writes_known: bool,
    /// What it takes of its owner's quota of stored bytes; `None` for work of the store itself.
    charge: Option<Charge>,
}

impl Ingest {
    pub(crate) fn begin(engine: Arc<Engine>, new: NewSnapshot) -> Result<Self> {
        new.check()?;
        let generation = engine.commit.generation()?;
        let guard = engine.rely(&new.name);
        Ok(Self {
            engine,
            new,
            generation,
            guard,
            leaves: Mutex::default(),
            new_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            keeps_packed: false,
            possession: None,
            writes_known: false,
            charge: None,
        })
    }

    /// Keeps chunks packed as they come, instead of packing them as this store does: for chunks of
    /// another store, which has packed them already.
    #[must_use]
    pub fn keep_packed(mut self) -> Self {
        self.keeps_packed = true;
        self
    }

    /// Counts only chunks as there that the sender has proved to have: it sent them in this upload,
    /// or the same segment of `base` has them, the content of a snapshot that it may read.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] when open uploads hold as many leaves as they may.
    pub fn only_what_is_proved(mut self, base: Option<(Root, RootPin)>) -> Result<Self> {
        let room = self.reserve(limits::PROVED_LEAVES)?;
        let engine = Arc::clone(&self.engine);
        self.possession = Some(Possession::new(engine, base, room));
        Ok(self)
    }

    /// Writes chunks even if the store has them, so that the time that an upload takes does not
    /// tell what the store had. The next collection removes what is there twice.
    #[must_use]
    pub fn write_known(mut self) -> Self {
        self.writes_known = true;
        self
    }

    /// Takes what arrives of a quota of stored bytes.
    #[must_use]
    pub(crate) fn charged(mut self, ledger: &Arc<Ledger>) -> Self {
        self.charge = Some(ledger.begin_upload());
        self
    }

    /// The guard of the records that it relies on, for a change of the catalog that may outlive it.
    pub(crate) const fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// The snapshot that it will become.
    #[must_use]
    pub fn new_snapshot(&self) -> &NewSnapshot {
        &self.new
    }

    /// Positions of the chunks that the store lacks, or that the sender has not proved to have.
    /// `segments` are those that the chunks are in: the base proves what it has there.
    pub async fn missing(&self, ids: &[ChunkId], segments: &[u32]) -> Result<Vec<u32>> {
        self.engine.commit.check(self.generation)?;
        let Some(possession) = &self.possession else {
            return self.engine.missing_chunks(Some(&self.guard), ids).await;
        };
        let proved = Box::pin(possession.of(ids, segments)).await?;
        // What is not proved is not looked up: the time of the answer tells nothing of it.
        let known = ids.iter().zip(&proved).filter(|(_, proved)| **proved);
        let known = known.map(|(id, _)| Name::chunk(*id)).collect();
        let known = self.engine.known(Some(&self.guard), known).await?;
        let mut known = known.into_iter();
        let is_there = proved
            .into_iter()
            .map(|it| it && known.next().flatten().is_some());
        Ok((0u32..)
            .zip(is_there)
            .filter(|(_, is_there)| !is_there)
            .map(|(position, _)| position)
            .collect())
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
        if let Some(charge) = &self.charge {
            charge.take(plain_bytes as u64)?;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked against INGEST_PLAIN_BYTES just above"
        )]
        let space = Arc::clone(&self.engine.budgets.ingest)
            .acquire_many_owned(plain_bytes as u32)
            .await
            .map_err(|_| Error::Closing)?;

        let names = chunks.iter().map(|chunk| Name::chunk(chunk.id));
        let places = self
            .engine
            .known(Some(&self.guard), names.collect())
            .await?;
        let known: Vec<bool> = places.iter().map(Option::is_some).collect();
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
        let (keeps_packed, writes_known) = (self.keeps_packed, self.writes_known);
        // The job keeps the space for as long as it keeps the chunks, which may be longer than the
        // caller waits.
        let (sealed, _space) = self
            .engine
            .workers
            .run(Priority::Write, move |scratch| {
                let kept = Kept {
                    known: &known,
                    writes_known,
                    keeps_packed,
                };
                seal_all(scratch, &chunks, kept).map(|sealed| (sealed, space))
            })
            .await??;
        // On a full disk, what the store has must not be told from what it lacks.
        if self.possession.is_some() {
            self.engine.space.check().await?;
        }
        if sealed.records.is_empty() {
            self.proved(ids);
            return Ok(PutOutcome {
                chunks: count,
                new_bytes: 0,
            });
        }
        self.engine.space.check().await?;
        let stored = self
            .engine
            .commit
            .append(self.generation, PackKind::Chunks, sealed.records)
            .await?;
        self.new_bytes
            .fetch_add(sealed.new_bytes, Ordering::Relaxed);
        self.stored_bytes.fetch_add(stored, Ordering::Relaxed);
        self.proved(ids);
        Ok(PutOutcome {
            chunks: count,
            new_bytes: sealed.new_bytes,
        })
    }

    /// The bytes of these chunks have come, and were checked.
    fn proved(&self, ids: Vec<ChunkId>) {
        if let Some(possession) = &self.possession {
            possession.add(ids.into_iter());
        }
    }

    /// Takes leaves in: segment number and content, each segment once over the whole upload, no
    /// segment twice in a call.
    pub async fn put_leaves(&self, leaves: Vec<(u32, Leaf)>) -> Result<()> {
        if let Some(charge) = &self.charge {
            // As a count does: in whole blocks.
            let bytes = leaves.iter().map(|(_, leaf)| leaf.encode().len());
            let bytes = bytes.map(|bytes| bytes.next_multiple_of(BLOCK_BYTES) as u64);
            charge.take(bytes.sum())?;
        }
        let room = self.reserve(leaves.len())?;
        let data_blocks = leaves.iter().map(|(_, leaf)| u64::from(leaf.data_blocks()));
        let data_blocks: u64 = data_blocks.sum();
        let accepted = self.store_leaves(leaves, &HashSet::new()).await?;
        let mut state = self.leaves.lock();
        state.room.join(room);
        state.ids.extend(accepted);
        state.data_blocks += data_blocks;
        Ok(())
    }

    /// Stores leaves, and returns their ids. The chunks in `kept` belong to a pinned root.
    async fn store_leaves(
        &self,
        leaves: Vec<(u32, Leaf)>,
        kept: &HashSet<ChunkId>,
    ) -> Result<Vec<(u32, NodeId)>> {
        self.engine.commit.check(self.generation)?;
        let mut wanted = Vec::new();
        for (segment, leaf) in &leaves {
            check_extent(self.new.size_bytes, *segment, leaf)?;
            wanted.extend(leaf.entries().iter().map(|entry| entry.chunk));
        }
        let mut proved = Vec::with_capacity(wanted.len());
        for (segment, leaf) in &leaves {
            match &self.possession {
                Some(possession) => {
                    proved.extend(Box::pin(possession.of_leaf(*segment, leaf)).await?)
                }
                None => proved.extend(leaf.entries().iter().map(|_| true)),
            }
        }
        // Without proof, the answer is that of a chunk that the store lacks. Such a chunk is not
        // even looked up: that would take time, and keep its pack.
        let looked_up = wanted.iter().zip(&proved).filter(|(_, proved)| **proved);
        let looked_up: Vec<_> = looked_up.map(|(chunk, _)| *chunk).collect();
        let known = self.known(&looked_up, kept).await?;
        let mut known = known.iter();
        let mut places = proved.iter().map(|is_proved| match is_proved {
            true => known.next().and_then(Option::as_ref),
            false => None,
        });
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
            records.push(EncodedRecord::node(Name::leaf(id), &leaf.encode()));
        }
        self.store_nodes(records).await?;
        Ok(accepted)
    }

    /// For each chunk, how the store keeps it. Chunks in `kept` may be moving from one pack to
    /// another: a pin keeps them.
    async fn known(
        &self,
        chunks: &[ChunkId],
        kept: &HashSet<ChunkId>,
    ) -> Result<Vec<Option<Payload>>> {
        let names = |is_kept: bool| {
            let some = chunks
                .iter()
                .filter(move |id| kept.contains(*id) == is_kept);
            some.copied().map(Name::chunk).collect::<Vec<_>>()
        };
        let others = self.engine.known(Some(&self.guard), names(false)).await?;
        let pinned = match kept.is_empty() {
            true => Vec::new(),
            false => self.engine.known(None, names(true)).await?,
        };
        let (mut others, mut pinned) = (others.into_iter(), pinned.into_iter());
        let known = chunks.iter().map(|id| match kept.contains(id) {
            true => pinned.next().flatten(),
            false => others.next().flatten(),
        });
        Ok(known.collect())
    }

    fn reserve(&self, count: usize) -> Result<LeafRoom> {
        LeafRoom::take(&self.engine.budgets.leaves, count).ok_or_else(|| {
            Error::Limit(format!(
                "open uploads hold {} leaves, the most at one time; commit or abort some",
                limits::UPLOAD_LEAVES_MAX
            ))
        })
    }

    /// Takes over leaves of a completed snapshot, each segment once, with `data_blocks` blocks of
    /// data. The pin of its root keeps them, and all that they name, in the store. The caller
    /// vouches that they are its leaves: a wrong one makes another root.
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

    /// Makes the snapshot, durable and visible, if its content has the root that the sender
    /// expects.
    ///
    /// An upload commits once; the caller says that it is complete, and the root proves it.
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
            name: Some(self.new.name.clone()),
            owner: self.new.owner,
            description: String::new(),
            size_bytes: self.new.size_bytes,
            state: SnapshotState::Completed(content),
            created_at_ns: lineage.created_at_ns,
            tags: self.new.tags.clone(),
            origin: lineage.origin,
            parent: lineage.parent,
            sharing: Sharing::default(),
        };
        self.engine
            .commit
            .commit_snapshot(self.generation, record, (pins, Arc::clone(&self.guard)))
            .await
    }

    /// Makes all arrived data durable, so that not even a loss of power takes it.
    pub async fn flush(&self) -> Result<()> {
        self.engine.commit.flush(self.generation).await
    }

    /// Makes the snapshot of content that the store has already, according to another snapshot.
    pub async fn commit_same(&self, other: &SnapshotRecord) -> Result<SnapshotRecord> {
        let root_of = |other: &SnapshotRecord| Ok(other.completed()?.root);
        let (other, pin) = self.engine.pin_root(other.clone(), root_of).await?;
        let content = other.completed()?;
        if other.size_bytes != self.new.size_bytes {
            return Err(Error::Invalid(format!(
                "snapshot {:?} has {} bytes, and {:?} is to have {}",
                other.label(),
                other.size_bytes,
                self.new.name,
                self.new.size_bytes
            )));
        }
        let content = SnapshotContent {
            new_bytes: 0,
            stored_bytes: 0,
            ..content
        };
        self.make_snapshot(content, vec![pin]).await
    }

    /// Stores a leaf of content that was cut here, for a tree of the caller's. The chunks in `kept`
    /// are those of a root that the caller has pinned until the tree is named.
    pub(crate) async fn store_leaf(
        &self,
        segment: u32,
        leaf: Leaf,
        kept: &HashSet<ChunkId>,
    ) -> Result<NodeId> {
        let id = leaf.id();
        self.store_leaves(vec![(segment, leaf)], kept).await?;
        Ok(id)
    }

    /// Stores inner nodes of that tree, behind their children.
    pub(crate) async fn store_inner(&self, inners: Vec<InnerNode>) -> Result<()> {
        let records = inners
            .iter()
            .map(|inner| EncodedRecord::node(Name::inner(inner.id()), &inner.encode()));
        self.store_nodes(records.collect()).await
    }

    /// Makes that tree durable with all below, without a snapshot of it.
    pub(crate) async fn store_root(
        &self,
        root: &Root,
        data_blocks: u64,
    ) -> Result<SnapshotContent> {
        let record = EncodedRecord::node(Name::root(root.id()), &root.encode());
        self.store_nodes(vec![record]).await?;
        self.engine.commit.flush(self.generation).await?;
        Ok(self.content(root, data_blocks))
    }

    async fn store_nodes(&self, records: Vec<EncodedRecord>) -> Result<()> {
        self.engine.commit.check(self.generation)?;
        let stored = self
            .engine
            .append_new_nodes(&self.guard, self.generation, records)
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
                "the content that arrived has root {}, expected was {expected}: leaves are \
                missing or differ",
                root.id()
            )));
        }
        self.store_nodes(records).await?;
        Ok(self.content(&root, data_blocks))
    }
}
