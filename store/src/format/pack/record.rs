//! Record headers and padding.

use std::fmt;

use varve_content::codec::Codec;

use super::{PACK_ALIGN, PackId, PackKind};
use crate::format::{
    FormatError,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, put_crc32},
};

/// The header in front of each record and of padding.
pub const RECORD_HEADER_BYTES: usize = 64;
/// Records begin at multiples of this.
pub const RECORD_ALIGN: u64 = 8;
/// The largest payload: a chunk of 64 blocks kept raw. A leaf with an entry for each block is
/// smaller.
pub const PAYLOAD_BYTES_MAX: u32 = 256 << 10;

/// The first bytes of each record's header: where a reader that has lost its place looks on.
pub const RECORD_MAGIC: [u8; 4] = *b"VREC";
#[expect(clippy::cast_possible_truncation, reason = "64")]
const HEADER_BYTES: u32 = RECORD_HEADER_BYTES as u32;
const PADDING_KIND: u8 = 0xf0;
/// Flag of a chunk that ends only because a hole or the edge of its segment follows.
const FLAG_END_OPEN: u8 = 1;

const _: () = assert!(
    PACK_ALIGN.is_multiple_of(RECORD_ALIGN)
        && (RECORD_HEADER_BYTES as u64).is_multiple_of(RECORD_ALIGN)
);
const _: () = assert!(
    PAYLOAD_BYTES_MAX as usize
        == varve_content::block::BLOCK_BYTES * varve_content::chunker::MAX_CHUNK_BLOCKS as usize
);

/// The content of a record.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// A chunk.
    Chunk,
    /// A leaf of a tree.
    Leaf,
    /// An inner node of a tree.
    Inner,
    /// A root record.
    Root,
}

impl RecordKind {
    /// The kind of pack that such records are in.
    #[must_use]
    pub const fn pack_kind(self) -> PackKind {
        match self {
            Self::Chunk => PackKind::Chunks,
            Self::Leaf | Self::Inner | Self::Root => PackKind::Nodes,
        }
    }

    const fn to_byte(self) -> u8 {
        match self {
            Self::Chunk => 1,
            Self::Leaf => 2,
            Self::Inner => 3,
            Self::Root => 4,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Chunk),
            2 => Ok(Self::Leaf),
            3 => Ok(Self::Inner),
            4 => Ok(Self::Root),
            other => Err(FormatError::unknown(
                "kind of record",
                "1 (chunk), 2 (leaf), 3 (inner node), 4 (root)",
                other,
            )),
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chunk => "chunk",
            Self::Leaf => "leaf",
            Self::Inner => "inner node",
            Self::Root => "root",
        })
    }
}

/// How a payload is kept: all that is needed to read it once it is found.
///
/// The same twelve bytes wherever they are written (record header, footer, index):
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 1 | kind: 1 chunk, 2 leaf, 3 inner node, 4 root (0xf0 padding, in record headers only) |
/// | 1 | 1 | codec: 0 raw, 1 LZ4, 2 Zstandard |
/// | 2 | 1 | flags: bit 0 open end |
/// | 3 | 1 | zero |
/// | 4 | 4 | plain length |
/// | 8 | 4 | stored length |
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct Payload {
    /// Kind of the record.
    pub kind: RecordKind,
    /// How it is packed.
    pub codec: Codec,
    /// Of a chunk: it ends only because a hole or the edge of its segment follows, not by its own
    /// bytes.
    pub end_open: bool,
    /// Bytes once unpacked.
    pub plain_bytes: u32,
    /// Bytes in the pack.
    pub stored_bytes: u32,
}

impl Payload {
    pub(in crate::format) const BYTES: usize = 12;

    /// Bytes that a record with this payload takes in a pack, header and zeros to the next record
    /// included.
    #[must_use]
    pub const fn record_bytes(&self) -> u64 {
        (RECORD_HEADER_BYTES as u64 + self.stored_bytes as u64).next_multiple_of(RECORD_ALIGN)
    }

    pub(in crate::format) fn encode_into(&self, fields: &mut FieldsMut<'_>) {
        fields
            .u8(self.kind.to_byte())
            .u8(self.codec as u8)
            .u8(if self.end_open { FLAG_END_OPEN } else { 0 })
            .reserved(1)
            .u32(self.plain_bytes)
            .u32(self.stored_bytes);
    }

