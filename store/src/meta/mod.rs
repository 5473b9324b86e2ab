//! The index (the places of chunks and nodes) and the catalog (the records).
//!
//! Both are derived: packs and catalog log are the truth, and recovery applies everything that is
//! only there. Invariants of every [`Meta`]:
//!
//! - A [`Batch`] is applied as a whole or not at all, and once it is applied, it is visible to all
//!   readers.
//! - After `apply(.., sync = true)` has returned, that batch and all before it survive a power cut.
//!   Without `sync` a power cut may take the latest batches, but never one without all that came
//!   after it.
//! - [`Totals`] are exact sums: putting the same chunk twice does not count it twice.
//! - A name belongs to one snapshot, and to one volume.
//! - After a write that failed for lack of a resource ([`Error::Full`](crate::Error::Full),
//!   [`Error::Shortage`](crate::Error::Shortage)), other writes fail in the same way until the
//!   resource is available again. Until then it is unknown if that batch was applied; it can be
//!   applied again, and then counts once. After any other failed write, nothing more is written
//!   ([`Error::Poisoned`](crate::Error::Poisoned)) until the index is opened again. Reads continue.
//!
//! | file | content |
//! | --- | --- |
//! | `index` | the contract of an index |
//! | `catalog` | the contract of a catalog, and records of one kind |
//! | `batch` | changes that are made together |
//! | `key` | keys of records as users give them: an id or a name |
//! | `record` | rules for names and tags |
//! | `quotas` | quotas of accounts |
//! | `rocks` | [`RocksMeta`], which stores use |
//! | `memory` | [`MemoryMeta`], the model that it is tested against |

mod batch;
mod catalog;
mod index;
mod key;
mod memory;
mod quotas;
mod record;
mod rocks;

#[cfg(test)]
mod conformance;

use std::fmt;

pub use self::{
    batch::{Batch, Outcome},
    catalog::{Catalog, CatalogView, Filter, Page, Records},
    index::{Index, IndexView},
    key::{ImageKey, Key, SnapshotKey, VolumeKey},
    memory::MemoryMeta,
    record::{check_name, check_tags, fill_random, now_ns},
    rocks::RocksMeta,
};
pub(crate) use self::{
    catalog::behind,
    key::{Lookup, given},
    quotas::{check_changes, check_room},
    record::{
        check_account_name, check_description, check_device_name, check_identity, check_image_name,
        check_owner, check_text, no_account,
    },
};
use crate::Result;
pub use crate::format::record::{
    access_key::{AccessKeyId, SealedSecret},
    account::{AccountState, BlockPublicAccess, Identity, Quota},
    sharing::{Grantee, Sharing},
    token::{Scopes, SecretHash, TokenId},
};
pub use crate::format::{
    AccessKeyRecord, AccountId, AccountRecord, Architecture, BlockDevice, BootMode, CatalogRecord,
    Change, CopyId, CopyOutcome, CopyRecord, DeviceSource, ImageId, ImageRecord, PackPhase,
    PackState, PendingSnapshot, Platform, Protection, RemoteRecord, SnapshotContent, SnapshotId,
    SnapshotOrigin, SnapshotRecord, SnapshotState, TokenRecord, Totals, VolumeId, VolumeRecord,
};

/// Index and catalog, which change together. Methods may block: they read files.
pub trait Meta: Index + Catalog + fmt::Debug + Send + Sync {
    /// Makes all changes of `batch`, or none.
    ///
    /// Catalog records must follow the last one applied ([`Catalog::catalog_sequence`]) without a
    /// gap.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) for a name that another record has;
    /// errors of a write.
    fn apply(&self, batch: Batch, sync: bool) -> Result<Outcome>;

    /// The totals.
    ///
    /// # Errors
    ///
    /// If the index cannot be read.
    fn totals(&self) -> Result<Totals>;

    /// Recovers from a write that failed for lack of a resource (space, descriptors), if the
    /// resource is available again.
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
