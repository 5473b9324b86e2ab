//! The map of an epoch: the blocks of the volume that are in the journal, and their places. It is
//! in memory, and small.
//!
//! Each segment of the volume has a table of one of two kinds: extents, which are blocks side by
//! side both in the volume and in the journal (8 bytes each); or, once these would take as much, a
//! slot for every block of the segment (4 bytes each). So sequential writes take almost nothing.
//! Single blocks all over a volume take 8 to 10 bytes each while they are few in a segment, and 4
//! to 8 where they are dense. One changed block alone in its segment takes some 100 bytes. Segments
//! that are zeroed whole are kept as ranges: trimming 16 TiB takes a few bytes.

use std::{collections::BTreeMap, ops::Range};

use varve_content::block::SEGMENT_BLOCKS;

use super::journal::{SLOTS_MAX, Slot};
use crate::format::journal::Entry;

/// Bytes of an entry of a tree map, whose nodes are two thirds full.
const ENTRY_BYTES: usize = size_of::<(u32, Segment)>() * 3 / 2;

const ABSENT: u32 = u32::MAX;
const ZEROS: u32 = u32::MAX - 1;

/// Extents of a segment, at most: then they take as much as a slot for each block.
const EXTENTS_MAX: usize = SEGMENT_BLOCKS as usize / 2;
/// Bytes that the allocator adds to a table.
const ALLOCATION_BYTES: usize = 16;

/// The state of blocks.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Absent,
    /// They are zeros.
    Zeros,
    /// The first is in this slot, the others are in the slots that follow.
    At(Slot),
}

/// Neighbouring blocks of one state.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct MapExtent {
    /// The first of them, in blocks of the volume.
    pub(super) start: u64,
    pub(super) blocks: u32,
    pub(super) state: State,
}

/// The map of one epoch.
#[derive(Debug, Default)]
pub(super) struct BlockMap {
    segments: BTreeMap<u32, Segment>,
    /// Segments that were zeroed whole: start and end. A segment's table goes before.
    zeroed: BTreeMap<u32, u32>,
    /// Bytes that the tables of all segments take.
    table_bytes: usize,
}

#[derive(Debug)]
struct Segment {
    /// `ABSENT` or `ZEROS`: the value of blocks in no extent.
    otherwise: u32,
    table: Table,
}

#[derive(Debug)]
enum Table {
    /// Ascending; neighbours that continue each other are one.
    Extents(Vec<PackedExtent>),
    Slots(Box<[u32; SEGMENT_BLOCKS as usize]>),
}

/// An extent within a segment, in 8 bytes.
#[derive(Debug, Copy, Clone)]
struct PackedExtent {
    start: u16,
    blocks: u16,
    /// `ZEROS`, or the slot of the first.
    value: u32,
}

const _: () = assert!(size_of::<PackedExtent>() == 8);

impl PackedExtent {
    #[expect(clippy::cast_possible_truncation, reason = "a segment has 2048 blocks")]
    fn new(start: u32, end: u32, value: u32) -> Self {
        Self {
            start: start as u16,
            blocks: (end - start) as u16,
            value,
        }
    }

    fn start(&self) -> u32 {
        self.start.into()
    }

    fn end(&self) -> u32 {
        u32::from(self.start) + u32::from(self.blocks)
    }

    /// The value of one of its blocks.
    fn value_at(&self, block: u32) -> u32 {
        match self.value {
            ZEROS => ZEROS,
            slot => slot + (block - self.start()),
        }
    }

    /// Takes in the next extent if that continues this one.
    fn join(&mut self, next: &Self) -> bool {
        let follows = match (self.value, next.value) {
            (ZEROS, ZEROS) => true,
            (ZEROS, _) | (_, ZEROS) => false,
            (first, slot) => first + u32::from(self.blocks) == slot,
        };
        let joins = follows && self.end() == next.start();
        if joins {
            self.blocks += next.blocks;
        }
        joins
    }
}

