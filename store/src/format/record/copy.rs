//! A copy's record, as the catalog log and the catalog keep it.

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind, Tags};
use crate::format::{
    AccountId, FormatError, ID_BYTES, IdKind, RecordId, SnapshotId,
    fields::{Fields, optional, put_tags, put_text},
};

/// The versions of [`CopyRecord`]'s encoding, its first byte. The first has no place for the code
/// of the last error, the second none for an owner. A record is written in the first version that
/// can express it.
const PLAIN: u8 = 1;
const WITH_CODE: u8 = 2;
const VERSION: u8 = 3;

const PLAINTEXT: u8 = 1;
const HAS_ROOT: u8 = 2;
const HAS_SNAPSHOT: u8 = 4;
const HAS_ENDED: u8 = 8;

/// The kind of id that copies have.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfCopy {}

impl IdKind for OfCopy {
    const WHAT: &'static str = "id of a copy";
    const PREFIX: &'static str = "copy-";
}

/// Id of a copy: `copy-` and 17 hexadecimal digits.
pub type CopyId = RecordId<OfCopy>;

/// The outcome of a copy.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Hash)]
pub enum CopyOutcome {
    /// None yet: the copy is under way.
    UnderWay,
    /// The snapshot is there.
    Completed,
    /// It was given up.
    Failed,
    /// Somebody has ended it.
    Cancelled,
}

impl CopyOutcome {
    const fn to_byte(self) -> u8 {
        match self {
            Self::UnderWay => 1,
            Self::Completed => 2,
            Self::Failed => 3,
            Self::Cancelled => 4,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        Ok(match byte {
            1 => Self::UnderWay,
            2 => Self::Completed,
            3 => Self::Failed,
            4 => Self::Cancelled,
            other => return Err(FormatError::unknown("outcome of a copy", "1 to 4", other)),
        })
    }
}

/// The catalog record of a copy from another store.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 3; 2 for a copy of the administrator; 1 if it also has no code of its last error |
/// | 1 | flags: 1 plain HTTP is allowed, 2 has a root, 4 has a snapshot, 8 has ended |
/// | 1 | outcome: 1 under way, 2 completed, 3 failed, 4 cancelled |
/// | 9 | id |
/// | 8 | begun |
/// | 8 | ended; zero if it has not |
/// | 8 | limit of its rate |
/// | 32 | root; zero if there is none |
/// | 9 | id of the snapshot; zero if there is none |
/// | 8, 8, 8 | size, bytes of data, those of them that are here |
/// | 8, 8 | chunks that were received, their payload |
/// | 4 + n, four times | endpoint, name or id of the snapshot there, name here, last error: length, UTF-8 |
/// | 4 | number of tags, ascending by key |
/// | 4 + n, 4 + n | each tag: key, value |
/// | 1 | code of the last error; not 0 in version 2; absent in version 1 |
/// | 8 | id of the owner as a number; absent in versions 1 and 2 |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRecord {
    /// Its id.
    pub id: CopyId,
    /// The account that it belongs to, and that its snapshot will belong to.
    pub owner: AccountId,
    /// Where the other daemon is, or the name of a remote.
    pub endpoint: String,
    /// True if plain HTTP is allowed, even to another machine.
    pub allow_plaintext: bool,
    /// Name or id of the snapshot there.
    pub snapshot: String,
    /// Name of the snapshot here; empty while it is not known and none was asked for.
    pub name: String,
    /// Tags of the snapshot here, in addition to those at the source.
    pub tags: Tags,
    /// Bytes a second at most; 0: no limit.
    pub bytes_per_second: u64,
    /// When it was begun, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// The outcome of the copy.
    pub outcome: CopyOutcome,
    /// When, in nanoseconds since 1970.
    pub ended_at_ns: Option<u64>,
    /// Root of the content, once it is known.
    pub root: Option<RootId>,
    /// The snapshot here, once it is there.
    pub made: Option<SnapshotId>,
    /// Size of the volume; 0 until it is known.
    pub size_bytes: u64,
    /// Bytes that are not holes, by the other side's word.
    pub data_bytes: u64,
    /// Bytes of those that were certainly present here.
    pub done_data_bytes: u64,
    /// Chunks that had arrived.
    pub received_chunks: u64,
    /// Their payload.
    pub received_bytes: u64,
    /// The last error; empty: none.
    pub last_error: String,
    /// Its kind, as gRPC numbers status codes; 0 if nothing went wrong, or if the record is of
    /// version 1.
    pub last_error_code: u8,
}

impl CopyRecord {
    /// One that is under way, and of which nothing is known yet.
    #[must_use]
    pub const fn begun(id: CopyId, endpoint: String, snapshot: String, created_at_ns: u64) -> Self {
        Self {
            id,
            owner: AccountId::ADMINISTRATOR,
            endpoint,
            allow_plaintext: false,
            snapshot,
            name: String::new(),
            tags: Tags::new(),
            bytes_per_second: 0,
            created_at_ns,
            outcome: CopyOutcome::UnderWay,
            ended_at_ns: None,
            root: None,
            made: None,
            size_bytes: 0,
            data_bytes: 0,
            done_data_bytes: 0,
            received_chunks: 0,
            received_bytes: 0,
            last_error: String::new(),
            last_error_code: 0,
        }
    }

