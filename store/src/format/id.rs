//! Ids of the catalog's records: snapshots and volumes.

use std::{
    fmt::{self, Debug, Display},
    hash::Hash,
    marker::PhantomData,
    str::FromStr,
};

use super::{FormatError, fields::Fields};

/// The kind of record that a [`RecordId`] belongs to. As a type, it keeps the kinds apart.
pub trait IdKind: Copy + Ord + Hash + Send + Sync + 'static {
    /// "id of a snapshot".
    const WHAT: &'static str;
    /// The prefix of the digits in texts: "snap-".
    const PREFIX: &'static str;
}

/// Tells a record from every other of its kind that ever was: 68 random bits, shown as a prefix and
/// 17 hexadecimal digits.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId<K> {
    bytes: [u8; ID_BYTES],
    kind: PhantomData<K>,
}

/// Bytes of an id.
pub const ID_BYTES: usize = 9;
const DIGITS: usize = 17;

impl<K: IdKind> RecordId<K> {
    /// The id with the last 68 bits of these bytes.
    #[must_use]
    pub const fn from_low_bits(mut bytes: [u8; ID_BYTES]) -> Self {
        bytes[0] &= 0x0f;
        Self {
            bytes,
            kind: PhantomData,
        }
    }

    /// Its bytes; the first four bits are zero.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.bytes
    }

    /// Returns true if a text has the form of an id, in upper or lower case. No record may have
    /// such a name.
    #[must_use]
    pub fn is_of_its_form(text: &str) -> bool {
        Self::digits(&text.to_ascii_lowercase()).is_some()
    }

    pub(super) fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let bytes = fields.array()?;
        let id = Self::from_low_bits(bytes);
        if id.bytes != bytes {
            return Err(FormatError::differs(
                K::WHAT,
                "68 bits",
                format_args!("{bytes:02x?}"),
            ));
        }
        Ok(id)
    }

    /// The id in bytes that hold nothing else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(K::WHAT, bytes);
        let id = Self::decode_from(&mut fields)?;
        fields.end()?;
        Ok(id)
    }

    fn digits(text: &str) -> Option<&str> {
        let digits = text.strip_prefix(K::PREFIX)?;
        let hexadecimal = digits
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        (digits.len() == DIGITS && hexadecimal).then_some(digits)
    }
}

impl<K: IdKind> Display for RecordId<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.bytes;
        write!(f, "{}{first:x}", K::PREFIX)?;
        rest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<K: IdKind> Debug for RecordId<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl<K: IdKind> FromStr for RecordId<K> {
    type Err = FormatError;

    /// Only what `Display` writes.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let number = Self::digits(text).and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let Some(number) = number else {
            return Err(FormatError::differs(
                K::WHAT,
                format_args!("{:?} and {DIGITS} lower-case hexadecimal digits", K::PREFIX),
                format_args!("{text:?}"),
            ));
        };
        let [.., a, b, c, d, e, f, g, h, i] = number.to_be_bytes();
        Ok(Self::from_low_bits([a, b, c, d, e, f, g, h, i]))
    }
}
