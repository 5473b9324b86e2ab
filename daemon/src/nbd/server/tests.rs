#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

use std::path::PathBuf;

use tokio::task::JoinHandle;

use super::*;
use crate::nbd::testing::{Client, MemoryExport, MemoryExports, Received, info_data};

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    server: Arc<Server<MemoryExports>>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

fn start(options: ServerOptions) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let export = Arc::new(MemoryExport::new("snapshot/a", &[1, 0, 2]));
    let server = Server::new(MemoryExports(vec![export]), options);
    let stop = CancellationToken::new();
    let served = Arc::clone(&server).serve_unix(listener, stop.clone(), |connection| {
        tokio::spawn(connection);
    });
    Fixture {
        _directory: directory,
        path,
        server,
        stop,
        served: tokio::spawn(served),
    }
}

impl Fixture {
    async fn connect(&self) -> Client<UnixStream> {
        Client(UnixStream::connect(&self.path).await.unwrap())
    }

    async fn connect_to_export(&self) -> Client<UnixStream> {
        let mut client = self.connect().await;
        client.greet(3).await;
        let replies = client.haggle(7, &info_data("snapshot/a", &[])).await;
        assert_eq!(replies.last(), Some(&(1, Vec::new())));
        client
    }

    async fn connections(&self, wanted: usize) {
        while self.server.connections() != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn read_a_byte(client: &mut Client<impl AsyncRead + AsyncWrite + Unpin>) {
    client.request(0, 0, 5, 0, 1).await;
    assert_eq!(
        client.message().await,
        Received::Simple {
            error: 0,
            cookie: 5
        }
    );
    assert_eq!(client.receive(1).await, [1]);
}

#[tokio::test]
async fn a_client_reads_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let export = Arc::new(MemoryExport::new("snapshot/a", &[1]));
    let server = Server::new(MemoryExports(vec![export]), ServerOptions::default());
    let stop = CancellationToken::new();
    let served = tokio::spawn(server.serve_tcp(listener, stop.clone(), |connection| {
        tokio::spawn(connection);
    }));
    let mut client = Client(TcpStream::connect(address).await.unwrap());
    client.greet(3).await;
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    read_a_byte(&mut client).await;
    stop.cancel();
    served.await.unwrap();
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn idle_connections_stay_and_work() {
    let test = start(ServerOptions {
        handshake_timeout: Duration::from_secs(60),
        ..ServerOptions::default()
    });
    let mut idle = Vec::new();
    // Some in either phase. The number is bounded by open files, two for each.
    for _ in 0..150 {
        idle.push(test.connect_to_export().await);
        let mut client = test.connect().await;
        client.greet(3).await;
        idle.push(client);
    }
    test.connections(300).await;
    read_a_byte(&mut test.connect_to_export().await).await;
    for client in idle.iter_mut().step_by(2) {
        read_a_byte(client).await;
    }
    drop(idle);
    test.connections(0).await;
}

#[tokio::test]
async fn connections_over_the_limit_are_turned_away() {
    let test = start(ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    });
    let mut first = test.connect_to_export().await;
    let second = test.connect_to_export().await;
    assert!(test.connect().await.is_closed().await);
    read_a_byte(&mut first).await;
    drop(second);
    test.connections(1).await;
    read_a_byte(&mut test.connect_to_export().await).await;
}

#[tokio::test]
async fn whoever_breaks_the_protocol_loses_only_its_own_connection() {
    let test = start(ServerOptions {
        handshake_timeout: Duration::from_millis(50),
        ..ServerOptions::default()
    });
    let mut good = test.connect_to_export().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 5000],
        b"\0\0\0\x03IHAVEOPT",
    ] {
        let mut bad = test.connect().await;
        bad.receive(18).await;
        bad.send(garbage).await;
        assert!(bad.is_closed().await);
        let mut bad = test.connect_to_export().await;
        bad.send(&[0xff; 28]).await;
        assert!(bad.is_closed().await);
    }
    // Longer than the timeout of a handshake, which does not concern those that are through.
    tokio::time::sleep(Duration::from_millis(100)).await;
    read_a_byte(&mut good).await;
    test.connections(1).await;
}

#[tokio::test]
async fn a_stop_ends_connections_in_either_phase() {
    let test = start(ServerOptions::default());
    let mut haggling = test.connect().await;
    haggling.greet(3).await;
    let mut reading = test.connect_to_export().await;
    read_a_byte(&mut reading).await;
    test.stop.cancel();
    test.served.await.unwrap();
    assert!(haggling.is_closed().await);
    assert!(reading.is_closed().await);
    assert_eq!(test.server.connections(), 0);
}
