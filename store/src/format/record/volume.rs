//! A volume's record, as the catalog log and the catalog keep it.

use std::borrow::Cow;

use varve_content::RootId;

use super::{CatalogRecord, Counter, Keys, Kind, Owned, Tagged, Tags, named};
use crate::format::{
    AccountId, FormatError, ID_BYTES, IdKind, RecordId, SnapshotId,
    fields::{Fields, optional, put_count, put_tags, put_text},
    keys::Holdings,
};

/// The versions of [`VolumeRecord`]'s encoding, its first byte. The first has no place for pending
/// snapshots, the second none for what they promise of the journal, the third none for an owner, a
/// description and the want of a name. A record is written in the first version that can express
/// it.
const PLAIN: u8 = 1;
const WITH_PENDING: u8 = 2;
const WITH_PROMISE: u8 = 3;
const VERSION: u8 = 4;
/// Volumes are a whole number of these: the smallest unit that a guest reads and writes.
pub const SECTOR_BYTES: u64 = 512;

const ATTACHED: u8 = 1;
const HAS_BASE: u8 = 2;
const HAS_PARENT: u8 = 4;
const HAS_NO_NAME: u8 = 8;

/// The kind of id that volumes have.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfVolume {}

impl IdKind for OfVolume {
    const WHAT: &'static str = "id of a volume";
    const PREFIX: &'static str = "vol-";
}

/// Id of a volume: `vol-` and 17 hexadecimal digits.
pub type VolumeId = RecordId<OfVolume>;

/// The catalog record of a volume. The content of the volume is `base`, overlaid with its journal
/// files from `journal_from` on.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 4; 3 for a volume with a name that is the administrator's and has no description; 2 if also nothing is promised of its journal, 1 if it has no pending snapshots either |
/// | 1 | flags: 1 attached, 2 has a base, 4 has a parent, 8 has no name (from version 4 on) |
/// | 9 | id |
/// | 8 | size |
/// | 8 | created |
/// | 8 | attachments |
/// | 8 | attached since; zero if it is not |
/// | 8 | first journal file |
/// | 32 | root of the base; zero if there is none |
/// | 9 | id of the parent; zero if there is none |
/// | 4 + n | name: length, UTF-8; empty if it has none |
/// | 4 | number of tags, ascending by key |
/// | 4 + n, 4 + n | each tag: key, value |
/// | 4 | number of pending snapshots, in the order of their instants; absent in version 1 |
/// | 9, 8 | each: id, number of the first journal file behind its instant |
/// | 8 | number of the last journal batch that was promised; absent in versions 1 and 2 |
/// | 8 | id of the owner as a number; absent in versions 1 to 3 |
/// | 4 + n | description: length, UTF-8; absent in versions 1 to 3 |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// Its name, if it has one: no other volume of the store has the same. A snapshot may.
    pub name: Option<String>,
    /// The account that it belongs to.
    pub owner: AccountId,
    /// A description by the user; empty: none.
    pub description: String,
    /// Its size, a multiple of [`SECTOR_BYTES`].
    pub size_bytes: u64,
    /// The root of the content under the journal; `None`: zeros. It may be of a smaller size: the
    /// rest is zeros.
    pub base: Option<RootId>,
    /// The last snapshot of it that was completed, or else the one it was made from. It may be
    /// deleted by now; the base stays.
    pub parent: Option<SnapshotId>,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// Its tags.
    pub tags: Tags,
    /// Since when it is attached, in nanoseconds since 1970; `None` while it is not.
    pub attached_at_ns: Option<u64>,
    /// How often it was attached: the number of the current attachment while it is.
    pub attachments: u64,
    /// Number of the first journal file that is not yet part of `base`; 1 to begin with.
    pub journal_from: u64,
    /// Snapshots of it whose content is not in the store yet, in the order of their instants.
    pub pending: Vec<PendingSnapshot>,
    /// Batches of the journal up to this one were durable when the volume was closed, or when a
    /// snapshot was promised that needs them, whatever became of it; 0 if no batch in the journal
    /// was promised. So damage to them can be told from an end that a loss of power tore.
    pub promised_sequence: u64,
}

/// A snapshot whose content is the volume's base, and over it what journal files say up to its
/// instant.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct PendingSnapshot {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Number of the first journal file that is of the time after its instant.
    pub next_file: u64,
}

impl Owned for VolumeRecord {
    fn give(&mut self, to: AccountId) {
        self.owner = to;
    }
}

impl Tagged for VolumeRecord {
    fn tags_mut(&mut self) -> &mut Tags {
        &mut self.tags
    }
}

impl CatalogRecord for VolumeRecord {
    type Id = VolumeId;

    const KIND: &'static Kind = &Kind::of::<Self>("volume", 3, "volumes")
        .with_labels("volume-names")
        .with_tags("volume-tags")
        .with_counter(Counter::Volumes);

