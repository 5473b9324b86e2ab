//! Nodes and chunks for another store that copies a snapshot.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use varve_content::NodeId;
use varve_store::{ExportedNode, NodeKey, RootPin, SnapshotRecord, Store, StoredChunk};

use super::{
    Service,
    content::message_sized,
    error::{Error, Result},
    request,
    streams::{self, Items, Outlet},
};
use crate::{
    auth::{Action, Attempt, Caller, Resource},
    limits,
    resources::shares::{Rules, Shares},
};

/// Requested chunks of a leaf.
#[derive(Debug, Clone)]
pub(crate) struct ChunkRequest {
    pub(crate) leaf: NodeId,
    /// Positions in the leaf, in ascending order.
    pub(crate) entries: Vec<u32>,
}

/// Places for holds. A hold that does not fit is refused, and none gives way: it is better that a
/// copy waits than that another one loses its content.
pub(super) fn holds() -> Shares {
    Shares::new(Rules {
        what: "holds of snapshots",
        total: limits::HOLDS_MAX,
        local: limits::HOLDS_MAX / 4,
        of_one: limits::HOLDS_OF_CONNECTION_MAX,
        waiting: 0,
        yields_after: Duration::MAX,
        pace: 1,
    })
}

impl Service {
    /// Keeps the content of a snapshot while the caller takes items: first the record, then `None`
    /// as signs of life.
    pub(crate) async fn hold_snapshot(
        &self,
        caller: &Caller,
        key: &str,
    ) -> Result<Items<Option<SnapshotRecord>>> {
        let on = [Resource::Snapshot(key)];
        let sight = self.sight(caller);
        let open = async {
            let key = sight.readable_snapshot("snapshot", key)?;
            let place = self.0.holds.take(caller.connection(), 1, Duration::ZERO);
            let place = place.await?;
            place.settle(true);
            let reader = self.store().open_snapshot(&key).await?;
            Ok(((reader.record().clone(), reader.pin().clone()), place))
        };
        let stop = self.0.parts.stop.clone();
        let work = |(record, pin), outlet| keep(record, pin, stop, outlet);
        let (call, tell) = ((caller, Action::HoldSnapshot), |it: &Attempt, (): &()| {
            it.served()
        });
        self.pass_stream(call, &on, open, work, tell).await
    }

    /// Nodes of trees, as they are stored.
    pub(crate) async fn export_nodes(
        &self,
        caller: &Caller,
        keys: Vec<NodeKey>,
    ) -> Result<Vec<ExportedNode>> {
        self.pass(caller, Action::FetchNodes, &[], async {
            request::at_most("nodes", "nodes", keys.len(), limits::FETCH_NODES_MAX)?;
            Ok(self.store().export_nodes(keys).await?)
        })
        .await
    }

    /// Chunks of leaves, as they are stored, in parts of up to [`limits::READ_MESSAGE_BYTES`] of
    /// payload.
    pub(crate) async fn export_chunks(
        &self,
        caller: &Caller,
        requests: Vec<ChunkRequest>,
    ) -> Result<Items<Vec<StoredChunk>>> {
        let open = async {
            check(&requests)?;
            Ok((requests, streams::place(&self.0.fetches, caller).await?))
        };
        let store = self.store().clone();
        let work = |requests, outlet| send(store, requests, outlet);
        let (call, tell) = ((caller, Action::FetchChunks), |it: &Attempt, (): &()| {
            it.served()
        });
        self.pass_stream(call, &[], open, work, tell).await
    }
}

/// Keeps the content under a pin until the caller goes away: that is the regular end of a hold.
async fn keep(
    record: SnapshotRecord,
    _pin: RootPin,
    stop: CancellationToken,
    outlet: Outlet<Option<SnapshotRecord>>,
) -> Result<()> {
    let mut item = Some(record);
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
    requests: Vec<ChunkRequest>,
    outlet: Outlet<Vec<StoredChunk>>,
) -> Result<()> {
    for ChunkRequest { leaf, entries } in requests {
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
