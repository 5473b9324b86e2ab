//! Deletion of snapshots, as many at a time as one change of the catalog has room for.

use std::collections::{BTreeMap, HashSet};

use super::{volume_of, without};
use crate::{
    Error, Result,
    format::{CatalogRecord as _, Change, catalog_log::LOG_RECORD_BYTES_MAX},
    limits,
    meta::{
        Filter, ImageId, ImageRecord, Lookup as _, Meta, Records as _, SnapshotId, SnapshotKey,
        SnapshotRecord, SnapshotState, VolumeId, VolumeRecord,
    },
    volume::Volumes,
};

impl Volumes {
    /// Deletes a snapshot's record.
    pub(crate) async fn delete_snapshot(&self, key: &SnapshotKey) -> Result<SnapshotRecord> {
        let outcomes = self.delete_snapshots(vec![key.clone()]).await?;
        let outcome = outcomes.into_iter().next();
        outcome.unwrap_or_else(|| Err(not_found(key)))
    }

    /// Deletes the records of the first of these snapshots, and returns an outcome for each of
    /// them. Readers that have one open go on, and so do volumes that were made from it. A pending
    /// snapshot is cancelled: its volume stays as it is.
    pub(crate) async fn delete_snapshots(
        &self,
        keys: Vec<SnapshotKey>,
    ) -> Result<Vec<Result<SnapshotRecord>>> {
        let plan = move |meta: &dyn Meta| deletions(meta, &keys, None);
        let outcomes = self.engine.commit.change((), plan).await?;
        Ok(self.deleted(outcomes))
    }

    /// Deletes the record of an image, and with it those of its snapshots that belong to its owner
    /// and that no other image needs, unless `may_go` returns an error. Returns what `may_go` has
    /// returned, and an outcome for each snapshot, ascending.
    pub(crate) async fn delete_image<T: Send + 'static>(
        &self,
        may_go: impl Fn(&dyn Meta) -> Result<(ImageRecord, T)> + Send + 'static,
        with_snapshots: bool,
    ) -> Result<(ImageRecord, T, Vec<(SnapshotId, Result<SnapshotRecord>)>)> {
        let plan = move |meta: &dyn Meta| {
            let (image, of_it) = may_go(meta)?;
            let mut changes = vec![Change::delete::<ImageRecord>(&image.id)];
            if !with_snapshots {
                return Ok((changes, (image, of_it, Vec::new())));
            }
            let owned = |id| SnapshotKey::Owned {
                owner: image.owner,
                id,
            };
            let keys: Vec<_> = image.snapshots().into_iter().map(owned).collect();
            let (deletions, outcomes) = deletions(meta, &keys, Some(image.id))?;
            changes.extend(deletions);
            Ok((changes, (image, of_it, outcomes)))
        };
        let (image, of_it, outcomes) = self.engine.commit.change((), plan).await?;
        let mut outcomes = self.deleted(outcomes).into_iter();
        let snapshots = match with_snapshots {
            true => image.snapshots(),
            false => Vec::new(),
        };
        // Each has an outcome: so few always have room in one change.
        let snapshots = snapshots.into_iter().map(|id| {
            let later = || {
                Err(Error::Limit(format!(
                    "snapshot {id} has no room in the change"
                )))
            };
            let outcome = match outcomes.next().unwrap_or_else(later) {
                // The key was that of the owner of the image.
                Err(Error::NotFound { .. }) => Err(Error::Invalid(format!(
                    "snapshot {id} belongs to another account"
                ))),
                outcome => outcome,
            };
            (id, outcome)
        });
        let snapshots = snapshots.collect();
        Ok((image, of_it, snapshots))
    }

    /// Ends the work on snapshots that were deleted.
    fn deleted(&self, outcomes: Vec<Result<SnapshotRecord>>) -> Vec<Result<SnapshotRecord>> {
        let pending = &self.pending_snapshots;
        let gone = |deleted: SnapshotRecord| {
            let id = deleted.id;
            if let Some(progress) = pending.get(id) {
                progress.cancel();
            }
            let deleted = pending.see(deleted);
            pending.remove(id);
            deleted
        };
        outcomes.into_iter().map(|it| it.map(gone)).collect()
    }
}

