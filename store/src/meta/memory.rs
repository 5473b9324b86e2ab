//! Index and catalog in memory: the model that [`RocksMeta`](super::RocksMeta) is compared with,
//! and a quick stand-in for it in tests. Every derived value is computed on request.

use std::{collections::BTreeMap, ops::ControlFlow};

use parking_lot::Mutex;
use varve_content::RootId;

use super::{
    Batch, Catalog, CatalogView, Filter, Index, IndexView, Meta, Outcome, PackPhase, PackState,
    Page, Totals,
    batch::{CheckpointStep, RowFate},
};
use crate::{
    Error, Result,
    format::{
        AccountId, Change, Kind, LastRun, Location, Name, PackId, PackKind,
        catalog_log::Record,
        keys::Holdings,
        pack::RecordKind,
        record::{Entry, OwnedKeys},
    },
};

/// Index and catalog that are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryMeta(Mutex<Model>);

#[derive(Debug, Clone, Default)]
struct Model {
    rows: BTreeMap<Name, Location>,
    packs: BTreeMap<u64, PackState>,
    last_pack_number: u64,
    last_run: Option<LastRun>,
    /// By the numbers of their kinds.
    records: BTreeMap<u8, Records>,
    catalog_sequence: u64,
}

/// The records of a kind, by id.
#[derive(Debug, Clone)]
struct Records {
    kind: &'static Kind,
    by_id: BTreeMap<Vec<u8>, Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    entry: Entry,
    keys: OwnedKeys,
}

impl Kept {
    fn list_key(&self) -> Vec<u8> {
        match self.entry.kind().labels {
            Some(_) => self.keys.list_key(),
            None => self.keys.id.clone(),
        }
    }

    fn passes(&self, filter: &Filter) -> bool {
        let prefix = &*filter.name_prefix;
        let name = self.keys.name.as_deref();
        let tags = &self.keys.tags;
        filter.owner.is_none_or(|owner| owner == self.keys.owner)
            && (prefix.is_empty() || name.is_some_and(|name| name.starts_with(prefix)))
            && (filter.tags.iter()).all(|(key, value)| tags.get(key) == Some(value))
            && (filter.shared_with).is_none_or(|wanted| self.keys.shared_with.contains(&wanted))
            && (filter.snapshot).is_none_or(|wanted| self.keys.snapshots.contains(&wanted))
    }
}

impl Model {
    /// The totals of all records.
    fn sum(&self) -> Totals {
        let mut totals = Totals {
            packs: self.packs.len() as u64,
            ..Totals::default()
        };
        for (name, location) in &self.rows {
            match name.kind() {
                RecordKind::Chunk => {
                    totals.chunks += 1;
                    totals.chunk_bytes += u64::from(location.payload.plain_bytes);
                }
                RecordKind::Leaf | RecordKind::Inner | RecordKind::Root => totals.nodes += 1,
            }
            totals.stored_bytes += location.payload.record_bytes();
        }
        for records in self.records.values() {
            if let Some(count) = totals.count_mut(records.kind) {
                *count = records.by_id.len() as u64;
            }
            let sizes = records.by_id.values();
            totals.logical_bytes += sizes
                .map(|it| u128::from(it.keys.logical_bytes))
                .sum::<u128>();
        }
        totals
    }

    fn records(&self, kind: &Kind) -> impl Iterator<Item = &Kept> {
        let records = self.records.get(&kind.number);
        records
            .into_iter()
            .flat_map(|records| records.by_id.values())
    }

    fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Delete(gone) => {
                if let Some(records) = self.records.get_mut(&gone.kind().number) {
                    records.by_id.remove(gone.key());
                }
                Ok(())
            }
        }
    }

    fn put(&mut self, entry: Entry) -> Result<()> {
        let kind = entry.kind();
        let keys = entry.keys().map_err(|error| Error::Index {
            verb: "decode a record",
            message: error.to_string(),
        })?;
        let has_its_label = |other: &&Kept| {
            other.keys.owner == keys.owner
                && other.keys.label() == keys.label()
                && other.keys.id != keys.id
        };
        if let Some(taken) = self.records(kind).find(has_its_label) {
            return Err(Error::AlreadyExists {
                what: kind.what,
                name: keys.label().to_owned(),
                id: taken.keys.shown_id.clone(),
            });
        }
        let records = self.records.entry(kind.number).or_insert_with(|| Records {
            kind,
            by_id: BTreeMap::new(),
        });
        let id = keys.id.clone();
        records.by_id.insert(id, Kept { entry, keys });
        Ok(())
    }
}

impl Index for MemoryMeta {
    fn lookup(&self, names: &[Name]) -> Result<Vec<Option<Location>>> {
        let model = self.0.lock();
        let rows = names.iter().map(|name| model.rows.get(name).copied());
        Ok(rows.collect())
    }

    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>> {
        let state = self.0.lock().packs.get(&pack.number).copied();
        Ok(state.filter(|state| state.pack == pack))
    }

    fn pack_states(&self) -> Result<Vec<PackState>> {
        Ok(self.0.lock().packs.values().copied().collect())
    }

    fn last_pack_number(&self) -> Result<u64> {
        Ok(self.0.lock().last_pack_number)
    }

    fn last_run(&self) -> Result<Option<LastRun>> {
        Ok(self.0.lock().last_run.clone())
    }

    fn view(&self, look: &mut dyn FnMut(&dyn IndexView) -> Result<()>) -> Result<()> {
        let model = self.0.lock().clone();
        look(&model)
    }
}

