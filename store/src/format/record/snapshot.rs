//! A snapshot's record, as the catalog log and the catalog keep it.

use std::borrow::Cow;

use varve_content::{RootId, block::BLOCK_BYTES};

use super::{
    AccountRecord, CatalogRecord, Counter, Keys, Kind, Owned, Shareable, Sharing, Tagged, Tags,
    account::BlockPublicAccess, named,
};
use crate::format::{
    AccountId, FormatError, ID_BYTES, IdKind, RecordId, VolumeId,
    fields::{Fields, optional, put_tags, put_text},
    keys::Holdings,
};

/// The versions of [`SnapshotRecord`]'s encoding, its first byte. The first has no place for a
/// state, an origin and a parent, the second none for an owner, a description and the want of a
/// name, the third none for those whom it is shared with. A record is written in the first version
/// that can express it.
const PLAIN: u8 = 1;
const WITH_STATE: u8 = 2;
const WITH_OWNER: u8 = 3;
const VERSION: u8 = 4;

const COMPLETED: u8 = 1;
const PENDING: u8 = 2;
const FAILED: u8 = 3;

const HAS_ORIGIN: u8 = 1;
const HAS_PARENT: u8 = 2;
const HAS_NO_NAME: u8 = 4;

/// The kind of id that snapshots have.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfSnapshot {}

impl IdKind for OfSnapshot {
    const WHAT: &'static str = "id of a snapshot";
    const PREFIX: &'static str = "snap-";
}

/// Id of a snapshot: `snap-` and 17 hexadecimal digits.
pub type SnapshotId = RecordId<OfSnapshot>;

/// The catalog record of a snapshot.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 4; 3 for a snapshot that is not shared; 2 if it also has a name, is the administrator's and has no description; 1 if it is also complete, of no volume and without a parent |
/// | 1 | state: 1 completed, 2 pending, 3 failed; absent in version 1, like all that is marked so |
/// | 1 | flags: 1 has an origin, 2 has a parent, 4 has no name (from version 3 on); absent in version 1 |
/// | 9 | id |
/// | 8 | size |
/// | 8 | data; zero unless it is completed, like root, new bytes and stored bytes |
/// | 32 | root |
/// | 8 | created |
/// | 8 | new bytes |
/// | 8 | stored bytes |
/// | 9 | id of the volume; zero if there is no origin; absent in version 1 |
/// | 9 | id of the parent; zero if there is none; absent in version 1 |
/// | 4 + n | name: length, UTF-8; empty if it has none |
/// | 4 + n | label of the volume; empty if there is no origin; absent in version 1 |
/// | 4 + n | why it failed; empty unless it has; absent in version 1 |
/// | 4 | number of tags, ascending by key |
/// | 4 + n, 4 + n | each tag: key, value |
/// | 8 | id of the owner as a number; absent in versions 1 and 2 |
/// | 4 + n | description: length, UTF-8; absent in versions 1 and 2 |
/// | 1 | 1 if it is shared with everybody, else 0; absent before version 4 |
/// | 4 | number of accounts that it is shared with, ascending; absent before version 4 |
/// | 8 | each of them, as a number |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Its name, if it has one: no other snapshot of its owner has the same.
    pub name: Option<String>,
    /// The account that it belongs to.
    pub owner: AccountId,
    /// A description by the user; empty: none.
    pub description: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// How far along it is.
    pub state: SnapshotState,
    /// The instant whose content it has, in nanoseconds since 1970. Of an upload: when it was
    /// committed, unless it comes from another store.
    pub created_at_ns: u64,
    /// Its tags.
    pub tags: Tags,
    /// The volume it was made of; `None` for an upload.
    pub origin: Option<SnapshotOrigin>,
    /// The volume's snapshot before, or the one that the volume was made from. It may be deleted by
    /// now, or have been in another store only.
    pub parent: Option<SnapshotId>,
    /// Who may read it beside its owner.
    pub sharing: Sharing,
}

/// How far along a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotState {
    /// Its content is in the store.
    Completed(SnapshotContent),
    /// Its content is in the journal of its volume, and on its way into the store.
    Pending,
    /// Its content did not get into the store.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The content of a snapshot.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct SnapshotContent {
    /// The root of its content.
    pub root: RootId,
    /// Bytes that are not holes.
    pub data_bytes: u64,
    /// Plain bytes of the chunks that the store did not have before.
    pub new_bytes: u64,
    /// Bytes that those chunks and the new nodes take in packs.
    pub stored_bytes: u64,
}

impl SnapshotContent {
    /// How many blocks are data: of an odd size, the last may be a part of one.
    #[must_use]
    pub const fn data_blocks(&self) -> u64 {
        self.data_bytes.div_ceil(BLOCK_BYTES as u64)
    }
}

