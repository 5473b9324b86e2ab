//! What a volume's content is made of: blocks, chunks, and the Merkle tree over them.
//!
//! Pure: no IO, no clock, no randomness. The daemon and the client both link it, so that a chunk
//! is cut, hashed and packed the same on either side.
//!
//! What must hold here:
//!
//! * **Equal content, equal root.** A root depends on the bytes and the size of a volume only. So
//!   cut points ([`chunker`]) and encodings ([`tree`]) are part of the store's format, and tests
//!   pin them by literal bytes.
//! * **Bytes from a disk or a peer are errors, never panics**, and never make a decoder allocate
//!   more than their own length, or the plain length the caller allowed, justifies.

#![forbid(unsafe_code)]

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
