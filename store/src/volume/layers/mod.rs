//! The layers of a volume: the current epoch, the ended epochs, and the base.

use std::{ops::Range, sync::Arc};

use super::{
    journal::{Replay, Slot},
    map::{BlockMap, State},
    map_memory::{MapCharge, MapMemory},
};
use crate::{format::journal::Entry, read::ContentReader};

/// The map of the writes between two cuts of the journal.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Its slots are counted from this journal file on.
    pub(super) first_file: u64,
    pub(super) map: BlockMap,
    /// The map's memory, counted; `None` while the journal is being read.
    charge: Option<MapCharge>,
}

impl Epoch {
    pub(super) fn new(first_file: u64) -> Self {
        Self {
            first_file,
            map: BlockMap::default(),
            charge: None,
        }
    }

    /// Counts its map's memory from now on.
    pub(super) fn counted(self, memory: &Arc<MapMemory>) -> Self {
        Self {
            charge: Some(memory.charge(self.map.memory_bytes())),
            ..self
        }
    }

    /// Takes in the entries of a batch whose first data block is in `slot`.
    pub(super) fn apply(&mut self, entries: &[Entry], slot: Slot) {
        self.map.apply(entries, slot);
        if let Some(charge) = &mut self.charge {
            charge.set(self.map.memory_bytes());
        }
    }
}

/// The epochs of a journal that is being read, the oldest first.
#[derive(Debug, Default)]
pub(super) struct ReplayedEpochs(pub(super) Vec<Epoch>);

impl Replay for ReplayedEpochs {
    fn begin_epoch(&mut self, first_file: u64) {
        self.0.push(Epoch::new(first_file));
    }

    fn batch(&mut self, entries: &[Entry], slot: Slot) {
        if let Some(epoch) = self.0.last_mut() {
            epoch.map.apply(entries, slot);
        }
    }
}

/// Layers that do not change. A later epoch hides an earlier one, and each epoch hides the base.
#[derive(Debug, Clone)]
pub(super) struct Stack {
    /// Epochs that have ended, the oldest first.
    pub(super) ended: Vec<Arc<Epoch>>,
    pub(super) base: Option<ContentReader>,
}

/// The differences of segments from the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Changed {
    /// They are zeros, whatever is below.
    Zeroed(Range<u32>),
    /// Some of the segment's blocks were changed.
    Mixed(u32),
}

impl Changed {
    pub(super) fn segments(&self) -> Range<u32> {
        match self {
            Self::Zeroed(segments) => segments.clone(),
            Self::Mixed(segment) => *segment..segment + 1,
        }
    }
}

/// A volume's layers.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) current: Epoch,
    pub(super) below: Stack,
}

/// The places of blocks.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Zeros,
    /// In the journal: the first is in this slot, which is counted from this file on.
    Journal {
        first_file: u64,
        slot: Slot,
    },
    Base,
}

/// Neighbouring blocks that are in one place.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) struct BlockExtent {
    pub(super) start: u64,
    pub(super) blocks: u32,
    pub(super) place: Place,
}

impl Layers {
    pub(super) fn new(
        current: Epoch,
        ended: impl IntoIterator<Item = Epoch>,
        base: Option<ContentReader>,
    ) -> Self {
        Self {
            current,
            below: Stack {
                ended: ended.into_iter().map(Arc::new).collect(),
                base,
            },
        }
    }

    /// Replaces the base by one that holds everything written before a journal file.
    pub(super) fn rebase(&mut self, next_file: u64, base: ContentReader) {
        self.below
            .ended
            .retain(|epoch| epoch.first_file >= next_file);
        self.below.base = Some(base);
    }

    /// Returns true if the volume has no content beyond its base.
    pub(super) fn is_base(&self) -> bool {
        self.current.map.is_empty() && self.below.ended.is_empty()
    }

    /// The places of `blocks` blocks from `start` on, in order.
    pub(super) fn extents(&self, start: u64, blocks: u32) -> Vec<BlockExtent> {
        let mut found = Vec::new();
        look(
            Some(&self.current),
            &self.below.ended,
            start,
            blocks,
            &mut found,
        );
        found
    }

