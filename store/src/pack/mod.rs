//! Packs: the files with all chunks and tree nodes, and so the truth of all content.
//!
//! [`format::pack`](crate::format::pack) has the layout; this module writes and reads packs:
//!
//! | file | content |
//! | --- | --- |
//! | `record` | a record before it is written, and its place after that |
//! | `store` | the source of reads from packs (a trait) |
//! | `stage` | the place where packs are written until they are sealed (a trait) |
//! | `local` | both, as files of a directory |
//! | `writer` | appends records, makes them durable, seals packs |
//! | `reader` | reads records that the index knows, checked |
//! | `scanner` | walks a pack from its beginning, knowing nothing |
//! | `tail` | the survey of a pack for recovery |
//! | `lost` | places in packs whose records are lost |
//!
//! Invariants:
//!
//! - The location of a record is available only against a receipt that the record is durable:
//!   [`Flushed::settle`] is the only way to it.
//! - Durable bytes are never written again: a flush pads to 4 KiB, and the next write begins behind
//!   that.
//! - A footer is written only after all records of its pack are durable: a sealed pack has no torn
//!   places.
//! - The reader returns a payload only if its checksum, its id and everything that the index says
//!   of it are right. Its caller checks the bytes against the id.
//! - After a write or a sync has failed, nothing more is written, with one exception: a full disk
//!   loses the unsynced records, and then writing can continue.

mod local;
mod lost;
mod reader;
mod record;
mod scanner;
mod stage;
mod store;
mod tail;
mod writer;

#[cfg(test)]
mod tests;

pub use local::LocalPacks;
pub use lost::LostPlaces;
pub use reader::{PackGone, PackReader, ReadError, ReadSpan, Span, StoredRecord, plan_spans};
pub use record::{EncodedRecord, PlacedRecord};
pub use scanner::{PackScanner, ScanItem, ScannedRecord, Tail};
pub use stage::PackStage;
pub use store::PackStore;
pub use tail::{RecoveredPack, recover_tail};
pub use writer::{Appended, Flushed, Lost, PackWriter};
