//! The decoded size of a message, computed before it is decoded.
//!
//! An empty element of a list takes two bytes on the wire and a hundred in memory. So the scan
//! counts the fields of a message while its bytes pass by, including those of nested messages that
//! are lists themselves. It keeps no bytes.

/// The reason why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScanError {
    #[error("a field has wire type {0}, which does not exist")]
    WireType(u64),
    #[error("a number does not end within 10 bytes")]
    LongNumber,
    #[error("a field goes past the end of its message")]
    PastEnd,
}

/// The fields of a message, counted while its bytes pass by.
#[derive(Debug)]
pub(super) struct Scan {
    /// Nested messages whose fields count: their numbers, from the outermost one on.
    into: &'static [u32],
    /// Ends of the open messages, from the outermost one on.
    ends: Vec<u64>,
    at: u64,
    state: State,
    fields: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Key(Number),
    Length { field: u32, number: Number },
    Value(Number),
    Skip(u64),
}

/// A varint that has arrived in part.
#[derive(Debug, Clone, Copy, Default)]
struct Number {
    value: u64,
    shift: u32,
}

impl Number {
    /// Adds a byte. Returns the number if the byte is its last one.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, ScanError> {
        if self.shift > 63 {
            return Err(ScanError::LongNumber);
        }
        self.value |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

const NEXT: State = State::Key(Number { value: 0, shift: 0 });

impl Scan {
    pub(super) fn new(message_bytes: u64, into: &'static [u32]) -> Self {
        Self {
            into,
            ends: vec![message_bytes],
            at: 0,
            state: NEXT,
            fields: 0,
        }
    }

    /// Number of fields so far.
    pub(super) const fn fields(&self) -> u64 {
        self.fields
    }

