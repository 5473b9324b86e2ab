//! Nodes and chunks, from the caches or from packs.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use varve_content::{
    ChunkId, NodeId, RootId,
    tree::{
        InnerNode, Leaf, NodePlace, NodeSource, Root, TreeError, WalkError, find_leaf_and_parent,
    },
};

use super::{
    LocatedLeaf, StoredChunk, VerifiedChunk,
    cache::{ChunkGuard, Found},
    chunk::open_chunk,
    hints::Hints,
    located::LocatedInner,
};
use crate::{
    Damage, Error, Result,
    engine::{Engine, Priority, Scratch},
    format::{Location, Name},
    limits,
    meta::Meta,
    pack::{PackGone, PackReader, ReadError, ReadSpan, Span, plan_spans},
};

/// A chunk that is being loaded: its position among the wanted chunks, its id, its place, and the
/// cache's guard.
type Member<'a> = (usize, ChunkId, Location, ChunkGuard<'a>);

/// Number of times that a record is looked for in another pack when its pack is gone.
pub(crate) const PACK_MOVES_MAX: u32 = 3;

/// Turns the error of a walk into that of a reader.
pub(crate) fn walked(error: WalkError<Error>) -> Error {
    match error {
        WalkError::Source(error) => error,
        WalkError::Level { node, .. } | WalkError::Outside { node, .. } => {
            Damage::in_tree(format_args!("node {node}"), &error).into()
        }
    }
}

/// Adds the name of the snapshot that was being read to an error of damage.
pub(crate) fn needed_by(error: Error, snapshot: &str) -> Error {
    match error {
        Error::Damaged(damage) => Error::Damaged(damage.needed_by(snapshot)),
        other => other,
    }
}

/// Checks that a node's bytes have its id.
fn verify_node(name: Name, encoded: &[u8]) -> std::result::Result<(), String> {
    let found = Name::of(name.kind(), encoded);
    if found == name {
        Ok(())
    } else {
        Err(format!("its bytes have id {found}"))
    }
}

impl Engine {
    /// A chunk of a leaf, from the cache or its pack. Readers of the same chunk wait for one read.
    async fn load_chunk(
        &self,
        of: &LocatedLeaf,
        id: ChunkId,
        place: Option<Location>,
    ) -> Result<VerifiedChunk> {
        let name = Name::chunk(id);
        let load = || async {
            let place = place.ok_or_else(|| Damage::missing(name))?;
            let payload = self.read_chunk(of, name, place).await;
            let (place, payload) = self.noting_damage(payload)?;
            let open = move |scratch: &mut Scratch| {
                open_chunk(scratch, id, place, &payload).map(VerifiedChunk::detached)
            };
            let opened = self.workers.run(Priority::Read, open).await?;
            self.noting_damage(opened.map_err(Error::from))
        };
        self.cache.chunk_or(name, load).await
    }

    /// The payload of a chunk, and where it was found.
    async fn read_chunk(
        &self,
        of: &LocatedLeaf,
        name: Name,
        mut place: Location,
    ) -> Result<(Location, Bytes)> {
        let mut moves = 0;
        loop {
            let gone = match self.read_one(&self.packs, place, name).await {
                Ok(payload) => return Ok((place, payload)),
                Err(ReadError::PackGone(gone)) => gone,
                Err(ReadError::Other(error)) => return Err(error),
            };
            let moved = self.moved_chunks(gone, vec![name]).await?;
            let Some(&(_, now)) = moved.first().filter(|_| moves < PACK_MOVES_MAX) else {
                return Err(Damage::from(gone).into());
            };
            of.forget(gone.pack);
            place = now;
            moves += 1;
        }
    }

    /// Looks up chunks again whose pack is gone. Returns those that the index now has in another
    /// pack, with their positions in `names`.
    pub(crate) async fn moved_chunks(
        &self,
        gone: PackGone,
        names: Vec<Name>,
    ) -> Result<Vec<(usize, Location)>> {
        let ask = move |meta: &dyn Meta| meta.lookup(&names);
        let places = self.meta(Priority::Read, ask).await?;
        let places = places.into_iter().enumerate();
        let places = places.filter_map(|(position, place)| Some((position, place?)));
        Ok(places
            .filter(|(_, place)| place.pack != gone.pack)
            .collect())
    }

