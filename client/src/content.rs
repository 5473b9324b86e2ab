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
    tree::{InnerNode, Leaf, NodeId, NodePlace, NodeSource, Root, WalkError},
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
        let root = client
            .fetch_root(std::slice::from_ref(&snapshot.id), id)
            .await?;
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

    /// The snapshots that requests for the content of `self` and of a base name.
    pub(crate) fn origin(&self, base: Option<&Self>) -> Vec<String> {
        let both = [Some(self), base].into_iter().flatten();
        both.map(|content| content.snapshot.id.clone()).collect()
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
    /// The snapshots that the nodes are of.
    of: Vec<String>,
    looks_ahead: bool,
    /// Children of the last inner nodes of level 2, fetched together: a walk through all of them
    /// would otherwise wait for each.
    ahead: Mutex<VecDeque<HashMap<NodeId, Arc<InnerNode>>>>,
}

impl Nodes {
    /// For a walk through a whole tree.
    pub(crate) fn of_whole(client: &Client, of: Vec<String>) -> Self {
        Self::new(client, of, true)
    }

    /// For a look at a few leaves: fetches only requested nodes.
    pub(crate) fn of_part(client: &Client, of: Vec<String>) -> Self {
        Self::new(client, of, false)
    }

    fn new(client: &Client, of: Vec<String>, looks_ahead: bool) -> Self {
        Self {
            client: client.clone(),
            of,
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

    async fn inner(&self, id: NodeId, at: NodePlace) -> Result<Arc<InnerNode>> {
        if let Some(inner) = self.ahead().iter_mut().find_map(|set| set.remove(&id)) {
            return Ok(inner);
        }
        let fetched = self.client.fetch_inners(&self.of, &[(at, id)]).await?;
        let inner = fetched.into_iter().next();
        let inner = inner.ok_or_else(|| Error::protocol("fetch a node", "it sent none"))?;
        if self.looks_ahead && inner.level() == 2 {
            let children = inner.children().iter();
            let children: Vec<_> = children.map(|(slot, id)| (at.child(*slot), *id)).collect();
            let fetches = children
                .chunks(FETCH_NODES_MAX)
                .map(|wanted| self.client.fetch_inners(&self.of, wanted));
            let fetched = try_join_all(fetches).await?;
            let fetched = fetched.into_iter().flatten().map(Arc::new);
            let mut ahead = self.ahead();
            ahead.truncate(SETS_AHEAD - 1);
            let ids = children.into_iter().map(|(_, id)| id);
            ahead.push_front(ids.zip(fetched).collect());
        }
        Ok(Arc::new(inner))
    }
}
