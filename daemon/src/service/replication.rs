//! Nodes and chunks for another store that copies a snapshot.

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use varve_content::{NodeId, tree::NodePlace};
use varve_store::{ExportedNode, NodeKey, SnapshotId, SnapshotReader, Store, StoredChunk};

use super::{
    Service,
    content::message_sized,
    error::{Error, Result},
    holds::HeldSnapshot,
    request,
    sight::Sight,
    snapshots::Snapshot,
    streams::{self, Items, Outlet},
};
use crate::{
    auth::{Action, Attempt, Caller, Resource},
    limits,
};

/// A requested node, and its place in the tree of a snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeRequest {
    pub(crate) key: NodeKey,
    pub(crate) at: NodePlace,
}

/// Requested chunks of a leaf.
#[derive(Debug, Clone)]
pub(crate) struct ChunkRequest {
    pub(crate) leaf: NodeId,
    pub(crate) segment: u32,
    /// Positions in the leaf, in ascending order.
    pub(crate) entries: Vec<u32>,
}

/// The snapshots that a request is about: what it names must be in one of their trees. They stay in
/// the store meanwhile.
#[derive(Debug)]
enum Origin {
    Snapshots(Vec<SnapshotReader>),
    /// The administrator has named none, and may fetch all by its id.
    Any,
}

impl Service {
    /// Keeps the content of a snapshot while the caller takes items: first the record, then `None`
    /// as signs of life.
    pub(crate) async fn hold_snapshot(
        &self,
        caller: &Caller,
        key: &str,
    ) -> Result<Items<Option<Snapshot>>> {
        let on = [Resource::Snapshot(key)];
        let sight = self.sight(caller);
        let open = async {
            let key = sight.readable_snapshot("snapshot", key)?;
            let place = self.0.holds.place(caller).await?;
            let reader = self.store().open_snapshot(&key).await?;
            let held = self.0.holds.hold(sight.account()?, &reader);
            let shown = self.described(&sight, reader.record().clone());
            Ok(((shown, held), place))
        };
        let stop = self.0.parts.stop.clone();
        let work = |(shown, held), outlet| keep(shown, held, stop, outlet);
        let (call, tell) = ((caller, Action::HoldSnapshot), |it: &Attempt, (): &()| {
            it.served()
        });
        self.pass_stream(call, &on, open, work, tell).await
    }

    /// Nodes of the trees of some snapshots, as they are stored.
    pub(crate) async fn export_nodes(
        &self,
        caller: &Caller,
        snapshots: &[String],
        nodes: Vec<NodeRequest>,
    ) -> Result<Vec<ExportedNode>> {
        let on = resources(snapshots);
        let sight = self.sight(caller);
        self.pass(caller, Action::FetchNodes, &on, async {
            request::at_most("nodes", "nodes", nodes.len(), limits::FETCH_NODES_MAX)?;
            let origin = Box::pin(self.origin(&sight, snapshots)).await?;
            for node in &nodes {
                origin.check(node.key, node.at).await?;
            }
            let keys = nodes.iter().map(|node| node.key).collect();
            Ok(self.store().export_nodes(keys).await?)
        })
        .await
    }

    /// Chunks of leaves of some snapshots, as they are stored, in parts of up to
    /// [`limits::READ_MESSAGE_BYTES`] of payload.
    pub(crate) async fn export_chunks(
        &self,
        caller: &Caller,
        snapshots: &[String],
        requests: Vec<ChunkRequest>,
    ) -> Result<Items<Vec<StoredChunk>>> {
        let on = resources(snapshots);
        let sight = self.sight(caller);
        let open = async {
            check(&requests)?;
            let place = streams::place(&self.0.fetches, caller).await?;
            let origin = self.origin(&sight, snapshots).await?;
            Ok(((origin, requests), place))
        };
        let store = self.store().clone();
        let work = |(origin, requests), outlet| send(store, origin, requests, outlet);
        let (call, tell) = ((caller, Action::FetchChunks), |it: &Attempt, (): &()| {
            it.served()
        });
        self.pass_stream(call, &on, open, work, tell).await
    }

