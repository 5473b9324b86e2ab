//! Opening a store: read its identity, recover the state that the last process left behind, and
//! continue from there.
//!
//! The remains of a crash, and the actions of recovery:
//!
//! | left behind | action |
//! | --- | --- |
//! | records at the end of a pack that are not in the index | indexed, if they are whole; another upload need not send them |
//! | a torn record at the end of a pack | cut off: it was never synced |
//! | a record at the end of the catalog log that RocksDB does not have | applied: its content was durable before it was written |
//! | a catalog in RocksDB that is older than the checkpoint of the catalog log | made anew from it |
//! | a torn record at the end of the catalog log | cut off: no caller had an answer |
//! | an unfinished catalog log beside the log | removed: the log has everything |
//! | the journal of a volume that was deleted | removed |
//!
//! Damage may also leave [the journal of an unknown volume](journals). It stays.
//!
//! Everything else that is not as it was written is damage. Damage in a pack is reported, and the
//! rest of the store continues. A file that is not the pack that its name says is reported too, and
//! stays as it is. Damage in the catalog log is an error, because the order of the
//! following records cannot be trusted.

mod complete;
mod files;
mod identity;
mod journals;
mod log;
mod mend;
mod packs;
mod rebuild;
mod restore;

use std::{fmt, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::Mutex;
use varve_content::codec::Compression;

pub use complete::Incomplete;
pub use journals::StrandedJournal;
pub use mend::MendedLog;
#[cfg(test)]
pub(crate) use rebuild::refill;
pub use rebuild::{RebuildReport, rebuild};
pub use restore::ShortLog;

use self::{
    files::{create_missing_dir, is_there, sync_dir},
    identity::{create_identity, lock_directory, read_identity},
    log::{LostLog, open_log, refuse_older, replay_log, with_remedy},
    packs::{Believe, Recovered},
};
use crate::{
    Damage, Error, Result,
    catalog_log::{Deletions, journals as journals_there},
    engine::{
        Budgets, Commit, CommitParts, DirectoryLock, Engine, FreeSpace, Ledgers, Options,
        ReadCache, Reliance, Workers,
    },
    failpoints,
    format::{StoreId, names},
    io::{self, Disk},
    meta::{Meta, RocksMeta},
    pack::{LocalPacks, PackReader},
};

/// The findings of opening a store.
#[derive(Debug, Clone, Default)]
pub struct RecoveryReport {
    /// There was no store; a new one was created.
    pub created: bool,
    /// Records of packs that were not in the index.
    pub recovered_records: u64,
    /// Packs whose torn tail was cut off, each with the place and the reason.
    pub torn_packs: Vec<String>,
    /// Records of the catalog log that RocksDB did not have.
    pub replayed_records: u64,
    /// True if RocksDB was older than the checkpoint of the catalog log: the catalog was made anew
    /// from it.
    pub made_from_checkpoint: bool,
    /// The torn tail of the catalog log, if it had one.
    pub torn_log: Option<String>,
    /// Damage: bytes that are not as they were written.
    pub damage: Vec<Damage>,
    /// Journals of volumes that are not in the catalog. They stay as they are.
    pub stranded_journals: Vec<StrandedJournal>,
}

impl RecoveryReport {
    /// Returns true if the last process ended cleanly and there is no damage.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.recovered_records == 0
            && self.torn_packs.is_empty()
            && self.replayed_records == 0
            && !self.made_from_checkpoint
            && self.torn_log.is_none()
            && self.damage.is_empty()
            && self.stranded_journals.is_empty()
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.created {
            return f.write_str("made a new store");
        }
        if self.is_clean() {
            return f.write_str("nothing to recover");
        }
        write!(
            f,
            "recovered {} records of packs and {} of the catalog log{}, cut off {} torn tails, \
            found {} damaged places",
            self.recovered_records,
            self.replayed_records,
            if self.made_from_checkpoint {
                " behind its checkpoint"
            } else {
                ""
            },
            self.torn_packs.len() + usize::from(self.torn_log.is_some()),
            self.damage.len()
        )?;
        match self.stranded_journals.len() {
            0 => Ok(()),
            count => write!(f, " and {count} journals of unknown volumes"),
        }
    }
}

