//! Cutting a segment again after some of its blocks changed, without reading all of it.

use std::ops::Range;

use super::cut::{Cut, CutRule, End};
use crate::block::{BLOCK_BYTES, SEGMENT_BLOCKS, is_zero};

/// One chunk of a segment that was cut again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Recut {
    /// The old chunk with this index, unchanged and in its old place.
    Kept(usize),
    /// A new chunk that has to be hashed.
    New {
        /// The place of the chunk in its segment, in blocks.
        cut: Cut,
        /// The plain bytes of the chunk.
        bytes: Vec<u8>,
    },
}

/// Cuts a segment again. The result, in ascending order, is the same as that of
/// [`cut_segment`](super::cut_segment) for the whole new segment.
///
/// * `old`: the block ranges of the chunks that the segment had, in ascending order, as the chunker
///   cut them.
/// * `changed`: the blocks that may differ since, in any order. Blocks that the old segment did not
///   have, because the volume has grown, count as changed.
/// * `zeros`: blocks that have become zeros, in any order. They count as changed, too, and are not
///   read.
/// * `segment_blocks`: length of the new segment in blocks.
/// * `read`: fills an empty buffer with the new bytes of a range of blocks, and with nothing else.
///
/// All ranges count blocks from the segment's start.
///
/// Old chunks before the first change are kept unread. `recut` reads and cuts blocks from the chunk
/// with the first change on, until a cut meets the start of an unchanged old chunk; from there it
/// keeps chunks again. It also reads an unchanged chunk if the hole behind it changed, because the
/// chunk may continue there now. Each call of `read` asks for blocks of one old chunk, or for
/// changed blocks where a hole was. Calls ascend and never overlap.
///
/// # Errors
///
/// The error of `read`, unchanged. `recut` itself cannot fail.
///
/// # Panics
///
/// If `segment_blocks` exceeds [`SEGMENT_BLOCKS`], `old` is not ascending, or `read` leaves another
/// number of bytes.
pub fn recut<E>(
    old: &[Range<u32>],
    changed: &[Range<u32>],
    zeros: &[Range<u32>],
    segment_blocks: u32,
    read: impl FnMut(Range<u32>, &mut Vec<u8>) -> Result<(), E>,
) -> Result<Vec<Recut>, E> {
    assert!(segment_blocks <= SEGMENT_BLOCKS, "a segment has a limit");
    assert!(
        old.iter().all(|chunk| chunk.start < chunk.end)
            && old.windows(2).all(|pair| pair[0].end <= pair[1].start),
        "the chunks of a segment ascend"
    );
    Recutter {
        old,
        changed: BlockSet::new(changed.iter().chain(zeros)),
        zeros: BlockSet::new(zeros),
        segment_blocks,
        read: Reader {
            read,
            bytes: Vec::new(),
            range: 0..0,
        },
        rule: CutRule::new(),
        position: 0,
        old_index: 0,
    }
    .run()
}

/// One bit per block of a segment.
struct BlockSet([u64; SEGMENT_BLOCKS as usize / 64]);

impl BlockSet {
    fn new<'a>(ranges: impl IntoIterator<Item = &'a Range<u32>>) -> Self {
        let mut bits = [0; SEGMENT_BLOCKS as usize / 64];
        for range in ranges {
            for block in range.start..range.end.min(SEGMENT_BLOCKS) {
                bits[block as usize / 64] |= 1 << (block % 64);
            }
        }
        Self(bits)
    }

    fn contains(&self, block: u32) -> bool {
        self.0[block as usize / 64] & 1 << (block % 64) != 0
    }

    fn touches(&self, mut blocks: Range<u32>) -> bool {
        blocks.any(|block| self.contains(block))
    }
}

/// The blocks last read.
struct Reader<F> {
    read: F,
    bytes: Vec<u8>,
    range: Range<u32>,
}

impl<F> Reader<F> {
    /// One block, read together with those behind it up to `until` unless it has been.
    fn block<E>(&mut self, block: u32, until: u32) -> Result<&[u8; BLOCK_BYTES], E>
    where
        F: FnMut(Range<u32>, &mut Vec<u8>) -> Result<(), E>,
    {
        if !self.range.contains(&block) {
            self.bytes.clear();
            (self.read)(block..until, &mut self.bytes)?;
            self.range = block..until;
            assert_eq!(
                self.bytes.len(),
                self.range.len() * BLOCK_BYTES,
                "a read gives the blocks it was asked for"
            );
        }
        let (blocks, _) = self.bytes.as_chunks::<BLOCK_BYTES>();
        Ok(&blocks[(block - self.range.start) as usize])
    }
}

