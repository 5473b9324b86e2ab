//! Leaves with the places of their chunks.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use varve_content::{
    ChunkId,
    tree::{Leaf, LeafEntry},
};

use crate::format::Location;

/// A leaf, and where its chunks are: found once, and then as long as the leaf stays in the cache.
#[derive(Debug)]
pub(crate) struct LocatedLeaf {
    pub(crate) leaf: Arc<Leaf>,
    /// One for each entry. `None`: the index does not know the chunk.
    pub(crate) places: Vec<Option<Location>>,
    /// Whether the index knows all of them, and none was lost from its pack.
    pub(super) has_all_places: bool,
    /// Whether one of the chunks was found in another pack since.
    has_moved: AtomicBool,
}

impl LocatedLeaf {
    pub(super) fn new(leaf: Leaf, places: Vec<Option<Location>>) -> Self {
        Self {
            has_all_places: places.iter().all(Option::is_some),
            leaf: Arc::new(leaf),
            places,
            has_moved: AtomicBool::new(false),
        }
    }

    /// Says that its places are not right any more.
    pub(super) fn moved(&self) {
        self.has_moved.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_moved(&self) -> bool {
        self.has_moved.load(Ordering::Relaxed)
    }

    pub(crate) fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// What it takes in memory, for the cache's bound.
    pub(super) fn memory_bytes(&self) -> usize {
        self.places.len() * (size_of::<LeafEntry>() + size_of::<Option<Location>>())
    }

    /// What the payload of each entry's chunk takes as it is stored; 0 where the index does not
    /// know it.
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
