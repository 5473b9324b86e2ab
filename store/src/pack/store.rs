//! Where packs are read from.

use std::{fmt, path::PathBuf};

use crate::{
    format::{PackId, StoreId},
    io::{AlignedBuf, Completion},
};

/// Packs as readers see them: objects with a number, of which ranges are read. It asks for nothing
/// that a plain S3 server cannot do.
///
/// A pack that is not there is [`io::ErrorKind::NotFound`](std::io::ErrorKind::NotFound), of any
/// method: its records may be in another pack by now.
pub trait PackStore: Send + Sync + fmt::Debug {
    /// The store whose packs these are.
    fn store_id(&self) -> StoreId;

    /// The pack as a path, for messages.
    fn path(&self, pack: PackId) -> PathBuf;

    /// How long a pack is, in bytes.
    fn len_bytes(&self, pack: PackId) -> Completion<u64>;

    /// Reads exactly `len` bytes of a pack, sealed or not. Where it ends before:
    /// [`io::ErrorKind::UnexpectedEof`](std::io::ErrorKind::UnexpectedEof).
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

    /// Deletes a pack, and lets go of what is open of it: its space is free when the reads that are
    /// under way have ended.
    fn delete(&self, pack: PackId) -> Completion<()>;
}
