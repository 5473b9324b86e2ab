//! The catalog log when a store is opened: it is found, and the catalog gets what it lacks.

use std::{path::Path, sync::Arc};

use super::{RecoveryReport, files::sync_dir, journals};
use crate::{
    Error, Result,
    catalog_log::{CatalogLog, Checked, FoundLog, Piece, Rest},
    format::{StoreId, catalog_log::Record, names},
    io::Disk,
    meta::{Batch, Meta},
    pack::LocalPacks,
};

/// The meaning of a missing catalog log where journals are the only content.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum LostLog {
    /// The store does not open.
    Refused,
    /// Volumes are restored from their journals.
    BeginsAnew,
}

/// Opens the catalog log. If there are no packs and no journals, there may be none yet: the store
/// is new, or its creation was interrupted.
pub(super) async fn open_log(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    store: StoreId,
    packs: &LocalPacks,
    lost: LostLog,
) -> Result<FoundLog> {
    let path = names::catalog_log(dir);
    let present = disk
        .list(dir)
        .map_err(|source| Error::io("list", dir, source))?;
    let has = |path: &Path| {
        present
            .iter()
            .any(|name| Some(name.as_os_str()) == path.file_name())
    };
    // From a process that ended during a checkpoint.
    let new = names::catalog_log_new(dir);
    if has(&new) {
        disk.remove(&new)
            .map_err(|source| Error::io("remove", &new, source))?;
    }
    if has(&path) {
        // The process that gave it and its neighbours their names may have ended before they were
        // durable.
        sync_dir(disk, dir).await?;
        return FoundLog::open(Arc::clone(disk), path, store).await;
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
            why: "it is missing, and there are journals of volumes; `varved rebuild` restores \
                  these \
            volumes again"
                .to_owned(),
        });
    }
    // Made under another name, so that a log with half a header is never found in its place.
    let temporary = names::catalog_log_unfinished(dir);
    if has(&temporary) {
        disk.remove(&temporary)
            .map_err(|source| Error::io("remove", &temporary, source))?;
    }
    drop(CatalogLog::create(Arc::clone(disk), temporary.clone(), store).await?);
    disk.rename(&temporary, &path)
        .map_err(|source| Error::io("rename to", &path, source))?;
    sync_dir(disk, dir).await?;
    FoundLog::open(Arc::clone(disk), path, store).await
}

/// Adds the remedy to the error for a damaged log.
pub(super) fn with_remedy(error: Error, dir: &Path) -> Error {
    match error {
        Error::Damaged(mut damage) => {
            damage.problem = format!(
                "{}; `varved rebuild` writes the log anew from {} and the records behind the \
                checkpoint, or from the index, if they have what is damaged",
                damage.problem,
                names::catalog_log_old(dir).display()
            );
            damage.into()
        }
        error => error,
    }
}

/// Refuses a log that ends before the last record that the catalog has applied.
///
/// # Errors
///
/// [`Error::Incompatible`].
pub(super) fn refuse_older(log: &CatalogLog, checked: &Checked, applied: u64) -> Result<()> {
    let last = checked.last_sequence;
    if applied <= last {
        return Ok(());
    }
    let torn = match &checked.torn {
        None => "the file ends there".to_owned(),
        Some(torn) => torn.to_string(),
    };
    Err(Error::Incompatible {
        path: log.path().to_owned(),
        why: format!(
            "it can be read up to record {last}, and the catalog has applied {applied} ({torn}): \
            it is damaged, or an older copy; put the right one back, or run `varved rebuild`, \
            which takes from the index what the log lacks, if the index is whole"
        ),
    })
}

/// Applies the records that the catalog lacks, and cuts off the log's torn tail.
///
/// A catalog that is older than the checkpoint is made anew. It has sequence 0 from the first batch
/// to the last: if a crash comes between, the next start begins again.
///
/// # Errors
///
/// Errors of reading and truncating the log, and of changing the catalog.
pub(super) async fn replay_log(
    meta: &dyn Meta,
    log: &mut CatalogLog,
    checked: Checked,
    report: &mut RecoveryReport,
) -> Result<()> {
    if let Some(torn) = checked.torn {
        log.cut_torn_tail().await?;
        report.torn_log = Some(torn.to_string());
    }
    let mut reader = match checked.rest {
        Rest::Records(reader) => reader,
        Rest::All(reader) => {
            meta.apply(Batch::clearing_the_catalog(), true)?;
            report.made_from_checkpoint = true;
            reader
        }
    };
    let mut is_incomplete = report.made_from_checkpoint;
    let complete = || Batch::completing_checkpoint(log.header().base_sequence());
    while let Some(piece) = reader.next().await? {
        match piece {
            Piece::Checkpoint(changes) => {
                meta.apply(Batch::of_checkpoint(changes), false)?;
            }
            Piece::Records(records) => {
                if std::mem::take(&mut is_incomplete) {
                    meta.apply(complete(), false)?;
                }
                report.replayed_records += apply(meta, records)?;
            }
        }
    }
    let last = if is_incomplete {
        complete()
    } else {
        Batch::default()
    };
    // Makes the batches before it durable, too.
    meta.apply(last, true).map(drop)
}

/// Applies the records that a catalog does not have yet. Returns their number.
fn apply(meta: &dyn Meta, records: Vec<(u64, Record)>) -> Result<u64> {
    let applied = meta.catalog_sequence()?;
    let mut batch = Batch::default();
    for (sequence, record) in records {
        if sequence > applied {
            batch.catalog(sequence, record);
        }
    }
    let count = batch.len() as u64;
    meta.apply(batch, false)?;
    Ok(count)
}
