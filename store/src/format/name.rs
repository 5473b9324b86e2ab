//! Names of records.

use std::fmt;

use varve_content::{ChunkId, NodeId, RootId};

use super::pack::{FooterEntry, RecordHeader, RecordKind};

/// The name of a record in packs, in the index and in caches: its kind, and the id of the chunk or
/// node that it holds.
///
/// Trees, clients and other stores know ids. An id becomes a name here and nowhere else.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    kind: RecordKind,
    bytes: [u8; 32],
}

// It is a key in maps of hundreds of thousands.
const _: () = assert!(size_of::<Name>() == 33);

impl Name {
    /// The name with these bytes, as read from a pack or from the index.
    #[must_use]
    pub const fn new(kind: RecordKind, bytes: [u8; 32]) -> Self {
        Self { kind, bytes }
    }

    /// The name of a chunk.
    #[must_use]
    pub const fn chunk(id: ChunkId) -> Self {
        Self::new(RecordKind::Chunk, *id.as_bytes())
    }

    /// The name of a leaf.
    #[must_use]
    pub const fn leaf(id: NodeId) -> Self {
        Self::new(RecordKind::Leaf, *id.as_bytes())
    }

    /// The name of an inner node.
    #[must_use]
    pub const fn inner(id: NodeId) -> Self {
        Self::new(RecordKind::Inner, *id.as_bytes())
    }

    /// The name of a root record.
    #[must_use]
    pub const fn root(id: RootId) -> Self {
        Self::new(RecordKind::Root, *id.as_bytes())
    }

    /// The name of a record with these unpacked bytes.
    #[must_use]
    pub fn of(kind: RecordKind, plain: &[u8]) -> Self {
        match kind {
            RecordKind::Chunk => Self::chunk(ChunkId::of(plain)),
            RecordKind::Leaf => Self::leaf(NodeId::of_leaf(plain)),
            RecordKind::Inner => Self::inner(NodeId::of_inner(plain)),
            RecordKind::Root => Self::root(RootId::of(plain)),
        }
    }

    /// The kind of the record.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        self.kind
    }

    /// The bytes, as packs and index keep them. They keep the kind beside them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RecordHeader {
    /// The record's name.
    #[must_use]
    pub const fn name(&self) -> Name {
        Name::new(self.payload.kind, self.id)
    }
}

impl FooterEntry {
    /// The record's name.
    #[must_use]
    pub const fn name(&self) -> Name {
        Name::new(self.payload.kind, self.id)
    }
}