impl BlockMap {
    /// Returns true if nothing was changed.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.zeroed.is_empty()
    }

    /// Segments with a table, ascending: not all of their blocks were changed, or not all in one
    /// way.
    pub(super) fn mixed(&self) -> impl Iterator<Item = u32> {
        self.segments.keys().copied()
    }

    /// Segments that were zeroed whole, ascending. A segment's table goes before.
    pub(super) fn zeroed(&self) -> impl Iterator<Item = Range<u32>> {
        self.zeroed.iter().map(|(start, end)| *start..*end)
    }

    /// `Some(true)` if a whole segment was zeroed and not written since; `None` if nothing in it
    /// changed.
    pub(super) fn is_zeroed(&self, segment: u32) -> Option<bool> {
        if self.segments.contains_key(&segment) {
            return Some(false);
        }
        self.is_in_zeroed(segment).then_some(true)
    }

    /// Takes in the entries of a batch whose first data block is in `slot`, in their order.
    pub(super) fn apply(&mut self, entries: &[Entry], mut slot: Slot) {
        for entry in entries {
            let start = u64::from(entry.start_block);
            if entry.zeros {
                self.put_zeros(start, entry.blocks);
            } else {
                self.put(start, entry.blocks, slot);
                slot += entry.blocks;
            }
        }
    }

    /// Puts blocks from `start` on in `slot` and those that follow it.
    pub(super) fn put(&mut self, start: u64, blocks: u32, slot: Slot) {
        debug_assert!(u64::from(slot) + u64::from(blocks) <= u64::from(SLOTS_MAX));
        let mut slot = slot;
        for range in by_segment(start, blocks) {
            self.set(&range, slot);
            slot += range.len();
        }
    }

    /// Makes blocks zeros. Takes no longer for many blocks, unless they had been written.
    pub(super) fn put_zeros(&mut self, start: u64, blocks: u32) {
        let end = start + u64::from(blocks);
        let segment_blocks = u64::from(SEGMENT_BLOCKS);
        let first_whole = start.div_ceil(segment_blocks);
        let whole_end = end / segment_blocks;
        if first_whole >= whole_end {
            by_segment(start, blocks).for_each(|range| self.zero_range(&range));
            return;
        }
        let edges = [
            (start, first_whole * segment_blocks),
            (whole_end * segment_blocks, end),
        ];
        for (start, end) in edges {
            let blocks = u32::try_from(end - start).unwrap_or(0);
            by_segment(start, blocks).for_each(|range| self.zero_range(&range));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a volume has at most 2^32 blocks"
        )]
        self.zero_segments(first_whole as u32..whole_end as u32);
    }

    /// Sets blocks of a segment to `ZEROS`, or to a slot and those that follow it.
    fn set(&mut self, range: &SegmentRange, value: u32) -> &Segment {
        let zeroed = self.is_in_zeroed(range.segment);
        let segment = self
            .segments
            .entry(range.segment)
            .or_insert_with(|| Segment {
                otherwise: if zeroed { ZEROS } else { ABSENT },
                table: Table::Extents(Vec::new()),
            });
        let before = segment.table_bytes();
        segment.set(range.start, range.end, value);
        self.table_bytes = self.table_bytes - before + segment.table_bytes();
        segment
    }

    fn zero_range(&mut self, range: &SegmentRange) {
        if self.is_zeroed(range.segment) == Some(true) {
            return;
        }
        // Most trims come in ranges that keep to no segments, and together zero whole ones.
        if self.set(range, ZEROS).is_zeros() {
            self.zero_segments(range.segment..range.segment + 1);
        }
    }

    fn zero_segments(&mut self, range: Range<u32>) {
        let tables: Vec<u32> = self
            .segments
            .range(range.clone())
            .map(|(segment, _)| *segment)
            .collect();
        for segment in tables {
            let removed = self.segments.remove(&segment);
            self.table_bytes -= removed.map_or(0, |segment| segment.table_bytes());
        }
        // Joins the ranges that it touches.
        let Range { mut start, mut end } = range;
        if let Some((before, before_end)) = self.zeroed.range(..start).next_back()
            && *before_end >= start
        {
            start = *before;
            end = end.max(*before_end);
        }
        while let Some((next, next_end)) = self.zeroed.range(start..=end).next_back() {
            let next = *next;
            end = end.max(*next_end);
            self.zeroed.remove(&next);
        }
        self.zeroed.insert(start, end);
    }

    fn is_in_zeroed(&self, segment: u32) -> bool {
        self.zeroed
            .range(..=segment)
            .next_back()
            .is_some_and(|(_, end)| segment < *end)
    }

    /// Visits the extents of `blocks` blocks from `start` on, in order and without a gap.
    /// Neighbours that continue each other are one.
    pub(super) fn extents(&self, start: u64, blocks: u32, mut each: impl FnMut(MapExtent)) {
        let mut last: Option<MapExtent> = None;
        let mut push = |start: u64, blocks: u32, value: u32| {
            let state = match value {
                ABSENT => State::Absent,
                ZEROS => State::Zeros,
                slot => State::At(slot),
            };
            if let Some(extent) = &mut last {
                let goes_on = match (extent.state, state) {
                    (State::At(first), State::At(slot)) => first + extent.blocks == slot,
                    (before, now) => before == now,
                };
                if goes_on {
                    extent.blocks += blocks;
                    return;
                }
                each(*extent);
            }
            last = Some(MapExtent {
                start,
                blocks,
                state,
            });
        };
        for range in by_segment(start, blocks) {
            let base = u64::from(range.segment) * u64::from(SEGMENT_BLOCKS);
            match self.segments.get(&range.segment) {
                Some(segment) => segment.each(range.start, range.end, |at, len, value| {
                    push(base + u64::from(at), len, value);
                }),
                None => {
                    let value = if self.is_in_zeroed(range.segment) {
                        ZEROS
                    } else {
                        ABSENT
                    };
                    push(base + u64::from(range.start), range.len(), value);
                }
            }
        }
        if let Some(extent) = last {
            each(extent);
        }
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn memory_bytes(&self) -> u64 {
        let entries = (self.segments.len() + self.zeroed.len()) * ENTRY_BYTES;
        (self.table_bytes + entries) as u64
    }
}

