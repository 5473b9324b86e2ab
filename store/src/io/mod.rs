//! The only access to packs and the catalog log: every read, write and sync of theirs goes through
//! a [`Disk`].
//!
//! (RocksDB has its own IO.) There are three disks: [`choose`] returns io_uring, or a pool of
//! threads if the kernel refuses that; [`sim::SimDisk`] keeps files in memory, and can lose power
//! or the process at any moment.
//!
//! # Guarantees of a disk
//!
//! The store relies on nothing else, and the simulated disk guarantees nothing else:
//!
//! - A write is durable once a [`sync_data`](Disk::sync_data) of the same file, begun after the
//!   write's completion, has succeeded. So is the file's length by then, and so is a
//!   [`set_len`](Disk::set_len).
//! - A name (a file that was created, linked, renamed or removed) is durable once a
//!   [`sync_dir`](Disk::sync_dir) of its directory, begun after that, has succeeded. A file's own
//!   sync says nothing about its name.
//! - Until then a crash may keep any part of it: of two writes the later one alone, of one write
//!   any of its 4 KiB pages, of a page any of its 512-byte sectors; the longer length without the
//!   bytes, which then read as zeros.
//! - A write does not change bytes outside its range. Durable bytes stay as they are until they are
//!   written again.
//! - After a failed sync, all writes since the previous sync are in doubt for good: a later sync
//!   that succeeds does not bring it back (the kernel forgets such pages). Callers stop writing.
//! - Writes under way at the same time are in no order.
//! - When the process is killed and the machine continues, every completed operation is there, for
//!   the next process to see and to sync. A request that was under way has happened by then,
//!   completely or for some of its 4 KiB pages, or never will.
//! - Reads and writes wait for the end of a [shortage](is_shortage). Any other operation that fails
//!   for a shortage has done nothing, and can be retried: an open, a name, a length, and the sync
//!   of a directory, which opens it first. A sync that has begun never fails for a shortage:
//!   whatever the reason, it is a failed sync.

pub mod sim;

mod blocking;
mod buffer;
mod completion;
mod file;
mod offload;
mod os_disk;
mod queue;
mod request;
mod shortage;
mod uring;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, fmt, io, path::Path, str::FromStr, sync::Arc};

pub use buffer::{AlignedBuf, BUFFER_ALIGN, BufferPool};
pub use completion::Completion;
pub use file::File;
pub(crate) use offload::{RuntimeEnded, offload};
pub(crate) use shortage::MayBeShortage;
pub use shortage::{Patience, is_shortage};

use bytes::Bytes;

use crate::limits;

/// The most parts of one write: the limit of Linux for one system call.
pub const PARTS_MAX: usize = 1024;

/// The mode in which a file is opened.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum OpenMode {
    /// To read an existing file, in no order: the page cache does not read ahead.
    Read,
    /// To read and write an existing file.
    ReadWrite,
    /// To read and write a new file, which must not exist yet.
    CreateNew,
}

/// A file system, real or simulated. The [module](self) lists its guarantees.
///
/// A method that returns a [`Completion`] begins its request at once, unless the queue is full:
/// then the request begins when the completion is polled and its turn comes. Once begun, it
/// continues even if the completion is dropped, and owns its buffer until its end. The other
/// methods make their system calls on the spot. Most are short; tasks hand
/// [`allocate`](Self::allocate), [`list`](Self::list) and [`remove`](Self::remove) to a thread that
/// may wait.
pub trait Disk: Send + Sync + fmt::Debug {
    /// "io_uring", "blocking" or "simulated".
    fn name(&self) -> &'static str;

    /// The time that callers retry operations after a [shortage](is_shortage).
    fn patience(&self) -> &Patience;

    /// Opens a file through the page cache.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<File>;

