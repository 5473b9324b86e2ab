//! Connections and calls, from a peer's side of a pipe.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{convert::Infallible, task::Context as TaskContext, task::Poll};

use futures::future::BoxFuture;
use h2::client::{self, SendRequest};
use http::Response;
use tokio::{
    io::{DuplexStream, duplex},
    task::JoinSet,
};
use tonic::{body::Body, server::NamedService};

use super::*;
use crate::net::{peer::PeerKey, seats::Seats};

/// Takes a whole request and answers with as many bytes as it is asked for, in one message.
#[derive(Clone)]
struct Echo {
    /// The share that records the progress of the request.
    place: Option<Arc<Hold>>,
}

impl NamedService for Echo {
    const NAME: &'static str = "varve.v1.ContentService";
}

impl tonic::codegen::Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let place = self.place.clone();
        Box::pin(async move {
            if let Some(place) = place {
                let arrives = request.extensions().get::<Arrives>();
                arrives.unwrap().moves(&place);
            }
            let wanted = request.headers().get("bytes");
            let wanted = wanted.map_or(0, |wanted| wanted.to_str().unwrap().parse().unwrap());
            let mut body = request.into_body();
            loop {
                let frame = poll_fn(|context| {
                    http_body::Body::poll_frame(std::pin::Pin::new(&mut body), context)
                });
                match frame.await {
                    None => break,
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return Ok(status.into_http()),
                }
            }
            Ok(Response::new(Body::new(Whole {
                bytes: Some(Bytes::from(vec![7; wanted])),
                ended: false,
            })))
        })
    }
}

/// A message, and an OK status.
struct Whole {
    bytes: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(bytes))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers))))
    }
}

