//! The index (where chunks and nodes are) and the catalog (which snapshots and volumes there are).
//!
//! Both are derived: packs and catalog log are the truth, and recovery brings in what they have more. What must
//! hold of every [`Meta`]:
//!
//! - A [`Batch`] is applied as a whole or not at all, and once it is applied everybody sees it.
//! - After `apply(.., sync = true)` has returned, that batch and all before it survive a power cut. Without `sync` a power
//!   cut may take the latest batches, but never one without all that came after it.
//! - [`Totals`] are the exact sums over what is there: putting the same chunk twice does not count it twice.
//! - A name belongs to one snapshot, and to one volume.
//! - After a write that failed for want of something ([`Error::Full`](crate::Error::Full), [`Error::Shortage`](crate::Error::Shortage))
//!   others fail in the same way until there is enough of it again. Whether that batch is in is not known before; it can be applied once
//!   more, and is then in once. After any other failed write nothing more is written ([`Error::Poisoned`](crate::Error::Poisoned)) until
//!   the index is opened again. Reads go on.
//!
//! [`RocksMeta`] is what stores use. [`MemoryMeta`] is the model that it is tested against.

mod batch;
mod memory;
mod records;
mod rocks;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use varve_content::{ChunkId, NodeId, RootId};

pub(crate) use self::records::Named;
pub use self::{
    batch::Batch,
    memory::MemoryMeta,
    records::{check_name, check_tags, now_ns},
    rocks::RocksMeta,
};
pub use crate::format::{
    CopyId, CopyOutcome, CopyRecord, PackState, PendingSnapshot, RemoteRecord, SnapshotContent,
    SnapshotId, SnapshotOrigin, SnapshotRecord, SnapshotState, Totals, VolumeId, VolumeRecord,
};
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
pub trait Index {
    /// Where chunks are, in the order of `ids`, which may repeat.
    fn chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>>;

    /// Where nodes and roots are, in the order of `keys`, which may repeat.
    fn nodes(&self, keys: &[NodeKey]) -> Result<Vec<Option<Location>>>;

    /// How far a pack is indexed; `None` for one that the index has not heard of.
    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>>;

    /// The same of all packs, by number.
    fn pack_states(&self) -> Result<Vec<PackState>>;
}

/// Which snapshots, volumes, copies and remotes there are.
pub trait Catalog {
    /// The snapshot of that id.
    fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>>;

    /// The snapshot of that name.
    fn snapshot_by_name(&self, name: &str) -> Result<Option<SnapshotRecord>>;

    /// Snapshots by name, ascending by bytes: at most `limit`, with names behind `after_name` that start with `prefix`.
    fn snapshots(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>>;

    /// Snapshots by name that have all of these tags, of which there is one at least, with names from `from` on that start with
    /// `prefix`. What is looked at is bounded by `steps`; where names are left to look at, the second value is where to go on.
    fn tagged_snapshots(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<SnapshotRecord>, Option<String>)>;

    /// The volume of that id.
    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>>;

    /// The volume of that name.
    fn volume_by_name(&self, name: &str) -> Result<Option<VolumeRecord>>;

    /// Volumes by name, as [`snapshots`](Self::snapshots) lists them.
    fn volumes(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<VolumeRecord>>;

    /// Volumes by their tags, as [`tagged_snapshots`](Self::tagged_snapshots) lists snapshots.
    fn tagged_volumes(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<VolumeRecord>, Option<String>)>;

    /// All copies, in no order.
    fn copies(&self) -> Result<Vec<CopyRecord>>;

    /// All remotes, in no order.
    fn remotes(&self) -> Result<Vec<RemoteRecord>>;

    /// Number of the last catalog log record that was applied; 0 before the first.
    fn catalog_sequence(&self) -> Result<u64>;
}

/// Index and catalog, which change together. Methods may block: they read files.
pub trait Meta: Index + Catalog + fmt::Debug + Send + Sync {
    /// Makes all changes of `batch`, or none.
    ///
    /// Catalog records have to follow the last one applied ([`Catalog::catalog_sequence`]) without a gap.
    fn apply(&self, batch: Batch, sync: bool) -> Result<()>;

    /// What there is, all together.
    fn totals(&self) -> Result<Totals>;

    /// Ends what a write has left behind that failed for want of something (space, descriptors), if there is enough of it
    /// again. If not: the error that the next write would get.
    fn writes_again(&self) -> Result<()> {
        Ok(())
    }

    /// Whether writes can go on: no write has failed since it was opened.
    fn is_healthy(&self) -> bool;
}