    /// Chunks of a leaf, in this order, from the cache or their packs. Neighbours in a pack are
    /// read together, and unpacked in pieces on all workers. Nobody reads a chunk that somebody
    /// else is reading.
    pub(crate) async fn load_chunks(
        &self,
        of: &LocatedLeaf,
        wanted: &[(ChunkId, Option<Location>)],
    ) -> Result<Vec<VerifiedChunk>> {
        let mut found: Vec<Option<VerifiedChunk>> = vec![None; wanted.len()];
        let (mut ours, mut places) = (Vec::new(), Vec::new());
        for (position, (id, place)) in wanted.iter().enumerate() {
            let Some(place) = place else {
                return Err(Damage::missing(Name::chunk(*id)).into());
            };
            // Without waiting: a caller that waits while it holds guards can itself be waited for.
            match self.cache.chunk_or_guard(Name::chunk(*id)) {
                Found::Chunk(chunk) => found[position] = Some(chunk),
                Found::Nothing(guard) => {
                    ours.push((position, *id, Some(guard)));
                    places.push(*place);
                }
                Found::OnItsWay => {}
            }
        }
        let mut loads = Vec::new();
        for span in plan_spans(&places) {
            let members: Vec<_> = span
                .members
                .iter()
                .filter_map(|at| {
                    let (position, id, guard) = ours.get_mut(*at)?;
                    Some((*position, *id, *places.get(*at)?, guard.take()?))
                })
                .collect();
            loads.push(self.load_span(span, members));
        }
        for (position, chunk) in try_join_all(loads).await?.into_iter().flatten() {
            found[position] = Some(chunk);
        }
        // Chunks that others are reading, and chunks that could not be read with their neighbours:
        // read alone, to find out which is damaged and how.
        let mut chunks = Vec::with_capacity(wanted.len());
        for (chunk, (id, place)) in found.into_iter().zip(wanted) {
            chunks.push(match chunk {
                Some(chunk) => chunk,
                None => self.load_chunk(of, *id, *place).await?,
            });
        }
        Ok(chunks)
    }

    /// Reads a span and unpacks its chunks, in jobs of some chunks each. Omits damaged chunks.
    async fn load_span(
        &self,
        span: Span,
        members: Vec<Member<'_>>,
    ) -> Result<Vec<(usize, VerifiedChunk)>> {
        let read = match self.read_span(&self.packs, span).await {
            Ok((_, read)) => Arc::new(read),
            Err(ReadError::PackGone(_) | ReadError::Other(Error::Damaged(_))) => {
                return Ok(Vec::new());
            }
            Err(ReadError::Other(error)) => return Err(error),
        };
        let mut jobs = Vec::new();
        let mut rest = members.into_iter().peekable();
        while rest.peek().is_some() {
            let mut plain_bytes = 0;
            let mut job = Vec::new();
            while let Some(member) = rest.next_if(|_| plain_bytes < limits::DECODE_JOB_BYTES) {
                plain_bytes += member.2.payload.plain_bytes as usize;
                job.push(member);
            }
            jobs.push(self.unpack(Arc::clone(&read), job));
        }
        Ok(try_join_all(jobs).await?.into_iter().flatten().collect())
    }

    /// Unpacks chunks of a span, and keeps them.
    async fn unpack(
        &self,
        read: Arc<ReadSpan>,
        members: Vec<Member<'_>>,
    ) -> Result<Vec<(usize, VerifiedChunk)>> {
        let places: Vec<_> = members
            .iter()
            .map(|(_, id, place, _)| (*id, *place))
            .collect();
        let open_all = move |scratch: &mut Scratch| -> Vec<_> {
            let opened = places.into_iter().map(|(id, place)| {
                let record = read.record(&place, Name::chunk(id)).ok()?;
                let chunk = open_chunk(scratch, id, place, record.payload()).ok()?;
                Some(chunk.detached())
            });
            opened.collect()
        };
        let opened = self.workers.run(Priority::Read, open_all).await?;
        let mut chunks = Vec::with_capacity(members.len());
        for ((position, .., guard), chunk) in members.into_iter().zip(opened) {
            let Some(chunk) = chunk else { continue };
            guard.insert(chunk.clone());
            chunks.push((position, chunk));
        }
        Ok(chunks)
    }

