//! The differences between two snapshots.

use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    tree::{DiffKind, TreeDiff, diff_leaves},
};

use super::SnapshotReader;
use crate::{Result, engine::walked};

/// An extent in which two snapshots differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffExtent {
    /// Offset in bytes.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub length_bytes: u64,
    /// The kind of difference.
    pub kind: DiffKind,
}

/// The differences of two snapshots, found on demand. Equal subtrees are not read.
#[derive(Debug)]
pub struct SnapshotDiff {
    walk: TreeDiff,
    base: SnapshotReader,
    target: SnapshotReader,
}

impl SnapshotDiff {
    pub(crate) fn new(base: SnapshotReader, target: SnapshotReader) -> Self {
        Self {
            walk: TreeDiff::new(base.root(), target.root()),
            base,
            target,
        }
    }

    /// The extents of the next segment that differs, ascending and without overlaps; `None` at the
    /// end.
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
                base.as_ref().map(|it| &**it.leaf()),
                target.as_ref().map(|it| &**it.leaf()),
            );
            let extents: Vec<_> = differences
                .into_iter()
                .map(|difference| {
                    let offset_bytes =
                        start + u64::from(difference.start_block) * BLOCK_BYTES as u64;
                    // The last block may reach past the end of a volume whose size is not a
                    // multiple of a block.
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
