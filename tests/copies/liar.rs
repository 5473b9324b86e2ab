//! A source that lies: it is refused and named, and harms nothing.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
    sync::mpsc,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, async_trait, transport::Server};
use varve_content::{
    BLOCK_BYTES, ChunkId, NodeId, SEGMENT_BYTES,
    chunker::cut_segment,
    tree::{InnerNode, Leaf, LeafEntry, Root, TreeBuilder},
};
use varve_proto::v1::{
    self,
    replication_service_server::{ReplicationService, ReplicationServiceServer},
    snapshot_service_server::{SnapshotService, SnapshotServiceServer},
};
use varve_tests::{
    lab::Lab,
    process::run,
    random::Random,
    snapctl::{exit, number, text},
};

/// The lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// None.
    None,
    /// The root has other bytes.
    RootBytes,
    /// Another chunker cut the content.
    Chunker,
    /// The snapshot is reported larger than its root says.
    Size,
    /// A node has other bytes.
    NodeBytes,
    /// Inner nodes stand where leaves belong, with valid ids.
    Levels,
    /// Segments behind the end of the volume, with valid ids.
    Outside,
    /// A chunk of another length than its leaf says, with valid ids.
    LeafLengths,
    /// Chunks that the chunker would not cut, with valid ids.
    Cuts,
    /// One node less than requested.
    FewNodes,
    /// A chunk has other bytes.
    ChunkBytes,
    /// A chunk in place of another.
    OtherChunk,
    /// A chunk that unpacks to more than its stated length.
    Bomb,
    /// Endless chunks.
    Endless,
    /// Missing chunks.
    FewChunks,
    /// Endless messages without chunks.
    Empty,
}

/// Content with a tree, and the lie in it.
struct Source {
    runtime: Handle,
    lie: Lie,
    snapshot: v1::Snapshot,
    nodes: HashMap<Vec<u8>, v1::Node>,
    leaves: HashMap<Vec<u8>, Vec<ChunkId>>,
    chunks: HashMap<ChunkId, Bytes>,
}

impl Source {
    fn new(runtime: &Handle, lie: Lie, name: &str, image: &[u8]) -> Self {
        let mut source = Self {
            runtime: runtime.clone(),
            lie,
            snapshot: v1::Snapshot::default(),
            nodes: HashMap::new(),
            leaves: HashMap::new(),
            chunks: HashMap::new(),
        };
        let mut tops = Vec::new();
        for (number, segment) in (0u32..).zip(image.chunks(SEGMENT_BYTES)) {
            let mut cuts = Vec::new();
            cut_segment(segment, &mut cuts);
            let mut entries: Vec<_> = cuts
                .iter()
                .map(|cut| source.chunk(&segment[cut.byte_range()], cut.start_block, cut.blocks))
                .collect();
            if lie == Lie::LeafLengths {
                entries[1].blocks -= 1;
            }
            if lie == Lie::Cuts {
                let blocks = (0u32..).zip(segment.chunks(BLOCK_BYTES)).take(64);
                entries = blocks
                    .map(|(at, block)| source.chunk(block, at, 1))
                    .collect();
            }
            let leaf = Leaf::new(entries).unwrap();
            let chunks = leaf.entries().iter().map(|entry| entry.chunk).collect();
            source.leaves.insert(leaf.id().as_bytes().to_vec(), chunks);
            let payload_bytes = leaf.entries().iter().map(|entry| entry.blocks * 4096);
            source.node(leaf.id(), leaf.encode(), payload_bytes.collect());
            tops.push((number, leaf.id()));
        }
        let size_bytes = image.len() as u64;
        let mut root = match lie {
            Lie::Levels | Lie::Outside => source.crooked(lie, size_bytes, tops),
            _ => {
                let mut builder = TreeBuilder::new(size_bytes).unwrap();
                for (number, id) in tops {
                    builder.push(number, id).unwrap();
                }
                let (root, inners) = builder.finish();
                for inner in inners {
                    source.node(inner.id(), inner.encode(), Vec::new());
                }
                root
            }
        };
        if lie == Lie::Chunker {
            root.chunker_version = 99;
        }
        let encoded = root.encode().to_vec();
        let node = v1::Node {
            encoded: encoded.into(),
            payload_bytes: Vec::new(),
        };
        source.nodes.insert(root.id().as_bytes().to_vec(), node);
        source.snapshot = v1::Snapshot {
            id: "snap-00000000000000001".to_owned(),
            name: name.to_owned(),
            state: v1::SnapshotState::Completed.into(),
            size_bytes: size_bytes + u64::from(lie == Lie::Size),
            data_bytes: size_bytes,
            root: Bytes::copy_from_slice(root.id().as_bytes()),
            created_at: Some(v1_time()),
            ..v1::Snapshot::default()
        };
        source
    }

