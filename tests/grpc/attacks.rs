//! Peers that hold shared resources: the daemon stays within its memory bound, and all other
//! clients are served.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::{future::poll_fn, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{Request, Response};
use prost::Message;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tonic::Code;
use varve_proto::v1::{
    Chunk, CreateVolumeRequest, DownloadRequest, ListVolumesRequest, PutChunksRequest,
    PutLeavesRequest, volume_service_client::VolumeServiceClient,
};
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{TIME_LIMIT, allow_open_files},
    rpc::Rpc,
};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const DAEMON_MAX: u64 = 512 * MIB;
/// The read cache comes on top of the bound.
pub(super) const CACHE: u64 = 16 * MIB;
pub(super) const STREAMS: usize = 60;

pub(super) const PUT_CHUNKS: &str = "varve.v1.ContentService/PutChunks";
pub(super) const PUT_LEAVES: &str = "varve.v1.ContentService/PutLeaves";
pub(super) const DOWNLOAD: &str = "varve.v1.ContentService/Download";
pub(super) const LIST_VOLUMES: &str = "varve.v1.VolumeService/ListVolumes";

pub(super) fn lab() -> Lab {
    Lab::with(|options: Options| {
        options
            .tcp()
            .env("VARVE_CHUNK_CACHE_BYTES", CACHE.to_string())
    })
}

/// A message as on the wire, with its length in front.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// A hostile connection. Its tasks end on drop.
pub(super) struct Enemy {
    requests: SendRequest<Bytes>,
    tasks: JoinSet<()>,
}

