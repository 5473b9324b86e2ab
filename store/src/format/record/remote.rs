//! A remote's record, as the catalog log and the catalog keep it.

use std::borrow::Cow;

use varve_content::RootId;

use super::{CatalogRecord, Keys, Kind, RecordKey};
use crate::format::{
    AccountId, FormatError,
    fields::{Fields, put_text},
};

/// The version of [`RemoteRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

const PLAINTEXT: u8 = 1;

/// Another daemon, that has a name here.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 1 | flags: 1 plain HTTP is allowed |
/// | 8 | added |
/// | 4 + n, five times | name, endpoint, files of the authorities, the certificate and its key, empty for none: length, UTF-8 |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRecord {
    /// Its name: no other remote of the store has it.
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
    /// When it was added, in nanoseconds since 1970.
    pub created_at_ns: u64,
}

/// A remote's name is its id.
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
            id: self.name.clone(),
            owner: AccountId::ADMINISTRATOR,
            name: Some(&self.name),
            tags: None,
        }
    }

    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, if self.allow_plaintext { PLAINTEXT } else { 0 }];
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
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of a remote", bytes);
        let version = fields.u8()?;
        if version != VERSION {
            return Err(FormatError::unknown(
                "version of a remote's record",
                VERSION,
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
        let record = Self {
            allow_plaintext: flags & PLAINTEXT != 0,
            created_at_ns: fields.u64()?,
            name: fields.text()?,
            endpoint: fields.text()?,
            tls_ca: fields.text()?,
            tls_cert: fields.text()?,
            tls_key: fields.text()?,
        };
        fields.end()?;
        Ok(record)
    }
}
