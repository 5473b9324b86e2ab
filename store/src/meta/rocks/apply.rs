//! Writing: a batch becomes one RocksDB write batch, totals included.

use std::{collections::BTreeMap, fmt, ops::SubAssign};

use rocksdb::{WriteBatch, WriteOptions};

use super::{Database, Known, REMEDY, RocksMeta, failed_at};
use crate::{
    Error, Result,
    format::{Location, PackId, PackKind, PackPhase, PackState, StoreId, keys},
    meta::{Batch, Meta, Outcome, Totals, batch::RowFate},
};

impl Meta for RocksMeta {
    fn apply(&self, batch: Batch, sync: bool) -> Result<Outcome> {
        let mut applying = self.applying.lock();
        if let Some(reason) = self.failed.get() {
            return Err(Error::Poisoned {
                reason: reason.clone(),
            });
        }
        self.go_on(&mut applying)?;
        if let Some(outcome) = applying.came_back(&batch) {
            return Ok(outcome);
        }
        let database = self.database()?;
        let before = *self.known.read();
        let mut totals = before.totals;
        let mut write = WriteBatch::default();
        let mut rows = Rows {
            database: &database,
            batch: &batch,
            packs: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        rows.add(&mut write, &mut totals)?;
        let outcome = rows.outcome;
        database.add_packs(&batch, &mut write, &mut totals)?;
        let after = Known {
            last_pack_number: before.last_pack_number.max(batch.last_pack_number()),
            catalog_sequence: batch.sequence_after(before.catalog_sequence)?,
            totals: {
                if batch.clears_the_catalog() {
                    database.clear_catalog(&mut write, &mut totals)?;
                }
                database.add_catalog(&batch, &mut write, &mut totals)?;
                totals
            },
        };
        let family = database.family(keys::META)?;
        write.put_cf(family, keys::TOTALS, after.totals.encode());
        write.put_cf(
            family,
            keys::CATALOG_SEQUENCE,
            keys::encode_sequence(after.catalog_sequence),
        );
        write.put_cf(
            family,
            keys::HOLDINGS_COUNTED,
            keys::encode_sequence(after.catalog_sequence),
        );
        // As long as no pack was forgotten, the states of the packs have this number.
        if batch.packs.values().any(Option::is_none) {
            write.put_cf(
                family,
                keys::LAST_PACK_NUMBER,
                keys::encode_sequence(after.last_pack_number),
            );
        }
        if let Some(run) = &batch.last_run {
            write.put_cf(family, keys::LAST_RUN, run.encode());
        }
        if let Err(error) = database.write(write, sync) {
            let tried = (batch, outcome);
            return Err(self.interrupted(&mut applying, tried, before, after, error));
        }
        *self.known.write() = after;
        Ok(outcome)
    }

    fn totals(&self) -> Result<Totals> {
        Ok(self.known.read().totals)
    }

    fn is_healthy(&self) -> bool {
        self.failed.get().is_none()
    }

    fn writes_again(&self) -> Result<()> {
        if let Some(reason) = self.failed.get() {
            return Err(Error::Poisoned {
                reason: reason.clone(),
            });
        }
        self.go_on(&mut self.applying.lock())
    }
}

impl Database {
    /// Writes the store's id, and not only to the log, which damage may take as a whole.
    pub(super) fn begin(&self, store: StoreId) -> Result<()> {
        let family = self.family(keys::META)?;
        let mut write = WriteBatch::default();
        write.put_cf(family, keys::IDENTITY, keys::Identity { store }.encode());
        write.put_cf(family, keys::TAGS_INDEXED, []);
        write.put_cf(family, keys::ROOTS_INDEXED, []);
        write.put_cf(family, keys::HOLDINGS_COUNTED, keys::encode_sequence(0));
        self.put(write, true)?;
        self.db
            .flush_cf(family)
            .map_err(|error| failed_at(&self.path, "write the index in", error))
    }

    pub(super) fn put(&self, write: WriteBatch, sync: bool) -> Result<()> {
        self.write(write, sync)
            .map_err(|error| failed_at(&self.path, "write the index in", error))
    }

