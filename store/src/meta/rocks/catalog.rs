//! The catalog: records by id; ids by label, by tag and by root; alike for all kinds.

use std::collections::BTreeMap;

use rocksdb::{DB, DBRawIterator, IteratorMode, SnapshotWithThreadMode, WriteBatch};

use varve_content::RootId;

use super::{
    Database, REMEDY, RocksMeta,
    apply::{add, take},
    undecodable, unreadable,
};
use crate::{
    Error, Result,
    format::{
        AccountId, Change, Kind,
        keys::{self, Counts, Holdings},
        record::{Entry, OwnedKeys},
    },
    meta::{Batch, Catalog, CatalogView, Filter, Page, Totals, behind},
};

/// Bytes of entries written at once to fill a family that an index lacked.
const FILL_BATCH_BYTES: usize = 1 << 20;

/// Greater than every key of the catalog. Only list keys of accounts begin with this byte, and
/// theirs are followed by a number of less than 2^40.
const BEHIND_ALL_KEYS: [u8; 16] = [0xff; 16];

/// The keys of a record's tags, of those whom it is shared with, and of the snapshots that it
/// needs.
fn tag_keys(record: &OwnedKeys) -> Vec<Vec<u8>> {
    let list_key = record.list_key();
    let tags = record.tags.iter();
    let tags = tags.map(|(key, value)| keys::tag_prefix(key, value));
    let grantees = record.shared_with.iter().copied().map(keys::grantee_prefix);
    let snapshots = record.snapshots.iter().copied().map(keys::snapshot_prefix);
    let prefixes = tags.chain(grantees).chain(snapshots);
    prefixes
        .map(|prefix| [&*prefix, &*list_key].concat())
        .collect()
}

