//! Connections as tonic takes them: accepted without end, bounded in number, tuned for large messages.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::{limits, sockets};

/// A connection that holds a place among those of its listener.
#[derive(Debug)]
pub struct Connection<S> {
    socket: S,
    /// Until the peer has said something: the daemon's stop. tonic ends connections by telling the peer, which it cannot before
    /// the peer has spoken; such a connection would hold up the stop.
    silent: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: OwnedSemaphorePermit,
}

/// Connections of a unix socket.
pub fn incoming_unix(
    listener: UnixListener,
    connections_max: usize,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Connection<UnixStream>, Infallible>> {
    incoming(
        listener,
        connections_max,
        stop,
        async |listener: &UnixListener| {
            let (socket, _) = listener.accept().await?;
            sockets::enlarge_buffers(&socket);
            Ok(socket)
        },
    )
}

/// Connections of a TCP address.
pub fn incoming_tcp(
    listener: TcpListener,
    connections_max: usize,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Connection<TcpStream>, Infallible>> {
    incoming(
        listener,
        connections_max,
        stop,
        async |listener: &TcpListener| {
            let (socket, peer) = listener.accept().await?;
            if let Err(error) = socket.set_nodelay(true) {
                debug!(%peer, %error, "cannot turn off Nagle's algorithm");
            }
            Ok(socket)
        },
    )
}

/// Accepts one connection after another. Failing to is never the end: what is missing (file descriptors, memory) comes back.
fn incoming<L, S>(
    listener: L,
    connections_max: usize,
    stop: CancellationToken,
    accept: impl AsyncFn(&L) -> io::Result<S>,
) -> impl Stream<Item = Result<Connection<S>, Infallible>> {
    let places = Arc::new(Semaphore::new(connections_max));
    let state = (listener, stop, accept, places);
    stream::unfold(state, async |(listener, stop, accept, places)| {
        // The semaphore is never closed.
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        let socket = loop {
            match accept(&listener).await {
                Ok(socket) => break socket,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(limits::ACCEPT_RETRY_DELAY).await;
                }
            }
        };
        let connection = Connection {
            socket,
            silent: Some(Box::pin(stop.clone().cancelled_owned())),
            _place: place,
        };
        Some((Ok(connection), (listener, stop, accept, places)))
    })
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.socket.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        match (&read, &mut self.silent) {
            (Poll::Ready(_), silent) => *silent = None,
            // As if the peer had closed it.
            (Poll::Pending, Some(stop)) => return stop.as_mut().poll(context).map(Ok),
            (Poll::Pending, None) => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
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
