//! Every byte that a store keeps on disk: its meaning, its encoding and its checks.
//!
//! Pure: bytes in, values out, no file access, and no knowledge of readers and writers. Numbers are
//! little endian and `u8`, `u32` or `u64`; unused fields are zero, and decoders refuse other
//! values. Decoders take any bytes and never panic: they return a [`FormatError`] with the expected
//! value and the value found. Every format is pinned by a test against literal bytes: when one
//! fails, the format has changed, and [`FORMAT_VERSION`](store_file::FORMAT_VERSION) has to change
//! with it.
//!
//! | file | bytes of |
//! | --- | --- |
//! | [`names`] | no bytes, but every file name of the data directory |
//! | [`store_file`] | `FORMAT`, the identity of a store |
//! | [`pack`] | packs: chunks and tree nodes, the truth of all content |
//! | [`catalog_log`] | the catalog log, the truth of all records |
//! | [`record`] | the records of the catalog, one file per noun, in the catalog log and in the catalog |
//! | [`snapshot`] | a snapshot's record |
//! | [`volume`] | a volume's record |
//! | [`copy`] | the record of a copy from another store |
//! | [`remote`] | the record of another daemon that has a name here |
//! | [`journal`] | the journals of volumes, the truth of the writes since their base |
//! | [`owner`] | the owner record of a journal, which names its volume |
//! | [`keys`] | keys and values in RocksDB, which can be rebuilt from the above |
//! | `gc_run` | the last garbage collection, a value in RocksDB that is lost with it |
//! | [`name`] | names of records in packs; no bytes of its own |

#![warn(clippy::indexing_slicing)]

mod account;
mod error;
mod fields;
mod gc_run;
mod id;

pub mod catalog_log;
pub mod journal;
pub mod keys;
pub mod name;
pub mod names;
pub mod owner;
pub mod pack;
pub mod record;
pub mod store_file;

#[cfg(test)]
mod tests;

pub use account::AccountId;
pub use error::FormatError;
pub use gc_run::{GcReport, LastRun};
pub use id::{ID_BYTES, IdKind, RecordId};
pub use keys::{PackPhase, PackState, Totals};
pub use name::Name;
pub use owner::OwnerRecord;
pub use pack::{Location, PackId, PackKind};
pub use record::{
    CatalogRecord, Change, Kind, Kinds, Tags,
    access_key::AccessKeyRecord,
    account::AccountRecord,
    copy::{self, CopyId, CopyOutcome, CopyRecord, OfCopy},
    image::{
        Architecture, BlockDevice, BootMode, DeviceSource, ImageId, ImageRecord, OfImage, Platform,
        Protection,
    },
    remote::{self, RemoteRecord},
    snapshot::{
        self, OfSnapshot, SnapshotContent, SnapshotId, SnapshotOrigin, SnapshotRecord,
        SnapshotState,
    },
    token::TokenRecord,
    volume::{self, OfVolume, PendingSnapshot, VolumeId, VolumeRecord},
};
pub use store_file::StoreId;
