//! The catalog log: every change of the catalog, in order, durable before it is applied.
//!
//! Queries go to the catalog in RocksDB, which can be rebuilt from this file. Appends are small and
//! rare, one per change of a snapshot or volume. When the log has grown, it is replaced by one that
//! begins with a [checkpoint](checkpoint): the whole catalog, and the changes since.
//!
//! | file | content |
//! | --- | --- |
//! | `log` | the log, open for appending |
//! | `found` | the log as it was found, before all of it was read |
//! | `reader` | reading a log from end to end, with a buffer of fixed size |
//! | `checkpoint` | writing the log anew, with a checkpoint at its beginning |
//! | `damaged` | the readable parts of a damaged log |
//! | `deletions` | deletions of volumes whose journals are still on the disk |

mod checkpoint;
mod damaged;
mod deletions;
mod found;
mod log;
mod reader;

pub(crate) use self::{
    checkpoint::{NewLog, Source, abandon, begin_checkpoint},
    damaged::{DamagedLog, Seen},
    deletions::{Deletions, journals},
    found::{Checked, FoundLog, Rest},
    log::{CatalogLog, Switch},
    reader::{LogReader, Piece, WINDOW_BYTES},
};
