//! Volumes: block devices that are written to.
//!
//! A volume is a base, which is content like a snapshot's, and a journal of what was written since.
//!
//! | file | what |
//! | --- | --- |
//! | `records` | volumes as records: make, find, attach |
//! | `volumes` | all of a store: what they share |
//! | `registry` | which of them are open |
//! | `volume` | a volume that is open: reads and writes of any bytes |
//! | `batch` | changes put together to be written at once |
//! | `writer` | the one task that writes a volume's journal |
//! | `journal` | the journal's files: where batches go, which are durable |
//! | `space` | what journals take on disk, and files to be written again |
//! | `owner` | whose journal it is, and how its files are made |
//! | `owner_file` | the same, kept beside the journal for when the catalog is lost |
//! | `clone` | volumes with the content of others |
//! | `snapshot` | snapshots: their instant, and what becomes of them |
//! | `gather` | a batch as bytes |
//! | `files` | which files of all journals are open |
//! | `jobs` | what is to be taken into the store, one cut after the other |
//! | `checkpoint` | what was written up to a cut, taken into the store |
//! | `layers` | journal over base, read as one |
//! | `changes` | what is other than in a snapshot |
//! | `readahead` | what is brought into the cache before it is read |
//! | `map` | which blocks are in the journal, and where |
//! | `memory` | what the maps of all volumes take |
//! | `recovery` | a journal that a process left behind |
//!
//! What must hold:
//!
//! - What was acknowledged is always a beginning of the journal: a loss of power takes its end, never something in the middle.
//! - A write that returned is in the kernel; after a flush it is durable.
//! - A block is as one write left it, never a mix of several.

mod batch;
mod changes;
mod checkpoint;
mod clone;
mod files;
mod gather;
mod idle;
mod jobs;
mod journal;
mod layers;
mod map;
mod memory;
mod owner;
mod owner_file;
mod readahead;
mod records;
mod recovery;
mod registry;
mod snapshot;
mod space;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod volume;
mod volumes;
mod windows;
mod writer;

pub use clone::NewClone;
use memory::MapMemory;
pub(crate) use owner_file::{check_owner, read_owner};
pub use records::NewVolume;
pub(crate) use records::{journal_numbers, remove_journal};
pub use recovery::JournalReport;
use registry::OpenVolumes;
pub use registry::VolumeStatus;
use snapshot::PendingSnapshots;
pub use snapshot::{NewSnapshots, SnapshotProgress};
use space::JournalSpace;
pub use volume::Volume;
pub(crate) use volumes::Volumes;
