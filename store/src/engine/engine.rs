//! The parts of an open store.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::{Mutex, MutexGuard};
use varve_content::codec::Compression;

use super::{
    Budgets, Commit, FreeSpace, Guard, Ledgers, Lent, Options, Pins, Priority, ReadCache, Reliance,
    Workers,
};
use crate::{
    Damage, Error, Place, Result,
    format::StoreId,
    io::Disk,
    limits,
    meta::Meta,
    pack::{LostPlaces, PackReader, PackStage},
};

/// The parts of an open store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) store_id: StoreId,
    pub(crate) compression: Compression,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) space: FreeSpace,
    pub(crate) meta: Arc<dyn Meta>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) packs: PackReader,
    /// The place where packs are written.
    pub(crate) stage: Arc<dyn PackStage>,
    /// True if index and catalog were ever rebuilt.
    pub(crate) was_rebuilt: bool,
    /// Records found to be missing from packs, or damaged: they do not count as being in the store.
    pub(crate) lost: Arc<RwLock<LostPlaces>>,
    pub(crate) commit: Arc<Commit>,
    pub(crate) cache: ReadCache,
    /// Roots whose content is in use.
    pub(crate) pins: Arc<Pins>,
    /// Packs that running work relies on.
    pub(crate) reliance: Arc<Reliance>,
    pub(crate) budgets: Budgets,
    /// What accounts store, against their quotas.
    pub(crate) ledgers: Ledgers,
    /// Held by each user that takes stock of all content: a collection, an estimate. There is
    /// memory for one of them at a time, and no record moves while another one counts.
    pub(crate) stocktaking: Mutex<()>,
}

/// The turn to take stock of all content, and the memory for it.
#[derive(Debug)]
pub(crate) struct Stocktaking<'a> {
    // Declared before the turn, so that the memory is returned first.
    _memory: Lent<'a>,
    _turn: MutexGuard<'a, ()>,
}

impl Engine {
    /// Waits for the turn to take stock of all content, and borrows the memory for it from the
    /// cache.
    pub(crate) async fn take_stock(&self) -> Stocktaking<'_> {
        let turn = self.stocktaking.lock().await;
        Stocktaking {
            _memory: self.cache.lend(limits::GC_BYTES_MAX),
            _turn: turn,
        }
    }

    /// Begins to rely on packs, for work that stores something.
    pub(crate) fn rely(&self, label: &str) -> Arc<Guard> {
        self.reliance.begin(label, self.commit.floors())
    }

    /// Queries the index or catalog, on a thread that may block.
    pub(crate) async fn meta<T, F>(&self, priority: Priority, ask: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Meta) -> Result<T> + Send + 'static,
    {
        let meta = Arc::clone(&self.meta);
        self.workers.run(priority, move |_| ask(&*meta)).await?
    }

    /// Notes damage that a read has found: from here on the record counts as not being in the
    /// store, so an upload that sends it again repairs it. After a restart the next read or
    /// verification finds the damage again.
    pub(crate) fn note_damage(&self, damage: &Damage) {
        if let Place::Pack { pack, offset_bytes } = damage.place
            && self.lost.write().add_record(pack, offset_bytes)
        {
            tracing::error!(%damage, "a damaged record counts as not being in the store: store it again to repair it");
        }
    }

    /// Notes the damage in the outcome of a read, if there is any.
    pub(crate) fn noting_damage<T>(&self, read: Result<T>) -> Result<T> {
        read.inspect_err(|error| {
            if let Error::Damaged(damage) = error {
                self.note_damage(damage);
            }
        })
    }
}
