//! Snapshots of volumes: their instant, and their completion.
//!
//! Snapshots of several volumes are crash-consistent as a group. The steps:
//!
//! 1. The epochs of all volumes end while none of them takes a change, so it is one instant for
//!    all. Then writers continue.
//! 2. All earlier writes become durable in the journals.
//! 3. The pending snapshots, and the cut in each volume's record, enter the catalog in one change.
//!    Now the snapshots are promised: their content is in the journals, whatever happens.
//! 4. A [`checkpoint`](super::checkpoint) takes each cut into the store, in the background. The
//!    catalog change that puts the volume on its new base also completes the snapshot.
//!
//! A crash before 3 leaves no snapshot and no promise. After 3, a pending snapshot continues when
//! its volume is opened again: the journal is read into epochs that end at the cuts.
//!
//! Deleting a pending snapshot cancels it: the volume loses the cut, and nothing else. A snapshot
//! that cannot be completed for now, because the disk is full for example, stays pending with the
//! reason, and is retried. A snapshot that can never be completed fails, and keeps its record with
//! the reason until it is deleted.

mod delete;
mod progress;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use self::progress::SnapshotProgress;
use self::progress::failed;
pub(crate) use self::progress::{PendingSnapshots, Progress};
use super::{
    Volumes,
    checkpoint::{Cut, Job, Purpose, passes},
    journal::{PromisedCut, Promises},
    queue::Queue,
    volume::Volume,
};
use crate::{
    Error, ListPlace, ListQuery, Result,
    engine::{Engine, Priority, joined},
    failpoints::{Failpoint, reach},
    format::{Change, journal::first_sequence_of, keys::Holdings},
    limits,
    meta::{
        self, AccountId, Key, Lookup as _, Meta, PendingSnapshot, Records as _, Sharing,
        SnapshotContent, SnapshotId, SnapshotKey, SnapshotOrigin, SnapshotRecord, SnapshotState,
        VolumeId, VolumeKey, VolumeRecord,
    },
};

/// A group of snapshots of one instant.
#[derive(Debug, Clone, Default)]
pub struct NewSnapshots {
    /// The account that the snapshots will belong to.
    pub owner: AccountId,
    /// The volumes.
    pub volumes: Vec<VolumeKey>,
    /// The snapshot's name. With several volumes, the name of each snapshot is this, a hyphen, and
    /// its volume's name.
    pub name: String,
    /// Their tags.
    pub tags: BTreeMap<String, String>,
}

impl NewSnapshots {
    fn name_for(&self, volume: &VolumeRecord) -> String {
        match self.volumes.len() {
            1 => self.name.clone(),
            _ => format!("{}-{}", self.name, volume.label()),
        }
    }
}

impl Volume {
    /// Makes a snapshot of the current content of the volume: see
    /// [`Store::snapshot_volume`](crate::Store::snapshot_volume).
    pub async fn snapshot(
        &self,
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        let key = Key::Id(self.record().id);
        let volumes = &self.inner().volumes;
        volumes.snapshot_volume(&key, name, tags).await
    }
}

/// A snapshot to be made.
struct Wanted {
    volume: Volume,
    /// The key by which it was found.
    key: VolumeKey,
    id: SnapshotId,
    name: String,
}

impl Volumes {
    /// The snapshot of that name or id, as failed if that could not be recorded.
    pub(crate) async fn snapshot(&self, key: &SnapshotKey) -> Result<SnapshotRecord> {
        let found = self.engine.find(key.clone()).await?;
        Ok(self.pending_snapshots.see(found))
    }

    /// Snapshots by name, ascending by bytes.
    pub(crate) async fn list_snapshots(&self, query: ListQuery) -> Result<Vec<SnapshotRecord>> {
        let found = self.engine.list(query).await?;
        let pending = &self.pending_snapshots;
        Ok(found.into_iter().map(|it| pending.see(it)).collect())
    }

