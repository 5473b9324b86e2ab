//! Where chunks and nodes are: the contract of an index.

use std::{fmt, ops::ControlFlow};

use varve_content::{ChunkId, NodeId, RootId};

use super::PackState;
use crate::{
    Result,
    error::Subject,
    format::{Location, PackId, pack::RecordKind},
};

/// Id of a record in a pack of nodes.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKey {
    /// A leaf.
    Leaf(NodeId),
    /// An inner node.
    Inner(NodeId),
    /// A root record.
    Root(RootId),
}

impl NodeKey {
    /// The key of a record; `None` for a chunk.
    #[must_use]
    pub const fn new(kind: RecordKind, id: [u8; 32]) -> Option<Self> {
        match kind {
            RecordKind::Chunk => None,
            RecordKind::Leaf => Some(Self::Leaf(NodeId::from_bytes(id))),
            RecordKind::Inner => Some(Self::Inner(NodeId::from_bytes(id))),
            RecordKind::Root => Some(Self::Root(RootId::from_bytes(id))),
        }
    }

    /// What it is the id of.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        match self {
            Self::Leaf(_) => RecordKind::Leaf,
            Self::Inner(_) => RecordKind::Inner,
            Self::Root(_) => RecordKind::Root,
        }
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        match self {
            Self::Leaf(id) | Self::Inner(id) => id.as_bytes(),
            Self::Root(id) => id.as_bytes(),
        }
    }
}

impl From<NodeKey> for Subject {
    fn from(key: NodeKey) -> Self {
        Self::Record {
            kind: key.kind(),
            id: *key.as_bytes(),
        }
    }
}

impl fmt::Display for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf(id) | Self::Inner(id) => write!(f, "{} {id}", self.kind()),
            Self::Root(id) => write!(f, "{} {id}", self.kind()),
        }
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where things are.
///
/// A location is a hint, and the index is the authority: a row that was read may be moved or
/// removed before it is used, and who finds nothing where it points asks again.
pub trait Index {
    /// Where chunks are, in the order of `ids`, which may repeat.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>>;

    /// Where nodes and roots are, in the order of `keys`, which may repeat.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn nodes(&self, keys: &[NodeKey]) -> Result<Vec<Option<Location>>>;

    /// How far a pack is indexed; `None` for one that the index has not heard of.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>>;

    /// The same of all packs, by number.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn pack_states(&self) -> Result<Vec<PackState>>;

    /// The highest number that a pack ever had in here, whether or not it is still there; 0 before
    /// the first. No number is given twice, or what is cached of one pack would be taken for
    /// another's.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn last_pack_number(&self) -> Result<u64>;

    /// Shows `look` the index as it is at one moment. Others go on meanwhile, writes included.
    ///
    /// # Errors
    ///
    /// Those of `look`, and [`Error::Shortage`](crate::Error::Shortage) when the index has to be
    /// opened again meanwhile: what was seen until then is right, and all of it has to be looked at
    /// once more.
    fn view(&self, look: &mut dyn FnMut(&dyn IndexView) -> Result<()>) -> Result<()>;
}

/// An index at one moment.
pub trait IndexView {
    /// How far packs were indexed at that moment, by number.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn pack_states(&self) -> Result<Vec<PackState>>;

    /// Gives `row` all rows of a space, ascending by id, until it breaks off.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn scan(
        &self,
        space: Space,
        row: &mut dyn FnMut([u8; 32], Location) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// What rows are of.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Space {
    /// Chunks.
    Chunks,
    /// Nodes and roots.
    Nodes,
}
