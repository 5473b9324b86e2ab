//! Send buffers of sockets: small at first, larger for fast peers, within a total.
//!
//! Bytes that a peer does not take stay in the kernel, which charges them to nobody. With large
//! buffers for all, a thousand peers that take nothing hold gigabytes; with small buffers a reply
//! waits for its peer several times. So a buffer grows in steps after its peer has taken several
//! times its size, if a pool that all connections share allows it. An idle buffer shrinks again
//! after a while.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tracing::debug;

use super::limits::{
    BUFFER_REST, GROWN_BUFFER_BYTES, GROWTH_PART, GROWTH_PROOF, SEND_BUFFER_STEPS,
};

/// The memory that all grown buffers share.
#[derive(Debug)]
pub struct BufferPool {
    free_bytes: AtomicUsize,
}

impl BufferPool {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_bytes(GROWN_BUFFER_BYTES)
    }

    fn with_bytes(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            free_bytes: AtomicUsize::new(bytes),
        })
    }

    /// The free bytes of the pool.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.free_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let left = |free: usize| {
            (bytes.saturating_mul(GROWTH_PART) <= free).then(|| free.saturating_sub(bytes))
        };
        self.free_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.free_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Bytes that the kernel may keep in a buffer of this step, beyond the first step.
fn cost_bytes(step: usize) -> usize {
    if step == 0 {
        return 0;
    }
    // The kernel doubles what is asked for.
    SEND_BUFFER_STEPS.get(step).map_or(0, |size| 2 * size)
}

/// A socket whose send buffer adapts to the use of its peer.
#[derive(Debug)]
pub struct Buffered<S: AsFd> {
    socket: S,
    pool: Arc<BufferPool>,
    /// Index into [`SEND_BUFFER_STEPS`].
    step: usize,
    /// Taken from the pool.
    charged_bytes: usize,
    /// Since the last step.
    sent_bytes: u64,
    /// Runs while bytes are taken from the pool.
    rest: Option<Pin<Box<Sleep>>>,
}

impl<S: AsFd> Buffered<S> {
    /// Gives the socket the smallest buffer.
    pub fn new(socket: S, pool: &Arc<BufferPool>) -> Self {
        let mut buffered = Self {
            socket,
            pool: Arc::clone(pool),
            step: 0,
            charged_bytes: 0,
            sent_bytes: 0,
            rest: None,
        };
        buffered.set_step(0);
        buffered
    }

    /// The socket itself.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    fn set_step(&mut self, step: usize) {
        self.step = step;
        let Some(&size) = SEND_BUFFER_STEPS.get(step) else {
            return;
        };
        // The kernel cuts the size to its own limit. There is no other reason to fail.
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&self.socket, size) {
            debug!(size, %error, "cannot set the send buffer of a socket");
        }
    }

    /// Goes to the next step, if the peer has taken enough for it and the pool allows it.
    fn grow(&mut self) -> bool {
        let next = self.step + 1;
        let has_proved = SEND_BUFFER_STEPS
            .get(self.step)
            .is_some_and(|&size| self.sent_bytes >= size as u64 * GROWTH_PROOF);
        if next >= SEND_BUFFER_STEPS.len() || !has_proved {
            return false;
        }
        // If the pool is used up, ask again after as many bytes.
        self.sent_bytes = 0;
        let more_bytes = cost_bytes(next).saturating_sub(self.charged_bytes);
        if more_bytes > 0 && !self.pool.take(more_bytes) {
            return false;
        }
        self.charged_bytes += more_bytes;
        self.set_step(next);
        self.rest = Some(Box::pin(sleep(BUFFER_REST)));
        true
    }

    /// Shrinks a grown buffer that is idle.
    fn poll_rest(&mut self, context: &mut Context<'_>) {
        while let Some(rest) = &mut self.rest {
            if rest.as_mut().poll(context).is_pending() {
                return;
            }
            rest.as_mut().reset(Instant::now() + BUFFER_REST);
            let size = SEND_BUFFER_STEPS.get(self.step).copied().unwrap_or(0);
            let is_used = self.step > 0 && self.sent_bytes >= size as u64;
            self.sent_bytes = 0;
            if is_used {
                continue;
            }
            self.set_step(0);
            // The buffer still holds bytes that the peer has not taken: the pool gets them back
            // when the rest fits the smallest buffer.
            if is_writable(&self.socket) {
                self.rest = None;
                self.pool.give_back(std::mem::take(&mut self.charged_bytes));
            }
        }
    }
}

/// Returns true if the kernel would take more now.
fn is_writable(socket: impl AsFd) -> bool {
    let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

impl<S: AsFd> Drop for Buffered<S> {
    fn drop(&mut self) {
        self.pool.give_back(self.charged_bytes);
    }
}

impl<S: AsFd + AsyncWrite + Unpin> Buffered<S> {
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        offered_bytes: usize,
        mut send: impl FnMut(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let sent = send(Pin::new(&mut self.socket), context);
            match &sent {
                Poll::Ready(Ok(bytes)) => {
                    self.sent_bytes += *bytes as u64;
                    if *bytes < offered_bytes {
                        // It makes the next call a longer one.
                        self.grow();
                    }
                }
                Poll::Ready(Err(_)) => {}
                Poll::Pending if self.grow() => continue,
                Poll::Pending => self.poll_rest(context),
            }
            return sent;
        }
    }
}