    /// Makes snapshots of the current content of volumes, all of them at one instant. They are
    /// pending: their content is promised, and on its way into the store.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when a snapshot has such a name, [`Error::Quota`] when the owner
    /// may not have so many more, [`Error::Limit`] when too many of a volume are pending. None of
    /// them is made then.
    pub(crate) async fn snapshot_volumes(
        self: &Arc<Self>,
        new: NewSnapshots,
    ) -> Result<Vec<SnapshotRecord>> {
        if new.volumes.is_empty() || new.volumes.len() > limits::INSTANT_VOLUMES_MAX {
            return Err(Error::Invalid(format!(
                "{} volumes: one call makes snapshots of 1 to {}",
                new.volumes.len(),
                limits::INSTANT_VOLUMES_MAX
            )));
        }
        meta::check_tags("snapshot", &new.tags)?;
        // It keeps what is overwritten, by zeros too.
        self.engine.ledgers.of(new.owner).check()?;
        let (owner, more) = (
            new.owner,
            Holdings {
                snapshots: new.volumes.len() as u64,
                ..Holdings::default()
            },
        );
        let room = move |meta: &dyn Meta| meta::check_room(meta, owner, more);
        self.engine.meta(Priority::Read, room).await?;
        let mut wanted: BTreeMap<VolumeId, Wanted> = BTreeMap::new();
        for key in &new.volumes {
            let record = self.volume(key).await?;
            let name = new.name_for(&record);
            meta::check_name("snapshot", &name)?;
            // Refused before anything is done.
            let (id, named) = (record.id, (new.owner, name.clone()));
            self.engine
                .meta(Priority::Read, move |meta| {
                    check_new(meta, &record, (named.0, &named.1))
                })
                .await?;
            let volume = self.open_volume(&Key::Id(id)).await?;
            let snapshot = Wanted {
                volume,
                key: key.clone(),
                id: SnapshotId::random()?,
                name,
            };
            if wanted.insert(id, snapshot).is_some() {
                let key = key.to_string();
                return Err(Error::Invalid(format!("volume {key:?} is named twice")));
            }
        }
        let volumes = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "it is waited for here; it runs to its end, so that what it promises is \
                      taken into the store"
        )]
        let task = tokio::spawn(at_one_instant(
            volumes,
            wanted.into_values().collect(),
            (new.owner, new.tags),
        ));
        joined(task).await
    }

    /// Makes a snapshot of the current content of a volume, and waits until it is complete.
    ///
    /// # Errors
    ///
    /// As for [`snapshot_volumes`](Self::snapshot_volumes), and [`Error::NotCompleted`] when it
    /// fails. The volume stays as it is then.
    pub(crate) async fn snapshot_volume(
        self: &Arc<Self>,
        volume: &VolumeKey,
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        let new = NewSnapshots {
            owner: AccountId::ADMINISTRATOR,
            volumes: vec![volume.clone()],
            name: name.to_owned(),
            tags,
        };
        match &*self.snapshot_volumes(new).await? {
            [pending, ..] => self.completed_snapshot(pending.id).await,
            [] => Err(Error::Closing),
        }
    }

    /// Waits until a snapshot is not pending any more.
    ///
    /// # Errors
    ///
    /// [`Error::NotCompleted`] when it fails, [`Error::NotFound`] when it is deleted.
    pub(crate) async fn completed_snapshot(&self, id: SnapshotId) -> Result<SnapshotRecord> {
        if let Some(progress) = self.pending_snapshots.get(id) {
            progress.until_ended().await;
        }
        let record = self.snapshot(&Key::Id(id)).await?;
        if self.engine.commit.poisoned().is_none() && record.state == SnapshotState::Pending {
            return Err(Error::Closing);
        }
        record.completed().map(|_| record)
    }

    /// The progress of a pending snapshot; `None` if it is not pending, or was not begun since the
    /// store was opened.
    pub(crate) fn snapshot_progress(&self, id: SnapshotId) -> Option<SnapshotProgress> {
        let progress = self.pending_snapshots.get(id)?;
        Some(progress.shown())
    }

    /// Continues the snapshots that were pending when the store was closed, one volume after the
    /// other. Returns once each was tried: those that must wait are tried again.
    pub(crate) async fn resume_snapshots(self: &Arc<Self>) -> Result<()> {
        let mut pause = Duration::from_secs(1);
        while self.resume_once().await? {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(60));
        }
        Ok(())
    }

    /// Goes through all volumes once. Returns true if some cannot be opened for now.
    async fn resume_once(self: &Arc<Self>) -> Result<bool> {
        let mut after = None;
        let mut some_wait = false;
        loop {
            let query = ListQuery {
                after: after.take(),
                limit: limits::PAGE_MAX,
                ..ListQuery::default()
            };
            let volumes: Vec<VolumeRecord> = self.engine.list(query).await?;
            let Some(last) = volumes.last() else {
                return Ok(some_wait);
            };
            after = Some(ListPlace::of(last));
            for record in volumes.iter().filter(|record| !record.pending.is_empty()) {
                some_wait |= self.resume(record).await?;
            }
        }
    }

    /// Continues the snapshots of one volume. Returns true if it cannot be opened for now.
    async fn resume(self: &Arc<Self>, record: &VolumeRecord) -> Result<bool> {
        let all = &self.pending_snapshots;
        let ids = record.pending.iter().map(|pending| pending.snapshot);
        let error = match self.open_volume(&Key::Id(record.id)).await {
            Ok(_volume) => {
                // Records and log have their outcomes. A snapshot that must wait keeps its volume
                // open, and does not hold up other volumes.
                for progress in ids.filter_map(|id| all.get(id)) {
                    progress.until_tried().await;
                }
                return Ok(false);
            }
            Err(Error::Closing) => return Err(Error::Closing),
            Err(error) => error,
        };
        let waits = passes(&error);
        tracing::error!(volume = &*record.label(), %error, waits, "its pending snapshots cannot \
             continue");
        for progress in ids.map(|id| all.add(id)) {
            if waits {
                progress.wait(error.to_string());
            } else {
                progress.fail(error.to_string());
                progress.end();
            }
        }
        Ok(waits)
    }
}

