//! Snapshots as files that hold all there is to them: for places with no link between them.
//!
//! ```text
//! daemon -> write: leaves, then those of their chunks that are new, each checked against its id -> file
//! file -> read: order, places, root, digest -> import: what is missing, to a daemon
//!                                          └-> verify: each chunk against its id
//! ```
//!
//! The format is that of `varve/v1/archive.proto`. What must hold: an archive is complete only with its end, which has a digest of all before
//! it; a snapshot is made of one only if its root is what the leaves come to. Memory is bounded; see `limits`.

mod import;
mod read;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use std::{collections::HashSet, io::Read};

use varve_content::chunk_id::ChunkId;
use varve_proto::v1;

pub use self::{
    import::{ArchiveRead, RestoreReport},
    verify::verify_archive,
    write::{ArchiveReport, ArchiveWrite},
};
use crate::{
    error::Result,
    limits::{ARCHIVE_CHUNKS_MAX, CONTENT_MESSAGE_BYTES_MAX},
    snapshots::Snapshot,
    unpack::Unpacker,
};

/// How an archive begins.
const MAGIC: [u8; 16] = *b"varve archive 1\n";
/// Bytes of a record's length.
const LENGTH_BYTES: usize = 4;
/// The longest record.
const RECORD_BYTES_MAX: usize = CONTENT_MESSAGE_BYTES_MAX;
/// Payload of one batch of chunks, unless it is of one chunk.
const BATCH_PAYLOAD_BYTES: usize = 1 << 20;

/// What an archive is of.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ArchiveFacts {
    /// The snapshot, as the store had it that it was written from.
    pub snapshot: Snapshot,
    /// The snapshot that a store must have to read it; `None`: it holds everything.
    pub base: Option<Snapshot>,
    /// Chunks in it.
    pub chunks: u64,
    /// Their payload.
    pub payload_bytes: u64,
    /// Its length.
    pub archive_bytes: u64,
}

/// Whether a file that begins so is meant to be an archive; 16 bytes are enough to tell.
pub fn is_archive(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// What an archive is of, by its head; whether that is true only its end tells. Errors call it `name`. Blocks.
pub fn archive_head(from: impl Read, name: &str) -> Result<ArchiveFacts> {
    Ok(read::Reader::open(from, name)?.facts().clone())
}

/// That chunks, which are behind the leaf at that place of an archive, have the ids that they should have.
fn check_chunks(
    name: &str,
    offset_bytes: u64,
    ids: &[ChunkId],
    chunks: &[v1::Chunk],
) -> Result<()> {
    let mut unpacker = Unpacker::default();
    for (id, chunk) in ids.iter().zip(chunks) {
        let unpacked = unpacker.unpack_message(*id, chunk);
        unpacked.map_err(|why| {
            let why = format!("chunk {id} behind it: {why}");
            read::damaged(name, offset_bytes, why)
        })?;
    }
    Ok(())
}

/// Ids of chunks, as many as there is room for.
#[derive(Debug)]
struct Seen {
    ids: HashSet<ChunkId>,
    most: usize,
}

impl Seen {
    fn new() -> Self {
        Self::with_room(ARCHIVE_CHUNKS_MAX)
    }

    fn with_room(most: usize) -> Self {
        Self {
            ids: HashSet::new(),
            most,
        }
    }

    /// Takes an id in. Whether it is new, or cannot be told to be old.
    fn is_new(&mut self, id: ChunkId) -> bool {
        if self.is_full() {
            !self.ids.contains(&id)
        } else {
            self.ids.insert(id)
        }
    }

    fn is_full(&self) -> bool {
        self.ids.len() >= self.most
    }
}
