//! A daemon for tests: content in memory, and the protocol's rules checked.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Runtime,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use varve_content::{
    block::{BLOCK_BYTES, segment_blocks},
    chunk_id::ChunkId,
    chunker::{CHUNKER_VERSION, check_canonical},
    codec::{Codec, Compression, Decoder, Encoder},
    tree::{Leaf, LeafEntry, TreeBuilder},
};
use varve_proto::v1::{
    self,
    content_service_server::{ContentService, ContentServiceServer},
    download_response::Part,
    snapshot_service_server::{SnapshotService, SnapshotServiceServer},
    status_service_server::{StatusService, StatusServiceServer},
};

use varve_client::{Client, Endpoint};

/// What the daemon has and has seen.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) chunks: HashMap<ChunkId, Bytes>,
    pub(crate) snapshots: BTreeMap<String, (v1::Snapshot, Vec<v1::Leaf>)>,
    pub(crate) uploads: HashMap<String, Upload>,
    pub(crate) begun: usize,
    pub(crate) aborted: usize,
    /// Chunks received, in order.
    pub(crate) put: Vec<ChunkId>,
    pub(crate) payload_bytes: u64,
    pub(crate) asked: usize,
    pub(crate) pages: usize,
}

#[derive(Debug)]
pub(crate) struct Upload {
    request: v1::BeginUploadRequest,
    /// Chunks the upload may name: asked about and there, or put.
    pinned: HashSet<ChunkId>,
    leaves: BTreeMap<u32, v1::Leaf>,
    new_bytes: u64,
}

/// How the daemon misbehaves, and its limits.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    pub(crate) ids_max: u32,
    pub(crate) message_bytes_max: u32,
    /// After this many chunks the next is refused so.
    pub(crate) refuse_after: Option<(usize, Status)>,
    /// The download's parts are put through this.
    pub(crate) spoil: fn(Vec<v1::DownloadResponse>) -> Vec<v1::DownloadResponse>,
    pub(crate) compression: Compression,
    /// Before each message of chunks is taken.
    pub(crate) delay: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            ids_max: 1000,
            message_bytes_max: 1 << 20,
            refuse_after: None,
            spoil: |parts| parts,
            compression: Compression::Zstd,
            delay: Duration::ZERO,
        }
    }
}

#[derive(Clone, Debug)]
struct Service {
    state: Arc<Mutex<State>>,
    manners: Manners,
}

/// A daemon that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct FakeDaemon {
    pub(crate) endpoint: Endpoint,
    state: Arc<Mutex<State>>,
    /// Its own, so that its connections end with it.
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl FakeDaemon {
    /// On a unix socket.
    pub(crate) fn start(manners: Manners) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grpc.sock");
        let (state, router) = services(manners);
        let runtime = runtime();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).unwrap();
            router
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            endpoint: Endpoint::unix(path),
            state,
            runtime: Some(runtime),
            dir,
        }
    }

    pub(crate) fn start_tcp(manners: Manners) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, router) = services(manners);
        let runtime = runtime();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            endpoint,
            state,
            runtime: Some(runtime),
            dir,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.endpoint).await.unwrap()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A place for files that goes away with the daemon.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn services(manners: Manners) -> (Arc<Mutex<State>>, tonic::transport::server::Router) {
    let state = Arc::<Mutex<State>>::default();
    let service = Service {
        state: Arc::clone(&state),
        manners,
    };
    let router = Server::builder()
        .add_service(ContentServiceServer::new(service.clone()).max_decoding_message_size(2 << 20))
        .add_service(SnapshotServiceServer::new(service.clone()))
        .add_service(StatusServiceServer::new(service));
    (state, router)
}

