//! Keys and values in RocksDB. All of it is derived: it can be rebuilt from packs and catalog log,
//! but for the last garbage collection, which nothing depends on.
//!
//! | column family | key | value |
//! | --- | --- | --- |
//! | [`CHUNKS`] | [`Name`](super::Name) of a chunk, 32 bytes | [`Location`] |
//! | [`NODES`] | [`Name`](super::Name) of a node or root, 32 bytes | [`Location`] |
//! | [`PACKS`] | pack number, 8 bytes, big endian | [`PackState`] |
//! | [`records`](super::record::Kind) of a kind | id: 9 bytes, or a remote's name | the record's bytes |
//! | [`labels`](super::record::Kind) of a kind | [list key](list_key): owner, and name or id | id |
//! | [`tags`](super::record::Kind) of a kind | key and value of a tag, each with a 0 behind it, and list key | id |
//! | | [grantee](grantee_prefix): `ff 00` for everybody, `ff 01` and 8 bytes, big endian, for an account; and list key | id |
//! | | [snapshot](snapshot_prefix) that the record needs: `ff 02` and the id, 9 bytes; and list key | id |
//! | [`roots`](super::record::Kind) of a kind | root of the content, 32 bytes, and id | id |
//! | [`META`] | [`IDENTITY`] | [`Identity`] |
//! | | [`CATALOG_SEQUENCE`] | number of the last catalog log record that is in here, 8 bytes |
//! | | [`LAST_PACK_NUMBER`] | the highest number of a pack when the state of one was removed, 8 bytes; absent before |
//! | | [`TOTALS`] | [`Totals`] |
//! | | [`LAST_RUN`] | [`LastRun`](super::LastRun), of the last garbage collection; absent before |
//! | | [`TAGS_INDEXED`] | nothing; there once all tags are in their families |
//! | | [`ROOTS_INDEXED`] | nothing; there once all roots are in their families |
//! | | [`HOLDINGS`] and the number of an account, 8 bytes, big endian | [`Holdings`]; absent if there are none |
//! | | [`HOLDINGS_COUNTED`] | the catalog sequence up to which the holdings count, 8 bytes |
//!
//! The [record formats](super::record) name the column families of each kind. An index that is
//! older than a kind lacks its families, and opens as one without such records. The families of
//! tags and of roots are filled when an older index is opened. So are the holdings, also after an
//! older program has changed the catalog.
//!
//! RocksDB keeps a checksum of its own over each block, so values have none.

use std::fmt;

use super::{
    AccountId, FormatError, IdKind, Kind, Location, PackId, PackKind, RecordId, SnapshotId,
    StoreId,
    fields::{Fields, FieldsMut},
    pack::{PACK_HEADER_BYTES, Payload, RECORD_ALIGN},
    record::{Counter, Grantee, account::Quota},
};

/// Locations of chunks.
pub const CHUNKS: &str = "chunks";
/// Locations of nodes and roots. Names of different kinds cannot collide: ids of each kind are
/// hashed in a context of their own.
pub const NODES: &str = "nodes";
/// States of packs.
pub const PACKS: &str = "packs";
/// Single values: the keys below.
pub const META: &str = "meta";

/// The family of the rows of records in such packs.
#[must_use]
pub const fn rows(kind: PackKind) -> &'static str {
    match kind {
        PackKind::Chunks => CHUNKS,
        PackKind::Nodes => NODES,
    }
}

/// Key of the [`Identity`].
pub const IDENTITY: &[u8] = b"identity";
/// Key of the catalog sequence.
pub const CATALOG_SEQUENCE: &[u8] = b"catalog-sequence";
/// Key of the highest number that a pack ever had.
pub const LAST_PACK_NUMBER: &[u8] = b"last-pack-number";
/// Key of the [`Totals`].
pub const TOTALS: &[u8] = b"totals";
/// Key of the last garbage collection.
pub const LAST_RUN: &[u8] = b"last-gc-run";
/// Key of the mark that all tags are in their families.
pub const TAGS_INDEXED: &[u8] = b"tags-indexed";
/// Key of the mark that all roots are in their families.
pub const ROOTS_INDEXED: &[u8] = b"roots-indexed";
/// Key of the catalog sequence up to which the [`Holdings`] count.
pub const HOLDINGS_COUNTED: &[u8] = b"holdings-counted";
/// The beginning of the keys of [`Holdings`].
pub const HOLDINGS: &[u8] = b"holdings:";
/// Greater than all keys of [`Holdings`].
pub const BEHIND_HOLDINGS: &[u8] = b"holdings;";

