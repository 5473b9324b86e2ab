//! The catalog log: every change of the catalog, in order. The catalog can be rebuilt from it.
//!
//! ```text
//! 0            4096                 8192         8192 + 4096 n
//! +------------+--------------------+------------+---------- - -
//! | log header | record 1 and zeros | record 2 ...            | record 3
//! +------------+--------------------+------------+---------- - -
//! ```
//!
//! A log of version 1 has all changes since the store was made. A log of version 2 begins with a
//! [checkpoint]: the whole catalog as record number `base_sequence` left it. The records behind the
//! checkpoint have the numbers from `base_sequence + 1` on.
//!
//! ```text
//! 0            4096
//! +------------+---------+---------+----------+---------------------------+------ - -
//! | log header | block 1 | block 2 | end mark | record base_sequence + 1  | record ...
//! +------------+---------+---------+----------+---------------------------+------ - -
//! ```
//!
//! Each record begins at a multiple of [`LOG_ALIGN`] and is filled up to the next one with zeros,
//! so that bytes that were synced are never written again. A record is synced before the next is
//! written. So an unreadable record with nothing behind it is the torn end of a log whose writer
//! died, and any other unreadable record is damage. Sequence numbers ascend by one: a gap is
//! damage, too. A checkpoint is complete and durable before its log gets its name, so any
//! unreadable byte of one is damage.

pub mod checkpoint;

use std::borrow::Cow;

use super::{
    Change, FormatError, Kinds, StoreId,
    fields::{Fields, FieldsMut, check_crc32, expect_magic, first, put_count, put_crc32},
    record::{Deletion, Entry},
    store_file::FORMAT_VERSION,
};

/// The header in front of all records.
pub const LOG_HEADER_BYTES: usize = 4096;
/// Records begin at multiples of this.
pub const LOG_ALIGN: usize = 4096;
/// The largest record, header and zeros included. A snapshot's or volume's record with the longest
/// name and tags in 4-byte characters is under 80 KiB, and the most that always has to fit is one
/// of each.
pub const LOG_RECORD_BYTES_MAX: usize = 512 << 10;

const RECORD_HEADER_BYTES: usize = 32;
const LOG_MAGIC: [u8; 8] = *b"VARVCLOG";
const RECORD_MAGIC: [u8; 4] = *b"VCAT";
/// Number of several changes, beside those that the [kinds](Kinds) of records have.
const SEVERAL: u8 = 5;
/// Version of a log that begins with a checkpoint. A log without one has [`FORMAT_VERSION`], so an
/// earlier program reads it.
const CHECKPOINT_VERSION: u32 = 2;
/// First byte of a deletion, as the records have one of their own.
const DELETE_VERSION: u8 = 1;
/// The same of several changes.
const SEVERAL_VERSION: u8 = 1;

/// The first [`LOG_HEADER_BYTES`] of the log.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 8 | `VARVCLOG` |
/// | 8 | 4 | format version: 1 without a checkpoint, 2 with one |
/// | 12 | 4 | zero |
/// | 16 | 16 | store id |
/// | 32 | 8 | version 2: `base_sequence`; version 1: zero |
/// | 40 | 8 | version 2: generation, at least 1; version 1: zero |
/// | 48 | 12 | zero |
/// | 60 | 4 | CRC-32 of the bytes before |
/// | 64 | 4032 | zero |
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct LogHeader {
    /// Id of the store.
    pub store: StoreId,
    /// The checkpoint at the beginning of the log, if there is one.
    pub checkpoint: Option<CheckpointId>,
}

/// Identifies the checkpoint at the beginning of a log.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct CheckpointId {
    /// Number of the last record that the checkpoint stands for.
    pub base_sequence: u64,
    /// One more than that of the log that this one replaced; a log without a checkpoint has
    /// generation 0. Blocks of another checkpoint, and a file that is not the predecessor, are told
    /// by it.
    pub generation: u64,
}

