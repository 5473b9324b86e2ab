//! Accepts connections and sees them through both phases.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::budget::Budget;
use super::export::{Export, Exports};
use super::handshake::{HandshakeError, Negotiated, Security, haggle, negotiate};
use super::inbox::Inbox;
use super::limits::{
    DEFAULT_HANDSHAKE_TIMEOUT, DEFAULT_MAX_CONNECTIONS, DEFAULT_STALL_TIMEOUT,
    DEFAULT_STOP_TIMEOUT, UNIX_SEND_BUFFER_BYTES,
};
use super::transmission::{Patience, TransmissionError, transmit};

#[cfg(test)]
mod tests;

/// How long to leave a listener alone that cannot accept, for want of file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For a client to notice that the server stops.
const PARTING: Duration = Duration::from_millis(500);

/// What can be configured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServerOptions {
    /// Over all listeners. Whoever comes after that is turned away.
    pub max_connections: usize,
    /// For each step of a handshake.
    pub handshake_timeout: Duration,
    /// For requests in flight when the server stops.
    pub stop_timeout: Duration,
    /// For a client to take a reply, or send the rest of a payload, while others wait for memory.
    pub stall_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: DEFAULT_MAX_CONNECTIONS,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            stop_timeout: DEFAULT_STOP_TIMEOUT,
            stall_timeout: DEFAULT_STALL_TIMEOUT,
        }
    }
}

/// TLS for a listener.
#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    /// Whether clients get nothing without it.
    pub required: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// The NBD server, without its listeners: any number of them share its limits.
pub struct Server<X> {
    exports: X,
    options: ServerOptions,
    slots: Arc<Semaphore>,
    budget: Arc<Budget>,
}

impl<X> fmt::Debug for Server<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl<X> Server<X> {
    /// Connections that are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.options.max_connections - self.slots.available_permits()
    }
}

impl<X: Exports> Server<X> {
    #[must_use]
    pub fn new(exports: X, options: ServerOptions) -> Arc<Self> {
        Arc::new(Self {
            exports,
            slots: Arc::new(Semaphore::new(options.max_connections)),
            budget: Budget::new(),
            options,
        })
    }

    /// Serves a unix socket until `stop`, and then until its connections have ended.
    ///
    /// `spawn` starts one task for each connection.
    pub async fn serve_unix(
        self: Arc<Self>,
        listener: UnixListener,
        stop: CancellationToken,
        spawn: impl Fn(BoxFuture<'static, ()>),
    ) {
        self.serve(listener, None, stop, spawn).await;
    }

    /// Serves a TCP socket, with TLS if there is any, until `stop`, and then until its connections have ended.
    ///
    /// `spawn` starts one task for each connection.
    pub async fn serve_tcp(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Tls>,
        stop: CancellationToken,
        spawn: impl Fn(BoxFuture<'static, ()>),
    ) {
        self.serve(listener, tls, stop, spawn).await;
    }

    /// Serves one connection that is there already, without TLS, until it ends: some time after `stop` at the latest.
    pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        stop: &CancellationToken,
    ) {
        self.run(stream, None, &Peer::Given, stop).await;
    }

    async fn serve<L: Listener>(
        self: Arc<Self>,
        listener: L,
        tls: Option<Tls>,
        stop: CancellationToken,
        spawn: impl Fn(BoxFuture<'static, ()>),
    ) {
        let tracker = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!("accept an NBD connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                let limit = self.options.max_connections;
                warn!(%peer, limit, "turn away an NBD connection: too many");
                continue;
            };
            let server = Arc::clone(&self);
            let tls = tls.clone();
            // A token of its own, or all connections would meet at one lock.
            let stop = stop.child_token();
            spawn(Box::pin(tracker.track_future(async move {
                server.run(stream, tls.as_ref(), &peer, &stop).await;
                drop(slot);
            })));
        }
        tracker.close();
        tracker.wait().await;
    }

    /// One connection, from greeting to close. Whatever ends it is logged here and goes no further.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        tls: Option<&Tls>,
        peer: &Peer,
        stop: &CancellationToken,
    ) {
        debug!(%peer, "NBD connection");
        match self.see_through(&mut stream, tls, peer, stop).await {
            Ok(()) => debug!(%peer, "NBD connection ended"),
            Err(ConnectionError::Handshake(HandshakeError::Io(error)))
            | Err(ConnectionError::Transmission(TransmissionError::Io(error))) => {
                debug!(%peer, "NBD connection lost: {error}");
            }
            Err(error) => info!(%peer, "close an NBD connection: {error}"),
        }
    }

