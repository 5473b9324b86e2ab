//! A leaf: the chunks of one segment.

#![warn(clippy::indexing_slicing)]

use std::ops::Range;

use super::{NodeId, TreeError};
use crate::block::SEGMENT_BLOCKS;
use crate::chunk_id::ChunkId;
use crate::chunker::MAX_CHUNK_BLOCKS;

const WHAT: &str = "leaf";
const TAG: u8 = b'L';
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 3 + ChunkId::BYTES;

/// Bytes in the longest encoding of a leaf: a chunk for every single block.
pub const LEAF_MAX_BYTES: usize = HEADER_BYTES + SEGMENT_BLOCKS as usize * ENTRY_BYTES;

/// One chunk's place in its segment.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct LeafEntry {
    /// First block, counted from the segment's start.
    pub start_block: u32,
    /// Length in blocks, 1 to [`MAX_CHUNK_BLOCKS`].
    pub blocks: u32,
    /// Id of the chunk.
    pub chunk: ChunkId,
}

impl LeafEntry {
    /// The blocks that the chunk covers, counted from the segment's start.
    #[must_use]
    pub fn block_range(&self) -> Range<u32> {
        self.start_block..self.end_block()
    }

    /// The block behind the last one of the chunk.
    #[must_use]
    pub fn end_block(&self) -> u32 {
        self.start_block + self.blocks
    }
}

/// A leaf: the chunks of one segment, at least one, in ascending order and without overlap. Blocks
/// that no chunk covers are holes.
///
/// Encoding, integers little-endian:
///
/// ```text
/// 0    1   b'L'
/// 1    1   version 1
/// 2    2   number of entries n, 1 to 2048
/// 4    35n entries: start block (2), blocks (1), chunk id (32)
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    entries: Vec<LeafEntry>,
}

impl Leaf {
    /// Creates a leaf with these entries.
    ///
    /// # Errors
    ///
    /// * [`TreeError::Empty`] if there is no entry.
    /// * [`TreeError::ChunkLength`] if a chunk does not have 1 to [`MAX_CHUNK_BLOCKS`] blocks.
    /// * [`TreeError::OutsideSegment`] if a chunk crosses the segment's edge.
    /// * [`TreeError::Overlap`] if a chunk begins before the previous one ends.
    pub fn new(entries: Vec<LeafEntry>) -> Result<Self, TreeError> {
        if entries.is_empty() {
            return Err(TreeError::Empty { what: WHAT });
        }
        let mut previous_end = 0;
        for &LeafEntry {
            start_block,
            blocks,
            ..
        } in &entries
        {
            if !(1..=MAX_CHUNK_BLOCKS).contains(&blocks) {
                return Err(TreeError::ChunkLength {
                    start_block,
                    blocks,
                });
            }
            if start_block > SEGMENT_BLOCKS - blocks {
                return Err(TreeError::OutsideSegment {
                    start_block,
                    blocks,
                });
            }
            if start_block < previous_end {
                return Err(TreeError::Overlap {
                    start_block,
                    previous_end,
                });
            }
            previous_end = start_block + blocks;
        }
        Ok(Self { entries })
    }

    /// The chunks, in ascending order.
    #[must_use]
    pub fn entries(&self) -> &[LeafEntry] {
        &self.entries
    }

    /// The chunks that cover any of `blocks`, counted from the segment's start.
    #[must_use]
    pub fn entries_in(&self, blocks: Range<u32>) -> &[LeafEntry] {
        let first = self
            .entries
            .partition_point(|entry| entry.end_block() <= blocks.start);
        let rest = self.entries.get(first..).unwrap_or_default();
        let count = rest.partition_point(|entry| entry.start_block < blocks.end);
        rest.get(..count).unwrap_or_default()
    }

    /// Number of blocks that chunks cover.
    #[must_use]
    pub fn data_blocks(&self) -> u32 {
        self.entries.iter().map(|entry| entry.blocks).sum()
    }

    /// The block behind the last chunk. In a leaf that fits its volume this is at most
    /// [`segment_blocks`](crate::block::segment_blocks).
    #[must_use]
    pub fn end_block(&self) -> u32 {
        self.entries.last().map_or(0, LeafEntry::end_block)
    }

    /// Returns true if the entry with this index may be a chunk that ends
    /// [`Open`](crate::chunker::End::Open): a hole follows, or the edge of a segment of
    /// `segment_blocks` blocks. Returns false if there is no such entry.
    #[must_use]
    pub fn open_end_fits(&self, index: usize, segment_blocks: u32) -> bool {
        let Some(entry) = self.entries.get(index) else {
            return false;
        };
        match self.entries.get(index + 1) {
            Some(next) => entry.end_block() < next.start_block,
            None => entry.end_block() <= segment_blocks,
        }
    }

    /// Returns the encoding of this leaf, at most [`LEAF_MAX_BYTES`] long. There is only one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        encoded.extend([TAG, VERSION]);
        encoded.extend(low_u16(self.entries.len() as u64));
        for entry in &self.entries {
            encoded.extend(low_u16(entry.start_block.into()));
            let [blocks, ..] = entry.blocks.to_le_bytes();
            encoded.push(blocks);
            encoded.extend(entry.chunk.as_bytes());
        }
        encoded
    }

    /// Decodes a leaf.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if these bytes are not the [encoding](Self::encode) of any leaf: tag, version
    /// or length are wrong, or [`new`](Self::new) refuses the entries.
    pub fn decode(encoded: &[u8]) -> Result<Self, TreeError> {
        let Some((&[tag, version, low, high], entries)) =
            encoded.split_first_chunk::<HEADER_BYTES>()
        else {
            return Err(TreeError::Length {
                what: WHAT,
                expected: HEADER_BYTES + ENTRY_BYTES,
                found: encoded.len(),
            });
        };
        if (tag, version) != (TAG, VERSION) {
            return Err(TreeError::Tag {
                what: WHAT,
                tag,
                version,
                expected: TAG,
            });
        }
        let count = usize::from(u16::from_le_bytes([low, high]));
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if entries.len() != count || !rest.is_empty() {
            return Err(TreeError::Length {
                what: WHAT,
                expected: HEADER_BYTES + count * ENTRY_BYTES,
                found: encoded.len(),
            });
        }
        Self::new(entries.iter().map(decode_entry).collect())
    }

    /// Computes the id of this leaf.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId::of_leaf(&self.encode())
    }
}

fn decode_entry(encoded: &[u8; ENTRY_BYTES]) -> LeafEntry {
    let &[low, high, blocks, ref id @ ..] = encoded;
    LeafEntry {
        start_block: u16::from_le_bytes([low, high]).into(),
        blocks: blocks.into(),
        chunk: ChunkId::from_bytes(*id),
    }
}

/// The two low bytes of a number that is known to fit into them.
fn low_u16(number: u64) -> [u8; 2] {
    debug_assert!(number <= u64::from(u16::MAX));
    let [low, high, ..] = number.to_le_bytes();
    [low, high]
}
