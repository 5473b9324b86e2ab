//! Accepts connections: checked for HTTP/2, bounded in number. No failure ends this.
//!
//! ```text
//! listener ──accept──> handshake: TLS, preface ──> seat ──> Connection
//!                      (bounded, a deadline)     (bounded, idle ones give way)
//! ```

use std::{
    convert::Infallible,
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{Stream, future::BoxFuture, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    limits,
    net::{
        buffers::{BufferPool, Buffered},
        handshakes::{Handshake, Handshakes},
        limits::{ACCEPT_PAUSE, handshakes_max},
        peer::Peer,
        places::Full,
        seats::{Seat, Seats},
        seldom::Seldom,
        tls::Shown,
    },
    tasks::Tasks,
};

/// The first bytes from an HTTP/2 client.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that have seats and wait to be served.
const READY_MAX: usize = 16;

/// Makes the TLS acceptor of the next client.
pub type Tls = Arc<dyn Fn() -> TlsAcceptor + Send + Sync>;

/// The connections of all listeners, which share their places.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    seats: Arc<Seats>,
    buffers: Arc<BufferPool>,
    tasks: Tasks,
    logs: Logs,
}

/// Log lines that peers can cause.
#[derive(Debug, Default)]
struct Logs {
    accept: Seldom,
    displaced: Seldom,
    idle: Seldom,
    full: Seldom,
    handshake: Seldom,
}

/// The reason why a connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("it is lost: {0}")]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("it does not speak HTTP/2")]
    Protocol,
    #[error("its handshake took longer than {:?}", limits::HANDSHAKE_TIMEOUT)]
    TimedOut,
    #[error("it was closed for a new connection: the limit of handshakes is reached")]
    Displaced,
    #[error(transparent)]
    Full(#[from] Full),
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

impl Connections {
    /// At most `max` connections.
    #[must_use]
    pub fn new(max: usize, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self {
            max,
            seats: Seats::new(max),
            buffers: BufferPool::new(),
            tasks,
            logs: Logs::default(),
        })
    }

    /// Connections of a unix socket, until `stop`.
    pub fn of_unix(
        self: &Arc<Self>,
        listener: UnixListener,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<Connection, Infallible>> + use<> {
        let buffers = Arc::clone(&self.buffers);
        self.incoming(Unix { listener, buffers }, None, stop)
    }

    /// Connections of a TCP address, with TLS if there is any, until `stop`.
    pub fn of_tcp(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Option<Tls>,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<Connection, Infallible>> + use<> {
        self.incoming(listener, tls, stop)
    }

    fn incoming<L: Listener>(
        self: &Arc<Self>,
        listener: L,
        tls: Option<Tls>,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<Connection, Infallible>> + use<L> {
        let (ready, connections) = mpsc::channel(READY_MAX);
        let all = Arc::clone(self);
        drop(self.tasks.spawn("gRPC listener", async move {
            let accepting = all.accept(&listener, tls, &stop, &ready);
            // Connections in their handshake are dropped.
            let _ = stop.run_until_cancelled(accepting).await;
        }));
        stream::unfold(connections, async |mut connections| {
            Some((Ok(connections.recv().await?), connections))
        })
    }

    /// Accepts one connection after another. A failure never ends this: missing resources (file
    /// descriptors, memory) become available again.
    async fn accept<L: Listener>(
        self: &Arc<Self>,
        listener: &L,
        tls: Option<Tls>,
        stop: &CancellationToken,
        ready: &mpsc::Sender<Connection>,
    ) {
        let handshakes = Handshakes::new(handshakes_max(self.max));
        loop {
            let (socket, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(left_out) = self.logs.accept.may_log() {
                        warn!("cannot accept a gRPC connection: {error}{left_out}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (handshake, displaces) = handshakes.begin(peer.key());
            if displaces && let Some(left_out) = self.logs.displaced.may_log() {
                let limit = handshakes_max(self.max);
                warn!(
                    %peer,
                    limit,
                    "end the oldest gRPC handshake for a new connection: the limit of handshakes \
                     is reached{left_out}"
                );
            }
            let (all, ready, stop) = (Arc::clone(self), ready.clone(), stop.clone());
            let tls = tls.clone();
            drop(self.tasks.spawn("gRPC handshake", async move {
                let through = all.let_in(socket, tls, &peer, handshake);
                match stop.run_until_cancelled(Box::pin(through)).await {
                    // The receiver is gone when the daemon stops.
                    Some(Ok(connection)) => drop(ready.send(connection).await),
                    Some(Err(error)) => all.tell(&peer, &error),
                    None => {}
                }
            }));
        }
    }

    /// Takes a connection through its handshake to its seat.
    async fn let_in<S: Socket + 'static>(
        &self,
        socket: S,
        tls: Option<Tls>,
        peer: &Peer,
        handshake: Handshake,
    ) -> Result<Connection, Refused> {
        let (socket, shown) = tokio::select! {
            shaken = timeout(limits::HANDSHAKE_TIMEOUT, shake_hands(socket, tls)) => {
                shaken.map_err(|_| Refused::TimedOut)??
            }
            () = handshake.displaced() => return Err(Refused::Displaced),
        };
        drop(handshake);
        let (seat, displaces) = self.seats.take(peer.key())?;
        if displaces && let Some(left_out) = self.logs.idle.may_log() {
            let limit = self.max;
            warn!(
                %peer,
                limit,
                "end an idle gRPC connection for a new one: the limit of connections is \
                 reached{left_out}"
            );
        }
        Ok(Connection::new(socket, (*peer, shown), Arc::new(seat)))
    }

    fn tell(&self, peer: &Peer, error: &Refused) {
        match error {
            Refused::Io(_) => debug!(%peer, "a gRPC connection has not begun: {error}"),
            Refused::Full(_) => {
                if let Some(left_out) = self.logs.full.may_log() {
                    warn!(%peer, "turn away a gRPC connection: {error}{left_out}");
                }
            }
            _ => match self.logs.handshake.may_log() {
                Some(left_out) => info!(%peer, "close a gRPC connection: {error}{left_out}"),
                None => debug!(%peer, "close a gRPC connection: {error}"),
            },
        }
    }
}

/// Handles TLS, if there is any, and reads the preface by which a client shows that it speaks
/// HTTP/2.
async fn shake_hands<S: Socket + 'static>(
    socket: S,
    tls: Option<Tls>,
) -> Result<(Box<dyn Socket>, Option<Shown>), Refused> {
    let (mut socket, shown): (Box<dyn Socket>, _) = match tls {
        None => (Box::new(socket), None),
        Some(tls) => {
            let stream = tls().accept(socket).await.map_err(Refused::Tls)?;
            let shown = Shown::on(stream.get_ref().1);
            (Box::new(stream), Some(shown))
        }
    };
    let mut preface = [0; PREFACE.len()];
    let mut count = 0;
    while let Some(missing) = preface
        .get_mut(count..)
        .filter(|missing| !missing.is_empty())
    {
        let more = socket.read(missing).await?;
        if more == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        count += more;
        if preface.get(..count) != PREFACE.get(..count) {
            return Err(Refused::Protocol);
        }
    }
    Ok((socket, shown))
}

/// A socket that accepts connections, set up for gRPC.
trait Listener: Send + Sync + 'static {
    type Socket: Socket + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Socket, Peer)>> + Send;
}

struct Unix {
    listener: UnixListener,
    buffers: Arc<BufferPool>,
}

impl Listener for Unix {
    type Socket = Buffered<UnixStream>;

    async fn accept(&self) -> io::Result<(Self::Socket, Peer)> {
        let (socket, _) = self.listener.accept().await?;
        let peer = Peer::of_unix(&socket);
        Ok((Buffered::new(socket, &self.buffers), peer))
    }
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (socket, address) = TcpListener::accept(self).await?;
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%address, %error, "cannot turn off Nagle's algorithm");
        }
        Ok((socket, Peer::Tcp(address)))
    }
}

