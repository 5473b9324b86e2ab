//! The description of an upload by its sender, and the answers to the sender.

use std::collections::BTreeMap;

use bytes::Bytes;
use varve_content::{ChunkId, chunker::CHUNKER_VERSION, codec::Codec};

use crate::{
    Error, Result, limits,
    meta::{self, AccountId, SnapshotId, SnapshotOrigin},
};

/// A snapshot to be made.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// The account that it will belong to.
    pub owner: AccountId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The version of the sender's chunker.
    pub chunker_version: u32,
    /// Its origin, if it was a snapshot in another store before. `None`: it is made now.
    pub lineage: Option<Lineage>,
}

/// The origin of a snapshot of another store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The instant whose content it has, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// The volume it was made of.
    pub origin: Option<SnapshotOrigin>,
    /// The snapshot before it.
    pub parent: Option<SnapshotId>,
}

/// A chunk from outside, not checked yet.
#[derive(Debug, Clone)]
pub struct IncomingChunk {
    /// Its claimed id.
    pub id: ChunkId,
    /// The compression of the payload.
    pub codec: Codec,
    /// Its plain length, in bytes.
    pub plain_bytes: u32,
    /// The packed bytes.
    pub payload: Bytes,
}

/// The outcome of storing some chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOutcome {
    /// Chunks that were accepted.
    pub chunks: u64,
    /// Plain bytes of those that the store did not have.
    pub new_bytes: u64,
}

impl NewSnapshot {
    /// Checks it as far as possible without looking into the store.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`].
    pub(super) fn check(&self) -> Result<()> {
        meta::check_name("snapshot", &self.name)?;
        meta::check_tags("snapshot", &self.tags)?;
        if self.size_bytes == 0 {
            return Err(Error::Invalid(
                "a snapshot of 0 bytes cannot be made".to_owned(),
            ));
        }
        if self.size_bytes > limits::VOLUME_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a snapshot has at most {} bytes, this one would have {}",
                limits::VOLUME_BYTES_MAX,
                self.size_bytes
            )));
        }
        if self.chunker_version != CHUNKER_VERSION {
            return Err(Error::Invalid(format!(
                "this store cuts with chunker version {CHUNKER_VERSION}, the sender with {}: they \
                would share no chunks",
                self.chunker_version
            )));
        }
        match self.lineage.as_ref().and_then(|it| it.origin.as_ref()) {
            Some(origin) => meta::check_name("volume", &origin.name),
            None => Ok(()),
        }
    }
}
