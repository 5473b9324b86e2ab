#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::path::PathBuf;

use tokio::task::JoinHandle;

use super::*;
use varve_nbd::testing::{Client, MemoryExport, MemoryExports, Received, info_data};

/// Makes the exports of a caller.
type Seen = Box<dyn Fn(Caller) -> MemoryExports + Send + Sync>;

/// The same exports for every caller.
fn all_see(exports: Vec<Arc<MemoryExport>>) -> Seen {
    Box::new(move |_| MemoryExports(exports.clone()))
}

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    server: Arc<Server<Seen>>,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

fn start(options: ServerOptions) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let exports = vec![
        Arc::new(MemoryExport::new("snapshot/a", &[1, 0, 2])),
        Arc::new(MemoryExport::writable("volume/a", &[0; 1024])),
    ];
    let server = Server::new(all_see(exports), options);
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
        self.connect_to("snapshot/a").await
    }

    async fn connect_to(&self, name: &str) -> Client<UnixStream> {
        let mut client = self.connect().await;
        client.greet(3).await;
        let replies = client.haggle(7, &info_data(name, &[])).await;
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
    let server = Server::new(all_see(vec![export]), ServerOptions::default());
    let stop = CancellationToken::new();
    let served = tokio::spawn(
        server.serve_tcp(listener, None, stop.clone(), |connection| {
            tokio::spawn(connection);
        }),
    );
    let mut client = Client(TcpStream::connect(address).await.unwrap());
    client.greet(3).await;
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    read_a_byte(&mut client).await;
    stop.cancel();
    served.await.unwrap();
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn what_one_client_writes_another_reads() {
    let test = start(ServerOptions::default());
    let mut writer = test.connect_to("volume/a").await;
    let success = |cookie| Received::Simple { error: 0, cookie };
    let mut offset = 0;
    // More bytes than the socket holds, in payloads of many lengths.
    for (cookie, length) in [(1, 4096), (2, 100), (3, 1 << 20), (4, 70_000), (5, 2 << 20)] {
        let payload = vec![cookie; length];
        let cookie = u64::from(cookie);
        writer.request(1, 0, cookie, offset, length as u32).await;
        writer.send(&payload).await;
        assert_eq!(writer.message().await, success(cookie));
        let mut reader = test.connect_to("volume/a").await;
        reader.request(0, 0, 9, offset, length as u32).await;
        assert_eq!(reader.message().await, success(9));
        assert!(reader.receive(length).await == payload);
        offset += length as u64;
    }
    writer.request(3, 0, 6, 0, 0).await;
    assert_eq!(writer.message().await, success(6));
}

#[tokio::test]
async fn idle_connections_stay_and_work() {
    let test = start(ServerOptions {
        handshake_timeout: Duration::from_secs(60),
        ..ServerOptions::default()
    });
    let mut idle = Vec::new();
    // Some clients in either phase. Open files bound the number: each client takes two.
    for _ in 0..150 {
        idle.push(test.connect_to_export().await);
        let mut client = test.connect().await;
        client.greet(3).await;
        idle.push(client);
    }
    test.connections(150).await;
    read_a_byte(&mut test.connect_to_export().await).await;
    for client in idle.iter_mut().step_by(2) {
        read_a_byte(client).await;
    }
    drop(idle);
    test.connections(0).await;
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let test = start(ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    });
    let mut first = test.connect_to_export().await;
    let second = test.connect_to_export().await;
    let mut third = test.connect().await;
    third.greet(3).await;
    let refused = third.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(refused[0].0, 1 << 31 | 2);
    let why = String::from_utf8_lossy(&refused[0].1);
    assert_eq!(why, "the limit of 2 connections is reached");
    read_a_byte(&mut first).await;
    drop(second);
    test.connections(1).await;
    // The client may ask again.
    let replies = third.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(replies.last(), Some(&(1, Vec::new())));
    read_a_byte(&mut third).await;
}

