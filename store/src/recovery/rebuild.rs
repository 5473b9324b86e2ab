//! Rebuilds index and catalog from the packs and the catalog log.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Incomplete, LostLog, RecoveryReport, ShortLog, StrandedJournal,
    complete::incomplete,
    create_missing_dir, is_there,
    journals::Scene,
    lock_directory,
    mend::{MendedLog, mend},
    open_log, packs,
    packs::Believe,
    read_identity, replay_log,
    restore::restore,
    sync_dir,
};
use crate::{
    Damage, Error, Result,
    catalog_log::{CatalogLog, Checked, Deletions, journals},
    engine::Options,
    format::{StoreId, names},
    io::{self, Disk, OpenMode},
    meta::{Meta, RocksMeta},
    pack::{LocalPacks, PackReader},
};

/// The result of a rebuild.
#[derive(Debug, Clone, Default)]
pub struct RebuildReport {
    /// Packs that were read.
    pub packs: u64,
    /// Chunks indexed.
    pub chunks: u64,
    /// Snapshots in the catalog.
    pub snapshots: u64,
    /// Volumes in the catalog.
    pub volumes: u64,
    /// Path of the old index, if there was one.
    pub old_index: Option<PathBuf>,
    /// Damage: bytes that are not as they were written.
    pub damage: Vec<Damage>,
    /// The end of the catalog log that could not be read and was cut off, if any: a record that was
    /// being written, or the last one, damaged.
    pub torn_log: Option<String>,
    /// Path of the file with that end.
    pub cut_log: Option<PathBuf>,
    /// Descriptions of the volumes that were restored or updated from their journals.
    pub adopted_volumes: Vec<String>,
    /// Journals of volumes that could not be restored.
    pub stranded_journals: Vec<StrandedJournal>,
    /// Ends of packs that were cut off: the pack, the offset, the bytes found, and the reason why
    /// they are no whole record.
    pub torn_packs: Vec<String>,
    /// The catalog log was damaged, and was written anew.
    pub mended_log: Option<MendedLog>,
    /// The catalog log had fewer records than the old index had applied.
    pub short_log: Option<ShortLog>,
    /// Snapshots and volumes that lack content.
    pub incomplete: Vec<Incomplete>,
}

impl RebuildReport {
    /// Returns true if nothing is damaged and nothing was cut off. A crash may leave torn ends of
    /// packs and of the log, but damage may look the same: a torn end counts. A volume that was
    /// restored from its journal is complete, and does not count.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty()
            && self.torn_packs.is_empty()
            && self.torn_log.is_none()
            && self.mended_log.is_none()
            && self.short_log.is_none()
            && self.stranded_journals.is_empty()
            && self.incomplete.is_empty()
    }
}

impl fmt::Display for RebuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "indexed {} chunks of {} packs, {} snapshots, {} volumes",
            self.chunks, self.packs, self.snapshots, self.volumes
        )?;
        if let Some(old) = &self.old_index {
            write!(f, "; the old index is kept in {}", old.display())?;
        }
        for damage in &self.damage {
            write!(f, "\n{damage}")?;
        }
        for torn in &self.torn_packs {
            write!(f, "\ncut off the end of pack {torn}")?;
        }
        if let Some(mended) = &self.mended_log {
            write!(f, "\n{mended}")?;
        }
        if let Some(torn) = &self.torn_log {
            write!(f, "\ncut off the end of the catalog log: {torn}")?;
        }
        if let Some(path) = &self.cut_log {
            write!(
                f,
                "\nthe part that was cut off is kept in {}",
                path.display()
            )?;
        }
        if let Some(short) = &self.short_log {
            write!(f, "\n{short}")?;
        }
        for adopted in &self.adopted_volumes {
            write!(f, "\n{adopted}")?;
        }
        for stranded in &self.stranded_journals {
            write!(f, "\n{stranded}")?;
        }
        for incomplete in &self.incomplete {
            write!(f, "\n{incomplete}")?;
        }
        Ok(())
    }
}

/// Rebuilds index and catalog of a store. The store must not be open. The rebuild reads all packs,
/// and verifies the checksum of every record.
///
/// The new index replaces the old one only when it is complete, and the old one is kept beside it.
/// A damaged catalog log is written anew if the old index, or an earlier log, has what it lost.
///
/// # Errors
///
/// [`Error::NotFound`] and [`Error::Incompatible`] if there is no store, or one of another version;
/// [`Error::InUse`] while it is open; [`Error::Damaged`] if the catalog log is damaged and nothing
/// has what it lost; those of reading and writing.
pub async fn rebuild(options: Options) -> Result<RebuildReport> {
    let dir = &options.data_dir;
    let disk = io::choose(options.io_engine)
        .map_err(|source| Error::io("set up input and output for", dir, source))?;
    if let Err(error) = disk.list(dir)
        && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
    {
        return Err(Error::NotFound {
            what: "data directory",
            name: dir.display().to_string(),
        });
    }
    let identify = async || {
        let identity = read_identity(&disk, dir).await?;
        identity.ok_or_else(|| Error::Incompatible {
            path: names::store_file(dir),
            why: "it is missing: this is not a Varve store".to_owned(),
        })
    };
    // A directory that is not a store stays unchanged: it gets not even a lock.
    identify().await?;
    let _lock = lock_directory(&disk, dir).await?;
    let identity = identify().await?;
    let temporary = names::index_unfinished(dir);
    RocksMeta::destroy(&temporary)?;
    let mut report = {
        let meta = RocksMeta::create(&temporary, identity.store)?;
        let old = open_old(&disk, dir, identity.store)?;
        refill(&disk, &options, identity.store, &meta, old).await?
    };

    // Before the new index is used: it may lack content.
    create_missing_dir(&disk, dir, &names::rebuilt(dir)).await?;
    if let Some(old) = set_index_aside(&disk, dir).await? {
        report.old_index = Some(old);
    }
    let index = names::index(dir);
    disk.rename(&temporary, &index)
        .map_err(|source| Error::io("rename to", &index, source))?;
    sync_dir(&disk, dir).await?;
    Ok(report)
}

