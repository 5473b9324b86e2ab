//! The tree of a copied snapshot: nodes come from this store, or else from the source.

use std::{collections::HashMap, sync::Arc};

use futures::future::try_join_all;
use parking_lot::Mutex;
use varve_client::FETCH_NODES_MAX;
use varve_content::{
    NodeId,
    tree::{InnerNode, Leaf, NodePlace, NodeSource},
};
use varve_store::Store;

use super::source::{Connections, CopyError};

/// The nodes of a copied tree, from this store or from the source.
#[derive(Debug)]
pub(super) struct Nodes<'a> {
    /// `None` if all come from the source.
    store: Option<&'a Store>,
    source: &'a Connections,
    /// The snapshot, for requests.
    of: &'a [String],
    /// Children of an inner node that are missing here. They are fetched together, so that a walk
    /// does not wait for each of them.
    ahead: Mutex<HashMap<NodeId, Arc<InnerNode>>>,
}

/// A leaf, and the lengths of its chunks as they are stored at the source.
#[derive(Debug, Clone)]
pub(super) struct SizedLeaf {
    pub(super) id: NodeId,
    pub(super) segment: u32,
    pub(super) leaf: Arc<Leaf>,
    /// Lengths in bytes, one for each entry; plain lengths if the leaf was already here.
    pub(super) payload_bytes: Vec<u32>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(store: Option<&'a Store>, source: &'a Connections, of: &'a [String]) -> Self {
        Self {
            store,
            source,
            of,
            ahead: Mutex::default(),
        }
    }

    /// Returns leaves, at most [`FETCH_NODES_MAX`], with their segments.
    pub(super) async fn leaves(
        &self,
        wanted: &[(u32, NodeId)],
    ) -> Result<Vec<SizedLeaf>, CopyError> {
        let known = wanted.iter().map(|(_, id)| self.known_leaf(*id));
        let known = try_join_all(known).await?;
        let absent: Vec<_> = wanted
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(leaf, _)| *leaf)
            .collect();
        let mut fetched = Vec::new();
        if !absent.is_empty() {
            fetched = self
                .source
                .heard(self.source.client().fetch_leaves(self.of, &absent))
                .await?;
        }
        let mut fetched = fetched.into_iter();
        let leaves = wanted.iter().zip(known).map(|((segment, id), known)| {
            let (leaf, payload_bytes) = match known {
                Some(leaf) => {
                    let plain = leaf.entries().iter().map(|entry| entry.blocks * BLOCK);
                    (Arc::clone(&leaf), plain.collect())
                }
                None => {
                    let fetched = fetched.next()?;
                    (Arc::new(fetched.leaf), fetched.payload_bytes)
                }
            };
            Some(SizedLeaf {
                id: *id,
                segment: *segment,
                leaf,
                payload_bytes,
            })
        });
        leaves
            .collect::<Option<_>>()
            .ok_or_else(|| CopyError::Mismatch("the source sent too few leaves".to_owned()))
    }

    async fn known_leaf(&self, id: NodeId) -> Result<Option<Arc<Leaf>>, CopyError> {
        match self.store {
            Some(store) => Ok(store.known_leaf(id).await?),
            None => Ok(None),
        }
    }

    async fn known_inner(&self, id: NodeId) -> Result<Option<Arc<InnerNode>>, CopyError> {
        match self.store {
            Some(store) => Ok(store.known_inner(id).await?),
            None => Ok(None),
        }
    }

    async fn fetch_ahead(&self, inner: &InnerNode, at: NodePlace) -> Result<(), CopyError> {
        let children = inner.children().iter();
        let children: Vec<_> = children.map(|(slot, id)| (at.child(*slot), *id)).collect();
        let known = children.iter().map(|(_, id)| self.known_inner(*id));
        let known = try_join_all(known).await?;
        let known = children.into_iter().zip(known);
        let absent = known.filter(|(_, known)| known.is_none());
        let absent: Vec<_> = absent.map(|(child, _)| child).collect();
        if absent.is_empty() {
            return Ok(());
        }
        let fetches = absent.chunks(FETCH_NODES_MAX).map(|wanted| {
            let inners = self.source.client().fetch_inners(self.of, wanted);
            self.source.heard(inners)
        });
        let fetched = try_join_all(fetches).await?;
        let fetched = fetched.into_iter().flatten().map(Arc::new);
        let ids = absent.into_iter().map(|(_, id)| id);
        *self.ahead.lock() = ids.zip(fetched).collect();
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "4096")]
const BLOCK: u32 = varve_content::block::BLOCK_BYTES as u32;

impl NodeSource for Nodes<'_> {
    type Error = CopyError;

    async fn inner(&self, id: NodeId, at: NodePlace) -> Result<Arc<InnerNode>, CopyError> {
        if let Some(inner) = self.ahead.lock().remove(&id) {
            return Ok(inner);
        }
        let inner = match self.known_inner(id).await? {
            Some(inner) => inner,
            None => {
                let fetched = self
                    .source
                    .heard(self.source.client().fetch_inners(self.of, &[(at, id)]))
                    .await?;
                let inner = fetched.into_iter().next().map(Arc::new);
                inner.ok_or_else(|| CopyError::Mismatch(format!("the source sent no node {id}")))?
            }
        };
        if inner.level() == 2 {
            self.fetch_ahead(&inner, at).await?;
        }
        Ok(inner)
    }
}
