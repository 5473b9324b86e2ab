//! Opening a store: find out what it is, bring back what the last process left behind, and go on from there.
//!
//! What a crash may leave, and what becomes of it:
//!
//! | left behind | becomes |
//! | --- | --- |
//! | records at the end of a pack that the index does not know | indexed, if they are whole; an upload that runs again need not send them |
//! | a torn record at the end of a pack | cut off: it was never synced |
//! | a record at the end of the catalog log that RocksDB does not have | applied: its content was durable before it was written |
//! | a torn record at the end of the catalog log | cut off: nobody was told of it |
//! | the journal of a volume that was deleted | removed |
//!
//! What damage may leave as well: [the journal of a volume that nobody knows](journals). It stays.
//!
//! Anything else that is not as it was written is damage. In a pack it is reported, and the rest goes on; in the
//! catalog log it is an error, because what follows cannot be trusted to be in order.

mod journals;
mod packs;
mod rebuild;

use std::{fmt, fs, io::Write as _, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::Semaphore;
use varve_content::{chunker::CHUNKER_VERSION, codec::Compression};

pub use journals::StrandedJournal;
#[cfg(test)]
pub(crate) use rebuild::refill;
pub use rebuild::{RebuildReport, rebuild};

use self::packs::{Believe, Recovered};
use crate::{
    Damage, Error, Result,
    catalog_log::{CatalogLog, Replay},
    engine::{Commit, DirectoryLock, Engine, FreeSpace, Options, ReadCache, Workers},
    failpoints,
    format::{StoreId, names, store_file::StoreFile},
    io::{self, Disk},
    limits,
    meta::{self, Batch, Meta, RocksMeta},
    pack::{PackHome as _, PackReader, PackSet},
};

/// What opening a store found.
#[derive(Debug, Clone, Default)]
pub struct RecoveryReport {
    /// There was no store: it was made.
    pub created: bool,
    /// Records of packs that the index did not know.
    pub recovered_records: u64,
    /// Packs whose torn tail was cut off, each with where and why.
    pub torn_packs: Vec<String>,
    /// Records of the catalog log that RocksDB did not have.
    pub replayed_records: u64,
    /// The torn tail of the catalog log, if it had one.
    pub torn_log: Option<String>,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
    /// Journals of volumes that the catalog does not know. They are left alone.
    pub stranded_journals: Vec<StrandedJournal>,
}

impl RecoveryReport {
    /// Whether the last process ended cleanly and everything is as it was written.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.recovered_records == 0
            && self.torn_packs.is_empty()
            && self.replayed_records == 0
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
            "recovered {} records of packs and {} of the catalog log, cut off {} torn tails, found {} damaged places",
            self.recovered_records,
            self.replayed_records,
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
    let lock = lock_directory(&dir)?;
    let disk = io::choose(options.io_engine)
        .map_err(|source| Error::io("set up input and output for", &dir, source))?;
    let mut report = RecoveryReport::default();
    let identity = match read_identity(&dir)? {
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
    let engine = assemble(base, &mut report, |empty| {
        let index = names::index(&dir);
        if empty && !index.exists() {
            return Ok(Arc::new(RocksMeta::create(&index, identity.store)?));
        }
        match RocksMeta::open(&index, identity.store) {
            Ok(meta) => Ok(Arc::new(meta)),
            // There is nothing that it could know: its making was cut short.
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

/// What a store is built on.
pub(crate) struct Base {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) store: StoreId,
    pub(crate) compression: Compression,
    pub(crate) options: Options,
    pub(crate) lock: DirectoryLock,
}

/// Recovers packs and catalog log, and puts the parts of the store together. `open_meta` is told whether both are empty.
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
    let packs = PackSet::open(Arc::clone(&disk), dir, store, options.packs_open_max)?;
    let (mut log, replay) = open_log(&disk, dir, store, &packs, LostLog::Refused).await?;
    let deleted = journals::deleted_volumes(&replay.records);
    let meta = open_meta(packs.list()?.is_empty() && replay.records.is_empty())?;
    let Recovered {
        chunks,
        nodes,
        lost,
    } = packs::recover(&packs, &*meta, Believe::Index, report).await?;
    replay_log(&*meta, &mut log, replay, report).await?;
    report.stranded_journals = journals::sort_out(&*disk, dir, &*meta, &deleted)?;

    let workers = Arc::new(Workers::start(options.threads(), compression)?);
    let commit = Commit::new(
        chunks,
        nodes,
        Arc::clone(&meta),
        Arc::clone(&workers),
        Arc::clone(&disk),
        log,
        lock,
    );
    Ok(Engine {
        space: FreeSpace::new(Arc::clone(&disk), options.data_dir.clone()),
        store_id: store,
        compression,
        packs: PackReader::new(packs),
        lost: RwLock::new(lost),
        commit,
        pins: Arc::default(),
        cache: ReadCache::new(options.chunk_cache_bytes),
        ingest_budget: Arc::new(Semaphore::new(limits::INGEST_PLAIN_BYTES)),
        read_budget: Semaphore::new(limits::READ_BYTES_IN_FLIGHT),
        readahead_permits: Semaphore::new(limits::READ_AHEADS_MAX),
        leaf_permits: Arc::new(Semaphore::new(limits::UPLOAD_LEAVES_MAX)),
        disk,
        meta,
        workers,
        options,
    })
}

/// Takes the directory for this process; makes it if it is absent.
fn lock_directory(dir: &Path) -> Result<DirectoryLock> {
    check_user(dir)?;
    fs::create_dir_all(dir).map_err(|source| Error::io("create", dir, source))?;
    // The lock is a file, and a directory that is refused is left as it is. What counts is read again under the lock.
    read_identity(dir)?;
    DirectoryLock::take(dir)
}

/// That this process runs as the user that the store belongs to. Files that another one makes, root above all, shut that user out.
fn check_user(dir: &Path) -> Result<()> {
    let path = names::store_file(dir);
    let owner = match fs::metadata(&path) {
        Ok(found) => found.uid(),
        // What is wrong with it is told where it is read.
        Err(_) => return Ok(()),
    };
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    Err(Error::Incompatible {
        path,
        why: format!(
            "it belongs to user {owner}, and this process runs as user {user}: the store's own user could not read the \
             files that it makes; run it as that user (sudo -u '#{owner}' varved ...)"
        ),
    })
}

/// What the directory says it is; `None` if it is empty, and a store may be made in it.
fn read_identity(dir: &Path) -> Result<Option<StoreFile>> {
    let path = names::store_file(dir);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return refuse_other_files(dir).map(|()| None);
        }
        Err(source) => return Err(Error::io("read", &path, source)),
    };
    let refuse = |why: String| Error::Incompatible {
        path: path.clone(),
        why,
    };
    let identity = StoreFile::decode(&text).map_err(|problem| refuse(problem.to_string()))?;
    if identity.chunker_version != CHUNKER_VERSION {
        return Err(refuse(format!(
            "it was cut with chunker version {}, this program cuts with {CHUNKER_VERSION}",
            identity.chunker_version
        )));
    }
    Ok(Some(identity))
}

/// A store is made only where nothing else is.
fn refuse_other_files(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|source| Error::io("list", dir, source))?;
    for entry in entries {
        let name = entry
            .map_err(|source| Error::io("list", dir, source))?
            .file_name();
        // A process that makes a store writes its identity first: what is beside it may have come since somebody looked for it.
        if !names::may_precede_store(&name) && !names::store_file(dir).exists() {
            return Err(Error::Incompatible {
                path: dir.to_owned(),
                why: format!("it is not a Varve store and not empty (it holds {name:?})"),
            });
        }
    }
    Ok(())
}

async fn create_identity(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    compression: Compression,
) -> Result<StoreFile> {
    let mut id = [0; StoreId::BYTES];
    getrandom::fill(&mut id).map_err(|error| Error::System {
        verb: "draw random numbers",
        source: std::io::Error::other(error),
    })?;
    let identity = StoreFile {
        store: StoreId::from_bytes(id),
        chunker_version: CHUNKER_VERSION,
        compression,
        created_unix_seconds: meta::now_ns() / 1_000_000_000,
    };
    let path = names::store_file(dir);
    let temporary = names::store_file_unfinished(dir);
    let mut file =
        fs::File::create(&temporary).map_err(|source| Error::io("create", &temporary, source))?;
    file.write_all(identity.encode().as_bytes())
        .map_err(|source| Error::io("write", &temporary, source))?;
    file.sync_all()
        .map_err(|source| Error::io("sync", &temporary, source))?;
    disk.rename(&temporary, &path)
        .map_err(|source| Error::io("rename to", &path, source))?;
    sync_dir(disk, dir).await?;
    Ok(identity)
}

async fn create_missing_dir(disk: &Arc<dyn Disk>, parent: &Path, dir: &Path) -> Result<()> {
    match disk.create_dir(dir) {
        Ok(()) => sync_dir(disk, parent).await,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::io("create", dir, source)),
    }
}