    pub(in crate::format) fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let kind = RecordKind::from_byte(fields.u8()?)?;
        Self::decode_rest(kind, fields)
    }

    /// All behind the kind.
    fn decode_rest(kind: RecordKind, fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let codec = fields.u8()?;
        let codec = Codec::try_from(codec).map_err(|_| {
            FormatError::unknown(
                "codec of a record",
                "0 (raw), 1 (LZ4), 2 (Zstandard)",
                codec,
            )
        })?;
        let flags = fields.u8()?;
        if flags & !FLAG_END_OPEN != 0 {
            return Err(FormatError::unknown(
                "flags of a record",
                format_args!("{FLAG_END_OPEN:#04x} (open end)"),
                format_args!("{flags:#04x}"),
            ));
        }
        fields.reserved(1)?;
        let payload = Self {
            kind,
            codec,
            end_open: flags & FLAG_END_OPEN != 0,
            plain_bytes: fields.u32()?,
            stored_bytes: fields.u32()?,
        };
        payload.check()?;
        Ok(payload)
    }

    /// Checks the invariants of every payload.
    fn check(&self) -> Result<(), FormatError> {
        if !(1..=PAYLOAD_BYTES_MAX).contains(&self.plain_bytes) {
            return Err(FormatError::differs(
                "plain length of a record",
                format_args!("1 to {PAYLOAD_BYTES_MAX}"),
                self.plain_bytes,
            ));
        }
        let block_bytes = varve_content::block::BLOCK_BYTES as u64;
        if self.kind == RecordKind::Chunk
            && !u64::from(self.plain_bytes).is_multiple_of(block_bytes)
        {
            return Err(FormatError::differs(
                "plain length of a chunk",
                format_args!("a multiple of {block_bytes}"),
                self.plain_bytes,
            ));
        }
        if self.codec == Codec::Raw && self.stored_bytes != self.plain_bytes {
            return Err(FormatError::differs(
                "stored length of a raw record",
                format_args!("its plain length {}", self.plain_bytes),
                self.stored_bytes,
            ));
        }
        if !(1..=self.plain_bytes).contains(&self.stored_bytes) {
            return Err(FormatError::differs(
                "stored length of a record",
                format_args!("1 to its plain length {}", self.plain_bytes),
                self.stored_bytes,
            ));
        }
        if self.end_open && self.kind != RecordKind::Chunk {
            return Err(FormatError::differs(
                "flags of a tree node",
                "none",
                "open end",
            ));
        }
        Ok(())
    }
}

/// The header in front of each payload.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 4 | `VREC` |
/// | 4 | 12 | [`Payload`] |
/// | 16 | 32 | id |
/// | 48 | 4 | CRC-32 of the payload as stored |
/// | 52 | 8 | offset of this header in its pack |
/// | 60 | 4 | CRC-32 of the bytes before |
///
/// The offset tells a record from a copy of one that was written to the wrong place, or that is
/// part of a payload (a volume may well hold a pack).
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// How the payload is kept.
    pub payload: Payload,
    /// The bytes of the record's [`name`](Self::name).
    pub id: [u8; 32],
    /// CRC-32 of the payload as stored.
    pub payload_crc32: u32,
}

/// The possible headers at the start of a record.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Header {
    /// A record.
    Record(RecordHeader),
    /// Zeros up to where a flush ended. Written like a record's header, with all unused fields
    /// zero.
    Padding {
        /// How many follow the header.
        zero_bytes: u32,
    },
}

impl Header {
    /// The header at `offset_bytes` of a pack, in the first [`RECORD_HEADER_BYTES`] of `bytes`.
    pub fn decode(bytes: &[u8], offset_bytes: u64) -> Result<Self, FormatError> {
        const WHAT: &str = "record header";
        let bytes: &[u8; RECORD_HEADER_BYTES] = first(WHAT, bytes)?;
        expect_magic(WHAT, bytes, &RECORD_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, bytes)?);
        fields.bytes(RECORD_MAGIC.len())?;
        let header = match fields.u8()? {
            PADDING_KIND => {
                fields.reserved(7)?;
                let zero_bytes = fields.u32()?;
                fields.reserved(36)?;
                check_padding_bytes(zero_bytes, offset_bytes)?;
                Self::Padding { zero_bytes }
            }
            kind => Self::Record(RecordHeader {
                payload: Payload::decode_rest(RecordKind::from_byte(kind)?, &mut fields)?,
                id: fields.array()?,
                payload_crc32: fields.u32()?,
            }),
        };
        let found = fields.u64()?;
        if found != offset_bytes {
            return Err(FormatError::differs(
                "offset in a record header",
                offset_bytes,
                found,
            ));
        }
        fields.end()?;
        Ok(header)
    }

    /// Bytes up to the next header.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        match self {
            Self::Record(record) => record.payload.record_bytes(),
            Self::Padding { zero_bytes } => RECORD_HEADER_BYTES as u64 + *zero_bytes as u64,
        }
    }

    /// Checks what follows the header up to the next one: `body` is exactly those bytes.
    pub fn check_body(&self, body: &[u8]) -> Result<(), FormatError> {
        let expected_bytes = self.total_bytes() - RECORD_HEADER_BYTES as u64;
        if body.len() as u64 != expected_bytes {
            return Err(FormatError::short(
                "record",
                expected_bytes,
                body.len() as u64,
            ));
        }
        match self {
            Self::Record(record) => {
                let mut fields = Fields::new("record", body);
                record.check_payload(fields.bytes(record.payload.stored_bytes as usize)?)?;
                fields.reserved(body.len() - record.payload.stored_bytes as usize)
            }
            Self::Padding { .. } => Fields::new("padding", body).reserved(body.len()),
        }
    }
}