impl LogHeader {
    /// The header of a log without a checkpoint.
    #[must_use]
    pub const fn without_checkpoint(store: StoreId) -> Self {
        Self {
            store,
            checkpoint: None,
        }
    }

    /// See [`CheckpointId::generation`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.checkpoint.map_or(0, |it| it.generation)
    }

    /// See [`CheckpointId::base_sequence`]; 0 without a checkpoint.
    #[must_use]
    pub fn base_sequence(&self) -> u64 {
        self.checkpoint.map_or(0, |it| it.base_sequence)
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; LOG_HEADER_BYTES] {
        let mut bytes = [0; LOG_HEADER_BYTES];
        let (head, _) = bytes.split_at_mut(64);
        let mut fields = FieldsMut::new(head);
        let version = match self.checkpoint {
            None => FORMAT_VERSION,
            Some(_) => CHECKPOINT_VERSION,
        };
        fields
            .bytes(&LOG_MAGIC)
            .u32(version)
            .reserved(4)
            .bytes(self.store.as_bytes());
        if let Some(checkpoint) = self.checkpoint {
            debug_assert!(checkpoint.generation > 0, "generation 0 has no checkpoint");
            fields
                .u64(checkpoint.base_sequence)
                .u64(checkpoint.generation);
        }
        put_crc32(head);
        bytes
    }

    /// The header in the first [`LOG_HEADER_BYTES`] of `bytes`.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not a header, or one of an unknown version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "header of the catalog log";
        let bytes: &[u8; LOG_HEADER_BYTES] = first(WHAT, bytes)?;
        let (head, tail) = bytes.split_at(64);
        expect_magic(WHAT, head, &LOG_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, head)?);
        fields.bytes(LOG_MAGIC.len())?;
        let version = fields.u32()?;
        if !(FORMAT_VERSION..=CHECKPOINT_VERSION).contains(&version) {
            return Err(FormatError::unknown(
                "format version of the catalog log",
                format_args!("{FORMAT_VERSION} and {CHECKPOINT_VERSION}"),
                version,
            ));
        }
        fields.reserved(4)?;
        let store = StoreId::from_bytes(fields.array()?);
        let checkpoint = if version == CHECKPOINT_VERSION {
            Some(CheckpointId {
                base_sequence: fields.u64()?,
                generation: fields.u64()?,
            })
        } else {
            fields.reserved(16).map(|()| None)?
        };
        if checkpoint.is_some_and(|it| it.generation == 0) {
            return Err(FormatError::differs(
                "generation of the catalog log",
                "at least 1",
                0,
            ));
        }
        fields.reserved(12)?;
        fields.end()?;
        Fields::new(WHAT, tail).reserved(tail.len())?;
        Ok(Self { store, checkpoint })
    }
}

/// The changes of the catalog in one step.
///
/// | offset | bytes | field |
/// | --- | --- | --- |
/// | 0 | 4 | `VCAT` |
/// | 4 | 1 | number: 1 put snapshot, 2 delete snapshot, 3 put volume, 4 delete volume, 5 several, 6 put copy, 7 delete copy, 8 put remote, 9 delete remote |
/// | 5 | 3 | zero |
/// | 8 | 8 | sequence number |
/// | 16 | 4 | length of the payload |
/// | 20 | 4 | CRC-32 of the payload |
/// | 24 | 4 | zero |
/// | 28 | 4 | CRC-32 of the bytes before |
/// | 32 | n | payload: of a put the record's bytes; of a deletion a version byte (1) and the record's id, of a remote its name with its length; of several changes a version byte (1), how many there are in 4 bytes, and of each its number in 1, the length of its payload in 4, and that |
/// | 32 + n |  | zeros up to a multiple of [`LOG_ALIGN`] |
///
/// An unknown number or version is never skipped: the catalog would differ from its former state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// One change.
    One(Change),
    /// All of these changes, in this order, or none.
    Several(Vec<Change>),
}