impl Segment {
    fn table_bytes(&self) -> usize {
        match &self.table {
            Table::Extents(extents) if extents.capacity() == 0 => 0,
            Table::Extents(extents) => {
                ALLOCATION_BYTES + extents.capacity() * size_of::<PackedExtent>()
            }
            Table::Slots(slots) => ALLOCATION_BYTES + size_of_val(&**slots),
        }
    }

    /// Sets blocks `start..end` of the segment to `ZEROS`, or to a slot and those that follow it.
    fn set(&mut self, start: u32, end: u32, value: u32) {
        let new = PackedExtent::new(start, end, value);
        if let Table::Extents(extents) = &mut self.table {
            put_extent(extents, new);
            if extents.len() <= EXTENTS_MAX {
                return;
            }
            let mut slots = Box::new([self.otherwise; SEGMENT_BLOCKS as usize]);
            for extent in extents.iter() {
                fill(&mut slots, extent);
            }
            self.table = Table::Slots(slots);
        } else if let Table::Slots(slots) = &mut self.table {
            fill(slots, &new);
        }
    }

    /// Returns true if all blocks of the segment are zeros.
    fn is_zeros(&self) -> bool {
        match &self.table {
            Table::Slots(slots) => slots.iter().all(|value| *value == ZEROS),
            Table::Extents(extents) if self.otherwise == ZEROS => {
                extents.iter().all(|extent| extent.value == ZEROS)
            }
            Table::Extents(extents) => match &**extents {
                [extent] => extent.value == ZEROS && u32::from(extent.blocks) == SEGMENT_BLOCKS,
                _ => false,
            },
        }
    }