    /// The snapshots that a request names: those that the caller's account holds, and others that
    /// the caller may read now.
    async fn origin(&self, sight: &Sight, snapshots: &[String]) -> Result<Origin> {
        let most = limits::FETCH_SNAPSHOTS_MAX;
        request::at_most("snapshots", "snapshots", snapshots.len(), most)?;
        if snapshots.is_empty() {
            return match sight.sees_others() {
                true => Ok(Origin::Any),
                false => Err(Error::field(
                    "snapshots",
                    "it is empty, and only the administrator fetches content by its id alone: name \
                     the snapshots, or update the program, if it is older than accounts",
                )),
            };
        }
        let account = sight.account()?;
        let mut readers = Vec::with_capacity(snapshots.len());
        for text in snapshots {
            let key = sight.readable_snapshot("snapshots", text)?;
            let id: Option<SnapshotId> = text.parse().ok();
            readers.push(match id.and_then(|id| self.0.holds.find(account, id)) {
                Some(held) => held,
                None => self.store().open_snapshot(&key).await?,
            });
        }
        Ok(Origin::Snapshots(readers))
    }
}

impl Origin {
    /// Checks that a node is in one of the trees, at this place. A node that is elsewhere is not
    /// there for the caller.
    async fn check(&self, node: NodeKey, at: NodePlace) -> Result<()> {
        let Self::Snapshots(readers) = self else {
            return Ok(());
        };
        for reader in readers {
            let is_there = match node {
                NodeKey::Root(id) => reader.pin().root() == id,
                NodeKey::Inner(id) | NodeKey::Leaf(id) => reader.node_at(at).await? == Some(id),
            };
            if is_there {
                return Ok(());
            }
        }
        Err(node.not_found().into())
    }
}

fn resources(snapshots: &[String]) -> Vec<Resource<'_>> {
    snapshots.iter().map(|it| Resource::Snapshot(it)).collect()
}

/// Keeps a snapshot until the caller goes away: that is the regular end of a hold.
async fn keep(
    shown: Snapshot,
    _held: HeldSnapshot,
    stop: CancellationToken,
    outlet: Outlet<Option<Snapshot>>,
) -> Result<()> {
    let mut item = Some(shown);
    loop {
        tokio::select! {
            biased;
            () = outlet.closed() => return Ok(()),
            () = stop.cancelled() => return Err(Error::Stopping),
            sent = outlet.send(item) => sent?,
        }
        item = None;
        tokio::select! {
            () = outlet.closed() => return Ok(()),
            () = stop.cancelled() => return Err(Error::Stopping),
            () = sleep(limits::HOLD_INTERVAL) => {}
        }
    }
}

fn check(requests: &[ChunkRequest]) -> Result<()> {
    let count = requests.iter().map(|request| request.entries.len()).sum();
    request::at_most("leaves.entries", "chunks", count, limits::FETCH_CHUNKS_MAX)?;
    for request in requests {
        // Each one once: a request must not be able to ask for more than the whole leaf.
        if !request.entries.is_sorted_by(|a, b| a < b) {
            return Err(Error::field("leaves.entries", "they must ascend"));
        }
    }
    Ok(())
}

async fn send(
    store: Store,
    origin: Origin,
    requests: Vec<ChunkRequest>,
    outlet: Outlet<Vec<StoredChunk>>,
) -> Result<()> {
    for ChunkRequest {
        leaf,
        segment,
        entries,
    } in requests
    {
        let at = NodePlace::of_leaf(segment);
        origin.check(NodeKey::Leaf(leaf), at).await?;
        let chunks = store.export_chunks(leaf, &entries).await?;
        for chunks in message_sized(chunks, |chunk| chunk.payload.len()) {
            outlet.send(chunks).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::error::{Classified as _, ErrorKind};

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        let request = |entries| ChunkRequest {
            leaf: NodeId::from_bytes([1; 32]),
            segment: 0,
            entries,
        };
        check(&[request(vec![0, 5, 9])]).unwrap();
        for entries in [vec![1, 1], vec![2, 1]] {
            let refused = check(&[request(entries)]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        }
        let many: Vec<u32> = (0..2000).collect();
        let refused = check(&[request(many.clone()), request(many.clone()), request(many)]);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::OutOfRange);
    }
}
