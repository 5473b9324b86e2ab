//! Finished replies on their way to the socket.
//!
//! Headers are kept in place and payloads are the slices that came out of the cache, so that a
//! reply is copied once: by the kernel.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::nbd::export::Piece;
use crate::nbd::limits::MAX_WRITE_SLICES;
use crate::nbd::wire::{
    ErrorCode, OFFSET_HOLE_BYTES, StatusFlags, encode_block_status, encode_done, encode_error,
    encode_offset_data_header, encode_offset_hole, encode_simple_reply,
};

/// Holes shorter than this between data are sent as zeroes: for the client, taking one more chunk
/// off the socket costs more than copying so few bytes.
const MIN_HOLE_BYTES: u64 = 32 << 10;
/// What explicit zeroes are sent from.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The answer to one request.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Done,
    Data {
        offset: u64,
        pieces: Vec<Piece>,
        /// As one chunk, holes filled in.
        whole: bool,
    },
    /// Per metadata context its id and its extents.
    Status(Vec<(u32, Vec<(u32, StatusFlags)>)>),
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
    /// On a reply's last segment: what its request was charged.
    ends: Option<u32>,
}

enum Content {
    Head {
        bytes: [u8; MAX_HEAD_BYTES],
        length: usize,
    },
    Body(Bytes),
}

/// The longest header that has a fixed length.
const MAX_HEAD_BYTES: usize = OFFSET_HOLE_BYTES;

impl Segment {
    fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Head { bytes, length } => &bytes[..*length],
            Content::Body(bytes) => bytes,
        }
    }
}

/// What one write has done.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Written {
    pub(super) bytes: usize,
    /// Replies that are now out completely, and what their requests were charged.
    pub(super) replies: usize,
    pub(super) charged_bytes: u32,
}

pub(super) struct Outbox {
    structured: bool,
    segments: VecDeque<Segment>,
    /// Of the first segment, what the socket has taken.
    first_written: usize,
    queued_bytes: usize,
}

impl Outbox {
    pub(super) fn new(structured: bool) -> Self {
        Self {
            structured,
            segments: VecDeque::new(),
            first_written: 0,
            queued_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Queues a reply; `charged_bytes` come back when it is written.
    pub(super) fn push(&mut self, reply: Reply, charged_bytes: u32) {
        let cookie = reply.cookie;
        if self.structured {
            match reply.body {
                Body::Done => self.push_head(encode_done(cookie)),
                Body::Data {
                    offset,
                    pieces,
                    whole,
                } => self.push_chunks(cookie, offset, pieces, whole),
                Body::Status(contexts) => {
                    let last = contexts.len().saturating_sub(1);
                    for (i, (id, extents)) in contexts.iter().enumerate() {
                        let chunk = encode_block_status(cookie, i == last, *id, extents);
                        self.push_content(Content::Body(chunk.into()));
                    }
                }
                Body::Error {
                    code,
                    offset,
                    message,
                } => {
                    let chunk = encode_error(cookie, code, offset, &message);
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
            self.push_head(encode_simple_reply(cookie, error));
            pieces.into_iter().for_each(|piece| self.push_piece(piece));
        }
        if let Some(last) = self.segments.back_mut() {
            last.ends = Some(charged_bytes);
        }
    }

    /// Data as chunks: one for every run of data and every hole worth telling.
    fn push_chunks(&mut self, cookie: u64, mut offset: u64, pieces: Vec<Piece>, whole: bool) {
        let alone = pieces.len() == 1;
        let is_hole = |piece: &Piece| match piece {
            Piece::Data(_) => false,
            Piece::Zero(length) => !whole && (alone || u64::from(*length) >= MIN_HOLE_BYTES),
        };
        if pieces.is_empty() {
            return self.push_head(encode_done(cookie));
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
                self.push_head(encode_offset_hole(cookie, done, offset, length_bytes));
                pieces.by_ref().take(count).for_each(drop);
            } else {
                self.push_head(encode_offset_data_header(
                    cookie,
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
                    self.push_content(Content::Body(Bytes::from_static(&ZEROES[..part])));
                    left -= part;
                }
            }
        }
    }

    fn push_head<const N: usize>(&mut self, head: [u8; N]) {
        const { assert!(N <= MAX_HEAD_BYTES) };
        let mut bytes = [0; MAX_HEAD_BYTES];
        bytes[..N].copy_from_slice(&head);
        self.push_content(Content::Head { bytes, length: N });
    }

    fn push_content(&mut self, content: Content) {
        let segment = Segment {
            content,
            ends: None,
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
            if let Some(charged_bytes) = first.ends {
                written.replies += 1;
                written.charged_bytes += charged_bytes;
            }
            self.segments.pop_front();
        }
        self.first_written = left;
        written
    }
}
