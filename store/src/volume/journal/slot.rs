//! Slots: addresses of data blocks in a journal, 4 bytes each.
//!
//! A slot counts blocks from the first file of an epoch on. Every file counts as the longest
//! possible one, so a slot alone gives file and offset, and the files' lengths do not matter.

use crate::{
    format::journal::JOURNAL_BLOCK_BYTES,
    limits::{JOURNAL_BYTES_LIMIT, JOURNAL_FILE_BYTES_MAX},
};

/// The address of a data block, relative to the first file of its epoch. Below [`SLOTS_MAX`].
pub(crate) type Slot = u32;

/// Slots are below this: the two values above are left to the map of blocks.
pub(crate) const SLOTS_MAX: Slot = u32::MAX - 1;

const BLOCK: u64 = JOURNAL_BLOCK_BYTES as u64;
/// Slots of a file, whatever its length.
const FILE_SLOTS: u64 = JOURNAL_FILE_BYTES_MAX / BLOCK;
/// Files of one epoch.
pub(super) const EPOCH_FILES_MAX: u64 = 1 << 17;

const _: () = assert!(JOURNAL_FILE_BYTES_MAX.is_multiple_of(BLOCK));
const _: () = assert!(EPOCH_FILES_MAX * FILE_SLOTS < SLOTS_MAX as u64);
const _: () = assert!(JOURNAL_BYTES_LIMIT / JOURNAL_FILE_BYTES_MAX < EPOCH_FILES_MAX);

/// The slot of a block in a file, both counted from 0; the file from the first one of its epoch on.
pub(super) fn slot_of(file: u64, block: u64) -> Slot {
    debug_assert!(file < EPOCH_FILES_MAX && block < FILE_SLOTS);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`EPOCH_FILES_MAX` keeps it below `SLOTS_MAX`"
    )]
    let slot = (file * FILE_SLOTS + block) as Slot;
    slot
}

/// The number of the file that a slot is in, and the offset there in bytes.
pub(super) fn locate(first_file: u64, slot: Slot) -> (u64, u64) {
    let slot = u64::from(slot);
    (first_file + slot / FILE_SLOTS, slot % FILE_SLOTS * BLOCK)
}
