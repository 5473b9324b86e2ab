//! Which blocks of a volume are in a journal, and where: in memory, as small as it can be.
//!
//! A segment of the volume has one table: either its runs of blocks that are side by side in the volume and in the journal (8 bytes each),
//! or, once these would take as much, a slot for every block of the segment (4 bytes each). So what is written in order takes
//! next to nothing, and changes of single blocks all over a volume 8 to 10 bytes a block while they are few in a segment, and 4 to 8 where they are
//! dense. A single changed block in a segment takes some 100. Segments that are zeroed whole are kept as ranges: trimming 16 TiB takes
//! a few bytes.

use std::{collections::BTreeMap, ops::Range};

use varve_content::block::SEGMENT_BLOCKS;

use super::journal::{SLOTS_MAX, Slot};
use crate::format::journal::Entry;

/// What an entry of a tree takes, which is two thirds full.
const ENTRY_BYTES: usize = size_of::<(u32, Segment)>() * 3 / 2;

const ABSENT: u32 = u32::MAX;
const ZEROS: u32 = u32::MAX - 1;

/// Runs of a segment, at most: then they take as much as a slot for each block.
const RUNS_MAX: usize = SEGMENT_BLOCKS as usize / 2;
/// What the allocator adds to a table.
const ALLOCATION_BYTES: usize = 16;

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
    segments: BTreeMap<u32, Segment>,
    /// Segments that were zeroed whole: start and end. One that has a table as well is what the table says.
    zeroed: BTreeMap<u32, u32>,
    /// What the tables of all segments take.
    table_bytes: usize,
}

#[derive(Debug)]
struct Segment {
    /// What blocks are that are in no run.
    otherwise: u32,
    table: Table,
}

#[derive(Debug)]
enum Table {
    /// In ascending order; neighbours that belong together are one.
    Runs(Vec<Stored>),
    All(Box<[u32; SEGMENT_BLOCKS as usize]>),
}

/// Some blocks of a segment.
#[derive(Debug, Copy, Clone)]
struct Stored {
    start: u16,
    blocks: u16,
    /// `ZEROS`, or the slot of the first.
    value: u32,
}

const _: () = assert!(size_of::<Stored>() == 8);

impl Stored {
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

    /// What it says of one of its blocks.
    fn value_at(&self, block: u32) -> u32 {
        match self.value {
            ZEROS => ZEROS,
            slot => slot + (block - self.start()),
        }
    }