/// The volume that a snapshot was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotOrigin {
    /// Its id.
    pub volume: VolumeId,
    /// Its name at that time, or its id if it had no name.
    pub name: String,
}

impl SnapshotRecord {
    /// The label: the name of the snapshot, or its id if it has no name.
    #[must_use]
    pub fn label(&self) -> Cow<'_, str> {
        CatalogRecord::label(self)
    }

    /// The content, once the snapshot is completed.
    #[must_use]
    pub const fn content(&self) -> Option<&SnapshotContent> {
        match &self.state {
            SnapshotState::Completed(content) => Some(content),
            SnapshotState::Pending | SnapshotState::Failed { .. } => None,
        }
    }

    /// The root of its content, once it is complete.
    #[must_use]
    pub fn root(&self) -> Option<RootId> {
        self.content().map(|content| content.root)
    }

    /// The first version that can express the record.
    fn version(&self) -> u8 {
        let is_owned = self.owner != AccountId::ADMINISTRATOR;
        if !self.sharing.is_empty() {
            VERSION
        } else if is_owned || !self.description.is_empty() || self.name.is_none() {
            WITH_OWNER
        } else if self.content().is_some() && self.origin.is_none() && self.parent.is_none() {
            PLAIN
        } else {
            WITH_STATE
        }
    }
}

impl Owned for SnapshotRecord {
    /// The new owner has not shared it with anybody.
    fn give(&mut self, to: AccountId) {
        self.owner = to;
        self.sharing = Sharing::default();
    }
}

impl Shareable for SnapshotRecord {
    fn sharing_mut(&mut self) -> &mut Sharing {
        &mut self.sharing
    }

    fn is_private(owner: Option<&AccountRecord>) -> bool {
        owner.is_some_and(|owner| owner.block_public_access != BlockPublicAccess::Off)
    }
}

impl Tagged for SnapshotRecord {
    fn tags_mut(&mut self) -> &mut Tags {
        &mut self.tags
    }
}

impl CatalogRecord for SnapshotRecord {
    type Id = SnapshotId;

    const KIND: &'static Kind = &Kind::of::<Self>("snapshot", 1, "snapshots")
        .with_labels("names")
        .with_tags("snapshot-tags")
        .with_roots("snapshot-roots")
        .with_counter(Counter::Snapshots);

