//! The contract of a catalog, and typed access to the records of one kind.

use std::ops::ControlFlow;

use varve_content::RootId;

use crate::{
    Error, Result,
    format::{
        AccountId, CatalogRecord, FormatError, Kind, SnapshotId, Tags, Totals,
        keys::Holdings,
        record::{Entry, Grantee, RecordKey},
    },
};

/// All records, whatever their kind. [`Records`] gives typed access to one kind.
///
/// The list key of a record is its owner and its [label](CatalogRecord::label), as
/// [`list_key`](crate::format::keys::list_key) puts them together, and of a kind without labels its
/// id. Lists are ascending by the bytes of list keys.
pub trait Catalog {
    /// The record of that kind and id.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn entry(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>>;

    /// The record of that kind, owner and name.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn entry_named(
        &self,
        kind: &'static Kind,
        owner: AccountId,
        name: &str,
    ) -> Result<Option<Entry>>;

    /// A record of that kind that has all of the content with that
    /// [root](CatalogRecord::whole_root), of this owner if one is given.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn entry_of_root(
        &self,
        kind: &'static Kind,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<Entry>>;

    /// Records of a kind that pass a filter, with list keys from `from` on. `steps`, at least one,
    /// bounds the number of records examined.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn entries(
        &self,
        kind: &'static Kind,
        filter: &Filter,
        from: &[u8],
        steps: usize,
    ) -> Result<Page<Entry>>;

    /// What an account holds.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn holdings(&self, account: AccountId) -> Result<Holdings>;

    /// Number of the last catalog log record that was applied; 0 before the first.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn catalog_sequence(&self) -> Result<u64>;

    /// Shows `look` the catalog as it is at one moment. Others go on meanwhile, writes included.
    ///
    /// # Errors
    ///
    /// Errors of `look`, and [`Error::Shortage`] when the index has to be opened again meanwhile:
    /// the view until then was right, but the look must start over.
    fn view_catalog(&self, look: &mut dyn FnMut(&dyn CatalogView) -> Result<()>) -> Result<()>;
}

/// A catalog at one moment.
pub trait CatalogView {
    /// See [`Catalog::catalog_sequence`], at that moment.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn catalog_sequence(&self) -> Result<u64>;

    /// The totals, at that moment.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn totals(&self) -> Result<Totals>;

    /// Gives `look` all records of a kind, ascending by their ids, until it breaks off.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn all_entries(
        &self,
        kind: &'static Kind,
        look: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// A filter for lists of records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only records of this owner; `None`: of all.
    pub owner: Option<AccountId>,
    /// Only records whose names have this prefix; empty: all, including those without names.
    pub name_prefix: String,
    /// Only records that have all of these tags with these values.
    pub tags: Tags,
    /// Only records that are shared with these, whether or not others may read them, too; `None`:
    /// all.
    pub shared_with: Option<Grantee>,
    /// Only records that need this snapshot; `None`: all.
    pub snapshot: Option<SnapshotId>,
}

impl Filter {
    /// Returns true if the order of owners and labels alone does not find the records.
    pub(crate) fn needs_tags(&self) -> bool {
        !self.tags.is_empty() || self.shared_with.is_some() || self.snapshot.is_some()
    }
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Records, in the order of the list.
    pub records: Vec<T>,
    /// The list key to continue from; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// The least list key behind one.
pub(crate) fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// The remedy for an index that cannot be used.
pub(super) const REMEDY: &str = "`varved rebuild` rebuilds the index from packs and catalog log";

fn undecodable(error: FormatError) -> Error {
    Error::Index {
        verb: "decode a record",
        message: format!("{error}; {REMEDY}"),
    }
}

/// The records of one kind, in any catalog.
pub trait Records: Catalog {
    /// The record of that id.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn get<R: CatalogRecord>(&self, id: &R::Id) -> Result<Option<R>> {
        let entry = self.entry(R::KIND, id.as_key())?;
        let record = entry.map(|entry| entry.record().map_err(undecodable));
        record.transpose()
    }

    /// The record of that owner and name.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn get_named<R: CatalogRecord>(&self, owner: AccountId, name: &str) -> Result<Option<R>> {
        let entry = self.entry_named(R::KIND, owner, name)?;
        let record = entry.map(|entry| entry.record().map_err(undecodable));
        record.transpose()
    }

    /// A record that has all of the content with that root, of this owner if one is given.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn get_of_root<R: CatalogRecord>(
        &self,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<R>> {
        let entry = self.entry_of_root(R::KIND, root, owner)?;
        let record = entry.map(|entry| entry.record().map_err(undecodable));
        record.transpose()
    }

    /// Records that pass a filter, as [`Catalog::entries`] lists them.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn page<R: CatalogRecord>(
        &self,
        filter: &Filter,
        from: &[u8],
        steps: usize,
    ) -> Result<Page<R>> {
        let page = self.entries(R::KIND, filter, from, steps)?;
        let records = page.records.iter().map(|entry| entry.record());
        Ok(Page {
            records: records.collect::<Result<_, _>>().map_err(undecodable)?,
            next: page.next,
        })
    }

    /// All records of a kind of which there are few.
    ///
    /// # Errors
    ///
    /// If the catalog cannot be read.
    fn all<R: CatalogRecord>(&self) -> Result<Vec<R>> {
        let page = self.page(&Filter::default(), &[], usize::MAX)?;
        Ok(page.records)
    }
}

impl<C: Catalog + ?Sized> Records for C {}
