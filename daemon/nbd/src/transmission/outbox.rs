//! Finished replies on their way to the socket.
//!
//! Headers are kept in place and payloads are the slices that came out of the cache, so that a
//! reply is copied once: by the kernel.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::budget::{Charge, Freed};
use crate::export::Piece;
use crate::limits::{DETACHED_BYTES_MAX, MAX_WRITE_SLICES, PINNED_BYTES};
use crate::wire::{
    Answered, ErrorCode, Framing, Head, Request, StatusFlags, encode_block_status, encode_done,
    encode_error, encode_offset_data_header, encode_offset_hole, encode_simple_reply,
};

/// Holes shorter than this between data are sent as zeroes: for the client, taking one more chunk
/// off the socket costs more than copying so few bytes.
const MIN_HOLE_BYTES: u64 = 32 << 10;
/// The source of explicit zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The answer to one request.
#[derive(Debug)]
pub(super) struct Reply {
    cookie: u64,
    /// As in the request.
    offset: u64,
    pub(super) body: Body,
}

impl Reply {
    pub(super) fn to(request: &Request, body: impl Into<Body>) -> Self {
        Self {
            cookie: request.cookie,
            offset: request.offset,
            body: body.into(),
        }
    }

    /// Copies short payloads, so that the reply keeps nothing else alive.
    pub(super) fn keep_own(&mut self) {
        let Body::Data { pieces, .. } = &mut self.body else {
            return;
        };
        for piece in pieces {
            if let Piece::Data(bytes) = piece {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Body {
    Done,
    /// From the request's offset on.
    Data {
        pieces: Vec<Piece>,
        /// As one chunk, holes filled in.
        whole: bool,
    },
    /// Per metadata context its id and its extents.
    Status(Vec<(u32, Vec<(u64, StatusFlags)>)>),
    Error {
        code: ErrorCode,
        /// Where in the export, if that is known.
        offset: Option<u64>,
        message: String,
    },
}

/// Part of a reply.
struct Segment {
    content: Content,
    /// The charge that is returned once the segment is out: for the memory that it keeps alive. The
    /// last segment also returns the rest.
    frees: Charge,
    /// In the last segment of a reply: the charge for memory that its slices keep alive beyond
    /// themselves.
    pinned: Charge,
    /// A reply's last.
    is_last: bool,
}

enum Content {
    Head(Head),
    Body(Bytes),
    /// This many of [`ZEROES`].
    Zeroes(usize),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Head(head) => head.bytes(),
            Content::Body(bytes) => bytes,
            Content::Zeroes(count) => ZEROES.get(..*count).unwrap_or(&ZEROES),
        }
    }

    /// Bytes that it keeps in memory until it is out.
    fn held_bytes(&self) -> usize {
        match &self.content {
            Content::Body(bytes) => bytes.len(),
            Content::Head(_) | Content::Zeroes(_) => 0,
        }
    }
}

/// The result of one write.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Written {
    pub(super) bytes: usize,
    /// Replies that are now out completely.
    pub(super) replies: usize,
    /// Charges of requests that are not held any more.
    pub(super) freed: Freed,
}

pub(super) struct Outbox {
    framing: Framing,
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that the socket has taken.
    first_written: usize,
    queued_bytes: usize,
    /// Bytes that segments will free and that others can wait for.
    shared_bytes: u64,
}

impl Outbox {
    pub(super) fn new(framing: Framing) -> Self {
        Self {
            framing,
            segments: VecDeque::new(),
            first_written: 0,
            queued_bytes: 0,
            shared_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Bytes of replies that the client has not taken yet and that others can wait for.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.shared_bytes
    }

    /// Queues a reply. Returns the part of its request's charge that the reply does not hold. The
    /// rest comes back as the reply is written.
    #[must_use]
    pub(super) fn push(&mut self, reply: Reply, charge: Charge) -> Charge {
        let first = self.segments.len();
        // Extents and messages are the reply's own.
        let pins = matches!(reply.body, Body::Data { .. });
        let answered = Answered {
            framing: self.framing,
            cookie: reply.cookie,
            offset: reply.offset,
        };
        if self.framing > Framing::Simple {
            match reply.body {
                Body::Done => self.push_head(encode_done(&answered)),
                Body::Data { pieces, whole } => self.push_chunks(&answered, pieces, whole),
                Body::Status(contexts) if contexts.is_empty() => {
                    self.push_head(encode_done(&answered));
                }
                Body::Status(contexts) => {
                    let last = contexts.len() - 1;
                    for (i, (id, extents)) in contexts.iter().enumerate() {
                        let chunk = encode_block_status(&answered, i == last, *id, extents);
                        self.push_content(Content::Body(chunk.into()));
                    }
                }
                Body::Error {
                    code,
                    offset,
                    message,
                } => {
                    let chunk = encode_error(&answered, code, offset, &message);
                    self.push_content(Content::Body(chunk.into()));
                }
            }
        } else {
            let (error, pieces) = match reply.body {
                Body::Done => (None, Vec::new()),
                Body::Data { pieces, .. } => (None, pieces),
                Body::Error { code, .. } => (Some(code), Vec::new()),
                // Contexts cannot be agreed on without structured replies.
                Body::Status(_) => (Some(ErrorCode::Invalid), Vec::new()),
            };
            self.push_head(encode_simple_reply(reply.cookie, error));
            pieces.into_iter().for_each(|piece| self.push_piece(piece));
        }
        self.settle(first, charge, pins)
    }

    /// Divides a charge among the segments from `first` on, which are one reply.
    fn settle(&mut self, first: usize, mut charge: Charge, pins: bool) -> Charge {
        let segments = self.segments.iter_mut().skip(first);
        let mut holds_any = false;
        for segment in segments {
            let held_bytes = segment.held_bytes();
            holds_any |= held_bytes > 0;
            segment.frees = charge.split(held_bytes);
            self.shared_bytes += u64::from(segment.frees.shared_bytes());
        }
        let Some(last) = self.segments.back_mut() else {
            return charge;
        };
        last.is_last = true;
        if holds_any && pins {
            last.pinned = charge.split(PINNED_BYTES as usize);
            self.shared_bytes += u64::from(last.pinned.shared_bytes());
        }
        charge
    }

    /// Copies short replies that wait for the client, so that they keep nothing else alive, and
    /// reduces their charge accordingly. Returns the charge that is no longer held.
    #[must_use]
    pub(super) fn detach(&mut self) -> Freed {
        let mut freed = Freed::default();
        let (mut first, mut held_bytes) = (0, 0);
        for at in 0..self.segments.len() {
            let Some(segment) = self.segments.get_mut(at) else {
                break;
            };
            held_bytes += segment.held_bytes();
            if !segment.is_last {
                continue;
            }
            let pinned_bytes = segment.pinned.shared_bytes();
            if pinned_bytes > 0 && held_bytes <= DETACHED_BYTES_MAX {
                freed.add(mem::replace(&mut segment.pinned, Charge::NONE));
                self.shared_bytes -= u64::from(pinned_bytes);
                for segment in self.segments.range_mut(first..=at) {
                    if let Content::Body(bytes) = &mut segment.content {
                        *bytes = Bytes::copy_from_slice(bytes);
                    }
                }
            }
            (first, held_bytes) = (at + 1, 0);
        }
        freed
    }

    /// Data as chunks: one for every run of data and every hole worth telling.
    fn push_chunks(&mut self, answered: &Answered, pieces: Vec<Piece>, whole: bool) {
        let mut offset = answered.offset;
        let alone = pieces.len() == 1;
        let is_hole = |piece: &Piece| match piece {
            Piece::Data(_) => false,
            Piece::Zero(length) => !whole && (alone || u64::from(*length) >= MIN_HOLE_BYTES),
        };
        if pieces.is_empty() {
            return self.push_head(encode_done(answered));
        }
        let mut pieces = pieces.into_iter();
        while let Some(first) = pieces.as_slice().first() {
            let hole = is_hole(first);
            let run = pieces.as_slice().iter();
            let run = run.take_while(|piece| is_hole(piece) == hole);
            let (count, length) = run.fold((0, 0), |(count, length), piece| {
                (count + 1, length + piece.length_bytes())
            });
            // Within one request, which is far below 4 GiB.
            let length_bytes = u32::try_from(length).unwrap_or(u32::MAX);
            let done = count == pieces.len();
            if hole {
                self.push_head(encode_offset_hole(answered, done, offset, length_bytes));
                pieces.by_ref().take(count).for_each(drop);
            } else {
                self.push_head(encode_offset_data_header(
                    answered,
                    done,
                    offset,
                    length_bytes,
                ));
                for piece in pieces.by_ref().take(count) {
                    self.push_piece(piece);
                }
            }
            offset += length;
        }
    }

    fn push_piece(&mut self, piece: Piece) {
        match piece {
            Piece::Data(bytes) => self.push_content(Content::Body(bytes)),
            Piece::Zero(length) => {
                let mut left = length as usize;
                while left > 0 {
                    let part = left.min(ZEROES.len());
                    self.push_content(Content::Zeroes(part));
                    left -= part;
                }
            }
        }
    }

    fn push_head(&mut self, head: Head) {
        self.push_content(Content::Head(head));
    }

    fn push_content(&mut self, content: Content) {
        let segment = Segment {
            content,
            frees: Charge::NONE,
            pinned: Charge::NONE,
            is_last: false,
        };
        self.queued_bytes += segment.bytes().len();
        self.segments.push_back(segment);
    }

    /// Hands the socket as much as it takes in one call. There must be something to write.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Written>> {
        let mut slices = [IoSlice::new(&[]); MAX_WRITE_SLICES];
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(segment.bytes());
            count += 1;
        }
        slices[0].advance(self.first_written);
        let bytes = ready!(Pin::new(stream).poll_write_vectored(cx, &slices[..count]))?;
        if bytes == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(self.advance(bytes)))
    }

    fn advance(&mut self, bytes: usize) -> Written {
        self.queued_bytes -= bytes;
        let mut written = Written {
            bytes,
            ..Written::default()
        };
        let mut left = self.first_written + bytes;
        while let Some(first) = self.segments.front() {
            let length = first.bytes().len();
            if left < length {
                break;
            }
            left -= length;
            written.replies += usize::from(first.is_last);
            for charge in [first.frees, first.pinned] {
                written.freed.add(charge);
                self.shared_bytes -= u64::from(charge.shared_bytes());
            }
            self.segments.pop_front();
        }
        self.first_written = left;
        written
    }
}
