//! The checkpoint of a catalog log: the whole catalog, packed into blocks.
//!
//! A checkpoint is a sequence of blocks and an end mark. Each begins at a multiple of [`LOG_ALIGN`]
//! and is filled up to the next one with zeros. A block has as many changes as fit into
//! [`BLOCK_BYTES_MAX`]: first every record of the catalog, as a put; then the deletions of volumes
//! whose journals were still on the disk, so that the log still says that they were deleted.

use super::{LOG_ALIGN, LOG_RECORD_BYTES_MAX, put_change, take_change};
use crate::format::{
    Change, FormatError, Kinds,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, put_crc32},
};

/// The largest block, header and zeros included.
pub const BLOCK_BYTES_MAX: usize = 512 << 10;

// A change that fits into a record of the log fits into a block.
const _: () = assert!(BLOCK_BYTES_MAX >= LOG_RECORD_BYTES_MAX);

const HEADER_BYTES: usize = 32;
const PAYLOAD_BYTES_MAX: usize = BLOCK_BYTES_MAX - HEADER_BYTES;
const BLOCK_MAGIC: [u8; 4] = *b"VCKB";
const END_MAGIC: [u8; 4] = *b"VCKE";

/// Packs changes into the blocks of a checkpoint.
///
/// # A block
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 4 | `VCKB` |
/// | 4 | 4 | number of the block, from 1 |
/// | 8 | 8 | generation of the log |
/// | 16 | 4 | number of changes, at least 1 |
/// | 20 | 4 | length of the payload |
/// | 24 | 4 | CRC-32 of the payload |
/// | 28 | 4 | CRC-32 of the bytes before |
/// | 32 | n | payload: of each change its number in 1 byte, the length of its payload in 4, and that, as in a [record of several changes](super::Record) |
/// | 32 + n |  | zeros up to a multiple of [`LOG_ALIGN`] |
///
/// # The end mark
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 4 | `VCKE` |
/// | 4 | 4 | number of blocks |
/// | 8 | 8 | generation of the log |
/// | 16 | 8 | number of changes in all blocks |
/// | 24 | 4 | zero |
/// | 28 | 4 | CRC-32 of the bytes before |
/// | 32 | 4064 | zeros |
#[derive(Debug)]
pub struct BlockWriter {
    totals: Totals,
    payload: Vec<u8>,
    changes: u32,
}

/// The totals so far of a checkpoint that is being written or read.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
struct Totals {
    generation: u64,
    blocks: u32,
    changes: u64,
}

impl Totals {
    const fn new(generation: u64) -> Self {
        Self {
            generation,
            blocks: 0,
            changes: 0,
        }
    }
}

impl BlockWriter {
    /// Begins the checkpoint of a log of this generation.
    #[must_use]
    pub const fn new(generation: u64) -> Self {
        Self {
            totals: Totals::new(generation),
            payload: Vec::new(),
            changes: 0,
        }
    }

    /// Adds a change. Returns the block before it, if the change begins a new one.
    ///
    /// # Panics
    ///
    /// If the change is longer than a block, which names and tags are held far below.
    #[must_use]
    pub fn push(&mut self, change: &Change) -> Option<Vec<u8>> {
        let bytes = change.log_bytes();
        assert!(
            bytes <= PAYLOAD_BYTES_MAX,
            "names and tags are bounded: a change of {bytes} bytes"
        );
        let whole = if self.payload.len() + bytes > PAYLOAD_BYTES_MAX {
            self.take_block()
        } else {
            None
        };
        put_change(&mut self.payload, change);
        self.changes += 1;
        whole
    }

    /// Ends the checkpoint. Returns the last block, if there is one, and the end mark.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let mut bytes = self.take_block().unwrap_or_default();
        let mut mark = vec![0; LOG_ALIGN];
        let (head, _) = mark.split_at_mut(HEADER_BYTES);
        FieldsMut::new(head)
            .bytes(&END_MAGIC)
            .u32(self.totals.blocks)
            .u64(self.totals.generation)
            .u64(self.totals.changes);
        put_crc32(head);
        bytes.extend_from_slice(&mark);
        bytes
    }

    fn take_block(&mut self) -> Option<Vec<u8>> {
        if self.changes == 0 {
            return None;
        }
        self.totals.blocks += 1;
        self.totals.changes += u64::from(self.changes);
        let mut bytes = vec![0; (HEADER_BYTES + self.payload.len()).next_multiple_of(LOG_ALIGN)];
        let (head, rest) = bytes.split_at_mut(HEADER_BYTES);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "asserted to be at most PAYLOAD_BYTES_MAX"
        )]
        FieldsMut::new(head)
            .bytes(&BLOCK_MAGIC)
            .u32(self.totals.blocks)
            .u64(self.totals.generation)
            .u32(self.changes)
            .u32(self.payload.len() as u32)
            .u32(crc32fast::hash(&self.payload));
        put_crc32(head);
        FieldsMut::new(rest).bytes(&self.payload);
        self.payload.clear();
        self.changes = 0;
        Some(bytes)
    }
}

