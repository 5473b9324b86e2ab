//! The catalog: records by id; ids by label, by tag and by root; alike for all kinds.

use std::collections::BTreeMap;

use rocksdb::{DB, DBRawIterator, Direction, IteratorMode, SnapshotWithThreadMode, WriteBatch};

use varve_content::RootId;

use super::{
    Database, REMEDY, RocksMeta,
    apply::{add, take},
    undecodable, unreadable,
};
use crate::{
    Error, Result,
    format::{
        Change, Kind,
        keys::{self, Counts},
        record::{Entry, OwnedKeys},
    },
    meta::{Batch, Catalog, CatalogView, Filter, Page, Totals, behind},
};

/// Bytes of entries written at once to fill a family that an index lacked.
const FILL_BATCH_BYTES: usize = 1 << 20;

/// Greater than every key of the catalog: ids have 9 bytes, and everything else is UTF-8, in which
/// this byte does not occur.
const BEHIND_ALL_KEYS: [u8; 16] = [0xff; 16];

/// The keys of a record's tags.
fn tag_keys(record: &OwnedKeys) -> Vec<Vec<u8>> {
    let label = record.label().as_bytes();
    let tags = record.tags.iter();
    let keys = tags.map(|(key, value)| [&*keys::tag_prefix(key, value), label].concat());
    keys.collect()
}

/// The key of a record's root, if it has one.
fn root_keys(record: &OwnedKeys) -> Vec<Vec<u8>> {
    let root = record.root.iter();
    root.map(|root| [root.as_bytes(), &*record.id].concat())
        .collect()
}

/// The first key of a family that begins with `prefix` and continues with at least `from`: the part
/// behind the prefix, and the id.
fn first_behind(
    entries: &mut DBRawIterator<'_>,
    prefix: &[u8],
    from: &[u8],
) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    entries.seek([prefix, from].concat());
    entries.status().map_err(unreadable)?;
    Ok(entries.item().and_then(|(key, id)| {
        let rest = key.strip_prefix(prefix)?;
        Some((rest.to_vec(), id.to_vec()))
    }))
}

fn keys_of(entry: &Entry) -> Result<OwnedKeys> {
    entry.keys().map_err(undecodable)
}

/// All families as they were at one moment.
struct Lists<'a> {
    database: &'a Database,
    view: SnapshotWithThreadMode<'a, DB>,
    kind: &'static Kind,
    filter: &'a Filter,
}

