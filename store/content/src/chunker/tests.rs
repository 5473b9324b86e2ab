//! Tests of the cut rule and of the check of single chunks.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use proptest::prelude::*;

use super::cut::CutRule;
use super::*;
use crate::block::{SEGMENT_BYTES, is_zero};
use crate::chunk_id::ChunkId;
use crate::samples::{Piece, Random, lay_out, segment};
use crate::tree::{Leaf, LeafEntry};

fn cut(segment: &[u8]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    cut_segment(segment, &mut cuts);
    cuts
}

/// `(start block, blocks, settled)` of each cut.
fn cut_points(segment: &[u8]) -> Vec<(u32, u32, bool)> {
    let point = |cut: &Cut| (cut.start_block, cut.blocks, cut.end == End::Settled);
    cut(segment).iter().map(point).collect()
}

/// A full segment of files, holes and some odd pieces.
fn pinned_segment() -> Vec<u8> {
    let mut random = Random::new(2026);
    let mut pieces = vec![
        Piece::Flat {
            byte: 0xff,
            blocks: 70,
        },
        Piece::Flat {
            byte: 0x20,
            blocks: 70,
        },
        Piece::NearlyZero {
            last: true,
            blocks: 6,
        },
        Piece::NearlyZero {
            last: false,
            blocks: 6,
        },
        Piece::Hole { blocks: 1 },
    ];
    for _ in 0..48 {
        let seed = random.next();
        let small = 1 + usize::try_from(random.below(30_000)).unwrap();
        let large = 1 + usize::try_from(random.below(500_000)).unwrap();
        let hole = 1 + usize::try_from(random.below(9)).unwrap();
        pieces.push(match random.below(4) {
            0 => Piece::Hole { blocks: hole },
            1 => Piece::File { seed, bytes: large },
            _ => Piece::File { seed, bytes: small },
        });
    }
    lay_out(&pieces, SEGMENT_BLOCKS)
}

/// A failure means that equal content would be cut otherwise than in every existing store. If that
/// is intended, it needs a new `CHUNKER_VERSION`, and these cut points are kept for the old one.
#[test]
fn cut_points_are_pinned() {
    let points = cut_points(&pinned_segment());
    assert_eq!(points[..PINNED_FIRST.len()], PINNED_FIRST);
    let all = format!("{points:?}");
    assert_eq!(ChunkId::of(all.as_bytes()).to_string(), PINNED_ALL, "{all}");
    assert_eq!(points.len(), PINNED_COUNT);
}

/// How many chunks the pinned segment has, and the hash of their list as `cut_points` formats it.
const PINNED_COUNT: usize = 81;
const PINNED_ALL: &str = "fa29f377c3d7e1903cd283b596a7f41eb013c247b0891c9c5599fca5fb8d8ecd";

/// The first of them, to see something when the rest differs.
#[rustfmt::skip]
const PINNED_FIRST: [(u32, u32, bool); 16] = [
    (0, 64, true), (64, 64, true), (128, 19, true), (147, 4, true),
    (151, 1, false), (153, 13, true), (166, 18, true), (184, 17, true),
    (201, 10, true), (211, 12, true), (223, 21, true), (244, 17, true),
    (261, 23, true), (284, 8, true), (292, 28, true), (320, 35, true),
];

#[test]
fn masks_are_pinned() {
    let rule = CutRule::new();
    // Below the minimum nothing cuts, at the maximum everything does.
    let block = [0x55; BLOCK_BYTES];
    assert!((1..MIN_CHUNK_BLOCKS).all(|number| !rule.settles(&block, number)));
    assert!(rule.settles(&block, MAX_CHUNK_BLOCKS));
    // How often random blocks cut: 1 in 32 below the target, 1 in 8 from it on.
    let mut random = Random::new(1);
    let blocks: Vec<[u8; BLOCK_BYTES]> = (0..4096)
        .map(|_| random.bytes(BLOCK_BYTES).try_into().unwrap())
        .collect();
    let count = |number| {
        let settled = blocks.iter().filter(|block| rule.settles(block, number));
        settled.count()
    };
    assert_eq!(count(MIN_CHUNK_BLOCKS), count(TARGET_CHUNK_BLOCKS - 1));
    assert_eq!(count(TARGET_CHUNK_BLOCKS), count(MAX_CHUNK_BLOCKS - 1));
    assert!((100..156).contains(&count(MIN_CHUNK_BLOCKS)), "about 128");
    assert!(
        (450..574).contains(&count(TARGET_CHUNK_BLOCKS)),
        "about 512"
    );
}

