//! The content of a volume: blocks, chunks, and the Merkle tree over them.
//!
//! Pure: no IO, no clock, no randomness. The daemon and the client both link it, so both cut, hash
//! and pack a chunk in the same way.
//!
//! Invariants:
//!
//! * **Equal content, equal root.** A root depends on the bytes and the size of a volume only. So
//!   cut points ([`chunker`]) and encodings ([`tree`]) are part of the store's format, and tests
//!   pin them by literal bytes.
//! * **Malformed bytes from a disk or a peer are errors, never panics.** A decoder allocates no
//!   more than the length of its input, or the plain length that the caller allowed, justifies.
//!
//! The algorithms come from elsewhere: chunking is FastCDC with a gear hash (Xia et al., see
//! [`chunker`]), ids are BLAKE3 hashes (O'Connor, Aumasson, Neves and Wilcox-O'Hearn, "BLAKE3: one
//! function, fast everywhere", 2020), and the codecs are LZ4 and Zstandard (RFC 8878).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod block;
pub mod chunk_id;
pub mod chunker;
pub mod codec;
pub mod printable;
pub mod tree;

mod id;
#[cfg(test)]
mod samples;

pub use block::{BLOCK_BYTES, MAX_VOLUME_BYTES, SEGMENT_BLOCKS, SEGMENT_BYTES};
pub use chunk_id::ChunkId;
pub use codec::{Codec, Compression};
pub use id::ParseIdError;
pub use tree::{NodeId, RootId};