    fn keys(&self) -> Keys<'_, SnapshotId> {
        Keys {
            id: self.id,
            owner: self.owner,
            name: self.name.as_deref(),
            tags: Some(&self.tags),
        }
    }

    fn logical_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn holdings(&self) -> Holdings {
        Holdings {
            snapshots: 1,
            ..Holdings::default()
        }
    }

    /// A pending snapshot has none: its content is the base of its volume, and the journal.
    fn roots(&self) -> Vec<RootId> {
        self.root().into_iter().collect()
    }

    fn whole_root(&self) -> Option<RootId> {
        self.root()
    }

    fn sharing(&self) -> Option<&Sharing> {
        Some(&self.sharing)
    }

    fn is_hidden_by(owner: &AccountRecord) -> bool {
        owner.block_public_access == BlockPublicAccess::AllSharing
    }

    fn encode(&self) -> Vec<u8> {
        let version = self.version();
        let plain = version == PLAIN;
        let (state, content, reason) = match &self.state {
            SnapshotState::Completed(content) => (COMPLETED, Some(content), ""),
            SnapshotState::Pending => (PENDING, None, ""),
            SnapshotState::Failed { reason } => (FAILED, None, &**reason),
        };
        let mut bytes = if plain {
            vec![PLAIN]
        } else {
            let flag = |set: bool, flag: u8| if set { flag } else { 0 };
            let flags = flag(self.origin.is_some(), HAS_ORIGIN)
                | flag(self.parent.is_some(), HAS_PARENT)
                | flag(self.name.is_none(), HAS_NO_NAME);
            vec![version, state, flags]
        };
        let number = |of: fn(&SnapshotContent) -> u64| content.map_or(0, of).to_le_bytes();
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&number(|content| content.data_bytes));
        bytes.extend_from_slice(&content.map_or([0; 32], |content| *content.root.as_bytes()));
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        bytes.extend_from_slice(&number(|content| content.new_bytes));
        bytes.extend_from_slice(&number(|content| content.stored_bytes));
        if !plain {
            let volume = self.origin.as_ref().map(|origin| *origin.volume.as_bytes());
            bytes.extend_from_slice(&volume.unwrap_or([0; ID_BYTES]));
            bytes.extend_from_slice(&self.parent.map_or([0; ID_BYTES], |id| *id.as_bytes()));
        }
        put_text(&mut bytes, self.name.as_deref().unwrap_or_default());
        if !plain {
            let volume = self.origin.as_ref().map(|origin| &*origin.name);
            put_text(&mut bytes, volume.unwrap_or_default());
            put_text(&mut bytes, reason);
        }
        put_tags(&mut bytes, &self.tags);
        if version >= WITH_OWNER {
            bytes.extend_from_slice(&self.owner.number().to_le_bytes());
            put_text(&mut bytes, &self.description);
        }
        if version == VERSION {
            self.sharing.encode_into(&mut bytes);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "record of a snapshot";
        let mut fields = Fields::new(WHAT, bytes);
        let version = fields.u8()?;
        if !matches!(version, PLAIN | WITH_STATE | WITH_OWNER | VERSION) {
            return Err(FormatError::unknown(
                "version of a snapshot's record",
                format_args!("{PLAIN} to {VERSION}"),
                version,
            ));
        }
        let plain = version == PLAIN;
        let (state, flags) = if plain {
            (COMPLETED, 0)
        } else {
            (fields.u8()?, fields.u8()?)
        };
        check_head(version, state, flags)?;
        let id = SnapshotId::decode_from(&mut fields)?;
        let size_bytes = fields.u64()?;
        let completed = state == COMPLETED;
        let data_bytes = optional(&mut fields, completed, 8, Fields::u64)?;
        let root = optional(&mut fields, completed, 32, |fields| {
            fields.array().map(RootId::from_bytes)
        })?;
        let created_at_ns = fields.u64()?;
        let new_bytes = optional(&mut fields, completed, 8, Fields::u64)?;
        let stored_bytes = optional(&mut fields, completed, 8, Fields::u64)?;
        let (mut volume, mut parent) = (None, None);
        let has = |flag: u8| flags & flag != 0;
        if !plain {
            volume = optional(
                &mut fields,
                has(HAS_ORIGIN),
                ID_BYTES,
                VolumeId::decode_from,
            )?;
            parent = optional(
                &mut fields,
                has(HAS_PARENT),
                ID_BYTES,
                SnapshotId::decode_from,
            )?;
        }
        let name = fields.text()?;
        let (mut volume_name, mut reason) = (String::new(), String::new());
        if !plain {
            volume_name = fields.text()?;
            reason = fields.text()?;
        }
        let tags = fields.tags()?;
        let (mut owner, mut description) = (AccountId::ADMINISTRATOR, String::new());
        if version >= WITH_OWNER {
            owner = AccountId::decode_from(&mut fields)?;
            description = fields.text()?;
        }
        let sharing = match version {
            VERSION => Sharing::decode_from(&mut fields)?,
            _ => Sharing::default(),
        };
        fields.end()?;
        let name = named(WHAT, name, has(HAS_NO_NAME))?;
        if (volume.is_none() && !volume_name.is_empty()) || (state != FAILED && !reason.is_empty())
        {
            return Err(FormatError::differs(
                WHAT,
                "no text where there is no origin, or no failure",
                format_args!("{volume_name:?} and {reason:?}"),
            ));
        }
        let state = match (root, data_bytes, new_bytes, stored_bytes) {
            (Some(root), Some(data_bytes), Some(new_bytes), Some(stored_bytes)) => {
                SnapshotState::Completed(SnapshotContent {
                    root,
                    data_bytes,
                    new_bytes,
                    stored_bytes,
                })
            }
            _ if state == PENDING => SnapshotState::Pending,
            _ => SnapshotState::Failed { reason },
        };
        let record = Self {
            id,
            name,
            owner,
            description,
            size_bytes,
            state,
            created_at_ns,
            tags,
            origin: volume.map(|volume| SnapshotOrigin {
                volume,
                name: volume_name,
            }),
            parent,
            sharing,
        };
        if record.version() != version {
            return Err(FormatError::differs(
                "version of a snapshot's record",
                format_args!(
                    "{}, the first that can express the content",
                    record.version()
                ),
                version,
            ));
        }
        Ok(record)
    }
}

fn check_head(version: u8, state: u8, flags: u8) -> Result<(), FormatError> {
    if !matches!(state, COMPLETED | PENDING | FAILED) {
        return Err(FormatError::unknown(
            "state of a snapshot",
            "1 (completed), 2 (pending), 3 (failed)",
            state,
        ));
    }
    let known = match version {
        WITH_OWNER | VERSION => HAS_ORIGIN | HAS_PARENT | HAS_NO_NAME,
        _ => HAS_ORIGIN | HAS_PARENT,
    };
    if flags & !known != 0 {
        return Err(FormatError::differs(
            "flags of a snapshot's record",
            "1 (origin), 2 (parent), from version 3 on 4 (no name)",
            format_args!("{flags:#04x}"),
        ));
    }
    Ok(())
}
