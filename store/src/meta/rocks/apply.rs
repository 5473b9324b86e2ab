//! Writing: a batch becomes one RocksDB write batch, totals included.

use std::{fmt, ops::SubAssign};

use rocksdb::{WriteBatch, WriteOptions};
use varve_content::ChunkId;

use super::{Database, Known, REMEDY, RocksMeta, failed_at};
use crate::{
    Error, Result,
    format::{PackState, StoreId, keys},
    meta::{Batch, Meta, NodeKey, Totals},
};

impl Meta for RocksMeta {
    fn apply(&self, batch: Batch, sync: bool) -> Result<()> {
        let mut applying = self.applying.lock();
        if let Some(reason) = self.failed.get() {
            return Err(Error::Poisoned {
                reason: reason.clone(),
            });
        }
        self.go_on(&mut applying)?;
        if applying.came_back(&batch) {
            return Ok(());
        }
        let database = self.database()?;
        let before = *self.known.read();
        let mut totals = before.totals;
        let mut write = WriteBatch::default();
        database.add_chunks(&batch, &mut write, &mut totals)?;
        database.add_nodes(&batch, &mut write, &mut totals)?;
        database.add_packs(&batch, &mut write, &mut totals)?;
        let after = Known {
            catalog_sequence: batch.sequence_after(before.catalog_sequence)?,
            totals: {
                database.add_catalog(batch.catalog.clone(), &mut write, &mut totals)?;
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
        if let Err(error) = database.write(write, sync) {
            return Err(self.interrupted(&mut applying, batch, before, after, error));
        }
        *self.known.write() = after;
        Ok(())
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
    /// Writes down whose index this is, and not only in the log, of which damage may take all.
    pub(super) fn begin(&self, store: StoreId) -> Result<()> {
        let family = self.family(keys::META)?;
        let mut write = WriteBatch::default();
        write.put_cf(family, keys::IDENTITY, keys::Identity { store }.encode());
        write.put_cf(family, keys::TAGS_INDEXED, []);
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

    fn add_chunks(&self, batch: &Batch, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        let family = self.family(keys::CHUNKS)?;
        let present = self.locations(keys::CHUNKS, batch.chunks.keys().map(ChunkId::as_bytes))?;
        for ((id, location), present) in batch.chunks.iter().zip(present) {
            match present {
                Some(present) if present == *location => continue,
                Some(present) => {
                    take(
                        &mut totals.chunk_bytes,
                        u64::from(present.payload.plain_bytes),
                    )?;
                    take(&mut totals.stored_bytes, present.payload.record_bytes())?;
                }
                None => add(&mut totals.chunks, 1)?,
            }
            add(
                &mut totals.chunk_bytes,
                u64::from(location.payload.plain_bytes),
            )?;
            add(&mut totals.stored_bytes, location.payload.record_bytes())?;
            write.put_cf(family, id.as_bytes(), location.encode());
        }
        Ok(())
    }

    fn add_nodes(&self, batch: &Batch, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        let family = self.family(keys::NODES)?;
        let present = self.locations(keys::NODES, batch.nodes.keys().map(NodeKey::as_bytes))?;
        for ((key, location), present) in batch.nodes.iter().zip(present) {
            match present {
                Some(present) if present == *location => continue,
                Some(present) => take(&mut totals.stored_bytes, present.payload.record_bytes())?,
                None => add(&mut totals.nodes, 1)?,
            }
            add(&mut totals.stored_bytes, location.payload.record_bytes())?;
            write.put_cf(family, key.as_bytes(), location.encode());
        }
        Ok(())
    }

    fn add_packs(&self, batch: &Batch, write: &mut WriteBatch, totals: &mut Totals) -> Result<()> {
        let family = self.family(keys::PACKS)?;
        for state in batch.packs.values() {
            if self.pack_state(state.pack)?.is_none() {
                add(&mut totals.packs, 1)?;
            }
            write.put_cf(family, PackState::key_of(state.pack), state.encode());
        }
        Ok(())
    }
}

pub(super) fn add(total: &mut u64, amount: u64) -> Result<()> {
    *total = total.checked_add(amount).ok_or_else(|| {
        Error::Limit(format!(
            "{amount} more than a total of {total} cannot be counted"
        ))
    })?;
    Ok(())
}

/// Takes from a total what was added to it once. Both come from disk: that they agree is no given.
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