    /// Chunks of a leaf as they are stored, in this order.
    pub(crate) async fn stored_chunks(
        &self,
        of: &LocatedLeaf,
        wanted: &[(ChunkId, Option<Location>)],
    ) -> Result<Vec<StoredChunk>> {
        let mut places = wanted
            .iter()
            .map(|(id, place)| place.ok_or_else(|| Damage::missing(Name::chunk(*id))))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let mut moves = 0;
        let spans = loop {
            let reads = plan_spans(&places)
                .into_iter()
                .map(|span| self.read_span(&self.packs, span));
            let gone = match try_join_all(reads).await {
                Ok(spans) => break spans,
                Err(ReadError::PackGone(gone)) => gone,
                Err(ReadError::Other(error)) => return self.noting_damage(Err(error)),
            };
            // All of them: the others may be in packs that are gone, too.
            let names: Vec<_> = wanted.iter().map(|(id, _)| Name::chunk(*id)).collect();
            let ask = move |meta: &dyn Meta| meta.lookup(&names);
            let now = self.meta(Priority::Read, ask).await?;
            for (place, now) in places.iter_mut().zip(now) {
                match now {
                    Some(now) if now.pack != gone.pack => *place = now,
                    _ if place.pack == gone.pack => {
                        return self.noting_damage(Err(Damage::from(gone).into()));
                    }
                    _ => {}
                }
            }
            if moves >= PACK_MOVES_MAX {
                return self.noting_damage(Err(Damage::from(gone).into()));
            }
            of.forget(gone.pack);
            moves += 1;
        };
        let mut chunks = Vec::with_capacity(wanted.len());
        for (span, read) in &spans {
            for position in span.members.iter().copied() {
                let (Some((id, _)), Some(place)) = (wanted.get(position), places.get(position))
                else {
                    continue;
                };
                let record = self.noting_damage(read.record(place, Name::chunk(*id)))?;
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

    /// The payload of one record.
    async fn read_one(
        &self,
        packs: &PackReader,
        place: Location,
        name: Name,
    ) -> Result<Bytes, ReadError> {
        let bytes = u32::try_from(place.payload.record_bytes()).unwrap_or(u32::MAX);
        let _space = self.read_budget(bytes).await?;
        Ok(packs.read_record(&place, name).await?.payload().clone())
    }

    /// Reads a span.
    pub(crate) async fn read_span(
        &self,
        packs: &PackReader,
        span: Span,
    ) -> Result<(Span, ReadSpan), ReadError> {
        let _space = self
            .read_budget(u32::try_from(span.len_bytes).unwrap_or(u32::MAX))
            .await?;
        let read = packs.read_span(&span).await?;
        Ok((span, read))
    }

    /// The leaf of a segment, from the root down.
    pub(crate) async fn descend(
        &self,
        root: &Root,
        segment: u32,
    ) -> Result<Option<Arc<LocatedLeaf>>> {
        let found = find_leaf_and_parent(self, root, segment).await;
        let Some((parent, id)) = found.map_err(walked)? else {
            return Ok(None);
        };
        let load = || async {
            let parent = self.located_inner(parent).await?;
            let place = self.place_under(&parent, id).await?;
            let hinted = place.map(|place| (place, &parent.hints));
            let leaf = self.decoded(&self.packs, Name::leaf(id), hinted, Leaf::decode);
            leaf.await.map(LocatedLeaf::new)
        };
        self.cache.leaf_or(Name::leaf(id), load).await.map(Some)
    }

    /// A leaf without the places of its chunks. It is not kept.
    pub(crate) async fn plain_leaf(&self, id: NodeId) -> Result<Arc<Leaf>> {
        let name = Name::leaf(id);
        if let Some(located) = self.cache.leaf(name) {
            return Ok(Arc::clone(located.leaf()));
        }
        let leaf = self.load_node(&self.packs, name, Leaf::decode).await;
        leaf.map(Arc::new)
    }

    /// A leaf, from the cache or its pack.
    pub(crate) async fn located_leaf(&self, id: NodeId) -> Result<Arc<LocatedLeaf>> {
        let load = || self.load_leaf(&self.packs, id);
        self.cache.leaf_or(Name::leaf(id), load).await
    }

    /// A leaf from its pack.
    pub(crate) async fn load_leaf(&self, packs: &PackReader, id: NodeId) -> Result<LocatedLeaf> {
        let leaf = self.load_node(packs, Name::leaf(id), Leaf::decode).await;
        leaf.map(LocatedLeaf::new)
    }

    pub(crate) async fn inner_node(&self, id: NodeId) -> Result<Arc<InnerNode>> {
        Ok(Arc::clone(self.located_inner(id).await?.inner()))
    }

    /// An inner node, from the cache or its pack.
    async fn located_inner(&self, id: NodeId) -> Result<Arc<LocatedInner>> {
        let load = || async {
            let inner = self.load_node(&self.packs, Name::inner(id), InnerNode::decode);
            Ok(LocatedInner::new(inner.await?))
        };
        self.cache.inner_or(Name::inner(id), load).await
    }

    pub(crate) async fn root(&self, id: RootId) -> Result<Root> {
        self.load_node(&self.packs, Name::root(id), Root::decode)
            .await
    }

    /// A node from its pack, even if it moves to another one.
    pub(crate) async fn load_node<T>(
        &self,
        packs: &PackReader,
        name: Name,
        decode: fn(&[u8]) -> std::result::Result<T, TreeError>,
    ) -> Result<T> {
        self.decoded(packs, name, None, decode).await
    }

    /// A node, checked against its id and decoded; with its place, if it is known, and the hints
    /// that it came from.
    async fn decoded<T>(
        &self,
        packs: &PackReader,
        name: Name,
        mut hinted: Option<(Location, &Hints)>,
        decode: fn(&[u8]) -> std::result::Result<T, TreeError>,
    ) -> Result<T> {
        let mut gone: Option<(Location, PackGone)> = None;
        let mut moves = 0;
        loop {
            let (place, hints) = match hinted.take() {
                Some((place, hints)) => (place, Some(hints)),
                None => {
                    let place = self.place(name).await?;
                    (place.ok_or_else(|| Damage::missing(name))?, None)
                }
            };
            if let Some((there, gone)) = gone
                && (there == place || moves > PACK_MOVES_MAX)
            {
                return self.noting_damage(Err(Damage::from(gone).into()));
            }
            match self.read_node(packs, name, place).await {
                Err(ReadError::PackGone(no_pack)) => {
                    if let Some(hints) = hints {
                        hints.forget(no_pack.pack.number);
                    }
                    gone = Some((place, no_pack));
                }
                Err(ReadError::Other(error)) => return self.noting_damage(Err(error)),
                Ok(payload) => {
                    let decoded = decode(&payload).map_err(|error| {
                        Damage::in_pack(place.pack, place.offset_bytes, name, error).into()
                    });
                    return self.noting_damage(decoded);
                }
            }
            moves += 1;
        }
    }

    /// The place of a record in the index.
    pub(crate) async fn place(&self, name: Name) -> Result<Option<Location>> {
        let ask = move |meta: &dyn Meta| meta.lookup(&[name]);
        let places = self.meta(Priority::Read, ask).await?;
        Ok(places.into_iter().next().flatten())
    }

    /// The encoding of a node, checked against its id.
    async fn read_node(
        &self,
        packs: &PackReader,
        name: Name,
        place: Location,
    ) -> Result<Bytes, ReadError> {
        let payload = self.read_one(packs, place, name).await?;
        verify_node(name, &payload).map_err(|problem| {
            Error::from(Damage::in_pack(
                place.pack,
                place.offset_bytes,
                name,
                problem,
            ))
        })?;
        Ok(payload)
    }
}

impl NodeSource for Engine {
    type Error = Error;

    async fn inner(&self, id: NodeId, _: NodePlace) -> Result<Arc<InnerNode>> {
        self.inner_node(id).await
    }
}