/// First byte of every value but ids and [`Totals`].
const VERSION: u8 = 1;
/// First byte of the [`PackState`] of an emptied pack.
const PACK_STATE_EMPTIED: u8 = 2;
/// First byte of [`Holdings`] with images.
const HOLDINGS_VERSION: u8 = 2;
/// First byte of [`Totals`] with volumes.
const TOTALS_VERSION: u8 = 2;
/// First byte of [`Totals`] of more logical bytes than 64 bits hold.
const TOTALS_VERSION_WIDE: u8 = 3;
/// First byte of [`Totals`] with records of other kinds.
const TOTALS_VERSION_OTHERS: u8 = 4;

fn expect_version(fields: &mut Fields<'_>) -> Result<(), FormatError> {
    match fields.u8()? {
        VERSION => Ok(()),
        other => Err(FormatError::unknown(
            "version of an index value",
            VERSION,
            other,
        )),
    }
}

impl Location {
    pub(crate) const BYTES: usize = 17 + Payload::BYTES;

    /// As a value.
    ///
    /// | offset | bytes | field |
    /// | --- | --- | --- |
    /// | 0 | 1 | version: 1 |
    /// | 1 | 8 | pack number; the payload's kind tells the pack's |
    /// | 9 | 8 | offset of the record's header |
    /// | 17 | 12 | [`Payload`] |
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        debug_assert_eq!(self.pack.kind, self.payload.kind.pack_kind());
        let mut bytes = [0; Self::BYTES];
        let mut fields = FieldsMut::new(&mut bytes);
        fields
            .u8(VERSION)
            .u64(self.pack.number)
            .u64(self.offset_bytes);
        self.payload.encode_into(&mut fields);
        bytes
    }

    /// From a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("place of a record", bytes);
        expect_version(&mut fields)?;
        let number = fields.u64()?;
        let offset_bytes = fields.u64()?;
        let payload = Payload::decode_from(&mut fields)?;
        fields.end()?;
        if offset_bytes < PACK_HEADER_BYTES as u64 || !offset_bytes.is_multiple_of(RECORD_ALIGN) {
            return Err(FormatError::differs(
                "offset of a record",
                format_args!("a multiple of {RECORD_ALIGN} from {PACK_HEADER_BYTES} on"),
                offset_bytes,
            ));
        }
        Ok(Self {
            pack: PackId {
                kind: payload.kind.pack_kind(),
                number,
            },
            offset_bytes,
            payload,
        })
    }
}

/// The indexed part of a pack.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackState {
    /// Id of the pack.
    pub pack: PackId,
    /// All records before this offset, in bytes, are synced and in the index. Recovery surveys the
    /// bytes behind it.
    pub indexed_bytes: u64,
    /// Its phase.
    pub phase: PackPhase,
}

/// A phase in the life of a pack.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PackPhase {
    /// Records may be added.
    Open,
    /// It has a footer, with nothing behind it.
    Sealed,
    /// No row points into it, and its file is to be removed, or is gone.
    Emptied,
}

impl PackState {
    const BYTES: usize = 12;

    /// The key of a pack's state. Numbers are unique over both kinds.
    #[must_use]
    pub const fn key_of(pack: PackId) -> [u8; 8] {
        pack.number.to_be_bytes()
    }

    /// As a value.
    ///
    /// | offset | bytes | field |
    /// | --- | --- | --- |
    /// | 0 | 1 | version: 1, of an emptied pack 2 |
    /// | 1 | 1 | kind: 1 chunks, 2 nodes |
    /// | 2 | 1 | 0 open, 1 sealed, 2 emptied |
    /// | 3 | 1 | zero |
    /// | 4 | 8 | indexed up to |
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let (version, phase) = match self.phase {
            PackPhase::Open => (VERSION, 0),
            PackPhase::Sealed => (VERSION, 1),
            PackPhase::Emptied => (PACK_STATE_EMPTIED, 2),
        };
        let mut bytes = [0; Self::BYTES];
        FieldsMut::new(&mut bytes)
            .u8(version)
            .u8(self.pack.kind.to_byte())
            .u8(phase)
            .reserved(1)
            .u64(self.indexed_bytes);
        bytes
    }

    /// From key and value.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("number of a pack", key);
        let number = u64::from_be_bytes(fields.array()?);
        fields.end()?;
        let mut fields = Fields::new("state of a pack", value);
        let version = fields.u8()?;
        if version != VERSION && version != PACK_STATE_EMPTIED {
            return Err(FormatError::unknown(
                "version of a pack's state",
                format_args!("{VERSION} and {PACK_STATE_EMPTIED}"),
                version,
            ));
        }
        let kind = PackKind::from_byte(fields.u8()?)?;
        let phase = match (version, fields.u8()?) {
            (VERSION, 0) => PackPhase::Open,
            (VERSION, 1) => PackPhase::Sealed,
            (PACK_STATE_EMPTIED, 2) => PackPhase::Emptied,
            (version, other) => {
                return Err(FormatError::differs(
                    "state of a pack",
                    "0 (open) and 1 (sealed) in version 1, 2 (emptied) in version 2",
                    format_args!("{other} in version {version}"),
                ));
            }
        };
        fields.reserved(1)?;
        let indexed_bytes = fields.u64()?;
        fields.end()?;
        Ok(Self {
            pack: PackId { kind, number },
            indexed_bytes,
            phase,
        })
    }
}

