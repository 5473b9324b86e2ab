//! The Merkle tree of a volume's content.
//!
//! ```text
//! Root      size, chunker version, top node                   RootId: the whole content
//!   InnerNode   up to 256 children, absent where all is hole      1 to 3 levels, by the size alone
//!     Leaf  one 8 MiB segment: its chunks, holes implied      absent if the segment is all hole
//! ```
//!
//! Invariants:
//!
//! * A node has one encoding, and decoding refuses any other: equal content has equal ids.
//! * Ids are BLAKE3 in derive-key mode (section 6.1 of its specification), each kind of node under
//!   a context of its own: a node never passes for a chunk, nor a leaf for an inner node.
//! * No node is empty. Everything absent is a hole.
//! * A decoded node satisfies its own invariants. [`LeafWalk`], [`TreeDiff`] and [`find_leaf`]
//!   check how nodes fit together (levels, the volume's end).

mod build;
mod compare;
mod diff;
mod error;
mod geometry;
mod inner;
mod leaf;
mod node_id;
mod root;
#[cfg(test)]
mod tests;
mod update;
mod walk;

pub use build::TreeBuilder;
pub use compare::{CompareError, ComparedLeaves, LeafComparison};
pub use diff::{DiffKind, LeafDiff, SegmentDiff, TreeDiff, diff_leaves};
pub use error::{TreeError, WalkError};
pub use geometry::{INNER_CHILDREN, MAX_HEIGHT, NodePlace, height};
pub use inner::{INNER_MAX_BYTES, InnerNode};
pub use leaf::{LEAF_MAX_BYTES, Leaf, LeafEntry};
pub use node_id::{NodeId, RootId};
pub use root::{ROOT_BYTES, Root};
pub use update::{TreeUpdate, UpdateError};
pub use walk::{LeafWalk, Node, NodeSource, find_leaf, find_leaf_and_parent, find_node};
