//! Records on their way into a pack.

use bytes::Bytes;
use varve_content::{chunker::End, codec::Codec};

use super::StoredRecord;
use crate::format::{
    Location, Name,
    pack::{PAYLOAD_BYTES_MAX, Payload, RecordHeader, RecordKind},
};

/// A record before it has a place. The payload's checksum is computed when it is made, by the
/// caller's thread and outside of any lock.
#[derive(Debug, Clone)]
pub struct EncodedRecord {
    header: RecordHeader,
    stored: Bytes,
}

/// A record and its place.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct PlacedRecord {
    /// Its name.
    pub name: Name,
    /// Its place.
    pub location: Location,
}

impl EncodedRecord {
    /// A chunk, packed.
    ///
    /// # Panics
    ///
    /// Like all of these constructors, if the payload exceeds the limit.
    #[must_use]
    pub fn chunk(name: Name, codec: Codec, end: End, plain_bytes: u32, stored: &[u8]) -> Self {
        debug_assert_eq!(
            name.kind(),
            RecordKind::Chunk,
            "a node has no codec and no end"
        );
        let payload = Payload {
            kind: name.kind(),
            codec,
            end_open: end == End::Open,
            plain_bytes,
            stored_bytes: checked_len(stored),
        };
        Self::new(payload, name, stored)
    }

    /// The encoding of a leaf, an inner node or a root.
    ///
    /// # Panics
    ///
    /// As [`chunk`](Self::chunk) does.
    #[must_use]
    pub fn node(name: Name, encoded: &[u8]) -> Self {
        let len = checked_len(encoded);
        let payload = Payload {
            kind: name.kind(),
            codec: Codec::Raw,
            end_open: false,
            plain_bytes: len,
            stored_bytes: len,
        };
        Self::new(payload, name, encoded)
    }

    fn new(payload: Payload, name: Name, stored: &[u8]) -> Self {
        Self {
            header: RecordHeader::new(payload, *name.as_bytes(), stored),
            stored: Bytes::copy_from_slice(stored),
        }
    }

    /// A record that was read from a pack, as it is there.
    pub(crate) fn stored(record: &StoredRecord) -> Self {
        Self {
            header: *record.header(),
            stored: record.payload().clone(),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> Name {
        self.header.name()
    }

    /// The description of the payload.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.header.payload
    }

    /// Bytes it takes in a pack.
    #[must_use]
    pub const fn record_bytes(&self) -> u64 {
        self.header.payload.record_bytes()
    }

    pub(super) const fn header(&self) -> &RecordHeader {
        &self.header
    }

    pub(super) const fn payload_bytes(&self) -> &Bytes {
        &self.stored
    }
}

fn checked_len(stored: &[u8]) -> u32 {
    match u32::try_from(stored.len()) {
        Ok(len) if len <= PAYLOAD_BYTES_MAX => len,
        _ => panic!(
            "a payload has at most {PAYLOAD_BYTES_MAX} bytes, not {}",
            stored.len()
        ),
    }
}
