//! Copies of snapshots from other stores, as records; and the content on which a copy can build.
//!
//! Content is taken in by an [`Ingest`](crate::Ingest), which checks it like any upload.

use varve_content::RootId;

use super::Store;
use crate::{
    Result, SnapshotRecord,
    engine::Priority,
    format::Change,
    meta::{AccountId, CopyId, CopyRecord, Meta, Records as _},
};

impl Store {
    /// Returns true if all content of completed snapshots can be taken to be in the store. False if
    /// index and catalog were ever rebuilt, because packs that snapshots name may have been lost,
    /// and if anything was found lost since the last start.
    pub fn vouches_for_snapshots(&self) -> bool {
        !self.engine.was_rebuilt && self.engine.lost.read().is_empty()
    }

    /// Finds a completed snapshot of that content, of this owner if one is given.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn snapshot_of(
        &self,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<SnapshotRecord>> {
        let find = move |meta: &dyn Meta| meta.get_of_root(root, owner);
        self.engine.meta(Priority::Read, find).await
    }

    /// Writes a copy's record, durably.
    ///
    /// # Errors
    ///
    /// Errors of changing the catalog.
    pub async fn put_copy(&self, record: CopyRecord) -> Result<()> {
        let put = move |_: &dyn Meta| Ok((vec![Change::put(&record)], ()));
        self.engine.commit.change((), put).await
    }

    /// Deletes the records of copies.
    ///
    /// # Errors
    ///
    /// Errors of changing the catalog.
    pub async fn forget_copies(&self, ids: Vec<CopyId>) -> Result<()> {
        let delete = move |_: &dyn Meta| {
            let changes = ids.iter().map(Change::delete::<CopyRecord>);
            Ok((changes.collect(), ()))
        };
        self.engine.commit.change((), delete).await
    }

    /// Returns the records of all copies, in the order in which they were begun.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn copies(&self) -> Result<Vec<CopyRecord>> {
        let mut copies: Vec<CopyRecord> = self.engine.list_all().await?;
        copies.sort_unstable_by_key(|record| (record.created_at_ns, record.id));
        Ok(copies)
    }
}