impl Enemy {
    /// Connects with this window for answers.
    pub(super) async fn connect(address: SocketAddr, window: u32) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let mut builder = Builder::new();
        builder.initial_window_size(window);
        let (requests, connection) = builder.handshake(socket).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = connection.await;
        });
        Self { requests, tasks }
    }

    async fn call(&mut self, method: &str, end: bool) -> (Answer, SendStream<Bytes>) {
        let mut requests = self.requests.clone().ready().await.unwrap();
        let request = Request::post(format!("http://varve/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, body) = requests.send_request(request, end).unwrap();
        (Answer(answer), body)
    }

    /// Sends a request, as far as the daemon reads it, and ignores the answer.
    pub(super) async fn send(&mut self, method: &str, bytes: Bytes, end: bool) {
        let (answer, mut body) = self.call(method, false).await;
        self.tasks.spawn(async move {
            if send_all(&mut body, bytes, end).await {
                // The request never ends.
                std::future::pending::<()>().await;
            }
            drop(answer);
        });
    }
}

/// The answer to a call.
struct Answer(h2::client::ResponseFuture);

impl Answer {
    /// The status at its end.
    async fn code(self) -> Code {
        let Ok(Ok(response)) = timeout(TIME_LIMIT, self.0).await else {
            panic!("no answer");
        };
        let code = |response: &Response<RecvStream>| {
            let code = response.headers().get("grpc-status")?;
            Some(Code::from_bytes(code.as_bytes()))
        };
        if let Some(code) = code(&response) {
            return code;
        }
        let mut body = response.into_body();
        while let Some(Ok(bytes)) = body.data().await {
            let _ = body.flow_control().release_capacity(bytes.len());
        }
        let trailers = timeout(TIME_LIMIT, body.trailers()).await;
        let trailers = trailers.unwrap().unwrap().unwrap();
        Code::from_bytes(trailers["grpc-status"].as_bytes())
    }
}

/// Sends bytes as they are read. Returns whether all were.
async fn send_all(body: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> bool {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let capacity = poll_fn(|context| body.poll_capacity(context)).await;
        let Some(Ok(capacity)) = capacity else {
            return false;
        };
        let part = bytes.split_to(capacity.min(bytes.len()));
        let is_last = bytes.is_empty();
        if body.send_data(part, end && is_last).is_err() {
            return false;
        }
    }
    true
}

fn assert_within_bounds(lab: &Lab, what: &str) {
    assert_within(lab, what, DAEMON_MAX);
}

pub(super) fn assert_within(lab: &Lab, what: &str, most: u64) {
    let peak = lab.varved.peak_memory_bytes();
    println!("varved under {what}: {} MiB", peak / MIB);
    assert!(peak < most, "{} MiB under {what}", peak / MIB);
    let log = lab.varved.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// Makes enough volumes that a page of them is a long answer.
pub(super) async fn make_volumes_with_long_tags(lab: &Lab) {
    let endpoint = tonic::transport::Endpoint::from_shared(lab.varved.endpoint()).unwrap();
    let mut volumes = VolumeServiceClient::new(endpoint.connect().await.unwrap());
    for number in 0..120 {
        let tags = (0..50).map(|tag| (format!("k{tag}{}", "k".repeat(100)), "v".repeat(250)));
        let request = CreateVolumeRequest {
            name: format!("v{number}"),
            size_bytes: MIB,
            tags: tags.collect(),
            ..CreateVolumeRequest::default()
        };
        volumes.create_volume(request).await.unwrap();
    }
    let page = volumes.list_volumes(ListVolumesRequest::default()).await;
    let page_bytes = page.unwrap().into_inner().encoded_len() as u64;
    assert!(page_bytes > MIB, "{page_bytes}");
}

/// Asserts that other clients are served meanwhile, on this machine and over the network.
pub(super) async fn assert_others_are_served(lab: &Lab, name: &str, seed: u64) {
    let file = lab.image(name, 24 * MIB, seed);
    let (over_unix, over_tcp) = (
        lab.snapctl(),
        varve_tests::snapctl::Snapctl::new(lab.varved.tcp_endpoint()),
    );
    let name = name.to_owned();
    let others = tokio::task::spawn_blocking(move || {
        over_unix.import(&file, &name);
        let _ = over_tcp.json(["status"]);
        over_tcp.verify(&name);
    });
    others.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_lack_one_byte_take_what_is_allowed_and_no_more() {
    allow_open_files();
    let lab = lab();
    // Requests of the greatest length, without their last bytes.
    let message = framed(&vec![0; (4 << 20) - 16]);
    let cut = Bytes::from(message).slice(..(4 << 20) - 20);
    let mut enemies = Vec::new();
    for number in 0..12 {
        let mut enemy = Enemy::connect(lab.varved.grpc_address(), 65_535).await;
        for _ in 0..STREAMS {
            let method = if number % 2 == 0 {
                PUT_LEAVES
            } else {
                PUT_CHUNKS
            };
            enemy.send(method, cut.clone(), false).await;
        }
        enemies.push(enemy);
    }
    assert_others_are_served(&lab, "beside-requests", 911).await;
    assert_within_bounds(&lab, "requests without an end");
    drop(enemies);
    assert_others_are_served(&lab, "after-requests", 912).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_elements_are_counted_before_they_are_decoded() {
    let lab = lab();
    let chunks = PutChunksRequest {
        upload_id: String::new(),
        chunks: vec![Chunk::default(); 2 * MIB as usize - 8],
    };
    let chunks = Bytes::from(framed(&chunks.encode_to_vec()));
    // Leaves of empty entries.
    let entries = [0x12, 0].repeat(1000);
    let mut leaf = vec![0x12, 0xd0, 0x0f];
    leaf.extend(entries);
    let leaves = Bytes::from(framed(&leaf.repeat(2000)));
    let mut calls = JoinSet::new();
    let mut enemies = Vec::new();
    for _ in 0..4 {
        let mut enemy = Enemy::connect(lab.varved.grpc_address(), 65_535).await;
        for number in 0..STREAMS {
            let (method, bytes) = match number % 2 {
                0 => (PUT_CHUNKS, chunks.clone()),
                _ => (PUT_LEAVES, leaves.clone()),
            };
            let (answer, mut body) = enemy.call(method, false).await;
            calls.spawn(async move {
                // It is refused before all of it has arrived.
                send_all(&mut body, bytes, true).await;
                answer.code().await
            });
        }
        enemies.push(enemy);
    }
    let codes = calls.join_all().await;
    // Requests that get no memory in time are refused with this.
    let refused = |code: &Code| {
        matches!(
            code,
            Code::OutOfRange | Code::ResourceExhausted | Code::DeadlineExceeded
        )
    };
    assert!(codes.iter().all(refused), "{codes:?}");
    assert!(codes.contains(&Code::OutOfRange));
    assert_within_bounds(&lab, "empty elements");
    let malformed = Bytes::from(framed(&PutLeavesRequest::default().encode_to_vec()));
    assert_eq!(malformed.len(), 5);
    let mut peer = Enemy::connect(lab.varved.grpc_address(), 65_535).await;
    // A name that is not UTF-8, a field past the end, an end within a message.
    for bad in [
        framed(&[0x0a, 1, 0xff]),
        framed(&[0x0a, 5, 1]),
        framed(&[0x0a, 5, 1])[..6].to_vec(),
    ] {
        let (answer, mut body) = peer.call(PUT_LEAVES, false).await;
        assert!(send_all(&mut body, bad.into(), true).await);
        assert_eq!(answer.code().await, Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_take_what_is_allowed_and_no_more() {
    allow_open_files();
    let lab = lab();
    make_volumes_with_long_tags(&lab).await;

    let ask = Bytes::from(framed(&ListVolumesRequest::default().encode_to_vec()));
    let mut enemies = Vec::new();
    for number in 0..8 {
        // Some read the beginning.
        let window = if number % 2 == 0 { 0 } else { 65_535 };
        let mut enemy = Enemy::connect(lab.varved.grpc_address(), window).await;
        for _ in 0..STREAMS {
            enemy.send(LIST_VOLUMES, ask.clone(), true).await;
        }
        enemies.push(enemy);
    }
    assert_others_are_served(&lab, "beside-answers", 921).await;
    // A client that comes the same way as the hostile ones is served, too.
    let over_tcp = varve_tests::snapctl::Snapctl::new(lab.varved.tcp_endpoint());
    for client in [lab.varved.snapctl(), over_tcp] {
        let listed = tokio::task::spawn_blocking(move || client.json(["volume", "list"]));
        let listed = listed.await.unwrap();
        assert_eq!(listed["volumes"].as_array().unwrap().len(), 120);
    }
    assert_within_bounds(&lab, "answers that nobody takes");
    drop(enemies);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_that_nobody_takes_give_their_places_to_others() {
    allow_open_files();
    let lab = lab();
    let file = lab.image("image", 24 * MIB, 931);
    lab.snapctl().import(&file, "image");
    let request = DownloadRequest {
        snapshot: "image".to_owned(),
        plain: true,
    };
    let ask = Bytes::from(framed(&request.encode_to_vec()));
    let mut enemy = Enemy::connect(lab.varved.grpc_address(), 0).await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        let (answer, mut body) = enemy.call(DOWNLOAD, false).await;
        assert!(send_all(&mut body, ask.clone(), true).await);
        answers.push(answer);
    }
    // The network's slots are all taken. Two holders lose theirs, and learn why.
    let over_tcp = varve_tests::snapctl::Snapctl::new(lab.varved.tcp_endpoint());
    let out = lab.scratch.join("out");
    let exported = out.clone();
    tokio::task::spawn_blocking(move || over_tcp.export("image", &exported))
        .await
        .unwrap();
    varve_tests::files::assert_same(&file, &out);
    let mut codes = JoinSet::new();
    for answer in answers {
        codes.spawn(answer.code());
    }
    let first = timeout(TIME_LIMIT, codes.join_next()).await;
    assert_eq!(first.unwrap().unwrap().unwrap(), Code::ResourceExhausted);
    assert_within_bounds(&lab, "exports that nobody takes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_has_passed_is_told_as_such() {
    let lab = lab();
    let rpc = Rpc::connect(&lab.varved).await;
    let upload = rpc.begin("slow", MIB).await.unwrap();
    // A stream of chunks that sends nothing.
    let silent = PutChunksRequest {
        upload_id: upload,
        chunks: Vec::new(),
    };
    let messages =
        tokio_stream::StreamExt::chain(tokio_stream::iter([silent]), tokio_stream::pending());
    let mut request = tonic::Request::new(messages);
    request.set_timeout(Duration::from_millis(300));
    let told = rpc.content.clone().put_chunks(request).await.unwrap_err();
    assert!(
        matches!(told.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{told:?}"
    );
    // The daemon's own status, before a client library interprets it.
    let mut peer = Enemy::connect(lab.varved.grpc_address(), 65_535).await;
    let mut requests = peer.requests.clone().ready().await.unwrap();
    let request = Request::post(format!("http://varve/{PUT_CHUNKS}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "300m")
        .body(())
        .unwrap();
    let (answer, body) = requests.send_request(request, false).unwrap();
    assert_eq!(Answer(answer).code().await, Code::DeadlineExceeded);
    drop(body);
    peer.tasks.abort_all();
}
