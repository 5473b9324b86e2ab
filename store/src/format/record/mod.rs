//! The records of the catalog: one file per noun, and the registry of them all.
//!
//! A new noun is a file here, with a type that is a [`CatalogRecord`], and a line in
//! [`Kinds::ALL`]. Log, index and memory model know records only as [`Entry`]s: their bytes and
//! their [`Kind`].

pub mod access_key;
pub mod account;
pub mod copy;
pub mod image;
#[cfg(test)]
pub(crate) mod note;
pub mod remote;
pub mod sharing;
pub mod snapshot;
pub mod token;
pub mod volume;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Debug, Display},
    hash::Hash,
};

use varve_content::RootId;

pub use self::{
    access_key::AccessKeyRecord,
    account::AccountRecord,
    copy::CopyRecord,
    image::ImageRecord,
    remote::RemoteRecord,
    sharing::{Grantee, Sharing},
    snapshot::SnapshotRecord,
    token::TokenRecord,
    volume::VolumeRecord,
};
use super::{AccountId, FormatError, IdKind, RecordId, SnapshotId, keys, keys::Holdings};

/// Tags of a record, by their keys.
pub type Tags = BTreeMap<String, String>;

/// A record of the catalog.
pub trait CatalogRecord: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// Its id. No other record of the kind ever has the same.
    type Id: RecordKey;

    /// The kind of record, and the place of its records.
    const KIND: &'static Kind;

    /// The keys that find the record.
    fn keys(&self) -> Keys<'_, Self::Id>;

    /// Its bytes. Equal records have equal bytes.
    fn encode(&self) -> Vec<u8>;

    /// The record with these bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not valid.
    fn decode(bytes: &[u8]) -> Result<Self, FormatError>;

    /// Bytes that the record adds to [`Totals::logical_bytes`](super::Totals::logical_bytes).
    fn logical_bytes(&self) -> u64 {
        0
    }

    /// The roots whose content the store keeps as long as the record is there. A kind without any
    /// has to say so: garbage collection takes all content that no record names.
    fn roots(&self) -> Vec<RootId>;

    /// What its owner holds by it.
    fn holdings(&self) -> Holdings {
        Holdings::default()
    }

    /// The root of its content, if it has all of it: a key that finds the record, if its kind has a
    /// family for that.
    fn whole_root(&self) -> Option<RootId> {
        None
    }

    /// The snapshots that it needs: none of them is deleted as long as it is there. Each of them is
    /// a key that finds the record.
    fn snapshots(&self) -> Vec<SnapshotId> {
        Vec::new()
    }

    /// Who may read it beside its owner, if its kind can be shared: a key that finds the record.
    fn sharing(&self) -> Option<&Sharing> {
        None
    }

    /// Returns true if nobody sees what an account has shared with everybody, of this kind.
    fn is_hidden_by(_owner: &AccountRecord) -> bool {
        false
    }

    /// Its id.
    fn id(&self) -> Self::Id {
        self.keys().id
    }

    /// The label: the name of the record, or its id if it has no name. No two records of a kind
    /// and of one owner have the same label, because no name has the form of an id. Lists are in
    /// the order of owners, then of labels.
    fn label(&self) -> Cow<'_, str> {
        let keys = self.keys();
        match keys.name {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(keys.id.to_string()),
        }
    }
}

/// A record that users may tag.
pub trait Tagged: CatalogRecord {
    /// Its tags.
    fn tags_mut(&mut self) -> &mut Tags;
}

/// A record that belongs to an account.
pub trait Owned: CatalogRecord {
    /// Makes it belong to an account.
    fn give(&mut self, to: AccountId);
}

/// A record that its owner may share.
pub trait Shareable: CatalogRecord {
    /// Who may read it beside its owner.
    fn sharing_mut(&mut self) -> &mut Sharing;

    /// Returns true if an account shares no more records of the kind with everybody. `None`: the
    /// account has no record.
    fn is_private(owner: Option<&AccountRecord>) -> bool;
}

/// The keys that find a record.
#[derive(Debug, Copy, Clone)]
pub struct Keys<'a, I> {
    /// Its id.
    pub id: I,
    /// The account whose name it is: names are unique among the records of one owner. Of a kind
    /// without owners: the administrator.
    pub owner: AccountId,
    /// Its name, if it has one.
    pub name: Option<&'a str>,
    /// Its tags, if its kind can have any.
    pub tags: Option<&'a Tags>,
}

/// The id of a record, whatever its kind: a key of the index, and all that is left of a record when
/// it is deleted.
pub trait RecordKey: Clone + Ord + Hash + Debug + Display + Send + Sync + 'static {
    /// Its bytes as a key.
    fn as_key(&self) -> &[u8];

    /// Its bytes in a deletion.
    fn to_field(&self) -> Cow<'_, [u8]>;

    /// The id in the bytes of a deletion.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not valid.
    fn from_field(bytes: &[u8]) -> Result<Self, FormatError>;
}

impl<K: IdKind> RecordKey for RecordId<K> {
    fn as_key(&self) -> &[u8] {
        self.as_bytes()
    }