fn volume_of(meta: &dyn Meta, record: &SnapshotRecord) -> Result<Option<VolumeRecord>> {
    match &record.origin {
        Some(origin) => VolumeRecord::by_id(meta, origin.volume),
        None => Ok(None),
    }
}

/// A volume's record without a pending snapshot.
fn without(mut volume: VolumeRecord, id: SnapshotId) -> VolumeRecord {
    volume.pending.retain(|pending| pending.snapshot != id);
    volume
}

/// Checks that a volume may have one more snapshot, of this name.
fn check_new(
    meta: &dyn Meta,
    volume: &VolumeRecord,
    (owner, name): (AccountId, &str),
) -> Result<()> {
    if volume.pending.len() >= limits::PENDING_SNAPSHOTS_MAX {
        return Err(Error::Limit(format!(
            "{} snapshots of volume {:?} are pending; wait until one is completed",
            volume.pending.len(),
            volume.label()
        )));
    }
    match meta.get_named::<SnapshotRecord>(owner, name)? {
        Some(taken) => Err(taken.name_taken_error()),
        None => Ok(()),
    }
}

/// Makes snapshots of volumes at one instant. Must run to its end, so that the promised content
/// gets into the store.
async fn at_one_instant(
    volumes: Arc<Volumes>,
    wanted: Vec<Wanted>,
    (owner, tags): (AccountId, BTreeMap<String, String>),
) -> Result<Vec<SnapshotRecord>> {
    // In the order of the volumes' ids, like everything that holds several.
    let mut cutting = Vec::with_capacity(wanted.len());
    for snapshot in &wanted {
        let checkpoints = &snapshot.volume.inner().checkpoints;
        cutting.push(Arc::clone(&checkpoints.cutting).lock_owned().await);
    }
    let queues: Vec<_> = wanted
        .iter()
        .map(|snapshot| &snapshot.volume.inner().queue)
        .collect();
    let (ended, (sizes, now)) = Queue::end_epochs(&queues, || {
        let size = |snapshot: &Wanted| snapshot.volume.size_bytes();
        (wanted.iter().map(size).collect::<Vec<_>>(), meta::now_ns())
    })?;
    let mut cuts = Vec::with_capacity(wanted.len());
    let mut sequences = Vec::with_capacity(wanted.len());
    for (ended, size_bytes) in ended.into_iter().zip(sizes) {
        let ended = ended.await.map_err(|_| Error::Closing)?;
        sequences.push(ended.last_sequence);
        cuts.push(Cut {
            next_file: ended.next_file,
            size_bytes,
        });
    }
    reach(Failpoint::EpochsEnded);
    for snapshot in &wanted {
        snapshot.volume.flush().await?;
    }
    reach(Failpoint::InstantDurable);
    let new: Vec<_> = wanted
        .iter()
        .zip(cuts.iter().zip(sequences))
        .map(|(snapshot, (cut, last_sequence))| Promised {
            volume: snapshot.volume.record().id,
            key: snapshot.key.clone(),
            snapshot: snapshot.id,
            name: snapshot.name.clone(),
            cut: *cut,
            last_sequence,
        })
        .collect();
    let plan = move |meta: &dyn Meta| promise(meta, owner, &new, &tags, now);
    let made = volumes.engine.commit.change((), plan).await?;
    for (snapshot, cut) in wanted.iter().zip(cuts) {
        let progress = volumes.pending_snapshots.add(snapshot.id);
        snapshot.volume.checkpoint_later(Job {
            cut,
            purpose: Purpose::Snapshot(snapshot.id, progress),
        });
    }
    Ok(made)
}