impl RecordHeader {
    /// The header of a payload as it is stored.
    #[must_use]
    pub fn new(payload: Payload, id: [u8; 32], stored: &[u8]) -> Self {
        debug_assert_eq!(payload.stored_bytes as usize, stored.len());
        Self {
            payload,
            id,
            payload_crc32: crc32fast::hash(stored),
        }
    }

    /// The header's bytes, to stand at `offset_bytes` of a pack. The payload and zeros up to
    /// [`Payload::record_bytes`] follow.
    #[must_use]
    pub fn encode(&self, offset_bytes: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        let mut fields = FieldsMut::new(&mut bytes);
        fields.bytes(&RECORD_MAGIC);
        self.payload.encode_into(&mut fields);
        fields
            .bytes(&self.id)
            .u32(self.payload_crc32)
            .u64(offset_bytes);
        put_crc32(&mut bytes);
        bytes
    }

    /// That `stored` is the payload this header was written for.
    pub fn check_payload(&self, stored: &[u8]) -> Result<(), FormatError> {
        if stored.len() as u64 != u64::from(self.payload.stored_bytes) {
            return Err(FormatError::short(
                "payload of a record",
                u64::from(self.payload.stored_bytes),
                stored.len() as u64,
            ));
        }
        let found = crc32fast::hash(stored);
        if found != self.payload_crc32 {
            return Err(FormatError::differs(
                "payload of a record",
                format_args!("CRC-32 {:08x}", self.payload_crc32),
                format_args!("{found:08x}"),
            ));
        }
        Ok(())
    }
}

/// Bytes of padding, its header included, from the end of a record at `offset_bytes` to where a
/// flush may end.
#[must_use]
pub const fn padding_bytes(offset_bytes: u64) -> u32 {
    let to_boundary = (PACK_ALIGN - offset_bytes % PACK_ALIGN) % PACK_ALIGN;
    let has_room = to_boundary == 0 || to_boundary >= RECORD_HEADER_BYTES as u64;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "less than two times PACK_ALIGN"
    )]
    if has_room {
        to_boundary as u32
    } else {
        (to_boundary + PACK_ALIGN) as u32
    }
}

/// The header of padding at `offset_bytes`. Zeros up to [`padding_bytes`] follow.
///
/// # Panics
///
/// If there is nothing to pad.
#[must_use]
pub fn encode_padding(offset_bytes: u64) -> [u8; RECORD_HEADER_BYTES] {
    let zero_bytes = padding_bytes(offset_bytes).checked_sub(HEADER_BYTES);
    let Some(zero_bytes) = zero_bytes else {
        panic!("nothing is to be padded at {offset_bytes}, a multiple of {PACK_ALIGN}");
    };
    let mut bytes = [0; RECORD_HEADER_BYTES];
    FieldsMut::new(&mut bytes)
        .bytes(&RECORD_MAGIC)
        .u8(PADDING_KIND)
        .reserved(7)
        .u32(zero_bytes)
        .reserved(36)
        .u64(offset_bytes);
    put_crc32(&mut bytes);
    bytes
}

fn check_padding_bytes(zero_bytes: u32, offset_bytes: u64) -> Result<(), FormatError> {
    let expected = padding_bytes(offset_bytes);
    if expected.checked_sub(HEADER_BYTES) != Some(zero_bytes) {
        return Err(FormatError::differs(
            "padding",
            format_args!("{expected} bytes in all"),
            format_args!("a header and {zero_bytes}"),
        ));
    }
    Ok(())
}

/// Where a record is, and how its payload is kept: what the index answers.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// In which pack.
    pub pack: PackId,
    /// Where its header begins there.
    pub offset_bytes: u64,
    /// The description of the payload, from the header.
    pub payload: Payload,
}
