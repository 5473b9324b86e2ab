//! An account's record, as the catalog log and the catalog keep it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind, RecordKey};
use crate::format::{
    AccountId, FormatError,
    fields::{Fields, put_count, put_text},
};

/// The versions of [`AccountRecord`]'s encoding, its first byte. The first has no place for a block
/// of public access and for quotas, the second none for public images. A record is written in the
/// first version that can express it.
const PLAIN: u8 = 1;
const WITH_LIMITS: u8 = 2;
const VERSION: u8 = 3;

const USER: u8 = 1;
const GROUP: u8 = 2;
const CERTIFICATE: u8 = 3;

/// The catalog record of an account.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 3 for an account that may share images with everybody; 2; 1 for one without quotas that may share snapshots with everybody |
/// | 1 | state: 1 active, 2 read-only, 3 disabled |
/// | 8 | id as a number |
/// | 8 | created |
/// | 4 + n | name: length, UTF-8 |
/// | 4 + n | alias; empty if it has none |
/// | 4 | number of identities, ascending |
/// | 1, 4 + n | each identity: 1 user, 2 group, 3 certificate; then its text |
/// | 1 | public access: 1 allowed, 2 no new sharing, 3 none; absent in version 1 |
/// | 4 | number of quotas, ascending; absent in version 1 |
/// | 1, 8 | each: its number, see [`Quota`]; its limit |
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
    /// Whether it may share snapshots with everybody.
    pub block_public_access: BlockPublicAccess,
    /// Its limits. What is not in here has none.
    pub quotas: BTreeMap<Quota, u64>,
    /// True if it may share images with everybody. What was shared stays so.
    pub allows_public_images: bool,
}

/// Whether an account may share snapshots with everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum BlockPublicAccess {
    /// It may.
    #[default]
    Off,
    /// It shares nothing more. What is shared stays so.
    NewSharing,
    /// Nobody sees what it has shared with everybody, as long as this is set.
    AllSharing,
}

impl BlockPublicAccess {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Off => 1,
            Self::NewSharing => 2,
            Self::AllSharing => 3,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        Ok(match byte {
            1 => Self::Off,
            2 => Self::NewSharing,
            3 => Self::AllSharing,
            other => {
                let what = "public access of an account";
                return Err(FormatError::unknown(what, "1 to 3", other));
            }
        })
    }
}

/// Something of which an account may have a limited amount. Its number is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quota {
    /// Volumes that belong to it.
    Volumes = 1,
    /// Snapshots that belong to it, also pending and failed ones.
    Snapshots = 2,
    /// Volumes that belong to it and are attached.
    AttachedVolumes = 3,
    /// Uploads of it that are under way.
    Uploads = 4,
    /// Requests of it in a second.
    RequestsPerSecond = 5,
    /// Plain bytes of the chunks that its snapshots and volumes have, each chunk counted once.
    StoredBytes = 6,
    /// Images that belong to it.
    Images = 7,
}

impl Quota {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Volumes,
        Self::Snapshots,
        Self::AttachedVolumes,
        Self::Uploads,
        Self::RequestsPerSecond,
        Self::StoredBytes,
        Self::Images,
    ];

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        let found = Self::ALL.into_iter().find(|it| *it as u8 == byte);
        found.ok_or_else(|| FormatError::unknown("quota of an account", "1 to 7", byte))
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
            Self::AttachedVolumes => "attached volumes",
            Self::Uploads => "uploads",
            Self::RequestsPerSecond => "requests per second",
            Self::StoredBytes => "stored bytes",
            Self::Images => "images",
        })
    }
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
            block_public_access: BlockPublicAccess::Off,
            quotas: BTreeMap::new(),
            allows_public_images: false,
        }
    }

    /// The first version that can express it.
    fn version(&self) -> u8 {
        match self.block_public_access {
            _ if self.allows_public_images => VERSION,
            BlockPublicAccess::Off if self.quotas.is_empty() => PLAIN,
            _ => WITH_LIMITS,
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
        let version = self.version();
        let mut bytes = vec![version, self.state.to_byte()];
        bytes.extend_from_slice(&self.id.number().to_le_bytes());
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        put_text(&mut bytes, &self.name);
        put_text(&mut bytes, &self.alias);
        put_count(&mut bytes, self.identities.len());
        for identity in &self.identities {
            identity.encode_into(&mut bytes);
        }
        if version >= WITH_LIMITS {
            bytes.push(self.block_public_access.to_byte());
            put_count(&mut bytes, self.quotas.len());
            for (quota, limit) in &self.quotas {
                bytes.push(*quota as u8);
                bytes.extend_from_slice(&limit.to_le_bytes());
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "record of an account";
        let mut fields = Fields::new(WHAT, bytes);
        let version = fields.u8()?;
        if !matches!(version, PLAIN | WITH_LIMITS | VERSION) {
            let what = "version of an account's record";
            return Err(FormatError::unknown(what, "1 to 3", version));
        }
        let mut record = Self {
            state: AccountState::from_byte(fields.u8()?)?,
            id: AccountId::decode_from(&mut fields)?,
            created_at_ns: fields.u64()?,
            name: fields.text()?,
            alias: fields.text()?,
            identities: BTreeSet::new(),
            block_public_access: BlockPublicAccess::Off,
            quotas: BTreeMap::new(),
            allows_public_images: version == VERSION,
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
        if version >= WITH_LIMITS {
            record.block_public_access = BlockPublicAccess::from_byte(fields.u8()?)?;
            for _ in 0..fields.u32()? {
                let quota = Quota::from_byte(fields.u8()?)?;
                if let Some((last, _)) = record.quotas.last_key_value()
                    && *last >= quota
                {
                    let expected = format_args!("a quota behind {last}");
                    return Err(FormatError::differs(WHAT, expected, quota));
                }
                record.quotas.insert(quota, fields.u64()?);
            }
        }
        if record.version() != version {
            return Err(FormatError::differs(
                "version of an account's record",
                format_args!(
                    "{}, the first that can express the content",
                    record.version()
                ),
                version,
            ));
        }
        fields.end()?;
        Ok(record)
    }
}
