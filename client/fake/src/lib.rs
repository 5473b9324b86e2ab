//! A daemon for tests: content in memory, and the protocol's rules checked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod accounts;
mod content;
mod copies;
mod gc;
mod replication;
mod snapshots;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Runtime,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Server,
};
use varve_client::{ADMINISTRATOR, Client, Endpoint};
use varve_content::{
    chunk_id::ChunkId,
    codec::Compression,
    tree::{Leaf, TreeBuilder},
};
use varve_proto::v1::{
    self, account_service_server::AccountServiceServer,
    content_service_server::ContentServiceServer, copy_service_server::CopyServiceServer,
    gc_service_server::GcServiceServer, remote_service_server::RemoteServiceServer,
    replication_service_server::ReplicationServiceServer,
    snapshot_service_server::SnapshotServiceServer, status_service_server::StatusServiceServer,
    volume_service_server::VolumeServiceServer,
};

pub use self::accounts::Accounts;
use self::{content::Upload, replication::Nodes};

/// The state of the daemon, and a record of its calls.
#[derive(Debug, Default)]
pub struct State {
    pub accounts: Accounts,
    pub chunks: HashMap<ChunkId, Bytes>,
    pub snapshots: BTreeMap<String, (v1::Snapshot, Vec<v1::Leaf>)>,
    /// Nodes of the trees of all snapshots, also of those that were deleted.
    pub nodes: Nodes,
    pub fetched_nodes: usize,
    pub fetched_chunks: usize,
    pub volumes: BTreeMap<String, v1::Volume>,
    /// Snapshots that others delete just before several are deleted.
    pub deleted_meanwhile: Vec<String>,
    /// Calls that delete several snapshots.
    pub deletions: usize,
    /// The states that the daemon reports of the next snapshot, one after the other.
    pub snapshot_course: Vec<v1::Snapshot>,
    /// The states that the daemon reports of each copy, one after the other.
    pub copies: BTreeMap<String, Vec<v1::Copy>>,
    /// The states and errors of copies that begin from now on.
    pub course: Vec<v1::Copy>,
    pub remotes: BTreeMap<String, v1::Remote>,
    /// Options of the last collection.
    pub gc_options: Option<v1::GcOptions>,
    pub uploads: HashMap<String, Upload>,
    pub begun: usize,
    pub aborted: usize,
    /// Chunks received, in order.
    pub put: Vec<ChunkId>,
    pub payload_bytes: u64,
    pub asked: usize,
    pub pages: usize,
    /// This many answers with chunks are refused, because too much is under way.
    pub busy: usize,
}

/// How the daemon misbehaves, and its limits.
#[derive(Clone, Debug)]
pub struct Manners {
    pub ids_max: u32,
    pub message_bytes_max: u32,
    /// After this many chunks, the next one is refused with this error.
    pub refuse_after: Option<(usize, Status)>,
    /// Changes the parts of a download.
    pub spoil: fn(Vec<v1::DownloadResponse>) -> Vec<v1::DownloadResponse>,
    /// Changes each node and chunk that is requested by its id.
    pub spoil_node: fn(v1::Node) -> v1::Node,
    pub spoil_chunk: fn(v1::Chunk) -> v1::Chunk,
    /// Changes all messages of an answer with chunks.
    pub spoil_chunks: fn(Vec<v1::FetchChunksResponse>) -> Vec<v1::FetchChunksResponse>,
    /// Snapshots that one call deletes, at most.
    pub deletions_max: usize,
    /// The differences that the daemon reports between snapshots.
    pub differences: fn() -> Vec<v1::DiffSnapshotsResponse>,
    /// Calls, by their names in the protocol, that are answered this much later.
    pub slow: &'static [(&'static str, Duration)],
    pub compression: Compression,
    /// Pause before each message of chunks is taken.
    pub delay: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            ids_max: 1000,
            message_bytes_max: 1 << 20,
            refuse_after: None,
            spoil: |parts| parts,
            spoil_node: |node| node,
            spoil_chunk: |chunk| chunk,
            spoil_chunks: |answers| answers,
            deletions_max: 1000,
            differences: snapshots::differences,
            slow: &[],
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
pub struct FakeDaemon {
    pub endpoint: Endpoint,
    state: Arc<Mutex<State>>,
    /// Its own, so that its connections end with it.
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl FakeDaemon {
    /// On a unix socket.
    pub fn start(manners: Manners) -> Self {
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

    pub fn start_tcp(manners: Manners) -> Self {
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

    pub async fn client(&self) -> Client {
        Client::connect(&self.endpoint).await.unwrap()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Makes a snapshot of a tree of these leaves, which may be invalid.
    pub fn plant(&self, name: &str, size_bytes: u64, leaves: &[(u32, Leaf)]) {
        let mut tree = TreeBuilder::new(size_bytes).unwrap();
        for (segment, leaf) in leaves {
            tree.push(*segment, leaf.id()).unwrap();
        }
        let (root, inners) = tree.finish();
        let leaves: Vec<_> = leaves.iter().map(|(_, leaf)| leaf.clone()).collect();
        let snapshot = v1::Snapshot {
            id: format!("snap-{name}"),
            name: name.to_owned(),
            state: v1::SnapshotState::Completed.into(),
            size_bytes,
            root: Bytes::copy_from_slice(root.id().as_bytes()),
            created_at: Some(prost_types::Timestamp::default()),
            owner: ADMINISTRATOR.to_owned(),
            ..v1::Snapshot::default()
        };
        let mut state = self.state();
        state.nodes.add(&root, &inners, &leaves);
        let planted = (snapshot, Vec::new());
        state.snapshots.insert(name.to_owned(), planted);
    }

    /// A place for files that goes away with the daemon.
    pub fn path(&self, name: &str) -> PathBuf {
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
    let content = ContentServiceServer::new(service.clone()).max_decoding_message_size(2 << 20);
    let router = Server::builder()
        // It checks its calls itself: everybody may ask who they are.
        .add_service(AccountServiceServer::new(service.clone()))
        .add_service(service.checked(content))
        .add_service(service.checked(SnapshotServiceServer::new(service.clone())))
        .add_service(service.checked(VolumeServiceServer::new(service.clone())))
        .add_service(service.checked(CopyServiceServer::new(service.clone())))
        .add_service(service.checked(RemoteServiceServer::new(service.clone())))
        .add_service(service.checked(ReplicationServiceServer::new(service.clone())))
        .add_service(service.checked(GcServiceServer::new(service.clone())))
        .add_service(service.checked(StatusServiceServer::new(service.clone())));
    (state, router)
}

/// Checks who calls.
#[derive(Clone, Debug)]
struct Guard(Arc<Mutex<State>>);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut state = self.0.lock().unwrap();
        state.accounts.admit(request.metadata())?;
        Ok(request)
    }
}

impl Service {
    /// A service whose calls are checked.
    fn checked<S>(&self, service: S) -> InterceptedService<S, Guard> {
        InterceptedService::new(service, Guard(Arc::clone(&self.state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits if this call is slow.
    async fn take_time(&self, call: &str) {
        let slow = self.manners.slow.iter().find(|(slow, _)| *slow == call);
        if let Some((_, delay)) = slow {
            tokio::time::sleep(*delay).await;
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
