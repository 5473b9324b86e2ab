//! An access key's record, as the catalog log and the catalog keep it.

use std::{
    borrow::Cow,
    fmt::{self, Debug, Display},
    str::FromStr,
};

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind, RecordKey};
use crate::format::{AccountId, FormatError, fields::Fields};

/// The version of [`AccessKeyRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

const WHAT: &str = "id of an access key";
/// The beginning of every id, as clients of signed requests know it.
const PREFIX: &str = "AKIA";
const ID_CHARS: usize = 16;

/// Id of an access key: `AKIA` and 16 characters of `A-Z2-7`.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccessKeyId(
    /// The characters behind the prefix.
    [u8; ID_CHARS],
);

impl AccessKeyId {
    /// The id that the lower 5 bits of each byte make.
    #[must_use]
    pub fn from_low_bits(bytes: [u8; ID_CHARS]) -> Self {
        Self(bytes.map(|byte| match byte & 31 {
            letter @ 0..26 => b'A' + letter,
            digit => b'2' + (digit - 26),
        }))
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ID_CHARS] {
        &self.0
    }

    fn of_characters(bytes: [u8; ID_CHARS]) -> Option<Self> {
        let is_allowed = |byte: &u8| matches!(byte, b'A'..=b'Z' | b'2'..=b'7');
        bytes.iter().all(is_allowed).then_some(Self(bytes))
    }

    fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let bytes = fields.array()?;
        Self::of_characters(bytes).ok_or_else(|| {
            let expected = format_args!("{ID_CHARS} of A-Z2-7");
            FormatError::differs(WHAT, expected, format_args!("{bytes:02x?}"))
        })
    }
}

impl Display for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl Debug for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl FromStr for AccessKeyId {
    type Err = FormatError;

    /// Accepts only the form that `Display` writes. The error does not repeat the text: it may be a
    /// secret in the wrong place.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let bytes = text.strip_prefix(PREFIX).map(str::as_bytes);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.and_then(Self::of_characters).ok_or_else(|| {
            let expected = format_args!("{PREFIX} and {ID_CHARS} characters of A-Z2-7");
            FormatError::differs(WHAT, expected, format_args!("{} bytes", text.len()))
        })
    }
}

impl RecordKey for AccessKeyId {
    fn as_key(&self) -> &[u8] {
        &self.0
    }

    fn to_field(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.0)
    }

    fn from_field(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new(WHAT, bytes);
        let id = Self::decode_from(&mut fields)?;
        fields.end()?;
        Ok(id)
    }
}

/// The secret of an access key, sealed. The store cannot open it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SealedSecret {
    /// Never the same for two secrets.
    pub nonce: [u8; 24],
    /// The secret, encrypted.
    pub ciphertext: [u8; 40],
    /// What shows that nothing was changed.
    pub tag: [u8; 16],
}

/// Shows nothing of it.
impl Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedSecret(..)")
    }
}

/// The catalog record of an access key: a key pair that signs requests.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 16 | id, as text, without `AKIA` |
/// | 8 | id of the account as a number |
/// | 8 | created |
/// | 24, 40, 16 | secret, sealed by the daemon: nonce, ciphertext, tag |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKeyRecord {
    /// Its id.
    pub id: AccessKeyId,
    /// The account for which it signs.
    pub account: AccountId,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// Its secret.
    pub secret: SealedSecret,
}

impl CatalogRecord for AccessKeyRecord {
    type Id = AccessKeyId;

    const KIND: &'static Kind = &Kind::of::<Self>("access key", 14, "access-keys");

    fn keys(&self) -> Keys<'_, AccessKeyId> {
        Keys {
            id: self.id,
            owner: AccountId::ADMINISTRATOR,
            name: None,
            tags: None,
        }
    }

    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.account.number().to_le_bytes());
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        bytes.extend_from_slice(&self.secret.nonce);
        bytes.extend_from_slice(&self.secret.ciphertext);
        bytes.extend_from_slice(&self.secret.tag);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of an access key", bytes);
        let version = fields.u8()?;
        if version != VERSION {
            let what = "version of an access key's record";
            return Err(FormatError::unknown(what, VERSION, version));
        }
        let record = Self {
            id: AccessKeyId::decode_from(&mut fields)?,
            account: AccountId::decode_from(&mut fields)?,
            created_at_ns: fields.u64()?,
            secret: SealedSecret {
                nonce: fields.array()?,
                ciphertext: fields.array()?,
                tag: fields.array()?,
            },
        };
        fields.end()?;
        Ok(record)
    }
}
