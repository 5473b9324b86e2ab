//! Journals: the writes to volumes that are not in the store yet.
//!
//! This folder knows no volume. It writes batches of changed blocks to files, makes them durable,
//! and reads the files of an earlier process. The layer above gives it a directory
//! ([`JournalDir`]), an interface to the rest of the store ([`Host`]), and keeps the map of blocks
//! ([`Replay`]).
//!
//! | file | content |
//! | --- | --- |
//! | `journal` | an open journal: its files, its epochs, and the places of its blocks |
//! | `append` | appending a batch, and undoing a failed one |
//! | `sync` | making written batches durable |
//! | `batch` | changes collected into one write |
//! | `encode` | a batch as bytes |
//! | `slot` | addresses of blocks |
//! | `dir` | the directory of a journal, and the creation of files in it |
//! | `owner_file` | the record beside the files that names their volume |
//! | `closed` | journals of volumes that are not open |
//! | `files` | the open files of all journals, and their descriptors |
//! | `recycle` | recycled files |
//! | `recovery` | reading the journal of an earlier process |
//! | `windows` | blocks and their checksums, read ahead of recovery |
//! | `host` | the interface to the rest of the store |
//!
//! Invariants:
//!
//! - Acknowledged batches are a prefix of the journal: a loss of power takes its end, never its
//!   middle.
//! - A written batch is in the kernel and survives the process. A synced batch survives the
//!   machine.
//! - A sync that failed is never repeated: the kernel reports the loss once, and then forgets it.
//! - A file that holds unsynced batches stays open, because the kernel reports the loss to open
//!   files.

mod append;
mod batch;
mod closed;
mod dir;
mod encode;
mod files;
mod host;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod journal;
mod owner_file;
mod recovery;
mod recycle;
mod slot;
mod sync;
mod windows;

#[cfg(test)]
mod tests;

pub(crate) use append::Begun;
pub(crate) use batch::{Batch, Change, Taken};
pub(crate) use closed::{journal_bytes, journal_numbers, last_journal_file, remove_journal};
pub(crate) use dir::JournalDir;
pub(crate) use files::{MakesDurable, Reservation};
pub(crate) use host::{ChecksummedBlocks, Host};
pub(crate) use journal::{BlockPlace, Journal};
pub(crate) use owner_file::{OwnerFile, check_owner, read_owner};
pub use recovery::JournalReport;
pub(crate) use recovery::{PromisedCut, Promises, Replay, recover};
pub(crate) use recycle::FilePool;
pub(crate) use slot::{SLOTS_MAX, Slot};