    fn to_field(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.as_bytes())
    }

    fn from_field(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(bytes)
    }
}

/// The total that counts a kind's records.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Counter {
    /// None: they are few, and counted when somebody asks.
    None,
    /// [`Totals::snapshots`](super::Totals::snapshots).
    Snapshots,
    /// [`Totals::volumes`](super::Totals::volumes).
    Volumes,
    /// [`Totals::others`](super::Totals::others).
    Others,
}

/// A noun: where its records are kept, in the catalog log and in the index.
#[derive(Copy, Clone)]
pub struct Kind {
    /// The name of the kind in texts: "snapshot".
    pub what: &'static str,
    /// Number of a put in the catalog log. A deletion has the number behind it.
    pub number: u8,
    /// Column family of the records, by id.
    pub records: &'static str,
    /// Column family of the ids, by owner and label. A kind without one is listed by id, and its
    /// records have no owners, and no names but their ids.
    pub labels: Option<&'static str>,
    /// Column family of the ids, by tag, owner and label, by those whom the record is shared with,
    /// owner and label, and by snapshot that it needs, owner and label.
    pub tags: Option<&'static str>,
    /// Column family of the ids, by [root](CatalogRecord::whole_root) and id.
    pub roots: Option<&'static str>,
    /// The total that counts its records.
    pub counter: Counter,
    keys: fn(&[u8]) -> Result<OwnedKeys, FormatError>,
    key_of_field: fn(&[u8]) -> Result<Vec<u8>, FormatError>,
}

impl Kind {
    /// A kind whose records are `R`. Its number and its families are on disk, and belong to it for
    /// ever.
    ///
    /// # Panics
    ///
    /// At compile time, for a number that [`Counts`](super::keys::Counts) has no place for.
    #[must_use]
    pub const fn of<R: CatalogRecord>(
        what: &'static str,
        number: u8,
        records: &'static str,
    ) -> Self {
        assert!(
            (number as usize) < super::keys::Counts::KINDS_MAX,
            "numbers of kinds are small"
        );
        Self {
            what,
            number,
            records,
            labels: None,
            tags: None,
            roots: None,
            counter: Counter::None,
            keys: owned_keys::<R>,
            key_of_field: key_of_field::<R>,
        }
    }

    /// The same with names.
    #[must_use]
    pub const fn with_labels(mut self, family: &'static str) -> Self {
        self.labels = Some(family);
        self
    }

    /// The same with tags.
    #[must_use]
    pub const fn with_tags(mut self, family: &'static str) -> Self {
        self.tags = Some(family);
        self
    }

    /// The same, found by their roots.
    #[must_use]
    pub const fn with_roots(mut self, family: &'static str) -> Self {
        self.roots = Some(family);
        self
    }

    /// The same, and counted.
    #[must_use]
    pub const fn with_counter(mut self, counter: Counter) -> Self {
        self.counter = counter;
        self
    }

    /// Number of a deletion in the catalog log.
    #[must_use]
    pub const fn deletion(&self) -> u8 {
        self.number + 1
    }

    /// Its column families.
    pub fn families(&self) -> impl Iterator<Item = &'static str> + use<> {
        [Some(self.records), self.labels, self.tags, self.roots]
            .into_iter()
            .flatten()
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Kind {}

impl Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// The kinds of records that a store knows. It never skips an unknown kind.
#[derive(Debug, Copy, Clone)]
pub struct Kinds(&'static [&'static Kind]);

impl Kinds {
    /// All kinds of this program: a line for each.
    pub const ALL: Self = Self(&[
        SnapshotRecord::KIND,
        VolumeRecord::KIND,
        CopyRecord::KIND,
        RemoteRecord::KIND,
        AccountRecord::KIND,
        TokenRecord::KIND,
        AccessKeyRecord::KIND,
        ImageRecord::KIND,
    ]);

    /// Each kind.
    pub fn iter(self) -> impl Iterator<Item = &'static Kind> {
        self.0.iter().copied()
    }
}

/// The keys of a record, without the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedKeys {
    /// Its id as a key.
    pub id: Vec<u8>,
    /// Its id as people see it.
    pub shown_id: String,
    /// See [`Keys::owner`].
    pub owner: AccountId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its tags.
    pub tags: Tags,
    /// Those whom it is shared with.
    pub shared_with: Vec<Grantee>,
    /// The snapshots that it needs.
    pub snapshots: Vec<SnapshotId>,
    /// The root of its content, if it has all of it.
    pub root: Option<RootId>,
    /// Bytes that the record adds to the sizes of snapshots.
    pub logical_bytes: u64,
    /// See [`CatalogRecord::roots`].
    pub roots: Vec<RootId>,
    /// See [`CatalogRecord::holdings`].
    pub holdings: Holdings,
}

impl OwnedKeys {
    /// See [`CatalogRecord::label`].
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.shown_id)
    }

    /// Its key in lists of a kind with labels.
    #[must_use]
    pub fn list_key(&self) -> Vec<u8> {
        keys::list_key(self.owner, self.label())
    }
}

