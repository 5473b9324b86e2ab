//! Keepalive: the daemon pings a silent peer, and any bytes from the peer prove that it is alive.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::FutureExt as _;
use h2::{Ping, PingPong};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use crate::limits;

/// Number of times that bytes have arrived.
#[derive(Debug, Default)]
pub(super) struct HeardAt(AtomicU64);

impl HeardAt {
    pub(super) fn times(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Heard<S> {
    socket: S,
    at: Arc<HeardAt>,
}

impl<S> Heard<S> {
    pub(super) fn of(socket: S) -> (Self, Arc<HeardAt>) {
        let at = Arc::<HeardAt>::default();
        let heard = Self {
            socket,
            at: Arc::clone(&at),
        };
        (heard, at)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.socket).poll_read(context, buffer));
        self.at.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
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

/// Signs of life of a peer.
pub(super) struct Life {
    pings: Option<PingPong>,
    /// The time of the next look.
    next: Instant,
    /// The number of arrivals at the last look.
    seen: u64,
    /// True if the last look sent a ping.
    asked: bool,
}

impl Life {
    pub(super) fn of(pings: Option<PingPong>) -> Self {
        Self {
            pings,
            next: Instant::now() + limits::KEEPALIVE_INTERVAL,
            seen: 0,
            asked: false,
        }
    }

    /// Returns when the peer is gone. The future may be dropped and called again.
    pub(super) async fn ended(&mut self, heard: &HeardAt) {
        loop {
            sleep_until(self.next).await;
            let times = heard.times();
            let is_silent = times == self.seen;
            if is_silent && self.asked {
                return;
            }
            self.seen = times;
            self.asked = is_silent;
            if let Some(pings) = &mut self.pings {
                // The next ping can be sent only after the pong to the last one was taken.
                let _ = poll_fn(|context| pings.poll_pong(context)).now_or_never();
                if is_silent {
                    let _ = pings.send_ping(Ping::opaque());
                }
            }
            self.next = Instant::now()
                + if is_silent {
                    limits::KEEPALIVE_TIMEOUT
                } else {
                    limits::KEEPALIVE_INTERVAL
                };
        }
    }
}
