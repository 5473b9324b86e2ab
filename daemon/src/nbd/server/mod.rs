//! Accepts connections and runs them through both phases.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use varve_nbd::budget::{Account, Budget};
use varve_nbd::handshake::{
    Deadline, Desk, HandshakeError, Negotiated, NoPlace, Security, haggle, negotiate,
};
use varve_nbd::inbox::Inbox;
use varve_nbd::limits::{
    DEFAULT_HANDSHAKE_TIMEOUT, DEFAULT_MAX_CONNECTIONS, DEFAULT_STALL_TIMEOUT, DEFAULT_STOP_TIMEOUT,
};
use varve_nbd::transmission::{Patience, TransmissionError, transmit};
use varve_nbd::{Export, Exports};

use crate::auth::{Caller, Face};
use crate::net::buffers::{BufferPool, Buffered};
use crate::net::handshakes::{Handshake, Handshakes};
use crate::net::limits::{
    ACCEPT_PAUSE, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, handshakes_max,
};
use crate::net::peer::Peer;
use crate::net::places::{Place, Places};
use crate::net::seldom::Seldom;
use crate::net::tls::Shown;

#[cfg(test)]
mod tests;

/// Time for a client to notice that the server stops.
const LINGER: Duration = Duration::from_millis(500);

/// The settings of the NBD server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServerOptions {
    /// Over all listeners, without handshakes. Further connections are turned away.
    pub max_connections: usize,
    /// Time limit of a whole handshake; listings add to it.
    pub handshake_timeout: Duration,
    /// Time for requests in flight when the server stops.
    pub stop_timeout: Duration,
    /// Time for a client to take a reply, or to send the rest of a payload, while others wait for
    /// memory.
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
    /// Makes the acceptor of the next client: certificates are renewed while the server runs.
    pub acceptor: Arc<dyn Fn() -> TlsAcceptor + Send + Sync>,
    /// True if clients must use TLS.
    pub required: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

/// The NBD server, without its listeners: any number of them share its limits. `F` makes the
/// exports that a caller sees.
pub struct Server<F> {
    exports: F,
    options: ServerOptions,
    places: Arc<Places>,
    buffers: Arc<BufferPool>,
    budget: Arc<Budget>,
    logs: Logs,
}

/// Log lines that peers can cause.
#[derive(Default)]
struct Logs {
    accept: Seldom,
    displaced: Seldom,
    full: Seldom,
    handshake: Seldom,
}

impl<F> fmt::Debug for Server<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("options", &self.options)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl<F> Server<F> {
    /// Connections that are open now and have an export.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.places.taken()
    }

    fn admit(&self, peer: &Peer) -> Result<Place, NoPlace> {
        self.places.take(peer.key()).map_err(|full| {
            if let Some(left_out) = self.logs.full.may_log() {
                warn!(%peer, "turn away an NBD connection: {full}{left_out}");
            }
            NoPlace(full.to_string())
        })
    }
}

