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

/// The place of a node in a tree: one node at most stands there.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct NodePlace {
    /// Level of the node: 0 for a leaf, 1 to [`MAX_HEIGHT`] for an inner node.
    pub level: u8,
    /// First segment below the node; that of a leaf is its own.
    pub first_segment: u32,
}

impl NodePlace {
    /// The place of the leaf of a segment.
    #[must_use]
    pub const fn of_leaf(segment: u32) -> Self {
        Self {
            level: 0,
            first_segment: segment,
        }
    }

    /// The place of the child in a slot of the inner node that stands here.
    #[must_use]
    pub fn child(self, slot: u8) -> Self {
        let level = self.level.clamp(1, MAX_HEIGHT);
        Self {
            level: level - 1,
            first_segment: child_segment(self.first_segment, level, slot),
        }
    }

    /// The place of the node of `level` that this place is below, or that stands here.
    pub(super) fn within(self, level: u8) -> Self {
        let first_segment = subtree_of(self.first_segment, level)
            .checked_shl(SLOT_BITS * u32::from(level))
            .unwrap_or(0);
        Self {
            level,
            first_segment,
        }
    }
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
