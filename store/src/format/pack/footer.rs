//! The footer that lists a sealed pack's records, and the trailer behind it.

use super::{
    PACK_ALIGN, PACK_HEADER_BYTES, PackId, PackKind, PackNonce, Payload, RECORD_ALIGN,
    header::{decode_nonce, has_nonce, version_of},
};
use crate::format::{
    FormatError,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, put_crc32},
};

/// One record in the footer.
pub const FOOTER_ENTRY_BYTES: usize = 52;
/// The most records of one pack. It bounds the footer (3.25 MiB), because chunks may compress to a
/// few bytes each. With chunks of the usual 14 KiB, a pack is full long before.
pub const PACK_RECORDS_MAX: u32 = 1 << 16;
/// The last bytes of a sealed pack.
pub const TRAILER_BYTES: usize = 64;

const TRAILER_MAGIC: [u8; 8] = *b"VARVSEAL";

/// A record as the footer lists it.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 32 | id |
/// | 32 | 8 | offset of its header in the pack |
/// | 40 | 12 | [`Payload`] |
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct FooterEntry {
    /// The bytes of the record's [`name`](Self::name).
    pub id: [u8; 32],
    /// Offset of its header, in bytes.
    pub offset_bytes: u64,
    /// The description of the payload, from the record's header.
    pub payload: Payload,
}

/// The last [`TRAILER_BYTES`] of a sealed pack.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | `VARVSEAL` |
/// | 8 | 4 | version, that of the pack's header |
/// | 12 | 1 | kind: 1 chunks, 2 nodes |
/// | 13 | 3 | zero |
/// | 16 | 8 | pack number |
/// | 24 | 8 | offset of the footer |
/// | 32 | 4 | number of footer entries |
/// | 36 | 4 | CRC-32 of all bytes from the footer's offset to this trailer |
/// | 40 | 12 | the pack's random bytes; zero in version 1 |
/// | 52 | 8 | zero |
/// | 60 | 4 | CRC-32 of the bytes before |
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Id of the pack.
    pub pack: PackId,
    /// Offset of the footer, in bytes: the end of the records.
    pub footer_offset_bytes: u64,
    /// Records of the pack.
    pub records: u32,
    /// Of the footer.
    pub footer_crc32: u32,
    /// The random bytes of the pack's header. `None` in version 1, where a payload may look like a
    /// footer.
    pub nonce: Option<PackNonce>,
}

impl Trailer {
    /// Bytes from the footer's offset to the end of the pack: entries, zeros and trailer, a
    /// multiple of [`PACK_ALIGN`].
    #[must_use]
    pub const fn footer_bytes(records: u32) -> u64 {
        (records as u64 * FOOTER_ENTRY_BYTES as u64 + TRAILER_BYTES as u64)
            .next_multiple_of(PACK_ALIGN)
    }

    /// The trailer in the last [`TRAILER_BYTES`] of `last`, which are those of a pack of
    /// `pack_bytes`.
    pub fn decode(last: &[u8], pack_bytes: u64) -> Result<Self, FormatError> {
        const WHAT: &str = "pack trailer";
        let bytes: &[u8; TRAILER_BYTES] = last
            .last_chunk()
            .ok_or_else(|| FormatError::short(WHAT, TRAILER_BYTES as u64, last.len() as u64))?;
        expect_magic(WHAT, bytes, &TRAILER_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, bytes)?);
        fields.bytes(TRAILER_MAGIC.len())?;
        let has_nonce = has_nonce(fields.u32()?)?;
        let kind = PackKind::from_byte(fields.u8()?)?;
        fields.reserved(3)?;
        let trailer = Self {
            pack: PackId {
                kind,
                number: fields.u64()?,
            },
            footer_offset_bytes: fields.u64()?,
            records: fields.u32()?,
            footer_crc32: fields.u32()?,
            nonce: decode_nonce(&mut fields, has_nonce)?,
        };
        fields.reserved(8)?;
        fields.end()?;
        if trailer.records > PACK_RECORDS_MAX {
            return Err(FormatError::differs(
                "number of records of a pack",
                format_args!("at most {PACK_RECORDS_MAX}"),
                trailer.records,
            ));
        }
        let end = trailer
            .footer_offset_bytes
            .checked_add(Self::footer_bytes(trailer.records));
        if end != Some(pack_bytes) || !trailer.footer_offset_bytes.is_multiple_of(PACK_ALIGN) {
            return Err(FormatError::differs(
                "offset of a pack's footer",
                format_args!(
                    "{} bytes before the end at {pack_bytes}",
                    Self::footer_bytes(trailer.records)
                ),
                trailer.footer_offset_bytes,
            ));
        }
        Ok(trailer)
    }

    fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        FieldsMut::new(&mut bytes)
            .bytes(&TRAILER_MAGIC)
            .u32(version_of(self.nonce))
            .u8(self.pack.kind.to_byte())
            .reserved(3)
            .u64(self.pack.number)
            .u64(self.footer_offset_bytes)
            .u32(self.records)
            .u32(self.footer_crc32)
            .bytes(&self.nonce.unwrap_or_default());
        put_crc32(&mut bytes);
        bytes
    }
}