/// A snapshot to be promised: everything before its cut is durable.
struct Promised {
    volume: VolumeId,
    /// The key by which the volume was found.
    key: VolumeKey,
    snapshot: SnapshotId,
    name: String,
    cut: Cut,
    /// The last batch before the cut.
    last_sequence: u64,
}

/// The catalog's changes that make snapshots pending.
fn promise(
    meta: &dyn Meta,
    owner: AccountId,
    new: &[Promised],
    tags: &BTreeMap<String, String>,
    now: u64,
) -> Result<(Vec<Change>, Vec<SnapshotRecord>)> {
    meta::check_owner(meta, owner)?;
    let mut changes = Vec::with_capacity(2 * new.len());
    let mut made = Vec::with_capacity(new.len());
    for promised in new {
        let Promised {
            snapshot: id,
            ref name,
            cut,
            last_sequence,
            ..
        } = *promised;
        let mut volume = VolumeRecord::find(meta, &Key::Id(promised.volume))?;
        promised.key.check(&volume)?;
        check_new(meta, &volume, (owner, name))?;
        let before = volume.pending.last().map(|pending| pending.snapshot);
        let record = SnapshotRecord {
            id,
            name: Some(name.clone()),
            owner,
            description: String::new(),
            size_bytes: cut.size_bytes,
            state: SnapshotState::Pending,
            created_at_ns: now,
            tags: tags.clone(),
            origin: Some(SnapshotOrigin {
                volume: volume.id,
                name: volume.label().into_owned(),
            }),
            parent: before.or(volume.parent),
            sharing: Sharing::default(),
        };
        volume.pending.push(PendingSnapshot {
            snapshot: id,
            next_file: cut.next_file,
        });
        // A batch that is in the base needs no witness.
        if last_sequence >= first_sequence_of(volume.journal_from) {
            volume.promised_sequence = volume.promised_sequence.max(last_sequence);
        }
        changes.push(Change::put(&record));
        changes.push(Change::put(&volume));
        made.push(record);
    }
    Ok((changes, made))
}

