//! Archives: files with a snapshot or a difference, for stores without a network link.
//!
//! ```text
//! daemon -> write: leaves, each followed by those of its chunks that are new, checked -> file
//! file -> read: order, places, root, digest ─┬─> import: missing chunks, to a daemon
//!                                            └─> verify: each chunk against its id
//! ```
//!
//! The format is that of `varve/v1/archive.proto`. Invariants: an archive is complete only with its
//! end, which has a digest of everything before it; an import succeeds only if the leaves give the
//! root in the head. Memory is bounded; see `limits`.

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
    import::{ArchiveImport, ArchiveImportReport},
    verify::{ArchiveVerify, verify_archive},
    write::{ArchiveExport, ArchiveExportReport},
};
use crate::{
    error::Result,
    limits::{ARCHIVE_CHUNKS_MAX, CONTENT_MESSAGE_BYTES_MAX},
    snapshots::Snapshot,
    unpack::Unpacker,
};

/// The first bytes of an archive.
const MAGIC: [u8; 16] = *b"varve archive 1\n";
/// Bytes of a record's length.
const LENGTH_BYTES: usize = 4;
/// The longest record.
const RECORD_BYTES_MAX: usize = CONTENT_MESSAGE_BYTES_MAX;
/// Payload of one batch of chunks, unless it is of one chunk.
const BATCH_PAYLOAD_BYTES: usize = 1 << 20;

/// The contents of an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ArchiveFacts {
    /// The snapshot, as recorded in the store that the archive was written from.
    pub snapshot: Snapshot,
    /// The snapshot that a store must have to import the archive. `None`: the archive is complete
    /// in itself.
    pub base: Option<Snapshot>,
    /// Chunks in the archive.
    pub chunks: u64,
    /// Payload of those chunks, in bytes.
    pub payload_bytes: u64,
    /// Length of the archive, in bytes.
    pub archive_bytes: u64,
}

/// Returns true if a file with this beginning is an archive. 16 bytes are enough.
#[must_use]
pub fn is_archive(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Reads the head of an archive, unverified: only [`verify_archive`] checks it. The head does not
/// have the numbers of chunks and bytes; they are 0. Blocks. Errors call the archive `name`.
///
/// # Errors
///
/// [`ErrorKind::File`](crate::ErrorKind::File) if it is not an archive, or cannot be read;
/// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) if the head is damaged.
pub fn archive_head(from: impl Read, name: &str) -> Result<ArchiveFacts> {
    Ok(read::Reader::open(from, name)?.facts().clone())
}

/// Checks chunks, which follow the leaf at that place of an archive, against their ids.
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

/// A set of chunk ids, with a limit on their number.
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

    /// Adds an id, if there is room. Returns true if the set does not have it.
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