/// Encodes the footer of `pack`, whose header has these random bytes: entries, zeros and trailer.
/// Its place is `footer_offset_bytes`, a multiple of [`PACK_ALIGN`].
#[must_use]
pub fn encode_footer(
    pack: PackId,
    nonce: Option<PackNonce>,
    footer_offset_bytes: u64,
    entries: &[FooterEntry],
) -> Vec<u8> {
    assert!(
        entries.len() <= PACK_RECORDS_MAX as usize,
        "a pack is sealed at {PACK_RECORDS_MAX} records"
    );
    assert!(
        footer_offset_bytes.is_multiple_of(PACK_ALIGN),
        "a footer follows padding"
    );
    #[expect(
        clippy::cast_possible_truncation,
        reason = "asserted to be at most PACK_RECORDS_MAX, which bounds the footer too"
    )]
    let (records, footer_bytes) = {
        let records = entries.len() as u32;
        (records, Trailer::footer_bytes(records) as usize)
    };
    let mut bytes = vec![0; footer_bytes - TRAILER_BYTES];
    let mut fields = FieldsMut::new(&mut bytes);
    for entry in entries {
        fields.bytes(&entry.id).u64(entry.offset_bytes);
        entry.payload.encode_into(&mut fields);
    }
    let trailer = Trailer {
        pack,
        footer_offset_bytes,
        records,
        footer_crc32: crc32fast::hash(&bytes),
        nonce,
    };
    bytes.extend_from_slice(&trailer.encode());
    bytes
}

/// The records that a pack's footer lists, in the order they were written. `footer` is all from the
/// footer's offset to the end of the pack, and `trailer` is [decoded](Trailer::decode) from it.
pub fn decode_footer(footer: &[u8], trailer: &Trailer) -> Result<Vec<FooterEntry>, FormatError> {
    const WHAT: &str = "pack footer";
    let expected_bytes = Trailer::footer_bytes(trailer.records);
    if footer.len() as u64 != expected_bytes {
        return Err(FormatError::short(
            WHAT,
            expected_bytes,
            footer.len() as u64,
        ));
    }
    let mut fields = Fields::new(WHAT, footer);
    let listed = fields.bytes(footer.len() - TRAILER_BYTES)?;
    let found = crc32fast::hash(listed);
    if found != trailer.footer_crc32 {
        return Err(FormatError::differs(
            WHAT,
            format_args!("CRC-32 {:08x}", trailer.footer_crc32),
            format_args!("{found:08x}"),
        ));
    }
    let mut fields = Fields::new(WHAT, listed);
    let mut end_bytes = PACK_HEADER_BYTES as u64;
    let entries = (0..trailer.records)
        .map(|_| {
            let entry = FooterEntry {
                id: fields.array()?,
                offset_bytes: fields.u64()?,
                payload: Payload::decode_from(&mut fields)?,
            };
            let next = entry.offset_bytes.checked_add(entry.payload.record_bytes());
            let fits =
                entry.offset_bytes >= end_bytes && entry.offset_bytes.is_multiple_of(RECORD_ALIGN);
            match next {
                Some(next) if fits && next <= trailer.footer_offset_bytes => end_bytes = next,
                _ => {
                    return Err(FormatError::differs(
                        "offset in a pack footer",
                        format_args!(
                            "one between {end_bytes} and the footer at {}",
                            trailer.footer_offset_bytes
                        ),
                        entry.offset_bytes,
                    ));
                }
            }
            if entry.payload.kind.pack_kind() != trailer.pack.kind {
                return Err(FormatError::differs(
                    "kind of a record in a pack footer",
                    trailer.pack,
                    entry.payload.kind,
                ));
            }
            Ok(entry)
        })
        .collect::<Result<Vec<_>, _>>()?;
    fields.reserved(listed.len() - entries.len() * FOOTER_ENTRY_BYTES)?;
    Ok(entries)
}
