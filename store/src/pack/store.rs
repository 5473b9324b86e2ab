//! The source of reads from packs.

use std::{fmt, path::PathBuf};

use crate::{
    format::{PackId, StoreId},
    io::{AlignedBuf, Completion},
};

/// Packs as readers see them: numbered objects with reads of ranges. It needs nothing that a plain
/// S3 server cannot do.
///
/// Every method fails with [`io::ErrorKind::NotFound`](std::io::ErrorKind::NotFound) if the pack
/// does not exist: its records may be in another pack by now.
pub trait PackStore: Send + Sync + fmt::Debug {
    /// The store whose packs these are.
    fn store_id(&self) -> StoreId;

    /// The pack as a path, for messages.
    fn path(&self, pack: PackId) -> PathBuf;

    /// The length of a pack, in bytes.
    fn len_bytes(&self, pack: PackId) -> Completion<u64>;

    /// Reads exactly `len` bytes of a pack, sealed or not. Fails with
    /// [`io::ErrorKind::UnexpectedEof`](std::io::ErrorKind::UnexpectedEof) if it ends before.
    fn read(&self, pack: PackId, offset_bytes: u64, len: usize) -> Completion<AlignedBuf>;

    /// Reads up to `len` bytes as they are kept, past the page cache where the file system can do
    /// that, up to the end of the pack. Begins and ends at multiples of
    /// [`BUFFER_ALIGN`](crate::io::BUFFER_ALIGN).
    fn read_past_cache(
        &self,
        pack: PackId,
        offset_bytes: u64,
        len: usize,
    ) -> Completion<AlignedBuf>;

    /// Deletes a pack, and closes its files: its space is free when the reads under way have ended.
    fn delete(&self, pack: PackId) -> Completion<()>;
}
