//! Planning the read of a segment: chunks to fetch, and holes. Pure: leaves in, extents out.

use std::ops::Range;

use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunk_id::ChunkId,
    tree::{DiffKind, NodeId, diff_leaves},
};

use super::walk::Segment;

/// The extents to read of a segment.
#[derive(Debug)]
pub(super) struct SegmentPlan {
    pub(super) number: u32,
    /// The leaf that has the chunks.
    pub(super) leaf: Option<NodeId>,
    /// Ascending.
    pub(super) extents: Vec<PlannedExtent>,
}

/// An extent that is read: a hole or a chunk.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum PlannedExtent {
    /// Bytes of the snapshot that are a hole, and data in the base.
    Hole(Range<u64>),
    /// A whole chunk, though only a part of it may be in the range.
    Chunk {
        /// Position of its entry in the leaf.
        position: u32,
        chunk: ChunkId,
        blocks: u32,
        offset_bytes: u64,
    },
}

impl PlannedExtent {
    fn offset_bytes(&self) -> u64 {
        match self {
            Self::Hole(range) => range.start,
            Self::Chunk { offset_bytes, .. } => *offset_bytes,
        }
    }
}

/// Plans a segment, as far as it is in `range` (bytes of the snapshot, not past its end).
pub(super) fn plan(segment: &Segment, range: &Range<u64>) -> SegmentPlan {
    let first = u64::from(segment.number) * SEGMENT_BYTES as u64;
    let bytes_of = |blocks: Range<u32>| {
        let at = |block: u32| first + u64::from(block) * BLOCK_BYTES as u64;
        at(blocks.start)..at(blocks.end)
    };
    // Either range may be empty.
    let within = |bytes: &Range<u64>| bytes.start.max(range.start) < bytes.end.min(range.end);
    let mut extents = Vec::new();
    if let Some((_, leaf)) = &segment.leaf {
        let base = segment.base.as_ref();
        for (position, entry) in (0u32..).zip(leaf.entries()) {
            let bytes = bytes_of(entry.block_range());
            let in_base = base.is_some_and(|base| base.entries_in(entry.block_range()) == [*entry]);
            if within(&bytes) && !in_base {
                extents.push(PlannedExtent::Chunk {
                    position,
                    chunk: entry.chunk,
                    blocks: entry.blocks,
                    offset_bytes: bytes.start,
                });
            }
        }
    }
    let leaf = segment.leaf.as_ref().map(|(_, leaf)| leaf);
    for differs in diff_leaves(segment.base.as_ref(), leaf) {
        let bytes = bytes_of(differs.start_block..differs.start_block + differs.blocks);
        if differs.kind == DiffKind::Removed && within(&bytes) {
            extents.push(PlannedExtent::Hole(
                bytes.start.max(range.start)..bytes.end.min(range.end),
            ));
        }
    }
    extents.sort_unstable_by_key(PlannedExtent::offset_bytes);
    SegmentPlan {
        number: segment.number,
        leaf: segment.leaf.as_ref().map(|(id, _)| *id),
        extents,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use varve_content::tree::{Leaf, LeafEntry};

    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    fn chunk(number: u8) -> ChunkId {
        ChunkId::of(&[number])
    }

    fn leaf(entries: &[(u32, u32, u8)]) -> Leaf {
        let entries = entries
            .iter()
            .map(|&(start_block, blocks, number)| LeafEntry {
                start_block,
                blocks,
                chunk: chunk(number),
            });
        Leaf::new(entries.collect()).unwrap()
    }

    fn planned(leaf: Option<Leaf>, base: Option<Leaf>, range: Range<u64>) -> Vec<PlannedExtent> {
        let segment = Segment {
            number: 1,
            leaf: leaf.map(|leaf| (leaf.id(), leaf)),
            base,
        };
        plan(&segment, &range).extents
    }

    fn at(position: u32, blocks: u32, block: u32, number: u8) -> PlannedExtent {
        PlannedExtent::Chunk {
            position,
            chunk: chunk(number),
            blocks,
            offset_bytes: SEGMENT_BYTES as u64 + u64::from(block) * BLOCK,
        }
    }

    const FIRST: u64 = SEGMENT_BYTES as u64;

    #[test]
    fn chunks_of_a_range_are_read_whole() {
        let leaf = leaf(&[(0, 4, 1), (4, 4, 2), (10, 4, 3)]);
        let all = planned(Some(leaf.clone()), None, 0..u64::MAX);
        assert_eq!(all, [at(0, 4, 0, 1), at(1, 4, 4, 2), at(2, 4, 10, 3)]);
        let some = FIRST + 5 * BLOCK..FIRST + 10 * BLOCK + 1;
        let some = planned(Some(leaf.clone()), None, some);
        assert_eq!(some, [at(1, 4, 4, 2), at(2, 4, 10, 3)]);
        let hole = FIRST + 8 * BLOCK..FIRST + 10 * BLOCK;
        assert_eq!(planned(Some(leaf), None, hole), []);
    }

    #[test]
    fn only_what_differs_from_a_base_is_read_and_what_is_gone_is_a_hole() {
        let target = leaf(&[(0, 4, 1), (4, 4, 2), (10, 2, 9)]);
        let base = leaf(&[(0, 4, 1), (4, 2, 7), (8, 2, 3), (10, 4, 4)]);
        let hole =
            |start: u64, end: u64| PlannedExtent::Hole(FIRST + start * BLOCK..FIRST + end * BLOCK);
        assert_eq!(
            planned(Some(target), Some(base.clone()), 0..u64::MAX),
            [at(1, 4, 4, 2), hole(8, 10), at(2, 2, 10, 9), hole(12, 14)]
        );
        // A segment without a leaf, up to the end of the range.
        assert_eq!(
            planned(None, Some(base), FIRST..FIRST + 9 * BLOCK),
            [hole(0, 6), hole(8, 9)]
        );
    }
}