/// Opens or makes a store.
pub(crate) async fn open(options: Options) -> Result<(Engine, RecoveryReport)> {
    if let Some(point) = failpoints::arm_from_environment()? {
        tracing::warn!(
            point = point.name(),
            "a failpoint is armed: this process will end there"
        );
    }
    let dir = options.data_dir.clone();
    let disk = io::choose(options.io_engine)
        .map_err(|source| Error::io("set up input and output for", &dir, source))?;
    let lock = lock_directory(&disk, &dir).await?;
    let mut report = RecoveryReport::default();
    let identity = match read_identity(&disk, &dir).await? {
        Some(identity) => identity,
        None => {
            report.created = true;
            create_identity(&disk, &dir, options.compression.unwrap_or_default()).await?
        }
    };
    let compression = options.compression.unwrap_or(identity.compression);
    let base = Base {
        disk,
        store: identity.store,
        compression,
        options,
        lock,
    };
    let index = names::index(&dir);
    let has_index = is_there(&base.disk, &index)?;
    let engine = assemble(base, &mut report, |empty| {
        if empty && !has_index {
            return Ok(Arc::new(RocksMeta::create(&index, identity.store)?));
        }
        match RocksMeta::open(&index, identity.store) {
            Ok(meta) => Ok(Arc::new(meta)),
            // The store is empty, so the index has no content: its creation was interrupted.
            Err(Error::Incompatible { .. }) if empty => {
                RocksMeta::destroy(&index)?;
                Ok(Arc::new(RocksMeta::create(&index, identity.store)?))
            }
            Err(error) => Err(error),
        }
    })
    .await?;
    Ok((engine, report))
}

/// The foundation of a store.
pub(crate) struct Base {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) store: StoreId,
    pub(crate) compression: Compression,
    pub(crate) options: Options,
    pub(crate) lock: DirectoryLock,
}

/// Recovers packs and catalog log, and puts the parts of the store together. `open_meta` gets true
/// if both are empty.
pub(crate) async fn assemble<F>(
    base: Base,
    report: &mut RecoveryReport,
    open_meta: F,
) -> Result<Engine>
where
    F: FnOnce(bool) -> Result<Arc<dyn Meta>>,
{
    let Base {
        disk,
        store,
        compression,
        options,
        lock,
    } = base;
    let dir = &options.data_dir;
    create_missing_dir(&disk, dir, &names::packs(dir)).await?;
    let packs = LocalPacks::open(
        Arc::clone(&disk),
        dir,
        store,
        options.pack_bytes_max,
        options.packs_open_max,
    )?;
    let refused = |error| with_remedy(error, dir);
    let log = open_log(&disk, dir, store, &packs, LostLog::Refused).await;
    let log = log.map_err(refused)?;
    let is_empty = log.is_empty().await.map_err(refused)?;
    let meta = open_meta(packs.list()?.is_empty() && is_empty)?;
    // A deletion of a volume is of use only as long as its journal is there.
    let mut deleted = Deletions::of(journals_there(&*disk, dir)?);
    let applied = meta.catalog_sequence()?;
    let checked = log.check(applied, |change| deleted.note(change)).await;
    let (mut log, checked) = checked.map_err(refused)?;
    refuse_older(&log, &checked, applied)?;
    let Recovered {
        chunks,
        nodes,
        lost,
    } = packs::recover(&packs, &*meta, Believe::Index, report).await?;
    replay_log(&*meta, &mut log, checked, report).await?;
    report.stranded_journals = journals::sort_out(&*disk, dir, &*meta, &deleted)?;

    let workers = Arc::new(Workers::start(options.threads(), compression)?);
    let lost = Arc::new(RwLock::new(lost));
    let reliance = Arc::<Reliance>::default();
    let commit = Commit::new(CommitParts {
        chunks,
        nodes,
        meta: Arc::clone(&meta),
        workers: Arc::clone(&workers),
        disk: Arc::clone(&disk),
        log,
        lock,
        lost: Arc::clone(&lost),
        reliance: Arc::clone(&reliance),
    });
    let was_rebuilt = is_there(&disk, &names::rebuilt(dir))?;
    Ok(Engine {
        was_rebuilt,
        space: FreeSpace::new(Arc::clone(&disk), options.data_dir.clone()),
        store_id: store,
        compression,
        stage: Arc::<LocalPacks>::clone(&packs),
        packs: PackReader::new(packs),
        lost,
        commit,
        pins: Arc::default(),
        reliance,
        cache: ReadCache::new(options.chunk_cache_bytes),
        budgets: Budgets::default(),
        ledgers: Ledgers::default(),
        stocktaking: Mutex::default(),
        disk,
        meta,
        workers,
        options,
    })
}

#[cfg(test)]
mod tests;
