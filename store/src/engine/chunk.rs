//! Chunks on their way out, and the check that they pass.

use std::fmt;

use bytes::Bytes;
use varve_content::{ChunkId, codec::Codec};

use crate::{
    Damage,
    engine::Scratch,
    format::{Location, Name},
};

/// A chunk whose bytes have been checked against its id. No other constructor exists.
#[derive(Clone)]
pub struct VerifiedChunk {
    id: ChunkId,
    plain: Bytes,
}

impl VerifiedChunk {
    fn check(id: ChunkId, plain: Bytes) -> std::result::Result<Self, String> {
        let found = ChunkId::of(&plain);
        if found != id {
            return Err(format!("its bytes have id {found}"));
        }
        Ok(Self { id, plain })
    }

    /// The same chunk, holding no more memory than its own bytes: a chunk that is stored plain is a
    /// slice of the read.
    pub(crate) fn detached(self) -> Self {
        if self.plain.is_unique() {
            return self;
        }
        Self {
            id: self.id,
            plain: Bytes::copy_from_slice(&self.plain),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// Its bytes.
    #[must_use]
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }
}

impl fmt::Debug for VerifiedChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedChunk({}, {} bytes)", self.id, self.plain.len())
    }
}

/// A chunk as it is in its pack. Only the checksum of the packed bytes was checked: its receiver
/// unpacks it, and checks the id.
#[derive(Debug, Clone)]
pub struct StoredChunk {
    /// Its id.
    pub id: ChunkId,
    /// The compression of the payload.
    pub codec: Codec,
    /// Its plain length.
    pub plain_bytes: u32,
    /// The packed bytes.
    pub payload: Bytes,
}

/// A chunk, or its error, with the position of its first entry.
pub(crate) type CheckedChunk = (usize, std::result::Result<VerifiedChunk, Damage>);

/// Unpacks one chunk and checks its id.
pub(crate) fn open_chunk(
    scratch: &mut Scratch,
    id: ChunkId,
    place: Location,
    payload: &Bytes,
) -> std::result::Result<VerifiedChunk, Damage> {
    let damage = |problem: &dyn fmt::Display| {
        Damage::in_pack(place.pack, place.offset_bytes, Name::chunk(id), problem)
    };
    let plain = if place.payload.codec == Codec::Raw {
        payload.clone()
    } else {
        let mut plain = Vec::new();
        scratch
            .decoder
            .decode(
                place.payload.codec,
                payload,
                place.payload.plain_bytes as usize,
                &mut plain,
            )
            .map_err(|error| damage(&error))?;
        Bytes::from(plain)
    };
    VerifiedChunk::check(id, plain).map_err(|problem| damage(&problem))
}
