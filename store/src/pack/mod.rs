//! Packs: where chunks and tree nodes are kept, and the truth of all content.
//!
//! Bytes and layout are [`format::pack`](crate::format::pack)'s; here is who writes and reads them:
//!
//! | file | what |
//! | --- | --- |
//! | `record` | a record before it is written, and where it is after |
//! | `store` | where packs are read from (a trait) |
//! | `stage` | where packs are written until they are sealed (a trait) |
//! | `local` | both, as files of a directory |
//! | `writer` | appends records, makes them durable, seals packs |
//! | `reader` | reads records that the index knows, checked |
//! | `scanner` | walks a pack from its beginning, knowing nothing |
//! | `tail` | what a scan finds out for recovery |
//! | `lost` | places in packs that hold nothing any more |
//!
//! Invariants:
//!
//! - A record's place is told only against a receipt that it is durable: [`Flushed::settle`] is the
//!   only way to it.
//! - Durable bytes are never written again: a flush pads to 4 KiB, and the next write begins behind
//!   that.
//! - A footer is written only after all records of its pack are durable: a sealed pack has no torn
//!   places.
//! - A payload is given out only if its checksum, its id and all that the index says of it are
//!   right. That its bytes have that id is for others to check.
//! - After a write or a sync has failed, nothing more is written, with one exception: a full disk
//!   loses what was not durable yet, and then writing can go on.

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