impl<S: AsFd + AsyncWrite + Unpin> AsyncWrite for Buffered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, bytes.len(), |socket, context| {
            socket.poll_write(context, bytes)
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered_bytes = slices.iter().map(|slice| slice.len()).sum();
        self.poll_send(context, offered_bytes, |socket, context| {
            socket.poll_write_vectored(context, slices)
        })
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

impl<S: AsFd + AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        if read.is_pending() {
            self.poll_rest(context);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use rustix::net::sockopt::socket_send_buffer_size;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    /// The sizes that the kernel sets for the steps.
    const KERNEL_STEPS: [usize; 3] = [32 << 10, 512 << 10, 4 << 20];

    fn pair(pool: &Arc<BufferPool>) -> (Buffered<UnixStream>, UnixStream) {
        let (server, client) = UnixStream::pair().unwrap();
        (Buffered::new(server, pool), client)
    }

    fn size(buffered: &Buffered<UnixStream>) -> usize {
        socket_send_buffer_size(buffered.socket()).unwrap()
    }

    /// Sends so much to a client that takes it all.
    async fn send(server: &mut Buffered<UnixStream>, client: &mut UnixStream, bytes: usize) {
        let sent = vec![7; bytes];
        let mut taken = vec![0; bytes];
        let (wrote, read) = tokio::join!(server.write_all(&sent), client.read_exact(&mut taken));
        wrote.unwrap();
        read.unwrap();
        assert!(taken == sent);
    }

    /// Sends until nothing more fits, with a peer that takes nothing.
    async fn fill(server: &mut Buffered<UnixStream>) -> usize {
        let mut total = 0;
        let piece = vec![1; 64 << 10];
        while let Ok(written) =
            tokio::time::timeout(std::time::Duration::from_millis(1), server.write(&piece)).await
        {
            total += written.unwrap();
        }
        total
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_gets_the_smallest_buffer() {
        let pool = BufferPool::new();
        let mut pairs: Vec<_> = (0..100).map(|_| pair(&pool)).collect();
        for (server, client) in &mut pairs {
            let kept = fill(server).await;
            assert!(kept <= KERNEL_STEPS[0], "{kept} bytes");
            assert_eq!(size(server), KERNEL_STEPS[0]);
            let unread = rustix::io::ioctl_fionread(&*client).unwrap();
            assert_eq!(unread, kept as u64);
        }
        assert_eq!(pool.free_bytes(), GROWN_BUFFER_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_much_gets_more_and_gives_it_back() {
        let pool = BufferPool::new();
        let (mut server, mut client) = pair(&pool);
        send(&mut server, &mut client, 1 << 20).await;
        assert_eq!(size(&server), KERNEL_STEPS[1]);
        send(&mut server, &mut client, 8 << 20).await;
        assert_eq!(size(&server), KERNEL_STEPS[2]);
        assert_eq!(pool.free_bytes(), GROWN_BUFFER_BYTES - KERNEL_STEPS[2]);
        // It stays while it is used, though there is nothing to send now and then.
        let mut byte = [0];
        let waits = BUFFER_REST / 2;
        for _ in 0..6 {
            send(&mut server, &mut client, 3 << 20).await;
            assert!(
                tokio::time::timeout(waits, server.read(&mut byte))
                    .await
                    .is_err()
            );
        }
        assert_eq!(size(&server), KERNEL_STEPS[2]);
        // Bytes that the peer does not take stay charged.
        fill(&mut server).await;
        let waits = BUFFER_REST * 3;
        assert!(
            tokio::time::timeout(waits, server.read(&mut byte))
                .await
                .is_err()
        );
        assert_eq!(pool.free_bytes(), GROWN_BUFFER_BYTES - KERNEL_STEPS[2]);
        let mut rest = vec![0; 8 << 20];
        while rustix::io::ioctl_fionread(&client).unwrap() > 0 {
            let _ = client.read(&mut rest).await.unwrap();
        }
        assert!(
            tokio::time::timeout(waits, server.read(&mut byte))
                .await
                .is_err()
        );
        assert_eq!(size(&server), KERNEL_STEPS[0]);
        assert_eq!(pool.free_bytes(), GROWN_BUFFER_BYTES);
        drop((server, client));
        assert_eq!(pool.free_bytes(), GROWN_BUFFER_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn grown_buffers_are_bounded_in_sum() {
        let pool = BufferPool::with_bytes(16 << 20);
        let mut pairs: Vec<_> = (0..40).map(|_| pair(&pool)).collect();
        for (server, client) in &mut pairs {
            send(server, client, 16 << 20).await;
        }
        let sizes: Vec<_> = pairs.iter().map(|(server, _)| size(server)).collect();
        let grown = sizes.iter().filter(|size| **size > KERNEL_STEPS[0]);
        let grown_bytes: usize = grown.clone().sum();
        assert!(grown.count() > 20, "{sizes:?}");
        assert_eq!(pool.free_bytes(), (16 << 20) - grown_bytes);
        drop(pairs);
        assert_eq!(pool.free_bytes(), 16 << 20);
    }
}
