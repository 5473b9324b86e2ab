//! Differences between two trees, and between two leaves.

use super::geometry::{NodePlace, child_segment};
use super::walk::{checked_child, inner_at};
use super::{INNER_CHILDREN, Leaf, LeafEntry, NodeId, NodeSource, Root, WalkError};
use crate::block::SEGMENT_BLOCKS;

/// A segment whose leaves differ. At least one of the two exists.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct SegmentDiff {
    /// Number of the segment.
    pub segment: u32,
    /// The leaf in the base; `None` if the segment is all hole there.
    pub base: Option<NodeId>,
    /// The leaf in the target; `None` if the segment is all hole there.
    pub target: Option<NodeId>,
}

/// Visits the segments in which two trees differ, in ascending order. Reads only nodes whose ids
/// differ. The trees may be unrelated, and of different sizes.
#[derive(Debug)]
pub struct TreeDiff {
    base_bytes: u64,
    target_bytes: u64,
    /// Places still to compare, the next one last. Up to 255 for each level, and one.
    pending: Vec<Place>,
}

/// The same place in both trees.
#[derive(Debug)]
struct Place {
    /// Level of this place, 0 for a leaf.
    level: u8,
    first_segment: u32,
    base: Option<Subtree>,
    target: Option<Subtree>,
}

/// A node of one of the trees. In the lower one of two trees its top stands at higher levels too,
/// as the only child in slot 0: there, its level is below that of its place.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Subtree {
    id: NodeId,
    level: u8,
}

impl Subtree {
    fn of(root: &Root) -> Option<Self> {
        let level = root.height();
        root.top.map(|id| Self { id, level })
    }
}

impl TreeDiff {
    /// Creates a diff from `base` to `target`.
    #[must_use]
    pub fn new(base: &Root, target: &Root) -> Self {
        Self {
            base_bytes: base.size_bytes,
            target_bytes: target.size_bytes,
            pending: vec![Place {
                level: base.height().max(target.height()),
                first_segment: 0,
                base: Subtree::of(base),
                target: Subtree::of(target),
            }],
        }
    }

    /// Returns the next segment that differs; `None` behind the last. After an error, call it again
    /// to retry at the same place.
    ///
    /// # Errors
    ///
    /// [`WalkError`] if a node cannot be read, has the wrong level, or reaches beyond the end of
    /// its volume.
    pub async fn next<S: NodeSource>(
        &mut self,
        source: &S,
    ) -> Result<Option<SegmentDiff>, WalkError<S::Error>> {
        while let Some(place) = self.pending.last() {
            if place.base == place.target {
                self.pending.pop();
                continue;
            }
            if place.level == 0 {
                let diff = SegmentDiff {
                    segment: place.first_segment,
                    base: place.base.map(|leaf| leaf.id),
                    target: place.target.map(|leaf| leaf.id),
                };
                self.pending.pop();
                return Ok(Some(diff));
            }
            let base = children(source, place, place.base, self.base_bytes).await?;
            let target = children(source, place, place.target, self.target_bytes).await?;
            let (level, first_segment) = (place.level, place.first_segment);
            self.pending.pop();
            let below = zip_children(base, target).into_iter().rev();
            self.pending.extend(below.map(|(slot, base, target)| Place {
                level: level - 1,
                first_segment: child_segment(first_segment, level, slot),
                base,
                target,
            }));
        }
        Ok(None)
    }
}

/// The children, with their slots, of one tree's node at a place.
async fn children<S: NodeSource>(
    source: &S,
    place: &Place,
    subtree: Option<Subtree>,
    size_bytes: u64,
) -> Result<Vec<(u8, Subtree)>, WalkError<S::Error>> {
    let Some(subtree) = subtree else {
        return Ok(Vec::new());
    };
    if subtree.level < place.level {
        return Ok(vec![(0, subtree)]);
    }
    let at = NodePlace {
        level: place.level,
        first_segment: place.first_segment,
    };
    let inner = inner_at(source, subtree.id, at).await?;
    let child = |&(slot, id): &(u8, NodeId)| {
        checked_child(
            subtree.id,
            place.first_segment,
            place.level,
            slot,
            size_bytes,
        )?;
        let level = place.level - 1;
        Ok((slot, Subtree { id, level }))
    };
    inner.children().iter().map(child).collect()
}

/// Brings the children of two nodes together by slot.
fn zip_children(
    base: Vec<(u8, Subtree)>,
    target: Vec<(u8, Subtree)>,
) -> Vec<(u8, Option<Subtree>, Option<Subtree>)> {
    let mut slots = [(None, None); INNER_CHILDREN];
    for (slot, subtree) in base {
        slots[usize::from(slot)].0 = Some(subtree);
    }
    for (slot, subtree) in target {
        slots[usize::from(slot)].1 = Some(subtree);
    }
    (0..=u8::MAX)
        .zip(slots)
        .filter(|(_, pair)| *pair != (None, None))
        .map(|(slot, (base, target))| (slot, base, target))
        .collect()
}

/// The kind of difference from base to target, in units of chunks.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum DiffKind {
    /// Data in both, in different chunks. Single blocks may still be equal.
    Changed,
    /// A hole in base, data in target.
    Added,
    /// Data in base, a hole in target.
    Removed,
}

/// Consecutive blocks of a segment with the same kind of difference.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct LeafDiff {
    /// First block, counted from the segment's start.
    pub start_block: u32,
    /// Length in blocks.
    pub blocks: u32,
    /// The kind of difference.
    pub kind: DiffKind,
}

/// Compares two leaves of the same segment. Returns the differences in ascending order, with
/// neighbours of one kind merged. `None` stands for a segment that is all hole.
///
/// The unit is the chunk: a chunk at the same place in both is equal, and the blocks of all others
/// count as different.
#[must_use]
pub fn diff_leaves(base: Option<&Leaf>, target: Option<&Leaf>) -> Vec<LeafDiff> {
    let base = base.map_or(&[][..], Leaf::entries);
    let target = target.map_or(&[][..], Leaf::entries);
    let only_base = blocks_of_only(base, target);
    let only_target = blocks_of_only(target, base);
    let kinds = only_base.iter().zip(&only_target).map(|pair| match pair {
        (false, false) => None,
        (true, true) => Some(DiffKind::Changed),
        (false, true) => Some(DiffKind::Added),
        (true, false) => Some(DiffKind::Removed),
    });
    let mut diffs: Vec<LeafDiff> = Vec::new();
    for (block, kind) in (0u32..).zip(kinds) {
        let Some(kind) = kind else { continue };
        match diffs.last_mut() {
            Some(last) if last.kind == kind && last.start_block + last.blocks == block => {
                last.blocks += 1;
            }
            _ => diffs.push(LeafDiff {
                start_block: block,
                blocks: 1,
                kind,
            }),
        }
    }
    diffs
}

/// Marks the blocks of those chunks of `entries` that are not, at the same place, in `others`.
fn blocks_of_only(entries: &[LeafEntry], others: &[LeafEntry]) -> [bool; SEGMENT_BLOCKS as usize] {
    let mut marks = [false; SEGMENT_BLOCKS as usize];
    for entry in entries {
        let same_start = others.binary_search_by_key(&entry.start_block, |other| other.start_block);
        if same_start.is_ok_and(|index| others[index] == *entry) {
            continue;
        }
        let blocks = entry.block_range();
        marks[blocks.start as usize..blocks.end as usize].fill(true);
    }
    marks
}