/// Totals of an index: always the exact sums over its entries.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Chunks.
    pub chunks: u64,
    /// Plain bytes of the chunks.
    pub chunk_bytes: u64,
    /// Nodes and roots.
    pub nodes: u64,
    /// Bytes that the records of chunks and nodes take in packs. Padding, headers and footers of
    /// packs come on top.
    pub stored_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Sum of the snapshots' sizes in bytes: a million of the largest exceed 64 bits.
    pub logical_bytes: u128,
    /// Volumes.
    pub volumes: u64,
    /// Records of the kinds that are counted and have no field above.
    pub others: Counts,
}

/// The number of records of each kind.
#[derive(Copy, Clone, Default, PartialEq, Eq)]
pub struct Counts([u64; Self::KINDS_MAX]);

impl Counts {
    /// Numbers of kinds are below this.
    pub const KINDS_MAX: usize = 32;

    /// How many there are of one kind.
    #[must_use]
    pub fn of(&self, kind: &Kind) -> u64 {
        self.0
            .get(usize::from(kind.number))
            .copied()
            .unwrap_or_default()
    }

    /// The numbers of kinds of which there are some, ascending, and how many.
    fn some(&self) -> impl Iterator<Item = (u8, u64)> {
        (0..).zip(self.0).filter(|(_, count)| *count > 0)
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.some()).finish()
    }
}

impl Totals {
    /// The number of records of a kind; `None` for one that is not counted.
    pub fn count_mut(&mut self, kind: &Kind) -> Option<&mut u64> {
        match kind.counter {
            Counter::None => None,
            Counter::Snapshots => Some(&mut self.snapshots),
            Counter::Volumes => Some(&mut self.volumes),
            Counter::Others => self.others.0.get_mut(usize::from(kind.number)),
        }
    }

    /// As a value: the version, then all fields in the order above, 8 bytes each.
    ///
    /// Version 1 ends before the volumes, and is that of an index without any; version 2 has some.
    /// In version 3 the sizes of the snapshots take 16 bytes, because they need them, and volumes
    /// follow, any number. Version 4 is version 3, whatever the sizes, and behind it the number of
    /// other kinds of which there are records, in one byte, and of each its number in one and how
    /// many there are in 8 bytes, ascending.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let narrow = u64::try_from(self.logical_bytes);
        let others: Vec<_> = self.others.some().collect();
        let version = match (narrow, self.volumes) {
            _ if !others.is_empty() => TOTALS_VERSION_OTHERS,
            (Err(_), _) => TOTALS_VERSION_WIDE,
            (Ok(_), 0) => VERSION,
            (Ok(_), _) => TOTALS_VERSION,
        };
        let mut bytes = vec![version];
        for total in [
            self.chunks,
            self.chunk_bytes,
            self.nodes,
            self.stored_bytes,
            self.packs,
            self.snapshots,
        ] {
            bytes.extend_from_slice(&total.to_le_bytes());
        }
        match narrow {
            Ok(narrow) if version < TOTALS_VERSION_WIDE => {
                bytes.extend_from_slice(&narrow.to_le_bytes());
            }
            _ => bytes.extend_from_slice(&self.logical_bytes.to_le_bytes()),
        }
        if version != VERSION {
            bytes.extend_from_slice(&self.volumes.to_le_bytes());
        }
        if version == TOTALS_VERSION_OTHERS {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "there are KINDS_MAX at most"
            )]
            bytes.push(others.len() as u8);
            for (number, count) in others {
                bytes.push(number);
                bytes.extend_from_slice(&count.to_le_bytes());
            }
        }
        bytes
    }

    /// From a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("totals", bytes);
        let version = fields.u8()?;
        if !(VERSION..=TOTALS_VERSION_OTHERS).contains(&version) {
            return Err(FormatError::unknown(
                "version of totals",
                format_args!("{VERSION} to {TOTALS_VERSION_OTHERS}"),
                version,
            ));
        }
        let mut totals = Self {
            chunks: fields.u64()?,
            chunk_bytes: fields.u64()?,
            nodes: fields.u64()?,
            stored_bytes: fields.u64()?,
            packs: fields.u64()?,
            snapshots: fields.u64()?,
            ..Self::default()
        };
        totals.logical_bytes = match version {
            TOTALS_VERSION_WIDE.. => u128::from_le_bytes(fields.array()?),
            _ => fields.u64()?.into(),
        };
        if version != VERSION {
            totals.volumes = fields.u64()?;
        }
        if version == TOTALS_VERSION_OTHERS {
            let mut last = None;
            for _ in 0..fields.u8()? {
                let (number, count) = (fields.u8()?, fields.u64()?);
                let place = totals.others.0.get_mut(usize::from(number));
                let Some(place) = place.filter(|_| count > 0 && last < Some(number)) else {
                    return Err(FormatError::differs(
                        "totals",
                        "kinds of which there are records, ascending",
                        format_args!("{count} of kind {number}"),
                    ));
                };
                *place = count;
                last = Some(number);
            }
        }
        // One encoding of a value.
        let expected = totals.encode().first().copied();
        if expected != Some(version) {
            return Err(FormatError::differs(
                "version of totals",
                format_args!("{expected:?} for these"),
                version,
            ));
        }
        fields.end()?;
        Ok(totals)
    }
}

