//! The gRPC services, called directly, for requests that our client would never send.

use bytes::Bytes;
use tokio_stream::iter;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use varve_content::{
    ChunkId, RootId, SEGMENT_BYTES,
    chunker::{CHUNKER_VERSION, cut_segment},
    tree::{self, TreeBuilder},
};
use varve_proto::v1::{
    BeginUploadRequest, Chunk, ChunkerParameters, Codec, CommitUploadRequest, GetStatusRequest,
    GetStatusResponse, Leaf, LeafEntry, PutChunksRequest, PutChunksResponse, PutLeavesRequest,
    Snapshot, content_service_client::ContentServiceClient, gc_service_client::GcServiceClient,
    snapshot_service_client::SnapshotServiceClient, status_service_client::StatusServiceClient,
};

use crate::{daemon::Varved, process::TIME_LIMIT};

const BLOCK_BYTES: usize = varve_content::BLOCK_BYTES;
/// Payload of one message.
const MESSAGE_BYTES: usize = 1 << 20;

/// The services of a daemon.
#[derive(Debug, Clone)]
pub struct Rpc {
    /// Content in and out.
    pub content: ContentServiceClient<Channel>,
    /// Snapshots.
    pub snapshots: SnapshotServiceClient<Channel>,
    /// Status.
    pub status: StatusServiceClient<Channel>,
    /// Space and garbage collection.
    pub gc: GcServiceClient<Channel>,
}

impl Rpc {
    /// Connects over the unix socket.
    pub async fn connect(varved: &Varved) -> Self {
        let endpoint =
            Endpoint::from_shared(varved.endpoint()).expect("an endpoint of a unix socket");
        let channel = endpoint.connect().await.expect("connect to varved");
        Self {
            content: ContentServiceClient::new(channel.clone())
                .max_encoding_message_size(usize::MAX),
            snapshots: SnapshotServiceClient::new(channel.clone())
                .max_encoding_message_size(usize::MAX),
            status: StatusServiceClient::new(channel.clone()),
            gc: GcServiceClient::new(channel),
        }
    }

    /// Waits until the daemon's status satisfies `is_so`.
    pub async fn wait_for_status(&self, what: &str, is_so: impl Fn(&GetStatusResponse) -> bool) {
        let wait = async {
            while !is_so(
                &self
                    .status
                    .clone()
                    .get_status(GetStatusRequest {})
                    .await
                    .expect("a status")
                    .into_inner(),
            ) {}
        };
        let in_time = tokio::time::timeout(TIME_LIMIT, wait).await;
        in_time.unwrap_or_else(|_| panic!("waited {TIME_LIMIT:?} for {what}"));
    }

    /// Begins an upload. Returns its id.
    pub async fn begin(&self, name: &str, size_bytes: u64) -> Result<String, Status> {
        let request = BeginUploadRequest {
            name: name.to_owned(),
            size_bytes,
            chunker: Some(ChunkerParameters {
                version: CHUNKER_VERSION,
            }),
            tags: Default::default(),
            ..BeginUploadRequest::default()
        };
        Ok(self
            .content
            .clone()
            .begin_upload(request)
            .await?
            .into_inner()
            .upload_id)
    }

    /// Sends chunks, in messages of an ordinary size.
    pub async fn put_chunks(
        &self,
        upload_id: &str,
        chunks: &[Chunk],
    ) -> Result<PutChunksResponse, Status> {
        let mut messages: Vec<PutChunksRequest> = Vec::new();
        let mut room = 0;
        for chunk in chunks {
            if messages.is_empty() || room < chunk.payload.len() {
                messages.push(PutChunksRequest {
                    upload_id: upload_id.to_owned(),
                    chunks: Vec::new(),
                });
                room = MESSAGE_BYTES;
            }
            room -= chunk.payload.len().min(room);
            messages
                .last_mut()
                .expect("one was just made")
                .chunks
                .push(chunk.clone());
        }
        Ok(self
            .content
            .clone()
            .put_chunks(iter(messages))
            .await?
            .into_inner())
    }

