//! Errors in bytes from disk.

use std::fmt;

/// Bytes that are not in the format they should be in. Callers add which file, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// There are not enough bytes.
    #[error("{what} is cut short: expected {expected_bytes} bytes, found {found_bytes}")]
    Short {
        /// The record that was decoded.
        what: &'static str,
        /// Bytes it takes.
        expected_bytes: u64,
        /// Bytes there are.
        found_bytes: u64,
    },
    /// A value is not what was written, or cannot have been.
    #[error("{what} is wrong: expected {expected}, found {found}")]
    Differs {
        /// The field.
        what: &'static str,
        /// The valid values.
        expected: String,
        /// The value found.
        found: String,
    },
    /// A whole and undamaged value of a version that this program does not know.
    #[error("{what} is unknown to this version: it knows {known}, found {found}")]
    Unknown {
        /// The field.
        what: &'static str,
        /// The versions that this program knows.
        known: String,
        /// The version found.
        found: String,
    },
}

impl FormatError {
    pub(crate) fn short(what: &'static str, expected_bytes: u64, found_bytes: u64) -> Self {
        Self::Short {
            what,
            expected_bytes,
            found_bytes,
        }
    }

    pub(crate) fn differs(
        what: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Differs {
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn unknown(
        what: &'static str,
        known: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Unknown {
            what,
            known: known.to_string(),
            found: found.to_string(),
        }
    }

    /// Returns true if the bytes are undamaged and have an unknown version: a newer program can
    /// read them.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}
