//! Content out: ranges for guests, segments for downloads.
//!
//! Bytes leave the store in one of two forms: as a [`VerifiedChunk`], whose bytes were hashed and have the id
//! they are asked for by, or as a [`StoredChunk`], still packed, whose receiver has to do that.
//!
//! | file | what |
//! | --- | --- |
//! | `chunk` | chunks on their way out, and the check |
//! | `segment` | leaves with the places of their chunks |
//! | `reader` | content by its root, and one snapshot's |
//! | `range` | which bytes of which segment a range is |
//! | `cache` | what was read, kept in memory |
//! | `fetch` | nodes and chunks, from the caches or from packs |
//! | `disk` | the same as the disk has them, whatever is in memory |
//! | `readahead` | what comes next for whoever reads from front to back |

mod cache;
mod chunk;
mod disk;
mod fetch;
mod range;
mod readahead;
mod reader;
mod segment;

pub(crate) use cache::ReadCache;
pub(crate) use chunk::CheckedChunk;
pub use chunk::{StoredChunk, VerifiedChunk};
pub(crate) use disk::DiskSource;
pub(crate) use fetch::{needed_by, walked};
pub use range::{ChangeExtent, Extent, Piece};
pub(crate) use range::{push_change, push_extent, push_zeros};
pub use readahead::ReadAhead;
pub use reader::{ContentReader, SnapshotReader};
use segment::CachedNode;
pub(crate) use segment::LocatedLeaf;
pub use segment::{Segment, SegmentStream};
