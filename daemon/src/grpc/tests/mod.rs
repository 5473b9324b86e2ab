//! The services as a client sees them: a whole daemon in this process, over its socket, with a real
//! store.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bad_uploads;
mod snapshots;
mod standard;
mod transfer;
mod volumes;

use std::collections::BTreeMap;

use bytes::Bytes;
use tempfile::TempDir;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use varve_content::{
    ChunkId, RootId,
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunker::{self, CHUNKER_VERSION},
    tree::{Leaf, LeafEntry, TreeBuilder},
};
use varve_proto::v1::{
    self, content_service_client::ContentServiceClient,
    snapshot_service_client::SnapshotServiceClient, status_service_client::StatusServiceClient,
    volume_service_client::VolumeServiceClient,
};

use crate::{config::Config, server::Server};

/// A daemon and a connection to it.
struct Daemon {
    server: Server,
    channel: Channel,
    config: Config,
    dir: TempDir,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(dir: TempDir) -> Self {
        let config = Config::for_data_dir(dir.path()).unwrap();
        let server = Server::start(&config).await.unwrap();
        let endpoint = format!("unix:{}", server.addresses().grpc_unix.display());
        let endpoint = Endpoint::from_shared(endpoint).unwrap();
        Self {
            server,
            channel: endpoint.connect().await.unwrap(),
            config,
            dir,
        }
    }

    /// Stops the daemon; its directory stays.
    async fn stop(self) -> TempDir {
        drop(self.channel);
        self.server.stop().await.unwrap();
        self.dir
    }

    fn content(&self) -> ContentServiceClient<Channel> {
        ContentServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone())
    }

    fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }

    fn status(&self) -> StatusServiceClient<Channel> {
        StatusServiceClient::new(self.channel.clone())
    }

    async fn begin(&self, name: &str, size_bytes: u64) -> Result<String, Status> {
        let request = v1::BeginUploadRequest {
            name: name.to_owned(),
            size_bytes,
            chunker: Some(v1::ChunkerParameters {
                version: CHUNKER_VERSION,
            }),
            tags: BTreeMap::new(),
            ..v1::BeginUploadRequest::default()
        };
        Ok(self
            .content()
            .begin_upload(request)
            .await?
            .into_inner()
            .upload_id)
    }

    /// Uploads a volume as a client does. The answer has the number of new bytes.
    async fn upload(&self, name: &str, volume: &[u8]) -> v1::Snapshot {
        let cut = Cut::of(volume);
        let upload_id = self.begin(name, volume.len() as u64).await.unwrap();
        let missing = self.find_missing(&upload_id, &cut.chunks).await;
        self.put_chunks(&upload_id, missing).await.unwrap();
        self.put_leaves(&upload_id, cut.leaves.clone())
            .await
            .unwrap();
        self.commit(&upload_id, cut.root).await.unwrap()
    }

    async fn find_missing(&self, upload_id: &str, chunks: &[v1::Chunk]) -> Vec<v1::Chunk> {
        let mut missing = Vec::new();
        for group in chunks.chunks(1000) {
            let request = v1::FindMissingRequest {
                upload_id: upload_id.to_owned(),
                ids: group.iter().flat_map(|chunk| chunk.id.to_vec()).collect(),
                segments: Vec::new(),
            };
            let answer = self
                .content()
                .find_missing(request)
                .await
                .unwrap()
                .into_inner();
            missing.extend(
                answer
                    .missing
                    .iter()
                    .map(|position| group[*position as usize].clone()),
            );
        }
        missing
    }

    async fn put_chunks(
        &self,
        upload_id: &str,
        chunks: Vec<v1::Chunk>,
    ) -> Result<v1::PutChunksResponse, Status> {
        let messages: Vec<_> = chunks
            .chunks(16)
            .map(|chunks| v1::PutChunksRequest {
                upload_id: upload_id.to_owned(),
                chunks: chunks.to_vec(),
            })
            .collect();
        Ok(self
            .content()
            .put_chunks(futures::stream::iter(messages))
            .await?
            .into_inner())
    }

    async fn put_leaves(&self, upload_id: &str, leaves: Vec<v1::Leaf>) -> Result<(), Status> {
        let request = v1::PutLeavesRequest {
            upload_id: upload_id.to_owned(),
            leaves,
        };
        self.content().put_leaves(request).await.map(drop)
    }

    async fn commit(&self, upload_id: &str, root: RootId) -> Result<v1::Snapshot, Status> {
        let request = v1::CommitUploadRequest {
            upload_id: upload_id.to_owned(),
            root: Bytes::copy_from_slice(root.as_bytes()),
        };
        Ok(self
            .content()
            .commit_upload(request)
            .await?
            .into_inner()
            .snapshot
            .unwrap())
    }

    /// Names of all snapshots.
    async fn names(&self) -> Vec<String> {
        let listed = self
            .snapshots()
            .list_snapshots(v1::ListSnapshotsRequest::default())
            .await
            .unwrap();
        listed
            .into_inner()
            .snapshots
            .into_iter()
            .map(|snapshot| snapshot.name)
            .collect()
    }
}

