//! Ids of the catalog's records: snapshots, volumes, images.

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
    /// Digits of the shortest id. Those that the store makes have 17.
    const DIGITS_LEAST: usize = DIGITS;
}

/// Tells a record from every other of its kind that ever was: 68 random bits, shown as a prefix and
/// 17 hexadecimal digits. Kinds whose records keep ids from elsewhere have shorter ids, too.
///
/// The first four bits are zero; of a shorter id, 1 for 8 digits to 9 for 16.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId<K> {
    bytes: [u8; ID_BYTES],
    kind: PhantomData<K>,
}

/// Bytes of an id.
pub const ID_BYTES: usize = 9;
const DIGITS: usize = 17;
/// The digits that the first four bits of a shorter id do not count.
const DIGITS_UNCOUNTED: usize = 7;

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

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.bytes
    }

    /// Returns true if a text has the form of an id, in upper or lower case. No record may have
    /// such a name.
    #[must_use]
    pub fn is_of_its_form(text: &str) -> bool {
        Self::digits_in(&text.to_ascii_lowercase()).is_some()
    }

    pub(super) fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let bytes = fields.array()?;
        let id = Self {
            bytes,
            kind: PhantomData,
        };
        let digits = id.digits();
        let is_valid = bytes[0] >> 4 == 0
            || (K::DIGITS_LEAST..DIGITS).contains(&digits) && id.number() >> (4 * digits) == 0;
        if !is_valid {
            return Err(FormatError::differs(
                K::WHAT,
                format_args!("68 bits, or {} digits or more", K::DIGITS_LEAST),
                format_args!("{bytes:02x?}"),
            ));
        }
        Ok(id)
    }

    /// The number of its digits.
    fn digits(&self) -> usize {
        match usize::from(self.bytes[0] >> 4) {
            0 => DIGITS,
            counted => DIGITS_UNCOUNTED + counted,
        }
    }

    /// Its digits as a number.
    fn number(&self) -> u128 {
        let [a, rest @ ..] = self.bytes;
        let rest = u128::from(u64::from_be_bytes(rest));
        u128::from(a & 0x0f) << 64 | rest
    }

    /// The id in bytes that hold nothing else.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(K::WHAT, bytes);
        let id = Self::decode_from(&mut fields)?;
        fields.end()?;
        Ok(id)
    }

    fn digits_in(text: &str) -> Option<&str> {
        let digits = text.strip_prefix(K::PREFIX)?;
        let hexadecimal = digits
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let length = K::DIGITS_LEAST..=DIGITS;
        (length.contains(&digits.len()) && hexadecimal).then_some(digits)
    }
}

impl<K: IdKind> Display for RecordId<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:02$x}", K::PREFIX, self.number(), self.digits())
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
        let digits = Self::digits_in(text);
        let number = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let (Some(digits), Some(number)) = (digits, number) else {
            let (prefix, least) = (K::PREFIX, K::DIGITS_LEAST);
            let length = match least {
                DIGITS => DIGITS.to_string(),
                least => format!("{least} to {DIGITS}"),
            };
            return Err(FormatError::differs(
                K::WHAT,
                format_args!("{prefix:?} and {length} lower-case hexadecimal digits"),
                format_args!("{text:?}"),
            ));
        };
        let [.., a, b, c, d, e, f, g, h, i] = number.to_be_bytes();
        let mut id = Self::from_low_bits([a, b, c, d, e, f, g, h, i]);
        if digits.len() < DIGITS {
            #[expect(clippy::cast_possible_truncation, reason = "it is below 17")]
            let counted = (digits.len() - DIGITS_UNCOUNTED) as u8;
            id.bytes[0] = counted << 4;
        }
        Ok(id)
    }
}
