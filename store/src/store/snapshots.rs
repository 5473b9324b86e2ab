//! Snapshots as records: find, list, tag, delete, and tell two apart.

use std::collections::BTreeMap;

use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    tree::{DiffKind, TreeDiff, diff_leaves},
};

use crate::{
    Result,
    engine::{ListQuery, LocatedLeaf, walked},
    meta::SnapshotRecord,
    read::SnapshotReader,
    store::Store,
    verify::SnapshotVerify,
};

/// A stretch in which two snapshots differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffExtent {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
    /// In which way.
    pub kind: DiffKind,
}

impl Store {
    /// The snapshot of that name or id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn snapshot(&self, key: &str) -> Result<SnapshotRecord> {
        self.volumes.snapshot(key).await
    }

    /// Lists snapshots by name, ascending by bytes.
    ///
    /// # Errors
    ///
    /// Those of reading the catalog.
    pub async fn list_snapshots(&self, query: ListQuery) -> Result<Vec<SnapshotRecord>> {
        self.volumes.list_snapshots(query).await
    }

    /// Deletes a snapshot's record. Readers that have it open go on, and so do volumes that were
    /// made from it. Deleting one that is pending cancels it: its volume stays as it is.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn delete_snapshot(&self, key: &str) -> Result<SnapshotRecord> {
        self.volumes.delete_snapshot(key).await
    }

    /// Sets and removes tags of a snapshot, in one step. What is both set and removed is set.
    pub async fn tag_snapshot(
        &self,
        key: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<SnapshotRecord> {
        self.engine.tag(key, set, remove).await
    }

    /// A reader of the snapshot of that name or id.
    pub async fn open_snapshot(&self, key: &str) -> Result<SnapshotReader> {
        let record = self.snapshot(key).await?;
        SnapshotReader::open(self.engine.clone(), record).await
    }

    /// Begins to verify a snapshot.
    ///
    /// # Errors
    ///
    /// As of [`open_snapshot`](Self::open_snapshot), and those of reading its root from the disk.
    pub async fn verify(&self, key: &str) -> Result<SnapshotVerify> {
        SnapshotVerify::begin(self.open_snapshot(key).await?).await
    }

    /// Where two snapshots differ, related or not.
    pub async fn diff(&self, base: &str, target: &str) -> Result<SnapshotDiff> {
        let base = self.open_snapshot(base).await?;
        let target = self.open_snapshot(target).await?;
        Ok(SnapshotDiff {
            walk: TreeDiff::new(base.root(), target.root()),
            base,
            target,
        })
    }
}

/// The differences of two snapshots, found as they are asked for. Subtrees that are equal are not read.
#[derive(Debug)]
pub struct SnapshotDiff {
    walk: TreeDiff,
    base: SnapshotReader,
    target: SnapshotReader,
}

impl SnapshotDiff {
    /// The extents of the next segment that differs, ascending and without overlaps; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<DiffExtent>>> {
        loop {
            let engine = self.base.engine();
            let Some(segment) = self.walk.next(&**engine).await.map_err(walked)? else {
                return Ok(None);
            };
            let base = match segment.base {
                Some(id) => Some(
                    engine
                        .located_leaf(id)
                        .await
                        .map_err(|error| self.base.named(error))?,
                ),
                None => None,
            };
            let target = match segment.target {
                Some(id) => Some(
                    engine
                        .located_leaf(id)
                        .await
                        .map_err(|error| self.target.named(error))?,
                ),
                None => None,
            };
            let start = u64::from(segment.segment) * SEGMENT_BYTES as u64;
            let longest = self.base.size_bytes().max(self.target.size_bytes());
            let differences = diff_leaves(
                base.as_deref().map(LocatedLeaf::leaf),
                target.as_deref().map(LocatedLeaf::leaf),
            );
            let extents: Vec<_> = differences
                .into_iter()
                .map(|difference| {
                    let offset_bytes =
                        start + u64::from(difference.start_block) * BLOCK_BYTES as u64;
                    // The last block may reach past the end of a volume whose size is not a multiple of a block.
                    let length_bytes = u64::from(difference.blocks) * BLOCK_BYTES as u64;
                    DiffExtent {
                        offset_bytes,
                        length_bytes: length_bytes.min(longest.saturating_sub(offset_bytes)),
                        kind: difference.kind,
                    }
                })
                .collect();
            if !extents.is_empty() {
                return Ok(Some(extents));
            }
        }
    }
}
