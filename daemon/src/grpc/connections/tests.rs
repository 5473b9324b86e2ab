#![allow(clippy::unwrap_used, reason = "tests")]

use std::{path::PathBuf, time::Duration};

use futures::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// Accepts connections of a unix socket, as the server receives them.
struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    served: Pin<Box<dyn Stream<Item = Result<Connection, Infallible>> + Send>>,
    stop: CancellationToken,
}

fn start(max: usize) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = CancellationToken::new();
    let all = Connections::new(max, Tasks::new());
    let served = Box::pin(all.of_unix(listener, stop.clone()));
    Fixture {
        _directory: directory,
        path,
        served,
        stop,
    }
}

impl Fixture {
    async fn connect(&self, words: &[u8]) -> UnixStream {
        let mut peer = UnixStream::connect(&self.path).await.unwrap();
        peer.write_all(words).await.unwrap();
        peer
    }

    async fn next(&mut self) -> Connection {
        let Ok(connection) = self.served.next().await.unwrap();
        connection
    }
}

async fn is_closed(peer: &mut UnixStream) -> bool {
    matches!(peer.read(&mut [0]).await, Ok(0) | Err(_))
}

#[tokio::test]
async fn who_serves_a_connection_reads_all_that_the_client_said() {
    let mut test = start(4);
    let words = [&PREFACE[..], b"and more"].concat();
    let mut peer = test.connect(&words[..10]).await;
    peer.write_all(&words[10..]).await.unwrap();
    let mut connection = test.next().await;
    let mut read = vec![0; words.len()];
    connection.read_exact(&mut read).await.unwrap();
    assert_eq!(read, words);
    peer.shutdown().await.unwrap();
    assert_eq!(connection.read(&mut read).await.unwrap(), 0);
}

#[tokio::test]
async fn peers_that_say_nothing_or_something_else_keep_nobody_out() {
    let mut test = start(4);
    let mut hostile = Vec::new();
    for round in 0..handshakes_max(4) + 10 {
        let words = &PREFACE[..round % PREFACE.len()];
        hostile.push(test.connect(words).await);
    }
    let _peer = test.connect(PREFACE).await;
    let _connection = test.next().await;
    assert!(is_closed(&mut hostile[0]).await, "the oldest has given way");
    for words in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/1",
        b"\x16\x03\x01",
    ] {
        assert!(is_closed(&mut test.connect(words).await).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_shows_what_it_speaks_is_not_waited_for() {
    let test = start(4);
    let started = tokio::time::Instant::now();
    let mut peer = test.connect(&PREFACE[..23]).await;
    assert!(is_closed(&mut peer).await);
    let waited = started.elapsed();
    let limit = limits::HANDSHAKE_TIMEOUT;
    assert!(
        (limit..limit + Duration::from_secs(1)).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test]
async fn an_idle_connection_gives_way_and_a_busy_one_does_not() {
    let mut test = start(2);
    let (_first, _second) = (test.connect(PREFACE).await, test.connect(PREFACE).await);
    let (mut one, two) = (test.next().await, test.next().await);
    let busy = two.seat().begin().unwrap();
    let _third = test.connect(PREFACE).await;
    let three = test.next().await;
    let mut rest = Vec::new();
    one.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, PREFACE, "and the end of it");
    let also_busy = three.seat().begin().unwrap();
    // Now there is none that could.
    assert!(is_closed(&mut test.connect(PREFACE).await).await);
    drop((busy, two));
    let _fourth = test.connect(PREFACE).await;
    let _connection = test.next().await;
    drop(also_busy);
}

#[tokio::test]
async fn a_stop_waits_for_no_handshake() {
    let mut test = start(2);
    let mut silent = test.connect(b"").await;
    let _peer = test.connect(PREFACE).await;
    let _connection = test.next().await;
    test.stop.cancel();
    assert!(is_closed(&mut silent).await);
    assert!(test.served.next().await.is_none());
}