    fn keys(&self) -> Keys<'_, VolumeId> {
        Keys {
            id: self.id,
            owner: self.owner,
            name: self.name.as_deref(),
            tags: Some(&self.tags),
        }
    }

    fn roots(&self) -> Vec<RootId> {
        self.base.into_iter().collect()
    }

    fn holdings(&self) -> Holdings {
        Holdings {
            volumes: 1,
            attached_volumes: self.attached_at_ns.is_some().into(),
            ..Holdings::default()
        }
    }

    fn encode(&self) -> Vec<u8> {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let version = self.version();
        let mut bytes = vec![
            version,
            flag(self.attached_at_ns.is_some(), ATTACHED)
                | flag(self.base.is_some(), HAS_BASE)
                | flag(self.parent.is_some(), HAS_PARENT)
                | flag(self.name.is_none(), HAS_NO_NAME),
        ];
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        bytes.extend_from_slice(&self.attachments.to_le_bytes());
        bytes.extend_from_slice(&self.attached_at_ns.unwrap_or_default().to_le_bytes());
        bytes.extend_from_slice(&self.journal_from.to_le_bytes());
        bytes.extend_from_slice(&self.base.map_or([0; 32], |root| *root.as_bytes()));
        bytes.extend_from_slice(&self.parent.map_or([0; ID_BYTES], |id| *id.as_bytes()));
        put_text(&mut bytes, self.name.as_deref().unwrap_or_default());
        put_tags(&mut bytes, &self.tags);
        if version != PLAIN {
            put_count(&mut bytes, self.pending.len());
            for pending in &self.pending {
                bytes.extend_from_slice(pending.snapshot.as_bytes());
                bytes.extend_from_slice(&pending.next_file.to_le_bytes());
            }
        }
        if version >= WITH_PROMISE {
            bytes.extend_from_slice(&self.promised_sequence.to_le_bytes());
        }
        if version == VERSION {
            bytes.extend_from_slice(&self.owner.number().to_le_bytes());
            put_text(&mut bytes, &self.description);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "record of a volume";
        let mut fields = Fields::new(WHAT, bytes);
        let version = fields.u8()?;
        if !matches!(version, PLAIN | WITH_PENDING | WITH_PROMISE | VERSION) {
            return Err(FormatError::unknown(
                "version of a volume's record",
                format_args!("{PLAIN} to {VERSION}"),
                version,
            ));
        }
        let flags = fields.u8()?;
        let known = match version {
            VERSION => ATTACHED | HAS_BASE | HAS_PARENT | HAS_NO_NAME,
            _ => ATTACHED | HAS_BASE | HAS_PARENT,
        };
        if flags & !known != 0 {
            return Err(FormatError::differs(
                "flags of a volume's record",
                "1 (attached), 2 (base), 4 (parent), from version 4 on 8 (no name)",
                format_args!("{flags:#04x}"),
            ));
        }
        let has = |flag: u8| flags & flag != 0;
        let mut record = Self {
            id: VolumeId::decode_from(&mut fields)?,
            size_bytes: fields.u64()?,
            created_at_ns: fields.u64()?,
            attachments: fields.u64()?,
            attached_at_ns: optional(&mut fields, has(ATTACHED), 8, Fields::u64)?,
            journal_from: fields.u64()?,
            base: optional(&mut fields, has(HAS_BASE), 32, |fields| {
                fields.array().map(RootId::from_bytes)
            })?,
            parent: optional(
                &mut fields,
                has(HAS_PARENT),
                ID_BYTES,
                SnapshotId::decode_from,
            )?,
            name: named(WHAT, fields.text()?, has(HAS_NO_NAME))?,
            tags: fields.tags()?,
            pending: Vec::new(),
            promised_sequence: 0,
            owner: AccountId::ADMINISTRATOR,
            description: String::new(),
        };
        if version != PLAIN {
            for _ in 0..fields.u32()? {
                record.pending.push(PendingSnapshot {
                    snapshot: SnapshotId::decode_from(&mut fields)?,
                    next_file: fields.u64()?,
                });
            }
        }
        if version >= WITH_PROMISE {
            record.promised_sequence = fields.u64()?;
        }
        if version == VERSION {
            record.owner = AccountId::decode_from(&mut fields)?;
            record.description = fields.text()?;
        }
        if record.version() != version {
            return Err(FormatError::differs(
                "version of a volume's record",
                format_args!(
                    "{}, the first that can express the content",
                    record.version()
                ),
                version,
            ));
        }
        fields.end()?;
        record.check()?;
        Ok(record)
    }
}

impl VolumeRecord {
    /// The label: the name of the volume, or its id if it has no name.
    #[must_use]
    pub fn label(&self) -> Cow<'_, str> {
        CatalogRecord::label(self)
    }

    /// The first version that can express the record.
    fn version(&self) -> u8 {
        let is_owned = self.owner != AccountId::ADMINISTRATOR;
        if is_owned || !self.description.is_empty() || self.name.is_none() {
            return VERSION;
        }
        match (self.promised_sequence, self.pending.is_empty()) {
            (0, true) => PLAIN,
            (0, false) => WITH_PENDING,
            _ => WITH_PROMISE,
        }
    }

    /// Checks that its numbers are consistent, as in every record ever written.
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
        let files = self.pending.iter().map(|pending| pending.next_file);
        let files: Vec<_> = std::iter::once(self.journal_from).chain(files).collect();
        if !files.is_sorted() {
            return Err(FormatError::differs(
                "journal files of a volume's pending snapshots",
                "numbers that ascend",
                format_args!("{files:?}"),
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
