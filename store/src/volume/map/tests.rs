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
    map.runs(start, blocks, |run| {
        assert_eq!(run.start, position, "runs follow one another");
        assert!(run.blocks > 0);
        position += u64::from(run.blocks);
        for at in 0..run.blocks {
            states.push(match run.state {
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
    let mut runs = Vec::new();
    map.runs(2030, 2048 * 4, |run| runs.push((run.blocks, run.state)));
    assert_eq!(
        runs,
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

#[test]
fn dense_changes_take_no_more_than_eight_bytes_a_block() {
    let mut random = Random::new(seed());
    // 1 GiB of changes, one block at a time, spread over 8 GiB.
    let (volume, changes) = (2 << 20, 256 << 10);
    let mut map = BlockMap::default();
    for slot in 0..changes {
        map.put(random.below(volume) as u64, 1, slot);
    }
    let mut changed = 0;
    map.runs(0, volume as u32, |run| {
        changed += u64::from(run.blocks) * u64::from(run.state != State::Absent);
    });
    let per_block = map.memory_bytes() as f64 / changed as f64;
    assert!(per_block <= 8.5, "{per_block} bytes a block");
}
