//! Division of a range into parts of segments, and their content.

use bytes::Bytes;
use varve_content::{
    block::{self, BLOCK_BYTES, SEGMENT_BYTES},
    tree::LeafEntry,
};

use super::Segment;
use crate::engine::VerifiedChunk;

/// A part of a range that was read, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// That many zeros.
    Zero(usize),
}

impl Piece {
    /// Adds its bytes to others.
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Data(data) => bytes.extend_from_slice(data),
            Self::Zero(zeros) => bytes.resize(bytes.len() + zeros, 0),
        }
    }
}

/// An extent of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub len_bytes: u64,
    /// True if the extent is a hole: it reads as zeros, and nothing is stored there.
    pub hole: bool,
}

/// An extent that is unchanged, or may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeExtent {
    /// Its length.
    pub len_bytes: u64,
    /// True if any byte of the extent may differ.
    pub changed: bool,
}

/// Adds a stretch, or extends the last one if both are of one kind.
pub(crate) fn push_change(extents: &mut Vec<ChangeExtent>, len: usize, changed: bool) {
    match extents.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.changed == changed => last.len_bytes += len as u64,
        _ => extents.push(ChangeExtent {
            len_bytes: len as u64,
            changed,
        }),
    }
}

/// Part of a range that is within one segment, in bytes of it.
pub(super) struct SegmentPart {
    pub(super) segment: u32,
    pub(super) start: usize,
    pub(super) end: usize,
}

pub(super) fn segment_parts(
    offset_bytes: u64,
    len_bytes: u64,
) -> impl Iterator<Item = SegmentPart> {
    let segment_bytes = SEGMENT_BYTES as u64;
    let end = offset_bytes + len_bytes;
    let first = offset_bytes / segment_bytes;
    let behind = end.div_ceil(segment_bytes);
    (first..behind)
        .filter(move |_| len_bytes > 0)
        .map(move |segment| {
            let base = segment * segment_bytes;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a volume has at most 2^21 segments of 2^23 bytes"
            )]
            SegmentPart {
                segment: segment as u32,
                start: offset_bytes.saturating_sub(base) as usize,
                end: (end - base).min(segment_bytes) as usize,
            }
        })
}

/// The chunks that overlap bytes `start..end` of a segment: the overlap, the entry, its position.
pub(super) fn overlapping(
    segment: &Segment,
    start: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize, &LeafEntry, usize)> {
    let entries = segment.leaf().entries();
    let chunk_end = |entry: &LeafEntry| (entry.start_block + entry.blocks) as usize * BLOCK_BYTES;
    let first = entries.partition_point(move |entry| chunk_end(entry) <= start);
    entries
        .iter()
        .enumerate()
        .skip(first)
        .map_while(move |(position, entry)| {
            let chunk_start = entry.start_block as usize * BLOCK_BYTES;
            (chunk_start < end).then(|| {
                (
                    chunk_start.max(start),
                    chunk_end(entry).min(end),
                    entry,
                    position,
                )
            })
        })
}

pub(super) fn slice(chunk: &VerifiedChunk, range: std::ops::Range<usize>) -> Bytes {
    // A leaf's entry was checked to be as long as its chunk when its place was looked up.
    chunk.plain().slice(range)
}

pub(crate) fn push_zeros(pieces: &mut Vec<Piece>, len: usize) {
    if len == 0 {
        return;
    }
    if let Some(Piece::Zero(before)) = pieces.last_mut() {
        *before += len;
    } else {
        pieces.push(Piece::Zero(len));
    }
}

pub(crate) fn push_extent(extents: &mut Vec<Extent>, len: usize, hole: bool) {
    if len == 0 {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.hole == hole => last.len_bytes += len as u64,
        _ => extents.push(Extent {
            len_bytes: len as u64,
            hole,
        }),
    }
}

const _: () = assert!(block::MAX_VOLUME_BYTES / SEGMENT_BYTES as u64 <= u32::MAX as u64);
