//! Transmission phase, server to client.
//!
//! ```text
//! simple reply            0        4        8        16
//!                        ┌────────┬────────┬────────┬─ ─ ─ ─ ─ ─ ─ ─ ─
//!                        │ magic  │ error  │ cookie │ data of a READ
//!                        └────────┴────────┴────────┴─ ─ ─ ─ ─ ─ ─ ─ ─
//! structured reply chunk  0        4       6      8        16       20
//!                        ┌────────┬───────┬──────┬────────┬────────┬─ ─ ─ ─
//!                        │ magic  │ flags │ type │ cookie │ length │ payload
//!                        └────────┴───────┴──────┴────────┴────────┴─ ─ ─ ─
//! extended reply chunk    0        4       6      8        16       24       32
//!                        ┌────────┬───────┬──────┬────────┬────────┬────────┬─ ─ ─ ─
//!                        │ magic  │ flags │ type │ cookie │ offset │ length │ payload
//!                        └────────┴───────┴──────┴────────┴────────┴────────┴─ ─ ─ ─
//! ```

use bytes::BufMut;

use super::Framing;
use crate::limits::MAX_STRING_BYTES;

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;
/// "Structured reply flags": the last chunk of a reply.
const FLAG_DONE: u16 = 1;

/// The longest header of a chunk.
const MAX_CHUNK_HEADER_BYTES: usize = 32;
/// The longest [`Head`]: a hole's.
pub const MAX_HEAD_BYTES: usize = MAX_CHUNK_HEADER_BYTES + 12;

/// "Structured reply types".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum ChunkKind {
    /// The reply is done; the chunk has no content.
    None = 0,
    /// Data and their offset.
    OffsetData = 1,
    /// Zeroes and their offset.
    OffsetHole = 2,
    /// Extents, in 32 bits.
    BlockStatus = 5,
    /// Extents, in 64 bits.
    BlockStatusExt = 6,
    /// An error of the whole request.
    Error = 1 << 15 | 1,
    /// An error at an offset.
    ErrorOffset = 1 << 15 | 2,
}

/// "Error values": fixed by the protocol, independent of errno on this system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum ErrorCode {
    /// `EPERM`: the export is read-only.
    NotPermitted = 1,
    /// `EIO`.
    Io = 5,
    /// `EINVAL`.
    Invalid = 22,
    /// `ENOSPC`.
    NoSpace = 28,
    /// Only for a read that may not be fragmented and is too long for that.
    Overflow = 75,
    /// `ESHUTDOWN`: the server stops.
    Stopping = 108,
}

/// The status of an extent, in the context `base:allocation` or in one of changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StatusFlags(pub u32);

impl StatusFlags {
    /// The extent is stored.
    pub const DATA: Self = Self(0);
    /// `NBD_STATE_HOLE | NBD_STATE_ZERO`
    pub const HOLE: Self = Self(1 | 1 << 1);
    /// As QEMU defines it for its bitmaps.
    pub const DIRTY: Self = Self(1);
    /// Nothing has changed in the extent.
    pub const CLEAN: Self = Self(0);
}

/// The request that a reply answers, and in what messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answered {
    /// The agreed kinds of messages.
    pub framing: Framing,
    /// As in the request's header.
    pub cookie: u64,
    /// As in the request's header.
    pub offset: u64,
}

/// The header of a reply: it precedes the data, or is the whole reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Head {
    bytes: [u8; MAX_HEAD_BYTES],
    length: usize,
}

impl Head {
    /// The head as it is sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn encode(put: impl FnOnce(&mut &mut [u8])) -> Self {
        let mut bytes = [0; MAX_HEAD_BYTES];
        let mut out = bytes.as_mut_slice();
        put(&mut out);
        let length = MAX_HEAD_BYTES - out.len();
        Self { bytes, length }
    }
}

/// The header of a simple reply; `None` is success.
#[must_use]
pub fn encode_simple_reply(cookie: u64, error: Option<ErrorCode>) -> Head {
    Head::encode(|out| {
        out.put_u32(SIMPLE_REPLY_MAGIC);
        out.put_u32(error.map_or(0, |error| error as u32));
        out.put_u64(cookie);
    })
}