impl IndexView for Model {
    fn pack_states(&self) -> Result<Vec<PackState>> {
        Ok(self.packs.values().copied().collect())
    }

    fn scan_from(
        &self,
        kind: PackKind,
        from: &[u8; 32],
        row: &mut dyn FnMut(Name, Location) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut rows: Vec<_> = (self.rows.iter())
            .filter(|(name, _)| name.kind().pack_kind() == kind && name.as_bytes() >= from)
            .collect();
        rows.sort_unstable_by_key(|(name, _)| name.as_bytes());
        let _ = rows
            .into_iter()
            .try_for_each(|(name, location)| row(*name, *location));
        Ok(())
    }
}

impl Catalog for MemoryMeta {
    fn entry(&self, kind: &'static Kind, id: &[u8]) -> Result<Option<Entry>> {
        let model = self.0.lock();
        let mut records = model.records(kind);
        Ok(records
            .find(|it| it.keys.id == id)
            .map(|it| it.entry.clone()))
    }

    fn entry_named(
        &self,
        kind: &'static Kind,
        owner: AccountId,
        name: &str,
    ) -> Result<Option<Entry>> {
        let model = self.0.lock();
        let mut records = model.records(kind);
        let found =
            records.find(|it| it.keys.owner == owner && it.keys.name.as_deref() == Some(name));
        Ok(found.map(|it| it.entry.clone()))
    }

    fn entry_of_root(
        &self,
        kind: &'static Kind,
        root: RootId,
        owner: Option<AccountId>,
    ) -> Result<Option<Entry>> {
        let model = self.0.lock();
        let has_roots = kind.roots.is_some();
        let mut records = model.records(kind);
        let found = records.find(|it| {
            let is_owners = owner.is_none_or(|owner| owner == it.keys.owner);
            has_roots && is_owners && it.keys.root == Some(root)
        });
        Ok(found.map(|it| it.entry.clone()))
    }

    fn entries(
        &self,
        kind: &'static Kind,
        filter: &Filter,
        from: &[u8],
        steps: usize,
    ) -> Result<Page<Entry>> {
        let model = self.0.lock();
        let records = model.records(kind);
        let mut found: Vec<_> = records
            .filter(|it| &*it.list_key() >= from && it.passes(filter))
            .collect();
        found.sort_unstable_by_key(|it| it.list_key());
        let next = found.get(steps).map(|next| next.list_key());
        found.truncate(steps);
        Ok(Page {
            records: found.into_iter().map(|it| it.entry.clone()).collect(),
            next,
        })
    }

    fn holdings(&self, account: AccountId) -> Result<Holdings> {
        let model = self.0.lock();
        let records = model.records.values();
        let records = records.flat_map(|records| records.by_id.values());
        let owned = records.filter(|it| it.keys.owner == account);
        Ok(owned.fold(Holdings::default(), |sum, it| sum.plus(it.keys.holdings)))
    }

    fn catalog_sequence(&self) -> Result<u64> {
        Ok(self.0.lock().catalog_sequence)
    }

    fn view_catalog(&self, look: &mut dyn FnMut(&dyn CatalogView) -> Result<()>) -> Result<()> {
        let model = self.0.lock().clone();
        look(&model)
    }
}

impl CatalogView for Model {
    fn catalog_sequence(&self) -> Result<u64> {
        Ok(self.catalog_sequence)
    }

    fn totals(&self) -> Result<Totals> {
        Ok(self.sum())
    }

    fn all_entries(
        &self,
        kind: &'static Kind,
        look: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = self
            .records(kind)
            .try_for_each(|record| look(record.entry.clone()));
        Ok(())
    }
}

impl Meta for MemoryMeta {
    fn apply(&self, batch: Batch, _sync: bool) -> Result<Outcome> {
        let mut current = self.0.lock();
        let mut model = current.clone();
        model.catalog_sequence = batch.sequence_after(model.catalog_sequence)?;
        model.last_pack_number = model.last_pack_number.max(batch.last_pack_number());
        if let Some(run) = &batch.last_run {
            model.last_run = Some(LastRun::clone(run));
        }
        let mut outcome = Outcome::default();
        let is_there = |pack: PackId| {
            let known = current.packs.get(&pack.number);
            let known =
                known.is_some_and(|state| state.pack == pack && state.phase != PackPhase::Emptied);
            batch.says_of(pack).unwrap_or(known)
        };
        for (name, change) in &batch.rows {
            let present = model.rows.get(name).copied();
            let fate = change.decide(present, |pack| Ok(is_there(pack)))?;
            outcome.note(*name, *change, fate);
            match fate {
                RowFate::Stays => {}
                RowFate::Becomes(location) => drop(model.rows.insert(*name, location)),
                RowFate::Goes => drop(model.rows.remove(name)),
            }
        }
        for (pack, state) in batch.packs {
            match state {
                Some(state) => drop(model.packs.insert(pack.number, state)),
                None => drop(model.packs.remove(&pack.number)),
            }
        }
        if batch.checkpoint == Some(CheckpointStep::Clear) {
            model.records.clear();
        }
        if let Some(CheckpointStep::Fill(changes)) = batch.checkpoint {
            changes
                .into_iter()
                .try_for_each(|change| model.change(change))?;
        }
        let changes = batch.catalog.into_iter().map(|(_, record)| record);
        for change in changes.flat_map(Record::into_changes) {
            model.change(change)?;
        }
        *current = model;
        Ok(outcome)
    }

    fn totals(&self) -> Result<Totals> {
        Ok(self.0.lock().sum())
    }

    fn is_healthy(&self) -> bool {
        true
    }
}