/// Returns true if the block of [`LOG_ALIGN`] bytes is the end mark of some checkpoint.
#[must_use]
pub fn is_end_mark(block: &[u8]) -> bool {
    let head = block.get(..HEADER_BYTES).unwrap_or_default();
    head.starts_with(&END_MAGIC) && check_crc32("end mark", head).is_ok()
}

/// A part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The changes of a block.
    Block(Vec<Change>),
    /// The end mark: all blocks were there.
    End,
}

/// Reads the parts of a checkpoint one after the other.
#[derive(Debug, Clone)]
pub struct BlockReader {
    kinds: Kinds,
    totals: Totals,
}

impl BlockReader {
    /// Begins at the first part of the checkpoint of a log of this generation. `kinds` are those
    /// that are known.
    #[must_use]
    pub const fn new(kinds: Kinds, generation: u64) -> Self {
        Self {
            kinds,
            totals: Totals::new(generation),
        }
    }

    /// The part at the start of `bytes`, and how many bytes it takes. `bytes` has at least
    /// [`BLOCK_BYTES_MAX`], or all up to the end of the log.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not the next part of this checkpoint.
    pub fn part(&mut self, bytes: &[u8]) -> Result<(usize, Part), FormatError> {
        if bytes.starts_with(&END_MAGIC) {
            self.end_mark(bytes).map(|()| (LOG_ALIGN, Part::End))
        } else {
            self.block(bytes)
        }
    }

    fn block(&mut self, bytes: &[u8]) -> Result<(usize, Part), FormatError> {
        const WHAT: &str = "block of a catalog log checkpoint";
        let header: &[u8; HEADER_BYTES] = first(WHAT, bytes)?;
        expect_magic(WHAT, header, &BLOCK_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, header)?);
        fields.bytes(BLOCK_MAGIC.len())?;
        let blocks = self.totals.blocks.wrapping_add(1);
        expect(
            "number of a block of a catalog log checkpoint",
            blocks.into(),
            fields.u32()?.into(),
        )?;
        expect(
            "generation of a block of a catalog log checkpoint",
            self.totals.generation,
            fields.u64()?,
        )?;
        let count = fields.u32()?;
        let payload_bytes = fields.u32()? as usize;
        let crc32 = fields.u32()?;
        fields.end()?;
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(FormatError::differs(
                "length of a block of a catalog log checkpoint",
                format_args!("at most {PAYLOAD_BYTES_MAX}"),
                payload_bytes,
            ));
        }
        let used_bytes = HEADER_BYTES + payload_bytes;
        let block_bytes = used_bytes.next_multiple_of(LOG_ALIGN);
        let mut fields = Fields::new(WHAT, bytes);
        fields.bytes(HEADER_BYTES)?;
        let payload = fields.bytes(payload_bytes)?;
        fields.reserved(block_bytes - used_bytes)?;
        let found = crc32fast::hash(payload);
        if found != crc32 {
            return Err(FormatError::differs(
                WHAT,
                format_args!("CRC-32 {crc32:08x}"),
                format_args!("{found:08x}"),
            ));
        }
        if count == 0 {
            return Err(FormatError::differs(WHAT, "at least one change", 0));
        }
        let mut fields = Fields::new(WHAT, payload);
        let mut changes = Vec::new();
        for _ in 0..count {
            changes.push(take_change(self.kinds, &mut fields)?);
        }
        fields.end()?;
        self.totals.blocks = blocks;
        self.totals.changes = self.totals.changes.saturating_add(count.into());
        Ok((block_bytes, Part::Block(changes)))
    }

    fn end_mark(&self, bytes: &[u8]) -> Result<(), FormatError> {
        const WHAT: &str = "end mark of a catalog log checkpoint";
        let bytes: &[u8; LOG_ALIGN] = first(WHAT, bytes)?;
        let (head, tail) = bytes.split_at(HEADER_BYTES);
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, head)?);
        fields.bytes(END_MAGIC.len())?;
        let blocks = fields.u32()?.into();
        let generation = fields.u64()?;
        let changes = fields.u64()?;
        fields.reserved(4)?;
        fields.end()?;
        Fields::new(WHAT, tail).reserved(tail.len())?;
        expect(
            "generation of the end mark of a catalog log checkpoint",
            self.totals.generation,
            generation,
        )?;
        expect(
            "number of blocks of a catalog log checkpoint",
            blocks,
            self.totals.blocks.into(),
        )?;
        expect(
            "number of changes of a catalog log checkpoint",
            changes,
            self.totals.changes,
        )
    }
}

fn expect(what: &'static str, expected: u64, found: u64) -> Result<(), FormatError> {
    if expected == found {
        return Ok(());
    }
    Err(FormatError::differs(what, expected, found))
}

#[cfg(test)]
mod tests;
