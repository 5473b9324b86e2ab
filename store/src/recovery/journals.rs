//! Journals of volumes that are not in the catalog.
//!
//! | catalog log | directory | action |
//! | --- | --- | --- |
//! | the volume was deleted | | removed: the process ended before it did so |
//! | no record of it | any | kept, and reported at each start: its record was lost |
//! | no record of it | with an owner record | a rebuild restores the volume |
//! | an older state than the owner record | | a rebuild updates the volume from the owner record |
//!
//! A volume's record is durable before its directory is made, and its deletion is durable before
//! anything is removed. So only damage to the log, never a crash, leaves a directory without a
//! record in the log. The log has the deletions of all volumes whose journals are still there: a
//! [checkpoint](crate::format::catalog_log::checkpoint) leaves out only those of journals that are
//! gone.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use varve_content::{RootId, tree::Root};

use super::{complete::read_node, rebuild::set_index_aside};
use crate::{
    Result,
    catalog_log::{CatalogLog, Deletions, journals},
    format::{Change, Name, StoreId, catalog_log::Record, journal::first_sequence_of, names},
    io::Disk,
    limits,
    meta::{Batch, Lookup as _, Meta, SnapshotRecord, SnapshotState, VolumeId, VolumeRecord},
    pack::PackReader,
    volume::{check_owner, journal_numbers, read_owner, remove_journal},
};

/// A journal that cannot be read as the catalog is. It is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrandedJournal {
    /// The directory.
    pub path: PathBuf,
    /// A description of the problem.
    pub why: String,
}

impl fmt::Display for StrandedJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "the journal in {path} was not touched: {}", self.why)
    }
}

/// Returns true if there are journals of any volume.
pub(super) fn has_journals(disk: &dyn Disk, data_dir: &Path) -> Result<bool> {
    Ok(!journals(disk, data_dir)?.is_empty())
}

/// Removes the journals of volumes that were deleted, and names those of volumes that nobody knows.
pub(super) fn sort_out(
    disk: &dyn Disk,
    data_dir: &Path,
    meta: &dyn Meta,
    deleted: &Deletions,
) -> Result<Vec<StrandedJournal>> {
    let mut stranded = Vec::new();
    for id in journals(disk, data_dir)? {
        if VolumeRecord::by_id(meta, id)?.is_some() {
            continue;
        }
        if !deleted.has(id) {
            stranded.push(StrandedJournal {
                path: names::volume(data_dir, id),
                why: "the catalog has no such volume; `varved rebuild` may restore it".to_owned(),
            });
            continue;
        }
        tracing::info!(volume = %id, "removing the journal of a volume that was deleted");
        if let Err(error) = remove_journal(disk, data_dir, id) {
            tracing::warn!(volume = %id, %error, "the journal was not removed");
        }
    }
    Ok(stranded)
}

/// The actions of a rebuild for journals whose owner records know more than the catalog log.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Volumes that were made again, or put on what their owner records say.
    pub(super) volumes: Vec<String>,
    pub(super) stranded: Vec<StrandedJournal>,
    /// Path of the old index, if it had to make way.
    pub(super) old_index: Option<PathBuf>,
}

/// Changes of the catalog that a journal calls for, if any, and their description; or the reason
/// why they cannot be made.
type Called = std::result::Result<Option<(Vec<Change>, String)>, String>;

/// The files and records of a rebuild.
pub(super) struct Scene<'a> {
    pub(super) disk: &'a Arc<dyn Disk>,
    pub(super) data_dir: &'a Path,
    pub(super) store: StoreId,
    pub(super) packs: PackReader,
    pub(super) meta: &'a dyn Meta,
}

