//! Tests that cutting again gives what cutting afresh gives, and reads little.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]

use std::convert::Infallible;

use proptest::prelude::*;

use super::super::{MAX_CHUNK_BLOCKS, cut_segment};
use super::*;
use crate::samples::{Piece, lay_out, piece, segment};

fn cut(segment: &[u8]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    cut_segment(segment, &mut cuts);
    cuts
}

fn block_ranges(segment: &[u8]) -> Vec<Range<u32>> {
    cut(segment).iter().map(Cut::block_range).collect()
}

fn blocks_of(segment: &[u8]) -> u32 {
    u32::try_from(segment.len() / BLOCK_BYTES).unwrap()
}

fn slice(segment: &[u8], blocks: Range<u32>) -> &[u8] {
    &segment[blocks.start as usize * BLOCK_BYTES..blocks.end as usize * BLOCK_BYTES]
}

/// Cuts `new` again and checks all promises. Returns the ranges that were read.
fn check_recut(old: &[u8], new: &[u8], changed: &[Range<u32>]) -> Vec<Range<u32>> {
    let old_chunks = block_ranges(old);
    let changed_blocks = BlockSet::new(changed);
    let mut reads: Vec<Range<u32>> = Vec::new();
    let recuts = recut(
        &old_chunks,
        changed,
        &[],
        blocks_of(new),
        |blocks, bytes| {
            assert!(!blocks.is_empty() && bytes.is_empty());
            assert!(reads.last().is_none_or(|last| last.end <= blocks.start));
            let overlaps =
                |chunk: &&Range<u32>| chunk.start < blocks.end && blocks.start < chunk.end;
            match old_chunks.iter().find(overlaps) {
                Some(chunk) => assert!(chunk.start <= blocks.start && blocks.end <= chunk.end),
                None => assert!(changed_blocks.touches(blocks.clone())),
            }
            bytes.extend_from_slice(slice(new, blocks.clone()));
            reads.push(blocks);
            Ok::<_, Infallible>(())
        },
    )
    .unwrap();

    let expected = cut(new);
    assert_eq!(recuts.len(), expected.len());
    for (recut, expected) in recuts.iter().zip(&expected) {
        match recut {
            Recut::Kept(index) => {
                let range = old_chunks[*index].clone();
                assert_eq!(range, expected.block_range());
                assert_eq!(slice(old, range.clone()), slice(new, range.clone()));
                // A chunk that is kept was read only if what follows it made that necessary.
                let read = reads.iter().any(|read| read.contains(&range.start));
                let behind_changed = changed.iter().any(|blocks| blocks.contains(&range.end));
                assert!(!read || behind_changed, "{range:?} was read for nothing");
            }
            Recut::New { cut, bytes } => {
                assert_eq!(cut, expected);
                assert_eq!(bytes, slice(new, cut.block_range()));
            }
        }
    }
    check_zeros(&old_chunks, new, changed, &recuts);
    reads
}

/// With the zero blocks given as such, the result is the same, and they are not read.
fn check_zeros(old: &[Range<u32>], new: &[u8], changed: &[Range<u32>], expected: &[Recut]) {
    let is_zeros = |&block: &u32| is_zero(slice(new, block..block + 1));
    let zeros: Vec<_> = changed
        .iter()
        .flat_map(|range| range.start..range.end.min(blocks_of(new)))
        .filter(is_zeros)
        .map(|block| block..block + 1)
        .collect();
    let set = BlockSet::new(&zeros);
    let recuts = recut(old, changed, &zeros, blocks_of(new), |blocks, bytes| {
        assert!(!set.touches(blocks.clone()), "{blocks:?} holds known zeros");
        bytes.extend_from_slice(slice(new, blocks));
        Ok::<_, Infallible>(())
    });
    assert_eq!(recuts.unwrap(), expected);
}

/// A change of a segment.
#[derive(Clone, Debug)]
enum Edit {
    /// Overwrites from a block on.
    Write {
        at: prop::sample::Index,
        piece: Piece,
    },
    /// Moves the content behind a block by the piece's length, and inserts the piece.
    Insert {
        at: prop::sample::Index,
        piece: Piece,
    },
    /// Removes blocks and moves up the content behind them.
    Remove {
        at: prop::sample::Index,
        blocks: u32,
    },
    /// Reports blocks as changed that did not change.
    Touch {
        at: prop::sample::Index,
        blocks: u32,
    },
    /// Another size.
    Resize { blocks: u32 },
}

