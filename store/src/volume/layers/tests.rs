#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use varve_content::block::SEGMENT_BLOCKS;

use super::*;
use crate::tests::{Random, seed};

/// Blocks as the layers have them: by what a reader is told of each.
fn places(stack: &Stack, blocks: u32) -> Vec<Place> {
    let mut places = Vec::new();
    for extent in stack.extents(0, blocks) {
        for _ in 0..extent.blocks {
            places.push(extent.place);
        }
    }
    assert_eq!(places.len(), blocks as usize);
    places
}

#[test]
fn changes_are_where_the_layers_differ_from_the_base() {
    const SEGMENTS: u32 = 12;
    const BLOCKS: u32 = SEGMENTS * SEGMENT_BLOCKS;
    let mut random = Random::new(seed());
    for _ in 0..300 {
        let mut stack = Stack {
            ended: Vec::new(),
            base: None,
        };
        for number in 0..random.below(4) {
            let mut epoch = Epoch::new(number as u64);
            for slot in 0..random.below(6) {
                let start = random.below(BLOCKS as usize) as u32;
                let longest = [1, SEGMENT_BLOCKS, BLOCKS][random.below(3)];
                let len = (1 + random.below(longest as usize) as u32).min(BLOCKS - start);
                if random.below(3) == 0 {
                    epoch.map.put(start.into(), 1, slot as u32);
                } else {
                    epoch.map.put_zeros(start.into(), len);
                }
            }
            stack.ended.push(Arc::new(epoch));
        }
        let places = places(&stack, BLOCKS);
        let mut told = vec![None; SEGMENTS as usize];
        let mut position = 0;
        for changed in stack.changes() {
            let segments = changed.segments();
            assert!(position <= segments.start && !segments.is_empty());
            position = segments.end;
            for segment in segments {
                told[segment as usize] = Some(matches!(changed, Changed::Zeroed(_)));
            }
        }
        for (segment, told) in told.iter().enumerate() {
            let blocks = SEGMENT_BLOCKS as usize;
            let places = &places[segment * blocks..(segment + 1) * blocks];
            let is_base = places.iter().all(|place| *place == Place::Base);
            let is_zeros = places.iter().all(|place| *place == Place::Zeros);
            match told {
                None => assert!(is_base, "segment {segment} was changed"),
                Some(true) => assert!(is_zeros, "segment {segment} is not all zeros"),
                Some(false) => assert!(!is_base, "segment {segment} was not changed"),
            }
        }
    }
}

#[test]
fn zeros_take_one_change_however_many_they_are() {
    let mut epoch = Epoch::new(0);
    let tib = (1u64 << 40) / 4096;
    for start in (0..tib).step_by(1 << 18) {
        epoch.map.put_zeros(start, 1 << 18);
    }
    epoch.map.put(tib / 2, 1, 7);
    let stack = Stack {
        ended: vec![Arc::new(epoch)],
        base: None,
    };
    let (middle, end) = (1 << 16, 1 << 17);
    assert_eq!(
        stack.changes(),
        [
            Changed::Zeroed(0..middle),
            Changed::Mixed(middle),
            Changed::Zeroed(middle + 1..end)
        ]
    );
}
