//! Nodes and chunks by their ids and their places.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tonic::{Request, Response, Status};
use varve_content::{
    codec::Encoder,
    tree::{InnerNode, Leaf, NodePlace, Root},
};
use varve_proto::v1::{self, replication_service_server::ReplicationService};

use super::{Answers, Service, State};

/// The nodes of all trees, encoded, by id.
#[derive(Debug, Default)]
pub struct Nodes(HashMap<[u8; 32], Bytes>);

impl Nodes {
    pub(crate) fn add(&mut self, root: &Root, inners: &[InnerNode], leaves: &[Leaf]) {
        let root = (*root.id().as_bytes(), root.encode().to_vec());
        let inners = inners.iter().map(|it| (*it.id().as_bytes(), it.encode()));
        let leaves = leaves.iter().map(|it| (*it.id().as_bytes(), it.encode()));
        let all = std::iter::once(root).chain(inners).chain(leaves);
        self.0.extend(all.map(|(id, encoded)| (id, encoded.into())));
    }

    pub(crate) fn has_leaf(&self, leaf: &Leaf) -> bool {
        self.0.contains_key(leaf.id().as_bytes())
    }

    fn find(&self, id: &[u8]) -> Result<&Bytes, Status> {
        let found = id.try_into().ok().and_then(|id: [u8; 32]| self.0.get(&id));
        found.ok_or_else(|| Status::not_found("no such node"))
    }

    /// The id of the node at a place of a tree. `Err`: the tree cannot be.
    fn at(&self, root: &[u8], at: NodePlace) -> Result<Option<Vec<u8>>, Status> {
        let crooked = |error| Status::data_loss(format!("{error}"));
        let root = Root::decode(self.find(root)?).map_err(crooked)?;
        let mut node = root.top;
        for level in (at.level + 1..=root.height()).rev() {
            let Some(id) = node else {
                return Ok(None);
            };
            let inner = InnerNode::decode(self.find(id.as_bytes())?).map_err(crooked)?;
            node = inner.child((at.first_segment >> (8 * (level - 1))) as u8);
        }
        Ok(node.map(|id| id.as_bytes().to_vec()))
    }
}

impl State {
    /// Checks that a node is where a request says, in one of the snapshots that it names. Requests
    /// without any are the administrator's.
    fn check_place(&self, of: &[String], id: &[u8], at: Option<NodePlace>) -> Result<(), Status> {
        let mut is_there = of.is_empty();
        for key in of {
            let mut all = self.snapshots.values().map(|(snapshot, _)| snapshot);
            let snapshot = all.find(|it| it.name == *key || it.id == *key);
            let snapshot = snapshot.ok_or_else(|| Status::not_found(format!("no {key}")))?;
            is_there |= match at {
                None => snapshot.root[..] == *id,
                // Trees that cannot be are for the client to find out.
                Some(at) => match self.nodes.at(&snapshot.root, at) {
                    Ok(there) => there.as_deref() == Some(id),
                    Err(_) => true,
                },
            };
        }
        assert!(is_there, "{at:?} is no place of that node in {of:?}");
        Ok(())
    }
}

#[tonic::async_trait]
impl ReplicationService for Service {
    type HoldStream = Answers<v1::HoldResponse>;

    async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let key = request.into_inner().snapshot;
        let state = self.state();
        let mut snapshots = state.snapshots.values().map(|(snapshot, _)| snapshot);
        let held = snapshots.find(|it| it.name == key || it.id == key);
        let held = held.ok_or_else(|| Status::not_found(format!("no snapshot {key}")))?;
        let first = v1::HoldResponse {
            snapshot: Some(held.clone()),
        };
        let alive = v1::HoldResponse::default();
        let answers = stream::iter([Ok(first), Ok(alive)]).chain(stream::pending());
        Ok(Response::new(answers.boxed()))
    }

    async fn fetch_nodes(
        &self,
        request: Request<v1::FetchNodesRequest>,
    ) -> Result<Response<v1::FetchNodesResponse>, Status> {
        let v1::FetchNodesRequest {
            nodes: wanted,
            snapshots: of,
        } = request.into_inner();
        assert!((1..=32).contains(&wanted.len()));
        self.take_time("FetchNodes").await;
        let mut state = self.state();
        for node in &wanted {
            let at = NodePlace {
                level: node.level as u8,
                first_segment: node.first_segment,
            };
            let at = (node.kind() != v1::NodeKind::Root).then_some(at);
            state.check_place(&of, &node.id, at)?;
        }
        state.fetched_nodes += wanted.len();
        let nodes = wanted.into_iter().map(|node| {
            let encoded = state.nodes.find(&node.id)?.clone();
            let payload_bytes = match node.kind() {
                v1::NodeKind::Leaf => {
                    let leaf = Leaf::decode(&encoded).unwrap();
                    vec![4096; leaf.entries().len()]
                }
                _ => Vec::new(),
            };
            Ok((self.manners.spoil_node)(v1::Node {
                encoded,
                payload_bytes,
            }))
        });
        Ok(Response::new(v1::FetchNodesResponse {
            nodes: nodes.collect::<Result<_, Status>>()?,
        }))
    }

    type FetchChunksStream = Answers<v1::FetchChunksResponse>;

    async fn fetch_chunks(
        &self,
        request: Request<v1::FetchChunksRequest>,
    ) -> Result<Response<Self::FetchChunksStream>, Status> {
        self.take_time("FetchChunks").await;
        let mut encoder = Encoder::new(self.manners.compression);
        let mut state = self.state();
        if state.busy > 0 {
            state.busy -= 1;
            let mut status = Status::resource_exhausted("as many answers as allowed");
            let pushback = "100".parse().unwrap();
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", pushback);
            // The room for an answer is taken when its first message is sent.
            return Ok(Response::new(stream::iter([Err(status)]).boxed()));
        }
        let mut answers = Vec::new();
        let request = request.into_inner();
        for wanted in request.leaves {
            let at = Some(NodePlace::of_leaf(wanted.segment));
            state.check_place(&request.snapshots, &wanted.leaf_id, at)?;
            let leaf = Leaf::decode(state.nodes.find(&wanted.leaf_id)?).unwrap();
            for position in wanted.entries {
                let entry = leaf.entries()[position as usize];
                let plain = &state.chunks[&entry.chunk];
                let (codec, payload) = encoder.encode(plain);
                let chunk = v1::Chunk {
                    id: Bytes::copy_from_slice(entry.chunk.as_bytes()),
                    codec: codec as i32,
                    plain_bytes: u32::try_from(plain.len()).unwrap(),
                    payload: Bytes::copy_from_slice(payload),
                };
                answers.push((self.manners.spoil_chunk)(chunk));
            }
        }
        assert!(answers.len() <= 4096);
        state.fetched_chunks += answers.len();
        let answers: Vec<_> = answers
            .chunks(10)
            .map(|chunks| v1::FetchChunksResponse {
                chunks: chunks.to_vec(),
            })
            .collect();
        let answers = (self.manners.spoil_chunks)(answers).into_iter().map(Ok);
        Ok(Response::new(stream::iter(answers).boxed()))
    }
}