    fn chunk(&mut self, plain: &[u8], start_block: u32, blocks: u32) -> LeafEntry {
        let chunk = ChunkId::of(plain);
        self.chunks.insert(chunk, Bytes::copy_from_slice(plain));
        LeafEntry {
            start_block,
            blocks,
            chunk,
        }
    }

    fn node(&mut self, id: NodeId, encoded: Vec<u8>, payload_bytes: Vec<u32>) {
        let node = v1::Node {
            encoded: encoded.into(),
            payload_bytes,
        };
        self.nodes.insert(id.as_bytes().to_vec(), node);
    }

    /// A tree with valid ids and an invalid shape.
    fn crooked(&mut self, lie: Lie, size_bytes: u64, leaves: Vec<(u32, NodeId)>) -> Root {
        let inner = |level, children| InnerNode::new(level, children).unwrap();
        let top = if lie == Lie::Outside {
            inner(1, vec![(0, leaves[0].1), (200, leaves[1].1)])
        } else {
            let below = inner(1, vec![(0, leaves[0].1)]);
            self.node(below.id(), below.encode(), Vec::new());
            inner(1, vec![(0, below.id())])
        };
        self.node(top.id(), top.encode(), Vec::new());
        Root {
            size_bytes,
            chunker_version: varve_content::chunker::CHUNKER_VERSION,
            top: Some(top.id()),
        }
    }
}

fn v1_time() -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: 1_700_000_000,
        nanos: 0,
    }
}

/// The service for tonic.
#[derive(Clone)]
struct Served(Arc<Source>);

type Stream<T> = ReceiverStream<Result<T, Status>>;

fn no<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not here"))
}

#[async_trait]
impl SnapshotService for Served {
    type DiffSnapshotsStream = Stream<v1::DiffSnapshotsResponse>;
    type VerifySnapshotStream = Stream<v1::VerifySnapshotResponse>;

    async fn list_snapshots(
        &self,
        _: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        no()
    }

    async fn get_snapshot(
        &self,
        _: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        Ok(Response::new(self.0.snapshot.clone()))
    }

    async fn create_snapshots(
        &self,
        _: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        no()
    }

    async fn delete_snapshot(
        &self,
        _: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        no()
    }

    async fn delete_snapshots(
        &self,
        _: Request<v1::DeleteSnapshotsRequest>,
    ) -> Result<Response<v1::DeleteSnapshotsResponse>, Status> {
        no()
    }

    async fn tag_snapshot(
        &self,
        _: Request<v1::TagSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        no()
    }

    async fn give_snapshot(
        &self,
        _: Request<v1::GiveSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        no()
    }

    async fn share_snapshot(
        &self,
        _: Request<v1::ShareSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        no()
    }

    async fn unshare_snapshot(
        &self,
        _: Request<v1::UnshareSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        no()
    }

    async fn diff_snapshots(
        &self,
        _: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        no()
    }

    async fn verify_snapshot(
        &self,
        _: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        no()
    }
}

#[async_trait]
impl ReplicationService for Served {
    type FetchChunksStream = Stream<v1::FetchChunksResponse>;
    type HoldStream = Stream<v1::HoldResponse>;

    /// As a daemon that is older than holds.
    async fn hold(
        &self,
        _: Request<v1::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        no()
    }

