//! A snapshot's content as its tree: the root, and nodes that are fetched from the daemon on
//! demand.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::try_join_all;
use varve_content::{
    block::segment_blocks,
    chunker::CHUNKER_VERSION,
    tree::{InnerNode, Leaf, NodeId, NodeSource, Root, WalkError},
};

use crate::{
    connect::Client,
    error::{Error, ErrorKind, Result},
    limits::FETCH_NODES_MAX,
    snapshots::{Snapshot, SnapshotState},
};

/// Sets of nodes that are kept ahead: one for each of two trees that are compared.
const SETS_AHEAD: usize = 2;

/// A snapshot that is completed, and its root.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) snapshot: Snapshot,
    pub(crate) root: Root,
}

impl Content {
    /// Finds the snapshot with this name or id. The root has been checked against the id in the
    /// snapshot's record.
    pub(crate) async fn find(client: &Client, what: &str, key: &str) -> Result<Self> {
        let snapshot = client.snapshot(key).await?;
        let id = match (snapshot.state, snapshot.root) {
            (SnapshotState::Completed, Some(id)) => id,
            (state, _) => {
                let why = format!("snapshot {} is {}", snapshot.name, state.as_str());
                return Err(Error::new(ErrorKind::Conflict, what, why));
            }
        };
        let root = client.fetch_root(id).await?;
        if root.size_bytes != snapshot.size_bytes || root.chunker_version != CHUNKER_VERSION {
            let why = format!(
                "snapshot {} of {} bytes, cut with chunker version {CHUNKER_VERSION}, whose root \
                 says {} bytes and version {}",
                snapshot.name, snapshot.size_bytes, root.size_bytes, root.chunker_version
            );
            return Err(Error::protocol(what, why));
        }
        Ok(Self { snapshot, root })
    }
}

/// Checks that the leaf of a segment ends within the volume: its hash does not prove that.
pub(crate) fn check_end(
    what: &str,
    size_bytes: u64,
    segment: u32,
    id: NodeId,
    leaf: &Leaf,
) -> Result<()> {
    let blocks = segment_blocks(size_bytes, segment);
    if leaf.end_block() <= blocks {
        return Ok(());
    }
    let why = format!(
        "leaf {id} of segment {segment} ends at block {} of {blocks}",
        leaf.end_block()
    );
    Err(Error::new(ErrorKind::Damaged, what, why))
}

/// The error for a failed walk through a tree of the daemon.
pub(crate) fn walk_error(what: &str, error: WalkError<Error>) -> Error {
    match error {
        WalkError::Source(error) => error,
        other => Error::new(ErrorKind::Damaged, what, other.to_string()),
    }
}

/// The daemon's nodes. Each is checked against the requested id.
#[derive(Debug)]
pub(crate) struct Nodes {
    client: Client,
    looks_ahead: bool,
    /// Children of the last inner nodes of level 2, fetched together: a walk through all of them
    /// would otherwise wait for each.
    ahead: Mutex<VecDeque<HashMap<NodeId, Arc<InnerNode>>>>,
}

impl Nodes {
    /// For a walk through a whole tree.
    pub(crate) fn of_whole(client: &Client) -> Self {
        Self::new(client, true)
    }

    /// For a look at a few leaves: fetches only requested nodes.
    pub(crate) fn of_part(client: &Client) -> Self {
        Self::new(client, false)
    }

    fn new(client: &Client, looks_ahead: bool) -> Self {
        Self {
            client: client.clone(),
            looks_ahead,
            ahead: Mutex::default(),
        }
    }

    fn ahead(&self) -> MutexGuard<'_, VecDeque<HashMap<NodeId, Arc<InnerNode>>>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeSource for Nodes {
    type Error = Error;

    async fn leaf(&self, id: NodeId) -> Result<Arc<Leaf>> {
        let leaves = self.client.fetch_leaves(&[id]).await?;
        let leaf = leaves
            .into_iter()
            .next()
            .map(|fetched| Arc::new(fetched.leaf));
        leaf.ok_or_else(|| Error::protocol("fetch a leaf", "it sent none"))
    }

    async fn inner(&self, id: NodeId) -> Result<Arc<InnerNode>> {
        if let Some(inner) = self.ahead().iter_mut().find_map(|set| set.remove(&id)) {
            return Ok(inner);
        }
        let inner = self.client.fetch_inners(&[id]).await?.into_iter().next();
        let inner = inner.ok_or_else(|| Error::protocol("fetch a node", "it sent none"))?;
        if self.looks_ahead && inner.level() == 2 {
            let children: Vec<_> = inner.children().iter().map(|(_, id)| *id).collect();
            let fetches = children
                .chunks(FETCH_NODES_MAX)
                .map(|ids| self.client.fetch_inners(ids));
            let fetched = try_join_all(fetches).await?;
            let fetched = fetched.into_iter().flatten().map(Arc::new);
            let mut ahead = self.ahead();
            ahead.truncate(SETS_AHEAD - 1);
            ahead.push_front(children.into_iter().zip(fetched).collect());
        }
        Ok(Arc::new(inner))
    }
}