impl<F, X> Server<F>
where
    F: Fn(Caller) -> X + Send + Sync + 'static,
    X: Exports,
{
    /// A server without connections. `exports` is called for each of them.
    #[must_use]
    pub fn new(exports: F, options: ServerOptions) -> Arc<Self> {
        Self::with_places(exports, options, Places::new(options.max_connections))
    }

    /// The same with shared places, for [`ServerOptions::max_connections`].
    #[must_use]
    pub fn with_places(exports: F, options: ServerOptions, places: Arc<Places>) -> Arc<Self> {
        Arc::new(Self {
            exports,
            places,
            buffers: BufferPool::new(),
            budget: Budget::new(),
            logs: Logs::default(),
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

    /// Serves a TCP socket, with TLS if there is any, until `stop`, and then until its connections
    /// have ended.
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

    /// Serves one existing connection, without TLS, until it ends: some time after `stop` at the
    /// latest.
    pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        stop: &CancellationToken,
    ) {
        self.run(stream, None, &Peer::Given, None, stop).await;
    }

    async fn serve<L: Listener>(
        self: Arc<Self>,
        listener: L,
        tls: Option<Tls>,
        stop: CancellationToken,
        spawn: impl Fn(BoxFuture<'static, ()>),
    ) {
        let tracker = TaskTracker::new();
        let handshakes = Handshakes::new(handshakes_max(self.options.max_connections));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(&self.buffers) => accepted,
                () = stop.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(left_out) = self.logs.accept.may_log() {
                        warn!("accept an NBD connection: {error}{left_out}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (handshake, displaces) = handshakes.begin(peer.key());
            if displaces && let Some(left_out) = self.logs.displaced.may_log() {
                let limit = handshakes_max(self.options.max_connections);
                warn!(
                    %peer,
                    limit,
                    "end the oldest NBD handshake for a new connection: the limit of handshakes is \
                     reached{left_out}"
                );
            }
            let server = Arc::clone(&self);
            let tls = tls.clone();
            // Each connection gets a token of its own: otherwise all would contend for one lock.
            let stop = stop.child_token();
            spawn(Box::pin(tracker.track_future(async move {
                server
                    .run(stream, tls.as_ref(), &peer, Some(handshake), &stop)
                    .await;
            })));
        }
        tracker.close();
        tracker.wait().await;
    }

    /// Serves a connection from greeting to close. Logs the error that ends it.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        tls: Option<&Tls>,
        peer: &Peer,
        handshake: Option<Handshake>,
        stop: &CancellationToken,
    ) {
        debug!(%peer, "NBD connection");
        match self
            .see_through(&mut stream, tls, peer, handshake, stop)
            .await
        {
            Ok(()) => debug!(%peer, "NBD connection ended"),
            Err(ConnectionError::Handshake(HandshakeError::Io(error)))
            | Err(ConnectionError::Transmission(TransmissionError::Io(error))) => {
                debug!(%peer, "NBD connection lost: {error}");
            }
            Err(ConnectionError::Handshake(error)) => match self.logs.handshake.may_log() {
                Some(left_out) => info!(%peer, "close an NBD connection: {error}{left_out}"),
                None => debug!(%peer, "close an NBD connection: {error}"),
            },
            Err(ConnectionError::Transmission(
                error @ (TransmissionError::Stalled { .. }
                | TransmissionError::PayloadStalled { .. }),
            )) => {
                warn!(%peer, "close an NBD connection: {error}");
            }
            Err(error) => info!(%peer, "close an NBD connection: {error}"),
        }
    }

    async fn see_through<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        tls: Option<&Tls>,
        peer: &Peer,
        handshake: Option<Handshake>,
        stop: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let mut inbox = Inbox::new();
        let deadline = Deadline::new(self.options.handshake_timeout);
        let caller = Caller::new(Face::Nbd, *peer);
        let exports = (self.exports)(caller.clone());
        let desk = Desk {
            exports: &exports,
            deadline: &deadline,
            admit: &|| self.admit(peer),
        };
        let security = match tls {
            None => Security::Plain,
            Some(tls) if tls.required => Security::Required,
            Some(_) => Security::Offered,
        };
        // Boxed, so that its memory is freed when the handshake is over.
        let negotiating = Box::pin(negotiate(stream, &mut inbox, &desk, security));
        let Some(negotiated) = unless_ended(negotiating, handshake.as_ref(), stop).await? else {
            return Ok(());
        };
        let (client, tls) = match (negotiated, tls) {
            (Negotiated::StartTls(client), Some(tls)) => (client, tls),
            (negotiated, _) => {
                drop(handshake);
                let outcome = self.transmit(stream, inbox, negotiated, peer, stop).await;
                if stop.is_cancelled() {
                    lingering_close(stream).await;
                }
                return outcome;
            }
        };
        let mut inbox = Inbox::new();
        let negotiating = Box::pin(async {
            let accepted = deadline.run((tls.acceptor)().accept(stream)).await?;
            let mut stream = accepted.map_err(HandshakeError::Tls)?;
            // From here on the client may be somebody that its certificate names.
            let shown = Shown::on(stream.get_ref().1);
            let exports = (self.exports)(caller.over_tls(shown.subject));
            let desk = Desk {
                exports: &exports,
                deadline: &deadline,
                admit: &|| self.admit(peer),
            };
            let negotiated = haggle(&mut stream, &mut inbox, &desk, client, Security::Tls).await?;
            Ok((stream, negotiated))
        });
        let ended = unless_ended(negotiating, handshake.as_ref(), stop).await?;
        let Some((mut stream, negotiated)) = ended else {
            return Ok(());
        };
        drop(handshake);
        let outcome = self
            .transmit(&mut stream, inbox, negotiated, peer, stop)
            .await;
        // Close cleanly, so that the client knows that nothing was cut off. It may have gone
        // already.
        let _ = timeout(self.options.stop_timeout, stream.shutdown()).await;
        outcome
    }

    /// The transmission phase of a connection.
    async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        inbox: Inbox,
        negotiated: Negotiated<X::Export, Place>,
        peer: &Peer,
        stop: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let Negotiated::Export {
            export,
            terms,
            place: _place,
        } = negotiated
        else {
            return Ok(());
        };
        let name = &export.info().name;
        debug!(%peer, export = name, ?terms, "NBD export opened");
        let account = Account::open(Arc::clone(&self.budget), peer.is_remote());
        let patience = Patience {
            stop: self.options.stop_timeout,
            stall: self.options.stall_timeout,
        };
        let end = transmit(stream, inbox, &export, &terms, account, patience, stop).await?;
        debug!(%peer, export = name, ?end, "NBD export closed");
        Ok(())
    }
}

/// Closes a connection whose client may still be sending. Bytes that are not read make TCP reset
/// the connection and throw away the replies that are on their way.
async fn lingering_close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let mut unread = [0; 4096];
    let drain = async {
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // The connection is over in any case.
    let _ = timeout(LINGER, drain).await;
}

/// The reason why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Transmission(#[from] TransmissionError),
}

