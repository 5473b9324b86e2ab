//! Reading and writing fields one after the other, without an index that could be out of bounds.

use std::collections::BTreeMap;

use super::FormatError;

/// Fields still to be read of one value.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    /// The value, for errors.
    what: &'static str,
    all_bytes: u64,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            what,
            all_bytes: bytes.len() as u64,
            rest: bytes,
        }
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| {
            let read = self.all_bytes - self.rest.len() as u64;
            FormatError::short(self.what, read.saturating_add(len as u64), self.all_bytes)
        })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, FormatError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `len` bytes, which are not used yet and have to be zero.
    pub(super) fn reserved(&mut self, len: usize) -> Result<(), FormatError> {
        let what = self.what;
        match self.bytes(len)?.iter().find(|byte| **byte != 0) {
            None => Ok(()),
            Some(byte) => Err(FormatError::differs(
                what,
                "zeros in reserved fields",
                format_args!("{byte:#04x}"),
            )),
        }
    }

    /// A text: its length, then UTF-8.
    pub(super) fn text(&mut self) -> Result<String, FormatError> {
        let len = self.u32()?;
        let bytes = self.bytes(len as usize)?;
        str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| FormatError::differs(self.what, "text in UTF-8", error))
    }

    /// Tags: their number, then key and value of each, ascending by key.
    pub(super) fn tags(&mut self) -> Result<BTreeMap<String, String>, FormatError> {
        let mut tags = BTreeMap::new();
        for _ in 0..self.u32()? {
            let key = self.text()?;
            if let Some((last, _)) = tags.last_key_value()
                && *last >= key
            {
                return Err(FormatError::differs(
                    self.what,
                    format_args!("a tag with a key behind {last:?}"),
                    format_args!("{key:?}"),
                ));
            }
            tags.insert(key, self.text()?);
        }
        Ok(tags)
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        let read = self.all_bytes - self.rest.len() as u64;
        Err(FormatError::differs(
            self.what,
            format_args!("{read} bytes"),
            format_args!("{} bytes", self.all_bytes),
        ))
    }
}

/// A field of `len` bytes that is zero where it is not there.
pub(super) fn optional<'a, T>(
    fields: &mut Fields<'a>,
    is_there: bool,
    len: usize,
    read: impl FnOnce(&mut Fields<'a>) -> Result<T, FormatError>,
) -> Result<Option<T>, FormatError> {
    if is_there {
        read(fields).map(Some)
    } else {
        fields.reserved(len).map(|()| None)
    }
}

/// Writes fields one after the other into an array of fixed size.
#[derive(Debug)]
pub(super) struct FieldsMut<'a> {
    rest: &'a mut [u8],
}

impl<'a> FieldsMut<'a> {
    /// `into` is all zero: what is skipped stays so.
    pub(super) fn new(into: &'a mut [u8]) -> Self {
        Self { rest: into }
    }

    /// # Panics
    ///
    /// If more is written than there is room for, which no value from disk decides.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let (into, rest) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        into.copy_from_slice(bytes);
        self.rest = rest;
        self
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Leaves `len` bytes zero.
    pub(super) fn reserved(&mut self, len: usize) -> &mut Self {
        let (_, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        self
    }
}

/// Appends the number of the items that follow.
///
/// # Panics
///
/// At 4 GiB, which names and tags are held far below.
pub(super) fn put_count(bytes: &mut Vec<u8>, count: usize) {
    assert!(
        u32::try_from(count).is_ok(),
        "a count of a record fits its field: {count}"
    );
    #[expect(clippy::cast_possible_truncation, reason = "asserted just above")]
    bytes.extend_from_slice(&(count as u32).to_le_bytes());
}

/// Appends a text for [`Fields::text`].
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_count(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

/// Appends tags for [`Fields::tags`].
pub(super) fn put_tags(bytes: &mut Vec<u8>, tags: &BTreeMap<String, String>) {
    put_count(bytes, tags.len());
    for (key, value) in tags {
        put_text(bytes, key);
        put_text(bytes, value);
    }
}

/// Puts the CRC-32 of all bytes before the last four into the last four.
pub(super) fn put_crc32(bytes: &mut [u8]) {
    if let Some((before, last)) = bytes.split_last_chunk_mut::<4>() {
        *last = crc32fast::hash(before).to_le_bytes();
    }
}

/// The bytes before the last four, once these are found to be the CRC-32 of them.
pub(super) fn check_crc32<'a>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8], FormatError> {
    let (before, last) = bytes
        .split_last_chunk::<4>()
        .ok_or_else(|| FormatError::short(what, 4, bytes.len() as u64))?;
    let (expected, found) = (u32::from_le_bytes(*last), crc32fast::hash(before));
    if expected != found {
        return Err(FormatError::differs(
            what,
            format_args!("CRC-32 {expected:08x}"),
            format_args!("{found:08x}"),
        ));
    }
    Ok(before)
}

/// The first `N` bytes.
pub(super) fn first<'a, const N: usize>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8; N], FormatError> {
    bytes
        .first_chunk()
        .ok_or_else(|| FormatError::short(what, N as u64, bytes.len() as u64))
}

/// Checks that `bytes` begin with `magic`.
pub(super) fn expect_magic(
    what: &'static str,
    bytes: &[u8],
    magic: &[u8],
) -> Result<(), FormatError> {
    if bytes.starts_with(magic) {
        return Ok(());
    }
    let found = bytes.get(..magic.len()).unwrap_or(bytes);
    Err(FormatError::differs(
        what,
        magic.escape_ascii(),
        found.escape_ascii(),
    ))
}
