//! A volume's record, as the catalog log and the catalog keep it.

use std::collections::BTreeMap;

use varve_content::RootId;

use super::{
    FormatError, ID_BYTES, IdKind, RecordId, SnapshotId,
    fields::{Fields, put_tags, put_text},
};

/// The version of [`VolumeRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;
/// Volumes are a whole number of these: the smallest unit that a guest reads and writes.
pub const SECTOR_BYTES: u64 = 512;

const ATTACHED: u8 = 1;
const HAS_BASE: u8 = 2;
const HAS_PARENT: u8 = 4;

/// What is the id of a volume.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfVolume {}

impl IdKind for OfVolume {
    const WHAT: &'static str = "id of a volume";
    const PREFIX: &'static str = "vol-";
}

/// Id of a volume: `vol-` and 17 hexadecimal digits.
pub type VolumeId = RecordId<OfVolume>;

/// What the catalog knows of a volume. Its content is `base`, and over it what its journal files from `journal_from` on say.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 1 | flags: 1 attached, 2 has a base, 4 has a parent |
/// | 9 | id |
/// | 8 | size |
/// | 8 | created |
/// | 8 | attachments |
/// | 8 | attached since; zero if it is not |
/// | 8 | first journal file |
/// | 32 | root of the base; zero if there is none |
/// | 9 | id of the parent; zero if there is none |
/// | 4 + n | name: length, UTF-8 |
/// | 4 | number of tags, ascending by key |
/// | 4 + n, 4 + n | each tag: key, value |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// Its name: no other volume of the store has it. A snapshot may.
    pub name: String,
    /// Its size, a multiple of [`SECTOR_BYTES`].
    pub size_bytes: u64,
    /// The root of the content under the journal; `None`: zeros. It may be of a smaller size: the rest is zeros.
    pub base: Option<RootId>,
    /// The snapshot that `base` is the content of, if it is one's. It may be deleted by now; the base stays.
    pub parent: Option<SnapshotId>,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Since when it is attached, in nanoseconds since 1970; `None` while it is not.
    pub attached_at_ns: Option<u64>,
    /// How often it was attached: the number of the current attachment while it is.
    pub attachments: u64,
    /// Number of the first journal file that is not yet part of `base`; 1 to begin with.
    pub journal_from: u64,
}

impl VolumeRecord {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let mut bytes = vec![
            VERSION,
            flag(self.attached_at_ns.is_some(), ATTACHED)
                | flag(self.base.is_some(), HAS_BASE)
                | flag(self.parent.is_some(), HAS_PARENT),
        ];
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        bytes.extend_from_slice(&self.attachments.to_le_bytes());
        bytes.extend_from_slice(&self.attached_at_ns.unwrap_or_default().to_le_bytes());
        bytes.extend_from_slice(&self.journal_from.to_le_bytes());
        bytes.extend_from_slice(&self.base.map_or([0; 32], |root| *root.as_bytes()));
        bytes.extend_from_slice(&self.parent.map_or([0; ID_BYTES], |id| *id.as_bytes()));
        put_text(&mut bytes, &self.name);
        put_tags(&mut bytes, &self.tags);
        bytes
    }

    /// The record with these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "record of a volume";
        let mut fields = Fields::new(WHAT, bytes);
        let version = fields.u8()?;
        if version != VERSION {
            return Err(FormatError::unknown(
                "version of a volume's record",
                VERSION,
                version,
            ));
        }
        let flags = fields.u8()?;
        if flags & !(ATTACHED | HAS_BASE | HAS_PARENT) != 0 {
            return Err(FormatError::differs(
                "flags of a volume's record",
                "1 (attached), 2 (base), 4 (parent)",
                format_args!("{flags:#04x}"),
            ));
        }
        let record = Self {
            id: VolumeId::decode_from(&mut fields)?,
            size_bytes: fields.u64()?,
            created_at_ns: fields.u64()?,
            attachments: fields.u64()?,
            attached_at_ns: optional(&mut fields, flags & ATTACHED, 8, Fields::u64)?,
            journal_from: fields.u64()?,
            base: optional(&mut fields, flags & HAS_BASE, 32, |fields| {
                fields.array().map(RootId::from_bytes)
            })?,
            parent: optional(
                &mut fields,
                flags & HAS_PARENT,
                ID_BYTES,
                SnapshotId::decode_from,
            )?,
            name: fields.text()?,
            tags: fields.tags()?,
        };
        fields.end()?;
        record.check()?;
        Ok(record)
    }

    /// That its numbers fit together, as those of every record do that was ever written.
    fn check(&self) -> Result<(), FormatError> {
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(FormatError::differs(
                "size of a volume",
                format_args!("a multiple of {SECTOR_BYTES} above 0"),
                self.size_bytes,
            ));
        }
        if self.journal_from == 0 {
            return Err(FormatError::differs(
                "first journal file of a volume",
                "a number from 1 on",
                0,
            ));
        }
        if self.attached_at_ns.is_some() && self.attachments == 0 {
            return Err(FormatError::differs(
                "number of a volume's attachment",
                "a number from 1 on",
                0,
            ));
        }
        if self.parent.is_some() && self.base.is_none() {
            return Err(FormatError::differs(
                "base of a volume that has a parent",
                "a root",
                "none",
            ));
        }
        Ok(())
    }
}

/// A field of `len` bytes that is zero where its flag is not set.
fn optional<'a, T>(
    fields: &mut Fields<'a>,
    flag: u8,
    len: usize,
    read: impl FnOnce(&mut Fields<'a>) -> Result<T, FormatError>,
) -> Result<Option<T>, FormatError> {
    if flag == 0 {
        return fields.reserved(len).map(|()| None);
    }
    read(fields).map(Some)
}