impl Lists<'_> {
    /// The record of a list entry; `None` if the filter wants a name and the record has none.
    fn record(&self, id: &[u8], listed_by: &str) -> Result<Option<Entry>> {
        let family = self.database.family(self.kind.records)?;
        let value = self.view.get_cf(family, id).map_err(unreadable)?;
        let value = value.ok_or_else(|| Error::Index {
            verb: "list its catalog",
            message: format!(
                "{} {id:02x?} has a {listed_by} and no record; {REMEDY}",
                self.kind.what
            ),
        })?;
        let entry = Entry::new(self.kind, value);
        let is_named = self.filter.name_prefix.is_empty() || keys_of(&entry)?.name.is_some();
        Ok(is_named.then_some(entry))
    }

    fn start(&self, from: &[u8]) -> Vec<u8> {
        from.max(self.filter.name_prefix.as_bytes()).to_vec()
    }

    fn is_past(&self, key: &[u8]) -> bool {
        !key.starts_with(self.filter.name_prefix.as_bytes())
    }

    /// Records by label, or by id where there are no labels.
    fn in_order(&self, from: &[u8], steps: usize) -> Result<Page<Entry>> {
        let order = self.kind.labels.unwrap_or(self.kind.records);
        let start = self.start(from);
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut entries = self.view.iterator_cf(self.database.family(order)?, mode);
        let mut page = Page {
            records: Vec::new(),
            next: None,
        };
        let mut last = None;
        for _ in 0..steps {
            let Some(entry) = entries.next() else {
                return Ok(page);
            };
            let (key, value) = entry.map_err(unreadable)?;
            if self.is_past(&key) {
                return Ok(page);
            }
            match self.kind.labels {
                Some(_) => page.records.extend(self.record(&value, "name")?),
                None => page.records.push(Entry::new(self.kind, value.into_vec())),
            }
            last = Some(key);
        }
        page.next = last.map(|last| behind(&last));
        Ok(page)
    }

    /// Records by label that have all of the tags.
    ///
    /// Each tag gives its first label from `from` on. If all tags give the same label, the record
    /// has all tags; if not, the next candidate is the greatest of these labels. So a label skipped
    /// by a rare tag is skipped by all.
    fn tagged(&self, tags: &'static str, from: &[u8], steps: usize) -> Result<Page<Entry>> {
        let family = self.database.family(tags)?;
        let wanted = self.filter.tags.iter();
        let mut wanted: Vec<_> = wanted
            .map(|(key, value)| {
                (
                    keys::tag_prefix(key, value),
                    self.view.raw_iterator_cf(family),
                )
            })
            .collect();
        let mut page = Page {
            records: Vec::new(),
            next: None,
        };
        let mut from = self.start(from);
        for _ in 0..steps.div_ceil(wanted.len().max(1)) {
            let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
            let mut is_one = true;
            for (tag, labels) in &mut wanted {
                let Some(found) = first_behind(labels, tag, &from)? else {
                    return Ok(page);
                };
                is_one &= last.as_ref().is_none_or(|(label, _)| *label == found.0);
                last = last.max(Some(found));
            }
            let Some((label, id)) = last.filter(|(label, _)| !self.is_past(label)) else {
                return Ok(page);
            };
            from = label;
            if is_one {
                page.records.extend(self.record(&id, "tag")?);
                from = behind(&from);
            }
        }
        page.next = Some(from);
        Ok(page)
    }
}