    async fn see_through<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        tls: Option<&Tls>,
        peer: &Peer,
        stop: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let mut inbox = Inbox::new();
        let patience = self.options.handshake_timeout;
        let security = match tls {
            None => Security::Plain,
            Some(tls) if tls.required => Security::Required,
            Some(_) => Security::Offered,
        };
        let negotiating = negotiate(stream, &mut inbox, &self.exports, patience, security);
        let Some(negotiated) = stop.run_until_cancelled(negotiating).await else {
            return Ok(());
        };
        let (client, tls) = match (negotiated?, tls) {
            (Negotiated::StartTls(client), Some(tls)) => (client, tls),
            (negotiated, _) => {
                let outcome = self.transmit(stream, inbox, negotiated, peer, stop).await;
                if stop.is_cancelled() {
                    part(stream).await;
                }
                return outcome;
            }
        };
        let mut inbox = Inbox::new();
        let negotiating = async {
            let accepted = timeout(patience, tls.acceptor.accept(stream)).await;
            let mut stream = accepted
                .map_err(HandshakeError::TimedOut)?
                .map_err(HandshakeError::Tls)?;
            let exports = &self.exports;
            let negotiated = haggle(
                &mut stream,
                &mut inbox,
                exports,
                patience,
                client,
                Security::Tls,
            )
            .await?;
            Ok::<_, HandshakeError>((stream, negotiated))
        };
        let Some(negotiated) = stop.run_until_cancelled(Box::pin(negotiating)).await else {
            return Ok(());
        };
        let (mut stream, negotiated) = negotiated?;
        let outcome = self
            .transmit(&mut stream, inbox, negotiated, peer, stop)
            .await;
        // So that the client knows that nothing was cut off. It may be gone already.
        let _ = timeout(self.options.stop_timeout, stream.shutdown()).await;
        outcome
    }

    /// The transmission phase of a connection that has got that far.
    async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        inbox: Inbox,
        negotiated: Negotiated<X::Export>,
        peer: &Peer,
        stop: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let Negotiated::Export { export, terms } = negotiated else {
            return Ok(());
        };
        let name = &export.info().name;
        debug!(%peer, export = name, ?terms, "NBD export opened");
        let budget = Arc::clone(&self.budget);
        let patience = Patience {
            stop: self.options.stop_timeout,
            stall: self.options.stall_timeout,
        };
        let end = transmit(stream, inbox, &export, &terms, budget, patience, stop).await?;
        debug!(%peer, export = name, ?end, "NBD export closed");
        Ok(())
    }
}

/// Closes a connection whose client may still be sending. What is not read makes TCP reset the connection, and throw away the replies that are
/// on their way.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let mut unread = [0; 4096];
    let drain = async {
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // Whatever comes of it, it is over.
    let _ = timeout(PARTING, drain).await;
}

/// What ends one connection.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
}

/// Who is at the other end, for the log.
enum Peer {
    Unix {
        process: Option<i32>,
        user: u32,
    },
    UnknownUnix,
    /// A stream that did not come from a listener.
    Given,
    Tcp(std::net::SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix {
                process: Some(process),
                user,
            } => write!(f, "unix:pid={process},uid={user}"),
            Self::Unix {
                process: None,
                user,
            } => write!(f, "unix:uid={user}"),
            Self::UnknownUnix => write!(f, "unix"),
            Self::Given => write!(f, "given"),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A socket that connections come from, set up for what NBD does with them.
trait Listener {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    async fn accept(&self) -> io::Result<(Self::Stream, Peer)>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = UnixListener::accept(self).await?;
        // The kernel cuts this down to its own limit. Without it things are only slower.
        if let Err(error) =
            rustix::net::sockopt::set_socket_send_buffer_size(&stream, UNIX_SEND_BUFFER_BYTES)
        {
            debug!("set the send buffer of a unix socket: {error}");
        }
        let peer = match stream.peer_cred() {
            Ok(credentials) => Peer::Unix {
                process: credentials.pid(),
                user: credentials.uid(),
            },
            Err(_) => Peer::UnknownUnix,
        };
        Ok((stream, peer))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // A reply goes out in one write; nothing is gained by waiting for more.
        stream.set_nodelay(true)?;
        // An idle client is welcome for ever, one whose machine is gone is not.
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        Ok((stream, Peer::Tcp(address)))
    }
}
