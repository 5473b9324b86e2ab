//! The arithmetic of the tree: its number of levels, and the slots on the path to a segment.

use crate::block::{MAX_VOLUME_BYTES, segment_count};

/// Child slots of an inner node.
pub const INNER_CHILDREN: usize = 256;

/// Bits of a segment's number that one level of inner nodes takes.
const SLOT_BITS: u32 = INNER_CHILDREN.ilog2();

/// Levels of inner nodes over the largest volume.
pub const MAX_HEIGHT: u8 = height(MAX_VOLUME_BYTES);

const _: () = assert!(MAX_HEIGHT == 3);

/// Levels of inner nodes above the leaves of a volume of `size_bytes`, at least one: 1 up to 2 GiB,
/// 2 up to 512 GiB, 3 above.
#[must_use]
pub const fn height(size_bytes: u64) -> u8 {
    let segments = size_bytes.div_ceil(crate::block::SEGMENT_BYTES as u64);
    let mut height = 1;
    let mut covered = INNER_CHILDREN as u64;
    while covered < segments {
        covered = covered.saturating_mul(INNER_CHILDREN as u64);
        height += 1;
    }
    height
}

/// Slot that leads to `segment` in an inner node of `level` (1 = its children are leaves).
pub(super) fn slot_of(segment: u32, level: u8) -> u8 {
    (segment >> (SLOT_BITS * (u32::from(level) - 1))).to_le_bytes()[0]
}

/// Number of the subtree of `level` that holds `segment`, counted over the whole level; 0 above
/// what 32 bits address.
pub(super) fn subtree_of(segment: u32, level: u8) -> u32 {
    segment
        .checked_shr(SLOT_BITS * u32::from(level))
        .unwrap_or(0)
}

/// First segment under a child: `first_segment` is that of its parent at `level`.
pub(super) fn child_segment(first_segment: u32, level: u8, slot: u8) -> u32 {
    first_segment | u32::from(slot) << (SLOT_BITS * (u32::from(level) - 1))
}

/// Returns true if a volume of `size_bytes` has that segment.
pub(super) fn has_segment(size_bytes: u64, segment: u32) -> bool {
    segment < segment_count(size_bytes)
}
