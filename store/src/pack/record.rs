//! Records on their way into a pack.

use bytes::Bytes;
use varve_content::{ChunkId, NodeId, RootId, chunker::End, codec::Codec};

use crate::format::{
    Location,
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
    /// The chunk's or node's id; the payload's kind tells which.
    pub id: [u8; 32],
    /// Where it is.
    pub location: Location,
}

impl EncodedRecord {
    /// A chunk, packed.
    ///
    /// # Panics
    ///
    /// Like all of these constructors, if the payload exceeds the limit.
    #[must_use]
    pub fn chunk(id: ChunkId, codec: Codec, end: End, plain_bytes: u32, stored: &[u8]) -> Self {
        let payload = Payload {
            kind: RecordKind::Chunk,
            codec,
            end_open: end == End::Open,
            plain_bytes,
            stored_bytes: checked_len(stored),
        };
        Self::new(payload, *id.as_bytes(), stored)
    }

    /// A leaf's encoding.
    #[must_use]
    pub fn leaf(id: NodeId, encoded: &[u8]) -> Self {
        Self::node(RecordKind::Leaf, *id.as_bytes(), encoded)
    }

    /// An inner node's encoding.
    #[must_use]
    pub fn inner(id: NodeId, encoded: &[u8]) -> Self {
        Self::node(RecordKind::Inner, *id.as_bytes(), encoded)
    }

    /// A root's encoding.
    #[must_use]
    pub fn root(id: RootId, encoded: &[u8]) -> Self {
        Self::node(RecordKind::Root, *id.as_bytes(), encoded)
    }

    fn node(kind: RecordKind, id: [u8; 32], encoded: &[u8]) -> Self {
        let len = checked_len(encoded);
        let payload = Payload {
            kind,
            codec: Codec::Raw,
            end_open: false,
            plain_bytes: len,
            stored_bytes: len,
        };
        Self::new(payload, id, encoded)
    }

    fn new(payload: Payload, id: [u8; 32], stored: &[u8]) -> Self {
        Self {
            header: RecordHeader::new(payload, id, stored),
            stored: Bytes::copy_from_slice(stored),
        }
    }

    /// The chunk's or node's id.
    #[must_use]
    pub const fn id(&self) -> &[u8; 32] {
        &self.header.id
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

    pub(super) const fn stored(&self) -> &Bytes {
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