impl Edit {
    /// Applies it and returns the blocks that may have changed.
    fn apply(&self, content: &mut Vec<u8>) -> Range<u32> {
        let blocks = blocks_of(content);
        let place = |at: &prop::sample::Index| u32::try_from(at.index(blocks as usize)).unwrap();
        match self {
            Self::Write { at, piece } => {
                let start = place(at);
                let byte = start as usize * BLOCK_BYTES;
                let mut bytes = piece.bytes();
                bytes.truncate(content.len() - byte);
                content[byte..byte + bytes.len()].copy_from_slice(&bytes);
                start..start + blocks_of(&bytes)
            }
            Self::Insert { at, piece } => {
                let start = place(at);
                let byte = start as usize * BLOCK_BYTES;
                let len = content.len();
                content.splice(byte..byte, piece.bytes());
                content.truncate(len);
                start..blocks
            }
            Self::Remove { at, blocks: count } => {
                let start = place(at);
                let end = blocks.min(start + count);
                let len = content.len();
                content.drain(start as usize * BLOCK_BYTES..end as usize * BLOCK_BYTES);
                content.resize(len, 0);
                start..blocks
            }
            Self::Touch { at, blocks: count } => {
                let start = place(at);
                start..start + count
            }
            Self::Resize { blocks: count } => {
                content.resize(*count as usize * BLOCK_BYTES, 0);
                blocks..*count
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        6 => (at(), piece()).prop_map(|(at, piece)| Edit::Write { at, piece }),
        2 => (at(), piece()).prop_map(|(at, piece)| Edit::Insert { at, piece }),
        2 => (at(), 1u32..50).prop_map(|(at, blocks)| Edit::Remove { at, blocks }),
        2 => (at(), 1u32..50).prop_map(|(at, blocks)| Edit::Touch { at, blocks }),
        1 => (1u32..=800).prop_map(|blocks| Edit::Resize { blocks }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn recut_equals_a_full_cut(
        old in segment(800),
        edits in prop::collection::vec(edit(), 0..5),
    ) {
        let mut new = old.clone();
        let changed: Vec<_> = edits.iter().map(|edit| edit.apply(&mut new)).collect();
        check_recut(&old, &new, &changed);
    }

    #[test]
    fn recut_of_unrelated_content_equals_a_full_cut(old in segment(400), new in segment(400)) {
        check_recut(&old, &new, &[0..blocks_of(&new)]);
    }

    /// Single blocks set, cleared and overwritten at the critical places: the edges of chunks.
    #[test]
    fn recut_at_the_edges_of_chunks(
        old in segment(400),
        edits in prop::collection::vec((any::<prop::sample::Index>(), -1i64..=1, 0u8..4), 1..6),
    ) {
        let chunks = block_ranges(&old);
        prop_assume!(!chunks.is_empty());
        let mut new = old.clone();
        let mut changed = Vec::new();
        for (at, offset, byte) in edits {
            let edge = chunks[at.index(chunks.len())].end;
            let block = i64::from(edge) + offset;
            let Ok(block) = u32::try_from(block) else { continue };
            if block < blocks_of(&old) {
                new[block as usize * BLOCK_BYTES..][..BLOCK_BYTES].fill(byte);
                changed.push(block..block + 1);
            }
        }
        check_recut(&old, &new, &changed);
    }
}

#[test]
fn nothing_changed_reads_nothing() {
    let content = lay_out(
        &[Piece::File {
            seed: 1,
            bytes: 3_000_000,
        }],
        SEGMENT_BLOCKS,
    );
    assert_eq!(check_recut(&content, &content, &[]), []);
}

#[test]
fn an_empty_segment() {
    assert_eq!(check_recut(&[], &[], &[]), []);
    let hole = vec![0; 16 * BLOCK_BYTES];
    assert_eq!(check_recut(&hole, &hole, &[]), []);
    // Blocks outside of the segment are ignored.
    assert_eq!(check_recut(&hole, &hole, &[16..u32::MAX]), []);
}

#[test]
fn one_block_changed_reads_its_neighbourhood() {
    let old = lay_out(
        &[Piece::File {
            seed: 1,
            bytes: 8 << 20,
        }],
        SEGMENT_BLOCKS,
    );
    let chunks = block_ranges(&old);
    for block in (0..SEGMENT_BLOCKS).step_by(97) {
        let mut new = old.clone();
        new[block as usize * BLOCK_BYTES] ^= 1;
        let reads = check_recut(&old, &new, &[block..block + 1]);
        let holder = chunks.iter().find(|chunk| chunk.contains(&block)).unwrap();
        assert_eq!(reads[0].start, holder.start);
        let read: u32 = reads.iter().map(|read| read.end - read.start).sum();
        assert!(
            read <= 4 * MAX_CHUNK_BLOCKS,
            "{read} blocks read for {block}"
        );
    }
}

#[test]
fn data_in_a_hole_reads_that_data_only() {
    let file = |seed| Piece::File {
        seed,
        bytes: 64 * BLOCK_BYTES,
    };
    let hole = Piece::Hole { blocks: 64 };
    let old = lay_out(&[file(1), hole, file(2)], 192);
    let mut new = old.clone();
    new[100 * BLOCK_BYTES..103 * BLOCK_BYTES].fill(7);
    let spans = check_recut(&old, &new, &[100..103]);
    assert_eq!(spans, [100..103]);
}

#[test]
fn a_chunk_before_filled_hole_is_read_again() {
    // Two blocks, ended by a hole: with data behind them they go on.
    let near = |blocks| Piece::NearlyZero { last: true, blocks };
    let old = lay_out(&[near(2)], 8);
    let new = lay_out(&[near(3)], 8);
    assert_eq!(check_recut(&old, &new, &[2..3]), [0..2, 2..3]);
    // A settled one is read as well, because nothing shows that it is settled, but kept.
    let tail = Piece::File {
        seed: 1,
        bytes: 4 * BLOCK_BYTES - 100,
    };
    let old = lay_out(std::slice::from_ref(&tail), 8);
    let new = lay_out(&[tail, near(1)], 8);
    assert_eq!(check_recut(&old, &new, &[4..5]), [0..4, 4..5]);
}

#[test]
fn an_error_of_the_reader_is_passed_on() {
    let result = recut(&[0..4], &[1..2], &[], 4, |blocks, _| Err(blocks));
    assert_eq!(result, Err(0..4));
}

#[test]
#[should_panic(expected = "ascend")]
fn chunks_out_of_order_are_a_mistake_of_the_caller() {
    let _ = recut(&[4..8, 0..4], &[], &[], 8, |_, _| Ok::<_, Infallible>(()));
}