/// Runs a part of a handshake. Returns `None` if the server stops, and an error if another
/// handshake takes its place.
async fn unless_ended<T>(
    part: impl Future<Output = Result<T, HandshakeError>>,
    handshake: Option<&Handshake>,
    stop: &CancellationToken,
) -> Result<Option<T>, HandshakeError> {
    let displaced = async {
        match handshake {
            Some(handshake) => handshake.displaced().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        outcome = part => outcome.map(Some),
        () = stop.cancelled() => Ok(None),
        () = displaced => Err(HandshakeError::Displaced),
    }
}

/// A socket that accepts connections, set up for NBD.
trait Listener {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    async fn accept(&self, buffers: &Arc<BufferPool>) -> io::Result<(Self::Stream, Peer)>;
}

impl Listener for UnixListener {
    type Stream = Buffered<UnixStream>;

    async fn accept(&self, buffers: &Arc<BufferPool>) -> io::Result<(Self::Stream, Peer)> {
        let (stream, _) = UnixListener::accept(self).await?;
        let peer = Peer::of_unix(&stream);
        Ok((Buffered::new(stream, buffers), peer))
    }
}

impl Listener for TcpListener {
    type Stream = Buffered<TcpStream>;

    async fn accept(&self, buffers: &Arc<BufferPool>) -> io::Result<(Self::Stream, Peer)> {
        let (stream, address) = TcpListener::accept(self).await?;
        // Not an error of accept, which would delay others.
        if let Err(error) = tune(&stream) {
            debug!(%address, "cannot tune a TCP connection: {error}");
        }
        Ok((Buffered::new(stream, buffers), Peer::Tcp(address)))
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::{
        set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
    };
    // A reply goes out in one write, so there is nothing to wait for.
    stream.set_nodelay(true)?;
    // An idle client may stay for ever, but not one whose machine is gone.
    set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    set_socket_keepalive(stream, true)?;
    Ok(())
}
