//! Snapshots as records: find, list, tag, delete, and tell two apart.

use std::collections::BTreeMap;

use super::Store;
use crate::{
    Result,
    engine::ListQuery,
    format::CatalogRecord as _,
    meta::{self, Sharing, SnapshotKey, SnapshotRecord},
    read::{SnapshotDiff, SnapshotReader},
    verify::SnapshotVerify,
};

impl Store {
    /// The snapshot of that name or id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn snapshot(&self, key: &SnapshotKey) -> Result<SnapshotRecord> {
        self.volumes.snapshot(key).await
    }

    /// Lists snapshots by name, ascending by bytes.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn list_snapshots(&self, query: ListQuery) -> Result<Vec<SnapshotRecord>> {
        self.volumes.list_snapshots(query).await
    }

    /// Deletes a snapshot's record. Readers that have it open go on, and so do volumes that were
    /// made from it. Deleting one that is pending cancels it: its volume stays as it is.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn delete_snapshot(&self, key: &SnapshotKey) -> Result<SnapshotRecord> {
        self.volumes.delete_snapshot(key).await
    }

    /// Deletes snapshots as [`delete_snapshot`](Self::delete_snapshot) does, in one change of the
    /// catalog: the first ones of `keys`, as many as one change has room for, and at least one.
    /// Returns an outcome for each of these, in their order: the deleted record, or
    /// [`Error::NotFound`](crate::Error::NotFound). A snapshot that is named twice is not found the
    /// second time.
    ///
    /// # Errors
    ///
    /// Errors of changing the catalog. No snapshot is deleted then.
    pub async fn delete_snapshots(
        &self,
        keys: Vec<SnapshotKey>,
    ) -> Result<Vec<Result<SnapshotRecord>>> {
        self.volumes.delete_snapshots(keys).await
    }

    /// Sets and removes tags of a snapshot, in one step. A tag that is both set and removed is set.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound), and
    /// [`Error::Invalid`](crate::Error::Invalid) for tags that cannot be.
    pub async fn tag_snapshot(
        &self,
        key: &SnapshotKey,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<SnapshotRecord> {
        self.engine.tag(key.clone(), set, remove).await
    }

    /// Shares a snapshot with accounts, or with everybody: they may read it, by its id. Whoever it
    /// is shared with already stays so. The accounts need not exist.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound),
    /// [`Error::PublicAccessBlocked`](crate::Error::PublicAccessBlocked) for everybody if the owner
    /// [blocks](crate::BlockPublicAccess) that,
    /// [`Error::TooMany`](crate::Error::TooMany) for more than
    /// [`SHARED_ACCOUNTS_MAX`](crate::limits::SHARED_ACCOUNTS_MAX) accounts.
    pub async fn share_snapshot(&self, key: &SnapshotKey, with: Sharing) -> Result<SnapshotRecord> {
        self.share(key, with, |_, _| Ok(())).await
    }

    /// Ends what [`share_snapshot`](Self::share_snapshot) began. What accounts made of the snapshot
    /// meanwhile stays, and so does what they have open.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn unshare_snapshot(
        &self,
        key: &SnapshotKey,
        with: Sharing,
    ) -> Result<SnapshotRecord> {
        self.unshare(key, with).await
    }

    /// Opens the snapshot of that name or id for reading. Its content stays as long as the reader,
    /// or a clone of it, even if the snapshot is deleted.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound),
    /// [`Error::NotCompleted`](crate::Error::NotCompleted), and those of reading its root.
    pub async fn open_snapshot(&self, key: &SnapshotKey) -> Result<SnapshotReader> {
        let record = self.snapshot(key).await?;
        SnapshotReader::open(self.engine.clone(), record).await
    }

    /// Begins to verify a snapshot.
    ///
    /// # Errors
    ///
    /// As of [`open_snapshot`](Self::open_snapshot), and those of reading its root from the disk.
    pub async fn verify(&self, key: &SnapshotKey) -> Result<SnapshotVerify> {
        SnapshotVerify::begin(self.open_snapshot(key).await?).await
    }

    /// Finds where two snapshots differ, related or not.
    ///
    /// # Errors
    ///
    /// As of [`open_snapshot`](Self::open_snapshot).
    pub async fn diff(&self, base: &SnapshotKey, target: &SnapshotKey) -> Result<SnapshotDiff> {
        let base = self.open_snapshot(base).await?;
        let target = self.open_snapshot(target).await?;
        Ok(SnapshotDiff::new(base, target))
    }
}

/// Checks that a snapshot may have that name.
///
/// # Errors
///
/// [`Error::Invalid`](crate::Error::Invalid), with what a name may be.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    meta::check_name(SnapshotRecord::KIND.what, name)
}

/// Checks that a snapshot may have these tags.
///
/// # Errors
///
/// [`Error::Invalid`](crate::Error::Invalid), with what tags may be.
pub fn check_snapshot_tags(tags: &BTreeMap<String, String>) -> Result<()> {
    meta::check_tags(SnapshotRecord::KIND.what, tags)
}