#[test]
fn hash_is_the_gear_hash_of_the_last_64_bytes() {
    // The textbook form, byte after byte, over the whole block: it forgets all but 64.
    let (gear, _) = fastcdc::v2020::get_gear_with_seed(0);
    let mut random = Random::new(7);
    for _ in 0..100 {
        let block: [u8; BLOCK_BYTES] = random.bytes(BLOCK_BYTES).try_into().unwrap();
        let step = |hash: u64, &byte: &u8| (hash << 1).wrapping_add(gear[usize::from(byte)]);
        let expected = block.iter().fold(0, step);
        assert_eq!(CutRule::new().hash_end(&block), expected);
    }
}

#[test]
fn a_hole_and_the_edge_end_chunks_open() {
    assert_eq!(cut_points(&[]), []);
    assert_eq!(cut_points(&lay_out(&[], 5)), []);
    let near = |blocks| Piece::NearlyZero { last: true, blocks };
    let hole = |blocks| Piece::Hole { blocks };
    let content = lay_out(&[near(1), hole(1), near(3), hole(2), near(1)], 8);
    assert_eq!(
        cut_points(&content),
        [(0, 1, false), (2, 3, false), (7, 1, false)]
    );
}

#[test]
fn a_file_tail_ends_a_chunk_from_the_minimum_on() {
    // Three blocks, less 32 bytes at the end: too short to be cut. With the next file's, long
    // enough.
    let file = |seed, blocks: usize, pad| Piece::File {
        seed,
        bytes: blocks * BLOCK_BYTES - pad,
    };
    let content = lay_out(&[file(1, 3, 32), file(2, 2, 32), file(3, 2, 31)], 7);
    assert_eq!(cut_points(&content), [(0, 5, true), (5, 2, false)]);
    // One zero byte less is no tail.
    let content = lay_out(&[file(1, 3, 31), file(2, 2, 31), file(3, 2, 31)], 7);
    assert_eq!(cut_points(&content), [(0, 7, false)]);
    // A tail at the segment's edge is settled: it ends there whatever follows.
    let content = lay_out(&[file(1, 4, 100)], 4);
    assert_eq!(cut_points(&content), [(0, 4, true)]);
}

#[test]
fn a_chunk_of_one_block_at_the_edge() {
    let tail = Piece::File {
        seed: 1,
        bytes: 4 * BLOCK_BYTES - 32,
    };
    let one = Piece::File { seed: 2, bytes: 1 };
    let mut pieces = vec![tail; SEGMENT_BLOCKS as usize / 4 - 1];
    pieces.extend([Piece::Hole { blocks: 3 }, one]);
    let points = cut_points(&lay_out(&pieces, SEGMENT_BLOCKS));
    assert_eq!(points.last(), Some(&(2047, 1, false)));
    assert_eq!(points.len(), 512);
}

#[test]
#[should_panic(expected = "whole blocks")]
fn a_partial_block_is_a_mistake_of_the_caller() {
    cut(&[1; BLOCK_BYTES + 1]);
}

#[test]
#[should_panic(expected = "limit")]
fn more_than_a_segment_is_a_mistake_of_the_caller() {
    cut(&vec![0; SEGMENT_BYTES + BLOCK_BYTES]);
}

#[test]
fn chunks_of_impossible_lengths_are_not_canonical() {
    for bytes in [
        0,
        1,
        BLOCK_BYTES - 1,
        BLOCK_BYTES + 1,
        MAX_CHUNK_BYTES + BLOCK_BYTES,
    ] {
        let error = check_canonical(&vec![1; bytes]).unwrap_err();
        assert_eq!(error, NotCanonical::Length { bytes });
    }
}

#[test]
fn a_zero_block_is_not_canonical() {
    let content = lay_out(
        &[Piece::NearlyZero {
            last: true,
            blocks: 2,
        }],
        3,
    );
    let error = check_canonical(&content).unwrap_err();
    assert_eq!(error, NotCanonical::ZeroBlock { block: 2 });
    assert_eq!(
        error.to_string(),
        "check a chunk's cut: block 2 of the chunk is all zero"
    );
}

