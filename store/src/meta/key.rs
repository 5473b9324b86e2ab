//! Keys of records as users give them: an id or a name.
//!
//! The daemon makes a key of a text once, at its edge. Code that has an id passes [`Key::Id`].

use std::{
    fmt::{self, Debug, Display},
    str::FromStr,
};

use super::{
    AccountRecord, ImageRecord, Meta, Records as _, SnapshotRecord, VolumeRecord, check_owner,
};
use crate::{
    Error, Result,
    format::{AccountId, CatalogRecord, Change, record::Owned},
};

/// An id or a name. No name has the form of an id, so a text is one or the other.
pub enum Key<R: CatalogRecord> {
    /// An id.
    Id(R::Id),
    /// An id of a record of this account. Of another account's record it is the key of nothing.
    Owned {
        /// The account.
        owner: AccountId,
        /// The id.
        id: R::Id,
    },
    /// An id of a record that this account may read: its own, or one that is shared with it. Of
    /// another record it is the key of nothing. It is a key for reading only.
    Readable {
        /// The account.
        reader: AccountId,
        /// The id.
        id: R::Id,
    },
    /// A name.
    Name {
        /// The account among whose records it is a name.
        owner: AccountId,
        /// The name.
        name: String,
    },
}

/// Id or name of a snapshot.
pub type SnapshotKey = Key<SnapshotRecord>;
/// Id or name of an image.
pub type ImageKey = Key<ImageRecord>;
/// Id or name of a volume.
pub type VolumeKey = Key<VolumeRecord>;

impl<R> Key<R>
where
    R: CatalogRecord,
    R::Id: FromStr,
{
    /// The key that an account wrote. A text that is not an id is a name among its own records,
    /// even if nothing has that name.
    #[must_use]
    pub fn of(owner: AccountId, text: &str) -> Self {
        match text.parse() {
            Ok(id) => Self::Id(id),
            Err(_) => Self::Name {
                owner,
                name: text.to_owned(),
            },
        }
    }
}

/// A key that the administrator wrote.
impl<R> From<&str> for Key<R>
where
    R: CatalogRecord,
    R::Id: FromStr,
{
    fn from(text: &str) -> Self {
        Self::of(AccountId::ADMINISTRATOR, text)
    }
}

impl<R: CatalogRecord> Key<R> {
    /// Checks that this is still a key of a record that it found: the record may have been given to
    /// another account meanwhile. Who changes a record checks it in the same transaction.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub(crate) fn check(&self, record: &R) -> Result<()> {
        let owner = record.keys().owner;
        let is_key = match self {
            Self::Id(_) => true,
            Self::Owned { owner: wanted, .. } | Self::Name { owner: wanted, .. } => {
                *wanted == owner
            }
            Self::Readable { reader, .. } => {
                *reader == owner || record.sharing().is_some_and(|it| it.allows(*reader))
            }
        };
        is_key.then_some(()).ok_or_else(|| self.not_found())
    }

    fn not_found(&self) -> Error {
        Error::NotFound {
            what: R::KIND.what,
            name: self.to_string(),
        }
    }
}

impl<R: CatalogRecord> Display for Key<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) | Self::Owned { id, .. } | Self::Readable { id, .. } => {
                Display::fmt(id, f)
            }
            Self::Name { name, .. } => f.write_str(name),
        }
    }
}

impl<R: CatalogRecord> Debug for Key<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => Debug::fmt(id, f),
            Self::Owned { owner, id } => write!(f, "{owner}/{id}"),
            Self::Readable { reader, id } => write!(f, "{id} for {reader}"),
            Self::Name { owner, name } => write!(f, "{owner}/{name:?}"),
        }
    }
}

impl<R: CatalogRecord> Clone for Key<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Id(id) => Self::Id(id.clone()),
            Self::Owned { owner, id } => Self::Owned {
                owner: *owner,
                id: id.clone(),
            },
            Self::Readable { reader, id } => Self::Readable {
                reader: *reader,
                id: id.clone(),
            },
            Self::Name { owner, name } => Self::Name {
                owner: *owner,
                name: name.clone(),
            },
        }
    }
}

