//! Keys and values in RocksDB. All of it is derived: it can be made again from packs and catalog log.
//!
//! | column family | key | value |
//! | --- | --- | --- |
//! | [`CHUNKS`] | chunk id, 32 bytes | [`Location`] |
//! | [`NODES`] | node or root id, 32 bytes | [`Location`] |
//! | [`PACKS`] | pack number, 8 bytes, big endian | [`PackState`] |
//! | [`SNAPSHOTS`] | snapshot id, 9 bytes | [`SnapshotRecord`](super::SnapshotRecord) |
//! | [`NAMES`] | snapshot name, UTF-8 | snapshot id, 9 bytes |
//! | [`VOLUMES`] | volume id, 9 bytes | [`VolumeRecord`](super::VolumeRecord) |
//! | [`VOLUME_NAMES`] | volume name, UTF-8 | volume id, 9 bytes |
//! | [`SNAPSHOT_TAGS`] | key and value of a tag, each with a 0 behind it, and snapshot name | snapshot id, 9 bytes |
//! | [`VOLUME_TAGS`] | the same of volumes | volume id, 9 bytes |
//! | [`COPIES`] | copy id, 9 bytes | [`CopyRecord`](super::CopyRecord) |
//! | [`REMOTES`] | name, UTF-8 | [`RemoteRecord`](super::RemoteRecord) |
//! | [`META`] | [`IDENTITY`] | [`Identity`] |
//! | | [`CATALOG_SEQUENCE`] | number of the last catalog log record that is in here, 8 bytes |
//! | | [`TOTALS`] | [`Totals`] |
//! | | [`TAGS_INDEXED`] | nothing; there once all tags are in their families |
//!
//! An index from before there were volumes, copies or remotes lacks their families: such a one is opened as one without any. The families of
//! tags are filled when an index from before them is opened.
//!
//! RocksDB keeps a checksum of its own over each block, so values have none.

use super::{
    FormatError, IdKind, Location, PackId, PackKind, RecordId, StoreId,
    fields::{Fields, FieldsMut},
    pack::{PACK_HEADER_BYTES, Payload, RECORD_ALIGN},
};

/// Where chunks are.
pub const CHUNKS: &str = "chunks";
/// Where nodes and roots are. Their ids cannot meet: each kind is hashed in a context of its own.
pub const NODES: &str = "nodes";
/// How far packs are indexed.
pub const PACKS: &str = "packs";
/// Snapshots.
pub const SNAPSHOTS: &str = "snapshots";
/// Snapshots by name.
pub const NAMES: &str = "names";
/// Volumes.
pub const VOLUMES: &str = "volumes";
/// Volumes by name.
pub const VOLUME_NAMES: &str = "volume-names";
/// Snapshots by their tags, and then by name.
pub const SNAPSHOT_TAGS: &str = "snapshot-tags";
/// Volumes by their tags, and then by name.
pub const VOLUME_TAGS: &str = "volume-tags";
/// Copies from other stores.
pub const COPIES: &str = "copies";
/// Other daemons that have names here.
pub const REMOTES: &str = "remotes";
/// The keys below.
pub const META: &str = "meta";

/// Key of the [`Identity`].
pub const IDENTITY: &[u8] = b"identity";
/// Key of the catalog sequence.
pub const CATALOG_SEQUENCE: &[u8] = b"catalog-sequence";
/// Key of the [`Totals`].
pub const TOTALS: &[u8] = b"totals";
/// Key of what says that all tags are in their families.
pub const TAGS_INDEXED: &[u8] = b"tags-indexed";

/// First byte of every value but ids and [`Totals`].
const VERSION: u8 = 1;
/// First byte of [`Totals`] with volumes.
const TOTALS_VERSION: u8 = 2;
/// First byte of [`Totals`] of more logical bytes than 64 bits hold.
const TOTALS_VERSION_WIDE: u8 = 3;

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

/// How much of a pack is in the index.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackState {
    /// Which pack.
    pub pack: PackId,
    /// All records before this offset are synced and in the index. Recovery looks at what is behind.
    pub indexed_bytes: u64,
    /// It has a footer: nothing is behind.
    pub sealed: bool,
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
    /// | 0 | 1 | version: 1 |
    /// | 1 | 1 | kind: 1 chunks, 2 nodes |
    /// | 2 | 1 | 1 sealed, 0 not |
    /// | 3 | 1 | zero |
    /// | 4 | 8 | indexed up to |
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        FieldsMut::new(&mut bytes)
            .u8(VERSION)
            .u8(self.pack.kind.to_byte())
            .u8(u8::from(self.sealed))
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
        expect_version(&mut fields)?;
        let kind = PackKind::from_byte(fields.u8()?)?;
        let sealed = match fields.u8()? {
            0 => false,
            1 => true,
            other => {
                return Err(FormatError::differs(
                    "state of a pack",
                    "0 or 1 (sealed)",
                    other,
                ));
            }
        };
        fields.reserved(1)?;
        let indexed_bytes = fields.u64()?;
        fields.end()?;
        Ok(Self {
            pack: PackId { kind, number },
            indexed_bytes,
            sealed,
        })
    }
}

/// What an index holds, all together: always the exact sum over its entries.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Chunks.
    pub chunks: u64,
    /// Plain bytes of the chunks.
    pub chunk_bytes: u64,
    /// Nodes and roots.
    pub nodes: u64,
    /// Bytes that the records of chunks and nodes take in packs. Padding, headers and footers of packs come on top.
    pub stored_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Sizes of the snapshots: a million of the largest are more than 64 bits hold.
    pub logical_bytes: u128,
    /// Volumes.
    pub volumes: u64,
}

impl Totals {
    /// As a value: the version, then all fields in the order above, 8 bytes each.
    ///
    /// Version 1 ends before the volumes, and is that of an index without any; version 2 has some. In version 3 the sizes of the
    /// snapshots take 16 bytes, because they need them, and volumes follow, any number.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let narrow = u64::try_from(self.logical_bytes);
        let version = match (narrow, self.volumes) {
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
            Ok(narrow) => bytes.extend_from_slice(&narrow.to_le_bytes()),
            Err(_) => bytes.extend_from_slice(&self.logical_bytes.to_le_bytes()),
        }
        if version != VERSION {
            bytes.extend_from_slice(&self.volumes.to_le_bytes());
        }
        bytes
    }

    /// From a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("totals", bytes);
        let version = fields.u8()?;
        if !matches!(version, VERSION | TOTALS_VERSION | TOTALS_VERSION_WIDE) {
            return Err(FormatError::unknown(
                "version of totals",
                format_args!("{VERSION} to {TOTALS_VERSION_WIDE}"),
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
            logical_bytes: 0,
            volumes: 0,
        };
        totals.logical_bytes = match version {
            TOTALS_VERSION_WIDE => u128::from_le_bytes(fields.array()?),
            _ => fields.u64()?.into(),
        };
        if version != VERSION {
            totals.volumes = fields.u64()?;
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

/// Whose index this is: one of another store would send reads to wrong places.
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

/// The snapshot or volume that a name belongs to, from a value.
pub fn decode_named<K: IdKind>(bytes: &[u8]) -> Result<RecordId<K>, FormatError> {
    RecordId::decode(bytes)
}

/// What the keys of all records with a tag begin with; their names follow. Neither a tag's key nor its value has a 0 in it.
#[must_use]
pub fn tag_prefix(key: &str, value: &str) -> Vec<u8> {
    [key.as_bytes(), &[0], value.as_bytes(), &[0]].concat()
}
