//! Index and catalog at one moment: a snapshot of RocksDB's, read from end to end.

use std::{
    io,
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

use rocksdb::{
    DB, DBIteratorWithThreadMode, Direction, IteratorMode, ReadOptions, SnapshotWithThreadMode,
};

use super::{Database, RocksMeta, undecodable, unreadable};
use crate::{
    Error, Result,
    format::{FormatError, Kind, Location, Name, PackKind, keys, record::Entry},
    meta::{CatalogView, IndexView, PackState, Totals},
};

/// Bytes read ahead of a look: a scan reads files from end to end.
const READAHEAD_BYTES: usize = 1 << 20;

struct View<'a> {
    database: &'a Database,
    snapshot: SnapshotWithThreadMode<'a, DB>,
    reopening: &'a AtomicBool,
}

impl RocksMeta {
    /// The database stays open during a look. Opening it again waits for the look, and all writers
    /// wait with it, so `scan` ends when it is told so.
    pub(super) fn look(&self, look: &mut dyn FnMut(&dyn IndexView) -> Result<()>) -> Result<()> {
        let database = self.database()?;
        look(&self.view_of(&database))
    }

    /// The same for the catalog.
    pub(super) fn look_at_catalog(
        &self,
        look: &mut dyn FnMut(&dyn CatalogView) -> Result<()>,
    ) -> Result<()> {
        let database = self.database()?;
        look(&self.view_of(&database))
    }

    fn view_of<'a>(&'a self, database: &'a Database) -> View<'a> {
        View {
            snapshot: database.db.snapshot(),
            database,
            reopening: &self.reopening,
        }
    }
}

impl View<'_> {
    fn iterator(
        &self,
        family: &'static str,
        from: IteratorMode<'_>,
    ) -> Result<DBIteratorWithThreadMode<'_, DB>> {
        let mut options = ReadOptions::default();
        // Keeps the blocks of other readers in the cache.
        options.fill_cache(false);
        options.set_readahead_size(READAHEAD_BYTES);
        let family = self.database.family(family)?;
        Ok(self.snapshot.iterator_cf_opt(family, options, from))
    }

    fn check(&self) -> Result<()> {
        if self.reopening.load(Ordering::Relaxed) {
            return Err(Error::Shortage {
                verb: "scan the index in",
                path: self.database.path.clone(),
                source: io::Error::other("it has to be opened again"),
            });
        }
        Ok(())
    }
}

impl IndexView for View<'_> {
    fn pack_states(&self) -> Result<Vec<PackState>> {
        self.check()?;
        decoded_states(self.iterator(keys::PACKS, IteratorMode::Start)?)
    }

    fn scan_from(
        &self,
        kind: PackKind,
        from: &[u8; 32],
        row: &mut dyn FnMut(Name, Location) -> ControlFlow<()>,
    ) -> Result<()> {
        let from = IteratorMode::From(from, Direction::Forward);
        for entry in self.iterator(keys::rows(kind), from)? {
            self.check()?;
            let (key, value) = entry.map_err(unreadable)?;
            let bytes: [u8; 32] = (*key).try_into().map_err(|_| {
                undecodable(FormatError::differs("name of a row", "32 bytes", key.len()))
            })?;
            let location = Location::decode(&value).map_err(undecodable)?;
            if row(Name::new(location.payload.kind, bytes), location).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl CatalogView for View<'_> {
    fn catalog_sequence(&self) -> Result<u64> {
        self.check()?;
        let family = self.database.family(keys::META)?;
        let value = self.snapshot.get_cf(family, keys::CATALOG_SEQUENCE);
        match value.map_err(unreadable)? {
            Some(value) => keys::decode_sequence(&value).map_err(undecodable),
            None => Ok(0),
        }
    }

    fn totals(&self) -> Result<Totals> {
        self.check()?;
        let family = self.database.family(keys::META)?;
        let value = self.snapshot.get_cf(family, keys::TOTALS);
        match value.map_err(unreadable)? {
            Some(value) => Totals::decode(&value).map_err(undecodable),
            None => Ok(Totals::default()),
        }
    }

    fn all_entries(
        &self,
        kind: &'static Kind,
        look: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<()> {
        for entry in self.iterator(kind.records, IteratorMode::Start)? {
            self.check()?;
            let (_, value) = entry.map_err(unreadable)?;
            if look(Entry::new(kind, value.into_vec())).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The states of packs in a family's entries.
pub(super) fn decoded_states(entries: DBIteratorWithThreadMode<'_, DB>) -> Result<Vec<PackState>> {
    let states = entries.map(|entry| {
        let (key, value) = entry.map_err(unreadable)?;
        PackState::decode(&key, &value).map_err(undecodable)
    });
    states.collect()
}