impl Service {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn id(bytes: &[u8]) -> Result<ChunkId, Status> {
    ChunkId::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn unknown(upload_id: &str) -> Status {
    Status::not_found(format!("no upload {upload_id}"))
}

#[tonic::async_trait]
impl ContentService for Service {
    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadResponse>, Status> {
        let request = request.into_inner();
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
        Ok(Response::new(v1::BeginUploadResponse {
            upload_id,
            max_ids: self.manners.ids_max,
            max_message_bytes: self.manners.message_bytes_max,
        }))
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
            for entry in &leaf.entries {
                let id = id(&entry.chunk_id)?;
                assert!(
                    upload.pinned.contains(&id),
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
        for message in upload.leaves.values() {
            let leaf = leaf(message);
            assert!(leaf.end_block() <= segment_blocks(upload.request.size_bytes, message.segment));
            data_bytes += u64::from(leaf.data_blocks()) * BLOCK_BYTES as u64;
            tree.push(message.segment, leaf.id()).unwrap();
        }
        let root = tree.finish().0.id();
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

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SnapshotService for Service {
    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        state.pages += 1;
        let mut snapshots: Vec<_> = state
            .snapshots
            .values()
            .map(|(snapshot, _)| snapshot)
            .filter(|snapshot| snapshot.name.starts_with(&request.name_prefix))
            .filter(|snapshot| snapshot.name > request.page_token)
            .cloned()
            .collect();
        let mut next_page_token = String::new();
        if snapshots.len() > request.page_size as usize {
            snapshots.truncate(request.page_size as usize);
            next_page_token = snapshots.last().unwrap().name.clone();
        }
        Ok(Response::new(v1::ListSnapshotsResponse {
            snapshots,
            next_page_token,
        }))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let name = request.into_inner().snapshot;
        let state = self.state();
        let (snapshot, _) = state
            .snapshots
            .get(&name)
            .ok_or_else(|| Status::not_found(format!("no snapshot {name}")))?;
        Ok(Response::new(snapshot.clone()))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let name = request.into_inner().snapshot;
        let removed = self.state().snapshots.remove(&name);
        let (snapshot, _) =
            removed.ok_or_else(|| Status::not_found(format!("no snapshot {name}")))?;
        Ok(Response::new(v1::DeleteSnapshotResponse {
            deleted: Some(snapshot),
        }))
    }

    async fn tag_snapshot(
        &self,
        request: Request<v1::TagSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let v1::TagSnapshotRequest {
            snapshot: name,
            set,
            remove,
        } = request.into_inner();
        let mut state = self.state();
        let (snapshot, _) = state
            .snapshots
            .get_mut(&name)
            .ok_or_else(|| Status::not_found(format!("no snapshot {name}")))?;
        snapshot.tags.retain(|key, _| !remove.contains(key));
        snapshot.tags.extend(set);
        Ok(Response::new(snapshot.clone()))
    }

    type DiffSnapshotsStream = Answers<v1::DiffSnapshotsResponse>;

    async fn diff_snapshots(
        &self,
        _: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        let extent = |offset_bytes, kind: v1::DiffKind| v1::DiffExtent {
            offset_bytes,
            length_bytes: 4096,
            kind: kind.into(),
        };
        let answers = [
            Ok(v1::DiffSnapshotsResponse {
                extents: vec![extent(0, v1::DiffKind::Changed)],
            }),
            Ok(v1::DiffSnapshotsResponse {
                extents: vec![
                    extent(8192, v1::DiffKind::Added),
                    extent(16384, v1::DiffKind::Removed),
                ],
            }),
        ];
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    type VerifySnapshotStream = Answers<v1::VerifySnapshotResponse>;

    async fn verify_snapshot(
        &self,
        _: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        let violation = v1::Violation {
            message: "chunk 00 in pack 1".to_owned(),
            offset_bytes: 4096,
        };
        let answers = [
            Ok(v1::VerifySnapshotResponse {
                checked: 1,
                violations: vec![violation],
                ..Default::default()
            }),
            Ok(v1::VerifySnapshotResponse {
                checked: 2,
                done: true,
                ..Default::default()
            }),
        ];
        Ok(Response::new(stream::iter(answers).boxed()))
    }
}

#[tonic::async_trait]
impl StatusService for Service {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse {
            version: "1.2.3".to_owned(),
            store_id: "5eed".to_owned(),
            format_version: 1,
            chunker_version: CHUNKER_VERSION,
            data_dir: "/data".to_owned(),
            started_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            snapshots: 2,
            logical_bytes: 8 << 30,
            chunks: 3,
            chunk_bytes: 300 << 10,
            stored_bytes: 100 << 10,
            packs: 1,
            io_engine: "io_uring".to_owned(),
            compression: "zstd".to_owned(),
            free_bytes: 1 << 40,
            read_only_reason: "fdatasync failed".to_owned(),
            nbd_uris: vec!["nbd+unix:///?socket=/data/nbd.sock".to_owned()],
            ..Default::default()
        }))
    }
}