/// The jobs for the pending snapshots in a volume's record.
pub(super) async fn resumed(volumes: &Volumes, record: &VolumeRecord) -> Result<Vec<Job>> {
    let mut jobs = Vec::with_capacity(record.pending.len());
    for pending in &record.pending {
        let key = Key::Id(pending.snapshot);
        let snapshot = match volumes.engine.find::<SnapshotRecord>(key).await {
            Ok(snapshot) => snapshot,
            // The two records change together, so this is damage. It is no reason to keep the
            // volume's content from anybody.
            Err(error @ Error::NotFound { .. }) => {
                tracing::error!(volume = &*record.label(), %error, "a pending snapshot has no record");
                continue;
            }
            Err(error) => return Err(error),
        };
        jobs.push(Job {
            cut: Cut {
                next_file: pending.next_file,
                size_bytes: snapshot.size_bytes,
            },
            purpose: Purpose::Snapshot(
                pending.snapshot,
                volumes.pending_snapshots.add(pending.snapshot),
            ),
        });
    }
    Ok(jobs)
}

/// The promises in a volume's record: where epochs of its journal begin, and what was durable.
pub(super) async fn promises(engine: &Arc<Engine>, record: &VolumeRecord) -> Result<Promises> {
    let mut cuts = Vec::with_capacity(record.pending.len());
    for pending in &record.pending {
        let id = pending.snapshot;
        let snapshot = match engine.find::<SnapshotRecord>(Key::Id(id)).await {
            Ok(snapshot) => format!("{:?}", snapshot.label()),
            Err(Error::NotFound { .. }) => id.to_string(),
            Err(error) => return Err(error),
        };
        cuts.push(PromisedCut {
            next_file: pending.next_file,
            snapshot,
        });
    }
    Ok(Promises {
        first_file: record.journal_from,
        cuts,
        sequence: record.promised_sequence,
    })
}

/// Puts a volume on a new base, which holds everything before a journal file, and completes the
/// snapshot of just that content, unless it was deleted meanwhile. Holds `held`, on which the new
/// base relies, until that is durable.
pub(super) async fn complete(
    engine: &Arc<Engine>,
    volume: VolumeId,
    next_file: u64,
    content: SnapshotContent,
    snapshot: Option<SnapshotId>,
    held: impl Send + 'static,
) -> Result<()> {
    let plan = move |meta: &dyn Meta| {
        let mut volume = VolumeRecord::find(meta, &Key::Id(volume))?;
        let mut changes = Vec::with_capacity(2);
        if let Some(id) = snapshot
            && let Some(record) = SnapshotRecord::by_id(meta, id)?
            && record.state == SnapshotState::Pending
        {
            let record = SnapshotRecord {
                state: SnapshotState::Completed(content),
                // Snapshots between may have been deleted, or have failed.
                parent: volume.parent,
                ..record
            };
            changes.push(Change::put(&record));
            volume = without(volume, id);
            volume.parent = Some(id);
        }
        // The base never goes past the cut of a pending snapshot. If the one before could not be
        // ended, this one waits with it for a restart.
        if let Some(before) = volume.pending.iter().find(|it| it.next_file < next_file) {
            return Err(Error::Limit(format!(
                "the earlier snapshot {} of volume {:?} is still pending",
                before.snapshot,
                volume.label()
            )));
        }
        volume.base = Some(content.root);
        volume.journal_from = next_file;
        if volume.promised_sequence < first_sequence_of(next_file) {
            volume.promised_sequence = 0;
        }
        changes.push(Change::put(&volume));
        Ok((changes, ()))
    };
    engine.commit.change(held, plan).await
}

/// Records that a snapshot has failed, unless it was deleted. Its volume goes on without the cut.
pub(super) async fn record_failure(
    engine: &Arc<Engine>,
    volume: VolumeId,
    snapshot: SnapshotId,
    reason: &str,
) -> Result<()> {
    let state = failed(reason);
    let plan = move |meta: &dyn Meta| {
        let mut changes = Vec::new();
        if let Some(record) = SnapshotRecord::by_id(meta, snapshot)?
            && record.state == SnapshotState::Pending
        {
            changes.push(Change::put(&SnapshotRecord {
                state: state.clone(),
                ..record
            }));
            let volume = VolumeRecord::by_id(meta, volume)?;
            changes.extend(volume.map(|volume| Change::put(&without(volume, snapshot))));
        }
        Ok((changes, ()))
    };
    engine.commit.change((), plan).await
}