/// Checks that no image needs a snapshot, but for one that is deleted with it.
fn check_need(meta: &dyn Meta, snapshot: &SnapshotRecord, but: Option<ImageId>) -> Result<()> {
    let filter = Filter {
        snapshot: Some(snapshot.id),
        ..Filter::default()
    };
    let some = meta.page::<ImageRecord>(&filter, &[], 2)?.records;
    match some.into_iter().find(|image| Some(image.id) != but) {
        Some(image) => Err(Error::Needed {
            what: SnapshotRecord::KIND.what,
            name: snapshot.label().into_owned(),
            image: image.id.to_string(),
            image_name: image.name,
        }),
        None => Ok(()),
    }
}

/// The changes that delete as many of these snapshots as one change of the catalog has room for,
/// and their outcomes. Those that an image needs stay, unless it is deleted with them.
fn deletions(
    meta: &dyn Meta,
    keys: &[SnapshotKey],
    with: Option<ImageId>,
) -> Result<(Vec<Change>, Vec<Result<SnapshotRecord>>)> {
    let mut deletions = Deletions::default();
    let mut outcomes = Vec::new();
    for key in keys {
        match SnapshotRecord::find(meta, key) {
            // As if they were deleted one after the other.
            Ok(record) if deletions.ids.contains(&record.id) => outcomes.push(Err(not_found(key))),
            Ok(record) => match check_need(meta, &record, with) {
                Ok(()) if !deletions.add(meta, &record)? => break,
                Ok(()) => outcomes.push(Ok(record)),
                Err(error @ Error::Needed { .. }) => outcomes.push(Err(error)),
                Err(error) => return Err(error),
            },
            Err(error @ Error::NotFound { .. }) => outcomes.push(Err(error)),
            Err(error) => return Err(error),
        }
    }
    Ok((deletions.into_changes(), outcomes))
}

/// Deletions that are made together.
#[derive(Default)]
struct Deletions {
    ids: HashSet<SnapshotId>,
    changes: Vec<Change>,
    /// Volumes as they are without those of their pending snapshots that are deleted.
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Bytes of the changes in the catalog log, at most.
    log_bytes: usize,
    /// Bytes of the deleted records.
    record_bytes: usize,
}

impl Deletions {
    /// Adds the deletion of a snapshot. Returns false if there is no room for it; there is always
    /// room for the first.
    fn add(&mut self, meta: &dyn Meta, record: &SnapshotRecord) -> Result<bool> {
        let deletion = Change::delete::<SnapshotRecord>(&record.id);
        let record_bytes = self.record_bytes + Change::put(record).log_bytes();
        let mut log_bytes = self.log_bytes + deletion.log_bytes();
        let mut volume = None;
        if record.state == SnapshotState::Pending
            && let Some(origin) = &record.origin
        {
            volume = self.volumes.get(&origin.volume).cloned();
            if volume.is_none() {
                volume = volume_of(meta, record)?;
                // It only gets shorter.
                log_bytes += volume.as_ref().map_or(0, |it| Change::put(it).log_bytes());
            }
        }
        let fits = log_bytes <= LOG_RECORD_BYTES_MAX / 2
            && record_bytes <= limits::DELETED_RECORDS_BYTES_MAX;
        if !fits && !self.ids.is_empty() {
            return Ok(false);
        }
        (self.log_bytes, self.record_bytes) = (log_bytes, record_bytes);
        self.ids.insert(record.id);
        self.changes.push(deletion);
        if let Some(volume) = volume {
            self.volumes.insert(volume.id, without(volume, record.id));
        }
        Ok(true)
    }

    fn into_changes(self) -> Vec<Change> {
        let mut changes = self.changes;
        changes.extend(self.volumes.values().map(Change::put));
        changes
    }
}

fn not_found(key: &SnapshotKey) -> Error {
    Error::NotFound {
        what: "snapshot",
        name: key.to_string(),
    }
}