impl Database {
    fn entry(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>> {
        let value = self.get(kind.records, id)?;
        Ok(value.map(|value| Entry::new(kind, value)))
    }

    /// The id that has a label.
    fn labelled(&self, kind: &'static Kind, label: &str) -> Result<Option<Vec<u8>>> {
        match kind.labels {
            Some(family) => self.get(family, label.as_bytes()),
            None => Ok(Some(label.as_bytes().to_vec())),
        }
    }

    fn entry_named(&self, kind: &'static Kind, name: &str) -> Result<Option<Entry>> {
        let Some(id) = self.labelled(kind, name)? else {
            return Ok(None);
        };
        // Deleted between the two look-ups, and the name perhaps given to another record: the
        // answer is that of a moment earlier.
        let Some(entry) = self.entry(kind, &id)? else {
            return Ok(None);
        };
        // A record without a name has its id as its label.
        let is_its_name = keys_of(&entry)?.name.is_some();
        Ok(is_its_name.then_some(entry))
    }

    fn entries(
        &self,
        kind: &'static Kind,
        filter: &Filter,
        from: &[u8],
        steps: usize,
    ) -> Result<Page<Entry>> {
        let lists = Lists {
            database: self,
            view: self.db.snapshot(),
            kind,
            filter,
        };
        match kind.tags {
            _ if filter.tags.is_empty() => lists.in_order(from, steps),
            Some(tags) => lists.tagged(tags, from, steps),
            // No record of the kind can have any.
            None => Ok(Page {
                records: Vec::new(),
                next: None,
            }),
        }
    }

    /// Fills the families of tags and of roots in an index that is older than these families.
    pub(super) fn fill_families(&self) -> Result<()> {
        self.fill(keys::TAGS_INDEXED, |kind| kind.tags, tag_keys)?;
        self.fill(keys::ROOTS_INDEXED, |kind| kind.roots, root_keys)
    }

    /// Fills a family of each kind, unless `mark` shows that this is done. An interrupted fill does
    /// no harm: it is done again.
    fn fill(
        &self,
        mark: &[u8],
        family_of: fn(&Kind) -> Option<&'static str>,
        keys_in: fn(&OwnedKeys) -> Vec<Vec<u8>>,
    ) -> Result<()> {
        if self.get(keys::META, mark)?.is_some() {
            return Ok(());
        }
        let mut write = WriteBatch::default();
        for kind in self.kinds.iter() {
            let Some(family) = family_of(kind) else {
                continue;
            };
            let (records, family) = (self.family(kind.records)?, self.family(family)?);
            for entry in self.db.iterator_cf(records, IteratorMode::Start) {
                let (_, value) = entry.map_err(unreadable)?;
                let record = keys_of(&Entry::new(kind, value.into_vec()))?;
                for key in keys_in(&record) {
                    write.put_cf(family, key, &record.id);
                }
                if write.size_in_bytes() >= FILL_BATCH_BYTES {
                    self.put(std::mem::take(&mut write), false)?;
                }
            }
        }
        write.put_cf(self.family(keys::META)?, mark, []);
        self.put(write, true)
    }

    fn entry_of_root(&self, kind: &'static Kind, root: RootId) -> Result<Option<Entry>> {
        let Some(family) = kind.roots else {
            return Ok(None);
        };
        let lists = Lists {
            database: self,
            view: self.db.snapshot(),
            kind,
            filter: &Filter::default(),
        };
        let mut ids = lists.view.raw_iterator_cf(self.family(family)?);
        match first_behind(&mut ids, root.as_bytes(), &[])? {
            Some((_, id)) => lists.record(&id, "root"),
            None => Ok(None),
        }
    }

    /// Removes all records. Takes one entry in each family, however many records there are.
    pub(super) fn clear_catalog(&self, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        for kind in self.kinds.iter() {
            for family in kind.families() {
                write.delete_range_cf(self.family(family)?, &[] as &[u8], &BEHIND_ALL_KEYS);
            }
        }
        totals.snapshots = 0;
        totals.logical_bytes = 0;
        totals.volumes = 0;
        totals.others = Counts::default();
        Ok(())
    }

    pub(super) fn add_catalog(
        &self,
        batch: &Batch,
        write: &mut WriteBatch,
        totals: &mut Totals,
    ) -> Result<()> {
        let mut all = Changes::new(self);
        let changes = batch
            .catalog
            .iter()
            .flat_map(|(_, record)| record.changes());
        for change in batch.checkpoint_changes().iter().chain(changes) {
            match change {
                Change::Put(entry) => all.put(entry.clone(), totals)?,
                Change::Delete(gone) => all.delete(gone.kind(), gone.key(), totals)?,
            }
        }
        all.write(write)
    }
}

impl Catalog for RocksMeta {
    fn entry(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>> {
        self.reading(|database| database.entry(kind, id))
    }

    fn entry_named(&self, kind: &'static Kind, name: &str) -> Result<Option<Entry>> {
        self.reading(|database| database.entry_named(kind, name))
    }

    fn entry_of_root(&self, kind: &'static Kind, root: RootId) -> Result<Option<Entry>> {
        self.reading(|database| database.entry_of_root(kind, root))
    }

    fn entries(
        &self,
        kind: &'static Kind,
        filter: &Filter,
        from: &[u8],
        steps: usize,
    ) -> Result<Page<Entry>> {
        self.reading(|database| database.entries(kind, filter, from, steps))
    }

    fn catalog_sequence(&self) -> Result<u64> {
        Ok(self.known.read().catalog_sequence)
    }

    fn view_catalog(&self, look: &mut dyn FnMut(&dyn CatalogView) -> Result<()>) -> Result<()> {
        self.look_at_catalog(look)
    }
}

/// A record as a batch leaves it: of which kind, and `None` if it is deleted.
type Changed = (&'static Kind, Option<Entry>);

/// The effect of one batch on the families of the catalog. Later changes see those before them.
struct Changes<'a> {
    database: &'a Database,
    /// By the numbers of their kinds, and by id.
    records: BTreeMap<(u8, Vec<u8>), Changed>,
    /// Ids by family and key: of labels, of tags, and of roots.
    ids: BTreeMap<(&'static str, Vec<u8>), Option<Vec<u8>>>,
}

impl<'a> Changes<'a> {
    fn new(database: &'a Database) -> Self {
        Self {
            database,
            records: BTreeMap::new(),
            ids: BTreeMap::new(),
        }
    }

    /// The id that has a label.
    fn labelled(&self, family: &'static str, label: &str) -> Result<Option<Vec<u8>>> {
        match self.ids.get(&(family, label.as_bytes().to_vec())) {
            Some(changed) => Ok(changed.clone()),
            None => self.database.get(family, label.as_bytes()),
        }
    }

    /// A record as earlier changes left it.
    fn present(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>> {
        match self.records.get(&(kind.number, id.to_vec())) {
            Some((_, changed)) => Ok(changed.clone()),
            None => self.database.entry(kind, id),
        }
    }

    /// Sets the entries that point to a record.
    fn point(&mut self, kind: &'static Kind, record: &OwnedKeys, id: Option<&[u8]>) {
        if let Some(labels) = kind.labels {
            let label = record.label().as_bytes().to_vec();
            self.ids.insert((labels, label), id.map(<[u8]>::to_vec));
        }
        for (family, keys) in [
            (kind.tags, tag_keys(record)),
            (kind.roots, root_keys(record)),
        ] {
            if let Some(family) = family {
                let keys = keys.into_iter();
                let keys = keys.map(|key| ((family, key), id.map(<[u8]>::to_vec)));
                self.ids.extend(keys);
            }
        }
    }

    fn put(&mut self, entry: Entry, totals: &mut Totals) -> Result<()> {
        let (kind, record) = (entry.kind(), keys_of(&entry)?);
        if let Some(labels) = kind.labels
            && let Some(owner) = self.labelled(labels, record.label())?
            && owner != record.id
        {
            let owner = self.present(kind, &owner)?;
            return Err(Error::AlreadyExists {
                what: kind.what,
                name: record.label().to_owned(),
                id: match owner {
                    Some(owner) => keys_of(&owner)?.shown_id,
                    None => "unknown".to_owned(),
                },
            });
        }
        self.delete(kind, &record.id, totals)?;
        if let Some(count) = totals.count_mut(kind) {
            add(count, 1)?;
        }
        // It cannot overflow with fewer than 2^64 records.
        totals.logical_bytes = (totals.logical_bytes).saturating_add(record.logical_bytes.into());
        self.point(kind, &record, Some(&record.id));
        self.records
            .insert((kind.number, record.id), (kind, Some(entry)));
        Ok(())
    }

    fn delete(&mut self, kind: &'static Kind, id: &[u8], totals: &mut Totals) -> Result<()> {
        let Some(present) = self.present(kind, id)? else {
            return Ok(());
        };
        let present = keys_of(&present)?;
        if let Some(count) = totals.count_mut(kind) {
            take(count, 1)?;
        }
        take(&mut totals.logical_bytes, present.logical_bytes.into())?;
        self.point(kind, &present, None);
        self.records.insert((kind.number, present.id), (kind, None));
        Ok(())
    }

    fn write(self, write: &mut WriteBatch) -> Result<()> {
        for ((_, id), (kind, entry)) in self.records {
            let records = self.database.family(kind.records)?;
            match entry {
                Some(entry) => write.put_cf(records, id, entry.bytes()),
                None => write.delete_cf(records, id),
            }
        }
        for ((family, key), id) in self.ids {
            let family = self.database.family(family)?;
            match id {
                Some(id) => write.put_cf(family, key, id),
                None => write.delete_cf(family, key),
            }
        }
        Ok(())
    }
}