/// A server with a unix socket, as in [`start`], and a TCP address, with TLS or not.
async fn start_tcp(options: ServerOptions, tls: Option<Tls>) -> (Fixture, std::net::SocketAddr) {
    let test = start(options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served =
        Arc::clone(&test.server).serve_tcp(listener, tls, test.stop.clone(), |connection| {
            tokio::spawn(connection);
        });
    tokio::spawn(served);
    (test, address)
}

/// TLS that refuses everyone: a client needs a certificate, but none exists.
fn tls() -> Tls {
    #[derive(Debug)]
    struct NoIdentity;
    impl rustls::server::ResolvesServerCert for NoIdentity {
        fn resolve(
            &self,
            _hello: rustls::server::ClientHello<'_>,
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoIdentity));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Tls {
        acceptor: Arc::new(move || acceptor.clone()),
        required: true,
    }
}

#[tokio::test]
async fn peers_that_never_finish_a_handshake_keep_nobody_out() {
    let options = ServerOptions {
        max_connections: 4,
        handshake_timeout: Duration::from_secs(3600),
        ..ServerOptions::default()
    };
    let (test, address) = start_tcp(options, Some(tls())).await;
    let mut hostile = Vec::new();
    // More clients than places and handshakes: some send nothing, some begin, some continue to TLS.
    for round in 0..handshakes_max(4) + 20 {
        let mut client = Client(TcpStream::connect(address).await.unwrap());
        if round % 3 > 0 {
            client.greet(3).await;
        }
        if round % 3 > 1 {
            assert_eq!(client.haggle(5, b"").await, [(1, Vec::new())], "STARTTLS");
            client.send(b"\x16\x03\x01").await;
        }
        hostile.push(client);
    }
    assert_eq!(test.server.connections(), 0, "none of them has a place");
    let mut guests = Vec::new();
    for _ in 0..4 {
        guests.push(test.connect_to_export().await);
    }
    for guest in &mut guests {
        read_a_byte(guest).await;
    }
    // The oldest have given way; the others have their full time.
    hostile[0].receive(18).await;
    assert!(hostile[0].is_closed().await);
    let last = hostile.last_mut().unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(50), last.is_closed());
    assert!(
        waits.await.is_err(),
        "one that is not too many is waited for"
    );
}

#[tokio::test]
async fn tcp_leaves_places_to_the_unix_socket() {
    let options = ServerOptions {
        max_connections: 8,
        ..ServerOptions::default()
    };
    let (test, address) = start_tcp(options, None).await;
    let mut idle = Vec::new();
    let refused = loop {
        let mut client = Client(TcpStream::connect(address).await.unwrap());
        client.greet(3).await;
        let replies = client.haggle(7, &info_data("snapshot/a", &[])).await;
        if replies[0].0 == 1 << 31 | 2 {
            break String::from_utf8(replies[0].1.clone()).unwrap();
        }
        idle.push(client);
    };
    assert_eq!(idle.len(), 3, "{refused}");
    assert!(refused.contains("from this host"), "{refused}");
    let mut guests = Vec::new();
    for _ in 0..5 {
        guests.push(test.connect_to_export().await);
    }
    for guest in &mut guests {
        read_a_byte(guest).await;
    }
}

#[tokio::test]
async fn what_nobody_takes_is_little_in_the_kernel_too() {
    let export = Arc::new(MemoryExport::new("snapshot/full", &[7; 4096]));
    let server = Server::new(all_see(vec![export]), ServerOptions::default());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(server.serve_unix(listener, stop.clone(), |connection| {
        tokio::spawn(connection);
    }));
    let mut idle = Vec::new();
    for _ in 0..50 {
        let mut client = Client(UnixStream::connect(&path).await.unwrap());
        client.greet(3).await;
        client.haggle(7, &info_data("snapshot/full", &[])).await;
        client.request(0, 0, 1, 0, 4 << 20).await;
        idle.push(client);
    }
    // Each has the beginning of its answer, and so has the client that is served after them.
    let mut last = idle.pop().unwrap();
    last.message().await;
    last.receive(4 << 20).await;
    for client in &idle {
        let unread = rustix::io::ioctl_fionread(&client.0).unwrap();
        assert!((1..=32 << 10).contains(&unread), "{unread} bytes");
    }
    stop.cancel();
}

#[tokio::test]
async fn tcp_clients_are_asked_for_signs_of_life() {
    use rustix::net::sockopt::{socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).await.unwrap();
    let (stream, peer) = Listener::accept(&listener, &BufferPool::new())
        .await
        .unwrap();
    assert!(peer.is_remote());
    let socket = stream.socket();
    assert!(socket_keepalive(socket).unwrap());
    assert_eq!(tcp_keepidle(socket).unwrap(), KEEPALIVE_IDLE);
    assert_eq!(tcp_keepintvl(socket).unwrap(), KEEPALIVE_INTERVAL);
    assert_eq!(tcp_keepcnt(socket).unwrap(), KEEPALIVE_PROBES);
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
    // Longer than the timeout of a handshake, which does not apply after it.
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
