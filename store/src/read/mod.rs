//! Reading content: ranges for guests, segments for downloads.
//!
//! Bytes leave the store in one of two forms: as a [`VerifiedChunk`](crate::VerifiedChunk), whose
//! bytes were hashed and match the requested id, or as a [`StoredChunk`](crate::StoredChunk), still
//! packed, whose receiver has to check it.
//!
//! | file | what |
//! | --- | --- |
//! | `reader` | content by its root, and one snapshot's |
//! | `segment` | segments of content |
//! | `range` | division of a range into parts of segments |
//! | `diff` | the differences between two snapshots |
//! | `disk` | nodes and chunks from the disk, past all caches |
//! | `readahead` | readahead for sequential readers |

mod diff;
mod disk;
mod range;
mod readahead;
mod reader;
mod segment;

pub use self::{
    diff::{DiffExtent, SnapshotDiff},
    range::{ChangeExtent, Extent, Piece},
    readahead::ReadAhead,
    reader::{ContentReader, SnapshotReader},
    segment::{Segment, SegmentStream},
};
pub(crate) use self::{
    disk::DiskSource,
    range::{push_change, push_extent, push_zeros},
};