fn owned_keys<R: CatalogRecord>(bytes: &[u8]) -> Result<OwnedKeys, FormatError> {
    let record = R::decode(bytes)?;
    let keys = record.keys();
    Ok(OwnedKeys {
        id: keys.id.as_key().to_vec(),
        shown_id: keys.id.to_string(),
        owner: keys.owner,
        name: keys.name.map(str::to_owned),
        tags: keys.tags.cloned().unwrap_or_default(),
        shared_with: record
            .sharing()
            .map(|sharing| sharing.grantees().collect())
            .unwrap_or_default(),
        snapshots: record.snapshots(),
        root: record.whole_root(),
        logical_bytes: record.logical_bytes(),
        roots: record.roots(),
        holdings: record.holdings(),
    })
}

fn key_of_field<R: CatalogRecord>(bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    R::Id::from_field(bytes).map(|id| id.as_key().to_vec())
}

/// A record as log and index keep it: its bytes, and its kind.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    kind: &'static Kind,
    bytes: Vec<u8>,
}

impl Entry {
    /// The entry of a record.
    #[must_use]
    pub fn of<R: CatalogRecord>(record: &R) -> Self {
        Self {
            kind: R::KIND,
            bytes: record.encode(),
        }
    }

    /// The entry with these bytes, which are checked when the record is asked for.
    #[must_use]
    pub const fn new(kind: &'static Kind, bytes: Vec<u8>) -> Self {
        Self { kind, bytes }
    }

    /// The entry with these bytes, checked.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not valid.
    pub fn decode(kind: &'static Kind, bytes: &[u8]) -> Result<Self, FormatError> {
        (kind.keys)(bytes)?;
        Ok(Self {
            kind,
            bytes: bytes.to_vec(),
        })
    }

    /// The kind of the record.
    #[must_use]
    pub const fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The keys that find the record.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not a valid record.
    pub fn keys(&self) -> Result<OwnedKeys, FormatError> {
        (self.kind.keys)(&self.bytes)
    }

    /// The record.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not a valid record, or if it is of another kind.
    pub fn record<R: CatalogRecord>(&self) -> Result<R, FormatError> {
        if self.kind != R::KIND {
            return Err(FormatError::differs(
                "kind of a record",
                R::KIND.what,
                self.kind.what,
            ));
        }
        R::decode(&self.bytes)
    }
}

impl Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys().map_err(|_| fmt::Error)?;
        write!(f, "{} {} {:?}", self.kind.what, keys.shown_id, self.bytes)
    }
}

/// A change of the catalog: a record is there from now on or has changed, or is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The record is there from now on, or has changed.
    Put(Entry),
    /// The record is gone.
    Delete(Deletion),
}

/// The keys of a deleted record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    kind: &'static Kind,
    /// Its id, as the log has it.
    field: Vec<u8>,
    /// Its id, as the index has it.
    key: Vec<u8>,
}

impl Deletion {
    /// The deletion of the record whose id has these bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError`] if the bytes are not valid.
    pub fn decode(kind: &'static Kind, field: &[u8]) -> Result<Self, FormatError> {
        Ok(Self {
            kind,
            key: (kind.key_of_field)(field)?,
            field: field.to_vec(),
        })
    }

    /// The kind of the deleted record.
    #[must_use]
    pub const fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// Its id as a key of the index.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Its id as the log has it.
    #[must_use]
    pub fn field(&self) -> &[u8] {
        &self.field
    }
}

impl Change {
    /// A record is there from now on, or has changed.
    #[must_use]
    pub fn put<R: CatalogRecord>(record: &R) -> Self {
        Self::Put(Entry::of(record))
    }

    /// Bytes that it takes at most in a record of the catalog log.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        let payload = match self {
            Self::Put(entry) => entry.bytes().len(),
            Self::Delete(deletion) => 1 + deletion.field().len(),
        };
        // Its number and its length.
        1 + size_of::<u32>() + payload
    }

    /// The record of that id is gone.
    #[must_use]
    pub fn delete<R: CatalogRecord>(id: &R::Id) -> Self {
        Self::Delete(Deletion {
            kind: R::KIND,
            field: id.to_field().into_owned(),
            key: id.as_key().to_vec(),
        })
    }

    /// The record that is put, if it is an `R`.
    #[must_use]
    pub fn as_put<R: CatalogRecord>(&self) -> Option<R> {
        match self {
            Self::Put(entry) => entry.record().ok(),
            Self::Delete(_) => None,
        }
    }

    /// The id of the record that is deleted, if it is an `R`.
    #[must_use]
    pub fn as_deleted<R: CatalogRecord>(&self) -> Option<R::Id> {
        match self {
            Self::Delete(gone) if gone.kind == R::KIND => R::Id::from_field(&gone.field).ok(),
            Self::Put(_) | Self::Delete(_) => None,
        }
    }
}

/// The name in a record: `text`, unless the record's flags say that it has none.
fn named(what: &'static str, text: String, has_none: bool) -> Result<Option<String>, FormatError> {
    match (has_none, text.is_empty()) {
        (false, _) => Ok(Some(text)),
        (true, true) => Ok(None),
        (true, false) => Err(FormatError::differs(
            what,
            "no name, as its flags say",
            format_args!("{text:?}"),
        )),
    }
}