    /// Opens a file past the page cache where the file system can do that, and like
    /// [`open`](Self::open) otherwise. In both cases, reads and writes have to begin and end at
    /// multiples of [`BUFFER_ALIGN`]. The end of a file that ends elsewhere can be read
    /// [up to](Self::read_up_to).
    fn open_direct(&self, path: &Path, mode: OpenMode) -> io::Result<File>;

    /// Reads exactly `len` bytes. Fails with [`io::ErrorKind::UnexpectedEof`] if the file ends
    /// before.
    fn read(&self, file: &File, offset_bytes: u64, len: usize) -> Completion<AlignedBuf>;

    /// Reads `len` bytes, or up to the end of the file.
    fn read_up_to(&self, file: &File, offset_bytes: u64, len: usize) -> Completion<AlignedBuf>;

    /// Writes all of `buf`, and returns it for reuse.
    fn write(&self, file: &File, offset_bytes: u64, buf: AlignedBuf) -> Completion<AlignedBuf>;

    /// Writes up to [`PARTS_MAX`] parts, one behind the other, as one write. For a file that was
    /// opened for direct access, the address and the length of each part have to be multiples of
    /// [`BUFFER_ALIGN`].
    fn write_parts(&self, file: &File, offset_bytes: u64, parts: Vec<Bytes>) -> Completion<()>;

    /// Writes parts one behind the other, into the page cache, on the spot: for a few bytes this
    /// costs less than a request. Not for files that were opened for direct access.
    fn write_at_once(&self, file: &File, offset_bytes: u64, parts: &[Bytes]) -> io::Result<()>;

    /// Drops the written pages of a file from the page cache: the next read comes from the disk.
    fn forget_cached(&self, file: &File);

    /// Announces that a range will be read soon.
    fn will_need(&self, file: &File, offset_bytes: u64, len: usize);

    /// Reads exactly `len` bytes if they are in memory, without waiting. Returns `None` if the
    /// bytes are not cached; that is not an error.
    fn read_at_once(&self, file: &File, offset_bytes: u64, len: usize) -> Option<AlignedBuf>;

    /// Makes all completed writes to the file, and its length, durable.
    fn sync_data(&self, file: &File) -> Completion<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Completion<()>;

    /// The file's length, in bytes.
    fn len(&self, file: &File) -> io::Result<u64>;

    /// Truncates the file, or extends it with zeros.
    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()>;

    /// Extends a file to this length with zeros, and allocates its space if the file system can do
    /// that: later writes within do not fail for a full disk.
    fn allocate(&self, file: &File, len_bytes: u64) -> io::Result<()>;

    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames a file. Replaces an existing file of the new name atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives an existing file another name in the same directory. The name must not exist yet.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Creates a directory.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Free bytes on the file system of `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// The IO engine to use.
#[derive(Debug, Copy, Clone, PartialEq, Eq, Default)]
pub enum IoEngine {
    /// io_uring, or threads if the kernel refuses it.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// Threads.
    Blocking,
}

impl fmt::Display for IoEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Blocking => "blocking",
        })
    }
}

/// The error for a text that is not the name of an [`IoEngine`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IO engine: use auto, io_uring or blocking")]
pub struct UnknownEngine(String);

impl FromStr for IoEngine {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        [Self::Auto, Self::IoUring, Self::Blocking]
            .into_iter()
            .find(|engine| engine.to_string() == text)
            .ok_or_else(|| UnknownEngine(text.to_owned()))
    }
}

/// Returns the requested disk, or the next best one; the log has the reason.
pub fn choose(engine: IoEngine) -> io::Result<Arc<dyn Disk>> {
    if engine != IoEngine::Blocking {
        match uring::start(limits::DISK_QUEUE_DEPTH) {
            Ok(disk) => return Ok(Arc::new(disk)),
            Err(error) if engine == IoEngine::IoUring => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the kernel refuses io_uring: threads read and write files")
            }
        }
    }
    let disk = blocking::start(limits::DISK_THREADS, limits::DISK_QUEUE_DEPTH)?;
    Ok(Arc::new(disk))
}