impl Record {
    /// The record's bytes in the log, a multiple of [`LOG_ALIGN`].
    #[must_use]
    pub fn encode(&self, sequence: u64) -> Vec<u8> {
        let (number, payload) = self.parts();
        let record_bytes = (RECORD_HEADER_BYTES + payload.len()).next_multiple_of(LOG_ALIGN);
        assert!(
            record_bytes <= LOG_RECORD_BYTES_MAX,
            "names and tags are bounded: a record of {record_bytes} bytes"
        );
        let mut bytes = vec![0; record_bytes];
        let (head, rest) = bytes.split_at_mut(RECORD_HEADER_BYTES);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "asserted to be at most LOG_RECORD_BYTES_MAX"
        )]
        FieldsMut::new(head)
            .bytes(&RECORD_MAGIC)
            .u8(number)
            .reserved(3)
            .u64(sequence)
            .u32(payload.len() as u32)
            .u32(crc32fast::hash(&payload));
        put_crc32(head);
        FieldsMut::new(rest).bytes(&payload);
        bytes
    }

    /// Returns true if the record is short enough for the log.
    #[must_use]
    pub fn fits(&self) -> bool {
        let (_, payload) = self.parts();
        (RECORD_HEADER_BYTES + payload.len()).next_multiple_of(LOG_ALIGN) <= LOG_RECORD_BYTES_MAX
    }

    /// The changes that it stands for, one by one.
    #[must_use]
    pub fn into_changes(self) -> Vec<Change> {
        match self {
            Self::Several(changes) => changes,
            Self::One(change) => vec![change],
        }
    }

    /// The same, where they are.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        match self {
            Self::Several(changes) => changes,
            Self::One(change) => std::slice::from_ref(change),
        }
    }

    fn parts(&self) -> (u8, Cow<'_, [u8]>) {
        match self {
            Self::One(change) => parts_of(change),
            Self::Several(changes) => (SEVERAL, encode_several(changes).into()),
        }
    }
}

/// A change's number and payload.
fn parts_of(change: &Change) -> (u8, Cow<'_, [u8]>) {
    match change {
        Change::Put(entry) => (entry.kind().number, entry.bytes().into()),
        Change::Delete(gone) => {
            let payload = [&[DELETE_VERSION], gone.field()].concat();
            (gone.kind().deletion(), payload.into())
        }
    }
}

fn encode_several(changes: &[Change]) -> Vec<u8> {
    let mut bytes = vec![SEVERAL_VERSION];
    put_count(&mut bytes, changes.len());
    for change in changes {
        put_change(&mut bytes, change);
    }
    bytes
}

/// Appends a change: its number in 1 byte, the length of its payload in 4, and that.
fn put_change(bytes: &mut Vec<u8>, change: &Change) {
    let (number, payload) = parts_of(change);
    bytes.push(number);
    put_count(bytes, payload.len());
    bytes.extend_from_slice(&payload);
}

/// Reads what [`put_change`] appends.
fn take_change(kinds: Kinds, fields: &mut Fields<'_>) -> Result<Change, FormatError> {
    let number = fields.u8()?;
    let len = fields.u32()?;
    decode_change(kinds, number, fields.bytes(len as usize)?)
}

fn decode_several(kinds: Kinds, payload: &[u8]) -> Result<Vec<Change>, FormatError> {
    let mut fields = Fields::new("several changes of the catalog", payload);
    let version = fields.u8()?;
    if version != SEVERAL_VERSION {
        return Err(FormatError::unknown(
            "version of several changes of the catalog",
            SEVERAL_VERSION,
            version,
        ));
    }
    let mut changes = Vec::new();
    for _ in 0..fields.u32()? {
        changes.push(take_change(kinds, &mut fields)?);
    }
    fields.end()?;
    Ok(changes)
}