/// A reply without content: the request succeeded.
#[must_use]
pub fn encode_done(answered: &Answered) -> Head {
    Head::encode(|out| put_chunk_header(out, answered, ChunkKind::None, true, 0))
}

/// The header of `data_bytes` of data from `offset`.
#[must_use]
pub fn encode_offset_data_header(
    answered: &Answered,
    done: bool,
    offset: u64,
    data_bytes: u32,
) -> Head {
    Head::encode(|out| {
        put_chunk_header(out, answered, ChunkKind::OffsetData, done, data_bytes + 8);
        out.put_u64(offset);
    })
}

/// A chunk for a hole of `hole_bytes` at `offset`.
#[must_use]
pub fn encode_offset_hole(answered: &Answered, done: bool, offset: u64, hole_bytes: u32) -> Head {
    Head::encode(|out| {
        put_chunk_header(out, answered, ChunkKind::OffsetHole, done, 12);
        out.put_u64(offset);
        out.put_u32(hole_bytes);
    })
}

/// A chunk with the extents of one metadata context, as `(length in bytes, status)`. With compact
/// requests, lengths are those of ranges that have less than 4 GiB.
#[must_use]
pub fn encode_block_status(
    answered: &Answered,
    done: bool,
    context_id: u32,
    extents: &[(u64, StatusFlags)],
) -> Vec<u8> {
    let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    let is_extended = answered.framing == Framing::Extended;
    let (kind, payload_bytes) = if is_extended {
        (ChunkKind::BlockStatusExt, 8 + 16 * count)
    } else {
        (ChunkKind::BlockStatus, 4 + 8 * count)
    };
    let mut bytes = Vec::with_capacity(MAX_CHUNK_HEADER_BYTES + payload_bytes as usize);
    put_chunk_header(&mut bytes, answered, kind, done, payload_bytes);
    bytes.put_u32(context_id);
    if is_extended {
        bytes.put_u32(count);
    }
    for (length_bytes, status) in extents {
        if is_extended {
            bytes.put_u64(*length_bytes);
            bytes.put_u64(status.0.into());
        } else {
            bytes.put_u32(u32::try_from(*length_bytes).unwrap_or(u32::MAX));
            bytes.put_u32(status.0);
        }
    }
    bytes
}

/// A final chunk with the error of a request and, if known, its offset in the export.
#[must_use]
pub fn encode_error(
    answered: &Answered,
    error: ErrorCode,
    offset: Option<u64>,
    message: &str,
) -> Vec<u8> {
    let message = truncate_text(message);
    // Cut to 4096 bytes, so neither length can be out of range.
    let message_bytes = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(MAX_CHUNK_HEADER_BYTES + 14 + message.len());
    let (kind, fixed_bytes) = match offset {
        Some(_) => (ChunkKind::ErrorOffset, 14),
        None => (ChunkKind::Error, 6),
    };
    let length_bytes = fixed_bytes + u32::from(message_bytes);
    put_chunk_header(&mut bytes, answered, kind, true, length_bytes);
    bytes.put_u32(error as u32);
    bytes.put_u16(message_bytes);
    bytes.put_slice(message.as_bytes());
    if let Some(offset) = offset {
        bytes.put_u64(offset);
    }
    bytes
}

/// As much of a text as the protocol lets a string be long.
pub(super) fn truncate_text(text: &str) -> &str {
    let end = text.floor_char_boundary(MAX_STRING_BYTES);
    text.get(..end).unwrap_or_default()
}

fn put_chunk_header(
    out: &mut impl BufMut,
    answered: &Answered,
    kind: ChunkKind,
    done: bool,
    length_bytes: u32,
) {
    let is_extended = answered.framing == Framing::Extended;
    out.put_u32(if is_extended {
        EXTENDED_CHUNK_MAGIC
    } else {
        CHUNK_MAGIC
    });
    out.put_u16(if done { FLAG_DONE } else { 0 });
    out.put_u16(kind as u16);
    out.put_u64(answered.cookie);
    if is_extended {
        out.put_u64(answered.offset);
        out.put_u64(length_bytes.into());
    } else {
        out.put_u32(length_bytes);
    }
}