    /// Continues the message with these bytes.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), ScanError> {
        while let Some((byte, rest)) = bytes.split_first() {
            if let State::Skip(left) = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.at += here as u64;
                bytes = bytes.get(here..).unwrap_or_default();
                self.skip(left - here as u64);
                continue;
            }
            // A field is incomplete at the end of its message.
            self.check(1)?;
            self.at += 1;
            self.step(*byte)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Ends the message.
    pub(super) fn end(&self) -> Result<(), ScanError> {
        let is_between = matches!(self.state, State::Key(Number { shift: 0, .. }));
        if is_between && self.ends.len() == 1 {
            Ok(())
        } else {
            Err(ScanError::PastEnd)
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), ScanError> {
        match &mut self.state {
            State::Key(number) => {
                let Some(key) = number.push(byte)? else {
                    return Ok(());
                };
                self.fields += 1;
                match key & 7 {
                    0 => self.state = State::Value(Number::default()),
                    1 => self.leave_out(8)?,
                    2 => {
                        self.state = State::Length {
                            field: u32::try_from(key >> 3).unwrap_or(u32::MAX),
                            number: Number::default(),
                        };
                    }
                    // Marks of a group: the fields between them count.
                    3 | 4 => self.skip(0),
                    5 => self.leave_out(4)?,
                    other => return Err(ScanError::WireType(other)),
                }
            }
            State::Value(number) => {
                if number.push(byte)?.is_some() {
                    self.skip(0);
                }
            }
            State::Length { field, number } => {
                let Some(length) = number.push(byte)? else {
                    return Ok(());
                };
                let field = *field;
                if self.into.get(self.ends.len() - 1) == Some(&field) {
                    self.check(length)?;
                    self.ends.push(self.at + length);
                    self.skip(0);
                } else {
                    self.leave_out(length)?;
                }
            }
            State::Skip(_) => {}
        }
        Ok(())
    }

    /// Checks that the message has this many more bytes.
    fn check(&self, bytes: u64) -> Result<(), ScanError> {
        let end = self.ends.last().copied().unwrap_or(self.at);
        match self.at.checked_add(bytes) {
            Some(at) if at <= end => Ok(()),
            _ => Err(ScanError::PastEnd),
        }
    }

    fn leave_out(&mut self, bytes: u64) -> Result<(), ScanError> {
        self.check(bytes)?;
        self.skip(bytes);
        Ok(())
    }

    fn skip(&mut self, bytes: u64) {
        if bytes > 0 {
            self.state = State::Skip(bytes);
            return;
        }
        self.state = NEXT;
        while self.ends.len() > 1 && self.ends.last() == Some(&self.at) {
            self.ends.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message as _;
    use varve_proto::v1;

    use super::*;

    /// Counts the fields of a message that arrives in pieces of this length.
    fn fields(message: &[u8], piece: usize, into: &'static [u32]) -> Result<u64, ScanError> {
        let mut scan = Scan::new(message.len() as u64, into);
        for piece in message.chunks(piece) {
            scan.pass(piece)?;
        }
        scan.end()?;
        Ok(scan.fields())
    }

    fn leaves(entries: &[usize]) -> Vec<u8> {
        let entry = || v1::LeafEntry {
            start_block: 300,
            blocks: 64,
            chunk_id: Bytes::from_static(&[7; 32]),
        };
        let leaf = |count: &usize| v1::Leaf {
            segment: 5,
            entries: std::iter::repeat_with(entry).take(*count).collect(),
        };
        let request = v1::PutLeavesRequest {
            upload_id: "up-1".to_owned(),
            leaves: entries.iter().map(leaf).collect(),
        };
        request.encode_to_vec()
    }

    #[test]
    fn lists_are_counted_and_those_in_lists() {
        let empty = [0x12, 0].repeat(1000);
        for piece in [1, 2, 3, 7, 4096] {
            assert_eq!(fields(&empty, piece, &[]), Ok(1000));
            assert_eq!(fields(&empty, piece, &[2]), Ok(1000));
            // The name of the upload, the leaves, the segment and the entries of each.
            let leaves = leaves(&[3, 0, 40]);
            assert_eq!(fields(&leaves, piece, &[2]), Ok(1 + 3 + 3 + 43));
            assert_eq!(fields(&leaves, piece, &[]), Ok(1 + 3));
        }
        assert_eq!(fields(&[], 1, &[2]), Ok(0));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, error) in [
            (&[0x0f][..], ScanError::WireType(7)),
            (&[0x0a, 5, 1], ScanError::PastEnd),
            (&[0x80; 11], ScanError::LongNumber),
            (&[0x08], ScanError::PastEnd),
            (&[0x0d, 1, 2], ScanError::PastEnd),
            // A field of the inner message exceeds it, and a field is incomplete.
            (&[0x12, 2, 0x0a, 5, 1, 1, 1, 1, 1], ScanError::PastEnd),
            (&[0x12, 1, 0x08, 1], ScanError::PastEnd),
            (
                &[
                    0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
                ],
                ScanError::PastEnd,
            ),
        ] {
            for piece in [1, 100] {
                assert_eq!(fields(bytes, piece, &[2]), Err(error), "{bytes:?}");
            }
        }
    }

    proptest! {
        /// The scan accepts everything that can be decoded, in pieces of any length.
        #[test]
        fn what_can_be_decoded_passes(
            entries in prop::collection::vec(0_usize..20, 0..20),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            piece in 1_usize..100,
        ) {
            let mut message = leaves(&entries);
            for (at, bits) in flips {
                let at = at.index(message.len());
                message[at] ^= bits;
            }
            let found = fields(&message, piece, &[2]);
            prop_assert_eq!(found, fields(&message, 1, &[2]));
            if let Ok(decoded) = v1::PutLeavesRequest::decode(&*message) {
                let entries: usize = decoded.leaves.iter().map(|leaf| leaf.entries.len()).sum();
                prop_assert!(found.unwrap() >= (decoded.leaves.len() + entries) as u64);
            }
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1_usize..50) {
            let _ = fields(&bytes, piece, &[2, 2]);
        }
    }
}
