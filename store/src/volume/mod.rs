//! Volumes: writable block devices.
//!
//! A volume is a base, which is content like a snapshot's, and a journal of the writes since. Reads
//! look blocks up in the maps of the journal's epochs, the latest first, and then in the base. A
//! checkpoint takes ended epochs into the store, and gives the volume a new base.
//!
//! | file | content |
//! | --- | --- |
//! | `volumes` | all volumes of a store, and the parts that they share |
//! | `records` | volumes in the catalog: make, find, attach, delete |
//! | `registry` | the volumes that are open |
//! | `volume` | an open volume: opening, syncing, closing |
//! | `witness` | the last batches of closed journals, in the catalog |
//! | `read` | reading: journal, base, zeros |
//! | `write` | writing: bytes become changes of whole blocks |
//! | `queue` | changes that wait, and the cuts between them |
//! | `writer` | the one task that writes a volume's journal |
//! | `throttle` | slowing writers down before the journal is full |
//! | `layers` | epochs over the base, read as one |
//! | `map` | the blocks of an epoch, and their places in the journal |
//! | `map_memory` | the memory of all maps |
//! | `journal/` | journals on disk; knows no volume |
//! | `host` | the store as a journal sees it |
//! | `snapshot` | snapshots: their instant, and their completion |
//! | `checkpoint/` | checkpoints: they take the writes up to a cut into the store |
//! | `clone` | volumes with the content of others |
//! | `changes` | comparing a volume with a snapshot |
//! | `readahead` | filling the cache ahead of a reader |
//!
//! Invariants:
//!
//! - The acknowledged writes are always a prefix of the journal: a loss of power takes its end,
//!   never its middle.
//! - A write that returned is in the kernel; after a flush it is durable.
//! - A block is as one write left it, never a mix of several.
//! - The base never goes past the cut of a pending snapshot.
//! - The catalog comes first: the owner record follows it, and journal files are removed after
//!   that.

mod changes;
mod checkpoint;
mod clone;
mod host;
mod journal;
mod layers;
mod map;
mod map_memory;
mod queue;
mod read;
mod readahead;
mod records;
mod registry;
mod snapshot;
mod throttle;
#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod volume;
mod volumes;
mod witness;
mod write;
mod writer;

pub(crate) use checkpoint::Tried;
pub use clone::{CloneSource, NewClone};
use journal::FilePool;
pub use journal::JournalReport;
pub(crate) use journal::{check_owner, journal_numbers, read_owner, remove_journal};
use map_memory::MapMemory;
pub use records::NewVolume;
pub(crate) use records::check_size;
use registry::OpenVolumes;
pub use registry::VolumeStatus;
use snapshot::PendingSnapshots;
pub use snapshot::{NewSnapshots, SnapshotProgress};
pub use volume::Volume;
pub(crate) use volumes::Volumes;
use witness::ClosedJournals;
