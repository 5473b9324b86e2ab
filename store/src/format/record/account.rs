//! An account's record, as the catalog log and the catalog keep it.

use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind, RecordKey};
use crate::format::{
    AccountId, FormatError,
    fields::{Fields, put_count, put_text},
};

/// The version of [`AccountRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

const USER: u8 = 1;
const GROUP: u8 = 2;
const CERTIFICATE: u8 = 3;

/// The catalog record of an account.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 1 | state: 1 active, 2 read-only, 3 disabled |
/// | 8 | id as a number |
/// | 8 | created |
/// | 4 + n | name: length, UTF-8 |
/// | 4 + n | alias; empty if it has none |
/// | 4 | number of identities, ascending |
/// | 1, 4 + n | each identity: 1 user, 2 group, 3 certificate; then its text |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    /// Its id.
    pub id: AccountId,
    /// Its name: no other account has the same.
    pub name: String,
    /// A second name, which people see as the owner of images; empty: none.
    pub alias: String,
    /// What it may do at all.
    pub state: AccountState,
    /// When it was made, in nanoseconds since 1970; 0 for the administrator.
    pub created_at_ns: u64,
    /// Who acts for it without a token. No identity belongs to two accounts.
    pub identities: BTreeSet<Identity>,
}

/// What an account may do at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccountState {
    /// All that its owner may.
    Active,
    /// It sees and reads, and changes nothing.
    ReadOnly,
    /// Nothing. What it owns stays.
    Disabled,
}

impl AccountState {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Active => 1,
            Self::ReadOnly => 2,
            Self::Disabled => 3,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        Ok(match byte {
            1 => Self::Active,
            2 => Self::ReadOnly,
            3 => Self::Disabled,
            other => return Err(FormatError::unknown("state of an account", "1 to 3", other)),
        })
    }
}

impl fmt::Display for AccountState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::ReadOnly => "read-only",
            Self::Disabled => "disabled",
        })
    }
}

/// Who acts for an account without a token.
///
/// As a text: `uid:1000`, `gid:1000` or `cert:` and the subject of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A user of this machine, at a unix socket.
    User(u32),
    /// A group of this machine: its users, at a unix socket.
    Group(u32),
    /// The subject of a TLS client certificate.
    Certificate(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(number) => write!(f, "uid:{number}"),
            Self::Group(number) => write!(f, "gid:{number}"),
            Self::Certificate(subject) => write!(f, "cert:{subject}"),
        }
    }
}

impl FromStr for Identity {
    type Err = FormatError;

    /// Accepts only the form that `Display` writes.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let number = |digits: &str| {
            let number: Option<u32> = digits.parse().ok();
            number.filter(|number| number.to_string() == digits)
        };
        let identity = match text.split_once(':') {
            Some(("uid", digits)) => number(digits).map(Self::User),
            Some(("gid", digits)) => number(digits).map(Self::Group),
            Some(("cert", subject)) if !subject.is_empty() => {
                Some(Self::Certificate(subject.to_owned()))
            }
            _ => None,
        };
        identity.ok_or_else(|| {
            FormatError::differs(
                "identity of an account",
                "uid:NUMBER, gid:NUMBER or cert:SUBJECT",
                format_args!("{text:?}"),
            )
        })
    }
}

impl Identity {
    fn encode_into(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::User(number) => {
                bytes.push(USER);
                put_text(bytes, &number.to_string());
            }
            Self::Group(number) => {
                bytes.push(GROUP);
                put_text(bytes, &number.to_string());
            }
            Self::Certificate(subject) => {
                bytes.push(CERTIFICATE);
                put_text(bytes, subject);
            }
        }
    }

    fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let kind = match fields.u8()? {
            USER => "uid",
            GROUP => "gid",
            CERTIFICATE => "cert",
            other => {
                return Err(FormatError::unknown(
                    "identity of an account",
                    "1 to 3",
                    other,
                ));
            }
        };
        format!("{kind}:{}", fields.text()?).parse()
    }
}

impl AccountRecord {
    /// The administrator, as long as nothing about it was set.
    #[must_use]
    pub fn administrator() -> Self {
        Self {
            id: AccountId::ADMINISTRATOR,
            name: "admin".to_owned(),
            alias: String::new(),
            state: AccountState::Active,
            created_at_ns: 0,
            identities: BTreeSet::new(),
        }
    }
}

/// The number of an account, 8 bytes, big-endian: lists by key are in the order of ids.
impl RecordKey for AccountId {
    fn as_key(&self) -> &[u8] {
        self.as_bytes()
    }

    fn to_field(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }

    fn from_field(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("id of an account", bytes);
        let number = u64::from_be_bytes(fields.array()?);
        fields.end()?;
        Self::from_number(number).ok_or_else(|| Self::too_large(number))
    }
}

impl CatalogRecord for AccountRecord {
    type Id = AccountId;

    const KIND: &'static Kind =
        &Kind::of::<Self>("account", 10, "accounts").with_labels("account-names");

    fn keys(&self) -> Keys<'_, AccountId> {
        Keys {
            id: self.id,
            owner: AccountId::ADMINISTRATOR,
            name: Some(&self.name),
            tags: None,
        }
    }

    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.state.to_byte()];
        bytes.extend_from_slice(&self.id.number().to_le_bytes());
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        put_text(&mut bytes, &self.name);
        put_text(&mut bytes, &self.alias);
        put_count(&mut bytes, self.identities.len());
        for identity in &self.identities {
            identity.encode_into(&mut bytes);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "record of an account";
        let mut fields = Fields::new(WHAT, bytes);
        let version = fields.u8()?;
        if version != VERSION {
            let what = "version of an account's record";
            return Err(FormatError::unknown(what, VERSION, version));
        }
        let mut record = Self {
            state: AccountState::from_byte(fields.u8()?)?,
            id: AccountId::decode_from(&mut fields)?,
            created_at_ns: fields.u64()?,
            name: fields.text()?,
            alias: fields.text()?,
            identities: BTreeSet::new(),
        };
        for _ in 0..fields.u32()? {
            let identity = Identity::decode_from(&mut fields)?;
            if let Some(last) = record.identities.last()
                && *last >= identity
            {
                return Err(FormatError::differs(
                    WHAT,
                    format_args!("an identity behind {last}"),
                    identity,
                ));
            }
            record.identities.insert(identity);
        }
        fields.end()?;
        Ok(record)
    }
}
