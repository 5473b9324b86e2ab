//! Volumes as records. Reads and writes go through [`exports`](super::exports).

use std::{collections::BTreeMap, time::Instant};

use tracing::info;
use varve_nbd::{ExportName, ServerUri};
use varve_store::{
    CloneSource, Error as StoreError, NewClone, NewVolume, Result as StoreResult, SnapshotKey,
    Store, VolumeKey, VolumeRecord, VolumeStatus,
};

use super::{
    Service,
    error::Result,
    page_token,
    pages::{ListRequest, Page},
    request,
    snapshots::{Snapshot, TagChange},
};
use crate::auth::{Action, Caller, Resource};

/// A volume to be made, empty or of a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct VolumeRequest {
    pub(crate) name: String,
    /// `None`: as the snapshot's.
    pub(crate) size_bytes: Option<u64>,
    /// Name or id of the snapshot; `None`: zeros.
    pub(crate) from: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A volume to be made of another one or of a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct CloneRequest {
    /// An id, a name that only one of them has, or a name with the prefix `snapshot/` or `volume/`.
    pub(crate) source: String,
    pub(crate) name: String,
    /// `None`: as the source's.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A volume with all that is known of it.
#[derive(Debug, Clone)]
pub(crate) struct VolumeDetails {
    pub(crate) record: VolumeRecord,
    pub(crate) status: VolumeStatus,
    /// Its snapshots that are pending.
    pub(crate) pending: Vec<Snapshot>,
}

/// A volume that was attached, and where it is reached.
#[derive(Debug, Clone)]
pub(crate) struct AttachedAt {
    pub(crate) record: VolumeRecord,
    /// One URI for each NBD address.
    pub(crate) nbd_uris: Vec<String>,
}

impl Service {
    /// Changes a volume in a task: a change that has begun is brought to its end, even if the
    /// caller goes.
    async fn change_volume<F>(
        &self,
        name: &'static str,
        change: impl FnOnce(Store) -> F,
    ) -> Result<VolumeRecord>
    where
        F: Future<Output = StoreResult<VolumeRecord>> + Send + 'static,
    {
        let change = change(self.store().clone());
        Ok(self.tasks().spawn(name, change).await??)
    }

    /// Makes a volume, empty or of a snapshot.
    pub(crate) async fn create_volume(
        &self,
        caller: &Caller,
        request: VolumeRequest,
    ) -> Result<VolumeRecord> {
        let mut on = vec![Resource::Volume(&request.name)];
        on.extend(request.from.as_deref().map(Resource::Snapshot));
        self.pass(caller, Action::CreateVolume, &on, async {
            let from = request.from.as_deref();
            let from = from.map(|key| request::snapshot_key("from_snapshot", key));
            let new = NewVolume {
                name: request.name.clone(),
                size_bytes: request.size_bytes,
                from: from.transpose()?,
                tags: request.tags.clone(),
            };
            let created = self
                .change_volume("create volume", |store| async move {
                    store.create_volume(new).await
                })
                .await?;
            info!(
                id = %created.id,
                name = created.name,
                size_bytes = created.size_bytes,
                parent = created.parent.map(tracing::field::display),
                "volume created"
            );
            Ok(created)
        })
        .await
    }

    /// Makes a volume of another one or of a snapshot, without copying its content.
    pub(crate) async fn clone_volume(
        &self,
        caller: &Caller,
        request: CloneRequest,
    ) -> Result<VolumeRecord> {
        let (cloned, source) = clone_source(&request.source);
        let on = [Resource::Volume(&request.name), cloned];
        self.pass(caller, Action::CloneVolume, &on, async {
            let started = Instant::now();
            request::check_key("snapshot or volume", "source", &request.source)?;
            let new = NewClone {
                source,
                name: request.name.clone(),
                size_bytes: request.size_bytes,
                tags: request.tags.clone(),
            };
            let made = self
                .change_volume("clone volume", |store| async move {
                    store.clone_volume(new).await
                })
                .await?;
            info!(
                id = %made.id,
                name = made.name,
                source = request.source,
                size_bytes = made.size_bytes,
                parent = made.parent.map(tracing::field::display),
                seconds = started.elapsed().as_secs_f64(),
                "volume cloned"
            );
            Ok(made)
        })
        .await
    }

    /// Makes a volume longer.
    pub(crate) async fn resize_volume(
        &self,
        caller: &Caller,
        key: &str,
        size_bytes: u64,
    ) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        self.pass(caller, Action::ResizeVolume, &on, async {
            let key = request::volume_key(key)?;
            let resized = self
                .change_volume("resize volume", |store| async move {
                    store.resize_volume(&key, size_bytes).await
                })
                .await?;
            info!(
                id = %resized.id,
                name = resized.name,
                size_bytes = resized.size_bytes,
                "volume resized"
            );
            Ok(resized)
        })
        .await
    }

    /// The volume of that name or id, with its status.
    pub(crate) async fn volume(&self, caller: &Caller, key: &str) -> Result<VolumeDetails> {
        let on = [Resource::Volume(key)];
        self.pass(caller, Action::GetVolume, &on, async {
            let store = self.store();
            let key = request::volume_key(key)?;
            let record = store.volume(&key).await?;
            let status = store.volume_status(&VolumeKey::Id(record.id)).await?;
            let mut pending = Vec::with_capacity(record.pending.len());
            for snapshot in &record.pending {
                match store.snapshot(&SnapshotKey::Id(snapshot.snapshot)).await {
                    Ok(snapshot) => pending.push(self.described(snapshot)),
                    // Deleted just now.
                    Err(StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(VolumeDetails {
                record,
                status,
                pending,
            })
        })
        .await
    }

    /// Volumes by name.
    pub(crate) async fn list_volumes(
        &self,
        caller: &Caller,
        request: &ListRequest,
    ) -> Result<Page<VolumeRecord>> {
        self.pass(caller, Action::ListVolumes, &[], async {
            let (query, tokens) = request.query(page_token::VOLUMES)?;
            let found = self.store().list_volumes(query).await?;
            Ok(Page::of(found, request.limit(), tokens))
        })
        .await
    }

    /// Changes a volume's tags.
    pub(crate) async fn tag_volume(
        &self,
        caller: &Caller,
        key: &str,
        TagChange { set, remove }: TagChange,
    ) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        self.pass(caller, Action::TagVolume, &on, async {
            let key = request::volume_key(key)?;
            let tagged = self
                .change_volume("tag volume", |store| async move {
                    store.tag_volume(&key, set, remove).await
                })
                .await?;
            info!(
                id = %tagged.id,
                name = tagged.name,
                tags = tagged.tags.len(),
                "volume tagged"
            );
            Ok(tagged)
        })
        .await
    }

    /// Deletes a volume. Gives what it was.
    pub(crate) async fn delete_volume(&self, caller: &Caller, key: &str) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        self.pass(caller, Action::DeleteVolume, &on, async {
            let key = request::volume_key(key)?;
            let deleted = self
                .change_volume("delete volume", |store| async move {
                    store.delete_volume(&key).await
                })
                .await?;
            info!(
                id = %deleted.id,
                name = deleted.name,
                size_bytes = deleted.size_bytes,
                "volume deleted"
            );
            Ok(deleted)
        })
        .await
    }

    /// Attaches a volume: from then on it is exported. `force` takes a volume that is attached
    /// already away from its user.
    pub(crate) async fn attach_volume(
        &self,
        caller: &Caller,
        key: &str,
        force: bool,
    ) -> Result<AttachedAt> {
        let on = [Resource::Volume(key)];
        self.pass(caller, Action::AttachVolume, &on, async {
            let key = request::volume_key(key)?;
            let attachments = self.0.attachments.clone();
            let attached = self
                .change_volume("attach volume", |store| async move {
                    let attached = store.attach_volume(&key, force).await?;
                    // The clients of the attachment before are cut off before anybody else is told
                    // that the volume is theirs.
                    let before = attached.attachments.saturating_sub(1);
                    attachments.end(attached.id, before).await?;
                    Ok(attached)
                })
                .await?;
            info!(
                id = %attached.id,
                name = attached.name,
                attachment = attached.attachments,
                force,
                "volume attached"
            );
            let servers = self.0.parts.facts.nbd_servers.iter();
            let name = attached.label();
            let uri = |server: &ServerUri| server.export(ExportName::Volume(&name));
            Ok(AttachedAt {
                nbd_uris: servers.map(uri).collect(),
                record: attached,
            })
        })
        .await
    }

    /// Detaches a volume: its clients are refused from then on, and what they wrote is durable.
    pub(crate) async fn detach_volume(&self, caller: &Caller, key: &str) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        self.pass(caller, Action::DetachVolume, &on, async {
            let key = request::volume_key(key)?;
            let attachments = self.0.attachments.clone();
            let detached = self
                .change_volume("detach volume", |store| async move {
                    let detached = store.detach_volume(&key).await?;
                    attachments.end(detached.id, detached.attachments).await?;
                    Ok(detached)
                })
                .await?;
            info!(id = %detached.id, name = detached.name, "volume detached");
            Ok(detached)
        })
        .await
    }
}

/// What the source of a clone names, for the door and for the store. A source with a prefix is
/// written as exports are.
fn clone_source(source: &str) -> (Resource<'_>, CloneSource) {
    match ExportName::parse(source) {
        Some(ExportName::Snapshot(key)) => {
            (Resource::Snapshot(key), CloneSource::Snapshot(key.into()))
        }
        Some(ExportName::Volume(key)) => (Resource::Volume(key), CloneSource::Volume(key.into())),
        None => {
            let either = CloneSource::Either {
                snapshot: source.into(),
                volume: source.into(),
            };
            (Resource::SnapshotOrVolume(source), either)
        }
    }
}
