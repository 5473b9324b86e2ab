//! Copies between stores: what another store is given, and what one that copies asks of itself.
//!
//! Content is given by its ids, and taken in by an [`Ingest`](crate::Ingest), which checks it like any upload.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::future::try_join_all;
use varve_content::{
    ChunkId, NodeId, RootId,
    tree::{InnerNode, Leaf},
};

use crate::{
    Error, ListQuery, RemoteRecord, Result, SnapshotRecord, Store,
    engine::{Priority, StoredChunk},
    format::{catalog_log::Record, names},
    limits,
    meta::{self, CopyId, CopyRecord, Meta, Named as _, NodeKey},
};

/// A node of a tree as it is given to another store.
#[derive(Debug, Clone)]
pub struct ExportedNode {
    /// The one encoding that has its id.
    pub encoded: Bytes,
    /// Of a leaf, for each of its entries: the bytes that its chunk's payload takes as it is stored. 0 for one that the store has lost.
    pub payload_bytes: Vec<u32>,
}

impl Store {
    /// Nodes, for another store.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is no such node.
    pub async fn export_nodes(&self, keys: Vec<NodeKey>) -> Result<Vec<ExportedNode>> {
        self.check_known(&keys).await?;
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
                (located.leaf().encode(), located.payload_bytes())
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
        self.check_known(&[NodeKey::Leaf(leaf)]).await?;
        let located = self.engine.located_leaf(leaf).await?;
        let wanted = entries
            .iter()
            .map(|position| {
                located.chunk_at(*position).ok_or_else(|| {
                    Error::Invalid(format!(
                        "leaf {leaf} has {} entries, entry {position} was asked for",
                        located.leaf().entries().len()
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        self.engine.stored_chunks(&located, &wanted).await
    }

    /// Positions of the chunks that the store lacks, ascending.
    pub async fn missing_chunks(&self, ids: &[ChunkId]) -> Result<Vec<u32>> {
        self.engine.missing_chunks(ids).await
    }

    /// A leaf, if the store has it. Not all of its chunks need be there.
    pub async fn known_leaf(&self, id: NodeId) -> Result<Option<Arc<Leaf>>> {
        match self.is_known(NodeKey::Leaf(id)).await? {
            true => Ok(Some(self.engine.plain_leaf(id).await?)),
            false => Ok(None),
        }
    }

    /// An inner node, if the store has it. Not all that is below it need be there.
    pub async fn known_inner(&self, id: NodeId) -> Result<Option<Arc<InnerNode>>> {
        match self.is_known(NodeKey::Inner(id)).await? {
            true => Ok(Some(self.engine.inner_node(id).await?)),
            false => Ok(None),
        }
    }

    async fn is_known(&self, key: NodeKey) -> Result<bool> {
        let engine = &self.engine;
        let places = engine
            .meta(Priority::Read, move |meta| meta.nodes(&[key]))
            .await?;
        let mut places = places.into_iter().flatten();
        let lost = engine.lost.read();
        Ok(places.any(|place| !lost.hold(&place)))
    }

    async fn check_known(&self, keys: &[NodeKey]) -> Result<()> {
        let wanted = keys.to_vec();
        let known = self
            .engine()
            .meta(Priority::Write, move |meta| meta.nodes(&wanted))
            .await?;
        let mut places = keys.iter().zip(&known);
        match places.find(|(_, place)| place.is_none()) {
            None => Ok(()),
            Some((key, _)) => Err(Error::NotFound {
                what: "node",
                name: key.to_string(),
            }),
        }
    }

    /// Whether all that a completed snapshot names can be taken to be in the store. Not if index and catalog were ever made again: then the catalog
    /// knows of snapshots, and packs may have been lost. Nor if something was found lost since the last start.
    pub fn vouches_for_snapshots(&self) -> bool {
        self.engine.lost.read().is_empty()
            && !names::rebuilt(&self.engine.options.data_dir).exists()
    }

    /// A completed snapshot of that content, if there is one.
    pub async fn snapshot_of(&self, root: RootId) -> Result<Option<SnapshotRecord>> {
        let mut query = ListQuery {
            limit: limits::PAGE_MAX,
            ..ListQuery::default()
        };
        loop {
            let page = self.list_snapshots(query.clone()).await?;
            let Some(last) = page.last() else {
                return Ok(None);
            };
            query.after_name = Some(last.name.clone());
            if let Some(found) = page.into_iter().find(|record| record.root() == Some(root)) {
                return Ok(Some(found));
            }
        }
    }

    /// Writes down what is known of a copy, durably.
    pub async fn put_copy(&self, record: CopyRecord) -> Result<()> {
        let put = move |_: &dyn Meta| Ok((vec![Record::PutCopy(record)], ()));
        self.engine.commit.change(put).await
    }

    /// Forgets copies.
    pub async fn forget_copies(&self, ids: Vec<CopyId>) -> Result<()> {
        let delete = move |_: &dyn Meta| {
            let changes = ids.into_iter().map(Record::DeleteCopy);
            Ok((changes.collect(), ()))
        };
        self.engine.commit.change(delete).await
    }

    /// Gives another daemon a name.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if a remote has that name; [`Error::Invalid`], with what a name may be.
    pub async fn add_remote(&self, record: RemoteRecord) -> Result<()> {
        meta::check_name("remote", &record.name)?;
        let add = move |meta: &dyn Meta| {
            let remotes = meta.remotes()?;
            if let Some(other) = remotes.iter().find(|other| other.name == record.name) {
                return Err(Error::AlreadyExists {
                    what: "remote",
                    name: record.name,
                    id: other.endpoint.clone(),
                });
            }
            if remotes.len() >= limits::REMOTES_MAX {
                return Err(Error::TooMany {
                    what: "remotes",
                    most: limits::REMOTES_MAX as u64,
                });
            }
            Ok((vec![Record::PutRemote(record)], ()))
        };
        self.engine.commit.change(add).await
    }

    /// Forgets a remote.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remove_remote(&self, name: String) -> Result<()> {
        let remove = move |meta: &dyn Meta| {
            named(meta.remotes()?, &name)?;
            Ok((vec![Record::DeleteRemote(name)], ()))
        };
        self.engine.commit.change(remove).await
    }

    /// All remotes, by name.
    pub async fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        let remotes = self.engine.meta(Priority::Manage, |meta| meta.remotes());
        let mut remotes = remotes.await?;
        remotes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(remotes)
    }

    /// The remote of that name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remote(&self, name: &str) -> Result<RemoteRecord> {
        named(self.remotes().await?, name)
    }

    /// All copies that are written down, in the order in which they were begun.
    pub async fn copies(&self) -> Result<Vec<CopyRecord>> {
        let copies = self.engine.meta(Priority::Manage, |meta| meta.copies());
        let mut copies = copies.await?;
        copies.sort_unstable_by_key(|record| (record.created_at_ns, record.id));
        Ok(copies)
    }
}

fn named(remotes: Vec<RemoteRecord>, name: &str) -> Result<RemoteRecord> {
    let mut remotes = remotes.into_iter();
    remotes
        .find(|remote| remote.name == name)
        .ok_or_else(|| Error::NotFound {
            what: "remote",
            // One that is longer is nobody's.
            name: name.chars().take(limits::NAME_CHARS_MAX).collect(),
        })
}

/// That a snapshot may have that name.
///
/// # Errors
///
/// [`Error::Invalid`], with what a name may be.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    meta::check_name(SnapshotRecord::WHAT, name)
}

/// That a snapshot may have these tags.
///
/// # Errors
///
/// [`Error::Invalid`], with what tags may be.
pub fn check_snapshot_tags(tags: &BTreeMap<String, String>) -> Result<()> {
    meta::check_tags(SnapshotRecord::WHAT, tags)
}
