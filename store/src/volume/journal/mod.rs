//! Journals: what was written to volumes since it was taken into the store.
//!
//! | file | what |
//! | --- | --- |
//! | `journal` | a journal's files: where batches go, which are durable |
//! | `batch` | changes put together to be written at once |
//! | `encode` | a batch as bytes |
//! | `files` | which files of all journals are open |
//! | `dir` | whose journal it is, and how its files are made |
//! | `owner_file` | the same, kept beside the journal for when the catalog is lost |
//! | `recycle` | what journals take on disk, and files to be written again |
//! | `recovery` | a journal that a process left behind |
//! | `windows` | its blocks and their checksums, read ahead |

pub(crate) mod batch;
pub(crate) mod dir;
mod encode;
pub(crate) mod files;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod journal;
pub(crate) mod owner_file;
pub(crate) mod recovery;
pub(crate) mod recycle;
mod windows;

pub(crate) use journal::{Begun, BlockPlace, Journal};