/// Opens the old index, if that is possible.
fn open_old(disk: &Arc<dyn Disk>, dir: &Path, store: StoreId) -> Result<Option<Arc<dyn Meta>>> {
    let index = names::index(dir);
    if !is_there(disk, &index)? {
        return Ok(None);
    }
    match RocksMeta::open(&index, store) {
        Ok(old) => Ok(Some(Arc::new(old))),
        // It may be sound: a later rebuild can open it.
        Err(error @ (Error::Shortage { .. } | Error::Full { .. })) => Err(error),
        Err(error) => {
            tracing::info!(%error, "the old index cannot be compared with the catalog log");
            Ok(None)
        }
    }
}

/// Fills an index and catalog in which there is nothing yet, from packs and log. Takes from the old
/// index what the log has lost, and makes volumes again from their journals.
pub(crate) async fn refill(
    disk: &Arc<dyn Disk>,
    options: &Options,
    store: StoreId,
    meta: &dyn Meta,
    old: Option<Arc<dyn Meta>>,
) -> Result<RebuildReport> {
    let dir = &*options.data_dir;
    create_missing_dir(disk, dir, &names::packs(dir)).await?;
    let packs = LocalPacks::open(
        Arc::clone(disk),
        dir,
        store,
        options.pack_bytes_max,
        options.packs_open_max,
    )?;
    let mut found = RecoveryReport::default();
    let mut report = RebuildReport::default();
    let mut read = read_log(disk, dir, store, &packs).await;
    if let Err(Error::Damaged(damage)) = read {
        report.mended_log = Some(mend(disk, dir, store, damage, old.as_ref()).await?);
        read = read_log(disk, dir, store, &packs).await;
    }
    let (mut log, checked, deleted) = read?;
    if checked.torn.is_some() {
        report.cut_log = Some(keep_torn_tail(disk, dir, &log).await?);
    }
    let recovered = packs::recover(&packs, meta, Believe::Packs, &mut found).await?;
    drop(recovered.chunks.close().await?);
    drop(recovered.nodes.close().await?);
    replay_log(meta, &mut log, checked, &mut found).await?;
    if let Some(old) = &old {
        report.short_log = restore(meta, &mut log, &**old).await?;
    }
    // It is closed before its directory is renamed.
    drop(old);
    let scene = Scene {
        disk,
        data_dir: dir,
        store,
        packs: PackReader::new(Arc::<LocalPacks>::clone(&packs)),
        meta,
    };
    let adopted = scene.adopt(&mut log, &deleted).await?;
    report.incomplete = incomplete(&scene.packs, meta).await?;
    let totals = meta.totals()?;
    Ok(RebuildReport {
        packs: packs.list()?.len() as u64,
        chunks: totals.chunks,
        snapshots: totals.snapshots,
        volumes: totals.volumes,
        old_index: adopted.old_index,
        damage: found.damage,
        torn_packs: found.torn_packs,
        torn_log: found.torn_log,
        adopted_volumes: adopted.volumes,
        stranded_journals: adopted.stranded,
        ..report
    })
}

/// Reads all of the log. A catalog that has nothing yet is to be filled from it.
async fn read_log(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    store: StoreId,
    packs: &LocalPacks,
) -> Result<(CatalogLog, Checked, Deletions)> {
    let log = open_log(disk, dir, store, packs, LostLog::BeginsAnew).await?;
    let mut deleted = Deletions::of(journals(&**disk, dir)?);
    let (log, checked) = log.check(0, |change| deleted.note(change)).await?;
    Ok((log, checked, deleted))
}

/// Moves the old index beside its place, durably. Returns its new path, if there was one.
pub(super) async fn set_index_aside(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<PathBuf>> {
    let index = names::index(dir);
    if !is_there(disk, &index)? {
        return Ok(None);
    }
    let old = names::index_old(dir);
    RocksMeta::destroy(&old)?;
    disk.rename(&index, &old)
        .map_err(|source| Error::io("rename to", &old, source))?;
    sync_dir(disk, dir).await?;
    Ok(Some(old))
}

/// Saves the end of the log before it is cut off: it may be the last record, damaged, and may have
/// been promised.
async fn keep_torn_tail(disk: &Arc<dyn Disk>, dir: &Path, log: &CatalogLog) -> Result<PathBuf> {
    let (offset_bytes, tail) = log.torn_tail().await?;
    let mut nth = 0;
    let file = loop {
        let path = names::catalog_log_cut(dir, offset_bytes, nth);
        match disk.open(&path, OpenMode::CreateNew) {
            Ok(file) => break file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => nth += 1,
            Err(source) => return Err(Error::io("create", &path, source)),
        }
    };
    let path = file.path().to_owned();
    let written = disk.write(&file, 0, tail).await;
    written.map_err(|source| Error::io("write", &path, source))?;
    let synced = disk.sync_data(&file).await;
    synced.map_err(|source| Error::io("sync", &path, source))?;
    sync_dir(disk, dir).await?;
    Ok(path)
}
