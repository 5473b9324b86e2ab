//! Content out: ranges for guests, segments for downloads.
//!
//! Bytes leave the store in one of two forms: as a [`VerifiedChunk`](crate::VerifiedChunk), whose
//! bytes were hashed and have the id they are asked for by, or as a
//! [`StoredChunk`](crate::StoredChunk), still packed, whose receiver has to do that.
//!
//! | file | what |
//! | --- | --- |
//! | `reader` | content by its root, and one snapshot's |
//! | `segment` | segments of content |
//! | `range` | which bytes of which segment a range is |
//! | `diff` | where two snapshots differ |
//! | `disk` | nodes and chunks as the disk has them, whatever is in memory |
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