    fn write(&self, write: WriteBatch, sync: bool) -> std::result::Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(write, &options)
    }

    fn add_packs(&self, batch: &Batch, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        let family = self.family(keys::PACKS)?;
        for (pack, state) in &batch.packs {
            let is_known = self.pack_state(*pack)?.is_some();
            match state {
                Some(state) => {
                    if !is_known {
                        add(&mut totals.packs, 1)?;
                    }
                    write.put_cf(family, PackState::key_of(*pack), state.encode());
                }
                None if is_known => {
                    take(&mut totals.packs, 1)?;
                    write.delete_cf(family, PackState::key_of(*pack));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// The rows that a batch changes.
struct Rows<'a> {
    database: &'a Database,
    batch: &'a Batch,
    /// The packs that were asked for, and whether they are there.
    packs: BTreeMap<PackId, bool>,
    outcome: Outcome,
}

impl Rows<'_> {
    fn add(&mut self, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        let batch = self.batch;
        let present = self.database.rows(batch.rows.keys())?;
        let chunks = self.database.family(keys::CHUNKS)?;
        let nodes = self.database.family(keys::NODES)?;
        for ((name, change), present) in batch.rows.iter().zip(present) {
            let fate = change.decide(present, |pack| self.is_there(pack))?;
            self.outcome.note(*name, *change, fate);
            let Some(new) = changed(present, fate) else {
                continue;
            };
            let family = match name.kind().pack_kind() {
                PackKind::Chunks => {
                    replace(&mut totals.chunks, present.map(|_| 1), new.map(|_| 1))?;
                    let plain = |row: Option<Location>| row.map(|it| it.payload.plain_bytes.into());
                    replace(&mut totals.chunk_bytes, plain(present), plain(new))?;
                    chunks
                }
                PackKind::Nodes => {
                    replace(&mut totals.nodes, present.map(|_| 1), new.map(|_| 1))?;
                    nodes
                }
            };
            let record = |row: Option<Location>| row.map(|it| it.payload.record_bytes());
            replace(&mut totals.stored_bytes, record(present), record(new))?;
            match new {
                Some(location) => write.put_cf(family, name.as_bytes(), location.encode()),
                None => write.delete_cf(family, name.as_bytes()),
            }
        }
        Ok(())
    }

    /// Returns true if a pack is there, by the batch or else by the index.
    fn is_there(&mut self, pack: PackId) -> Result<bool> {
        if let Some(said) = self.batch.says_of(pack) {
            return Ok(said);
        }
        if let Some(known) = self.packs.get(&pack) {
            return Ok(*known);
        }
        let state = self.database.pack_state(pack)?;
        let is_there = state.is_some_and(|state| state.phase != PackPhase::Emptied);
        self.packs.insert(pack, is_there);
        Ok(is_there)
    }
}

/// Returns the new row; `None` if the row stays as it is.
fn changed(present: Option<Location>, fate: RowFate) -> Option<Option<Location>> {
    let new = match fate {
        RowFate::Stays => return None,
        RowFate::Becomes(location) => Some(location),
        RowFate::Goes => None,
    };
    (new != present).then_some(new)
}

/// Puts one amount in the place of another in a total.
fn replace(total: &mut u64, present: Option<u64>, new: Option<u64>) -> Result<()> {
    take(total, present.unwrap_or_default())?;
    add(total, new.unwrap_or_default())
}

pub(super) fn add(total: &mut u64, amount: u64) -> Result<()> {
    *total = total.checked_add(amount).ok_or_else(|| {
        Error::Limit(format!(
            "{amount} more than a total of {total} cannot be counted"
        ))
    })?;
    Ok(())
}

/// Subtracts an amount from the total that it was added to. Both come from disk, and may disagree.
pub(super) fn take<T>(total: &mut T, amount: T) -> Result<()>
where
    T: Copy + fmt::Display + PartialOrd + SubAssign,
{
    if amount > *total {
        return Err(Error::Index {
            verb: "keep its totals",
            message: format!("{amount} is to be taken from a total of {total}; {REMEDY}"),
        });
    }
    *total -= amount;
    Ok(())
}
