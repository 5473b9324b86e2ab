//! Leaves with the places of their chunks.

use std::{collections::HashSet, sync::Arc};

use varve_content::{
    ChunkId,
    tree::{InnerNode, Leaf, LeafEntry, LeafWalk},
};

use super::{ContentReader, walked};
use crate::{Result, format::Location};

/// A leaf, and where its chunks are: found once, and then as long as the leaf stays in the cache.
#[derive(Debug)]
pub(crate) struct LocatedLeaf {
    pub(super) leaf: Arc<Leaf>,
    /// One for each entry. `None`: the index does not know the chunk.
    pub(super) places: Vec<Option<Location>>,
    /// Whether the index knows all of them, and none was lost from its pack.
    pub(super) has_all_places: bool,
}

impl LocatedLeaf {
    pub(crate) fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// What the payload of each entry's chunk takes as it is stored; 0 where the index does not know it.
    pub(crate) fn payload_bytes(&self) -> Vec<u32> {
        let places = self.places.iter();
        places
            .map(|place| place.map_or(0, |place| place.payload.stored_bytes))
            .collect()
    }

    /// The chunk of an entry, and where it is.
    pub(crate) fn chunk_at(&self, position: u32) -> Option<(ChunkId, Option<Location>)> {
        let position = position as usize;
        let entry = self.leaf.entries().get(position)?;
        Some((entry.chunk, *self.places.get(position)?))
    }
}

/// A decoded node in the cache.
#[derive(Debug, Clone)]
pub(crate) enum CachedNode {
    Leaf(Arc<LocatedLeaf>),
    Inner(Arc<InnerNode>),
}

impl CachedNode {
    /// What it takes in memory, for the cache's bound.
    pub(crate) fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Leaf(leaf) => {
                leaf.places.len() * (size_of::<LeafEntry>() + size_of::<Option<Location>>())
            }
            Self::Inner(inner) => size_of_val(inner.children()),
        };
        bytes as u64 + 128
    }
}

/// 8 MiB of a snapshot that hold data.
#[derive(Debug, Clone)]
pub struct Segment {
    pub(super) index: u32,
    pub(super) located: Arc<LocatedLeaf>,
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
    pub(super) fn distinct(&self) -> Vec<(usize, ChunkId, Option<Location>)> {
        let mut seen = HashSet::with_capacity(self.located.places.len());
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

/// The segments of a snapshot that hold data.
#[derive(Debug)]
pub struct SegmentStream {
    pub(super) walk: LeafWalk,
    pub(super) reader: ContentReader,
}

impl SegmentStream {
    /// The next one.
    pub async fn next(&mut self) -> Result<Option<Segment>> {
        let next = self
            .walk
            .next(&**self.reader.engine())
            .await
            .map_err(|error| self.reader.named(walked(error)))?;
        let Some((index, id)) = next else {
            return Ok(None);
        };
        let located = self
            .reader
            .engine()
            .located_leaf(id)
            .await
            .map_err(|error| self.reader.named(error))?;
        Ok(Some(Segment { index, located }))
    }
}
