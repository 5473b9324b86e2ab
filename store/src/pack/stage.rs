//! The place where packs are written until they are sealed.

use std::{fmt, path::PathBuf, sync::Arc};

use crate::{
    Result,
    format::{PackId, PackKind, StoreId},
    io::{Completion, Disk, File},
};

/// Packs that are being written: always files of a local disk, wherever later reads go.
pub trait PackStage: Send + Sync + fmt::Debug {
    /// The store whose packs these are.
    fn store_id(&self) -> StoreId;

    /// Reserves a number for a new pack, above all that were ever used.
    fn reserve(&self, kind: PackKind) -> PackId;

    /// The number that the next pack gets at least.
    fn next_number(&self) -> u64;

    /// The length in bytes at which a pack is sealed.
    fn pack_bytes_max(&self) -> u64;

    /// The pack's file, for messages.
    fn path(&self, pack: PackId) -> PathBuf;

    /// The directory that packs are in, for messages.
    fn dir(&self) -> PathBuf;

    /// The disk on which packs are written.
    fn disk(&self) -> &Arc<dyn Disk>;

    /// Creates a pack, empty, for aligned writes past the page cache.
    ///
    /// # Errors
    ///
    /// The errors of creating a file.
    fn create(&self, pack: PackId) -> Result<File>;

    /// Opens an unsealed pack, to continue with aligned writes.
    ///
    /// # Errors
    ///
    /// The errors of opening a file.
    fn reopen(&self, pack: PackId) -> Result<File>;

    /// Opens an unsealed pack, to repair its end with writes of any length.
    ///
    /// # Errors
    ///
    /// The errors of opening a file.
    fn open_to_mend(&self, pack: PackId) -> Result<File>;

    /// Removes a pack without promised records.
    ///
    /// # Errors
    ///
    /// The errors of removing a file.
    fn remove(&self, pack: PackId) -> Result<()>;

    /// Makes the names of all packs durable.
    fn sync_names(&self) -> Completion<()>;
}
