//! The pack header.

use super::{PACK_ALIGN, PackId, PackKind};
use crate::format::{
    FormatError, StoreId,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, optional, put_crc32},
};

/// The header in front of all records.
pub const PACK_HEADER_BYTES: usize = 4096;

/// Random bytes of a pack, which its footer repeats: so no payload can look like the footer of the
/// pack that it is in.
pub type PackNonce = [u8; 12];

pub(super) const VERSION: u32 = 2;
/// Packs had no random bytes.
pub(super) const VERSION_1: u32 = 1;
const PACK_MAGIC: [u8; 8] = *b"VARVPACK";
const WHAT: &str = "pack header";
/// The part of the header that has fields, with their checksum.
const HEAD_BYTES: usize = 64;

const _: () = assert!(PACK_HEADER_BYTES as u64 == PACK_ALIGN);

/// The first [`PACK_HEADER_BYTES`] of a pack: whose it is, and which.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | `VARVPACK` |
/// | 8 | 4 | version: 2 |
/// | 12 | 1 | kind: 1 chunks, 2 nodes |
/// | 13 | 3 | zero |
/// | 16 | 8 | pack number |
/// | 24 | 16 | store id |
/// | 40 | 8 | created, seconds since 1970 |
/// | 48 | 12 | random bytes; zero in version 1, which is still read |
/// | 60 | 4 | CRC-32 of the bytes before |
/// | 64 | 4032 | zero |
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// Id of the pack.
    pub pack: PackId,
    /// Whose.
    pub store: StoreId,
    /// When it was begun, in seconds since 1970. For people only.
    pub created_unix_seconds: u64,
    /// `None` in version 1.
    pub nonce: Option<PackNonce>,
}

/// The version of a pack that has these random bytes, or none.
pub(super) const fn version_of(nonce: Option<PackNonce>) -> u32 {
    match nonce {
        Some(_) => VERSION,
        None => VERSION_1,
    }
}

/// Reads a version and says whether random bytes belong to it.
pub(super) fn has_nonce(version: u32) -> Result<bool, FormatError> {
    match version {
        VERSION => Ok(true),
        VERSION_1 => Ok(false),
        other => Err(FormatError::unknown(
            "format version of a pack",
            format_args!("{VERSION_1} and {VERSION}"),
            other,
        )),
    }
}

/// Random bytes, or zeros where there are none.
pub(super) fn decode_nonce(
    fields: &mut Fields<'_>,
    is_there: bool,
) -> Result<Option<PackNonce>, FormatError> {
    optional(fields, is_there, size_of::<PackNonce>(), Fields::array)
}

impl PackHeader {
    /// The header's bytes, the first of a pack.
    #[must_use]
    pub fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut bytes = [0; PACK_HEADER_BYTES];
        let (head, _) = bytes.split_at_mut(HEAD_BYTES);
        FieldsMut::new(head)
            .bytes(&PACK_MAGIC)
            .u32(version_of(self.nonce))
            .u8(self.pack.kind.to_byte())
            .reserved(3)
            .u64(self.pack.number)
            .bytes(self.store.as_bytes())
            .u64(self.created_unix_seconds)
            .bytes(&self.nonce.unwrap_or_default());
        put_crc32(head);
        bytes
    }

    /// The header in the first [`PACK_HEADER_BYTES`] of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes: &[u8; PACK_HEADER_BYTES] = first(WHAT, bytes)?;
        let (head, tail) = bytes.split_at(HEAD_BYTES);
        expect_magic(WHAT, head, &PACK_MAGIC)?;
        let header = Self::decode_fields(check_crc32(WHAT, head)?)?;
        Fields::new(WHAT, tail).reserved(tail.len())?;
        Ok(header)
    }

    /// The part of the header that has fields, if it is as it was written; `None` if it is not. An
    /// error means that this program does not know such a header.
    #[must_use]
    pub fn decode_intact(bytes: &[u8]) -> Option<Result<Self, FormatError>> {
        let head: &[u8; HEAD_BYTES] = first(WHAT, bytes).ok()?;
        expect_magic(WHAT, head, &PACK_MAGIC).ok()?;
        check_crc32(WHAT, head).ok().map(Self::decode_fields)
    }

    /// The fields of a header whose magic and checksum are right.
    fn decode_fields(head: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(WHAT, head);
        fields.bytes(PACK_MAGIC.len())?;
        let has_nonce = has_nonce(fields.u32()?)?;
        let kind = PackKind::from_byte(fields.u8()?)?;
        fields.reserved(3)?;
        let header = Self {
            pack: PackId {
                kind,
                number: fields.u64()?,
            },
            store: StoreId::from_bytes(fields.array()?),
            created_unix_seconds: fields.u64()?,
            nonce: decode_nonce(&mut fields, has_nonce)?,
        };
        fields.end()?;
        Ok(header)
    }
}
