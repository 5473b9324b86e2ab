//! Changes of blocks, collected into batches, each of which is one write.

use std::iter;

use bytes::Bytes;
use varve_content::BLOCK_BYTES;

use crate::format::journal::{Descriptor, Entry, JOURNAL_BLOCK_BYTES};

/// Blocks that are added to an entry at a time, at most. An entry with as many takes no more, so
/// their sum is a `u32`.
const ENTRY_BLOCKS_MAX: u32 = 1 << 31;

/// A change of whole blocks.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Bytes, a multiple of a block, from a block on.
    Data { start_block: u64, data: Bytes },
    /// Zeros.
    Zeros { start_block: u64, blocks: u64 },
}

impl Change {
    /// Bytes of its data.
    pub(crate) fn data_bytes(&self) -> usize {
        match self {
            Self::Data { data, .. } => data.len(),
            Self::Zeros { .. } => 0,
        }
    }

    /// Splits it into changes of at most `most` bytes of data each, in order; into none if it
    /// changes nothing.
    pub(crate) fn split(self, most: usize) -> impl Iterator<Item = Self> {
        debug_assert!(most.is_multiple_of(BLOCK_BYTES));
        let mut rest = (!self.is_empty()).then_some(self);
        iter::from_fn(move || match rest.take()? {
            Self::Data {
                start_block,
                mut data,
            } if data.len() > most => {
                let first = data.split_to(most);
                rest = Some(Self::Data {
                    start_block: start_block + (most / BLOCK_BYTES) as u64,
                    data,
                });
                Some(Self::Data {
                    start_block,
                    data: first,
                })
            }
            last => Some(last),
        })
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Data { data, .. } => data.is_empty(),
            Self::Zeros { blocks, .. } => *blocks == 0,
        }
    }
}

/// The part of a change that went into a batch.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    All,
    /// The rest goes into the next batch.
    Some,
    Nothing,
}

/// Changes in the order in which they were made. A later one replaces what an earlier one wrote.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    entries: Vec<Entry>,
    data: Vec<Bytes>,
    data_blocks: usize,
}

impl Batch {
    /// Takes as much off a change as fits.
    pub(crate) fn take(&mut self, change: &mut Change) -> Taken {
        let mut taken = Taken::Nothing;
        match change {
            Change::Data { start_block, data } => {
                while !data.is_empty() {
                    let mut blocks = data.len() / BLOCK_BYTES;
                    let extends = self.extends(*start_block, false);
                    let entries = self.entries.len() + usize::from(!extends);
                    let fit = Descriptor::data_blocks_beside(entries);
                    blocks = blocks.min(fit.saturating_sub(self.data_blocks));
                    if blocks == 0 {
                        return taken;
                    }
                    taken = Taken::Some;
                    self.push(*start_block, blocks as u64, false);
                    self.data_blocks += blocks;
                    self.data.push(data.split_to(blocks * BLOCK_BYTES));
                    *start_block += blocks as u64;
                }
            }
            Change::Zeros {
                start_block,
                blocks,
            } => {
                while *blocks > 0 {
                    let some = (*blocks).min(u64::from(ENTRY_BLOCKS_MAX));
                    let extends = self.extends(*start_block, true);
                    let entries = self.entries.len() + usize::from(!extends);
                    if !Descriptor::fits(entries, self.data_blocks) {
                        return taken;
                    }
                    taken = Taken::Some;
                    self.push(*start_block, some, true);
                    *start_block += some;
                    *blocks -= some;
                }
            }
        }
        Taken::All
    }

    /// Returns true if blocks from `start` on can be added to the last entry.
    fn extends(&self, start: u64, zeros: bool) -> bool {
        self.entries.last().is_some_and(|last| {
            last.zeros == zeros
                && u64::from(last.start_block) + u64::from(last.blocks) == start
                && last.blocks < ENTRY_BLOCKS_MAX
        })
    }

    fn push(&mut self, start: u64, blocks: u64, zeros: bool) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a volume has at most 2^32 blocks, and `take` gives fewer at a time"
        )]
        let (start_block, blocks) = (start as u32, blocks as u32);
        if self.extends(start, zeros)
            && let Some(last) = self.entries.last_mut()
        {
            last.blocks += blocks;
            return;
        }
        self.entries.push(Entry {
            start_block,
            blocks,
            zeros,
        });
    }

    /// Returns true if the batch changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The blocks that it changes.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The data, in order.
    pub(super) fn data(&self) -> impl Iterator<Item = &Bytes> {
        self.data.iter()
    }

    /// The data, block by block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &[u8]> {
        self.data.iter().flat_map(|data| data.chunks(BLOCK_BYTES))
    }

    /// Bytes of its data.
    pub(crate) fn data_bytes(&self) -> usize {
        self.data_blocks * BLOCK_BYTES
    }

    /// Bytes that it takes in a file that has a header.
    pub(crate) fn bytes(&self) -> u64 {
        ((1 + self.data_blocks) * JOURNAL_BLOCK_BYTES) as u64
    }
}
