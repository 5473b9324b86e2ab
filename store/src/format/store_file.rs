//! `FORMAT`: which store this is, and which version of the format it is in.

use std::{fmt, str::FromStr};

use varve_content::codec::Compression;

use super::FormatError;

/// The version of all formats in this folder, together: a store of another version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// The largest valid `FORMAT` file in bytes: a reader needs to read no more.
pub const STORE_FILE_BYTES_MAX: usize = 4096;

const WHAT: &str = "store identity";
const TITLE: &str =
    "# A Varve store. Not to be edited: the checksum below covers every byte above it.";
const VERSION_KEY: &str = "format_version = ";

/// Tells a store from every other: 16 random bytes, shown as 32 hexadecimal digits.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct StoreId([u8; 16]);

impl StoreId {
    /// Bytes of an id.
    pub const BYTES: usize = 16;

    /// The id of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StoreId {
    type Err = FormatError;

    /// Only what `Display` writes.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let id = u128::from_str_radix(text, 16)
            .ok()
            .map(|number| Self(number.to_be_bytes()));
        id.filter(|id| id.to_string() == text).ok_or_else(|| {
            FormatError::differs(
                "id of a store",
                "32 lower-case hexadecimal digits",
                format_args!("{text:?}"),
            )
        })
    }
}

/// The contents of `FORMAT`: made with the store and never changed.
///
/// ```text
/// # A Varve store. Not to be edited: the checksum below covers every byte above it.
/// format_version = 1
/// store_id = 00112233445566778899aabbccddeeff
/// chunker_version = 1
/// compression = zstd
/// created_unix_seconds = 1735689600
/// crc32 = 1d443c7a
/// ```
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct StoreFile {
    /// Id of the store.
    pub store: StoreId,
    /// How its content is cut.
    pub chunker_version: u32,
    /// The default compression of new chunks.
    pub compression: Compression,
    /// When it was made, in seconds since 1970.
    pub created_unix_seconds: u64,
}

impl StoreFile {
    /// The file's text.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self {
            store,
            chunker_version,
            compression,
            created_unix_seconds,
        } = self;
        let text = format!(
            "{TITLE}\n{VERSION_KEY}{FORMAT_VERSION}\nstore_id = {store}\nchunker_version = {chunker_version}\n\
             compression = {compression}\ncreated_unix_seconds = {created_unix_seconds}\n"
        );
        let crc32 = crc32fast::hash(text.as_bytes());
        format!("{text}crc32 = {crc32:08x}\n")
    }

    /// From the file's bytes. The version is looked at before anything else, since all else may
    /// differ in another.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let Ok(text) = str::from_utf8(bytes) else {
            return Err(FormatError::differs(
                WHAT,
                "text",
                format_args!("{} bytes that are not text", bytes.len()),
            ));
        };
        let version = text.lines().find_map(|line| line.strip_prefix(VERSION_KEY));
        match version.map(str::parse::<u32>) {
            Some(Ok(FORMAT_VERSION)) => {}
            Some(Ok(other)) => {
                return Err(FormatError::unknown(
                    "format version of the store",
                    FORMAT_VERSION,
                    other,
                ));
            }
            _ => {
                let found = version.unwrap_or("none");
                return Err(FormatError::differs(
                    WHAT,
                    "a line with the format version",
                    format_args!("{found:?}"),
                ));
            }
        }
        let mut lines = text.lines().skip(2);
        let file = Self {
            store: value(&mut lines, "store_id")?,
            chunker_version: value(&mut lines, "chunker_version")?,
            compression: value(&mut lines, "compression")?,
            created_unix_seconds: value(&mut lines, "created_unix_seconds")?,
        };
        // Text that does not read back identically was not written by this program.
        let expected = file.encode();
        if expected != text {
            let differs = expected
                .lines()
                .zip(text.lines())
                .find(|(expected, found)| expected != found);
            let (expected, found) =
                differs.unwrap_or(("nothing behind the checksum's line", "more"));
            return Err(FormatError::differs(
                WHAT,
                format_args!("{expected:?}"),
                format_args!("{found:?}"),
            ));
        }
        Ok(file)
    }
}

/// The value in the next line, which is that of `key`.
fn value<'a, T: FromStr>(
    lines: &mut impl Iterator<Item = &'a str>,
    key: &str,
) -> Result<T, FormatError> {
    let line = lines.next().unwrap_or_default();
    line.strip_prefix(key)
        .and_then(|rest| rest.strip_prefix(" = "))
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| {
            FormatError::differs(
                WHAT,
                format_args!("{key:?} and its value"),
                format_args!("{line:?}"),
            )
        })
}
