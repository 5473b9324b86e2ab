//! The common part of the three ids (chunk, node, root): 32 bytes of BLAKE3, written as 64
//! hexadecimal digits. They are three types, so that the compiler tells them apart.

/// The reason why a text or a byte string is not an id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseIdError {
    /// A byte string of the wrong length.
    #[error("parse {what}: {bytes} bytes instead of 32")]
    Length {
        /// The kind of id that was expected, with its article: "a chunk id".
        what: &'static str,
        /// Length of the byte string in bytes.
        bytes: usize,
    },
    /// A text that is not 64 hexadecimal digits.
    #[error("parse {what}: not 64 hexadecimal digits")]
    NotHex {
        /// The kind of id that was expected, with its article: "a chunk id".
        what: &'static str,
    },
}

/// Reads 64 hexadecimal digits of either case; `None` for any other text.
pub(crate) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = hex_digit(high)? << 4 | hex_digit(low)?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Defines an id type: `define_id! { /// doc  pub struct Name, "what errors call it" }`.
macro_rules! define_id {
    ($(#[$doc:meta])* pub struct $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Length of the id in bytes.
            pub const BYTES: usize = 32;

            /// The id with these bytes, as they are stored and sent. Nothing is checked.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The bytes, as they are stored and sent.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::id::parse_hex(text)
                    .map(Self)
                    .ok_or($crate::ParseIdError::NotHex { what: $what })
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = $crate::ParseIdError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| $crate::ParseIdError::Length {
                        what: $what,
                        bytes: bytes.len(),
                    })
            }
        }
    };
}
pub(crate) use define_id;
