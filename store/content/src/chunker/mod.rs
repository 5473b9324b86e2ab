//! Content-defined chunking of a segment: FastCDC on block boundaries.
//!
//! FastCDC (Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data
//! Deduplication", USENIX ATC 2016, and "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", IEEE TPDS 2020) uses the gear hash of Xia et al., "Ddelta:
//! a deduplication-inspired fast delta compression approach", Performance Evaluation 2014. The gear
//! table and the masks are those of the `fastcdc` crate. Three changes suit it to block volumes:
//!
//! * A cut falls only between two blocks, so the chunker hashes only the last 64 bytes of a block.
//!   File systems move data in whole blocks: nothing is lost, and cutting runs at memory speed.
//! * A zero block is a hole: it belongs to no chunk and ends the one before it.
//! * A block whose last 32 bytes are zero is likely the padded tail of a file. It ends a chunk of
//!   at least the minimum length, because another file begins behind it.
//!
//! **A cut depends only on the bytes since the previous cut, hole or segment edge.** So it is
//! enough to cut again around a change ([`recut`]), and a chunk can be checked by itself
//! ([`check_canonical`]).
//!
//! If cuts fall elsewhere, equal content looks different to every existing store. Any such change
//! needs a new [`CHUNKER_VERSION`].

mod canonical;
mod cut;
mod recut;
#[cfg(test)]
mod tests;

pub use canonical::{NotCanonical, check_canonical};
pub use cut::{Cut, End, cut_segment};
pub use recut::{Recut, recut};

use crate::block::{BLOCK_BYTES, SEGMENT_BLOCKS};

/// Version of the cut rule: of everything in this module that decides where a cut falls. The store
/// format and every root record contain it.
pub const CHUNKER_VERSION: u32 = 1;

/// Blocks in the shortest chunk that ends by its own bytes (16 KiB). A chunk in front of a hole or
/// of the segment's edge may be shorter.
pub const MIN_CHUNK_BLOCKS: u32 = 4;

/// Length in blocks from which on a cut becomes likelier (64 KiB): the target of FastCDC's
/// normalised chunking.
pub const TARGET_CHUNK_BLOCKS: u32 = 16;

/// Blocks in the longest chunk (256 KiB).
pub const MAX_CHUNK_BLOCKS: u32 = 64;

/// Bytes in the longest chunk: 256 KiB.
pub const MAX_CHUNK_BYTES: usize = MAX_CHUNK_BLOCKS as usize * BLOCK_BYTES;

const _: () = assert!(1 < MIN_CHUNK_BLOCKS && MIN_CHUNK_BLOCKS < TARGET_CHUNK_BLOCKS);
const _: () = assert!(TARGET_CHUNK_BLOCKS < MAX_CHUNK_BLOCKS && MAX_CHUNK_BLOCKS < SEGMENT_BLOCKS);
