//! Nodes and chunks by their ids: for export to another store, and for a copy that looks up its own
//! store.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use varve_content::{
    ChunkId, NodeId, RootId,
    tree::{InnerNode, Leaf},
};

use super::Store;
use crate::{
    Error, Result,
    engine::{Priority, StoredChunk},
    format::Name,
    meta::Meta,
};

/// The id and kind of a node that another store asks for. Chunks have no such key.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum NodeKey {
    /// A leaf.
    Leaf(NodeId),
    /// An inner node.
    Inner(NodeId),
    /// A root record.
    Root(RootId),
}

impl From<NodeKey> for Name {
    fn from(key: NodeKey) -> Self {
        match key {
            NodeKey::Leaf(id) => Self::leaf(id),
            NodeKey::Inner(id) => Self::inner(id),
            NodeKey::Root(id) => Self::root(id),
        }
    }
}

impl NodeKey {
    /// The error for a node that is not there, or not for the caller.
    #[must_use]
    pub fn not_found(self) -> Error {
        not_found(self.into())
    }
}

fn not_found(name: Name) -> Error {
    Error::NotFound {
        what: "node",
        name: name.to_string(),
    }
}

/// A node of a tree as it is given to another store.
#[derive(Debug, Clone)]
pub struct ExportedNode {
    /// The canonical encoding, which has its id.
    pub encoded: Bytes,
    /// For each entry of a leaf: the bytes of its chunk's payload as it is stored. 0 for a chunk
    /// that the store has lost.
    pub payload_bytes: Vec<u32>,
}

impl Store {
    /// Nodes, for another store.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such node.
    pub async fn export_nodes(&self, keys: Vec<NodeKey>) -> Result<Vec<ExportedNode>> {
        self.check_known(keys.iter().copied().map(Name::from).collect())
            .await?;
        let nodes = keys.into_iter().map(|key| self.export_node(key));
        try_join_all(nodes).await
    }

    async fn export_node(&self, key: NodeKey) -> Result<ExportedNode> {
        let engine = &self.engine;
        let (encoded, payload_bytes) = match key {
            NodeKey::Root(id) => (engine.root(id).await?.encode().to_vec(), Vec::new()),
            NodeKey::Inner(id) => (engine.inner_node(id).await?.encode(), Vec::new()),
            NodeKey::Leaf(id) => {
                let located = engine.located_leaf(id).await?;
                let places = engine.all_places(&located).await?.into_iter();
                let payload_bytes =
                    places.map(|place| place.map_or(0, |place| place.payload.stored_bytes));
                (located.leaf().encode(), payload_bytes.collect())
            }
        };
        Ok(ExportedNode {
            encoded: encoded.into(),
            payload_bytes,
        })
    }

    /// Chunks as they are stored, by their places in a leaf, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such leaf, [`Error::Invalid`] if it has no such entry.
    pub async fn export_chunks(&self, leaf: NodeId, entries: &[u32]) -> Result<Vec<StoredChunk>> {
        self.check_known(vec![Name::leaf(leaf)]).await?;
        let located = self.engine.located_leaf(leaf).await?;
        let positions: Vec<_> = entries.iter().map(|position| *position as usize).collect();
        let all = located.leaf().entries();
        let chunks = positions.iter().map(|position| {
            let entry = all.get(*position).ok_or_else(|| {
                Error::Invalid(format!(
                    "leaf {leaf} has {} entries, entry {position} was asked for",
                    all.len()
                ))
            })?;
            Ok(entry.chunk)
        });
        let chunks = chunks.collect::<Result<Vec<_>>>()?.into_iter();
        let places = self.engine.places(&located, &positions).await?;
        let wanted: Vec<_> = chunks.zip(places).collect();
        self.engine.stored_chunks(&located, &wanted).await
    }

    /// Returns the positions of the chunks that the store lacks, ascending. The store need not keep
    /// the others: an [`Ingest`](crate::Ingest) asks for itself.
    ///
    /// # Errors
    ///
    /// Errors of reading the index.
    pub async fn missing_chunks(&self, ids: &[ChunkId]) -> Result<Vec<u32>> {
        self.engine.missing_chunks(None, ids).await
    }

    /// Returns a leaf, if the store has it. Some of its chunks may be missing.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if it is; errors of reading.
    pub async fn known_leaf(&self, id: NodeId) -> Result<Option<Arc<Leaf>>> {
        self.if_known(Name::leaf(id), self.engine.plain_leaf(id))
            .await
    }

    /// Returns an inner node, if the store has it. Some of the nodes below may be missing.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if it is; errors of reading.
    pub async fn known_inner(&self, id: NodeId) -> Result<Option<Arc<InnerNode>>> {
        self.if_known(Name::inner(id), self.engine.inner_node(id))
            .await
    }

    /// The result of reading a node, if the store has it.
    async fn if_known<T>(
        &self,
        name: Name,
        read: impl Future<Output = Result<T>>,
    ) -> Result<Option<T>> {
        if !self.is_known(name).await? {
            return Ok(None);
        }
        match read.await {
            // Nobody needed it, and a collection has removed it since.
            Err(Error::Damaged(_)) if self.engine.place(name).await?.is_none() => Ok(None),
            read => read.map(Some),
        }
    }

    async fn is_known(&self, name: Name) -> Result<bool> {
        let place = self.engine.place(name).await?;
        let lost = self.engine.lost.read();
        Ok(place.is_some_and(|place| !lost.hold(&place)))
    }

    async fn check_known(&self, names: Vec<Name>) -> Result<()> {
        let find_absent = move |meta: &dyn Meta| {
            let places = meta.lookup(&names)?;
            let mut places = names.into_iter().zip(places);
            Ok(places.find(|(_, place)| place.is_none()))
        };
        match self.engine().meta(Priority::Write, find_absent).await? {
            None => Ok(()),
            Some((name, _)) => Err(not_found(name)),
        }
    }
}
