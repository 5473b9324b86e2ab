//! Where a segment is cut into chunks: FastCDC on block boundaries.
//!
//! FastCDC (Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data
//! Deduplication", USENIX ATC 2016, and "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", IEEE TPDS 2020) with the gear table and masks of the
//! `fastcdc` crate, changed in three ways for block volumes:
//!
//! * A cut may fall only between two blocks, so only the last 64 bytes of a block are hashed.
//!   File systems move data in whole blocks: nothing is lost, and cutting runs at memory speed.
//! * A zero block is a hole: it belongs to no chunk and ends the one before it.
//! * A block whose last 32 bytes are zero is taken for the padded tail of a file and ends a chunk
//!   of at least the minimum, because what follows is another file.
//!
//! **A cut depends only on the bytes since the previous cut, hole or segment edge.** That is what
//! makes it possible to cut again only around a change ([`recut`]), and to judge a chunk by itself
//! ([`check_canonical`]).
//!
//! Any change to where cuts fall makes equal content look different to every store that exists: it
//! takes a new [`CHUNKER_VERSION`].

mod canonical;
mod cut;
mod recut;
#[cfg(test)]
mod tests;

pub use canonical::{NotCanonical, check_canonical};
pub use cut::{Cut, End, cut_segment};
pub use recut::{Recut, recut};

use crate::block::{BLOCK_BYTES, SEGMENT_BLOCKS};

/// Version of everything in this module that decides where a cut falls. Kept in a store's format
/// and in every root.
pub const CHUNKER_VERSION: u32 = 1;

/// Blocks in the shortest chunk that ends by its own bytes (16 KiB). Chunks that a hole or the
/// segment's edge ends may be shorter.
pub const MIN_CHUNK_BLOCKS: u32 = 4;

/// Blocks from which on a cut is made likelier (64 KiB).
pub const TARGET_CHUNK_BLOCKS: u32 = 16;

/// Blocks in the longest chunk (256 KiB).
pub const MAX_CHUNK_BLOCKS: u32 = 64;

/// Bytes in the longest chunk.
pub const MAX_CHUNK_BYTES: usize = MAX_CHUNK_BLOCKS as usize * BLOCK_BYTES;

const _: () = assert!(1 < MIN_CHUNK_BLOCKS && MIN_CHUNK_BLOCKS < TARGET_CHUNK_BLOCKS);
const _: () = assert!(TARGET_CHUNK_BLOCKS < MAX_CHUNK_BLOCKS && MAX_CHUNK_BLOCKS < SEGMENT_BLOCKS);
