//! Tests of the difference between two leaves.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::*;
use crate::block::SEGMENT_BLOCKS;
use crate::chunk_id::ChunkId;

fn leaf(entries: &[(u32, u32, u8)]) -> Leaf {
    let entry = |&(start_block, blocks, id): &(u32, u32, u8)| LeafEntry {
        start_block,
        blocks,
        chunk: ChunkId::from_bytes([id; 32]),
    };
    Leaf::new(entries.iter().map(entry).collect()).unwrap()
}

fn diff(base: Option<&Leaf>, target: Option<&Leaf>) -> Vec<(u32, u32, DiffKind)> {
    let flat = |diff: &LeafDiff| (diff.start_block, diff.blocks, diff.kind);
    diff_leaves(base, target).iter().map(flat).collect()
}

#[test]
fn equal_leaves_do_not_differ() {
    let one = leaf(&[(0, 4, 1), (9, 2, 2)]);
    assert_eq!(diff(Some(&one), Some(&one)), []);
    assert_eq!(diff(None, None), []);
}

#[test]
fn against_a_hole_all_is_added_or_removed() {
    let one = leaf(&[(0, 4, 1), (4, 2, 2), (9, 2, 3)]);
    let added = [(0, 6, DiffKind::Added), (9, 2, DiffKind::Added)];
    assert_eq!(diff(None, Some(&one)), added);
    let removed = [(0, 6, DiffKind::Removed), (9, 2, DiffKind::Removed)];
    assert_eq!(diff(Some(&one), None), removed);
}

#[test]
fn chunks_that_overlap_in_part() {
    // base    1111 2222 .. 44
    // target  1111 3333 3. 55
    let base = leaf(&[(0, 4, 1), (4, 4, 2), (10, 2, 4)]);
    let target = leaf(&[(0, 4, 1), (4, 5, 3), (10, 2, 5)]);
    assert_eq!(
        diff(Some(&base), Some(&target)),
        [
            (4, 4, DiffKind::Changed),
            (8, 1, DiffKind::Added),
            (10, 2, DiffKind::Changed)
        ]
    );
}

#[test]
fn a_chunk_that_moved_differs() {
    let base = leaf(&[(0, 4, 1)]);
    let target = leaf(&[(1, 4, 1)]);
    assert_eq!(
        diff(Some(&base), Some(&target)),
        [
            (0, 1, DiffKind::Removed),
            (1, 3, DiffKind::Changed),
            (4, 1, DiffKind::Added)
        ]
    );
}

/// The content of a leaf by block: the id of the chunk, and its place.
fn by_block(leaf: Option<&Leaf>) -> BTreeMap<u32, LeafEntry> {
    leaf.into_iter()
        .flat_map(|leaf| leaf.entries())
        .flat_map(|entry| entry.block_range().map(move |block| (block, *entry)))
        .collect()
}

fn some_leaf() -> impl Strategy<Value = Option<Leaf>> {
    prop::collection::vec((0u32..4, 1u32..=64, 0u8..3), 0..20).prop_map(|gaps| {
        let mut end = 0;
        let entry = |(gap, blocks, id)| {
            let entry = (end + gap, blocks, id);
            end += gap + blocks;
            entry
        };
        let entries: Vec<_> = gaps.into_iter().map(entry).collect();
        (!entries.is_empty()).then(|| leaf(&entries))
    })
}

proptest! {
    #[test]
    fn diff_equals_the_naive_diff(base in some_leaf(), target in some_leaf()) {
        let (base_blocks, target_blocks) = (by_block(base.as_ref()), by_block(target.as_ref()));
        let mut found = BTreeMap::new();
        let mut previous: Option<LeafDiff> = None;
        for diff in diff_leaves(base.as_ref(), target.as_ref()) {
            if let Some(previous) = previous {
                let end = previous.start_block + previous.blocks;
                prop_assert!(end < diff.start_block
                    || end == diff.start_block && previous.kind != diff.kind);
            }
            found.extend((diff.start_block..diff.start_block + diff.blocks).map(|b| (b, diff.kind)));
            previous = Some(diff);
        }
        for block in 0..SEGMENT_BLOCKS {
            // A chunk that is in both at the same place counts in neither.
            let base = base_blocks.get(&block);
            let target = target_blocks.get(&block);
            let expected = match (base, target) {
                (base, target) if base == target => None,
                (Some(_), Some(_)) => Some(DiffKind::Changed),
                (None, _) => Some(DiffKind::Added),
                (_, None) => Some(DiffKind::Removed),
            };
            prop_assert_eq!(found.get(&block).copied(), expected, "block {}", block);
        }
    }
}
