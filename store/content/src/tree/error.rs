//! Errors of a single node, and of nodes that do not fit together.

use super::NodeId;
use crate::chunker::MAX_CHUNK_BLOCKS;

/// The reason why values or bytes do not make a valid node or tree.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TreeError {
    /// The bytes do not begin as this kind of record does.
    #[error("decode a {what}: tag {tag:#04x}, version {version} instead of {expected:#04x}, 1")]
    Tag {
        /// The kind of record.
        what: &'static str,
        /// The first byte found.
        tag: u8,
        /// The second byte found, the version of the encoding.
        version: u8,
        /// The first byte of this kind of record.
        expected: u8,
    },
    /// More or fewer bytes than the record's header demands.
    #[error("decode a {what}: {found} bytes instead of {expected}")]
    Length {
        /// The kind of record.
        what: &'static str,
        /// The length in bytes that the record's header demands.
        expected: usize,
        /// The length found, in bytes.
        found: usize,
    },
    /// A field has a value that no encoder writes.
    #[error("decode a {what}: {field} is {value}")]
    Field {
        /// The kind of record.
        what: &'static str,
        /// The name of the field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// A node without entries. The node of an all-hole range is absent instead.
    #[error("make a {what}: it has no entries")]
    Empty {
        /// The kind of node.
        what: &'static str,
    },
    /// A chunk of an impossible length.
    #[error(
        "make a leaf: the chunk at block {start_block} has {blocks} blocks, \
         not 1 to {MAX_CHUNK_BLOCKS}"
    )]
    ChunkLength {
        /// First block of the chunk, counted from the segment's start.
        start_block: u32,
        /// Length of the chunk in blocks.
        blocks: u32,
    },
    /// A chunk that crosses the segment's edge.
    #[error(
        "make a leaf: the chunk at block {start_block} with {blocks} blocks \
         reaches over the segment's edge"
    )]
    OutsideSegment {
        /// First block of the chunk, counted from the segment's start.
        start_block: u32,
        /// Length of the chunk in blocks.
        blocks: u32,
    },
    /// A chunk that begins before the previous one ends.
    #[error("make a leaf: the chunk at block {start_block} begins before block {previous_end}")]
    Overlap {
        /// First block of the chunk, counted from the segment's start.
        start_block: u32,
        /// The block behind the last one of the previous chunk.
        previous_end: u32,
    },
    /// An inner node at a level that no volume has.
    #[error("make an inner node: level {level} is not 1 to {}", super::MAX_HEIGHT)]
    Level {
        /// The level; 1 is the one above the leaves.
        level: u8,
    },
    /// Slots of an inner node out of order.
    #[error("make an inner node: slot {slot} after slot {previous}")]
    SlotOrder {
        /// The slot that is out of order.
        slot: u8,
        /// The slot in front of it, which is not lower.
        previous: u8,
    },
    /// Leaves given to a builder out of order.
    #[error("build a tree: segment {segment} after segment {previous}")]
    SegmentOrder {
        /// The segment that is out of order.
        segment: u32,
        /// The segment in front of it, which is not lower.
        previous: u32,
    },
    /// A leaf beyond the end of the volume.
    #[error("build a tree: segment {segment} of a volume of {size_bytes} bytes")]
    SegmentOutside {
        /// The segment of the leaf.
        segment: u32,
        /// Size of the volume in bytes.
        size_bytes: u64,
    },
    /// A volume larger than [`MAX_VOLUME_BYTES`](crate::block::MAX_VOLUME_BYTES).
    #[error("build a tree: a volume of {size_bytes} bytes exceeds 64 TiB")]
    TooLarge {
        /// Size of the volume in bytes.
        size_bytes: u64,
    },
}

/// The reason why a tree could not be walked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WalkError<E> {
    /// The source failed to return a node.
    #[error(transparent)]
    Source(E),
    /// A node has another level than its place in the tree demands.
    #[error("walk a tree: node {node} is of level {found} where {expected} belongs")]
    Level {
        /// The id of the node.
        node: NodeId,
        /// The level of its place; 1 is the one above the leaves.
        expected: u8,
        /// The level that the node has.
        found: u8,
    },
    /// A node has a child beyond the end of the volume.
    #[error(
        "walk a tree: node {node} has a child at segment {segment} \
         of a volume of {size_bytes} bytes"
    )]
    Outside {
        /// The id of the node.
        node: NodeId,
        /// The first segment of the child.
        segment: u32,
        /// Size of the volume in bytes.
        size_bytes: u64,
    },
}
