//! The content of a synthetic store: each chunk by its number, and its place in the volume that has
//! all chunks.

use varve_content::{
    BLOCK_BYTES, ChunkId, SEGMENT_BYTES,
    tree::{Leaf, LeafEntry},
};

use crate::Failure;

/// Chunks of a segment, as many as a dense segment of real content has.
pub(crate) const LEAF_CHUNKS: u64 = 190;
/// Blocks from a chunk to the next. A chunk has one block: making it is quick, and the cost of an
/// index is in the number of chunks.
const STRIDE_BLOCKS: u64 = 10;

/// The snapshot of a volume that has all chunks.
pub(crate) const WHOLE: &str = "whole";

/// The bytes of a chunk.
pub(crate) fn chunk(number: u64) -> [u8; BLOCK_BYTES] {
    let mut plain = [0; BLOCK_BYTES];
    // Not zero, or it would be a hole.
    plain[..8].copy_from_slice(&(number + 1).to_le_bytes());
    plain
}

/// Place of a chunk in the volume that has all chunks, in bytes.
pub(crate) fn offset_bytes(number: u64) -> u64 {
    let (segment, position) = (number / LEAF_CHUNKS, number % LEAF_CHUNKS);
    segment * SEGMENT_BYTES as u64 + position * STRIDE_BLOCKS * BLOCK_BYTES as u64
}

/// The leaf of these chunks.
pub(crate) fn leaf(chunks: &[ChunkId]) -> Result<Leaf, Failure> {
    let mut entries = Vec::with_capacity(chunks.len());
    for (position, chunk) in (0..).zip(chunks) {
        entries.push(LeafEntry {
            start_block: u32::try_from(position * STRIDE_BLOCKS)?,
            blocks: 1,
            chunk: *chunk,
        });
    }
    Ok(Leaf::new(entries)?)
}
