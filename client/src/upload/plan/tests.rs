#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{collections::BTreeSet, io, ops::Range, sync::Arc};

use proptest::prelude::*;
use varve_content::block::{BLOCK_BYTES, SEGMENT_BLOCKS, SEGMENT_BYTES};

use super::{Job, Planner, Source};
use crate::limits::{FIND_SEGMENTS_MAX, JOB_BYTES};

/// A source that only has extents.
struct Extents {
    size_bytes: u64,
    data: Vec<Range<u64>>,
}

impl Source for Extents {
    fn name(&self) -> String {
        "extents".to_owned()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        let next = self.data.iter().find(|extent| extent.end > offset_bytes);
        Ok(next.map(|extent| extent.start.max(offset_bytes)..extent.end))
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("not to be read"))
    }
}

fn all_jobs(size_bytes: u64, data: &[Range<u64>]) -> Vec<Job> {
    let mut planner = Planner::new(Arc::new(Extents {
        size_bytes,
        data: data.to_vec(),
    }));
    std::iter::from_fn(|| planner.next_job().unwrap()).collect()
}

#[test]
fn thin_data_of_many_segments_is_few_jobs_and_a_full_segment_is_one() {
    let segment = SEGMENT_BYTES as u64;
    let thin: Vec<_> = (0..100)
        .map(|number| number * segment..number * segment + 4096)
        .collect();
    let jobs = all_jobs(100 * segment, &thin);
    let sizes: Vec<_> = jobs
        .iter()
        .map(|job| (job.segments.len(), job.blocks))
        .collect();
    assert_eq!(sizes, [(64, 64), (36, 36)]);

    let jobs = all_jobs(3 * segment, std::slice::from_ref(&(0..3 * segment)));
    assert_eq!(
        jobs.iter()
            .map(|job| (job.number, job.blocks))
            .collect::<Vec<_>>(),
        [(0, 2048), (1, 2048), (2, 2048)]
    );
}

#[test]
fn a_source_that_goes_backwards_is_an_error() {
    struct Stuck;
    impl Source for Stuck {
        fn name(&self) -> String {
            "stuck".to_owned()
        }
        fn size_bytes(&self) -> u64 {
            1 << 40
        }
        fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
            Ok(Some(0..4096))
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
    }
    let mut planner = Planner::new(Arc::new(Stuck));
    let failed = std::iter::from_fn(|| planner.next_job().transpose()).find(Result::is_err);
    assert!(failed.is_some());
}

proptest! {
    #[test]
    fn jobs_cover_the_data_once_and_in_order(
        lengths in prop::collection::vec((1u64..40_000, 1u64..400_000, 0u32..10), 1..60),
    ) {
        // Holes and data in turn, now and then a great hole.
        let mut data = Vec::new();
        let mut offset = 0;
        for (hole, extent, scale) in lengths {
            offset += if scale == 0 { hole << 12 } else { hole };
            let extent = if scale == 1 { extent << 6 } else { extent };
            data.push(offset..offset + extent);
            offset += extent;
        }
        let jobs = all_jobs(offset, &data);

        let mut expected = BTreeSet::new();
        for extent in &data {
            expected.extend(extent.start / BLOCK_BYTES as u64..extent.end.div_ceil(BLOCK_BYTES as u64));
        }
        let mut found = Vec::new();
        for (number, job) in (0..).zip(&jobs) {
            prop_assert_eq!(job.number, number);
            prop_assert!(job.blocks as usize * BLOCK_BYTES <= JOB_BYTES);
            prop_assert!(job.segments.len() <= FIND_SEGMENTS_MAX);
            let blocks: usize = job.segments.iter().flat_map(|segment| &segment.extents).map(ExactSizeIterator::len).sum();
            prop_assert_eq!(blocks, job.blocks as usize);
            for segment in &job.segments {
                for pair in segment.extents.windows(2) {
                    prop_assert!(pair[0].end < pair[1].start, "{:?} touch", pair);
                }
                for extent in &segment.extents {
                    prop_assert!(extent.end <= SEGMENT_BLOCKS);
                    let first = u64::from(segment.segment) * u64::from(SEGMENT_BLOCKS);
                    found.extend(extent.clone().map(|block| first + u64::from(block)));
                }
            }
        }
        prop_assert!(found.is_sorted_by(|a, b| a < b));
        prop_assert!(found.into_iter().eq(expected));
        let segments: Vec<_> = jobs.iter().flat_map(|job| &job.segments).map(|segment| segment.segment).collect();
        prop_assert!(segments.is_sorted_by(|a, b| a < b));
    }
}
