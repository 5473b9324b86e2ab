#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use super::*;
use crate::tests::{Random, seed};

fn states(map: &BlockMap, start: u64, blocks: u32) -> Vec<State> {
    let mut states = Vec::new();
    let mut position = start;
    map.extents(start, blocks, |extent| {
        assert_eq!(extent.start, position, "extents follow one another");
        assert!(extent.blocks > 0);
        position += u64::from(extent.blocks);
        for at in 0..extent.blocks {
            states.push(match extent.state {
                State::At(slot) => State::At(slot + at),
                other => other,
            });
        }
    });
    assert_eq!(states.len(), blocks as usize);
    states
}

#[test]
fn it_says_what_an_array_says() {
    let mut random = Random::new(seed());
    let blocks = 5 * SEGMENT_BLOCKS as usize + 77;
    for _ in 0..20 {
        let mut map = BlockMap::default();
        let mut model = vec![State::Absent; blocks];
        let mut slot = 0;
        let longest = [1, 8, 300, 5000][random.below(4)];
        for _ in 0..400 {
            let start = random.below(blocks);
            let len = (1 + random.below(longest)).min(blocks - start);
            if random.below(4) == 0 {
                map.put_zeros(start as u64, len as u32);
                model[start..start + len].fill(State::Zeros);
            } else {
                map.put(start as u64, len as u32, slot);
                for at in 0..len {
                    model[start + at] = State::At(slot + at as u32);
                }
                slot += len as u32;
            }
            let from = random.below(blocks);
            let count = 1 + random.below(blocks - from);
            assert_eq!(
                states(&map, from as u64, count as u32),
                model[from..from + count]
            );
        }
        assert_eq!(states(&map, 0, blocks as u32), model);
    }
}

#[test]
fn neighbours_come_as_one() {
    let mut map = BlockMap::default();
    map.put(2040, 16, 100);
    map.put_zeros(2056, 2048 * 3);
    let mut extents = Vec::new();
    map.extents(2030, 2048 * 4, |extent| {
        extents.push((extent.blocks, extent.state))
    });
    assert_eq!(
        extents,
        [
            (10, State::Absent),
            (16, State::At(100)),
            (2048 * 3, State::Zeros),
            (2048 - 26, State::Absent)
        ]
    );
}

#[test]
fn a_volume_of_any_size_is_zeroed_in_little_memory() {
    let mut map = BlockMap::default();
    for start in (0..1u64 << 32).step_by(1 << 31) {
        map.put_zeros(start, 1 << 31);
    }
    assert!(map.memory_bytes() < 4096, "{}", map.memory_bytes());
    assert_eq!(
        states(&map, (1 << 32) - 4, 4),
        [State::Zeros; 4],
        "up to the last block"
    );
    map.put(1 << 31, 1, 7);
    let around = states(&map, (1 << 31) - 1, 3);
    assert_eq!(around, [State::Zeros, State::At(7), State::Zeros]);
}

/// A guest gives back its free space in pieces that keep to no segments, from all ends.
#[test]
fn zeros_that_come_in_pieces_are_one_range_in_the_end() {
    let mut random = Random::new(seed());
    for piece in [1, 999, 5000u64] {
        let blocks = 40 * u64::from(SEGMENT_BLOCKS);
        let mut pieces: Vec<u64> = (0..blocks).step_by(piece as usize).collect();
        for at in (1..pieces.len()).rev() {
            pieces.swap(at, random.below(at + 1));
        }
        let mut map = BlockMap::default();
        map.put(77, 3000, 5);
        for start in pieces {
            map.put_zeros(start, piece.min(blocks - start) as u32);
        }
        assert_eq!(map.mixed().count(), 0);
        assert!(map.zeroed().eq(std::iter::once(0..40)));
        assert!(map.memory_bytes() < 1000, "{}", map.memory_bytes());
    }
}

/// Bytes of memory for each block that was changed.
fn bytes_a_block(map: &BlockMap, volume: u32) -> f64 {
    let mut changed = 0;
    map.extents(0, volume, |extent| {
        changed += u64::from(extent.blocks) * u64::from(extent.state != State::Absent);
    });
    map.memory_bytes() as f64 / changed as f64
}

#[test]
fn single_blocks_all_over_a_volume_take_little_more_than_ten_bytes_each() {
    let mut random = Random::new(seed());
    // One block at a time, spread over 8 GiB, until most of it was changed.
    let volume = 2 << 20;
    let mut map = BlockMap::default();
    let mut most: f64 = 0.0;
    for slot in 0..2 * volume {
        map.put(random.below(volume as usize) as u64, 1, slot);
        if slot % (volume / 16) == volume / 32 {
            most = most.max(bytes_a_block(&map, volume));
        }
    }
    let dense = bytes_a_block(&map, volume);
    assert!(most <= 10.5, "{most} bytes a block");
    assert!(dense <= 5.0, "{dense} bytes a block");
}

#[test]
fn what_is_written_in_order_takes_next_to_nothing() {
    let mut map = BlockMap::default();
    // 4 GiB in pieces of 64 KiB, and then once more.
    for round in 0..2 {
        for piece in 0..1 << 16 {
            map.put(piece * 16, 16, (round << 20) + piece as u32 * 16);
        }
    }
    let bytes = bytes_a_block(&map, 1 << 20);
    assert!(bytes < 0.1, "{bytes} bytes a block");
}