/// Returns true if the checks of single chunks and of the leaf accept these chunks of a segment.
fn passes(content: &[u8], chunks: &[(u32, u32)]) -> bool {
    let entry = |&(start_block, blocks): &(u32, u32)| LeafEntry {
        start_block,
        blocks,
        chunk: ChunkId::from_bytes([0; 32]),
    };
    let Ok(leaf) = Leaf::new(chunks.iter().map(entry).collect()) else {
        return false;
    };
    let segment_blocks = u32::try_from(content.len() / BLOCK_BYTES).unwrap();
    (0..).zip(leaf.entries()).all(|(index, entry)| {
        let bytes = &content[entry.start_block as usize * BLOCK_BYTES..]
            [..entry.blocks as usize * BLOCK_BYTES];
        match check_canonical(bytes) {
            Ok(End::Settled) => true,
            Ok(End::Open) => leaf.open_end_fits(index, segment_blocks),
            Err(_) => false,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn cuts_cover_exactly_what_is_not_zero(content in segment(600)) {
        let mut covered = vec![false; content.len() / BLOCK_BYTES];
        let mut previous_end = 0;
        for cut in cut(&content) {
            prop_assert!(cut.start_block >= previous_end);
            prop_assert!((1..=MAX_CHUNK_BLOCKS).contains(&cut.blocks));
            prop_assert!(cut.end == End::Open || cut.blocks >= MIN_CHUNK_BLOCKS);
            previous_end = cut.block_range().end;
            covered[cut.start_block as usize..previous_end as usize].fill(true);
        }
        for (covered, block) in covered.into_iter().zip(content.chunks(BLOCK_BYTES)) {
            prop_assert_eq!(covered, !is_zero(block));
        }
    }

    #[test]
    fn every_chunk_that_was_cut_is_canonical(content in segment(600)) {
        for cut in cut(&content) {
            prop_assert_eq!(check_canonical(&content[cut.byte_range()]), Ok(cut.end));
        }
    }

    #[test]
    fn merged_chunks_are_not_canonical(content in segment(600)) {
        for pair in cut(&content).windows(2) {
            let [first, second] = pair else { unreachable!() };
            if first.block_range().end != second.start_block {
                continue;
            }
            let merged = &content[first.byte_range().start..second.byte_range().end];
            let expected = if merged.len() > MAX_CHUNK_BYTES {
                NotCanonical::Length { bytes: merged.len() }
            } else {
                NotCanonical::CutInside { block: first.blocks }
            };
            prop_assert_eq!(check_canonical(merged), Err(expected));
        }
    }

    /// The cut is the only one that passes: whatever one chunk is split, or two are merged or
    /// shifted against each other, some chunk of the leaf is refused.
    #[test]
    fn no_other_chunks_pass(
        content in segment(600),
        at in any::<prop::sample::Index>(),
        by in any::<prop::sample::Index>(),
    ) {
        let chunks: Vec<(u32, u32)> =
            cut(&content).iter().map(|cut| (cut.start_block, cut.blocks)).collect();
        prop_assume!(!chunks.is_empty());
        prop_assert!(passes(&content, &chunks));

        let index = at.index(chunks.len());
        let (start, blocks) = chunks[index];
        if blocks > 1 {
            let first = 1 + u32::try_from(by.index(blocks as usize - 1)).unwrap();
            let mut split = chunks.clone();
            split.splice(index..=index, [(start, first), (start + first, blocks - first)]);
            prop_assert!(!passes(&content, &split));
            if let Some(&(next, next_blocks)) = chunks.get(index + 1) && next == start + blocks {
                let mut shifted = chunks.clone();
                shifted[index].1 = first;
                shifted[index + 1] = (start + first, next_blocks + blocks - first);
                prop_assert!(!passes(&content, &shifted));
            }
        }
        if let Some(&(next, next_blocks)) = chunks.get(index + 1) {
            let mut merged = chunks.clone();
            merged.splice(index..=index + 1, [(start, next + next_blocks - start)]);
            prop_assert!(!passes(&content, &merged));
        }
    }

    #[test]
    fn any_bytes_are_judged(content in prop::collection::vec(any::<u8>(), 0..3 * BLOCK_BYTES)) {
        let whole = content.len() % BLOCK_BYTES == 0 && !content.is_empty();
        prop_assert!(whole || check_canonical(&content).is_err());
    }
}
