//! Missing content of snapshots and volumes: walks their trees, and counts the records in no pack.
//!
//! Nodes are read and hashed, each once, however many trees share it. Chunks are looked up in the
//! index, a leaf's at a time, and not read. Memory is proportional to the number of nodes: some 40
//! bytes for each, which is 6 MB for each TiB of data that is not shared.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use varve_content::{
    NodeId, RootId,
    block::BLOCK_BYTES,
    tree::{InnerNode, Leaf, Root, TreeError},
};

use crate::{
    Error, Result,
    format::{CatalogRecord, Location, Name},
    limits,
    meta::{Filter, Meta, Records as _, SnapshotRecord, VolumeRecord},
    pack::PackReader,
};

/// A pause between two lines about the progress in the log.
const PROGRESS_PAUSE: Duration = Duration::from_secs(10);

/// A snapshot or a volume that cannot be read completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// "snapshot" or "volume".
    pub kind: &'static str,
    /// Its name, or its id if it has none.
    pub name: String,
    /// Chunks that it lacks: a chunk counts once for each leaf that names it.
    pub chunks: u64,
    /// Tree nodes that it lacks, the root among them: a node counts once for each node that names
    /// it. What was below them is unknown.
    pub nodes: u64,
    /// One of them.
    pub example: Name,
    /// The reason why it cannot be read.
    pub why: String,
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} is incomplete: it lacks {} chunks and {} tree nodes, for example {}: {}",
            self.kind, self.name, self.chunks, self.nodes, self.example, self.why
        )
    }
}

/// The content missing at or below a node.
#[derive(Debug, Clone)]
struct Lack {
    chunks: u64,
    nodes: u64,
    example: Name,
    why: String,
}

impl Lack {
    fn of_node(name: Name, why: String) -> Self {
        Self {
            chunks: 0,
            nodes: 1,
            example: name,
            why,
        }
    }

    fn of_chunks(chunks: u64, example: Name) -> Self {
        Self {
            chunks,
            nodes: 0,
            example,
            why: IN_NO_PACK.to_owned(),
        }
    }

    fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self {
                chunks: one.chunks.saturating_add(other.chunks),
                nodes: one.nodes.saturating_add(other.nodes),
                ..one
            }),
            (one, other) => one.or(other),
        }
    }
}

const IN_NO_PACK: &str = "it is in no pack";

/// Finds the snapshots and volumes that lack something. The index must know all packs.
pub(super) async fn incomplete(packs: &PackReader, meta: &dyn Meta) -> Result<Vec<Incomplete>> {
    let mut walk = Walk {
        packs,
        meta,
        whole: HashSet::new(),
        lacking: HashMap::new(),
        said: Instant::now(),
    };
    let mut found = Vec::new();
    // Pending snapshots have no root yet.
    walk.all("snapshot", SnapshotRecord::root, &mut found)
        .await?;
    walk.all("volume", |volume: &VolumeRecord| volume.base, &mut found)
        .await?;
    Ok(found)
}

struct Walk<'a> {
    packs: &'a PackReader,
    meta: &'a dyn Meta,
    /// Nodes below which nothing is missing.
    whole: HashSet<Name>,
    /// The others.
    lacking: HashMap<Name, Lack>,
    /// The time when the progress was last logged.
    said: Instant,
}