    /// The first version that can express the record.
    fn version(&self) -> u8 {
        match (self.owner, self.last_error_code) {
            (AccountId::ADMINISTRATOR, 0) => PLAIN,
            (AccountId::ADMINISTRATOR, _) => WITH_CODE,
            _ => VERSION,
        }
    }
}

impl CatalogRecord for CopyRecord {
    type Id = CopyId;

    const KIND: &'static Kind = &Kind::of::<Self>("copy", 6, "copies");

    /// The name and the tags that it has are those of the snapshot that it makes.
    fn keys(&self) -> Keys<'_, CopyId> {
        Keys {
            id: self.id,
            owner: AccountId::ADMINISTRATOR,
            name: None,
            tags: None,
        }
    }

    /// None: its root is that of the wanted content, of which only a part may be here. The upload
    /// that the copy makes holds that part, and the snapshot that it ends with holds the whole.
    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    fn encode(&self) -> Vec<u8> {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.allow_plaintext, PLAINTEXT)
            | flag(self.root.is_some(), HAS_ROOT)
            | flag(self.made.is_some(), HAS_SNAPSHOT)
            | flag(self.ended_at_ns.is_some(), HAS_ENDED);
        let version = self.version();
        let mut bytes = vec![version, flags, self.outcome.to_byte()];
        bytes.extend_from_slice(self.id.as_bytes());
        for number in [
            self.created_at_ns,
            self.ended_at_ns.unwrap_or_default(),
            self.bytes_per_second,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.root.map_or([0; 32], |root| *root.as_bytes()));
        bytes.extend_from_slice(&self.made.map_or([0; ID_BYTES], |id| *id.as_bytes()));
        for number in [
            self.size_bytes,
            self.data_bytes,
            self.done_data_bytes,
            self.received_chunks,
            self.received_bytes,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for text in [&self.endpoint, &self.snapshot, &self.name, &self.last_error] {
            put_text(&mut bytes, text);
        }
        put_tags(&mut bytes, &self.tags);
        if version != PLAIN {
            bytes.push(self.last_error_code);
        }
        if version == VERSION {
            bytes.extend_from_slice(&self.owner.number().to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of a copy", bytes);
        let version = fields.u8()?;
        if !matches!(version, PLAIN | WITH_CODE | VERSION) {
            return Err(FormatError::unknown(
                "version of a copy's record",
                format_args!("{PLAIN} to {VERSION}"),
                version,
            ));
        }
        let flags = fields.u8()?;
        if flags & !(PLAINTEXT | HAS_ROOT | HAS_SNAPSHOT | HAS_ENDED) != 0 {
            return Err(FormatError::differs(
                "flags of a copy's record",
                "1 (plain HTTP), 2 (root), 4 (snapshot), 8 (ended)",
                format_args!("{flags:#04x}"),
            ));
        }
        let has = |flag: u8| flags & flag != 0;
        let outcome = CopyOutcome::from_byte(fields.u8()?)?;
        let record = Self {
            id: CopyId::decode_from(&mut fields)?,
            outcome,
            created_at_ns: fields.u64()?,
            ended_at_ns: optional(&mut fields, has(HAS_ENDED), 8, Fields::u64)?,
            bytes_per_second: fields.u64()?,
            root: optional(&mut fields, has(HAS_ROOT), 32, |fields| {
                fields.array().map(RootId::from_bytes)
            })?,
            made: optional(
                &mut fields,
                has(HAS_SNAPSHOT),
                ID_BYTES,
                SnapshotId::decode_from,
            )?,
            size_bytes: fields.u64()?,
            data_bytes: fields.u64()?,
            done_data_bytes: fields.u64()?,
            received_chunks: fields.u64()?,
            received_bytes: fields.u64()?,
            allow_plaintext: has(PLAINTEXT),
            endpoint: fields.text()?,
            snapshot: fields.text()?,
            name: fields.text()?,
            last_error: fields.text()?,
            tags: fields.tags()?,
            last_error_code: match version {
                PLAIN => 0,
                _ => match fields.u8()? {
                    0 if version == WITH_CODE => {
                        return Err(FormatError::differs(
                            "code of a copy's last error",
                            "1 to 255",
                            0,
                        ));
                    }
                    code => code,
                },
            },
            owner: match version {
                VERSION => AccountId::decode_from(&mut fields)?,
                _ => AccountId::ADMINISTRATOR,
            },
        };
        fields.end()?;
        if record.version() != version {
            return Err(FormatError::differs(
                "version of a copy's record",
                format_args!("{}, the first that can express it", record.version()),
                version,
            ));
        }
        let ended = outcome != CopyOutcome::UnderWay;
        if ended != record.ended_at_ns.is_some()
            || (outcome == CopyOutcome::Completed) != record.made.is_some()
        {
            return Err(FormatError::differs(
                "record of a copy",
                "an end if it has ended, and a snapshot if it is completed",
                format_args!("{outcome:?}, flags {flags:#04x}"),
            ));
        }
        Ok(record)
    }
}
