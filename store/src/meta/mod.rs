//! The index (where chunks and nodes are) and the catalog (which records there are).
//!
//! Both are derived: packs and catalog log are the truth, and recovery brings in what they have
//! more. Invariants of every [`Meta`]:
//!
//! - A [`Batch`] is applied as a whole or not at all, and once it is applied everybody sees it.
//! - After `apply(.., sync = true)` has returned, that batch and all before it survive a power cut.
//!   Without `sync` a power cut may take the latest batches, but never one without all that came
//!   after it.
//! - [`Totals`] are the exact sums over what is there: putting the same chunk twice does not count
//!   it twice.
//! - A name belongs to one snapshot, and to one volume.
//! - After a write that failed for want of something ([`Error::Full`](crate::Error::Full),
//!   [`Error::Shortage`](crate::Error::Shortage)) others fail in the same way until there is enough
//!   of it again. Until then it is unknown if that batch was applied; it can be applied again, and
//!   then counts once. After any other failed write nothing more is written
//!   ([`Error::Poisoned`](crate::Error::Poisoned)) until the index is opened again. Reads go on.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `index` | the contract of an index |
//! | `catalog` | the contract of a catalog, and records of one kind |
//! | `batch` | changes that are made together |
//! | `key` | by what a user names a record: its id or its name |
//! | `record` | what names and tags may be |
//! | `rocks` | [`RocksMeta`], which stores use |
//! | `memory` | [`MemoryMeta`], the model that it is tested against |

mod batch;
mod catalog;
mod index;
mod key;
mod memory;
mod record;
mod rocks;

#[cfg(test)]
mod conformance;

use std::fmt;

pub use self::{
    batch::{Batch, Outcome, RowKey},
    catalog::{Catalog, Filter, Page, Records},
    index::{Index, IndexView, NodeKey, Space},
    key::{Key, SnapshotKey, VolumeKey},
    memory::MemoryMeta,
    record::{check_name, check_tags, now_ns},
    rocks::RocksMeta,
};
pub(crate) use self::{catalog::behind, key::Lookup};
use crate::Result;
pub use crate::format::{
    AccountId, CatalogRecord, Change, CopyId, CopyOutcome, CopyRecord, PackState, PendingSnapshot,
    RemoteRecord, SnapshotContent, SnapshotId, SnapshotOrigin, SnapshotRecord, SnapshotState,
    Totals, VolumeId, VolumeRecord,
};

/// Index and catalog, which change together. Methods may block: they read files.
pub trait Meta: Index + Catalog + fmt::Debug + Send + Sync {
    /// Makes all changes of `batch`, or none.
    ///
    /// Catalog records have to follow the last one applied ([`Catalog::catalog_sequence`]) without
    /// a gap.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) for a name that another record has;
    /// those of a write.
    fn apply(&self, batch: Batch, sync: bool) -> Result<Outcome>;

    /// The totals.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn totals(&self) -> Result<Totals>;

    /// Ends what a write has left behind that failed for want of something (space, descriptors), if
    /// there is enough of it again.
    ///
    /// # Errors
    ///
    /// The errors that the next write would get.
    fn writes_again(&self) -> Result<()> {
        Ok(())
    }

    /// Returns true if writes are possible: no write has failed since the index was opened.
    fn is_healthy(&self) -> bool;
}