/// The source of a block of the new segment, before it is read.
enum Source {
    /// Neither in an old chunk nor changed, or changed to zeros: a hole.
    Hole,
    /// The block has to be read, together with the blocks behind it up to `until`.
    Read { until: u32 },
}

/// The state between two chunks: everything before `position` is decided, and a chunk may begin
/// there, because a cut, a hole or the segment's edge is before it.
struct Recutter<'a, F> {
    old: &'a [Range<u32>],
    changed: BlockSet,
    /// The part of `changed` that became zeros.
    zeros: BlockSet,
    segment_blocks: u32,
    read: Reader<F>,
    rule: CutRule,
    position: u32,
    /// First old chunk that ends behind the block last looked at.
    old_index: usize,
}

impl<F> Recutter<'_, F> {
    fn run<E>(mut self) -> Result<Vec<Recut>, E>
    where
        F: FnMut(Range<u32>, &mut Vec<u8>) -> Result<(), E>,
    {
        let mut recuts = Vec::with_capacity(self.old.len());
        while self.position < self.segment_blocks {
            if let Some(kept) = self.keep() {
                recuts.push(Recut::Kept(kept));
            } else if let Some(recut) = self.cut()? {
                recuts.push(recut);
            }
        }
        Ok(recuts)
    }

    /// Takes over the old chunk that begins here, if it is still what the rule gives.
    fn keep(&mut self) -> Option<usize> {
        let chunk = self.old_chunk(self.position)?.clone();
        let starts_here = chunk.start == self.position;
        if !starts_here || chunk.end > self.segment_blocks || self.changed.touches(chunk.clone()) {
            return None;
        }
        // A chunk that another one followed at once ends by its own bytes. One that a hole followed
        // may have ended for that only, so what follows must still be that hole.
        let next_old = self.old.get(self.old_index + 1);
        let settled = next_old.is_some_and(|next| next.start == chunk.end);
        let followed_as_before =
            chunk.end == self.segment_blocks || !self.changed.contains(chunk.end);
        if !settled && !followed_as_before {
            return None;
        }
        self.position = chunk.end;
        Some(self.old_index)
    }

    /// Cuts one chunk from here on, or steps over one hole.
    fn cut<E>(&mut self) -> Result<Option<Recut>, E>
    where
        F: FnMut(Range<u32>, &mut Vec<u8>) -> Result<(), E>,
    {
        let start_block = self.position;
        let mut end = End::Open;
        let mut bytes = Vec::new();
        while end == End::Open && self.position < self.segment_blocks {
            let Source::Read { until } = self.source(self.position) else {
                break;
            };
            let block = self.read.block(self.position, until)?;
            if is_zero(block) {
                break;
            }
            bytes.extend_from_slice(block);
            self.position += 1;
            if self.rule.settles(block, self.position - start_block) {
                end = End::Settled;
            }
        }
        let cut = Cut {
            start_block,
            blocks: self.position - start_block,
            end,
        };
        if cut.blocks == 0 {
            // A hole. The rule is the same behind it, so one block at a time will do.
            self.position += 1;
            return Ok(None);
        }
        Ok(Some(match self.same_as_old(&cut) {
            Some(kept) => Recut::Kept(kept),
            None => Recut::New { cut, bytes },
        }))
    }

    /// The old chunk that `cut` equals: it was read because of the content behind it.
    fn same_as_old(&self, cut: &Cut) -> Option<usize> {
        let range = cut.block_range();
        let index = self.old.binary_search_by_key(&range.start, |old| old.start);
        let same =
            |&index: &usize| self.old[index] == range && !self.changed.touches(range.clone());
        index.ok().filter(same)
    }

    fn source(&mut self, block: u32) -> Source {
        let limit = self.segment_blocks;
        if self.zeros.contains(block) {
            return Source::Hole;
        }
        if let Some(chunk) = self.old_chunk(block)
            && chunk.contains(&block)
        {
            let limit = chunk.end.min(limit);
            let until = (block..limit)
                .find(|&block| self.zeros.contains(block))
                .unwrap_or(limit);
            return Source::Read { until };
        }
        if !self.changed.contains(block) {
            return Source::Hole;
        }
        let next_chunk = self.old_chunk(block).map_or(limit, |next| next.start);
        let limit = limit.min(next_chunk);
        let until = (block..limit)
            .find(|&block| !self.changed.contains(block) || self.zeros.contains(block))
            .unwrap_or(limit);
        Source::Read { until }
    }

    /// The first old chunk that ends behind `block`. Asked for ascending blocks only.
    fn old_chunk(&mut self, block: u32) -> Option<&Range<u32>> {
        while self
            .old
            .get(self.old_index)
            .is_some_and(|old| old.end <= block)
        {
            self.old_index += 1;
        }
        self.old.get(self.old_index)
    }
}

#[cfg(test)]
mod tests;