/// The prefixes of the keys that all records have which pass a filter.
fn prefixes(filter: &Filter) -> impl Iterator<Item = Vec<u8>> {
    let tags = filter.tags.iter();
    let tags = tags.map(|(key, value)| keys::tag_prefix(key, value));
    tags.chain(filter.shared_with.map(keys::grantee_prefix))
        .chain(filter.snapshot.map(keys::snapshot_prefix))
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

/// What a filter makes of a list key.
enum Verdict {
    /// The record may pass.
    Look,
    /// No record before this key passes.
    Skip(Vec<u8>),
    /// No record from here on passes.
    End,
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
        let owner = self.filter.owner.unwrap_or_default();
        from.to_vec()
            .max(keys::list_key(owner, &self.filter.name_prefix))
    }

    fn judge(&self, key: &[u8]) -> Result<Verdict> {
        let (owner, label) = match self.kind.labels {
            Some(_) => keys::split_list_key(key).map_err(undecodable)?,
            None => (AccountId::ADMINISTRATOR, key),
        };
        let prefix = &*self.filter.name_prefix;
        let is_wanted = self.filter.owner.is_none_or(|wanted| wanted == owner);
        if is_wanted && label.starts_with(prefix.as_bytes()) {
            return Ok(Verdict::Look);
        }
        // The records of one owner are next to each other, and the list began at the first.
        if self.filter.owner.is_some() {
            return Ok(Verdict::End);
        }
        let next = match label < prefix.as_bytes() {
            true => Some(owner),
            false => AccountId::from_number(owner.number() + 1),
        };
        Ok(next.map_or(Verdict::End, |owner| {
            Verdict::Skip(keys::list_key(owner, prefix))
        }))
    }

    /// Records by owner and label, or by id where there are no labels.
    fn in_order(&self, from: &[u8], steps: usize) -> Result<Page<Entry>> {
        let order = self.kind.labels.unwrap_or(self.kind.records);
        let mut entries = self.view.raw_iterator_cf(self.database.family(order)?);
        entries.seek(self.start(from));
        let mut page = Page {
            records: Vec::new(),
            next: None,
        };
        let mut next = from.to_vec();
        for _ in 0..steps {
            entries.status().map_err(unreadable)?;
            let Some((key, value)) = entries.item() else {
                return Ok(page);
            };
            match self.judge(key)? {
                Verdict::Look => {
                    match self.kind.labels {
                        Some(_) => page.records.extend(self.record(value, "name")?),
                        None => page.records.push(Entry::new(self.kind, value.to_vec())),
                    }
                    next = behind(key);
                    entries.next();
                }
                Verdict::Skip(to) => {
                    entries.seek(&to);
                    next = to;
                }
                Verdict::End => return Ok(page),
            }
        }
        page.next = Some(next);
        Ok(page)
    }

    /// Records by owner and label that have all of the tags, and are shared as the filter wants.
    ///
    /// Each tag gives its first list key from `from` on. If all tags give the same, the record has
    /// all tags; if not, the next candidate is the greatest of them. So a key skipped by a rare tag
    /// is skipped by all. Whom a record is shared with is a tag in this.
    fn tagged(&self, tags: &'static str, from: &[u8], steps: usize) -> Result<Page<Entry>> {
        let family = self.database.family(tags)?;
        let mut wanted: Vec<_> = prefixes(self.filter)
            .map(|prefix| (prefix, self.view.raw_iterator_cf(family)))
            .collect();
        let mut page = Page {
            records: Vec::new(),
            next: None,
        };
        let mut from = self.start(from);
        for _ in 0..steps.div_ceil(wanted.len().max(1)) {
            let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
            let mut is_one = true;
            for (tag, keys) in &mut wanted {
                let Some(found) = first_behind(keys, tag, &from)? else {
                    return Ok(page);
                };
                is_one &= last.as_ref().is_none_or(|(key, _)| *key == found.0);
                last = last.max(Some(found));
            }
            let Some((key, id)) = last else {
                return Ok(page);
            };
            from = match self.judge(&key)? {
                Verdict::Look => key,
                Verdict::Skip(to) => {
                    from = to;
                    continue;
                }
                Verdict::End => return Ok(page),
            };
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

    fn entry_named(
        &self,
        kind: &'static Kind,
        owner: AccountId,
        name: &str,
    ) -> Result<Option<Entry>> {
        let id = match kind.labels {
            Some(family) => self.get(family, &keys::list_key(owner, name))?,
            None => Some(name.as_bytes().to_vec()),
        };
        let Some(id) = id else {
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
            _ if !filter.needs_tags() => lists.in_order(from, steps),
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

    fn holdings(&self, account: AccountId) -> Result<Holdings> {
        match self.get(keys::META, &Holdings::key_of(account))? {
            Some(value) => Holdings::decode(&value).map_err(undecodable),
            None => Ok(Holdings::default()),
        }
    }

    /// Counts the holdings in an index that is older than they are, or that an older program has
    /// changed since.
    pub(super) fn count_holdings(&self) -> Result<()> {
        let sequence = self.get(keys::META, keys::CATALOG_SEQUENCE)?;
        let sequence = sequence.unwrap_or_else(|| keys::encode_sequence(0).to_vec());
        if self.get(keys::META, keys::HOLDINGS_COUNTED)?.as_ref() == Some(&sequence) {
            return Ok(());
        }
        let mut all: BTreeMap<AccountId, Holdings> = BTreeMap::new();
        for kind in self.kinds.iter() {
            let records = self.family(kind.records)?;
            for entry in self.db.iterator_cf(records, IteratorMode::Start) {
                let (_, value) = entry.map_err(unreadable)?;
                let record = keys_of(&Entry::new(kind, value.into_vec()))?;
                if record.holdings != Holdings::default() {
                    let sum = all.entry(record.owner).or_default();
                    *sum = sum.plus(record.holdings);
                }
            }
        }
        let family = self.family(keys::META)?;
        let mut write = WriteBatch::default();
        write.delete_range_cf(family, keys::HOLDINGS, keys::BEHIND_HOLDINGS);
        for (account, holdings) in all {
            write.put_cf(family, Holdings::key_of(account), holdings.encode());
        }
        write.put_cf(family, keys::HOLDINGS_COUNTED, sequence);
        self.put(write, true)
    }

    fn entry_of_root(
        &self,
        kind: &'static Kind,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<Entry>> {
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
        let mut from = Vec::new();
        while let Some((key, id)) = first_behind(&mut ids, root.as_bytes(), &from)? {
            let found = lists.record(&id, "root")?;
            if let Some(found) = found
                && (owner.is_none() || owner == Some(keys_of(&found)?.owner))
            {
                return Ok(Some(found));
            }
            from = behind(&key);
        }
        Ok(None)
    }

    /// Removes all records. Takes one entry in each family, however many records there are.
    pub(super) fn clear_catalog(&self, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        for kind in self.kinds.iter() {
            for family in kind.families() {
                write.delete_range_cf(self.family(family)?, &[] as &[u8], &BEHIND_ALL_KEYS);
            }
        }
        let meta = self.family(keys::META)?;
        write.delete_range_cf(meta, keys::HOLDINGS, keys::BEHIND_HOLDINGS);
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

    fn entry_named(
        &self,
        kind: &'static Kind,
        owner: AccountId,
        name: &str,
    ) -> Result<Option<Entry>> {
        self.reading(|database| database.entry_named(kind, owner, name))
    }

    fn entry_of_root(
        &self,
        kind: &'static Kind,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<Entry>> {
        self.reading(|database| database.entry_of_root(kind, root, owner))
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

    fn holdings(&self, account: AccountId) -> Result<Holdings> {
        self.reading(|database| database.holdings(account))
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
    holdings: BTreeMap<AccountId, Holdings>,
}

impl<'a> Changes<'a> {
    fn new(database: &'a Database) -> Self {
        Self {
            database,
            records: BTreeMap::new(),
            ids: BTreeMap::new(),
            holdings: BTreeMap::new(),
        }
    }

    /// Changes what the owner of a record holds by it.
    fn hold(
        &mut self,
        record: &OwnedKeys,
        change: impl FnOnce(Holdings, Holdings) -> Option<Holdings>,
    ) -> Result<()> {
        if record.holdings == Holdings::default() {
            return Ok(());
        }
        let owner = record.owner;
        let before = match self.holdings.get(&owner) {
            Some(changed) => *changed,
            None => self.database.holdings(owner)?,
        };
        let after = change(before, record.holdings).ok_or_else(|| Error::Index {
            verb: "keep its totals",
            message: format!(
                "{:?} are to be taken from {before:?} of account {owner}; {REMEDY}",
                record.holdings
            ),
        })?;
        self.holdings.insert(owner, after);
        Ok(())
    }

    /// The id that has a list key.
    fn listed(&self, family: &'static str, key: Vec<u8>) -> Result<Option<Vec<u8>>> {
        let key = (family, key);
        match self.ids.get(&key) {
            Some(changed) => Ok(changed.clone()),
            None => self.database.get(family, &key.1),
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
            let key = record.list_key();
            self.ids.insert((labels, key), id.map(<[u8]>::to_vec));
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
            && let Some(holder) = self.listed(labels, record.list_key())?
            && holder != record.id
        {
            let holder = self.present(kind, &holder)?;
            return Err(Error::AlreadyExists {
                what: kind.what,
                name: record.label().to_owned(),
                id: match holder {
                    Some(holder) => keys_of(&holder)?.shown_id,
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
        self.hold(&record, |before, more| Some(before.plus(more)))?;
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
        self.hold(&present, Holdings::minus)?;
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
        let family = self.database.family(keys::META)?;
        for (account, holdings) in self.holdings {
            let key = Holdings::key_of(account);
            match holdings == Holdings::default() {
                true => write.delete_cf(family, key),
                false => write.put_cf(family, key, holdings.encode()),
            }
        }
        Ok(())
    }
}
