//! Nodes that are kept, with the places of their children.

use std::sync::Arc;

use varve_content::{
    NodeId,
    block::BLOCK_BYTES,
    tree::{InnerNode, Leaf, LeafEntry},
};

use super::hints::{HINT_BYTES, Hints};
#[cfg(test)]
use crate::format::Location;
use crate::format::{Name, PackId, PackKind};

/// A child of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) name: Name,
    /// Its plain length, if the node tells it.
    pub(super) plain_bytes: Option<u32>,
}

/// A leaf, and the places of its chunks, as far as they are known.
#[derive(Debug)]
pub(crate) struct LocatedLeaf {
    leaf: Arc<Leaf>,
    pub(super) hints: Hints,
}

/// The length of an entry's chunk.
pub(crate) const fn plain_bytes(entry: &LeafEntry) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "4096")]
    const BLOCK: u32 = BLOCK_BYTES as u32;
    entry.blocks * BLOCK
}

impl LocatedLeaf {
    pub(crate) fn new(leaf: Leaf) -> Self {
        Self {
            hints: Hints::new(leaf.entries().len()),
            leaf: Arc::new(leaf),
        }
    }

    pub(crate) const fn leaf(&self) -> &Arc<Leaf> {
        &self.leaf
    }

    /// Bytes that it takes in memory, for the cache's bound.
    pub(super) fn memory_bytes(&self) -> usize {
        self.leaf.entries().len() * (size_of::<LeafEntry>() + HINT_BYTES)
    }

    pub(super) fn child(&self, position: usize) -> Option<Child> {
        let entry = self.leaf.entries().get(position)?;
        Some(Child {
            name: Name::chunk(entry.chunk),
            plain_bytes: Some(plain_bytes(entry)),
        })
    }

    /// The known places of the entries at these positions.
    #[cfg(test)]
    pub(crate) fn known(&self, positions: &[usize]) -> Vec<Option<Location>> {
        let hints = positions.iter().zip(self.hints.at(positions));
        let places = hints.map(|(at, hint)| {
            let child = self.child(*at)?;
            hint?.place(child.name.kind(), child.plain_bytes)
        });
        places.collect()
    }

    /// Forgets the places in a pack that is gone.
    pub(super) fn forget(&self, pack: PackId) {
        if pack.kind == PackKind::Chunks {
            self.hints.forget(pack.number);
        }
    }
}

/// An inner node, and the places of its children, as far as they are known.
#[derive(Debug)]
pub(crate) struct LocatedInner {
    inner: Arc<InnerNode>,
    pub(super) hints: Hints,
}

impl LocatedInner {
    pub(super) fn new(inner: InnerNode) -> Self {
        Self {
            hints: Hints::new(inner.children().len()),
            inner: Arc::new(inner),
        }
    }

    pub(super) const fn inner(&self) -> &Arc<InnerNode> {
        &self.inner
    }

    /// Bytes that it takes in memory, for the cache's bound.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(self.inner.children()) + self.inner.children().len() * HINT_BYTES
    }

    pub(super) fn position(&self, id: NodeId) -> Option<usize> {
        let mut children = self.inner.children().iter();
        children.position(|(_, child)| *child == id)
    }

    pub(super) fn child(&self, position: usize) -> Option<Child> {
        let (_, id) = self.inner.children().get(position)?;
        let name = match self.inner.level() {
            1 => Name::leaf(*id),
            _ => Name::inner(*id),
        };
        Some(Child {
            name,
            plain_bytes: None,
        })
    }
}