/// A place in the log, and the record to come there.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct Position {
    /// From the start of the log.
    pub offset_bytes: u64,
    /// The next record's number.
    pub next_sequence: u64,
}

impl Position {
    /// Behind the header of a log without a checkpoint.
    pub const START: Self = Self {
        offset_bytes: LOG_HEADER_BYTES as u64,
        next_sequence: 1,
    };
}

/// A finding of [`scan`]. Every finding other than a record ends the scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A record, whole.
    Record {
        /// Where it begins.
        offset_bytes: u64,
        /// Its number.
        sequence: u64,
        /// The decoded record.
        record: Record,
    },
    /// An incomplete record with nothing behind it: the writer died before anyone relied on it. The
    /// log ends here. (A synced record that is damaged now looks the same if it is the very last. A
    /// caller that knows that it was applied has to report the damage.)
    Torn {
        /// Where it begins.
        offset_bytes: u64,
        /// The error.
        why: FormatError,
    },
    /// A record that is not what was written, though the log goes on behind it.
    Damaged {
        /// Where it begins.
        offset_bytes: u64,
        /// The error.
        why: FormatError,
    },
    /// A whole record that only a newer version understands.
    Unknown {
        /// Where it begins.
        offset_bytes: u64,
        /// The unknown part.
        why: FormatError,
    },
}

/// Reads the records in `window`: bytes of the log from `from` on, and up to its end if `at_end`.
/// `kinds` are those that are known.
///
/// A long log is read in windows of more than [`LOG_RECORD_BYTES_MAX`]: where one ends before the
/// log does, the scan ends without a word, and the next begins at its [`position`](Scan::position).
#[must_use]
pub fn scan(kinds: Kinds, window: &[u8], from: Position, at_end: bool) -> Scan<'_> {
    Scan {
        kinds,
        rest: window,
        position: from,
        at_end,
        ended: false,
    }
}

/// See [`scan`].
#[derive(Debug)]
pub struct Scan<'a> {
    kinds: Kinds,
    rest: &'a [u8],
    position: Position,
    at_end: bool,
    ended: bool,
}

impl Scan<'_> {
    /// Behind the last record that was found whole.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Classifies a record that cannot be read.
    fn judge(&self, why: FormatError) -> Found {
        let offset_bytes = self.position.offset_bytes;
        // A torn write is one record long at the most, and no whole record follows.
        let goes_on = self.rest.len() > LOG_RECORD_BYTES_MAX
            || self
                .rest
                .chunks(LOG_ALIGN)
                .skip(1)
                .any(|block| RecordHeader::decode(block).is_ok());
        if goes_on {
            Found::Damaged { offset_bytes, why }
        } else {
            Found::Torn { offset_bytes, why }
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if self.ended || self.rest.is_empty() {
            return None;
        }
        match decode_record(self.kinds, self.rest, self.position.next_sequence) {
            Ok((record_bytes, record)) => {
                let found = Found::Record {
                    offset_bytes: self.position.offset_bytes,
                    sequence: self.position.next_sequence,
                    record,
                };
                self.rest = self.rest.get(record_bytes..).unwrap_or_default();
                self.position.offset_bytes += record_bytes as u64;
                self.position.next_sequence += 1;
                Some(found)
            }
            // The rest of it may be in the next window.
            Err(_) if !self.at_end && self.rest.len() <= LOG_RECORD_BYTES_MAX => None,
            Err(why) => {
                self.ended = true;
                Some(if why.is_unknown() {
                    Found::Unknown {
                        offset_bytes: self.position.offset_bytes,
                        why,
                    }
                } else {
                    self.judge(why)
                })
            }
        }
    }
}

/// The number of the record whose header is at the start of `bytes`, whatever its payload. `None`
/// if there is no header. Behind damage it tells where the log goes on.
#[must_use]
pub fn sequence_at(bytes: &[u8]) -> Option<u64> {
    let header = RecordHeader::decode(bytes).ok()?;
    Some(header.sequence)
}

