//! Ids of accounts, which own records.

use std::{
    fmt::{self, Debug, Display},
    str::FromStr,
};

use super::{FormatError, fields::Fields};

const DIGITS: usize = 12;
/// One more than the largest id: 10 to the power of [`DIGITS`].
const END: u64 = 1_000_000_000_000;

/// Id of an account: 12 decimal digits, leading zeros included.
#[derive(Copy, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(
    /// The number, big-endian: as a key it sorts like the text.
    [u8; 8],
);

impl AccountId {
    /// The administrator, `000000000000`: the owner of all records from before there were accounts.
    pub const ADMINISTRATOR: Self = Self([0; 8]);

    /// The id with these digits. `None` for a number of more than 12.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        if number < END {
            Some(Self(number.to_be_bytes()))
        } else {
            None
        }
    }

    /// Its digits as a number.
    #[must_use]
    pub const fn number(self) -> u64 {
        u64::from_be_bytes(self.0)
    }

    /// The number, big-endian.
    pub(super) const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    pub(super) fn too_large(number: u64) -> FormatError {
        FormatError::differs("id of an account", format_args!("{DIGITS} digits"), number)
    }

    pub(super) fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let number = fields.u64()?;
        Self::from_number(number).ok_or_else(|| Self::too_large(number))
    }
}

impl Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$}", self.number(), width = DIGITS)
    }
}

impl Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl FromStr for AccountId {
    type Err = FormatError;

    /// Accepts only the form that `Display` writes.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let are_digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| are_digits);
        number.and_then(Self::from_number).ok_or_else(|| {
            FormatError::differs(
                "id of an account",
                format_args!("{DIGITS} decimal digits"),
                format_args!("{text:?}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn account_ids_have_one_form() {
        for (text, number) in [
            ("000000000000", 0),
            ("000000000007", 7),
            ("123456789012", 123_456_789_012),
            ("999999999999", 999_999_999_999),
        ] {
            let id: AccountId = text.parse().unwrap();
            assert_eq!((id.number(), id.to_string()), (number, text.to_owned()));
            assert_eq!(AccountId::from_number(number), Some(id));
        }
        assert_eq!("000000000000".parse(), Ok(AccountId::ADMINISTRATOR));
        assert_eq!(AccountId::from_number(END), None);
    }

    #[test]
    fn other_texts_are_no_account_ids() {
        for text in [
            "",
            "0",
            "12345678901",
            "1234567890123",
            "+12345678901",
            "-12345678901",
            "12345678901a",
            " 12345678901",
            "12345678901\n",
            "\u{661}23456789012",
            "0x1234567890",
        ] {
            let error = text.parse::<AccountId>().unwrap_err().to_string();
            assert!(error.contains("12 decimal digits"), "{text:?}: {error}");
        }
    }

    #[test]
    fn numbers_of_more_digits_are_refused() {
        let bytes = END.to_le_bytes();
        let mut fields = Fields::new("test", &bytes);
        assert!(AccountId::decode_from(&mut fields).is_err());
    }
}
