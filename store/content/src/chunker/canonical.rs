//! Judging a single chunk: would [`cut_segment`](super::cut_segment) have made it?
//!
//! A peer that cuts differently would fill the store with chunks that dedupe with nothing, and give
//! the same content another root. So what a peer sends is checked chunk by chunk.

use super::cut::{CutRule, End};
use super::{MAX_CHUNK_BLOCKS, MAX_CHUNK_BYTES};
use crate::block::{BLOCK_BYTES, is_zero};

/// Why a chunk is none that the chunker makes. Blocks are counted from the chunk's start.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotCanonical {
    /// Empty, no multiple of a block, or too long.
    #[error(
        "check a chunk's cut: {bytes} bytes are not 1 to {MAX_CHUNK_BLOCKS} blocks of {BLOCK_BYTES}"
    )]
    Length { bytes: usize },
    /// A zero block, which is a hole and belongs to no chunk.
    #[error("check a chunk's cut: block {block} of the chunk is all zero")]
    ZeroBlock { block: u32 },
    /// The chunker would have ended the chunk before this block.
    #[error("check a chunk's cut: the chunk should have ended before its block {block}")]
    CutInside { block: u32 },
}

/// Checks that the chunker would make this chunk if one began here, and says why it ends.
///
/// A chunk that is [`End::Open`] is right only before a hole or the segment's edge:
/// [`Leaf::open_end_fits`](crate::tree::Leaf::open_end_fits) tells that. A leaf whose chunks all
/// pass both, is exactly what cutting the segment gives.
///
/// # Errors
///
/// [`NotCanonical`] says what is wrong and at which block.
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