async fn sync_dir(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
    disk.sync_dir(dir)
        .await
        .map_err(|source| Error::io("sync", dir, source))
}

/// What a missing catalog log means where journals are the only content.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum LostLog {
    /// Nothing goes on.
    Refused,
    /// Volumes are made again from their journals.
    BeginsAnew,
}

/// Opens the catalog log. Where there are no packs and no journals there may be none yet: the store is new, or its making was
/// cut short.
async fn open_log(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    store: StoreId,
    packs: &PackSet,
    lost: LostLog,
) -> Result<(CatalogLog, Replay)> {
    let path = names::catalog_log(dir);
    let present = disk
        .list(dir)
        .map_err(|source| Error::io("list", dir, source))?;
    let has = |path: &Path| {
        present
            .iter()
            .any(|name| Some(name.as_os_str()) == path.file_name())
    };
    if has(&path) {
        // Its name, and those beside it, may be of a process that did not live to make them durable.
        sync_dir(disk, dir).await?;
        return CatalogLog::open(Arc::clone(disk), path, store).await;
    }
    if !packs.list()?.is_empty() {
        return Err(Error::Incompatible {
            path,
            why: "it is missing, and with it the names of all snapshots".to_owned(),
        });
    }
    if lost == LostLog::Refused && journals::has_journals(&**disk, dir)? {
        return Err(Error::Incompatible {
            path,
            why: "it is missing, and there are journals of volumes; `varved rebuild` makes these volumes again".to_owned(),
        });
    }
    // Made beside its place, so that a log with half a header is never found there.
    let temporary = names::catalog_log_unfinished(dir);
    if has(&temporary) {
        disk.remove(&temporary)
            .map_err(|source| Error::io("remove", &temporary, source))?;
    }
    drop(CatalogLog::create(Arc::clone(disk), temporary.clone(), store).await?);
    disk.rename(&temporary, &path)
        .map_err(|source| Error::io("rename to", &path, source))?;
    sync_dir(disk, dir).await?;
    CatalogLog::open(Arc::clone(disk), path, store).await
}