    /// Sends leaves, in one message.
    pub async fn put_leaves(&self, upload_id: &str, leaves: &[Leaf]) -> Result<(), Status> {
        let request = PutLeavesRequest {
            upload_id: upload_id.to_owned(),
            leaves: leaves.to_vec(),
        };
        self.content.clone().put_leaves(request).await.map(drop)
    }

    /// Commits.
    pub async fn commit(&self, upload_id: &str, root: RootId) -> Result<Snapshot, Status> {
        let request = CommitUploadRequest {
            upload_id: upload_id.to_owned(),
            root: Bytes::copy_from_slice(root.as_bytes()),
        };
        let response = self
            .content
            .clone()
            .commit_upload(request)
            .await?
            .into_inner();
        Ok(response
            .snapshot
            .expect("a commit answers with the snapshot"))
    }

    /// Runs a whole, correct upload.
    pub async fn upload(&self, name: &str, content: &Content) -> Result<Snapshot, Status> {
        let upload_id = self.begin(name, content.size_bytes).await?;
        self.put_chunks(&upload_id, &content.chunks).await?;
        self.put_leaves(&upload_id, &content.leaves).await?;
        self.commit(&upload_id, content.root).await
    }
}

/// A volume's content, cut and hashed for an upload.
#[derive(Debug, Clone)]
pub struct Content {
    /// The volume's size.
    pub size_bytes: u64,
    /// Its chunks, in order.
    pub chunks: Vec<Chunk>,
    /// Its leaves.
    pub leaves: Vec<Leaf>,
    /// Its root.
    pub root: RootId,
}

impl Content {
    /// Cuts a volume.
    #[must_use]
    pub fn of(volume: &[u8]) -> Self {
        let size_bytes = volume.len() as u64;
        let mut chunks = Vec::new();
        let mut leaves = Vec::new();
        let mut builder =
            TreeBuilder::new(size_bytes).expect("a volume has a size that a tree takes");
        for (segment, bytes) in (0..).zip(volume.chunks(SEGMENT_BYTES)) {
            let mut padded = bytes.to_vec();
            padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            let mut cuts = Vec::new();
            cut_segment(&padded, &mut cuts);
            let mut entries = Vec::new();
            for cut in &cuts {
                let start = cut.start_block as usize * BLOCK_BYTES;
                let chunk = chunk(&padded[start..start + cut.blocks as usize * BLOCK_BYTES]);
                entries.push(LeafEntry {
                    start_block: cut.start_block,
                    blocks: cut.blocks,
                    chunk_id: chunk.id.clone(),
                });
                chunks.push(chunk);
            }
            if !entries.is_empty() {
                builder
                    .push(segment, node(&entries).id())
                    .expect("leaves are pushed in order");
                leaves.push(Leaf { segment, entries });
            }
        }
        let (root, _) = builder.finish();
        Self {
            size_bytes,
            chunks,
            leaves,
            root: root.id(),
        }
    }
}

/// A chunk of these plain bytes, as it is sent over a unix socket.
#[must_use]
pub fn chunk(plain: &[u8]) -> Chunk {
    Chunk {
        id: Bytes::copy_from_slice(ChunkId::of(plain).as_bytes()),
        codec: Codec::Raw.into(),
        plain_bytes: u32::try_from(plain.len()).expect("a chunk is small"),
        payload: Bytes::copy_from_slice(plain),
    }
}

fn node(entries: &[LeafEntry]) -> tree::Leaf {
    let entries = entries.iter().map(|entry| tree::LeafEntry {
        start_block: entry.start_block,
        blocks: entry.blocks,
        chunk: ChunkId::try_from(entry.chunk_id.as_ref()).expect("an id of 32 bytes"),
    });
    tree::Leaf::new(entries.collect()).expect("cuts make a leaf")
}
