//! Uploads and downloads.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};
use varve_client::ADMINISTRATOR;
use varve_content::{
    block::{BLOCK_BYTES, segment_blocks},
    chunk_id::ChunkId,
    chunker::{CHUNKER_VERSION, check_canonical},
    codec::{Codec, Decoder, Encoder},
    tree::{Leaf, LeafEntry, TreeBuilder},
};
use varve_proto::v1::{self, content_service_server::ContentService, download_response::Part};

use super::{Answers, Service};

#[derive(Debug)]
pub struct Upload {
    request: v1::BeginUploadRequest,
    /// Chunks that the upload may name: those found, and those put.
    pinned: HashSet<ChunkId>,
    leaves: BTreeMap<u32, v1::Leaf>,
    new_bytes: u64,
}

fn id(bytes: &[u8]) -> Result<ChunkId, Status> {
    ChunkId::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn unknown(upload_id: &str) -> Status {
    Status::not_found(format!("no upload {upload_id}"))
}

impl Service {
    fn begun(&self, request: v1::BeginUploadRequest) -> Result<v1::BeginUploadResponse, Status> {
        let mut state = self.state();
        if state.snapshots.contains_key(&request.name) {
            return Err(Status::already_exists(format!(
                "snapshot {} exists",
                request.name
            )));
        }
        assert_eq!(request.chunker.unwrap().version, CHUNKER_VERSION);
        state.begun += 1;
        let upload_id = format!("upload-{}", state.begun);
        let upload = Upload {
            request,
            pinned: HashSet::new(),
            leaves: BTreeMap::new(),
            new_bytes: 0,
        };
        state.uploads.insert(upload_id.clone(), upload);
        Ok(v1::BeginUploadResponse {
            upload_id,
            max_ids: self.manners.ids_max,
            max_message_bytes: self.manners.message_bytes_max,
        })
    }
}

#[tonic::async_trait]
impl ContentService for Service {
    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadResponse>, Status> {
        let request = request.into_inner();
        let begun = self.begun(request);
        self.take_time("BeginUpload").await;
        begun.map(Response::new)
    }

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        let request = request.into_inner();
        let state = &mut *self.state();
        state.asked += 1;
        let upload = state
            .uploads
            .get_mut(&request.upload_id)
            .ok_or_else(|| unknown(&request.upload_id))?;
        let ids = request
            .ids
            .chunks(32)
            .map(id)
            .collect::<Result<Vec<_>, _>>()?;
        assert!(
            ids.len() <= self.manners.ids_max as usize,
            "{} ids in one request",
            ids.len()
        );
        let mut missing = Vec::new();
        for (position, id) in (0..).zip(ids) {
            if state.chunks.contains_key(&id) {
                upload.pinned.insert(id);
            } else {
                missing.push(position);
            }
        }
        Ok(Response::new(v1::FindMissingResponse { missing }))
    }

    async fn put_chunks(
        &self,
        request: Request<Streaming<v1::PutChunksRequest>>,
    ) -> Result<Response<v1::PutChunksResponse>, Status> {
        let mut messages = request.into_inner();
        let mut answer = v1::PutChunksResponse::default();
        while let Some(message) = messages.message().await? {
            tokio::time::sleep(self.manners.delay).await;
            let state = &mut *self.state();
            let upload = state
                .uploads
                .get_mut(&message.upload_id)
                .ok_or_else(|| unknown(&message.upload_id))?;
            let payload: usize = message.chunks.iter().map(|chunk| chunk.payload.len()).sum();
            assert!(
                payload <= self.manners.message_bytes_max as usize || message.chunks.len() == 1
            );
            for chunk in message.chunks {
                if let Some((after, status)) = &self.manners.refuse_after
                    && state.put.len() >= *after
                {
                    return Err(status.clone());
                }
                let id = id(&chunk.id)?;
                let codec = Codec::try_from(u8::try_from(chunk.codec).unwrap()).unwrap();
                let mut plain = Vec::new();
                Decoder::new()
                    .decode(
                        codec,
                        &chunk.payload,
                        chunk.plain_bytes as usize,
                        &mut plain,
                    )
                    .unwrap();
                assert_eq!(ChunkId::of(&plain), id);
                check_canonical(&plain).unwrap();
                state.put.push(id);
                state.payload_bytes += chunk.payload.len() as u64;
                answer.chunks += 1;
                if state.chunks.insert(id, plain.into()).is_none() {
                    answer.new_bytes += u64::from(chunk.plain_bytes);
                    upload.new_bytes += u64::from(chunk.plain_bytes);
                }
                upload.pinned.insert(id);
            }
        }
        Ok(Response::new(answer))
    }

    async fn put_leaves(
        &self,
        request: Request<v1::PutLeavesRequest>,
    ) -> Result<Response<v1::PutLeavesResponse>, Status> {
        let request = request.into_inner();
        let state = &mut *self.state();
        let upload = state
            .uploads
            .get_mut(&request.upload_id)
            .ok_or_else(|| unknown(&request.upload_id))?;
        for leaf in request.leaves {
            // If the store has a leaf, it has the leaf's chunks.
            let is_known = state.nodes.has_leaf(&self::leaf(&leaf));
            for entry in &leaf.entries {
                let id = id(&entry.chunk_id)?;
                assert!(
                    is_known || upload.pinned.contains(&id),
                    "segment {} names {id} too early",
                    leaf.segment
                );
            }
            let segment = leaf.segment;
            assert!(
                upload.leaves.insert(segment, leaf).is_none(),
                "segment {segment} comes twice"
            );
        }
        Ok(Response::new(v1::PutLeavesResponse {}))
    }

    async fn commit_upload(
        &self,
        request: Request<v1::CommitUploadRequest>,
    ) -> Result<Response<v1::CommitUploadResponse>, Status> {
        let request = request.into_inner();
        let state = &mut *self.state();
        let upload = state
            .uploads
            .remove(&request.upload_id)
            .ok_or_else(|| unknown(&request.upload_id))?;
        let mut tree = TreeBuilder::new(upload.request.size_bytes).unwrap();
        let mut data_bytes = 0;
        let mut decoded = Vec::new();
        for message in upload.leaves.values() {
            let leaf = leaf(message);
            assert!(leaf.end_block() <= segment_blocks(upload.request.size_bytes, message.segment));
            data_bytes += u64::from(leaf.data_blocks()) * BLOCK_BYTES as u64;
            tree.push(message.segment, leaf.id()).unwrap();
            decoded.push(leaf);
        }
        let (root, inners) = tree.finish();
        state.nodes.add(&root, &inners, &decoded);
        let root = root.id();
        assert_eq!(&request.root[..], root.as_bytes());
        let snapshot = v1::Snapshot {
            id: format!("snap-{:017x}", state.begun),
            name: upload.request.name.clone(),
            state: v1::SnapshotState::Completed.into(),
            size_bytes: upload.request.size_bytes,
            data_bytes,
            root: Bytes::copy_from_slice(root.as_bytes()),
            created_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 5_000_000,
            }),
            tags: upload.request.tags,
            new_bytes: upload.new_bytes,
            stored_bytes: upload.new_bytes / 3,
            owner: ADMINISTRATOR.to_owned(),
            ..v1::Snapshot::default()
        };
        let leaves = upload.leaves.into_values().collect();
        state
            .snapshots
            .insert(upload.request.name, (snapshot.clone(), leaves));
        Ok(Response::new(v1::CommitUploadResponse {
            snapshot: Some(snapshot),
        }))
    }

    async fn abort_upload(
        &self,
        request: Request<v1::AbortUploadRequest>,
    ) -> Result<Response<v1::AbortUploadResponse>, Status> {
        let upload_id = request.into_inner().upload_id;
        let mut state = self.state();
        state
            .uploads
            .remove(&upload_id)
            .ok_or_else(|| unknown(&upload_id))?;
        state.aborted += 1;
        Ok(Response::new(v1::AbortUploadResponse {}))
    }

    type DownloadStream = Answers<v1::DownloadResponse>;

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let request = request.into_inner();
        let state = self.state();
        let Some((snapshot, leaves)) = state.snapshots.get(&request.snapshot) else {
            return Err(Status::not_found(format!(
                "no snapshot {}",
                request.snapshot
            )));
        };
        let mut encoder = Encoder::new(self.manners.compression);
        let mut parts = vec![Part::Snapshot(snapshot.clone())];
        for message in leaves {
            parts.push(Part::Leaf(message.clone()));
            let mut sent = HashSet::new();
            let mut chunks = Vec::new();
            for entry in &message.entries {
                if !sent.insert(entry.chunk_id.clone()) {
                    continue;
                }
                let plain = &state.chunks[&id(&entry.chunk_id)?];
                let (codec, payload) = encoder.encode(plain);
                chunks.push(v1::Chunk {
                    id: entry.chunk_id.clone(),
                    codec: codec as i32,
                    plain_bytes: u32::try_from(plain.len()).unwrap(),
                    payload: Bytes::copy_from_slice(payload),
                });
                if chunks.len() == 10 {
                    parts.push(Part::Chunks(v1::ChunkBatch {
                        chunks: std::mem::take(&mut chunks),
                    }));
                }
            }
            if !chunks.is_empty() {
                parts.push(Part::Chunks(v1::ChunkBatch { chunks }));
            }
        }
        let parts = parts
            .into_iter()
            .map(|part| v1::DownloadResponse { part: Some(part) })
            .collect();
        Ok(Response::new(
            stream::iter((self.manners.spoil)(parts)).map(Ok).boxed(),
        ))
    }

    type ReadSnapshotStream = Answers<v1::ReadSnapshotResponse>;

    async fn read_snapshot(
        &self,
        _: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<Self::ReadSnapshotStream>, Status> {
        Err(Status::unimplemented("not for tests"))
    }
}

fn leaf(message: &v1::Leaf) -> Leaf {
    let entry = |entry: &v1::LeafEntry| LeafEntry {
        start_block: entry.start_block,
        blocks: entry.blocks,
        chunk: id(&entry.chunk_id).unwrap(),
    };
    Leaf::new(message.entries.iter().map(entry).collect()).unwrap()
}
