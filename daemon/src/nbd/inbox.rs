//! What the client has sent and nobody has looked at yet: one fixed buffer per connection.
//!
//! Both phases read through it, so that bytes which arrive early are not lost between them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::limits::INBOX_BYTES;

pub(super) struct Inbox {
    buffer: Box<[u8]>,
    /// `start <= end <= buffer.len()`
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Forgets the first `count` unread bytes.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(
            count <= self.unread().len(),
            "only what was read is consumed"
        );
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Reads what the socket has; zero bytes is the end of the stream.
    ///
    /// May only be called while less than the whole buffer is unread.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        assert!(self.unread().len() < self.buffer.len(), "there is room");
        if self.start > 0 {
            // Only the torn head of a message is left over, so little is moved.
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut room = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// The next `N` bytes of the stream.
    pub(super) async fn take<const N: usize, S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> io::Result<[u8; N]> {
        const { assert!(N <= INBOX_BYTES) };
        loop {
            if let Some(bytes) = self.unread().first_chunk() {
                let bytes = *bytes;
                self.consume(N);
                return Ok(bytes);
            }
            if std::future::poll_fn(|cx| self.poll_fill(stream, cx)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next `count` bytes of the stream. The caller has bounded `count`.
    pub(super) async fn take_vec<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        count: usize,
    ) -> io::Result<Vec<u8>> {
        let early = self.unread().len().min(count);
        let mut bytes = self.unread()[..early].to_vec();
        self.consume(early);
        bytes.resize(count, 0);
        stream.read_exact(&mut bytes[early..]).await?;
        Ok(bytes)
    }
}
