//! Fetching of tree nodes and chunks by their ids, for copies, archives and reads.
//!
//! Each request names the snapshots that the nodes or chunks are of, by name or id, and their
//! places there: a daemon gives an account only content of snapshots that it may read or holds.
//! Without snapshots, only the administrator gets an answer, for all content of the store.
//!
//! Nodes have been checked against their ids when they are returned. Chunks come as they are
//! stored, and are checked when they are unpacked.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};
use varve_content::{
    ChunkId, NodeId, RootId, SEGMENT_BYTES,
    codec::Codec,
    tree::{InnerNode, Leaf, NodePlace, Root, TreeError},
};
use varve_proto::v1;

use crate::{
    connect::Client,
    convert,
    error::{Error, ErrorKind, Result},
    retry,
};

/// A leaf of another store.
#[derive(Clone, Debug)]
pub struct FetchedLeaf {
    /// The leaf.
    pub leaf: Leaf,
    /// For each of its entries, as claimed by the other side: payload bytes of the chunk as stored
    /// there.
    pub payload_bytes: Vec<u32>,
}

/// The chunks of a leaf to request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChunkRequest {
    /// The leaf.
    pub leaf: NodeId,
    /// The segment that it is the leaf of.
    pub segment: u32,
    /// Positions of entries, ascending, and the chunks that are there.
    pub entries: Vec<(u32, ChunkId)>,
}

/// A received chunk with the requested id. Its bytes are not checked against that id yet.
#[derive(Clone, Debug)]
pub struct FetchedChunk {
    /// The requested id.
    pub id: ChunkId,
    /// The codec that it is packed with.
    pub codec: Codec,
    /// Its plain length in bytes, as claimed by the other side.
    pub plain_bytes: u32,
    /// The packed bytes.
    pub payload: Bytes,
}

impl Client {
    /// Fetches the root record of the content of one of these snapshots.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if they do not have it, or do not exist, [`ErrorKind::Damaged`] if
    /// it is not what its id says; errors of the connection.
    pub async fn fetch_root(&self, of: &[String], id: RootId) -> Result<Root> {
        let what = format!("fetch root {id}");
        let wanted = v1::NodeRef {
            kind: v1::NodeKind::Root.into(),
            id: Bytes::copy_from_slice(id.as_bytes()),
            ..v1::NodeRef::default()
        };
        let nodes = self.fetch_nodes(&what, of, vec![wanted]).await?;
        let encoded = nodes.into_iter().next().unwrap_or_default().encoded;
        if RootId::of(&encoded) != id {
            return Err(lied(what, format_args!("root {}", RootId::of(&encoded))));
        }
        Root::decode(&encoded).map_err(|error| broken(&what, error))
    }

    /// Fetches inner nodes of these snapshots, in this order: at most
    /// [`FETCH_NODES_MAX`](crate::FETCH_NODES_MAX).
    ///
    /// # Errors
    ///
    /// As for [`fetch_root`](Self::fetch_root).
    pub async fn fetch_inners(
        &self,
        of: &[String],
        wanted: &[(NodePlace, NodeId)],
    ) -> Result<Vec<InnerNode>> {
        let what = format!("fetch {} inner nodes", wanted.len());
        let refs = wanted.iter();
        let refs = refs.map(|(at, id)| node_ref(v1::NodeKind::Inner, *at, *id));
        let nodes = self.fetch_nodes(&what, of, refs.collect()).await?;
        let checked = wanted.iter().zip(nodes).map(|((_, id), node)| {
            if NodeId::of_inner(&node.encoded) != *id {
                return Err(lied(&what, format_args!("another node for {id}")));
            }
            InnerNode::decode(&node.encoded).map_err(|error| broken(&what, error))
        });
        checked.collect()
    }