    /// Takes in the next one if it goes on where this one ends.
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
    /// Whether nothing was ever changed.
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.zeroed.is_empty()
    }

    /// Segments that have a table, in ascending order: some of their blocks were changed, in more than one way or not all of them.
    pub(super) fn mixed(&self) -> impl Iterator<Item = u32> {
        self.segments.keys().copied()
    }

    /// Segments that were zeroed whole, in ascending order. What has a table as well is what the table says.
    pub(super) fn zeroed(&self) -> impl Iterator<Item = Range<u32>> {
        self.zeroed.iter().map(|(start, end)| *start..*end)
    }

    /// Whether a segment was zeroed whole, and nothing of it was written since; `None` if nothing was changed in it.
    pub(super) fn is_zeroed(&self, segment: u32) -> Option<bool> {
        if self.segments.contains_key(&segment) {
            return Some(false);
        }
        self.is_in_zeroed(segment).then_some(true)
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
            self.set(&part, slot);
            slot += part.len();
        }
    }

    /// They are zeros. Takes no longer for many blocks, unless these had been written.
    pub(super) fn put_zeros(&mut self, start: u64, blocks: u32) {
        let end = start + u64::from(blocks);
        let segment_blocks = u64::from(SEGMENT_BLOCKS);
        let first_whole = start.div_ceil(segment_blocks);
        let whole_end = end / segment_blocks;
        if first_whole >= whole_end {
            parts(start, blocks).for_each(|part| self.zero_part(&part));
            return;
        }
        let edges = [
            (start, first_whole * segment_blocks),
            (whole_end * segment_blocks, end),
        ];
        for (start, end) in edges {
            let blocks = u32::try_from(end - start).unwrap_or(0);
            parts(start, blocks).for_each(|part| self.zero_part(&part));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a volume has at most 2^32 blocks"
        )]
        self.zero_segments(first_whole as u32..whole_end as u32);
    }

    /// Sets the blocks of a part to `ZEROS`, or to this slot and those that follow it.
    fn set(&mut self, part: &Part, value: u32) -> &Segment {
        let zeroed = self.is_in_zeroed(part.segment);
        let segment = self
            .segments
            .entry(part.segment)
            .or_insert_with(|| Segment {
                otherwise: if zeroed { ZEROS } else { ABSENT },
                table: Table::Runs(Vec::new()),
            });
        let before = segment.table_bytes();
        segment.set(part.start, part.end, value);
        self.table_bytes = self.table_bytes - before + segment.table_bytes();
        segment
    }

    fn zero_part(&mut self, part: &Part) {
        if self.is_zeroed(part.segment) == Some(true) {
            return;
        }
        // Most of what is given back comes in pieces that keep to no segments.
        if self.set(part, ZEROS).is_zeros() {
            self.zero_segments(part.segment..part.segment + 1);
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
        // Joins those that it touches.
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
                    let value = if self.is_in_zeroed(part.segment) {
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
        let entries = (self.segments.len() + self.zeroed.len()) * ENTRY_BYTES;
        (self.table_bytes + entries) as u64
    }
}

impl Segment {
    fn table_bytes(&self) -> usize {
        match &self.table {
            Table::Runs(runs) if runs.capacity() == 0 => 0,
            Table::Runs(runs) => ALLOCATION_BYTES + runs.capacity() * size_of::<Stored>(),
            Table::All(all) => ALLOCATION_BYTES + size_of_val(&**all),
        }
    }

    /// Sets blocks `start..end` of the segment to `ZEROS`, or to a slot and those that follow it.
    fn set(&mut self, start: u32, end: u32, value: u32) {
        let new = Stored::new(start, end, value);
        if let Table::Runs(runs) = &mut self.table {
            put_run(runs, new);
            if runs.len() <= RUNS_MAX {
                return;
            }
            let mut all = Box::new([self.otherwise; SEGMENT_BLOCKS as usize]);
            for run in runs.iter() {
                fill(&mut all, run);
            }
            self.table = Table::All(all);
        } else if let Table::All(all) = &mut self.table {
            fill(all, &new);
        }
    }

    /// Whether all of its blocks are zeros.
    fn is_zeros(&self) -> bool {
        match &self.table {
            Table::All(all) => all.iter().all(|value| *value == ZEROS),
            Table::Runs(runs) if self.otherwise == ZEROS => {
                runs.iter().all(|run| run.value == ZEROS)
            }
            Table::Runs(runs) => match &**runs {
                [run] => run.value == ZEROS && u32::from(run.blocks) == SEGMENT_BLOCKS,
                _ => false,
            },
        }
    }

    /// Blocks `start..end`: where, how many, and what, slots as the first of some that follow one another.
    fn each(&self, start: u32, end: u32, mut visit: impl FnMut(u32, u32, u32)) {
        match &self.table {
            Table::All(all) => {
                let values = all.get(start as usize..end as usize).unwrap_or(&[]);
                for (at, value) in (start..).zip(values) {
                    visit(at, 1, *value);
                }
            }
            Table::Runs(runs) => {
                let from = runs.partition_point(|run| run.end() <= start);
                let mut position = start;
                for run in runs.iter().skip(from) {
                    if run.start() >= end {
                        break;
                    }
                    if position < run.start() {
                        visit(position, run.start() - position, self.otherwise);
                        position = run.start();
                    }
                    let until = run.end().min(end);
                    visit(position, until - position, run.value_at(position));
                    position = until;
                }
                if position < end {
                    visit(position, end - position, self.otherwise);
                }
            }
        }
    }
}

/// Puts a run among others, in the place of what it covers of them.
fn put_run(runs: &mut Vec<Stored>, new: Stored) {
    let (start, end) = (new.start(), new.end());
    // Those that it covers or touches.
    let from = runs.partition_point(|run| run.end() < start);
    let to = runs.partition_point(|run| run.start() <= end);
    let touched = runs.get(from..to).unwrap_or(&[]);
    let before = touched.first().filter(|run| run.start() < start);
    let before = before.map(|run| Stored::new(run.start(), run.end().min(start), run.value));
    let behind = touched.last().filter(|run| run.end() > end);
    let behind = behind.map(|run| {
        let from = run.start().max(end);
        Stored::new(from, run.end(), run.value_at(from))
    });
    let mut parts = [new; 3];
    let mut count = 0;
    for part in before.into_iter().chain([new]).chain(behind) {
        let joined = count > 0
            && parts
                .get_mut(count - 1)
                .is_some_and(|last| last.join(&part));
        if let (false, Some(place)) = (joined, parts.get_mut(count)) {
            *place = part;
            count += 1;
        }
    }
    // By a quarter at a time: most of what a table has to spare stays unused.
    let len = runs.len() - (to - from) + count;
    if len > runs.capacity() {
        runs.reserve_exact((len + len / 4).max(2) - runs.len());
    }
    runs.splice(from..to, parts.into_iter().take(count));
}

fn fill(all: &mut [u32; SEGMENT_BLOCKS as usize], run: &Stored) {
    let places = all.get_mut(run.start() as usize..run.end() as usize);
    for (place, block) in places.into_iter().flatten().zip(run.start()..) {
        *place = run.value_at(block);
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