/// Applies what the log has and RocksDB does not, and cuts off its torn tail.
async fn replay_log(
    meta: &dyn Meta,
    log: &mut CatalogLog,
    replay: Replay,
    report: &mut RecoveryReport,
) -> Result<()> {
    let applied = meta.catalog_sequence()?;
    let last = replay.records.last().map_or(0, |(sequence, _)| *sequence);
    if applied > last {
        let torn = replay
            .torn
            .map_or_else(|| "the file ends there".to_owned(), |torn| torn.to_string());
        return Err(Error::Incompatible {
            path: log.path().to_owned(),
            why: format!(
                "it can be read up to record {last}, and the catalog has applied {applied} ({torn}): it is damaged, or an older copy"
            ),
        });
    }
    if let Some(torn) = replay.torn {
        log.cut_torn_tail().await?;
        report.torn_log = Some(torn.to_string());
    }
    let mut batch = Batch::default();
    for (sequence, record) in replay.records {
        if sequence > applied {
            batch.catalog(sequence, record);
            report.replayed_records += 1;
        }
        if batch.len() >= REPLAY_BATCH_RECORDS {
            meta.apply(std::mem::take(&mut batch), false)?;
        }
    }
    meta.apply(batch, true)
}

/// Records of the catalog log that are applied at once.
const REPLAY_BATCH_RECORDS: usize = 1000;

#[cfg(test)]
mod tests;