/// A volume as a client cuts it.
struct Cut {
    /// Distinct chunks, plain.
    chunks: Vec<v1::Chunk>,
    leaves: Vec<v1::Leaf>,
    root: RootId,
}

impl Cut {
    fn of(volume: &[u8]) -> Self {
        let mut chunks = BTreeMap::new();
        let mut leaves = Vec::new();
        let mut tree = TreeBuilder::new(volume.len() as u64).unwrap();
        for (segment, bytes) in (0..).zip(volume.chunks(SEGMENT_BYTES)) {
            let mut cuts = Vec::new();
            chunker::cut_segment(bytes, &mut cuts);
            let mut entries = Vec::new();
            for cut in &cuts {
                let start = cut.start_block as usize * BLOCK_BYTES;
                let plain = &bytes[start..start + cut.blocks as usize * BLOCK_BYTES];
                chunks
                    .entry(ChunkId::of(plain))
                    .or_insert_with(|| plain.to_vec());
                entries.push(LeafEntry {
                    start_block: cut.start_block,
                    blocks: cut.blocks,
                    chunk: ChunkId::of(plain),
                });
            }
            if entries.is_empty() {
                continue;
            }
            leaves.push(leaf(segment, &entries));
            tree.push(segment, Leaf::new(entries).unwrap().id())
                .unwrap();
        }
        Self {
            chunks: chunks
                .into_iter()
                .map(|(id, plain)| chunk(id, plain))
                .collect(),
            leaves,
            root: tree.finish().0.id(),
        }
    }
}

fn chunk(id: ChunkId, plain: Vec<u8>) -> v1::Chunk {
    v1::Chunk {
        id: Bytes::copy_from_slice(id.as_bytes()),
        codec: v1::Codec::Raw.into(),
        plain_bytes: u32::try_from(plain.len()).unwrap(),
        payload: plain.into(),
    }
}

fn leaf(segment: u32, entries: &[LeafEntry]) -> v1::Leaf {
    v1::Leaf {
        segment,
        entries: entries
            .iter()
            .map(|entry| v1::LeafEntry {
                start_block: entry.start_block,
                blocks: entry.blocks,
                chunk_id: Bytes::copy_from_slice(entry.chunk.as_bytes()),
            })
            .collect(),
    }
}

/// Bytes that look random, the same for the same seed, and have no zero block.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut noise: Vec<u8> = std::iter::repeat_with(&mut next)
        .take(bytes.div_ceil(8))
        .flatten()
        .collect();
    noise.truncate(bytes);
    noise
}

/// A volume of two and a half segments, with a hole in the first and all of the second a hole.
fn sparse_volume(seed: u64) -> Vec<u8> {
    let mut volume = vec![0; SEGMENT_BYTES * 2 + SEGMENT_BYTES / 2];
    let half = SEGMENT_BYTES / 2;
    volume[..half].copy_from_slice(&noise(seed, half));
    volume[half + 64 * BLOCK_BYTES..half + 100 * BLOCK_BYTES]
        .copy_from_slice(&noise(seed + 1, 36 * BLOCK_BYTES));
    volume[2 * SEGMENT_BYTES..].copy_from_slice(&noise(seed + 2, half));
    volume
}