impl Walk<'_> {
    /// Checks all records of a kind.
    async fn all<R: CatalogRecord>(
        &mut self,
        kind: &'static str,
        root_of: impl Fn(&R) -> Option<RootId>,
        found: &mut Vec<Incomplete>,
    ) -> Result<()> {
        let mut next = Some(Vec::new());
        while let Some(from) = next {
            let page = self
                .meta
                .page::<R>(&Filter::default(), &from, limits::PAGE_MAX)?;
            next = page.next;
            for record in page.records {
                let Some(root) = root_of(&record) else {
                    continue;
                };
                if let Some(lack) = self.root(root).await? {
                    found.push(Incomplete {
                        kind,
                        name: record.label().into_owned(),
                        chunks: lack.chunks,
                        nodes: lack.nodes,
                        example: lack.example,
                        why: lack.why,
                    });
                }
            }
        }
        Ok(())
    }

    async fn root(&mut self, id: RootId) -> Result<Option<Lack>> {
        let name = Name::root(id);
        if let Some(known) = self.known(name) {
            return Ok(known);
        }
        let place = self.meta.lookup(&[name])?.into_iter().next().flatten();
        let lack = match self.read(name, place, Root::decode).await? {
            Err(lack) => Some(lack),
            Ok(Root { top: None, .. }) => None,
            Ok(root @ Root { top: Some(top), .. }) => {
                let top_name = Self::name_at(top, root.height());
                let place = self.meta.lookup(&[top_name])?.into_iter().next().flatten();
                self.node(top, root.height(), place).await?
            }
        };
        Ok(self.note(name, lack))
    }

    const fn name_at(id: NodeId, level: u8) -> Name {
        match level {
            0 => Name::leaf(id),
            _ => Name::inner(id),
        }
    }

    /// A node of a level, 0 for leaves, and all below it. Trees have few levels.
    fn node(
        &mut self,
        id: NodeId,
        level: u8,
        place: Option<Location>,
    ) -> BoxFuture<'_, Result<Option<Lack>>> {
        Box::pin(async move {
            let name = Self::name_at(id, level);
            if let Some(known) = self.known(name) {
                return Ok(known);
            }
            let lack = match level {
                0 => match self.read(name, place, Leaf::decode).await? {
                    Err(lack) => Some(lack),
                    Ok(leaf) => self.chunks_of(&leaf)?,
                },
                _ => match self.read(name, place, InnerNode::decode).await? {
                    Err(lack) => Some(lack),
                    Ok(inner) if inner.level() != level => {
                        let found = inner.level();
                        let why = format!("it belongs at level {level}, and is of level {found}");
                        Some(Lack::of_node(name, why))
                    }
                    Ok(inner) => self.children_of(&inner, level).await?,
                },
            };
            Ok(self.note(name, lack))
        })
    }

    async fn children_of(&mut self, inner: &InnerNode, level: u8) -> Result<Option<Lack>> {
        let below = level - 1;
        let ids: Vec<_> = inner.children().iter().map(|(_, id)| *id).collect();
        let names: Vec<_> = ids.iter().map(|id| Self::name_at(*id, below)).collect();
        let mut children: Vec<_> = ids.into_iter().zip(self.meta.lookup(&names)?).collect();
        // In the order in which a disk reads them best.
        children.sort_by_key(|(_, place)| place.map(|place| (place.pack, place.offset_bytes)));
        let mut lack = None;
        for (id, place) in children {
            lack = Lack::and(lack, self.node(id, below, place).await?);
        }
        Ok(lack)
    }

    fn chunks_of(&self, leaf: &Leaf) -> Result<Option<Lack>> {
        let blocks: HashMap<_, _> = leaf
            .entries()
            .iter()
            .map(|entry| (Name::chunk(entry.chunk), entry.blocks))
            .collect();
        let names: Vec<_> = blocks.keys().copied().collect();
        let places = self.meta.lookup(&names)?;
        let is_there = |name: &Name, place: Option<Location>| {
            let expected = blocks
                .get(name)
                .map(|blocks| *blocks as usize * BLOCK_BYTES);
            place.map(|place| place.payload.plain_bytes as usize) == expected
        };
        let missing = names.iter().zip(places);
        let missing = missing.filter(|(name, place)| !is_there(name, *place));
        let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
        let example = missing.iter().min();
        Ok(example.map(|example| Lack::of_chunks(missing.len() as u64, *example)))
    }

    fn known(&self, name: Name) -> Option<Option<Lack>> {
        if self.whole.contains(&name) {
            return Some(None);
        }
        self.lacking.get(&name).cloned().map(Some)
    }

    fn note(&mut self, name: Name, lack: Option<Lack>) -> Option<Lack> {
        match &lack {
            None => drop(self.whole.insert(name)),
            Some(lack) => drop(self.lacking.insert(name, lack.clone())),
        }
        if self.said.elapsed() > PROGRESS_PAUSE {
            self.said = Instant::now();
            let (nodes, lacking) = (self.whole.len() + self.lacking.len(), self.lacking.len());
            tracing::info!(
                nodes,
                lacking,
                "checking that snapshots and volumes are complete"
            );
        }
        lack
    }

    async fn read<T>(
        &self,
        name: Name,
        place: Option<Location>,
        decode: fn(&[u8]) -> Result<T, TreeError>,
    ) -> Result<Result<T, Lack>> {
        let read = read_node(self.packs, name, place, decode).await?;
        Ok(read.map_err(|why| Lack::of_node(name, why)))
    }
}

/// A node from its pack, or the reason why it cannot be read.
pub(super) async fn read_node<T>(
    packs: &PackReader,
    name: Name,
    place: Option<Location>,
    decode: fn(&[u8]) -> Result<T, TreeError>,
) -> Result<Result<T, String>> {
    let Some(place) = place else {
        return Ok(Err(IN_NO_PACK.to_owned()));
    };
    let record = packs.read_record(&place, name).await;
    let record = match record.map_err(Error::from) {
        Ok(record) => record,
        Err(Error::Damaged(damage)) => return Ok(Err(damage.to_string())),
        Err(error) => return Err(error),
    };
    let found = Name::of(name.kind(), record.payload());
    let decoded = match decode(record.payload()) {
        Ok(decoded) if found == name => return Ok(Ok(decoded)),
        Ok(_) => format!("its bytes have id {found}"),
        Err(why) => why.to_string(),
    };
    let at = format!("pack {} at offset {}", place.pack, place.offset_bytes);
    Ok(Err(format!("{at}: {decoded}")))
}