struct Scene {
    serving: Serving,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Scene {
    fn new() -> Self {
        Self::with_place(None)
    }

    fn with_place(place: Option<Arc<Hold>>) -> Self {
        let tasks = Tasks::new();
        Self {
            serving: Serving::new(Routes::new(Echo { place }), tasks.clone(), Door::alone()),
            tasks,
            stop: CancellationToken::new(),
        }
    }

    fn socket(&self, is_local: bool) -> DuplexStream {
        let (own, peers) = duplex(64 << 10);
        let (serving, stop) = (self.serving.clone(), self.stop.clone());
        let peer = if is_local {
            Peer::Given
        } else {
            Peer::Tcp("192.0.2.1:4711".parse().unwrap())
        };
        drop(self.tasks.spawn("connection", async move {
            serving.serve(own, None, (peer, None), stop).await;
        }));
        peers
    }

    /// A peer with this window for an answer.
    async fn peer(&self, window: u32) -> SendRequest<Bytes> {
        let mut builder = client::Builder::new();
        builder.initial_window_size(window);
        let (requests, connection) = builder.handshake(self.socket(false)).await.unwrap();
        drop(self.tasks.spawn("peer", async move {
            let _ = connection.await;
        }));
        requests
    }
}

/// A call that has begun.
struct Call {
    answer: client::ResponseFuture,
    body: h2::SendStream<Bytes>,
}

async fn begin(peer: &SendRequest<Bytes>, method: &str, headers: &[(&str, &str)]) -> Call {
    begin_at(peer, &format!("ContentService/{method}"), headers).await
}

async fn begin_at(peer: &SendRequest<Bytes>, path: &str, headers: &[(&str, &str)]) -> Call {
    let mut peer = peer.clone().ready().await.unwrap();
    let uri = format!("http://varve/varve.v1.{path}");
    let mut request = Request::post(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (answer, body) = peer.send_request(request.body(()).unwrap(), false).unwrap();
    Call { answer, body }
}

impl Call {
    /// Sends bytes as the daemon takes them.
    async fn send(&mut self, mut bytes: Bytes, end: bool) -> Option<()> {
        loop {
            self.body.reserve_capacity(bytes.len());
            let capacity = match bytes.len() {
                0 => 0,
                _ => poll_fn(|context| self.body.poll_capacity(context))
                    .await?
                    .ok()?,
            };
            let part = bytes.split_to(capacity.min(bytes.len()));
            let is_last = bytes.is_empty();
            self.body.send_data(part, end && is_last).ok()?;
            if is_last {
                return Some(());
            }
        }
    }

    /// The bytes of the answer, and the code and the text it ends with.
    async fn end(self) -> (usize, i32, String) {
        let response = self.answer.await.unwrap();
        let told = |headers: &HeaderMap| {
            let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
            let text = headers
                .get("grpc-message")
                .map(|text| text.to_str().unwrap());
            Some((code, text.unwrap_or_default().replace("%20", " ")))
        };
        if let Some((code, text)) = told(response.headers()) {
            return (0, code, text);
        }
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(Ok(data)) = body.data().await {
            bytes += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        let (code, text) = told(&trailers).unwrap();
        (bytes, code, text)
    }
}

fn message(bytes: usize) -> Bytes {
    let length = u32::try_from(bytes).unwrap().to_be_bytes();
    // One field that takes the whole message.
    let mut message = vec![0x0a];
    let mut left = bytes.saturating_sub(5);
    for _ in 0..3 {
        message.push(u8::try_from(left & 0x7f).unwrap() | 0x80);
        left >>= 7;
    }
    message.push(u8::try_from(left).unwrap());
    message.resize(bytes, 0);
    [&[0], &length[..], &message].concat().into()
}

const OK: i32 = 0;
const INVALID: i32 = 3;
const DEADLINE: i32 = 4;
const EXHAUSTED: i32 = 8;
const RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAVAILABLE: i32 = 14;

#[tokio::test(start_paused = true)]
async fn requests_and_answers_of_all_lengths_pass() {
    let scene = Scene::new();
    let peer = scene.peer(65_535).await;
    for (bytes, wanted) in [(6, 0), (4096, 1), (100_000, 3 << 20), (4 << 20, 70_000)] {
        let headers = [("bytes", wanted.to_string())];
        let headers = headers.each_ref().map(|(name, value)| (*name, &**value));
        let mut call = begin(&peer, "PutLeaves", &headers).await;
        call.send(message(bytes), true).await.unwrap();
        assert_eq!(call.end().await, (wanted, OK, String::new()), "{bytes}");
    }
    assert_eq!(scene.serving.0.requests.held(), 0);
    scene.stop.cancel();
    scene.tasks.stop(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_request_is_told() {
    let scene = Scene::new();
    let peer = scene.peer(65_535).await;
    for (method, bytes, code, says) in [
        ("PutLeaves", message((4 << 20) + 1), RANGE, "is too large"),
        (
            "Download",
            message(300 << 10),
            RANGE,
            "takes at most 262144",
        ),
        (
            "PutLeaves",
            message(100).slice(..50),
            INVALID,
            "ends within a message",
        ),
        (
            "PutLeaves",
            Bytes::from_static(&[0, 0, 0, 0, 3, 0x0a, 9, 1]),
            INVALID,
            "past the end of its message",
        ),
        (
            "PutChunks",
            [&[0, 0, 8, 0, 0][..], &[0x12, 0].repeat(256 << 10)]
                .concat()
                .into(),
            RANGE,
            "more than 131072 fields",
        ),
    ] {
        let mut call = begin(&peer, method, &[]).await;
        let _ = call.send(bytes, true).await;
        let (_, found, text) = call.end().await;
        assert_eq!(found, code, "{text}");
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(scene.serving.0.requests.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_that_do_not_arrive_are_given_up() {
    let scene = Scene::new();
    let peer = scene.peer(65_535).await;
    let since = Instant::now();
    let silent = begin(&peer, "FindMissing", &[]).await;
    let (_, code, text) = silent.end().await;
    assert_eq!(
        (code, &*text),
        (DEADLINE, "the request did not arrive in time")
    );
    assert_eq!(since.elapsed().as_secs(), limits::REQUEST_WITHIN.as_secs());

    // The caller's own deadline comes first.
    let asked = begin(&peer, "FindMissing", &[("grpc-timeout", "1500m")]).await;
    let since = Instant::now();
    assert_eq!(asked.end().await.1, DEADLINE);
    assert_eq!(since.elapsed().as_secs(), 1);

    // A peer that gets slower and slower.
    let mut slow = begin(&peer, "PutLeaves", &[]).await;
    let since = Instant::now();
    slow.send(message(4 << 20).slice(..1 << 20), false)
        .await
        .unwrap();
    assert_eq!(slow.end().await.1, DEADLINE);
    let seconds = 30 + (4 << 20) / limits::REQUEST_BYTES_PER_SECOND;
    assert_eq!(since.elapsed().as_secs(), seconds);
    assert_eq!(scene.serving.0.requests.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_hold_what_is_allowed_and_give_way_to_others() {
    let scene = Scene::new();
    let mut peers = Vec::new();
    for _ in 0..6 {
        let peer = scene.peer(65_535).await;
        for _ in 0..20 {
            let mut call = begin(&peer, "PutLeaves", &[]).await;
            drop(scene.tasks.spawn("attack", async move {
                let cut = message(4 << 20).slice(..(4 << 20) - 1);
                let _ = call.send(cut, false).await;
                let _ = call.end().await;
            }));
        }
        peers.push(peer);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let held = scene.serving.0.requests.held();
    let remote = limits::REQUEST_BYTES - limits::REQUEST_BYTES_LOCAL;
    assert!(held > 0 && held <= remote, "{held}");
    // A small message passes at once, a large one after a while.
    let peer = scene.peer(65_535).await;
    let since = Instant::now();
    let mut small = begin(&peer, "PutLeaves", &[]).await;
    small.send(message(1000), true).await.unwrap();
    assert_eq!(small.end().await.1, OK);
    assert!(since.elapsed() < Duration::from_secs(1));
    let mut large = begin(&peer, "PutLeaves", &[]).await;
    large.send(message(1 << 20), true).await.unwrap();
    assert_eq!(large.end().await.1, OK);
    assert!(
        since.elapsed() < limits::BUSY_WITHIN,
        "{:?}",
        since.elapsed()
    );
    let held = scene.serving.0.requests.held();
    assert!(held <= remote, "{held}");
}

/// The room of the first message would go to another call while the message is still in memory.
#[tokio::test(start_paused = true)]
async fn a_method_that_takes_one_message_gets_no_second() {
    let scene = Scene::new();
    let peer = scene.peer(65_535).await;
    for second in [message(6), message(100_000), Bytes::from_static(&[0])] {
        let mut call = begin(&peer, "PutLeaves", &[]).await;
        call.send(message(1 << 20), false).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let held = scene.serving.0.requests.held();
        assert!(held >= 1 << 20, "{held}");
        call.send(second, false).await.unwrap();
        let (_, code, text) = call.end().await;
        assert_eq!(code, INVALID, "{text}");
        assert!(text.contains("takes one message"), "{text}");
        assert_eq!(scene.serving.0.requests.held(), 0);
    }
    // A stream may have any number of messages.
    let mut call = begin(&peer, "PutChunks", &[]).await;
    for bytes in [6, 100_000, 6] {
        call.send(message(bytes), false).await.unwrap();
    }
    call.send(Bytes::new(), true).await.unwrap();
    assert_eq!(call.end().await.1, OK);
}

/// A request that waits for the daemon does not use up its own time.
#[tokio::test(start_paused = true)]
async fn a_request_that_gets_no_room_is_told_so() {
    let scene = Scene::new();
    let requests = &scene.serving.0.requests;
    let held = requests.take(Holder::OWN, limits::REQUEST_BYTES, Duration::ZERO);
    let held = held.await.unwrap();
    // The daemon works on it.
    held.settle(true);
    let peer = scene.peer(65_535).await;
    let since = Instant::now();
    let mut call = begin(&peer, "PutLeaves", &[]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    call.send(message(1 << 20).slice(..60_000), false)
        .await
        .unwrap();
    let (_, code, text) = call.end().await;
    assert_eq!(
        (code, &*text),
        (
            EXHAUSTED,
            "the limit of bytes of requests under way is reached: try again later"
        )
    );
    let waited = since.elapsed().as_secs();
    assert_eq!(waited, 5 + limits::BUSY_WITHIN.as_secs());
}

/// A stream that keeps a sufficient pace is not ended, even if its messages are long.
#[tokio::test(start_paused = true)]
async fn the_place_of_a_stream_moves_as_its_message_arrives() {
    for (bytes_a_second, gives_way) in [(40_000, false), (20_000, true)] {
        let places = Shares::new(Rules {
            what: "streams",
            total: 1,
            local: 0,
            of_one: 1,
            of_account: 1,
            waiting: 4,
            yields_after: limits::PLACE_YIELDS_AFTER,
            pace: limits::REQUEST_BYTES_PER_SECOND,
        });
        let place = places.take(Holder::OWN, 1, Duration::ZERO).await.unwrap();
        let place = Arc::new(place);
        let scene = Scene::with_place(Some(Arc::clone(&place)));
        let peer = scene.peer(65_535).await;
        let mut call = begin(&peer, "PutChunks", &[]).await;
        let waits = places.take(Holder::OWN, 1, Duration::from_secs(50));
        let sends = async {
            let mut message = message(2 << 20);
            while !message.is_empty() {
                let part = message.split_to(bytes_a_second.min(message.len()));
                // A stream that is too slow is ended.
                if call.send(part, false).await.is_none() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let (_, ()) = tokio::join!(waits, sends);
        let gave_way = futures::FutureExt::now_or_never(place.gives_way());
        assert_eq!(gave_way.is_some(), gives_way, "{bytes_a_second}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_not_said_what_is_asked_for_holds_no_room_for_an_answer() {
    let scene = Scene::new();
    let path = "SnapshotService/ListSnapshots";
    let mut silent = Vec::new();
    for _ in 0..4 {
        let peer = scene.peer(65_535).await;
        for _ in 0..16 {
            let mut call = begin_at(&peer, path, &[]).await;
            // All but the last byte.
            call.send(message(6).slice(..10), false).await.unwrap();
            silent.push(call);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.serving.0.answers.held(), 0);
    let peer = scene.peer(65_535).await;
    let since = Instant::now();
    let mut call = begin_at(&peer, path, &[]).await;
    call.send(message(6), true).await.unwrap();
    // There is no such service here.
    assert_eq!(call.end().await.1, UNIMPLEMENTED);
    assert!(
        since.elapsed() < Duration::from_secs(1),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(scene.serving.0.answers.held(), 0);
    // They are given up like other calls.
    for call in silent {
        assert_eq!(call.end().await.1, DEADLINE);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_takes_are_ended() {
    let scene = Scene::new();
    let taken_by = |peer: SendRequest<Bytes>| async move {
        let mut call = begin(&peer, "PutLeaves", &[("bytes", "3145728")]).await;
        call.send(message(6), true).await.unwrap();
        let response = call.answer.await.unwrap();
        // The peer takes nothing, but still gets the reason for the end.
        let mut body = response.into_body();
        while let Some(Ok(_)) = body.data().await {}
        let trailers = body.trailers().await.unwrap().unwrap();
        trailers["grpc-status"].to_str().unwrap().to_owned()
    };
    for window in [0, 65_535] {
        let since = Instant::now();
        let code = taken_by(scene.peer(window).await).await;
        assert_eq!(code, EXHAUSTED.to_string());
        let seconds = since.elapsed().as_secs();
        assert!((100..=300).contains(&seconds), "{seconds}");
    }
}

/// Also answers that are usually short: a snapshot with all its tags takes 76 KB. The call has done
/// its work by then, so nobody is told to try it again.
#[tokio::test(start_paused = true)]
async fn answers_of_any_method_have_room_or_are_refused() {
    let scene = Scene::new();
    let (mut peers, mut calls) = (Vec::new(), JoinSet::new());
    for _ in 0..12 {
        let peer = scene.peer(0).await;
        for _ in 0..60 {
            let mut call = begin(&peer, "PutLeaves", &[("bytes", "76000")]).await;
            calls.spawn(async move {
                call.send(message(6), true).await.unwrap();
                call.end().await
            });
        }
        peers.push(peer);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let most = limits::ANSWER_BYTES - limits::ANSWER_BYTES_LOCAL;
    let held = scene.serving.0.answers.held();
    assert!((most - 76_000..=most).contains(&held), "{held} of {most}");
    let (_, code, text) = calls.join_next().await.unwrap().unwrap();
    assert_eq!(code, UNAVAILABLE, "{text}");
    assert!(text.contains("carried out"), "{text}");
    let status = Status::from(&Failure::Unanswered { bytes: 76_000 });
    assert!(status.metadata().is_empty(), "{status}");
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn calls_are_bounded_and_each_connection_has_one() {
    let scene = Scene::new();
    let mut calls = Vec::new();
    let mut peers = Vec::new();
    let most = usize::try_from(limits::CALLS_MAX - limits::CALLS_LOCAL).unwrap();
    while calls.len() < most + peers.len() {
        let peer = scene.peer(65_535).await;
        peers.push(peer.clone());
        for _ in 0..60.min(most + peers.len() - calls.len()) {
            calls.push(begin(&peer, "FindMissing", &[]).await);
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let late = begin(&peers[0], "FindMissing", &[]).await;
    let (_, code, text) = late.end().await;
    assert_eq!(code, EXHAUSTED);
    assert_eq!(
        text,
        "the limit of calls under way is reached: try again later"
    );
    let other = scene.peer(65_535).await;
    let mut call = begin(&other, "FindMissing", &[]).await;
    call.send(message(6), true).await.unwrap();
    assert_eq!(call.end().await.1, OK);
}

/// The connection is about to be closed, and the caller must know whether the call was processed.
#[tokio::test(start_paused = true)]
async fn a_connection_that_has_lost_its_seat_does_nothing_more() {
    let scene = Scene::new();
    let seats = Seats::new(1);
    let local = PeerKey::Local { user: None };
    let seat = Arc::new(seats.take(local).unwrap().0);
    let (own, peers) = duplex(64 << 10);
    let (serving, stop, held) = (scene.serving.clone(), scene.stop.clone(), seat);
    drop(scene.tasks.spawn("connection", async move {
        serving
            .serve(own, Some(held), (Peer::Given, None), stop)
            .await;
    }));
    let (peer, connection) = client::handshake(peers).await.unwrap();
    drop(scene.tasks.spawn("peer", async move {
        let _ = connection.await;
    }));
    let mut call = begin(&peer, "PutLeaves", &[]).await;
    call.send(message(6), true).await.unwrap();
    assert_eq!(call.end().await.1, OK);
    let (_newcomer, displaces) = seats.take(local).unwrap();
    assert!(displaces);
    let late = begin(&peer, "PutLeaves", &[]).await;
    let refused = late.answer.await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::REFUSED_STREAM));
}

#[tokio::test(start_paused = true)]
async fn windows_get_smaller_and_come_back() {
    let scene = Scene::new();
    let windows: Vec<_> = (0..2000).map(|_| scene.serving.window()).collect();
    let sum: u64 = windows.iter().map(|window| u64::from(window.bytes)).sum();
    assert!(sum <= u64::from(limits::WINDOW_BYTES));
    assert!(windows[0].bytes >= 1 << 20 && windows[0].connection() >= 6 << 20);
    assert!(windows[1999].bytes < 1 << 20);
    assert_eq!(windows[1999].frame(), 16 << 10);
    assert_eq!(windows[1999].stream(), limits::WINDOW_BYTES_MIN / 2);
    drop(windows);
    assert!(scene.serving.window().bytes >= 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_gone_without_a_word_is_noticed() {
    let scene = Scene::new();
    // The peer sends the preface, then nothing, and keeps the socket open.
    let mut socket = scene.socket(false);
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    tokio::io::AsyncWriteExt::write_all(&mut socket, hello)
        .await
        .unwrap();
    let since = Instant::now();
    let mut said = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut said)
        .await
        .unwrap();
    let most = 2 * limits::KEEPALIVE_INTERVAL + limits::KEEPALIVE_TIMEOUT;
    assert!(since.elapsed() <= most, "{:?}", since.elapsed());
    // A peer that does not even send the preface.
    let mut socket = scene.socket(false);
    let since = Instant::now();
    tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut said)
        .await
        .unwrap();
    assert_eq!(
        since.elapsed().as_secs(),
        limits::HTTP2_HANDSHAKE_TIMEOUT.as_secs()
    );
}

#[test]
fn timeouts_are_read() {
    let of = |text: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        asked_timeout(&headers)
    };
    assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
    assert_eq!(of("3M"), Some(Duration::from_secs(180)));
    assert_eq!(of("99999999S"), Some(Duration::from_secs(99_999_999)));
    assert_eq!(of("5m"), Some(Duration::from_millis(5)));
    assert_eq!(of("7u"), Some(Duration::from_micros(7)));
    assert_eq!(of("8n"), Some(Duration::from_nanos(8)));
    for wrong in ["", "S", "5", "5x", "-5S", "+5S", "100000000S", "5.5S"] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}