    /// Fetches leaves of these snapshots, each by its segment and id, in this order: at most
    /// [`FETCH_NODES_MAX`](crate::FETCH_NODES_MAX).
    ///
    /// # Errors
    ///
    /// As for [`fetch_root`](Self::fetch_root).
    pub async fn fetch_leaves(
        &self,
        of: &[String],
        wanted: &[(u32, NodeId)],
    ) -> Result<Vec<FetchedLeaf>> {
        let what = format!("fetch {} leaves", wanted.len());
        let refs = wanted.iter().map(|(segment, id)| {
            let at = NodePlace::of_leaf(*segment);
            node_ref(v1::NodeKind::Leaf, at, *id)
        });
        let nodes = self.fetch_nodes(&what, of, refs.collect()).await?;
        let checked = wanted.iter().zip(nodes).map(|((_, id), node)| {
            if NodeId::of_leaf(&node.encoded) != *id {
                return Err(lied(&what, format_args!("another node for {id}")));
            }
            let leaf = Leaf::decode(&node.encoded).map_err(|error| broken(&what, error))?;
            if node.payload_bytes.len() != leaf.entries().len() {
                let why = format!(
                    "{} lengths of payloads for the {} entries of leaf {id}",
                    node.payload_bytes.len(),
                    leaf.entries().len()
                );
                return Err(Error::protocol(&what, why));
            }
            Ok(FetchedLeaf {
                leaf,
                payload_bytes: node.payload_bytes,
            })
        });
        checked.collect()
    }

    async fn fetch_nodes(
        &self,
        what: &str,
        of: &[String],
        nodes: Vec<v1::NodeRef>,
    ) -> Result<Vec<v1::Node>> {
        let count = nodes.len();
        let request = v1::FetchNodesRequest {
            nodes,
            snapshots: of.to_vec(),
        };
        let client = self.clone();
        let answer = taken(what, async move {
            retry::idempotent(|| {
                let (mut service, request) = (client.replication_service(), request.clone());
                async move { service.fetch_nodes(request).await }
            })
            .await
        })
        .await?;
        let answer = answer
            .map_err(|status| Error::rpc(what, status))?
            .into_inner();
        if answer.nodes.len() != count {
            let why = format!("{} nodes where {count} belong", answer.nodes.len());
            return Err(Error::protocol(what, why));
        }
        Ok(answer.nodes)
    }

    /// Begins to fetch chunks of these snapshots as they are stored: at most
    /// [`FETCH_CHUNKS_MAX`](crate::FETCH_CHUNKS_MAX).
    ///
    /// A stream that is held and not polled can block all other calls of this client: they share a
    /// connection, and its window is bounded.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if the snapshots do not have a leaf; errors of the connection.
    pub async fn fetch_chunks(
        &self,
        of: &[String],
        wanted: &[ChunkRequest],
    ) -> Result<ChunkStream> {
        let count: usize = wanted.iter().map(|leaf| leaf.entries.len()).sum();
        let what = format!("fetch {count} chunks");
        let begun = retry::while_busy(|| self.begin_chunks(&what, of, wanted)).await;
        begun.map_err(|status| Error::rpc(&what, status))
    }

    async fn begin_chunks(
        &self,
        what: &str,
        of: &[String],
        wanted: &[ChunkRequest],
    ) -> Result<ChunkStream, Status> {
        let leaves = wanted.iter().map(|leaf| v1::LeafChunks {
            leaf_id: Bytes::copy_from_slice(leaf.leaf.as_bytes()),
            entries: leaf.entries.iter().map(|(position, _)| *position).collect(),
            segment: leaf.segment,
        });
        let request = v1::FetchChunksRequest {
            leaves: leaves.collect(),
            snapshots: of.to_vec(),
        };
        let answers = self.replication_service().fetch_chunks(request).await?;
        let ids = wanted
            .iter()
            .flat_map(|leaf| leaf.entries.iter().map(|(_, id)| *id));
        Ok(ChunkStream {
            what: what.to_owned(),
            expected: ids.collect(),
            answers: answers.into_inner(),
        })
    }
}

impl Client {
    /// Fetches chunks that all fit in memory, even while the caller does not poll: at most a
    /// segment's bytes.
    pub(crate) async fn fetch_all_chunks(
        &self,
        what: &str,
        of: &[String],
        wanted: Vec<ChunkRequest>,
    ) -> Result<Vec<FetchedChunk>> {
        let (client, owned, of) = (self.clone(), what.to_owned(), of.to_vec());
        let chunks = taken(what, async move {
            // Repeat it from the beginning: a busy daemon may refuse only after its answer has
            // begun.
            retry::idempotent(|| client.all_chunks(&owned, &of, &wanted)).await
        });
        let chunks = chunks.await?;
        chunks.map_err(|status| Error::rpc(what, status))?
    }

