//! What can be wrong with a node by itself, and with how nodes fit together.

use super::NodeId;
use crate::chunker::MAX_CHUNK_BLOCKS;

/// Why values or bytes make no node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TreeError {
    /// The bytes do not begin as this kind of record does.
    #[error("decode a {what}: tag {tag:#04x}, version {version} instead of {expected:#04x}, 1")]
    Tag {
        what: &'static str,
        tag: u8,
        version: u8,
        expected: u8,
    },
    /// More or fewer bytes than the record says it has.
    #[error("decode a {what}: {found} bytes instead of {expected}")]
    Length {
        what: &'static str,
        expected: usize,
        found: usize,
    },
    /// A field with a value that it never has.
    #[error("decode a {what}: {field} is {value}")]
    Field {
        what: &'static str,
        field: &'static str,
        value: u64,
    },
    /// A node without children; what is all hole is absent instead.
    #[error("make a {what}: it has no entries")]
    Empty { what: &'static str },
    /// A chunk of an impossible length.
    #[error(
        "make a leaf: the chunk at block {start_block} has {blocks} blocks, \
         not 1 to {MAX_CHUNK_BLOCKS}"
    )]
    ChunkLength { start_block: u32, blocks: u32 },
    /// A chunk that reaches over the segment's edge.
    #[error(
        "make a leaf: the chunk at block {start_block} with {blocks} blocks \
         reaches over the segment's edge"
    )]
    OutsideSegment { start_block: u32, blocks: u32 },
    /// A chunk that begins before the one in front of it ends.
    #[error("make a leaf: the chunk at block {start_block} begins before block {previous_end}")]
    Overlap { start_block: u32, previous_end: u32 },
    /// An inner node at a level that no volume has.
    #[error("make an inner node: level {level} is not 1 to {}", super::MAX_HEIGHT)]
    Level { level: u8 },
    /// Slots of an inner node out of order.
    #[error("make an inner node: slot {slot} after slot {previous}")]
    SlotOrder { slot: u8, previous: u8 },
    /// Leaves given to a builder out of order.
    #[error("build a tree: segment {segment} after segment {previous}")]
    SegmentOrder { segment: u32, previous: u32 },
    /// A leaf behind the volume's end.
    #[error("build a tree: segment {segment} of a volume of {size_bytes} bytes")]
    SegmentOutside { segment: u32, size_bytes: u64 },
    /// A volume larger than any may be.
    #[error("build a tree: a volume of {size_bytes} bytes exceeds 64 TiB")]
    TooLarge { size_bytes: u64 },
}

/// Why a tree could not be walked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WalkError<E> {
    /// A node could not be had from its source.
    #[error(transparent)]
    Source(E),
    /// A node at another level than its place in the tree demands.
    #[error("walk a tree: node {node} is of level {found} where {expected} belongs")]
    Level {
        node: NodeId,
        expected: u8,
        found: u8,
    },
    /// A node with a child behind the volume's end.
    #[error(
        "walk a tree: node {node} has a child at segment {segment} \
         of a volume of {size_bytes} bytes"
    )]
    Outside {
        node: NodeId,
        segment: u32,
        size_bytes: u64,
    },
}
