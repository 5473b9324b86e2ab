//! Nodes and chunks for another store that copies a snapshot.

use varve_content::NodeId;
use varve_store::{ExportedNode, NodeKey, Store, StoredChunk};

use super::{
    Service,
    content::message_sized,
    error::{Error, Result},
    request,
    streams::{self, Items, Outlet},
};
use crate::{
    auth::{Action, Attempt, Caller},
    limits,
};

/// Chunks of a leaf that are asked for.
#[derive(Debug, Clone)]
pub(crate) struct ChunkRequest {
    pub(crate) leaf: NodeId,
    /// Positions in the leaf, in ascending order.
    pub(crate) entries: Vec<u32>,
}

impl Service {
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
