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
//! | `writer` | the one task that writes a volume's journal |
//! | `journal/` | journals on disk: written, made durable, read by the next process |
//! | `clone` | volumes with the content of others |
//! | `snapshot` | snapshots: their instant, and what becomes of them |
//! | `checkpoint/` | what was written up to a cut, taken into the store |
//! | `layers` | journal over base, read as one |
//! | `changes` | what is other than in a snapshot |
//! | `read` | what blocks are read from |
//! | `readahead` | what is brought into the cache before it is read |
//! | `map` | which blocks are in the journal, and where |
//! | `map_memory` | what the maps of all volumes take |
//!
//! What must hold:
//!
//! - What was acknowledged is always a beginning of the journal: a loss of power takes its end, never something in the middle.
//! - A write that returned is in the kernel; after a flush it is durable.
//! - A block is as one write left it, never a mix of several.

mod changes;
mod checkpoint;
mod clone;
mod host;
mod journal;
mod layers;
mod map;
mod map_memory;
mod read;
mod readahead;
mod records;
mod registry;
mod snapshot;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod volume;
mod volumes;
mod writer;

pub use clone::NewClone;
use journal::FilePool;
pub use journal::JournalReport;
pub(crate) use journal::{check_owner, journal_numbers, read_owner, remove_journal};
use map_memory::MapMemory;
pub use records::NewVolume;
use registry::OpenVolumes;
pub use registry::VolumeStatus;
use snapshot::PendingSnapshots;
pub use snapshot::{NewSnapshots, SnapshotProgress};
pub use volume::Volume;
pub(crate) use volumes::Volumes;
