//! Checks of chunks and leaves, before they count.

use varve_content::{
    block::{self, BLOCK_BYTES},
    chunker,
    tree::{Leaf, LeafEntry},
};

use super::IncomingChunk;
use crate::{Error, Result, format::pack::Payload};

/// Checks the claimed lengths of a chunk before anything is unpacked.
pub(super) fn check_lengths(chunk: &IncomingChunk) -> Result<()> {
    let most = chunker::MAX_CHUNK_BLOCKS as usize * BLOCK_BYTES;
    let plain = chunk.plain_bytes as usize;
    if plain == 0 || plain > most || !plain.is_multiple_of(BLOCK_BYTES) {
        return Err(Error::Invalid(format!(
            "chunk {}: plain length {plain} is not a multiple of {BLOCK_BYTES} up to {most}",
            chunk.id
        )));
    }
    // The codec keeps plain bytes where packing does not save, so a payload is never longer.
    if chunk.payload.len() > plain {
        return Err(Error::Invalid(format!(
            "chunk {}: payload of {} bytes for {plain} plain bytes",
            chunk.id,
            chunk.payload.len()
        )));
    }
    Ok(())
}

/// Checks that a leaf uses a chunk as it is, and where the chunker would have cut it.
pub(super) fn check_place(
    segment: u32,
    entry: &LeafEntry,
    payload: &Payload,
    open_fits: bool,
) -> Result<()> {
    let found = payload.plain_bytes;
    if found as usize != entry.blocks as usize * BLOCK_BYTES {
        return Err(Error::Invalid(format!(
            "leaf of segment {segment}: chunk {} at block {} has {found} bytes, the leaf says {} \
            blocks",
            entry.chunk, entry.start_block, entry.blocks
        )));
    }
    if payload.end_open && !open_fits {
        return Err(Error::Invalid(format!(
            "leaf of segment {segment}: chunk {} at block {} must be followed by a hole, for the \
            chunker does not cut there",
            entry.chunk, entry.start_block
        )));
    }
    Ok(())
}

/// Checks that a leaf lies within a volume of `size_bytes`.
pub(super) fn check_extent(size_bytes: u64, segment: u32, leaf: &Leaf) -> Result<()> {
    let segments = block::segment_count(size_bytes);
    if segment >= segments {
        return Err(Error::Invalid(format!(
            "leaf of segment {segment}: a volume of {} bytes has {segments} segments",
            size_bytes
        )));
    }
    let edge = block::segment_blocks(size_bytes, segment);
    match leaf.entries().last() {
        Some(last) if last.end_block() > edge => Err(Error::Invalid(format!(
            "leaf of segment {segment}: chunk {} ends at block {}, the volume of {} bytes at \
            block {edge} of it",
            last.chunk,
            last.end_block(),
            size_bytes
        ))),
        _ => Ok(()),
    }
}
