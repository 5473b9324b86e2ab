//! A volume's journal: the writes to the volume since its base.
//!
//! ```text
//! 0             4096
//! +-------------+------------------+--------+-- - --+--------+------------------+-- - -
//! | file header | batch descriptor | block  |       | block  | batch descriptor | ...
//! +-------------+------------------+--------+-- - --+--------+------------------+-- - -
//! ```
//!
//! Files follow one another by their numbers, without a gap, and so do the batches of a file by
//! theirs; each file says which batch is the last before its first. All is in blocks of 4 KiB. A
//! batch is written as a whole: its descriptor names the blocks of the volume for its data, in
//! order, and has a checksum of each. A later batch, and within a batch a later entry, overrides an
//! earlier one.
//!
//! A file may be longer than its batches. The bytes behind the last batch are not a descriptor of
//! this file: they are zeros or, in a recycled file, content from its earlier use under a lower
//! number. Until the first batch is written, even the header may be the old one.
//!
//! A descriptor also records which batches were durable when it was written
//! ([`Descriptor::synced_sequence`]). This distinguishes a torn end after a loss of power, which
//! was never promised, from damage: an unreadable batch is damage if any descriptor behind it says
//! that the batch was durable.

use varve_content::BLOCK_BYTES;

use super::{
    FormatError, StoreId,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, put_crc32},
    volume::VolumeId,
};

/// Everything in a journal begins at a multiple of this.
pub const JOURNAL_BLOCK_BYTES: usize = BLOCK_BYTES;
/// Data blocks of one batch, at most: 2 MiB.
pub const BATCH_BLOCKS_MAX: u32 = 512;

const VERSION: u32 = 2;
/// Sequence numbers ran on from file to file.
const VERSION_1: u32 = 1;
/// Sequence numbers of one file.
const FILE_SEQUENCES_BITS: u32 = 32;
const FILE_MAGIC: [u8; 8] = *b"VARVJRNL";
const BATCH_MAGIC: [u8; 4] = *b"VJBT";
const HEADER_BYTES: usize = 128;
const DESCRIPTOR_HEAD_BYTES: usize = 48;
const NONCE_OFFSET: usize = 32;
const ENTRY_BYTES: usize = 12;
const CRC_BYTES: usize = 4;
/// Entries and checksums of data share what is left of a descriptor.
const DESCRIPTOR_ROOM_BYTES: usize = JOURNAL_BLOCK_BYTES - DESCRIPTOR_HEAD_BYTES - CRC_BYTES;
const DATA: u32 = 1;
const ZEROS: u32 = 2;

const _: () = assert!(BATCH_BLOCKS_MAX as usize * CRC_BYTES + ENTRY_BYTES <= DESCRIPTOR_ROOM_BYTES);

/// Random bytes that distinguish the descriptors of one journal file from all other blocks.
pub type Nonce = [u8; 16];

/// The first block of a journal file.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | `VARVJRNL` |
/// | 8 | 4 | version: 2 |
/// | 12 | 4 | zero |
/// | 16 | 16 | store id |
/// | 32 | 9 | volume id |
/// | 41 | 7 | zero |
/// | 48 | 8 | number of the file |
/// | 56 | 8 | sequence number of its first batch |
/// | 64 | 16 | random bytes, which its descriptors repeat |
/// | 80 | 8 | sequence number of the last batch before its first, in whatever file that is |
/// | 88 | 36 | zero |
/// | 124 | 4 | CRC-32 of the bytes before |
/// | 128 | 3968 | zero |
///
/// Each file has [sequence numbers of its own](first_sequence_of), so that one says which file it
/// is of even where the file's header is lost. In version 1, which is still read, sequence numbers
/// run on from one file to the next, and the number at 80 is zero.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct FileHeader {
    /// Whose it is.
    pub store: StoreId,
    /// Of which volume.
    pub volume: VolumeId,
    /// Number of the file in the volume's journal.
    pub number: u64,
    /// Its first batch, whether or not it is there yet.
    pub first_sequence: u64,
    /// The batch before that: less. Its value at the beginning of the journal has no meaning.
    pub previous_sequence: u64,
    /// Random: so no guest can write a block that looks like a descriptor.
    pub nonce: Nonce,
}

/// The sequence number of the first batch of a file.
#[must_use]
pub const fn first_sequence_of(file_number: u64) -> u64 {
    file_number << FILE_SEQUENCES_BITS
}

