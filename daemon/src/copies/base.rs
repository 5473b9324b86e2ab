//! An ancestor of the wanted snapshot that is here: leaves that both have are taken over unread.
//!
//! It only saves work. If anything is wrong with it, the copy is begun again without.

use std::sync::Arc;

use varve_content::{
    NodeId,
    tree::{InnerNode, Leaf, NodeSource, Root, WalkError},
};
use varve_store::{Error, RootPin, SnapshotKey, SnapshotReader, SnapshotRecord, Store};

use super::source::CopyError;

/// A completed snapshot of this store that the wanted one descends from.
#[derive(Debug, Clone)]
pub(super) struct Base {
    store: Store,
    reader: SnapshotReader,
    pub(super) data_blocks: u64,
}

impl Base {
    pub(super) async fn of(store: &Store, record: &SnapshotRecord) -> Result<Self, Error> {
        Ok(Self {
            store: store.clone(),
            reader: store.open_snapshot(&SnapshotKey::Id(record.id)).await?,
            data_blocks: record.completed()?.data_blocks(),
        })
    }

    pub(super) fn root(&self) -> &Root {
        self.reader.root()
    }

    /// Keeps its content in the store.
    pub(super) fn pin(&self) -> &RootPin {
        self.reader.pin()
    }

    /// Blocks of data in some of its leaves.
    pub(super) async fn blocks_of(&self, leaves: &[NodeId]) -> Result<u64, CopyError> {
        let mut blocks = 0;
        for id in leaves {
            let leaf = self.leaf(*id).await.map_err(CopyError::Base)?;
            blocks += u64::from(leaf.data_blocks());
        }
        Ok(blocks)
    }
}

fn absent(id: NodeId) -> Error {
    Error::NotFound {
        what: "node",
        name: id.to_string(),
    }
}

/// What an error of a walk through the base means to a copy.
pub(super) fn walked(error: WalkError<Error>) -> CopyError {
    CopyError::Base(match error {
        WalkError::Source(error) => error,
        other => Error::Invalid(other.to_string()),
    })
}

impl NodeSource for Base {
    type Error = Error;

    async fn leaf(&self, id: NodeId) -> Result<Arc<Leaf>, Error> {
        let leaf = self.store.known_leaf(id).await?;
        leaf.ok_or_else(|| absent(id))
    }

    async fn inner(&self, id: NodeId) -> Result<Arc<InnerNode>, Error> {
        let inner = self.store.known_inner(id).await?;
        inner.ok_or_else(|| absent(id))
    }
}
