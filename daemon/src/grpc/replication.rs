//! `ReplicationService`: nodes and chunks for another store that copies a snapshot.

use tonic::{Request, Response, Status, async_trait};
use varve_content::{NodeId, RootId};
use varve_proto::v1::{self, replication_service_server::ReplicationService};
use varve_store::{NodeKey, Store};

use super::{
    calls::{self, AnswerStream, Answers},
    content::message_sized,
    convert,
    failure::Failure,
};
use crate::{limits, shares::Shares, tasks::Tasks};

/// The service.
#[derive(Debug)]
pub(super) struct Replication {
    store: Store,
    tasks: Tasks,
    /// Places for streams of chunks.
    streams: Shares,
}

/// Chunks of a leaf that are asked for.
#[derive(Debug)]
struct Wanted {
    leaf: NodeId,
    entries: Vec<u32>,
}

impl Replication {
    pub(super) fn new(store: Store, tasks: Tasks) -> Self {
        Self {
            store,
            tasks,
            streams: calls::places("fetches of chunks", limits::COPY_STREAMS_MAX),
        }
    }
}

#[async_trait]
impl ReplicationService for Replication {
    type FetchChunksStream = AnswerStream<v1::FetchChunksResponse>;

    async fn fetch_nodes(
        &self,
        request: Request<v1::FetchNodesRequest>,
    ) -> Result<Response<v1::FetchNodesResponse>, Status> {
        calls::answer("FetchNodes", async {
            let nodes = &request.get_ref().nodes;
            if nodes.len() > limits::FETCH_NODES_MAX {
                return Err(Failure::TooMuch {
                    field: "nodes",
                    unit: "nodes",
                    found: nodes.len() as u64,
                    most: limits::FETCH_NODES_MAX as u64,
                });
            }
            let keys = nodes.iter().map(node_key).collect::<Result<_, _>>()?;
            let given = self.store.export_nodes(keys).await?;
            let nodes = given.into_iter().map(|node| v1::Node {
                encoded: node.encoded,
                payload_bytes: node.payload_bytes,
            });
            Ok(v1::FetchNodesResponse {
                nodes: nodes.collect(),
            })
        })
        .await
    }

    async fn fetch_chunks(
        &self,
        request: Request<v1::FetchChunksRequest>,
    ) -> Result<Response<Self::FetchChunksStream>, Status> {
        let holder = calls::holder(&request);
        let opened = calls::answer("FetchChunks", async {
            let wanted = wanted(request.into_inner())?;
            Ok((wanted, calls::place(&self.streams, holder).await?))
        });
        let (wanted, place) = opened.await?.into_inner();
        let store = self.store.clone();
        Ok(calls::stream(
            &self.tasks,
            "FetchChunks",
            Some(place),
            |answers| async move { send(&store, wanted, answers).await },
        ))
    }
}

async fn send(
    store: &Store,
    wanted: Vec<Wanted>,
    answers: Answers<v1::FetchChunksResponse>,
) -> Result<(), Failure> {
    for Wanted { leaf, entries } in wanted {
        let chunks = store.export_chunks(leaf, &entries).await?;
        let chunks = chunks.into_iter().map(convert::stored_chunk).collect();
        for chunks in message_sized(chunks) {
            answers.send(v1::FetchChunksResponse { chunks }).await?;
        }
    }
    Ok(())
}

fn node_key(node: &v1::NodeRef) -> Result<NodeKey, Failure> {
    let id: [u8; NodeId::BYTES] = node.id[..].try_into().map_err(|_| {
        Failure::field(
            "nodes.id",
            format!("{} bytes, an id has {}", node.id.len(), NodeId::BYTES),
        )
    })?;
    match v1::NodeKind::try_from(node.kind) {
        Ok(v1::NodeKind::Root) => Ok(NodeKey::Root(RootId::from_bytes(id))),
        Ok(v1::NodeKind::Inner) => Ok(NodeKey::Inner(NodeId::from_bytes(id))),
        Ok(v1::NodeKind::Leaf) => Ok(NodeKey::Leaf(NodeId::from_bytes(id))),
        Ok(v1::NodeKind::Unspecified) | Err(_) => Err(Failure::field(
            "nodes.kind",
            format!("{} is no kind of node", node.kind),
        )),
    }
}

fn wanted(request: v1::FetchChunksRequest) -> Result<Vec<Wanted>, Failure> {
    let count: usize = request.leaves.iter().map(|leaf| leaf.entries.len()).sum();
    if count > limits::FETCH_CHUNKS_MAX {
        return Err(Failure::TooMuch {
            field: "leaves.entries",
            unit: "chunks",
            found: count as u64,
            most: limits::FETCH_CHUNKS_MAX as u64,
        });
    }
    let leaves = request.leaves.into_iter().map(|leaf| {
        let id = NodeId::try_from(&leaf.leaf_id[..])
            .map_err(|error| Failure::field("leaves.leaf_id", error.to_string()))?;
        // Each one once: a request must not be able to ask for more than the whole leaf.
        if !leaf.entries.is_sorted_by(|a, b| a < b) {
            return Err(Failure::field("leaves.entries", "they must ascend"));
        }
        Ok(Wanted {
            leaf: id,
            entries: leaf.entries,
        })
    });
    leaves.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tonic::Code;

    use super::*;

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        let node = |kind, bytes| v1::NodeRef {
            kind,
            id: vec![1; bytes].into(),
        };
        assert_eq!(
            node_key(&node(3, 32)).unwrap(),
            NodeKey::Leaf(NodeId::from_bytes([1; 32]))
        );
        for (kind, bytes) in [(0, 32), (4, 32), (3, 31), (1, 0)] {
            let refused = node_key(&node(kind, bytes)).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
        let leaf = |bytes, entries| v1::LeafChunks {
            leaf_id: vec![1; bytes].into(),
            entries,
        };
        let of = |leaves| wanted(v1::FetchChunksRequest { leaves });
        assert_eq!(of(vec![leaf(32, vec![0, 5, 9])]).unwrap().len(), 1);
        for refused in [
            leaf(31, vec![0]),
            leaf(32, vec![1, 1]),
            leaf(32, vec![2, 1]),
        ] {
            assert_eq!(of(vec![refused]).unwrap_err().code(), Code::InvalidArgument);
        }
        let many: Vec<u32> = (0..2000).collect();
        let refused = of(vec![
            leaf(32, many.clone()),
            leaf(32, many.clone()),
            leaf(32, many),
        ]);
        assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    }
}
