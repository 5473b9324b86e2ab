//! The pack header.

use super::{PACK_ALIGN, PackId, PackKind};
use crate::format::{
    FormatError, StoreId,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, put_crc32},
    store_file::FORMAT_VERSION,
};

/// The header in front of all records.
pub const PACK_HEADER_BYTES: usize = 4096;

const PACK_MAGIC: [u8; 8] = *b"VARVPACK";

const _: () = assert!(PACK_HEADER_BYTES as u64 == PACK_ALIGN);

/// The first [`PACK_HEADER_BYTES`] of a pack: whose it is, and which.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | `VARVPACK` |
/// | 8 | 4 | format version |
/// | 12 | 1 | kind: 1 chunks, 2 nodes |
/// | 13 | 3 | zero |
/// | 16 | 8 | pack number |
/// | 24 | 16 | store id |
/// | 40 | 8 | created, seconds since 1970 |
/// | 48 | 12 | zero |
/// | 60 | 4 | CRC-32 of the bytes before |
/// | 64 | 4032 | zero |
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// Which pack.
    pub pack: PackId,
    /// Whose.
    pub store: StoreId,
    /// When it was begun, in seconds since 1970. For people only.
    pub created_unix_seconds: u64,
}

impl PackHeader {
    /// The header's bytes, the first of a pack.
    #[must_use]
    pub fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut bytes = [0; PACK_HEADER_BYTES];
        let (head, _) = bytes.split_at_mut(64);
        FieldsMut::new(head)
            .bytes(&PACK_MAGIC)
            .u32(FORMAT_VERSION)
            .u8(self.pack.kind.to_byte())
            .reserved(3)
            .u64(self.pack.number)
            .bytes(self.store.as_bytes())
            .u64(self.created_unix_seconds);
        put_crc32(head);
        bytes
    }

    /// The header in the first [`PACK_HEADER_BYTES`] of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "pack header";
        let bytes: &[u8; PACK_HEADER_BYTES] = first(WHAT, bytes)?;
        let (head, tail) = bytes.split_at(64);
        expect_magic(WHAT, head, &PACK_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, head)?);
        fields.bytes(PACK_MAGIC.len())?;
        let version = fields.u32()?;
        if version != FORMAT_VERSION {
            return Err(FormatError::unknown(
                "format version of a pack",
                FORMAT_VERSION,
                version,
            ));
        }
        let kind = PackKind::from_byte(fields.u8()?)?;
        fields.reserved(3)?;
        let header = Self {
            pack: PackId {
                kind,
                number: fields.u64()?,
            },
            store: StoreId::from_bytes(fields.array()?),
            created_unix_seconds: fields.u64()?,
        };
        fields.reserved(12)?;
        fields.end()?;
        Fields::new(WHAT, tail).reserved(tail.len())?;
        Ok(header)
    }
}