    async fn fetch_nodes(
        &self,
        request: Request<v1::FetchNodesRequest>,
    ) -> Result<Response<v1::FetchNodesResponse>, Status> {
        let (lie, wanted) = (self.0.lie, request.into_inner().nodes);
        let mut nodes = Vec::new();
        for wanted in wanted {
            let node = self.0.nodes.get(&wanted.id[..]);
            let mut node = node
                .cloned()
                .ok_or_else(|| Status::not_found("no such node"))?;
            let is_root = wanted.kind == v1::NodeKind::Root as i32;
            if lie == Lie::RootBytes && is_root || lie == Lie::NodeBytes && !is_root {
                let mut bytes = node.encoded.to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                node.encoded = bytes.into();
            }
            nodes.push(node);
        }
        if lie == Lie::FewNodes {
            nodes.pop();
        }
        Ok(Response::new(v1::FetchNodesResponse { nodes }))
    }

    async fn fetch_chunks(
        &self,
        request: Request<v1::FetchChunksRequest>,
    ) -> Result<Response<Self::FetchChunksStream>, Status> {
        let source = Arc::clone(&self.0);
        let (sender, receiver) = mpsc::channel(4);
        self.0.runtime.spawn(async move {
            let leaves = request.into_inner().leaves;
            let ids = leaves.iter().flat_map(|leaf| {
                let chunks = &source.leaves[&leaf.leaf_id[..]];
                leaf.entries.iter().map(|at| chunks[*at as usize])
            });
            let ids: Vec<_> = ids.collect();
            if source.lie == Lie::Empty {
                let empty = v1::FetchChunksResponse::default;
                while sender.send(Ok(empty())).await.is_ok() {}
                return;
            }
            for (at, id) in ids.iter().enumerate() {
                let chunk = chunk(&source, *id, at == ids.len() / 2);
                let chunks = vec![chunk];
                let is_last = at + 1 == ids.len();
                if is_last && source.lie == Lie::FewChunks {
                    return;
                }
                let _ = sender.send(Ok(v1::FetchChunksResponse { chunks })).await;
            }
            if source.lie != Lie::Endless {
                return;
            }
            loop {
                let more = chunk(&source, ids[0], false);
                let chunks = vec![more.clone(), more];
                if sender
                    .send(Ok(v1::FetchChunksResponse { chunks }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn chunk(source: &Source, id: ChunkId, lies: bool) -> v1::Chunk {
    let mut plain = source.chunks[&id].clone();
    let mut chunk = v1::Chunk {
        id: Bytes::copy_from_slice(id.as_bytes()),
        codec: v1::Codec::Raw.into(),
        plain_bytes: u32::try_from(plain.len()).unwrap(),
        payload: plain.clone(),
    };
    match source.lie {
        Lie::ChunkBytes if lies => {
            let mut bytes = plain.to_vec();
            bytes[5] ^= 1;
            plain = bytes.into();
            chunk.payload = plain;
        }
        Lie::OtherChunk if lies => chunk.id = Bytes::from_static(&[9; 32]),
        Lie::Bomb if lies => {
            // A gigabyte of zeros, as an LZ4 block: one literal that is then repeated.
            let mut bomb = vec![0x1f, 0, 1, 0];
            bomb.extend(vec![255; 4 << 10]);
            bomb.push(0);
            chunk.codec = v1::Codec::Lz4.into();
            chunk.payload = bomb.into();
        }
        _ => {}
    }
    chunk
}

fn image(seed: u64) -> Vec<u8> {
    let mut image = vec![0; 3 * SEGMENT_BYTES];
    Random::seeded(seed).fill(&mut image);
    image
}

/// Serves it until the runtime ends.
fn serve(runtime: &Runtime, source: Source) -> SocketAddr {
    let _entered = runtime.enter();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let served = Served(Arc::new(source));
    let server = Server::builder()
        .add_service(SnapshotServiceServer::new(served.clone()))
        .add_service(ReplicationServiceServer::new(served));
    drop(runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener))));
    address
}

#[test]
fn a_source_that_lies_is_refused_and_named_and_harms_nothing() {
    let lab = Lab::new();
    let runtime = Runtime::new().unwrap();
    let endpoint = |lie, seed| {
        let source = Source::new(runtime.handle(), lie, "lie", &image(seed));
        format!("http://{}", serve(&runtime, source))
    };
    let snapctl = lab.snapctl();
    for (seed, (lie, says)) in (600..).zip([
        (Lie::RootBytes, "was not requested"),
        (Lie::Chunker, "chunker version 99"),
        (Lie::Size, "its root"),
        (Lie::NodeBytes, "was not requested"),
        (Lie::Levels, "was not requested"),
        (Lie::Outside, "cannot be"),
        (Lie::LeafLengths, "bytes"),
        (Lie::Cuts, "cut"),
        (Lie::FewNodes, "broke the protocol"),
        (Lie::ChunkBytes, "the bytes that arrived have id"),
        (Lie::OtherChunk, "was not requested"),
        (Lie::Bomb, "chunk"),
        (Lie::Endless, ""),
        (Lie::FewChunks, "chunks to come"),
        (Lie::Empty, "a message without chunks"),
    ]) {
        let endpoint = endpoint(lie, seed);
        let name = format!("{lie:?}");
        let arguments = [
            "copy", "lie", "--from", &endpoint, "--name", &name, "--wait",
        ];
        let finished = snapctl.run(arguments);
        if lie == Lie::Endless {
            // All requested chunks came, and the messages behind them are ignored.
            finished.ok();
            continue;
        }
        // Damage, if the answer is not what was requested; a failure, if it makes no sense.
        let code = finished.status.code().unwrap_or_default();
        println!("{lie:?}: {code}");
        let is_told = [exit::DAMAGED, exit::FAILURE, exit::CONFLICT].contains(&code);
        assert!(is_told, "{lie:?}: {finished:?}");
        let said = finished.fails(code);
        assert!(said.contains(says), "{lie:?}: {said}");
        let listed = snapctl.json(["copy", "list"]);
        let failed = &listed["copies"][0];
        assert_eq!(failed["state"], "failed", "{lie:?}");
        assert!(text(failed, "last_error").contains(says));
    }
    assert_eq!(snapctl.names(), ["Endless"]);
    let honest = endpoint(Lie::None, 700);
    let copied = snapctl.json(["copy", "lie", "--from", &honest, "--wait"]);
    assert_eq!(copied["state"], "completed");
    assert!(number(&copied, "received_chunks") > 0);
    lab.assert_content("lie", &lab.scratch.file("image", image(700)));
    assert_eq!(snapctl.verify_all(), ["Endless", "lie"]);
    assert!(
        !lab.varved.log().contains("panicked"),
        "{}",
        lab.varved.log()
    );
}

/// A source that knows the ids of content here and does not have it gives it to no account.
#[test]
fn an_account_gets_nothing_from_a_source_that_only_knows_its_ids() {
    let lab = Lab::new();
    let runtime = Runtime::new().unwrap();
    let snapctl = lab.snapctl();
    let secret = lab.scratch.file("secret", image(710));
    snapctl.import(&secret, "secret");
    let source = Source::new(runtime.handle(), Lie::ChunkBytes, "lie", &image(710));
    let endpoint = format!("http://{}", serve(&runtime, source));
    snapctl.run(["account", "create", "web"]).ok();
    let token = lab.scratch.join("token");
    let create = ["account", "token", "create", "web", "--output-file"];
    snapctl
        .run(create.iter().copied().chain(token.to_str()))
        .ok();
    let remote = ["remote", "create", "liar", &endpoint];
    snapctl.run(remote.iter().chain(&["--account", "web"])).ok();
    snapctl.run(remote).ok();
    let copy = ["copy", "lie", "--from", "liar", "--wait"];
    let mut command = snapctl.command(copy);
    command.env("VARVE_TOKEN_FILE", &token);
    let said = run(command).fails(exit::DAMAGED);
    assert!(said.contains("the bytes that arrived have id"), "{said}");
    assert_eq!(snapctl.names(), ["secret"]);
    // The administrator's copy takes what is here.
    let copied = snapctl.json(copy);
    assert_eq!(number(&copied, "received_chunks"), 0);
}
