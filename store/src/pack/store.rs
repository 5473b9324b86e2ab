//! Where packs live.

use std::{fmt, io, path::PathBuf, sync::Arc};

use crate::{
    Result,
    format::{PackId, PackKind, StoreId},
    io::{AlignedBuf, Completion, Disk, File},
};

/// A place that keeps packs: today a directory ([`PackSet`](super::PackSet)). A store of objects would read ranges from
/// there, and have its packs written on a local disk until they are sealed.
pub trait PackHome: Send + Sync + fmt::Debug {
    /// Whose packs these are.
    fn store(&self) -> StoreId;

    /// All packs, sealed or not, by their numbers.
    fn list(&self) -> Result<Vec<PackId>>;

    /// A number for a new pack, above all that were ever used.
    fn reserve(&self, kind: PackKind) -> PackId;

    /// Tells that numbers up to this one were used, by packs that may be gone.
    fn keep_numbers_above(&self, number: u64);

    /// A pack that has grown to this is not added to.
    fn pack_bytes_max(&self) -> u64;

    /// The pack as a file, for messages.
    fn path(&self, pack: PackId) -> PathBuf;

    /// The directory that packs are in, for messages.
    fn dir(&self) -> PathBuf;

    /// The disk on which packs are written.
    fn disk(&self) -> &Arc<dyn Disk>;

    /// Makes a new pack, empty, for aligned writes past the page cache.
    fn create(&self, pack: PackId) -> Result<File>;

    /// Opens a pack that is not sealed, to go on with aligned writes.
    fn reopen(&self, pack: PackId) -> Result<File>;

    /// Opens a pack that is not sealed, to mend its end with writes of any length.
    fn open_to_mend(&self, pack: PackId) -> Result<File>;

    /// Removes a pack.
    fn remove(&self, pack: PackId) -> Result<()>;

    /// Makes durable which packs there are.
    fn sync_names(&self) -> Completion<()>;

    /// How long a pack is.
    fn len_bytes(&self, pack: PackId) -> io::Result<u64>;

    /// Reads from a pack, sealed or not. Past its end: [`io::ErrorKind::UnexpectedEof`].
    fn read(&self, pack: PackId, offset_bytes: u64, len: usize) -> Completion<AlignedBuf>;

    /// Reads what the disk has, past the page cache where the file system can do that, up to the end of the pack. Begins and
    /// ends at multiples of [`BUFFER_ALIGN`](crate::io::BUFFER_ALIGN).
    fn read_past_cache(
        &self,
        pack: PackId,
        offset_bytes: u64,
        len: usize,
    ) -> Completion<AlignedBuf>;
}
