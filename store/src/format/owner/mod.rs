//! The owner record of a journal: it names the volume of the files beside it.
//!
//! The catalog has the same information, and more. If its record of a volume is lost, the volume
//! can be restored from the owner record.
//!
//! ```text
//! 0        4096     8192
//! +--------+--------+
//! | slot 0 | slot 1 |
//! +--------+--------+
//! ```
//!
//! Each record has a number. It is written to the slot that does not have the previous record, so
//! that a torn write leaves that one intact. The valid record with the highest number counts.

use std::collections::BTreeMap;

use super::{
    CatalogRecord as _, FormatError, StoreId, VolumeRecord,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, put_crc32},
};

/// One record, and the zeros behind it.
pub const OWNER_SLOT_BYTES: usize = 4096;
/// The file: two slots.
pub const OWNER_FILE_BYTES: usize = 2 * OWNER_SLOT_BYTES;

const VERSION: u32 = 1;
const OWNER_MAGIC: [u8; 8] = *b"VARVOWNR";
const HEAD_BYTES: usize = 40;
const CRC_BYTES: usize = 4;
const RECORD_BYTES_MAX: usize = OWNER_SLOT_BYTES - HEAD_BYTES - CRC_BYTES;

/// The volume of a journal, as last recorded in the catalog.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | `VARVOWNR` |
/// | 8 | 4 | version: 1 |
/// | 12 | 4 | length of the volume's record |
/// | 16 | 16 | store id |
/// | 32 | 8 | number of this record |
/// | 40 | n | the volume's record, without description, tags, pending snapshots and what was promised for them |
/// | 40 + n | | zeros |
/// | 4092 | 4 | CRC-32 of the bytes before |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerRecord {
    /// Id of the store.
    pub store: StoreId,
    /// Number of the record, one higher than that of the previous one.
    pub number: u64,
    /// The volume. Without its description, tags and pending snapshots, and without the promises
    /// for those, which only the catalog has: a journal is complete without them.
    pub volume: VolumeRecord,
}

impl OwnerRecord {
    /// Extracts the kept part of a volume's record.
    #[must_use]
    pub fn kept(volume: &VolumeRecord) -> VolumeRecord {
        VolumeRecord {
            description: String::new(),
            tags: BTreeMap::new(),
            pending: Vec::new(),
            promised_sequence: 0,
            ..volume.clone()
        }
    }

    /// Offset of the record in its file, in bytes.
    #[must_use]
    pub const fn offset_bytes(&self) -> u64 {
        (self.number % 2) * OWNER_SLOT_BYTES as u64
    }

    /// The slot.
    ///
    /// # Errors
    ///
    /// If the volume's name exceeds the limit for names.
    pub fn encode(&self) -> Result<[u8; OWNER_SLOT_BYTES], FormatError> {
        let record = Self::kept(&self.volume).encode();
        let len = match u32::try_from(record.len()) {
            Ok(len) if record.len() <= RECORD_BYTES_MAX => len,
            _ => {
                return Err(FormatError::differs(
                    "length of a volume's record in its owner record",
                    format_args!("at most {RECORD_BYTES_MAX}"),
                    record.len(),
                ));
            }
        };
        let mut bytes = [0; OWNER_SLOT_BYTES];
        FieldsMut::new(&mut bytes)
            .bytes(&OWNER_MAGIC)
            .u32(VERSION)
            .u32(len)
            .bytes(self.store.as_bytes())
            .u64(self.number)
            .bytes(&record);
        put_crc32(&mut bytes);
        Ok(bytes)
    }

    /// The record in the slot that `bytes` begin with.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "owner record of a journal";
        let bytes: &[u8; OWNER_SLOT_BYTES] = first(WHAT, bytes)?;
        expect_magic(WHAT, bytes, &OWNER_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, bytes)?);
        fields.bytes(OWNER_MAGIC.len())?;
        let version = fields.u32()?;
        if version != VERSION {
            return Err(FormatError::unknown(
                "version of a journal's owner record",
                VERSION,
                version,
            ));
        }
        let len = fields.u32()? as usize;
        let store = StoreId::from_bytes(fields.array()?);
        let number = fields.u64()?;
        let volume = VolumeRecord::decode(fields.bytes(len)?)?;
        fields.reserved(RECORD_BYTES_MAX.saturating_sub(len))?;
        fields.end()?;
        if volume != Self::kept(&volume) {
            return Err(FormatError::differs(
                WHAT,
                "a volume without description, tags and pending snapshots",
                "some",
            ));
        }
        Ok(Self {
            store,
            number,
            volume,
        })
    }

    /// Decodes a file, and returns the record that counts.
    ///
    /// # Errors
    ///
    /// The error of the first slot if neither is valid; or an unknown version in one of them.
    pub fn latest(file: &[u8]) -> Result<Self, FormatError> {
        let slots = (0..2).map(|slot| {
            let bytes = file.get(slot * OWNER_SLOT_BYTES..).unwrap_or_default();
            Self::decode(bytes)
        });
        let mut latest: Result<Self, FormatError> = Err(FormatError::short(
            "owner record of a journal",
            OWNER_SLOT_BYTES as u64,
            file.len() as u64,
        ));
        for (slot, found) in (0..2).zip(slots) {
            latest = match (latest, found) {
                (_, Err(why)) if why.is_unknown() => return Err(why),
                (Ok(best), Ok(other)) if other.number > best.number => Ok(other),
                (Err(_), Ok(only)) => Ok(only),
                (Err(_), Err(why)) if slot == 0 && !file.is_empty() => Err(why),
                (latest, _) => latest,
            };
        }
        latest
    }
}

#[cfg(test)]
mod tests;
