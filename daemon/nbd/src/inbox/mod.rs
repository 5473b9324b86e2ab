//! Bytes that the client has sent and that are not parsed yet: one buffer per connection.
//!
//! Both phases read through it, so that no early bytes are lost between them.
//!
//! The buffer is small until one read fills it: a client that sends so much at once has many
//! requests under way, and then benefits from more of them per system call. Payloads that are in
//! the buffer as a whole are handed out as slices of it, without a copy. Later reads use the rest
//! of the buffer. If too little is left while slices are still in use, a new buffer is allocated.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::limits::{DIRECT_READ_BYTES, INBOX_BYTES, READ_AHEAD_BYTES};

#[cfg(test)]
mod tests;

/// The bytes that a connection has received and not taken yet.
#[derive(Default)]
pub struct Inbox {
    /// Its whole content is unread.
    buffer: BytesMut,
    /// Length of the allocation in bytes; the buffer itself only knows the rest of it.
    allocated_bytes: usize,
    /// The last read returned more than a small buffer holds, or filled the buffer.
    busy: bool,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("unread_bytes", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl Inbox {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer
    }

    /// Forgets the first `count` unread bytes.
    pub(super) fn consume(&mut self, count: usize) {
        assert!(count <= self.buffer.len(), "only what was read is consumed");
        self.buffer.advance(count);
    }

    /// The next `count` bytes, if they are all here.
    pub(super) fn take_slice(&mut self, count: usize) -> Option<Bytes> {
        (count <= self.buffer.len()).then(|| self.buffer.split_to(count).freeze())
    }

    /// Takes the received part of the next `count` bytes, with capacity for the rest. The caller
    /// has bounded `count`, and reads the rest past this inbox.
    pub(super) fn take_start(&mut self, count: usize) -> BytesMut {
        let early = self.buffer.len().min(count);
        let mut start = aligned(count);
        start.extend_from_slice(&self.buffer[..early]);
        self.consume(early);
        if count >= DIRECT_READ_BYTES {
            // More payloads of this size follow, and reading ahead would only mean copying them.
            self.busy = false;
        }
        start
    }

    /// Gives back the large buffer of a connection that has nothing to do.
    pub(super) fn rest(&mut self) {
        if self.buffer.is_empty() && self.allocated_bytes > INBOX_BYTES {
            *self = Self::new();
        }
    }

    /// Returns true if the next buffer is a large one.
    pub(super) fn would_read_ahead(&self) -> bool {
        self.busy
    }

    /// Makes the next buffer a small one.
    pub(super) fn read_little(&mut self) {
        self.busy = false;
    }

    /// Reads what the socket has; zero bytes is the end of the stream.
    ///
    /// May only be called while no more than the torn head of a message is unread.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let room = self.make_room();
        let count = ready!(poll_read(stream, &mut (&mut self.buffer).limit(room), cx))?;
        self.busy = count >= room.min(INBOX_BYTES);
        Poll::Ready(Ok(count))
    }

    /// Makes enough room for a read to be worth its system call. Returns the room in bytes.
    fn make_room(&mut self) -> usize {
        let capacity = if self.busy {
            READ_AHEAD_BYTES
        } else {
            INBOX_BYTES
        };
        let unread = self.buffer.len();
        assert!(unread <= INBOX_BYTES / 4, "only a torn head is left over");
        if self.buffer.capacity() - unread < capacity / 2
            && !self.buffer.try_reclaim(capacity - unread)
        {
            let mut fresh = BytesMut::with_capacity(capacity);
            fresh.extend_from_slice(&self.buffer);
            self.buffer = fresh;
            self.allocated_bytes = capacity;
        }
        (self.buffer.capacity() - unread).min(capacity)
    }

    /// The next `N` bytes of the stream.
    pub(super) async fn take<const N: usize, S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> io::Result<[u8; N]> {
        const { assert!(N <= INBOX_BYTES / 4) };
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

/// Room for `count` bytes that begins at a page: the export may write them to a disk from where
/// they are.
fn aligned(count: usize) -> BytesMut {
    const PAGE_BYTES: usize = 4096;
    let mut room = BytesMut::with_capacity(count + PAGE_BYTES - 1);
    let skip = room.as_ptr().align_offset(PAGE_BYTES);
    room.resize(skip, 0);
    room.advance(skip);
    room
}

/// Reads what the socket has into the room that `buffer` has; zero bytes is the end of the stream.
pub(super) fn poll_read<S, B>(
    stream: &mut S,
    buffer: &mut B,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>>
where
    S: AsyncRead + Unpin,
    B: BufMut,
{
    assert!(buffer.has_remaining_mut(), "there is room");
    // The future holds no state of its own: dropped when it is pending, nothing is lost.
    let read: Pin<&mut _> = pin!(stream.read_buf(buffer));
    read.poll(cx)
}