impl FileHeader {
    /// The block.
    #[must_use]
    pub fn encode(&self) -> [u8; JOURNAL_BLOCK_BYTES] {
        let mut bytes = [0; JOURNAL_BLOCK_BYTES];
        let (head, _) = bytes.split_at_mut(HEADER_BYTES);
        FieldsMut::new(head)
            .bytes(&FILE_MAGIC)
            .u32(VERSION)
            .reserved(4)
            .bytes(self.store.as_bytes())
            .bytes(self.volume.as_bytes())
            .reserved(7)
            .u64(self.number)
            .u64(self.first_sequence)
            .bytes(&self.nonce)
            .u64(self.previous_sequence);
        put_crc32(head);
        bytes
    }

    /// The header in the first block of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "header of a journal file";
        let bytes: &[u8; JOURNAL_BLOCK_BYTES] = first(WHAT, bytes)?;
        let (head, tail) = bytes.split_at(HEADER_BYTES);
        expect_magic(WHAT, head, &FILE_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, head)?);
        fields.bytes(FILE_MAGIC.len())?;
        let version = fields.u32()?;
        if version != VERSION && version != VERSION_1 {
            return Err(FormatError::unknown(
                "version of a journal file",
                VERSION,
                version,
            ));
        }
        fields.reserved(4)?;
        let store = StoreId::from_bytes(fields.array()?);
        let volume = VolumeId::decode_from(&mut fields)?;
        fields.reserved(7)?;
        let number = fields.u64()?;
        let first_sequence = fields.u64()?;
        let nonce = fields.array()?;
        let previous_sequence = if version == VERSION_1 {
            fields.reserved(8)?;
            first_sequence.saturating_sub(1)
        } else {
            fields.u64()?
        };
        fields.reserved(36)?;
        fields.end()?;
        Fields::new(WHAT, tail).reserved(tail.len())?;
        let expected = (version == VERSION).then(|| first_sequence_of(number));
        if previous_sequence >= first_sequence
            || number >> (u64::BITS - FILE_SEQUENCES_BITS) != 0
            || expected.is_some_and(|expected| first_sequence != expected)
        {
            return Err(FormatError::differs(
                WHAT,
                "numbers that agree with each other",
                format_args!(
                    "file {number}, first batch {first_sequence}, {previous_sequence} before it"
                ),
            ));
        }
        Ok(Self {
            store,
            volume,
            number,
            first_sequence,
            previous_sequence,
            nonce,
        })
    }
}

/// The effect of a batch on a range of blocks of the volume.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The first of them.
    pub start_block: u32,
    /// How many; not 0.
    pub blocks: u32,
    /// True if the blocks become zeros. Otherwise their content is in the next data blocks of the
    /// batch.
    pub zeros: bool,
}

/// The block in front of a batch's data.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 4 | `VJBT` |
/// | 4 | 2 | number of entries |
/// | 6 | 2 | number of data blocks |
/// | 8 | 8 | number of the file |
/// | 16 | 8 | sequence number, from 1 on |
/// | 24 | 8 | sequence number up to which batches were durable; less than this one's |
/// | 32 | 16 | the file's random bytes |
/// | 48 | 12 each | entries: start block, number of blocks, 1 (data) or 2 (zeros) |
/// |  | 4 each | CRC-32 of each data block |
/// |  |  | zeros |
/// | 4092 | 4 | CRC-32 of the bytes before |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Number of the file it is in: a file that is put in another's place is found out.
    pub file_number: u64,
    /// Its own number.
    pub sequence: u64,
    /// Batches up to this one were durable.
    pub synced_sequence: u64,
    /// The file's.
    pub nonce: Nonce,
    /// The effects, in order.
    pub entries: Vec<Entry>,
    /// One for each data block.
    pub data_crcs: Vec<u32>,
}

impl Descriptor {
    /// Returns true if so many entries and data blocks fit into one batch.
    #[must_use]
    pub const fn fits(entries: usize, data_blocks: usize) -> bool {
        entries * ENTRY_BYTES <= DESCRIPTOR_ROOM_BYTES
            && data_blocks <= Self::data_blocks_beside(entries)
    }

    /// The most data blocks of a batch that has so many entries.
    #[must_use]
    pub const fn data_blocks_beside(entries: usize) -> usize {
        let room = DESCRIPTOR_ROOM_BYTES.saturating_sub(entries * ENTRY_BYTES) / CRC_BYTES;
        if room < BATCH_BLOCKS_MAX as usize {
            room
        } else {
            BATCH_BLOCKS_MAX as usize
        }
    }

    /// Bytes of the batch, the descriptor included.
    #[must_use]
    pub fn batch_bytes(&self) -> u64 {
        (1 + self.data_crcs.len() as u64) * JOURNAL_BLOCK_BYTES as u64
    }

