//! Records of the catalog that its log has lost, taken from the old index.
//!
//! A record is durable in the log before it is applied. So an index that has applied more records
//! than the log has is newer than the log, and has all records as they were then. A rebuild writes
//! the records that the log lacks to the log again, while the old index is still in its place: if
//! it is interrupted, the next one finds the rest of the work.
//!
//! It only adds and updates. A record that the log has and the old index does not have was deleted,
//! or is from a time line unknown to this index. It stays, and is named, so that it can be deleted
//! again.

use std::fmt;

use crate::{
    Error, Result,
    catalog_log::CatalogLog,
    format::{
        Change, FormatError, Kind, Kinds,
        catalog_log::{LOG_RECORD_BYTES_MAX, Record},
        record::Entry,
    },
    limits,
    meta::{AccountRecord, Batch, Catalog, Filter, Meta, SnapshotRecord, VolumeRecord},
};

/// Bytes of records that go to the log together. One more always fits.
const RECORD_BYTES: usize = LOG_RECORD_BYTES_MAX / 2;

/// A catalog log that has fewer records than were applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortLog {
    /// Records that the log has.
    pub records: u64,
    /// Records that the old index had applied.
    pub applied: u64,
    /// Descriptions of the records that were taken from the old index.
    pub restored: Vec<String>,
    /// Descriptions of the records that the log has and the old index does not have. They stay.
    pub kept: Vec<String>,
}

impl fmt::Display for ShortLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the catalog log had {} records, and the old index had applied {}",
            self.records, self.applied
        )?;
        for restored in &self.restored {
            write!(f, "\n{restored}")?;
        }
        for kept in &self.kept {
            write!(f, "\n{kept}")?;
        }
        Ok(())
    }
}

/// Brings the log and a catalog that was filled from it to the state of the old index, if that is
/// newer.
pub(super) async fn restore(
    meta: &dyn Meta,
    log: &mut CatalogLog,
    old: &dyn Catalog,
) -> Result<Option<ShortLog>> {
    let (records, applied) = (meta.catalog_sequence()?, old.catalog_sequence()?);
    if applied <= records {
        return Ok(None);
    }
    let mut short = ShortLog {
        records,
        applied,
        restored: Vec::new(),
        kept: Vec::new(),
    };
    for kind in Kinds::ALL.iter() {
        each(meta, kind, |entry| {
            let keys = entry.keys().map_err(undecodable)?;
            if old.entry(kind, &keys.id)?.is_none() {
                short.kept.push(format!(
                    "{} {:?} is in the log and not in the old index: it stays, delete it if it \
                    was deleted",
                    kind.what,
                    keys.label()
                ));
            }
            Ok(())
        })?;
    }
    for kind in Kinds::ALL.iter() {
        let mut entries = Vec::new();
        each(old, kind, |entry| {
            if let Some((entry, said)) = missing(meta, &entry)? {
                entries.push(entry);
                short.restored.push(said);
            }
            Ok(())
        })?;
        let mut some = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            bytes += entry.bytes().len();
            some.push(Change::Put(entry));
            if bytes > RECORD_BYTES {
                append(meta, log, std::mem::take(&mut some)).await?;
                bytes = 0;
            }
        }
        if !some.is_empty() {
            append(meta, log, some).await?;
        }
    }
    Ok(Some(short))
}

/// Makes changes durable in the log, and applies them.
async fn append(meta: &dyn Meta, log: &mut CatalogLog, changes: Vec<Change>) -> Result<()> {
    let record = Record::Several(changes);
    let sequence = log.append(&record).await?;
    let mut batch = Batch::default();
    batch.catalog(sequence, record);
    meta.apply(batch, true).map(drop)
}

/// The record that the catalog must get for one of the old index, and its description; `None` if
/// the catalog has the same.
fn missing(meta: &dyn Meta, old: &Entry) -> Result<Option<(Entry, String)>> {
    let keys = old.keys().map_err(undecodable)?;
    let (kind, mut entry) = (old.kind(), old.clone());
    let mut name = String::new();
    // The log has another record of that name, which was deleted before this one was made.
    if let Some(taken) = keys.name.as_deref()
        && let Some(holder) = meta.entry_named(kind, keys.owner, taken)?
        && holder.keys().map_err(undecodable)?.id != keys.id
    {
        let free = format!("restored-{}", keys.shown_id);
        entry = renamed(old, &free)?;
        name = format!(", as {free:?}: another {} has the name", kind.what);
    }
    let (what, label) = (kind.what, keys.label());
    Ok(match meta.entry(kind, &keys.id)? {
        Some(same) if same == entry => None,
        Some(_) => Some((
            entry,
            format!("{what} {label:?} was updated from the old index{name}"),
        )),
        None => Some((
            entry,
            format!("{what} {label:?} was restored from the old index{name}"),
        )),
    })
}

/// A record with another name. Of other kinds, the name is the id.
fn renamed(entry: &Entry, name: &str) -> Result<Entry> {
    if let Ok(account) = entry.record::<AccountRecord>() {
        let name = name.to_owned();
        return Ok(Entry::of(&AccountRecord { name, ..account }));
    }
    let name = Some(name.to_owned());
    if let Ok(snapshot) = entry.record::<SnapshotRecord>() {
        return Ok(Entry::of(&SnapshotRecord { name, ..snapshot }));
    }
    let volume = entry.record::<VolumeRecord>().map_err(undecodable)?;
    Ok(Entry::of(&VolumeRecord { name, ..volume }))
}

/// Shows all records of a kind.
fn each(
    catalog: &(impl Catalog + ?Sized),
    kind: &'static Kind,
    mut look: impl FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let mut next = Some(Vec::new());
    while let Some(from) = next {
        let page = catalog.entries(kind, &Filter::default(), &from, limits::PAGE_MAX)?;
        next = page.next;
        page.records.into_iter().try_for_each(&mut look)?;
    }
    Ok(())
}

fn undecodable(error: FormatError) -> Error {
    Error::Index {
        verb: "decode a record",
        message: error.to_string(),
    }
}
