//! Volumes: make, find, open, attach, grow, clone, delete; and snapshots of their content.

use std::collections::BTreeMap;

use super::Store;
use crate::{
    Result,
    engine::ListQuery,
    meta::{SnapshotId, SnapshotRecord, VolumeKey, VolumeRecord},
    volume::{NewClone, NewSnapshots, NewVolume, SnapshotProgress, Volume, VolumeStatus},
};

impl Store {
    /// Makes a volume, detached.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for a name, a tag or a size that cannot be,
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) for a name that is taken,
    /// [`Error::TooMany`](crate::Error::TooMany) when there are as many volumes as may be,
    /// [`Error::NotFound`](crate::Error::NotFound) without the snapshot it is to begin with,
    /// [`Error::NotCompleted`](crate::Error::NotCompleted) when that is pending or has failed;
    /// those of changing the catalog.
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeRecord> {
        self.volumes.create_volume(new).await
    }

    /// The volume of that name or id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    pub async fn volume(&self, key: &VolumeKey) -> Result<VolumeRecord> {
        self.volumes.volume(key).await
    }

    /// Lists volumes by name, ascending by bytes.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn list_volumes(&self, query: ListQuery) -> Result<Vec<VolumeRecord>> {
        self.engine.list(query).await
    }

    /// Sets and removes tags of a volume, in one step. A tag that is both set and removed is set.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound), and
    /// [`Error::Invalid`](crate::Error::Invalid) for tags that cannot be.
    pub async fn tag_volume(
        &self,
        key: &VolumeKey,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<VolumeRecord> {
        self.engine.tag(key.clone(), set, remove).await
    }

    /// Deletes a volume and its journal. Its snapshots stay.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound),
    /// [`Error::Attached`](crate::Error::Attached) while it is attached,
    /// [`Error::HasPending`](crate::Error::HasPending) while snapshots of it are pending; those of
    /// changing the catalog.
    pub async fn delete_volume(&self, key: &VolumeKey) -> Result<VolumeRecord> {
        self.volumes.delete_volume(key).await
    }

    /// Attaches a volume, and numbers the attachment.
    ///
    /// `force` takes over one that is attached already, as after its user died without detaching
    /// it. The number goes up with that, too, so the former user can be told apart.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound),
    /// [`Error::Attached`](crate::Error::Attached) if it is attached and `force` is not set; those
    /// of changing the catalog.
    pub async fn attach_volume(&self, key: &VolumeKey, force: bool) -> Result<VolumeRecord> {
        self.volumes.attach_volume(key, force).await
    }

    /// Detaches a volume. One that is not attached stays as it is, so a caller that lost the
    /// answer may ask again.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound); those of changing the catalog.
    pub async fn detach_volume(&self, key: &VolumeKey) -> Result<VolumeRecord> {
        self.volumes.detach_volume(key).await
    }

    /// Opens a volume, or returns the one that is open already. Reads its journal first.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound),
    /// [`Error::Damaged`](crate::Error::Damaged) when the journal is, in a place that was durable,
    /// [`Error::Incompatible`](crate::Error::Incompatible) when the journal is another volume's, of
    /// another version, or newer than the catalog,
    /// [`Error::Poisoned`](crate::Error::Poisoned) once the store has stopped writing; those of
    /// reading the journal.
    pub async fn open_volume(&self, key: &VolumeKey) -> Result<Volume> {
        self.volumes.open_volume(key).await
    }

    /// Grows a volume to `size_bytes`, attached or not; the new part reads as zeros.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound),
    /// [`Error::Invalid`](crate::Error::Invalid) for a size that cannot be, or that is smaller,
    /// because volumes do not shrink; those of changing the catalog.
    pub async fn resize_volume(&self, key: &VolumeKey, size_bytes: u64) -> Result<VolumeRecord> {
        self.volumes.resize_volume(key, size_bytes).await
    }

    /// Returns the state of a volume beside its record.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound), and those of reading its journal's directory.
    pub async fn volume_status(&self, key: &VolumeKey) -> Result<VolumeStatus> {
        self.volumes.volume_status(key).await
    }

    /// Makes a volume, detached, with the content of a snapshot, or of another volume now.
    ///
    /// # Errors
    ///
    /// As of [`create_volume`](Self::create_volume), where the source stands for the snapshot;
    /// [`Error::Invalid`](crate::Error::Invalid) if [`CloneSource::Either`](crate::CloneSource)
    /// names a snapshot and a volume; those of opening the other volume, and of taking its journal
    /// into the store.
    pub async fn clone_volume(&self, new: NewClone) -> Result<VolumeRecord> {
        self.volumes.clone_volume(new).await
    }

    /// Makes snapshots of the current content of volumes, all of them at one instant. They are
    /// pending: their content is promised, and on its way into the store.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for a name or tags that cannot be, for no volumes
    /// or more than [`INSTANT_VOLUMES_MAX`](crate::limits::INSTANT_VOLUMES_MAX), and for a volume
    /// that is named twice,
    /// [`Error::NotFound`](crate::Error::NotFound) without one of the volumes,
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) when a snapshot has such a name,
    /// [`Error::Limit`](crate::Error::Limit) when
    /// [`PENDING_SNAPSHOTS_MAX`](crate::limits::PENDING_SNAPSHOTS_MAX) of a volume are pending.
    /// None of them is made then. Errors of opening the volumes, of writing their journals and of
    /// changing the catalog.
    pub async fn snapshot_volumes(&self, new: NewSnapshots) -> Result<Vec<SnapshotRecord>> {
        self.volumes.snapshot_volumes(new).await
    }

    /// Makes a snapshot of the current content of a volume, and waits until it is complete.
    ///
    /// # Errors
    ///
    /// As of [`snapshot_volumes`](Self::snapshot_volumes) and of
    /// [`completed_snapshot`](Self::completed_snapshot). The volume stays as it is when the
    /// snapshot fails.
    pub async fn snapshot_volume(
        &self,
        volume: &VolumeKey,
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord> {
        self.volumes.snapshot_volume(volume, name, tags).await
    }

    /// Waits until a snapshot is not pending any more.
    ///
    /// # Errors
    ///
    /// [`Error::NotCompleted`](crate::Error::NotCompleted) when it fails, or the store has stopped
    /// writing,
    /// [`Error::NotFound`](crate::Error::NotFound) when it is deleted,
    /// [`Error::Closing`](crate::Error::Closing) when the store closes first.
    pub async fn completed_snapshot(&self, id: SnapshotId) -> Result<SnapshotRecord> {
        self.volumes.completed_snapshot(id).await
    }

    /// Returns how far a pending snapshot has come; `None` if it is not pending, or was not begun
    /// since the store was opened.
    #[must_use]
    pub fn snapshot_progress(&self, id: SnapshotId) -> Option<SnapshotProgress> {
        self.volumes.snapshot_progress(id)
    }

    /// Goes on with the snapshots that were pending when the store was closed, one volume after the
    /// other. Returns when each had its turn: those that must wait are tried again.
    ///
    /// # Errors
    ///
    /// [`Error::Closing`](crate::Error::Closing), and those of reading the catalog.
    pub async fn resume_snapshots(&self) -> Result<()> {
        self.volumes.resume_snapshots().await
    }

    /// Takes journals that nobody adds to into the store, for as long as it is polled or the store
    /// is open.
    pub async fn empty_idle_journals(&self) {
        self.volumes.empty_idle_journals().await;
    }
}