impl Scene<'_> {
    /// Makes volumes again from the owner records of their journals, where the catalog lacks them
    /// or is behind. A new record is durable in the log before it is in the catalog.
    pub(super) async fn adopt(&self, log: &mut CatalogLog, deleted: &Deletions) -> Result<Adopted> {
        let mut adopted = Adopted::default();
        for id in journals(&**self.disk, self.data_dir)? {
            let known = VolumeRecord::by_id(self.meta, id)?;
            if known.is_none() && deleted.has(id) {
                continue;
            }
            match self.changes_for(id, known.as_ref()).await? {
                Ok(None) => {}
                Ok(Some((changes, said))) => {
                    // From here on the log differs from the changes that the old index has applied.
                    if let Some(old) = set_index_aside(self.disk, self.data_dir).await? {
                        adopted.old_index = Some(old);
                    }
                    let record = Record::Several(changes);
                    let sequence = log.append(&record).await?;
                    let mut batch = Batch::default();
                    batch.catalog(sequence, record);
                    self.meta.apply(batch, true)?;
                    adopted.volumes.push(said);
                }
                Err(why) => {
                    let path = names::volume(self.data_dir, id);
                    let why = match known {
                        None => why,
                        Some(known) => {
                            let label = known.label();
                            format!("volume {label:?} is as in the catalog log: {why}")
                        }
                    };
                    adopted.stranded.push(StrandedJournal { path, why });
                }
            }
        }
        Ok(adopted)
    }

    async fn changes_for(&self, id: VolumeId, known: Option<&VolumeRecord>) -> Result<Called> {
        let owner = match read_owner(self.disk, self.data_dir, id).await? {
            Some(Ok(owner)) => owner,
            Some(Err(_)) | None if known.is_some() => return Ok(Ok(None)),
            Some(Err(why)) => return Ok(Err(why.to_string())),
            None => {
                let why = "it has no owner record, so it was written by an older version";
                return Ok(Err(why.to_owned()));
            }
        };
        if let Err(why) = check_owner(&owner, self.store, id) {
            return Ok(Err(format!(
                "its owner record belongs to another journal: {why}"
            )));
        }
        let says = owner.volume;
        // Its information about each volume was durable in the catalog before.
        if let Some(known) = known
            && says.journal_from <= known.journal_from
            && says.size_bytes <= known.size_bytes
            && says.attachments <= known.attachments
        {
            return Ok(Ok(None));
        }
        if let Some(base) = says.base
            && let Err(why) = self.check_root(base).await?
        {
            return Ok(Err(format!(
                "volume {:?} cannot be restored without its base, root {base}: {why}",
                says.label()
            )));
        }
        let numbers = journal_numbers(&**self.disk, &names::volume(self.data_dir, id))?;
        let first = numbers
            .into_iter()
            .filter(|it| *it >= says.journal_from)
            .min();
        if let Some(first) = first.filter(|first| *first != says.journal_from) {
            return Ok(Err(format!(
                "volume {:?}: its journal begins with file {first}, its owner record says {}",
                says.label(),
                says.journal_from
            )));
        }
        match known {
            Some(known) => self.moved_on(known, says).map(Ok),
            None => self.made_again(says),
        }
    }

    /// Checks that a root is in a pack, and that its bytes have its id.
    async fn check_root(&self, id: RootId) -> Result<std::result::Result<(), String>> {
        let name = Name::root(id);
        let places = self.meta.lookup(&[name])?;
        let place = places.into_iter().next().flatten();
        let root = read_node(&self.packs, name, place, Root::decode).await?;
        Ok(root.map(drop))
    }

    /// A volume that the catalog does not know.
    fn made_again(&self, says: VolumeRecord) -> Result<Called> {
        if self.meta.totals()?.volumes >= limits::VOLUMES_MAX {
            return Ok(Err(format!(
                "volume {:?} cannot be restored: there are {} volumes already",
                says.label(),
                limits::VOLUMES_MAX
            )));
        }
        let mut said = format!("volume {:?} was restored from its journal", says.label());
        let mut record = says;
        if let Some(taken) = record.taken_by(self.meta)? {
            let name = format!("adopted-{}", record.id);
            said = format!("{said}, as {name:?}: volume {} has the name", taken.id);
            record.name = Some(name);
        }
        Ok(Ok(Some((vec![Change::put(&record)], said))))
    }

    /// A volume of which the log has an older state than its journal.
    fn moved_on(
        &self,
        known: &VolumeRecord,
        says: VolumeRecord,
    ) -> Result<Option<(Vec<Change>, String)>> {
        let (base, journal_from) = if says.journal_from > known.journal_from {
            (says.base, says.journal_from)
        } else {
            (known.base, known.journal_from)
        };
        let (ended, pending): (Vec<_>, Vec<_>) =
            (known.pending.iter().copied()).partition(|pending| pending.next_file < journal_from);
        let mut changes = Vec::new();
        for ended in ended {
            // Its journal is part of the base, and the record that completed it is lost.
            if let Some(snapshot) = SnapshotRecord::by_id(self.meta, ended.snapshot)?
                && snapshot.state == SnapshotState::Pending
            {
                let reason = "the record that completed it was lost with a part of the catalog log";
                changes.push(Change::put(&SnapshotRecord {
                    state: SnapshotState::Failed {
                        reason: reason.to_owned(),
                    },
                    ..snapshot
                }));
            }
        }
        let mut said = format!(
            "volume {:?} was updated from its journal's owner record: the catalog log was \
            behind",
            known.label()
        );
        let mut owned = VolumeRecord {
            // Given away since: what was written then is the new owner's.
            owner: says.owner,
            ..known.clone()
        };
        if let Some(taken) = owned.taken_by(self.meta)? {
            let name = format!("adopted-{}", owned.id);
            said = format!(
                "{said}; it is {name:?} now: volume {} has the name",
                taken.id
            );
            owned.name = Some(name);
        }
        changes.push(Change::put(&VolumeRecord {
            size_bytes: known.size_bytes.max(says.size_bytes),
            base,
            attachments: known.attachments.max(says.attachments),
            journal_from,
            pending,
            promised_sequence: match known.promised_sequence {
                promised if promised < first_sequence_of(journal_from) => 0,
                promised => promised,
            },
            ..owned
        }));
        Ok(Some((changes, said)))
    }
}