/// What an account holds: always the exact sums over the records that belong to it.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Volumes.
    pub volumes: u64,
    /// Snapshots, also pending and failed ones.
    pub snapshots: u64,
    /// Volumes that are attached.
    pub attached_volumes: u64,
    /// Images.
    pub images: u64,
}

impl Holdings {
    /// The key of what an account holds.
    #[must_use]
    pub fn key_of(account: AccountId) -> Vec<u8> {
        [HOLDINGS, account.as_bytes()].concat()
    }

    /// How much of what a quota limits; `None` for one that limits no records.
    #[must_use]
    pub const fn of(&self, quota: Quota) -> Option<u64> {
        match quota {
            Quota::Volumes => Some(self.volumes),
            Quota::Snapshots => Some(self.snapshots),
            Quota::AttachedVolumes => Some(self.attached_volumes),
            Quota::Images => Some(self.images),
            Quota::Uploads | Quota::RequestsPerSecond | Quota::StoredBytes => None,
        }
    }

    /// Both together. There are fewer than 2^64 records.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self {
            volumes: self.volumes.saturating_add(more.volumes),
            snapshots: self.snapshots.saturating_add(more.snapshots),
            attached_volumes: self.attached_volumes.saturating_add(more.attached_volumes),
            images: self.images.saturating_add(more.images),
        }
    }

    /// These without some of them; `None` if there are fewer.
    #[must_use]
    pub fn minus(self, less: Self) -> Option<Self> {
        Some(Self {
            volumes: self.volumes.checked_sub(less.volumes)?,
            snapshots: self.snapshots.checked_sub(less.snapshots)?,
            attached_volumes: self.attached_volumes.checked_sub(less.attached_volumes)?,
            images: self.images.checked_sub(less.images)?,
        })
    }

    /// As a value: the version, then the fields in the order above, 8 bytes each. Version 1 ends
    /// before the images, and is that of an account without any.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let has_images = self.images > 0;
        let mut bytes = vec![if has_images {
            HOLDINGS_VERSION
        } else {
            VERSION
        }];
        let images = has_images.then_some(self.images);
        let all = [self.volumes, self.snapshots, self.attached_volumes];
        for number in all.into_iter().chain(images) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// From a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("holdings of an account", bytes);
        let version = fields.u8()?;
        if !matches!(version, VERSION | HOLDINGS_VERSION) {
            let what = "version of the holdings of an account";
            return Err(FormatError::unknown(what, "1 and 2", version));
        }
        let mut holdings = Self {
            volumes: fields.u64()?,
            snapshots: fields.u64()?,
            attached_volumes: fields.u64()?,
            images: 0,
        };
        if version == HOLDINGS_VERSION {
            holdings.images = fields.u64()?;
            // One encoding of a value.
            if holdings.images == 0 {
                let what = "holdings of an account";
                return Err(FormatError::differs(what, "images in version 2", 0));
            }
        }
        fields.end()?;
        Ok(holdings)
    }
}