    /// Visits blocks `start..end` as extents: first block, number of blocks, and value, which is
    /// the first slot if it is one.
    fn each(&self, start: u32, end: u32, mut visit: impl FnMut(u32, u32, u32)) {
        match &self.table {
            Table::Slots(slots) => {
                let values = slots.get(start as usize..end as usize).unwrap_or(&[]);
                for (at, value) in (start..).zip(values) {
                    visit(at, 1, *value);
                }
            }
            Table::Extents(extents) => {
                let from = extents.partition_point(|extent| extent.end() <= start);
                let mut position = start;
                for extent in extents.iter().skip(from) {
                    if extent.start() >= end {
                        break;
                    }
                    if position < extent.start() {
                        visit(position, extent.start() - position, self.otherwise);
                        position = extent.start();
                    }
                    let until = extent.end().min(end);
                    visit(position, until - position, extent.value_at(position));
                    position = until;
                }
                if position < end {
                    visit(position, end - position, self.otherwise);
                }
            }
        }
    }
}

/// Puts an extent among others, in the place of what it covers of them.
fn put_extent(extents: &mut Vec<PackedExtent>, new: PackedExtent) {
    let (start, end) = (new.start(), new.end());
    // The extents that it covers or touches.
    let from = extents.partition_point(|extent| extent.end() < start);
    let to = extents.partition_point(|extent| extent.start() <= end);
    let touched = extents.get(from..to).unwrap_or(&[]);
    let before = touched.first().filter(|extent| extent.start() < start);
    let before = before
        .map(|extent| PackedExtent::new(extent.start(), extent.end().min(start), extent.value));
    let behind = touched.last().filter(|extent| extent.end() > end);
    let behind = behind.map(|extent| {
        let from = extent.start().max(end);
        PackedExtent::new(from, extent.end(), extent.value_at(from))
    });
    let mut new_extents = [new; 3];
    let mut count = 0;
    for extent in before.into_iter().chain([new]).chain(behind) {
        let joined = count > 0
            && new_extents
                .get_mut(count - 1)
                .is_some_and(|last| last.join(&extent));
        if let (false, Some(place)) = (joined, new_extents.get_mut(count)) {
            *place = extent;
            count += 1;
        }
    }
    // Grows by a quarter at a time, because most spare room would stay unused.
    let len = extents.len() - (to - from) + count;
    if len > extents.capacity() {
        extents.reserve_exact((len + len / 4).max(2) - extents.len());
    }
    extents.splice(from..to, new_extents.into_iter().take(count));
}

fn fill(slots: &mut [u32; SEGMENT_BLOCKS as usize], extent: &PackedExtent) {
    let places = slots.get_mut(extent.start() as usize..extent.end() as usize);
    for (place, block) in places.into_iter().flatten().zip(extent.start()..) {
        *place = extent.value_at(block);
    }
}

/// Blocks of one segment, counted from its first.
struct SegmentRange {
    segment: u32,
    start: u32,
    end: u32,
}

impl SegmentRange {
    const fn len(&self) -> u32 {
        self.end - self.start
    }
}

/// Splits a range of blocks at the borders of segments.
fn by_segment(start: u64, blocks: u32) -> impl Iterator<Item = SegmentRange> {
    let segment_blocks = u64::from(SEGMENT_BLOCKS);
    let end = start + u64::from(blocks);
    let mut position = start;
    std::iter::from_fn(move || {
        if position >= end {
            return None;
        }
        let segment = position / segment_blocks;
        let base = segment * segment_blocks;
        let until = end.min(base + segment_blocks);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a volume has at most 2^32 blocks"
        )]
        let range = SegmentRange {
            segment: segment as u32,
            start: (position - base) as u32,
            end: (until - base) as u32,
        };
        position = until;
        Some(range)
    })
}

#[cfg(test)]
mod tests;
