//! The base of a copy: an ancestor of the wanted snapshot in this store. Leaves that both have are
//! taken over unread.
//!
//! A base only saves work. If anything is wrong with it, the copy begins again without it.

use std::{collections::HashSet, sync::Arc};

use varve_content::{
    ChunkId, NodeId,
    tree::{InnerNode, Leaf, NodePlace, NodeSource, Root, WalkError},
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

    /// Keeps the content of the base in the store.
    pub(super) fn pin(&self) -> &RootPin {
        self.reader.pin()
    }

    /// Number of data blocks in these leaves of the base.
    pub(super) async fn blocks_of(&self, leaves: &[(u32, NodeId)]) -> Result<u64, CopyError> {
        let mut blocks = 0;
        for (_, id) in leaves {
            let leaf = self.leaf(*id).await.map_err(CopyError::Base)?;
            blocks += u64::from(leaf.data_blocks());
        }
        Ok(blocks)
    }

    /// The chunks in these leaves of the base.
    pub(super) async fn chunks_of(
        &self,
        leaves: &[(u32, NodeId)],
    ) -> Result<HashSet<ChunkId>, CopyError> {
        let mut chunks = HashSet::new();
        for (_, id) in leaves {
            let leaf = self.leaf(*id).await.map_err(CopyError::Base)?;
            chunks.extend(leaf.entries().iter().map(|entry| entry.chunk));
        }
        Ok(chunks)
    }

    async fn leaf(&self, id: NodeId) -> Result<Arc<Leaf>, Error> {
        let leaf = self.store.known_leaf(id).await?;
        leaf.ok_or_else(|| absent(id))
    }
}

fn absent(id: NodeId) -> Error {
    Error::NotFound {
        what: "node",
        name: id.to_string(),
    }
}

/// Converts an error of a walk through the base.
pub(super) fn walked(error: WalkError<Error>) -> CopyError {
    CopyError::Base(match error {
        WalkError::Source(error) => error,
        other => Error::Invalid(other.to_string()),
    })
}

impl NodeSource for Base {
    type Error = Error;

    async fn inner(&self, id: NodeId, _: NodePlace) -> Result<Arc<InnerNode>, Error> {
        let inner = self.store.known_inner(id).await?;
        inner.ok_or_else(|| absent(id))
    }
}
