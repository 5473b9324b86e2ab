//! A snapshot's record, as the catalog log and the catalog keep it.

use std::collections::BTreeMap;

use varve_content::RootId;

use super::{
    FormatError, IdKind, RecordId,
    fields::{Fields, put_tags, put_text},
};

/// The version of [`SnapshotRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

/// What is the id of a snapshot.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfSnapshot {}

impl IdKind for OfSnapshot {
    const WHAT: &'static str = "id of a snapshot";
    const PREFIX: &'static str = "snap-";
}

/// Id of a snapshot: `snap-` and 17 hexadecimal digits.
pub type SnapshotId = RecordId<OfSnapshot>;

/// What the catalog knows of a snapshot. It is complete: one that is still being made has no record.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 9 | id |
/// | 8 | size |
/// | 8 | data |
/// | 32 | root |
/// | 8 | created |
/// | 8 | new bytes |
/// | 8 | stored bytes |
/// | 4 + n | name: length, UTF-8 |
/// | 4 | number of tags, ascending by key |
/// | 4 + n, 4 + n | each tag: key, value |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Its name: no other snapshot of the store has it.
    pub name: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bytes that are not holes.
    pub data_bytes: u64,
    /// The root of its content.
    pub root: RootId,
    /// When it was committed, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Plain bytes of the chunks that the store did not have before.
    pub new_bytes: u64,
    /// Bytes that those chunks and the new nodes take in packs.
    pub stored_bytes: u64,
}

impl SnapshotRecord {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.data_bytes.to_le_bytes());
        bytes.extend_from_slice(self.root.as_bytes());
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        bytes.extend_from_slice(&self.new_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.stored_bytes.to_le_bytes());
        put_text(&mut bytes, &self.name);
        put_tags(&mut bytes, &self.tags);
        bytes
    }

    /// The record with these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of a snapshot", bytes);
        let version = fields.u8()?;
        if version != VERSION {
            return Err(FormatError::unknown(
                "version of a snapshot's record",
                VERSION,
                version,
            ));
        }
        let record = Self {
            id: SnapshotId::decode_from(&mut fields)?,
            size_bytes: fields.u64()?,
            data_bytes: fields.u64()?,
            root: RootId::from_bytes(fields.array()?),
            created_at_ns: fields.u64()?,
            new_bytes: fields.u64()?,
            stored_bytes: fields.u64()?,
            name: fields.text()?,
            tags: fields.tags()?,
        };
        fields.end()?;
        Ok(record)
    }
}
