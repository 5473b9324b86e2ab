//! A snapshot's record, as the catalog log and the catalog keep it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use varve_content::RootId;

use super::{FormatError, fields::Fields};

/// The version of [`SnapshotRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

/// Tells a snapshot from every other that ever was: 68 random bits, shown as `snap-` and 17 hexadecimal digits.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId([u8; 9]);

impl SnapshotId {
    /// Bytes of an id.
    pub const BYTES: usize = 9;
    const PREFIX: &str = "snap-";
    const DIGITS: usize = 17;

    /// The id with the last 68 bits of these bytes.
    #[must_use]
    pub const fn from_low_bits(mut bytes: [u8; Self::BYTES]) -> Self {
        bytes[0] &= 0x0f;
        Self(bytes)
    }

    /// Its bytes; the first four bits are zero.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Whether a text looks like an id, in upper or lower case: no snapshot may have such a name.
    #[must_use]
    pub fn is_of_its_form(text: &str) -> bool {
        Self::digits(&text.to_ascii_lowercase()).is_some()
    }

    pub(super) fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let bytes = fields.array()?;
        let id = Self::from_low_bits(bytes);
        if id.0 != bytes {
            return Err(FormatError::differs(
                "id of a snapshot",
                "68 bits",
                format_args!("{bytes:02x?}"),
            ));
        }
        Ok(id)
    }

    /// The id in bytes that hold nothing else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("id of a snapshot", bytes);
        let id = Self::decode_from(&mut fields)?;
        fields.end()?;
        Ok(id)
    }

    fn digits(text: &str) -> Option<&str> {
        let digits = text.strip_prefix(Self::PREFIX)?;
        let hexadecimal = digits
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        (digits.len() == Self::DIGITS && hexadecimal).then_some(digits)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{}{first:x}", Self::PREFIX)?;
        rest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SnapshotId {
    type Err = FormatError;

    /// Only what `Display` writes.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let number = Self::digits(text).and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let Some(number) = number else {
            return Err(FormatError::differs(
                "id of a snapshot",
                "\"snap-\" and 17 lower-case hexadecimal digits",
                format_args!("{text:?}"),
            ));
        };
        let [.., a, b, c, d, e, f, g, h, i] = number.to_be_bytes();
        Ok(Self([a, b, c, d, e, f, g, h, i]))
    }
}

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
        put_count(&mut bytes, self.tags.len());
        for (key, value) in &self.tags {
            put_text(&mut bytes, key);
            put_text(&mut bytes, value);
        }
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
        let mut record = Self {
            id: SnapshotId::decode_from(&mut fields)?,
            size_bytes: fields.u64()?,
            data_bytes: fields.u64()?,
            root: RootId::from_bytes(fields.array()?),
            created_at_ns: fields.u64()?,
            new_bytes: fields.u64()?,
            stored_bytes: fields.u64()?,
            name: text(&mut fields)?,
            tags: BTreeMap::new(),
        };
        for _ in 0..fields.u32()? {
            let key = text(&mut fields)?;
            if let Some((last, _)) = record.tags.last_key_value()
                && *last >= key
            {
                return Err(FormatError::differs(
                    "tags of a snapshot",
                    format_args!("a key behind {last:?}"),
                    format_args!("{key:?}"),
                ));
            }
            record.tags.insert(key, text(&mut fields)?);
        }
        fields.end()?;
        Ok(record)
    }
}

/// # Panics
///
/// At 4 GiB, which names and tags are held far below.
fn put_count(bytes: &mut Vec<u8>, count: usize) {
    assert!(
        u32::try_from(count).is_ok(),
        "a count of a record fits its field: {count}"
    );
    #[expect(clippy::cast_possible_truncation, reason = "asserted just above")]
    bytes.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_count(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn text(fields: &mut Fields<'_>) -> Result<String, FormatError> {
    let len = fields.u32()?;
    let bytes = fields.bytes(len as usize)?;
    str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|error| FormatError::differs("text in a snapshot's record", "UTF-8", error))
}