/// The store of an index: the index of another store would send reads to wrong places.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The store.
    pub store: StoreId,
}

impl Identity {
    const BYTES: usize = 1 + StoreId::BYTES;

    /// As a value: the version (1) of all keys and values, then the store's id.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        FieldsMut::new(&mut bytes)
            .u8(VERSION)
            .bytes(self.store.as_bytes());
        bytes
    }

    /// From a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("identity of an index", bytes);
        expect_version(&mut fields)?;
        let store = StoreId::from_bytes(fields.array()?);
        fields.end()?;
        Ok(Self { store })
    }
}

/// The catalog sequence in a value.
pub fn decode_sequence(bytes: &[u8]) -> Result<u64, FormatError> {
    let mut fields = Fields::new("catalog sequence", bytes);
    let sequence = fields.u64()?;
    fields.end()?;
    Ok(sequence)
}

/// The catalog sequence as a value.
#[must_use]
pub const fn encode_sequence(sequence: u64) -> [u8; 8] {
    sequence.to_le_bytes()
}

/// The record that a label belongs to, from a value.
///
/// # Errors
///
/// If the bytes are not an id.
pub fn decode_named<K: IdKind>(bytes: &[u8]) -> Result<RecordId<K>, FormatError> {
    RecordId::decode(bytes)
}

/// First byte of the list keys of all owners but the administrator. No label begins with it: labels
/// are UTF-8, in which this byte does not occur.
const OWNED: u8 = 0xff;
/// Bytes of an owner in a list key.
const OWNER_BYTES: usize = 1 + size_of::<u64>();

/// The key of a record in lists: that of the labels, and behind a tag. It is the bytes of the
/// label for the administrator's, and `ff`, the number of the account in 8 bytes, big-endian, and
/// the label for those of other owners. So an index from before there were accounts is in order.
#[must_use]
pub fn list_key(owner: AccountId, label: &str) -> Vec<u8> {
    let mut key = list_prefix(owner);
    key.extend_from_slice(label.as_bytes());
    key
}

/// The prefix of an owner's list keys.
#[must_use]
pub fn list_prefix(owner: AccountId) -> Vec<u8> {
    if owner == AccountId::ADMINISTRATOR {
        return Vec::new();
    }
    let mut prefix = vec![OWNED];
    prefix.extend_from_slice(&owner.number().to_be_bytes());
    prefix
}

/// The owner and the label of a list key.
///
/// # Errors
///
/// [`FormatError`] for an owner that is no account.
pub fn split_list_key(key: &[u8]) -> Result<(AccountId, &[u8]), FormatError> {
    if key.first() != Some(&OWNED) {
        return Ok((AccountId::ADMINISTRATOR, key));
    }
    let (head, label) = key.split_at_checked(OWNER_BYTES).ok_or_else(|| {
        FormatError::differs("key of a list", "an owner", format_args!("{key:02x?}"))
    })?;
    let mut fields = Fields::new("key of a list", head);
    fields.u8()?;
    let number = u64::from_be_bytes(fields.array()?);
    match AccountId::from_number(number) {
        Some(owner) if owner != AccountId::ADMINISTRATOR => Ok((owner, label)),
        _ => Err(FormatError::differs(
            "owner in the key of a list",
            "an account",
            number,
        )),
    }
}

/// The prefix of the keys of all records that are shared with somebody; their list keys follow.
/// They are in the family of the tags. Tags are UTF-8, in which `ff` does not occur.
#[must_use]
pub fn grantee_prefix(grantee: Grantee) -> Vec<u8> {
    match grantee {
        Grantee::Everybody => vec![0xff, 0],
        Grantee::Account(account) => [&[0xff, 1], &account.number().to_be_bytes()[..]].concat(),
    }
}

/// The prefix of the keys of all records that need a snapshot; their list keys follow. They are in
/// the family of the tags.
#[must_use]
pub fn snapshot_prefix(id: SnapshotId) -> Vec<u8> {
    [&[0xff, 2], &id.as_bytes()[..]].concat()
}

/// The prefix of the keys of all records with a tag; their list keys follow. Neither a tag's key
/// nor its value has a 0 in it.
#[must_use]
pub fn tag_prefix(key: &str, value: &str) -> Vec<u8> {
    [key.as_bytes(), &[0], value.as_bytes(), &[0]].concat()
}