impl<R: CatalogRecord> PartialEq for Key<R> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Id(a), Self::Id(b)) => a == b,
            (Self::Owned { owner: a, id: b }, Self::Owned { owner: c, id: d })
            | (Self::Readable { reader: a, id: b }, Self::Readable { reader: c, id: d }) => {
                a == c && b == d
            }
            (Self::Name { owner: a, name: b }, Self::Name { owner: c, name: d }) => {
                a == c && b == d
            }
            _ => false,
        }
    }
}

impl<R: CatalogRecord> Eq for Key<R> {}

/// The store's way to ask for the records of a noun.
pub(crate) trait Lookup: CatalogRecord {
    /// The record of that id.
    fn by_id(meta: &dyn Meta, id: Self::Id) -> Result<Option<Self>> {
        meta.get(&id)
    }

    /// The record that a key names.
    fn find(meta: &dyn Meta, key: &Key<Self>) -> Result<Self> {
        let found: Option<Self> = match key {
            Key::Id(id) | Key::Owned { id, .. } | Key::Readable { id, .. } => meta.get(id)?,
            Key::Name { owner, name } => meta.get_named(*owner, name)?,
        };
        let record = found.ok_or_else(|| key.not_found())?;
        key.check(&record)?;
        match key {
            Key::Readable { reader, .. } if !reads(meta, *reader, &record)? => Err(key.not_found()),
            _ => Ok(record),
        }
    }

    /// Another record of its owner that has its name.
    fn taken_by(&self, meta: &dyn Meta) -> Result<Option<Self>> {
        let keys = self.keys();
        match keys.name {
            Some(name) => {
                let holder: Option<Self> = meta.get_named(keys.owner, name)?;
                Ok(holder.filter(|holder| holder.id() != self.id()))
            }
            None => Ok(None),
        }
    }

    /// The error for a request of a name that this record has.
    fn name_taken_error(&self) -> Error {
        Error::AlreadyExists {
            what: Self::KIND.what,
            name: self.label().into_owned(),
            id: self.id().to_string(),
        }
    }
}

impl<R: CatalogRecord> Lookup for R {}

/// Returns true if an account that may read a record may do so now: it may not read what is shared
/// with everybody as long as the owner blocks that.
fn reads<R: CatalogRecord>(meta: &dyn Meta, reader: AccountId, record: &R) -> Result<bool> {
    let owner = record.keys().owner;
    let is_named = record
        .sharing()
        .is_some_and(|it| it.accounts.contains(&reader));
    if owner == reader || is_named {
        return Ok(true);
    }
    let owner: Option<AccountRecord> = meta.get(&owner)?;
    Ok(owner.is_none_or(|owner| !R::is_hidden_by(&owner)))
}

/// The change that gives a record to another account.
pub(crate) fn given<R: Owned>(
    meta: &dyn Meta,
    id: &R::Id,
    to: AccountId,
) -> Result<(Vec<Change>, R)> {
    check_owner(meta, to)?;
    let mut record = R::find(meta, &Key::Id(id.clone()))?;
    if record.keys().owner == to {
        let what = R::KIND.what;
        return Err(Error::Invalid(format!(
            "{what} {:?} belongs to that account already; name others' by their ids",
            record.label()
        )));
    }
    record.give(to);
    if let Some(taken) = record.taken_by(meta)? {
        return Err(taken.name_taken_error());
    }
    Ok((vec![Change::put(&record)], record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::SnapshotId;

    #[test]
    fn a_text_is_an_id_or_a_name() {
        let id = SnapshotId::from_low_bits([7; 9]);
        let key = SnapshotKey::from(&*id.to_string());
        assert_eq!(key, Key::Id(id));
        assert_eq!(key.to_string(), id.to_string());
        for name in [
            "",
            "web",
            "snap-",
            "SNAP-07070707070707070",
            "vol-07070707070707070",
        ] {
            let key = SnapshotKey::from(name);
            let name = name.to_owned();
            let owner = AccountId::ADMINISTRATOR;
            assert_eq!(
                key,
                Key::Name {
                    owner,
                    name: name.clone()
                }
            );
            assert_eq!(key.to_string(), name);
        }
        let volume = VolumeKey::from("vol-07070707070707070");
        assert!(matches!(volume, Key::Id(_)));
    }
}
