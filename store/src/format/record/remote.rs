//! A remote's record, as the catalog log and the catalog keep it.

use std::borrow::Cow;

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind, RecordKey};
use crate::format::{
    AccountId, FormatError,
    fields::{Fields, put_text},
};

/// The versions of [`RemoteRecord`]'s encoding, its first byte. The first has no places for an
/// owner and the file of a token. A record is written in the first version that can express it.
const PLAIN: u8 = 1;
const VERSION: u8 = 2;

const PLAINTEXT: u8 = 1;

/// Another daemon, that has a name here.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 2; 1 for a remote of the administrator without the file of a token |
/// | 1 | flags: 1 plain HTTP is allowed |
/// | 8 | added |
/// | 4 + n, five times | name, endpoint, files of the authorities, the certificate and its key, empty for none: length, UTF-8 |
/// | 4 + n | file of the token, empty for none: length, UTF-8; absent in version 1 |
/// | 8 | id of the owner as a number; absent in version 1 |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRecord {
    /// The account that it belongs to.
    pub owner: AccountId,
    /// Its name: no other remote of the owner has it.
    pub name: String,
    /// Where it is.
    pub endpoint: String,
    /// True if plain HTTP is allowed, even to another machine.
    pub allow_plaintext: bool,
    /// File of the authorities, in PEM, that its certificate is signed by; empty: the daemon's own
    /// setting.
    pub tls_ca: String,
    /// File of the certificate, in PEM, to show it; empty: the daemon's own setting.
    pub tls_cert: String,
    /// File of its private key; empty like `tls_cert`.
    pub tls_key: String,
    /// File of the token to show it; empty: none.
    pub token_file: String,
    /// When it was added, in nanoseconds since 1970.
    pub created_at_ns: u64,
}

impl RemoteRecord {
    /// The id of the remote with this name: the name; of another account than the administrator,
    /// behind the id of the account and a colon, which no name has.
    #[must_use]
    pub fn id_of(owner: AccountId, name: &str) -> String {
        match owner {
            AccountId::ADMINISTRATOR => name.to_owned(),
            _ => format!("{owner}:{name}"),
        }
    }

    /// The first version that can express the record.
    fn version(&self) -> u8 {
        match (self.owner, self.token_file.is_empty()) {
            (AccountId::ADMINISTRATOR, true) => PLAIN,
            _ => VERSION,
        }
    }
}

/// A remote's id is a text.
impl RecordKey for String {
    fn as_key(&self) -> &[u8] {
        self.as_bytes()
    }

    fn to_field(&self) -> Cow<'_, [u8]> {
        let mut field = Vec::new();
        put_text(&mut field, self);
        Cow::Owned(field)
    }

    fn from_field(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("name of a record", bytes);
        let name = fields.text()?;
        fields.end()?;
        Ok(name)
    }
}

impl CatalogRecord for RemoteRecord {
    type Id = String;

    const KIND: &'static Kind = &Kind::of::<Self>("remote", 8, "remotes");

    fn keys(&self) -> Keys<'_, String> {
        Keys {
            id: Self::id_of(self.owner, &self.name),
            // Remotes are listed by id, and not by owner.
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
        let mut bytes = vec![version, if self.allow_plaintext { PLAINTEXT } else { 0 }];
        bytes.extend_from_slice(&self.created_at_ns.to_le_bytes());
        for text in [
            &self.name,
            &self.endpoint,
            &self.tls_ca,
            &self.tls_cert,
            &self.tls_key,
        ] {
            put_text(&mut bytes, text);
        }
        if version == VERSION {
            put_text(&mut bytes, &self.token_file);
            bytes.extend_from_slice(&self.owner.number().to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of a remote", bytes);
        let version = fields.u8()?;
        if !matches!(version, PLAIN | VERSION) {
            return Err(FormatError::unknown(
                "version of a remote's record",
                format_args!("{PLAIN} to {VERSION}"),
                version,
            ));
        }
        let flags = fields.u8()?;
        if flags & !PLAINTEXT != 0 {
            return Err(FormatError::differs(
                "flags of a remote's record",
                "1 (plain HTTP)",
                format_args!("{flags:#04x}"),
            ));
        }
        let mut record = Self {
            owner: AccountId::ADMINISTRATOR,
            allow_plaintext: flags & PLAINTEXT != 0,
            created_at_ns: fields.u64()?,
            name: fields.text()?,
            endpoint: fields.text()?,
            tls_ca: fields.text()?,
            tls_cert: fields.text()?,
            tls_key: fields.text()?,
            token_file: String::new(),
        };
        if version == VERSION {
            record.token_file = fields.text()?;
            record.owner = AccountId::decode_from(&mut fields)?;
        }
        fields.end()?;
        if record.version() != version {
            return Err(FormatError::differs(
                "version of a remote's record",
                record.version(),
                version,
            ));
        }
        Ok(record)
    }
}