    /// Like [`fetch_all_chunks`](Self::fetch_all_chunks), without repetition. The inner error is an
    /// answer that breaks the protocol.
    async fn all_chunks(
        &self,
        what: &str,
        of: &[String],
        wanted: &[ChunkRequest],
    ) -> Result<Result<Vec<FetchedChunk>>, Status> {
        let mut chunks = Vec::new();
        let mut payload_bytes = 0;
        let mut answers = self.begin_chunks(what, of, wanted).await?;
        while !answers.expected.is_empty() {
            let answer = answers.answers.message().await?;
            let answer = match answers.taken(answer) {
                Ok(answer) => answer,
                Err(error) => return Ok(Err(error)),
            };
            payload_bytes += answer
                .iter()
                .map(|chunk| chunk.payload.len())
                .sum::<usize>();
            // Chunks are stored packed only if that makes them shorter.
            if payload_bytes > SEGMENT_BYTES {
                return Ok(Err(lied(what, "more bytes than a segment has")));
            }
            chunks.extend(answer);
        }
        Ok(Ok(chunks))
    }
}

/// Receives an answer even while the caller does not poll: otherwise it would fill the connection's
/// window, and block all other calls on the connection.
async fn taken<T: Send + 'static>(
    what: &str,
    answer: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    #[expect(clippy::disallowed_methods, reason = "it ends with the handle")]
    let taking = AbortOnDropHandle::new(tokio::spawn(answer));
    let broke = |error| Error::internal(what, "a task broke").with_source(error);
    taking.await.map_err(broke)
}

/// Chunks on their way.
#[derive(Debug)]
pub struct ChunkStream {
    what: String,
    /// The requested ids, in order.
    expected: VecDeque<ChunkId>,
    answers: Streaming<v1::FetchChunksResponse>,
}

impl ChunkStream {
    /// Returns the next chunks, in the order of the request; `None` when all have arrived.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] for other chunks than the requested ones; errors of the connection.
    pub async fn next(&mut self) -> Result<Option<Vec<FetchedChunk>>> {
        if self.expected.is_empty() {
            return Ok(None);
        }
        let answer = self.answers.message().await;
        let answer = answer.map_err(|status| Error::rpc(&self.what, status))?;
        self.taken(answer).map(Some)
    }

    /// The chunks of an answer, of which there must be some.
    fn taken(&mut self, answer: Option<v1::FetchChunksResponse>) -> Result<Vec<FetchedChunk>> {
        let Some(answer) = answer else {
            let why = format!("it ended with {} chunks to come", self.expected.len());
            return Err(Error::protocol(&self.what, why));
        };
        if answer.chunks.is_empty() {
            return Err(Error::protocol(&self.what, "a message without chunks"));
        }
        let chunks = answer.chunks.into_iter().map(|chunk| self.checked(chunk));
        chunks.collect()
    }

    fn checked(&mut self, chunk: v1::Chunk) -> Result<FetchedChunk> {
        let Some(id) = self.expected.pop_front() else {
            return Err(lied(&self.what, "more chunks"));
        };
        if chunk.id[..] != id.as_bytes()[..] {
            return Err(lied(&self.what, format_args!("another chunk for {id}")));
        }
        let Some(codec) = convert::codec(&chunk) else {
            let why = format!("chunk {id} in unknown codec {}", chunk.codec);
            return Err(Error::protocol(&self.what, why));
        };
        Ok(FetchedChunk {
            id,
            codec,
            plain_bytes: chunk.plain_bytes,
            payload: chunk.payload,
        })
    }
}

fn node_ref(kind: v1::NodeKind, at: NodePlace, id: NodeId) -> v1::NodeRef {
    v1::NodeRef {
        kind: kind.into(),
        id: Bytes::copy_from_slice(id.as_bytes()),
        level: at.level.into(),
        first_segment: at.first_segment,
    }
}

fn lied(what: impl Into<String>, sent: impl std::fmt::Display) -> Error {
    let why = format!("the source sent {sent}, which was not requested");
    Error::new(ErrorKind::Damaged, what, why)
}

fn broken(what: &str, error: TreeError) -> Error {
    let why = format!("the source sent an invalid node: {error}");
    Error::new(ErrorKind::Damaged, what, why).with_source(error)
}
