//! Snapshots as records: find, list, tag, delete, and tell two apart.

use std::collections::BTreeMap;

use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    tree::{DiffKind, TreeDiff, diff_leaves},
};

use crate::{
    Error, Result, limits,
    meta::{self, SnapshotId, SnapshotRecord},
    read::{LocatedLeaf, SnapshotReader, walked},
    store::Store,
    workers::Priority,
};

/// Which snapshots to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only names that start so.
    pub name_prefix: String,
    /// Only those that have all of these tags with these values.
    pub tags: BTreeMap<String, String>,
    /// Only names behind this one.
    pub after_name: Option<String>,
    /// At most this many, and never more than [`limits::PAGE_MAX`].
    pub limit: usize,
}

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
    pub async fn snapshot(&self, key: &str) -> Result<SnapshotRecord> {
        let wanted = key.to_owned();
        let found = self
            .shared()
            .meta(Priority::Read, move |meta| {
                match wanted.parse::<SnapshotId>() {
                    Ok(id) => meta.snapshot(id),
                    Err(_) => meta.snapshot_by_name(&wanted),
                }
            })
            .await?;
        found.ok_or_else(|| Error::NotFound {
            what: "snapshot",
            name: key.to_owned(),
        })
    }

    /// Snapshots by name, ascending by bytes.
    pub async fn list_snapshots(&self, query: ListQuery) -> Result<Vec<SnapshotRecord>> {
        let limit = query.limit.min(limits::PAGE_MAX);
        self.shared()
            .meta(Priority::Read, move |meta| {
                let mut found = Vec::new();
                let mut after = query.after_name;
                while found.len() < limit {
                    let page =
                        meta.snapshots(after.as_deref(), &query.name_prefix, limits::PAGE_MAX)?;
                    let Some(last) = page.last() else { break };
                    after = Some(last.name.clone());
                    let matching = page
                        .into_iter()
                        .filter(|record| has_tags(record, &query.tags));
                    found.extend(matching.take(limit - found.len()));
                }
                Ok(found)
            })
            .await
    }

    /// Sets and removes tags of a snapshot, in one step. What is both set and removed is set.
    pub async fn tag_snapshot(
        &self,
        key: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<SnapshotRecord> {
        let id = self.snapshot(key).await?.id;
        let change = move |mut record: SnapshotRecord| {
            for key in &remove {
                record.tags.remove(key);
            }
            record.tags.extend(set);
            meta::check_tags(&record.tags)?;
            Ok(record)
        };
        self.shared().commit.update_snapshot(id, change).await
    }

    /// Deletes a snapshot's record. Readers that have it open go on.
    pub async fn delete_snapshot(&self, key: &str) -> Result<SnapshotRecord> {
        let id = self.snapshot(key).await?.id;
        self.shared().commit.delete_snapshot(id).await
    }

    /// A reader of the snapshot of that name or id.
    pub async fn open_snapshot(&self, key: &str) -> Result<SnapshotReader> {
        let record = self.snapshot(key).await?;
        SnapshotReader::open(self.shared().clone(), record).await
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

fn has_tags(record: &SnapshotRecord, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| record.tags.get(key) == Some(value))
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
            let shared = self.base.shared();
            let Some(segment) = self.walk.next(&**shared).await.map_err(walked)? else {
                return Ok(None);
            };
            let base = match segment.base {
                Some(id) => Some(
                    shared
                        .located_leaf(id)
                        .await
                        .map_err(|error| self.base.named(error))?,
                ),
                None => None,
            };
            let target = match segment.target {
                Some(id) => Some(
                    shared
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