/// A connection with a seat.
pub struct Connection {
    socket: Box<dyn Socket>,
    /// The part of the preface that the HTTP/2 server still has to read again.
    early: &'static [u8],
    peer: Peer,
    /// What the client showed in its TLS handshake, if there was one.
    shown: Option<Shown>,
    seat: Arc<Seat>,
    /// `None` once the connection has been displaced.
    displaced: Option<BoxFuture<'static, ()>>,
}

impl Connection {
    fn new(socket: Box<dyn Socket>, (peer, shown): (Peer, Option<Shown>), seat: Arc<Seat>) -> Self {
        let waits = Arc::clone(&seat);
        Self {
            socket,
            early: PREFACE,
            peer,
            shown,
            seat,
            displaced: Some(Box::pin(async move { waits.displaced().await })),
        }
    }

    /// The peer at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// What the client showed in its TLS handshake, if there was one.
    #[must_use]
    pub fn shown(&self) -> Option<Shown> {
        self.shown.clone()
    }

    /// Its seat, which it holds on to while requests are under way.
    #[must_use]
    pub fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("seat", &self.seat)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let early = self.early;
        if !early.is_empty() {
            let (now, later) = early.split_at(early.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.early = later;
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if read.is_pending() {
            if let Some(displaced) = &mut self.displaced {
                ready!(displaced.as_mut().poll(context));
                self.displaced = None;
            }
            // Report an end of file, as if the peer had closed the connection.
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
