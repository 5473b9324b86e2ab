//! Takes a message apart, field by field.

use super::WireError;
use crate::limits::MAX_STRING_BYTES;

/// The rest of a message that is being decoded.
pub(super) struct Fields<'a> {
    message: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            message,
            rest: bytes,
        }
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_be_bytes)
    }

    pub(super) fn magic_u32(&mut self, wanted: u32) -> Result<(), WireError> {
        let found = self.u32("magic")?;
        self.expect_magic(u64::from(found), u64::from(wanted))
    }

    pub(super) fn magic_u64(&mut self, wanted: u64) -> Result<(), WireError> {
        let found = self.u64("magic")?;
        self.expect_magic(found, wanted)
    }

    /// A string that is preceded by its length in 32 bits.
    pub(super) fn counted_text(&mut self, field: &'static str) -> Result<&'a str, WireError> {
        let length_bytes = self.u32(field)? as usize;
        let (text, rest) =
            self.rest
                .split_at_checked(length_bytes)
                .ok_or(WireError::Truncated {
                    message: self.message,
                    field,
                })?;
        self.rest = rest;
        text_of(self.message, field, text)
    }

    /// A string that is all the rest.
    pub(super) fn final_text(self, field: &'static str) -> Result<&'a str, WireError> {
        text_of(self.message, field, self.rest)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(WireError::Trailing {
            message: self.message,
            extra_bytes: self.rest.len(),
        })
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated {
            message: self.message,
            field,
        })?;
        self.rest = rest;
        Ok(*array)
    }

    fn expect_magic(&self, found: u64, wanted: u64) -> Result<(), WireError> {
        if found == wanted {
            return Ok(());
        }
        Err(WireError::Magic {
            message: self.message,
            found,
            wanted,
        })
    }
}

/// The protocol's "string": UTF-8, no NUL, at most 4096 bytes.
fn text_of<'a>(
    message: &'static str,
    field: &'static str,
    bytes: &'a [u8],
) -> Result<&'a str, WireError> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(WireError::StringTooLong {
            message,
            field,
            length_bytes: bytes.len(),
        });
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(WireError::NotText { message, field }),
    }
}