    /// Returns true if a block looks like a descriptor of the file that has these random bytes,
    /// whole or damaged.
    #[must_use]
    pub fn is_of(block: &[u8; JOURNAL_BLOCK_BYTES], nonce: &Nonce) -> bool {
        block.starts_with(&BATCH_MAGIC)
            && block
                .get(NONCE_OFFSET..)
                .is_some_and(|rest| rest.starts_with(nonce))
    }

    /// The block.
    ///
    /// # Panics
    ///
    /// If it does not [fit](Self::fits), or its data blocks are not those of its entries: nothing
    /// from a disk decides that.
    #[must_use]
    pub fn encode(&self) -> [u8; JOURNAL_BLOCK_BYTES] {
        assert!(
            Self::fits(self.entries.len(), self.data_crcs.len()) && self.has_its_data(),
            "a batch of {} entries and {} data blocks",
            self.entries.len(),
            self.data_crcs.len()
        );
        let mut bytes = [0; JOURNAL_BLOCK_BYTES];
        let mut fields = FieldsMut::new(&mut bytes);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "what fits a descriptor is counted in hundreds"
        )]
        fields
            .bytes(&BATCH_MAGIC)
            .bytes(&(self.entries.len() as u16).to_le_bytes())
            .bytes(&(self.data_crcs.len() as u16).to_le_bytes())
            .u64(self.file_number)
            .u64(self.sequence)
            .u64(self.synced_sequence)
            .bytes(&self.nonce);
        for entry in &self.entries {
            fields
                .u32(entry.start_block)
                .u32(entry.blocks)
                .u32(if entry.zeros { ZEROS } else { DATA });
        }
        for crc in &self.data_crcs {
            fields.u32(*crc);
        }
        put_crc32(&mut bytes);
        bytes
    }

    /// The descriptor in the first block of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "descriptor of a journal batch";
        let bytes: &[u8; JOURNAL_BLOCK_BYTES] = first(WHAT, bytes)?;
        expect_magic(WHAT, bytes, &BATCH_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, bytes)?);
        fields.bytes(BATCH_MAGIC.len())?;
        let entry_count = usize::from(u16::from_le_bytes(fields.array()?));
        let data_blocks = usize::from(u16::from_le_bytes(fields.array()?));
        if !Self::fits(entry_count, data_blocks) {
            return Err(FormatError::differs(
                WHAT,
                "as many entries and data blocks as fit",
                format_args!("{entry_count} entries and {data_blocks} data blocks"),
            ));
        }
        let file_number = fields.u64()?;
        let sequence = fields.u64()?;
        let synced_sequence = fields.u64()?;
        let nonce = fields.array()?;
        let mut entries = Vec::with_capacity(entry_count);
        for _ in 0..entry_count {
            entries.push(entry(&mut fields)?);
        }
        let data_crcs = (0..data_blocks)
            .map(|_| fields.u32())
            .collect::<Result<Vec<_>, _>>()?;
        let used = entry_count * ENTRY_BYTES + data_blocks * CRC_BYTES;
        fields.reserved(DESCRIPTOR_ROOM_BYTES - used)?;
        fields.end()?;
        let descriptor = Self {
            file_number,
            sequence,
            synced_sequence,
            nonce,
            entries,
            data_crcs,
        };
        if synced_sequence >= sequence || !descriptor.has_its_data() {
            return Err(FormatError::differs(
                WHAT,
                "numbers that agree with each other",
                format_args!(
                    "batch {sequence}, {synced_sequence} durable, {data_blocks} data blocks"
                ),
            ));
        }
        Ok(descriptor)
    }

    fn has_its_data(&self) -> bool {
        let blocks: u64 = self
            .entries
            .iter()
            .filter(|entry| !entry.zeros)
            .map(|entry| u64::from(entry.blocks))
            .sum();
        blocks == self.data_crcs.len() as u64
    }
}

fn entry(fields: &mut Fields<'_>) -> Result<Entry, FormatError> {
    const WHAT: &str = "entry of a journal batch";
    let (start_block, blocks, kind) = (fields.u32()?, fields.u32()?, fields.u32()?);
    // The largest volume has 2^32 blocks.
    if blocks == 0 || u64::from(start_block) + u64::from(blocks) > 1 << 32 {
        return Err(FormatError::differs(
            WHAT,
            "blocks of a volume",
            format_args!("{blocks} blocks from {start_block} on"),
        ));
    }
    let zeros = match kind {
        DATA => false,
        ZEROS => true,
        other => return Err(FormatError::unknown(WHAT, "1 and 2", other)),
    };
    Ok(Entry {
        start_block,
        blocks,
        zeros,
    })
}

/// The checksum of a data block in the descriptor of its batch.
#[must_use]
pub fn data_crc(block: &[u8]) -> u32 {
    crc32fast::hash(block)
}

#[cfg(test)]
mod tests;
