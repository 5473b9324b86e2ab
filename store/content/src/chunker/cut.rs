//! The cut rule, and cutting a whole segment by it.

use std::ops::Range;
use std::sync::LazyLock;

use fastcdc::v2020::{MASKS, get_gear_with_seed};

use super::{MAX_CHUNK_BLOCKS, MIN_CHUNK_BLOCKS, TARGET_CHUNK_BLOCKS};
use crate::block::{BLOCK_BYTES, SEGMENT_BYTES, is_zero};

/// Bytes at a block's end that the gear hash covers. A 64-bit gear hash shifts by one bit per byte,
/// so earlier bytes have no effect on it.
const WINDOW_BYTES: usize = 64;

/// Zero bytes at a block's end that mark the padded tail of a file.
const TAIL_BYTES: usize = 32;

/// Number of hash bits that must be zero for a cut, below [`TARGET_CHUNK_BLOCKS`] and from there
/// on. This is FastCDC's normalised chunking: one bit to either side of the 4 bits that stand for
/// one cut in 16 blocks. On a Debian 12 ext4 image, where the tails of files end many chunks early,
/// the average chunk has 43 KiB. According to the measurements of the design, smaller chunks gain
/// little.
const STRICT_BITS: u32 = 5;
const LOOSE_BITS: u32 = 3;

/// The masks are the highest bits of the mask that the `fastcdc` crate has for a 64 KiB target.
/// That mask is for a test at every byte and has 16 bits; a test at every 4096th byte needs 12
/// fewer. The highest bits are the right ones because bit k of a gear hash depends on the last k +
/// 1 bytes: low bits would see just a block's last few bytes, which are the same in too many
/// blocks.
const TARGET_MASK: u64 = MASKS[16];
const STRICT_MASK: u64 = highest_bits(TARGET_MASK, STRICT_BITS);
const LOOSE_MASK: u64 = highest_bits(TARGET_MASK, LOOSE_BITS);

const _: () = assert!(1 << (STRICT_BITS + LOOSE_BITS) == TARGET_CHUNK_BLOCKS.pow(2));
const _: () = assert!(STRICT_MASK & LOOSE_MASK == LOOSE_MASK);

/// The `count` highest of the bits set in `mask`.
const fn highest_bits(mut mask: u64, count: u32) -> u64 {
    assert!(count <= mask.count_ones());
    while mask.count_ones() > count {
        // Clears the lowest bit that is set.
        mask &= mask - 1;
    }
    mask
}

/// The gear table of the `fastcdc` crate: one random number for each value of a byte.
static GEAR: LazyLock<[u64; 256]> = LazyLock::new(|| {
    let (gear, _) = get_gear_with_seed(0);
    std::array::from_fn(|byte| gear[byte])
});

/// The reason why a chunk ends where it does.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// The chunk's own bytes end it: a hash cut, the tail of a file, or the maximum length. The
    /// bytes behind it have no effect.
    Settled,
    /// The chunk ends only because a zero block or the segment's edge follows. Other data there
    /// would make it longer.
    Open,
}

/// One chunk of a segment: the result of a cut.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Cut {
    /// First block, counted from the segment's start.
    pub start_block: u32,
    /// Length in blocks, 1 to [`MAX_CHUNK_BLOCKS`].
    pub blocks: u32,
    /// The reason why it ends there.
    pub end: End,
}

impl Cut {
    /// The blocks it covers, counted from the segment's start.
    #[must_use]
    pub fn block_range(&self) -> Range<u32> {
        self.start_block..self.start_block + self.blocks
    }

    /// The bytes it covers, counted from the segment's start.
    #[must_use]
    pub fn byte_range(&self) -> Range<usize> {
        let Range { start, end } = self.block_range();
        start as usize * BLOCK_BYTES..end as usize * BLOCK_BYTES
    }
}

/// The cut rule. Everything that cuts or checks goes through it.
#[derive(Copy, Clone)]
pub(super) struct CutRule {
    gear: &'static [u64; 256],
}

impl CutRule {
    pub(super) fn new() -> Self {
        Self { gear: &GEAR }
    }

    /// Returns true if `block` ends its chunk whatever follows. `number` is the number of the block
    /// in its chunk, counted from 1. `block` is not zero.
    #[inline]
    pub(super) fn settles(self, block: &[u8; BLOCK_BYTES], number: u32) -> bool {
        if number < MIN_CHUNK_BLOCKS {
            return false;
        }
        if number >= MAX_CHUNK_BLOCKS {
            return true;
        }
        let mask = if number < TARGET_CHUNK_BLOCKS {
            STRICT_MASK
        } else {
            LOOSE_MASK
        };
        let (_, tail) = block.split_at(BLOCK_BYTES - TAIL_BYTES);
        is_zero(tail) || self.hash_end(block) & mask == 0
    }

    /// The gear hash of the last [`WINDOW_BYTES`] of a block: the sum of `gear[byte i] << (63 -
    /// i)`.
    ///
    /// Byte after byte it would be one chain of 64 dependent steps. Four chains of 16, combined by
    /// shifts, give the same number in a quarter of the time.
    #[inline]
    pub(super) fn hash_end(self, block: &[u8; BLOCK_BYTES]) -> u64 {
        const CHAIN_BYTES: usize = WINDOW_BYTES / 4;
        let (_, window) = block.split_at(BLOCK_BYTES - WINDOW_BYTES);
        let (chains, _) = window.as_chunks::<CHAIN_BYTES>();
        chains.iter().fold(0, |hash: u64, chain| {
            let chain = chain.iter().fold(0, |hash: u64, &byte| {
                (hash << 1).wrapping_add(self.gear[usize::from(byte)])
            });
            (hash << CHAIN_BYTES).wrapping_add(chain)
        })
    }
}

/// Cuts a segment into chunks by FastCDC (Xia et al., see the [module](super)). Empties `cuts` and
/// fills it in ascending order. Blocks that no cut covers are zero.
///
/// `segment` is one whole segment, or the short last one of a volume, its last block padded with
/// zeros. The chunker reads only the last cache line of most blocks, and all of a zero block.
///
/// # Panics
///
/// If the length of `segment` is not a multiple of [`BLOCK_BYTES`] or exceeds [`SEGMENT_BYTES`]:
/// the cuts would be meaningless.
pub fn cut_segment(segment: &[u8], cuts: &mut Vec<Cut>) {
    let (blocks, rest) = segment.as_chunks::<BLOCK_BYTES>();
    assert!(rest.is_empty(), "a segment is made of whole blocks");
    assert!(segment.len() <= SEGMENT_BYTES, "a segment has a limit");
    cuts.clear();
    let rule = CutRule::new();
    let mut start_block = 0;
    let mut length = 0;
    for (number, block) in (0u32..).zip(blocks) {
        let end = if is_zero(block) {
            Some(End::Open)
        } else {
            length += 1;
            rule.settles(block, length).then_some(End::Settled)
        };
        let Some(end) = end else { continue };
        if length > 0 {
            cuts.push(Cut {
                start_block,
                blocks: length,
                end,
            });
        }
        start_block = number + 1;
        length = 0;
    }
    if length > 0 {
        cuts.push(Cut {
            start_block,
            blocks: length,
            end: End::Open,
        });
    }
}
