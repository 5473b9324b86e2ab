//! Which blocks of a volume are in a journal, and where: in memory, as small as it can be.
//!
//! A segment of the volume has one table: either its blocks one by one (6 bytes each), or, once that would take as much, a
//! slot for every block of the segment (4 bytes each). So dense changes take 4 to 8 bytes a block, whatever their order, and a single
//! changed block in a segment some 80. Segments that are zeroed whole are kept as ranges: trimming 16 TiB takes
//! a few bytes.

use std::collections::{BTreeMap, HashMap};

use varve_content::block::SEGMENT_BLOCKS;

use crate::format::journal::Entry;

/// A data block of the journal; what the number means is for the journal to say. Below [`SLOTS_MAX`].
pub(super) type Slot = u32;

/// Slots are below this.
pub(super) const SLOTS_MAX: u32 = u32::MAX - 1;

const ABSENT: u32 = u32::MAX;
const ZEROS: u32 = u32::MAX - 1;

/// Blocks kept one by one in a segment, at most: then they take as much as all.
const FEW_MAX: usize = SEGMENT_BLOCKS as usize * 4 / 6;

/// What the journal says of some blocks.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Absent,
    /// They are zeros.
    Zeros,
    /// The first is in this slot, the others in those that follow.
    At(Slot),
}

/// Blocks of which the same is to be said.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// The first of them, in the volume.
    pub(super) start: u64,
    pub(super) blocks: u32,
    pub(super) state: State,
}

/// The map of one epoch.
#[derive(Debug, Default)]
pub(super) struct BlockMap {
    segments: HashMap<u32, Segment>,
    /// Segments that were zeroed whole: start and end. One that has a table as well is what the table says.
    zeroed: BTreeMap<u32, u32>,
}

#[derive(Debug)]
struct Segment {
    /// What blocks are that are not among [`Table::Few`].
    otherwise: u32,
    table: Table,
}

#[derive(Debug)]
enum Table {
    /// Blocks in ascending order, and the slot of each.
    Few {
        blocks: Vec<u16>,
        slots: Vec<u32>,
    },
    All(Box<[u32; SEGMENT_BLOCKS as usize]>),
}

impl BlockMap {
    /// Whether nothing was ever changed.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.zeroed.is_empty()
    }

    /// Segments in which something was changed, in no order.
    pub(super) fn segments(&self) -> impl Iterator<Item = u32> {
        let zeroed = self.zeroed.iter().flat_map(|(start, end)| *start..*end);
        self.segments.keys().copied().chain(zeroed)
    }

    /// Takes in the entries of a batch whose data begins at `slot`, in their order.
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

    /// `blocks` from `start` on are in `slot` and those that follow it.
    pub(super) fn put(&mut self, start: u64, blocks: u32, slot: Slot) {
        debug_assert!(u64::from(slot) + u64::from(blocks) <= u64::from(SLOTS_MAX));
        let mut slot = slot;
        for part in parts(start, blocks) {
            let first = slot;
            slot += part.len();
            self.segment(part.segment)
                .set(part.start, part.end, |at| first + (at - part.start));
        }
    }

    /// They are zeros.
    pub(super) fn put_zeros(&mut self, start: u64, blocks: u32) {
        for part in parts(start, blocks) {
            if part.len() == SEGMENT_BLOCKS {
                self.segments.remove(&part.segment);
                self.zero_segment(part.segment);
            } else {
                self.segment(part.segment)
                    .set(part.start, part.end, |_| ZEROS);
            }
        }
    }

    fn segment(&mut self, index: u32) -> &mut Segment {
        let zeroed = self.is_zeroed(index);
        self.segments.entry(index).or_insert_with(|| Segment {
            otherwise: if zeroed { ZEROS } else { ABSENT },
            table: Table::Few {
                blocks: Vec::new(),
                slots: Vec::new(),
            },
        })
    }

    fn is_zeroed(&self, segment: u32) -> bool {
        self.zeroed
            .range(..=segment)
            .next_back()
            .is_some_and(|(_, end)| segment < *end)
    }

    fn zero_segment(&mut self, segment: u32) {
        if self.is_zeroed(segment) {
            return;
        }
        // Grows the range before, and takes in the one behind.
        let end = self.zeroed.remove(&(segment + 1)).unwrap_or(segment + 1);
        match self.zeroed.range_mut(..segment).next_back() {
            Some((_, before)) if *before == segment => *before = end,
            _ => drop(self.zeroed.insert(segment, end)),
        }
    }

    /// What is said of `blocks` from `start` on, in order and without a gap, neighbours that belong together as one.
    pub(super) fn runs(&self, start: u64, blocks: u32, mut each: impl FnMut(Run)) {
        let mut last: Option<Run> = None;
        let mut push = |start: u64, blocks: u32, value: u32| {
            let state = match value {
                ABSENT => State::Absent,
                ZEROS => State::Zeros,
                slot => State::At(slot),
            };
            if let Some(run) = &mut last {
                let goes_on = match (run.state, state) {
                    (State::At(first), State::At(slot)) => first + run.blocks == slot,
                    (before, now) => before == now,
                };
                if goes_on {
                    run.blocks += blocks;
                    return;
                }
                each(*run);
            }
            last = Some(Run {
                start,
                blocks,
                state,
            });
        };
        for part in parts(start, blocks) {
            let base = u64::from(part.segment) * u64::from(SEGMENT_BLOCKS);
            match self.segments.get(&part.segment) {
                Some(segment) => segment.each(part.start, part.end, |at, len, value| {
                    push(base + u64::from(at), len, value);
                }),
                None => {
                    let value = if self.is_zeroed(part.segment) {
                        ZEROS
                    } else {
                        ABSENT
                    };
                    push(base + u64::from(part.start), part.len(), value);
                }
            }
        }
        if let Some(run) = last {
            each(run);
        }
    }

    /// About how many bytes it takes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let tables: usize = self
            .segments
            .values()
            .map(|segment| match &segment.table {
                Table::Few { blocks, slots } => blocks.capacity() * 2 + slots.capacity() * 4,
                Table::All(slots) => size_of_val(&**slots),
            })
            .sum();
        let entries = self.segments.capacity() * (size_of::<(u32, Segment)>() + 1);
        (tables + entries + self.zeroed.len() * 16) as u64
    }
}

