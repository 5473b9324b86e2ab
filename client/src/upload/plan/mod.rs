//! Planning reads: jobs of whole segments, with the holes left out.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use varve_content::block::{BLOCK_BYTES, SEGMENT_BLOCKS};

use super::source::Source;
use crate::limits::{FIND_SEGMENTS_MAX, JOB_BYTES};

/// Blocks of a job: as many as a segment has.
const JOB_BLOCKS: u32 = SEGMENT_BLOCKS;
const _: () = assert!(JOB_BLOCKS as usize * BLOCK_BYTES == JOB_BYTES);

/// Blocks of one segment that may hold data.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct SegmentData {
    pub(crate) segment: u32,
    /// In the segment; ascending, and at least a block apart. So each is cut by itself as it would
    /// be cut within the segment: a hole ends a chunk.
    pub(crate) extents: Vec<Range<u32>>,
}

/// Segments in ascending order with at most [`JOB_BYTES`] of data: when data is thin,
/// [`FIND_SEGMENTS_MAX`] of them.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Job {
    /// Counts up from 0 without a gap.
    pub(crate) number: u64,
    pub(crate) segments: Vec<SegmentData>,
    pub(crate) blocks: u32,
}

/// Walks a source's data in ascending order.
pub(crate) struct Planner {
    source: Arc<dyn Source>,
    /// All data before this was seen.
    offset_bytes: u64,
    /// Segments of data seen and not yet in a job. Only the last may still grow.
    ready: VecDeque<SegmentData>,
    /// The rest of an extent that spans segments, in blocks of the volume.
    rest: Range<u64>,
    next_number: u64,
}

impl Planner {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            offset_bytes: 0,
            ready: VecDeque::new(),
            rest: 0..0,
            next_number: 0,
        }
    }

    /// The next job, or `None` after the last data.
    pub(crate) fn next_job(&mut self) -> io::Result<Option<Job>> {
        let mut job = Job {
            number: self.next_number,
            ..Job::default()
        };
        while let Some(segment) = self.next_segment()? {
            let blocks = segment
                .extents
                .iter()
                .map(|extent| extent.end - extent.start)
                .sum::<u32>();
            let is_full = job.segments.len() == FIND_SEGMENTS_MAX;
            if is_full || job.blocks + blocks > JOB_BLOCKS {
                self.ready.push_front(segment);
                break;
            }
            job.blocks += blocks;
            job.segments.push(segment);
        }
        if job.segments.is_empty() {
            return Ok(None);
        }
        self.next_number += 1;
        Ok(Some(job))
    }

    /// The next segment that has data, with all of it.
    fn next_segment(&mut self) -> io::Result<Option<SegmentData>> {
        while self.ready.len() < 2 {
            if self.rest.is_empty() {
                let Some(data) = self.source.next_data(self.offset_bytes)? else {
                    break;
                };
                if data.is_empty() || data.end <= self.offset_bytes {
                    return Err(io::Error::other(format!(
                        "the source says that data at {} follows {}",
                        data.start, self.offset_bytes
                    )));
                }
                let data =
                    data.start.max(self.offset_bytes)..data.end.min(self.source.size_bytes());
                self.offset_bytes = data.end;
                // Outward to whole blocks: a file system's own blocks may be smaller than ours.
                let start = data.start / BLOCK_BYTES as u64;
                self.rest = start..data.end.div_ceil(BLOCK_BYTES as u64);
            }
            self.take_segment();
        }
        Ok(self.ready.pop_front())
    }

    /// Moves the part of `rest` in its first segment to `ready`.
    fn take_segment(&mut self) {
        let segment_blocks = u64::from(SEGMENT_BLOCKS);
        let segment = self.rest.start / segment_blocks;
        let first = segment * segment_blocks;
        let end = self.rest.end.min(first + segment_blocks);
        let extent = in_segment(self.rest.start - first)..in_segment(end - first);
        self.rest.start = end;
        let segment = u32::try_from(segment).unwrap_or(u32::MAX);
        match self.ready.back_mut() {
            Some(last) if last.segment == segment => match last.extents.last_mut() {
                // Two extents that share a block, or touch, are one.
                Some(before) if extent.start <= before.end => {
                    before.end = before.end.max(extent.end)
                }
                _ => last.extents.push(extent),
            },
            _ => self.ready.push_back(SegmentData {
                segment,
                extents: vec![extent],
            }),
        }
    }
}

/// A place in a segment: at most [`SEGMENT_BLOCKS`].
fn in_segment(block: u64) -> u32 {
    u32::try_from(block).map_or(SEGMENT_BLOCKS, |block| block.min(SEGMENT_BLOCKS))
}

#[cfg(test)]
mod tests;
