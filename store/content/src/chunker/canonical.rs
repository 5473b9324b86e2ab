//! Checking a single chunk: would [`cut_segment`](super::cut_segment) have made it?
//!
//! A peer that cuts differently would fill the store with chunks that dedupe with nothing, and give
//! the same content another root. So the store checks every chunk that a peer sends.

use super::cut::{CutRule, End};
use super::{MAX_CHUNK_BLOCKS, MAX_CHUNK_BYTES};
use crate::block::{BLOCK_BYTES, is_zero};

/// The reason why the chunker would not make this chunk. Block numbers count from the chunk's
/// start.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotCanonical {
    /// The chunk is empty, longer than [`MAX_CHUNK_BYTES`], or not a whole number of blocks.
    #[error(
        "check a chunk's cut: {bytes} bytes are not 1 to {MAX_CHUNK_BLOCKS} blocks of {BLOCK_BYTES}"
    )]
    Length {
        /// Length of the chunk in bytes.
        bytes: usize,
    },
    /// A block of the chunk is all zero. Such a block is a hole and belongs to no chunk.
    #[error("check a chunk's cut: block {block} of the chunk is all zero")]
    ZeroBlock {
        /// The first zero block.
        block: u32,
    },
    /// The chunker would have ended the chunk before this block.
    #[error("check a chunk's cut: the chunk should have ended before its block {block}")]
    CutInside {
        /// The block that should begin the next chunk.
        block: u32,
    },
}

/// Checks that the chunker would make this chunk if one began here, and returns why it ends.
///
/// A chunk that is [`End::Open`] is valid only before a hole or the segment's edge:
/// [`Leaf::open_end_fits`](crate::tree::Leaf::open_end_fits) checks that. If all chunks of a leaf
/// pass both checks, the leaf is exactly the result of cutting its segment.
///
/// # Errors
///
/// [`NotCanonical`] if the length is not valid, if a block is all zero, or if the chunk should have
/// ended earlier; it names the block.
pub fn check_canonical(chunk: &[u8]) -> Result<End, NotCanonical> {
    let (blocks, rest) = chunk.as_chunks::<BLOCK_BYTES>();
    if blocks.is_empty() || !rest.is_empty() || chunk.len() > MAX_CHUNK_BYTES {
        return Err(NotCanonical::Length { bytes: chunk.len() });
    }
    let rule = CutRule::new();
    let mut end = End::Open;
    for (number, block) in (0u32..).zip(blocks) {
        if end == End::Settled {
            return Err(NotCanonical::CutInside { block: number });
        }
        if is_zero(block) {
            return Err(NotCanonical::ZeroBlock { block: number });
        }
        if rule.settles(block, number + 1) {
            end = End::Settled;
        }
    }
    Ok(end)
}