impl Segment {
    /// Sets blocks `start..end` of the segment to what `value` gives for each.
    fn set(&mut self, start: u32, end: u32, value: impl Fn(u32) -> u32) {
        if let Table::Few { blocks, slots } = &mut self.table {
            let from = blocks.partition_point(|block| u32::from(*block) < start);
            let to = blocks.partition_point(|block| u32::from(*block) < end);
            if blocks.len() - (to - from) + (end - start) as usize <= FEW_MAX {
                #[expect(clippy::cast_possible_truncation, reason = "a segment has 2048 blocks")]
                blocks.splice(from..to, (start..end).map(|block| block as u16));
                slots.splice(from..to, (start..end).map(value));
                return;
            }
            let mut all = Box::new([self.otherwise; SEGMENT_BLOCKS as usize]);
            for (block, slot) in blocks.iter().zip(slots.iter()) {
                if let Some(place) = all.get_mut(usize::from(*block)) {
                    *place = *slot;
                }
            }
            self.table = Table::All(all);
        }
        if let Table::All(all) = &mut self.table
            && let Some(places) = all.get_mut(start as usize..end as usize)
        {
            for (place, block) in places.iter_mut().zip(start..) {
                *place = value(block);
            }
        }
    }

    /// Blocks `start..end`: where, how many, and what. Slots come one by one.
    fn each(&self, start: u32, end: u32, mut visit: impl FnMut(u32, u32, u32)) {
        match &self.table {
            Table::All(all) => {
                let values = all.get(start as usize..end as usize).unwrap_or(&[]);
                for (at, value) in (start..).zip(values) {
                    visit(at, 1, *value);
                }
            }
            Table::Few { blocks, slots } => {
                let from = blocks.partition_point(|block| u32::from(*block) < start);
                let mut position = start;
                for (block, slot) in blocks.iter().zip(slots).skip(from) {
                    let block = u32::from(*block);
                    if block >= end {
                        break;
                    }
                    if position < block {
                        visit(position, block - position, self.otherwise);
                    }
                    visit(block, 1, *slot);
                    position = block + 1;
                }
                if position < end {
                    visit(position, end - position, self.otherwise);
                }
            }
        }
    }
}

/// The part of a range that is in one segment, in blocks of it.
struct Part {
    segment: u32,
    start: u32,
    end: u32,
}

impl Part {
    const fn len(&self) -> u32 {
        self.end - self.start
    }
}

fn parts(start: u64, blocks: u32) -> impl Iterator<Item = Part> {
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
        let part = Part {
            segment: segment as u32,
            start: (position - base) as u32,
            end: (until - base) as u32,
        };
        position = until;
        Some(part)
    })
}

#[cfg(test)]
mod tests;
