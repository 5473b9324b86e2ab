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
//! ```

use bytes::BufMut;

use crate::nbd::limits::MAX_STRING_BYTES;

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// "Structured reply flags": the last chunk of a reply.
const FLAG_DONE: u16 = 1;

pub const SIMPLE_REPLY_BYTES: usize = 16;
pub const CHUNK_HEADER_BYTES: usize = 20;
/// A chunk's header and the offset in front of the data.
pub const OFFSET_DATA_HEADER_BYTES: usize = CHUNK_HEADER_BYTES + 8;
pub const OFFSET_HOLE_BYTES: usize = CHUNK_HEADER_BYTES + 12;

/// "Structured reply types".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum ChunkKind {
    None = 0,
    OffsetData = 1,
    OffsetHole = 2,
    BlockStatus = 5,
    Error = 1 << 15 | 1,
    ErrorOffset = 1 << 15 | 2,
}

/// "Error values": fixed by the protocol, whatever errno says here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum ErrorCode {
    NotPermitted = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    /// Only for a read that may not be fragmented and is too long for that.
    Overflow = 75,
    Stopping = 108,
}

/// The status of an extent, in the context `base:allocation` or in one of changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StatusFlags(pub u32);

impl StatusFlags {
    pub const DATA: Self = Self(0);
    /// `NBD_STATE_HOLE | NBD_STATE_ZERO`
    pub const HOLE: Self = Self(1 | 1 << 1);
    /// As QEMU defines it for its bitmaps.
    pub const DIRTY: Self = Self(1);
    pub const CLEAN: Self = Self(0);
}

/// The header of a simple reply; `None` is success.
#[must_use]
pub fn encode_simple_reply(cookie: u64, error: Option<ErrorCode>) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    let mut out = bytes.as_mut_slice();
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error.map_or(0, |error| error as u32));
    out.put_u64(cookie);
    bytes
}

/// A reply that says no more than "done".
#[must_use]
pub fn encode_done(cookie: u64) -> [u8; CHUNK_HEADER_BYTES] {
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    put_chunk_header(&mut bytes.as_mut_slice(), ChunkKind::None, true, cookie, 0);
    bytes
}

/// What precedes `data_bytes` of data that lie at `offset`.
#[must_use]
pub fn encode_offset_data_header(
    cookie: u64,
    done: bool,
    offset: u64,
    data_bytes: u32,
) -> [u8; OFFSET_DATA_HEADER_BYTES] {
    let mut bytes = [0; OFFSET_DATA_HEADER_BYTES];
    let mut out = bytes.as_mut_slice();
    put_chunk_header(
        &mut out,
        ChunkKind::OffsetData,
        done,
        cookie,
        data_bytes + 8,
    );
    out.put_u64(offset);
    bytes
}

/// A chunk that says that `hole_bytes` at `offset` are zeroes.
#[must_use]
pub fn encode_offset_hole(
    cookie: u64,
    done: bool,
    offset: u64,
    hole_bytes: u32,
) -> [u8; OFFSET_HOLE_BYTES] {
    let mut bytes = [0; OFFSET_HOLE_BYTES];
    let mut out = bytes.as_mut_slice();
    put_chunk_header(&mut out, ChunkKind::OffsetHole, done, cookie, 12);
    out.put_u64(offset);
    out.put_u32(hole_bytes);
    bytes
}

/// A chunk with the extents of one metadata context, as `(length in bytes, status)`.
#[must_use]
pub fn encode_block_status(
    cookie: u64,
    done: bool,
    context_id: u32,
    extents: &[(u32, StatusFlags)],
) -> Vec<u8> {
    let payload_bytes = 4 + 8 * extents.len();
    let mut bytes = Vec::with_capacity(CHUNK_HEADER_BYTES + payload_bytes);
    let length_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
    put_chunk_header(
        &mut bytes,
        ChunkKind::BlockStatus,
        done,
        cookie,
        length_bytes,
    );
    bytes.put_u32(context_id);
    for (length_bytes, status) in extents {
        bytes.put_u32(*length_bytes);
        bytes.put_u32(status.0);
    }
    bytes
}

/// A final chunk that says why a request failed and, if known, at which offset of the export.
#[must_use]
pub fn encode_error(cookie: u64, error: ErrorCode, offset: Option<u64>, message: &str) -> Vec<u8> {
    let message = truncate_text(message);
    // Cut to 4096 bytes, so neither length can be out of range.
    let message_bytes = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(CHUNK_HEADER_BYTES + 14 + message.len());
    let (kind, fixed_bytes) = match offset {
        Some(_) => (ChunkKind::ErrorOffset, 14),
        None => (ChunkKind::Error, 6),
    };
    let length_bytes = fixed_bytes + u32::from(message_bytes);
    put_chunk_header(&mut bytes, kind, true, cookie, length_bytes);
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
    kind: ChunkKind,
    done: bool,
    cookie: u64,
    length_bytes: u32,
) {
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(if done { FLAG_DONE } else { 0 });
    out.put_u16(kind as u16);
    out.put_u64(cookie);
    out.put_u32(length_bytes);
}