    /// Ends the current epoch. The next one is written to files from `first_file` on.
    pub(super) fn end_epoch(&mut self, first_file: u64) {
        let next = Epoch {
            charge: self.current.charge.as_ref().map(MapCharge::another),
            ..Epoch::new(first_file)
        };
        let ended = std::mem::replace(&mut self.current, next);
        if !ended.map.is_empty() {
            self.below.ended.push(Arc::new(ended));
        }
    }
}

impl Stack {
    /// The layers that were written before a journal file, with which an epoch begins.
    pub(super) fn before(&self, next_file: u64) -> Self {
        let before = |epoch: &&Arc<Epoch>| epoch.first_file < next_file;
        Self {
            ended: self.ended.iter().filter(before).cloned().collect(),
            base: self.base.clone(),
        }
    }

    /// The places of `blocks` blocks from `start` on, in order.
    pub(super) fn extents(&self, start: u64, blocks: u32) -> Vec<BlockExtent> {
        let mut found = Vec::new();
        look(None, &self.ended, start, blocks, &mut found);
        found
    }

    /// The segments that were changed since the base, ascending. Takes time for each change,
    /// however much it covers.
    pub(super) fn changes(&self) -> Vec<Changed> {
        let mut mixed: Vec<u32> = self
            .ended
            .iter()
            .flat_map(|epoch| epoch.map.mixed())
            .collect();
        mixed.sort_unstable();
        mixed.dedup();
        // The content of a segment in an earlier epoch does not matter if a later one zeroed the
        // segment.
        mixed.retain(|segment| !self.is_zeroed(*segment));
        let mut zeroed: Vec<Range<u32>> = self
            .ended
            .iter()
            .flat_map(|epoch| epoch.map.zeroed())
            .collect();
        zeroed.sort_unstable_by_key(|range| range.start);

        let mut changes = Vec::with_capacity(mixed.len() + zeroed.len());
        let mut mixed = mixed.into_iter().peekable();
        let mut position = 0;
        for range in zeroed {
            position = position.max(range.start);
            while let Some(segment) = mixed.next_if(|segment| *segment < range.end) {
                if position < segment {
                    push_zeroed(&mut changes, position..segment);
                }
                changes.push(Changed::Mixed(segment));
                position = position.max(segment + 1);
            }
            if position < range.end {
                push_zeroed(&mut changes, position..range.end);
                position = range.end;
            }
        }
        changes.extend(mixed.map(Changed::Mixed));
        changes
    }

    /// Returns true if a whole segment was zeroed and not written since.
    fn is_zeroed(&self, segment: u32) -> bool {
        let newest = self.ended.iter().rev();
        let mut known = newest.map(|epoch| epoch.map.is_zeroed(segment));
        known.find_map(|known| known).unwrap_or(false)
    }
}

/// Adds zeroed segments, to the last range if they follow it.
fn push_zeroed(changes: &mut Vec<Changed>, range: Range<u32>) {
    if let Some(Changed::Zeroed(last)) = changes.last_mut()
        && last.end == range.start
    {
        last.end = range.end;
        return;
    }
    changes.push(Changed::Zeroed(range));
}

/// Looks blocks up in the first epoch, those that it does not know in the last of the others, and
/// so on down.
fn look(
    first: Option<&Epoch>,
    others: &[Arc<Epoch>],
    start: u64,
    blocks: u32,
    found: &mut Vec<BlockExtent>,
) {
    let (epoch, below) = match (first, others.split_last()) {
        (Some(epoch), _) => (epoch, others),
        (None, Some((last, below))) => (&**last, below),
        (None, None) => {
            push(found, start, blocks, Place::Base);
            return;
        }
    };
    epoch
        .map
        .extents(start, blocks, |extent| match extent.state {
            State::Absent => look(None, below, extent.start, extent.blocks, found),
            State::Zeros => push(found, extent.start, extent.blocks, Place::Zeros),
            State::At(slot) => {
                let first_file = epoch.first_file;
                push(
                    found,
                    extent.start,
                    extent.blocks,
                    Place::Journal { first_file, slot },
                );
            }
        });
}

/// Adds blocks, to the last extent if they are in the same place.
fn push(found: &mut Vec<BlockExtent>, start: u64, blocks: u32, place: Place) {
    if let Some(last) = found.last_mut()
        && last.place == place
        && matches!(place, Place::Zeros | Place::Base)
    {
        last.blocks += blocks;
        return;
    }
    found.push(BlockExtent {
        start,
        blocks,
        place,
    });
}

#[cfg(test)]
mod tests;
