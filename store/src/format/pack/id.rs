//! The id of a pack, and its kind of content.

use std::{fmt, str::FromStr};

use crate::format::FormatError;

/// The kind of records in a pack. Nodes have their own packs, so that walking a tree reads little
/// else.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackKind {
    /// Chunks.
    Chunks,
    /// Leaves, inner nodes and roots.
    Nodes,
}

impl PackKind {
    pub(in crate::format) const fn to_byte(self) -> u8 {
        match self {
            Self::Chunks => 1,
            Self::Nodes => 2,
        }
    }

    pub(in crate::format) fn from_byte(byte: u8) -> Result<Self, FormatError> {
        match byte {
            1 => Ok(Self::Chunks),
            2 => Ok(Self::Nodes),
            other => Err(FormatError::unknown(
                "kind of pack",
                "1 (chunks), 2 (nodes)",
                other,
            )),
        }
    }

    /// How names of such packs begin.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Chunks => "chunk-",
            Self::Nodes => "node-",
        }
    }
}

/// A pack of a store. Numbers begin at 1 and are used once, over both kinds.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The kind of its records.
    pub kind: PackKind,
    /// Its number.
    pub number: u64,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:016x}", self.kind.prefix(), self.number)
    }
}

impl FromStr for PackId {
    type Err = FormatError;

    /// Only what `Display` writes: one pack has one name.
    fn from_str(name: &str) -> Result<Self, FormatError> {
        [PackKind::Chunks, PackKind::Nodes]
            .into_iter()
            .find_map(|kind| {
                let number = u64::from_str_radix(name.strip_prefix(kind.prefix())?, 16).ok()?;
                let id = Self { kind, number };
                (number > 0 && id.to_string() == name).then_some(id)
            })
            .ok_or_else(|| {
                FormatError::differs(
                    "name of a pack",
                    "\"chunk-\" or \"node-\" and 16 lower-case hexadecimal digits",
                    format_args!("{name:?}"),
                )
            })
    }
}
