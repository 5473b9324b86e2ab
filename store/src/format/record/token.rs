//! A token's record, as the catalog log and the catalog keep it.

use std::fmt::{self, Debug};

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind};
use crate::format::{
    AccountId, FormatError, IdKind, RecordId,
    fields::{Fields, put_text},
};

/// The version of [`TokenRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

const EXPIRED: u8 = 1;

/// The kind of id that tokens have.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfToken {}

impl IdKind for OfToken {
    const WHAT: &'static str = "id of a token";
    const PREFIX: &'static str = "tok-";
}

/// Id of a token: `tok-` and 17 hexadecimal digits.
pub type TokenId = RecordId<OfToken>;

/// The keyed hash of a token's secret. `==` is for records: who checks a secret compares in
/// constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Shows nothing of it.
impl Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// What a token may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scopes(u8);

impl Scopes {
    /// Everything that the account may.
    pub const ALL: Self = Self(0);
    /// Seeing and reading.
    pub const READ: Self = Self(1);
    /// Changing volumes.
    pub const VOLUMES: Self = Self(2);
    /// Changing snapshots and images.
    pub const IMAGES: Self = Self(4);
    /// Copying snapshots.
    pub const COPY: Self = Self(8);

    const ANY: u8 = 15;

    /// The scopes of either.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns true if a scope was given by its name. No scope is in [`ALL`](Self::ALL).
    #[must_use]
    pub const fn has(self, scope: Self) -> bool {
        self.0 & scope.0 != 0
    }

    /// Returns true if all scopes of `other` are allowed by these.
    #[must_use]
    pub const fn allow(self, other: Self) -> bool {
        if self.0 == Self::ALL.0 {
            return true;
        }
        // Everything that may be changed may be seen.
        let allowed = self.0 | Self::READ.0;
        other.0 != Self::ALL.0 && allowed & other.0 == other.0
    }
}

/// The catalog record of a token.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 1 | flags: 1 was found expired |
/// | 1 | scopes: 1 read, 2 volumes, 4 images, 8 copy; 0 all |
/// | 9 | id |
/// | 8 | id of the account as a number |
/// | 8, 8, 8 | created, expires, last used; 0 for never |
/// | 32 | keyed hash of the secret |
/// | 4 + n | description: length, UTF-8 |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// The account for which its bearer acts.
    pub account: AccountId,
    /// What it may be used for.
    pub scopes: Scopes,
    /// The keyed hash of its secret.
    pub hash: SecretHash,
    /// A note of the user.
    pub description: String,
    /// When it was made, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// When it expires, in nanoseconds since 1970; `None`: never.
    pub expires_at_ns: Option<u64>,
    /// When it was used last, roughly, in nanoseconds since 1970; `None`: never.
    pub last_used_at_ns: Option<u64>,
    /// True once it was found expired: a clock that goes back does not revive it.
    pub is_expired: bool,
}

impl CatalogRecord for TokenRecord {
    type Id = TokenId;

    const KIND: &'static Kind = &Kind::of::<Self>("token", 12, "tokens");

    fn keys(&self) -> Keys<'_, TokenId> {
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
        let flags = if self.is_expired { EXPIRED } else { 0 };
        let mut bytes = vec![VERSION, flags, self.scopes.0];
        bytes.extend_from_slice(self.id.as_bytes());
        for number in [
            self.account.number(),
            self.created_at_ns,
            self.expires_at_ns.unwrap_or_default(),
            self.last_used_at_ns.unwrap_or_default(),
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.hash.as_bytes());
        put_text(&mut bytes, &self.description);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of a token", bytes);
        let version = fields.u8()?;
        if version != VERSION {
            let what = "version of a token's record";
            return Err(FormatError::unknown(what, VERSION, version));
        }
        let flags = fields.u8()?;
        if flags & !EXPIRED != 0 {
            return Err(FormatError::differs(
                "flags of a token's record",
                "1 (was found expired)",
                format_args!("{flags:#04x}"),
            ));
        }
        let scopes = fields.u8()?;
        if scopes & !Scopes::ANY != 0 {
            return Err(FormatError::unknown("scopes of a token", "0 to 15", scopes));
        }
        let at = |number: u64| (number != 0).then_some(number);
        let record = Self {
            is_expired: flags & EXPIRED != 0,
            scopes: Scopes(scopes),
            id: TokenId::decode_from(&mut fields)?,
            account: AccountId::decode_from(&mut fields)?,
            created_at_ns: fields.u64()?,
            expires_at_ns: at(fields.u64()?),
            last_used_at_ns: at(fields.u64()?),
            hash: SecretHash(fields.array()?),
            description: fields.text()?,
        };
        fields.end()?;
        Ok(record)
    }
}