struct RecordHeader {
    number: u8,
    sequence: u64,
    payload_bytes: u32,
    payload_crc32: u32,
}

impl RecordHeader {
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "header of a catalog log record";
        let bytes: &[u8; RECORD_HEADER_BYTES] = first(WHAT, bytes)?;
        expect_magic(WHAT, bytes, &RECORD_MAGIC)?;
        let mut fields = Fields::new(WHAT, check_crc32(WHAT, bytes)?);
        fields.bytes(RECORD_MAGIC.len())?;
        let number = fields.u8()?;
        fields.reserved(3)?;
        let header = Self {
            number,
            sequence: fields.u64()?,
            payload_bytes: fields.u32()?,
            payload_crc32: fields.u32()?,
        };
        fields.reserved(4)?;
        fields.end()?;
        let most = (LOG_RECORD_BYTES_MAX - RECORD_HEADER_BYTES) as u64;
        if u64::from(header.payload_bytes) > most {
            return Err(FormatError::differs(
                "length of a catalog log record",
                format_args!("at most {most}"),
                header.payload_bytes,
            ));
        }
        Ok(header)
    }
}

/// The record at the start of `bytes`, and how many it takes.
fn decode_record(
    kinds: Kinds,
    bytes: &[u8],
    sequence: u64,
) -> Result<(usize, Record), FormatError> {
    const WHAT: &str = "catalog log record";
    let header = RecordHeader::decode(bytes)?;
    if header.sequence != sequence {
        return Err(FormatError::differs(
            "sequence number of a catalog log record",
            sequence,
            header.sequence,
        ));
    }
    let used_bytes = RECORD_HEADER_BYTES + header.payload_bytes as usize;
    let record_bytes = used_bytes.next_multiple_of(LOG_ALIGN);
    let mut fields = Fields::new(WHAT, bytes);
    fields.bytes(RECORD_HEADER_BYTES)?;
    let payload = fields.bytes(header.payload_bytes as usize)?;
    fields.reserved(record_bytes - used_bytes)?;
    let found = crc32fast::hash(payload);
    if found != header.payload_crc32 {
        return Err(FormatError::differs(
            WHAT,
            format_args!("CRC-32 {:08x}", header.payload_crc32),
            format_args!("{found:08x}"),
        ));
    }
    let record = match header.number {
        SEVERAL => Record::Several(decode_several(kinds, payload)?),
        number => Record::One(decode_change(kinds, number, payload)?),
    };
    Ok((record_bytes, record))
}

fn decode_change(kinds: Kinds, number: u8, payload: &[u8]) -> Result<Change, FormatError> {
    for kind in kinds.iter() {
        if number == kind.number {
            return Entry::decode(kind, payload).map(Change::Put);
        }
        if number == kind.deletion() {
            return Deletion::decode(kind, deletion_field(payload)?).map(Change::Delete);
        }
    }
    let known: Vec<_> = kinds
        .iter()
        .map(|kind| {
            let what = kind.what;
            format!(
                "{} (put {what}), {} (delete {what})",
                kind.number,
                kind.deletion()
            )
        })
        .collect();
    Err(FormatError::unknown(
        "kind of a catalog log record",
        format_args!("{}, {SEVERAL} (several)", known.join(", ")),
        number,
    ))
}

/// The id in a deletion.
fn deletion_field(payload: &[u8]) -> Result<&[u8], FormatError> {
    const WHAT: &str = "deletion of a record";
    match payload.split_first() {
        Some((&DELETE_VERSION, field)) => Ok(field),
        Some((version, _)) => Err(FormatError::unknown(
            "version of a deletion",
            DELETE_VERSION,
            version,
        )),
        None => Err(FormatError::short(WHAT, 1, 0)),
    }
}

#[cfg(test)]
mod tests;
