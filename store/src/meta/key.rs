//! Keys of records as users give them: an id or a name.
//!
//! The daemon makes a key of a text once, at its edge. Code that has an id passes [`Key::Id`].

use std::{
    fmt::{self, Debug, Display},
    str::FromStr,
};

use super::{Meta, Records as _, SnapshotRecord, VolumeRecord};
use crate::{Error, Result, format::CatalogRecord};

/// An id or a name. No name has the form of an id, so a text is one or the other.
pub enum Key<R: CatalogRecord> {
    /// An id.
    Id(R::Id),
    /// A name.
    Name(String),
}

/// Id or name of a snapshot.
pub type SnapshotKey = Key<SnapshotRecord>;
/// Id or name of a volume.
pub type VolumeKey = Key<VolumeRecord>;

impl<R> From<&str> for Key<R>
where
    R: CatalogRecord,
    R::Id: FromStr,
{
    /// A text that is not an id is a name, even if nothing has that name.
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(id) => Self::Id(id),
            Err(_) => Self::Name(text.to_owned()),
        }
    }
}

impl<R: CatalogRecord> Display for Key<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => Display::fmt(id, f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl<R: CatalogRecord> Debug for Key<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => Debug::fmt(id, f),
            Self::Name(name) => Debug::fmt(name, f),
        }
    }
}

impl<R: CatalogRecord> Clone for Key<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Id(id) => Self::Id(id.clone()),
            Self::Name(name) => Self::Name(name.clone()),
        }
    }
}

impl<R: CatalogRecord> PartialEq for Key<R> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Id(a), Self::Id(b)) => a == b,
            (Self::Name(a), Self::Name(b)) => a == b,
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

    /// The record of that name.
    fn by_name(meta: &dyn Meta, name: &str) -> Result<Option<Self>> {
        meta.get_named(name)
    }

    /// The record that a key names.
    fn find(meta: &dyn Meta, key: &Key<Self>) -> Result<Self> {
        let found = match key {
            Key::Id(id) => meta.get(id)?,
            Key::Name(name) => meta.get_named(name)?,
        };
        found.ok_or_else(|| Error::NotFound {
            what: Self::KIND.what,
            name: key.to_string(),
        })
    }

    /// Another record that has its name.
    fn taken_by(&self, meta: &dyn Meta) -> Result<Option<Self>> {
        match self.keys().name {
            Some(name) => {
                let owner: Option<Self> = meta.get_named(name)?;
                Ok(owner.filter(|owner| owner.id() != self.id()))
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
            assert_eq!(key, Key::Name(name.to_owned()));
            assert_eq!(key.to_string(), name);
        }
        let volume = VolumeKey::from("vol-07070707070707070");
        assert!(matches!(volume, Key::Id(_)));
    }
}
