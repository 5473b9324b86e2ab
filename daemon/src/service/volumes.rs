//! Volumes as records. Reads and writes go through [`exports`](super::exports).

use std::collections::BTreeMap;

use varve_nbd::{ExportName, ServerUri};
use varve_store::{
    CloneSource, Error as StoreError, NewClone, NewVolume, SnapshotKey, VolumeKey, VolumeRecord,
    VolumeStatus,
};

use super::{
    Service,
    error::Result,
    page_token,
    pages::{ListRequest, Page},
    request,
    snapshots::{Snapshot, TagChange},
};
use crate::auth::{Action, Caller, Resource, done};

/// A volume to be made, empty or from a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct VolumeRequest {
    pub(crate) name: String,
    /// `None`: the snapshot's size.
    pub(crate) size_bytes: Option<u64>,
    /// Name or id of the snapshot; `None`: zeros.
    pub(crate) from: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A volume to be made from another volume or from a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct CloneRequest {
    /// An id, a name that only a snapshot or only a volume has, or a name with the prefix
    /// `snapshot/` or `volume/`. If no such record exists, the prefix counts as part of the name.
    pub(crate) source: String,
    pub(crate) name: String,
    /// `None`: the source's size.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A volume with its status and its pending snapshots.
#[derive(Debug, Clone)]
pub(crate) struct VolumeDetails {
    pub(crate) record: VolumeRecord,
    pub(crate) status: VolumeStatus,
    /// Pending snapshots of the volume.
    pub(crate) pending: Vec<Snapshot>,
}

/// A volume that was attached, and the addresses that serve it.
#[derive(Debug, Clone)]
pub(crate) struct AttachedAt {
    pub(crate) record: VolumeRecord,
    /// One URI for each NBD address.
    pub(crate) nbd_uris: Vec<String>,
}

impl Service {
    /// Makes a volume, empty or from a snapshot.
    pub(crate) async fn create_volume(
        &self,
        caller: &Caller,
        request: VolumeRequest,
    ) -> Result<VolumeRecord> {
        let mut on = vec![Resource::Volume(&request.name)];
        on.extend(request.from.as_deref().map(Resource::Snapshot));
        let from = request.from.as_deref();
        let from = from.map(|key| request::snapshot_key("from_snapshot", key));
        let new = from.transpose().map(|from| NewVolume {
            name: request.name.clone(),
            size_bytes: request.size_bytes,
            from,
            tags: request.tags.clone(),
        });
        let store = self.store().clone();
        let change = async move { Ok(store.create_volume(new?).await?) };
        let call = (caller, Action::CreateVolume);
        self.change(call, &on, change, |attempt, created: &VolumeRecord| {
            done!(
                attempt,
                id = %created.id,
                name = created.name,
                size_bytes = created.size_bytes,
                parent = created.parent.map(tracing::field::display),
                "volume created"
            );
        })
        .await
    }

    /// Makes a volume from another volume or from a snapshot, without copying its content.
    pub(crate) async fn clone_volume(
        &self,
        caller: &Caller,
        request: CloneRequest,
    ) -> Result<VolumeRecord> {
        let (cloned, source) = clone_source(&request.source);
        let on = [Resource::Volume(&request.name), cloned];
        let checked = request::check_key("snapshot or volume", "source", &request.source);
        let mut new = NewClone {
            source,
            name: request.name.clone(),
            size_bytes: request.size_bytes,
            tags: request.tags.clone(),
        };
        let (store, source) = (self.store().clone(), request.source.clone());
        let whole = either(&request.source);
        let change = async move {
            checked?;
            let refused = match store.clone_volume(new.clone()).await {
                Err(refused @ StoreError::NotFound { .. }) if new.source != whole => refused,
                outcome => return Ok(outcome?),
            };
            // The prefix may be a part of the name.
            new.source = whole;
            match store.clone_volume(new).await {
                Err(StoreError::NotFound { .. }) => Err(refused.into()),
                outcome => Ok(outcome?),
            }
        };
        let call = (caller, Action::CloneVolume);
        self.change(call, &on, change, move |attempt, made: &VolumeRecord| {
            done!(
                attempt,
                id = %made.id,
                name = made.name,
                source,
                size_bytes = made.size_bytes,
                parent = made.parent.map(tracing::field::display),
                "volume cloned"
            );
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
        let (store, key) = (self.store().clone(), request::volume_key(key));
        let change = async move { Ok(store.resize_volume(&key?, size_bytes).await?) };
        let call = (caller, Action::ResizeVolume);
        self.change(call, &on, change, |attempt, resized: &VolumeRecord| {
            done!(
                attempt,
                id = %resized.id,
                name = resized.name,
                size_bytes = resized.size_bytes,
                "volume resized"
            );
        })
        .await
    }

    /// The volume with this name or id, with its status.
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

    /// Lists volumes by name.
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
        let (store, key) = (self.store().clone(), request::volume_key(key));
        let change = async move { Ok(store.tag_volume(&key?, set, remove).await?) };
        let call = (caller, Action::TagVolume);
        self.change(call, &on, change, |attempt, tagged: &VolumeRecord| {
            done!(
                attempt,
                id = %tagged.id,
                name = tagged.name,
                tags = tagged.tags.len(),
                "volume tagged"
            );
        })
        .await
    }

    /// Deletes a volume. Returns its last record.
    pub(crate) async fn delete_volume(&self, caller: &Caller, key: &str) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        let (store, key) = (self.store().clone(), request::volume_key(key));
        let change = async move { Ok(store.delete_volume(&key?).await?) };
        let call = (caller, Action::DeleteVolume);
        self.change(call, &on, change, |attempt, deleted: &VolumeRecord| {
            done!(
                attempt,
                id = %deleted.id,
                name = deleted.name,
                size_bytes = deleted.size_bytes,
                "volume deleted"
            );
        })
        .await
    }

    /// Attaches a volume: from then on it is exported. `force` takes over a volume that is attached
    /// already.
    pub(crate) async fn attach_volume(
        &self,
        caller: &Caller,
        key: &str,
        force: bool,
    ) -> Result<AttachedAt> {
        let on = [Resource::Volume(key)];
        let (store, key) = (self.store().clone(), request::volume_key(key));
        let attachments = self.0.attachments.clone();
        let change = async move {
            let attached = store.attach_volume(&key?, force).await?;
            // Cut off the clients of the attachment before, and only then return the volume to its
            // new user.
            let before = attached.attachments.saturating_sub(1);
            attachments.end(attached.id, before).await?;
            Ok(attached)
        };
        let call = (caller, Action::AttachVolume);
        let attached = self.change(
            call,
            &on,
            change,
            move |attempt, attached: &VolumeRecord| {
                done!(
                    attempt,
                    id = %attached.id,
                    name = attached.name,
                    attachment = attached.attachments,
                    force,
                    "volume attached"
                );
            },
        );
        let attached = attached.await?;
        let servers = self.0.parts.facts.nbd_servers.iter();
        let name = attached.label();
        let uri = |server: &ServerUri| server.export(ExportName::Volume(&name));
        Ok(AttachedAt {
            nbd_uris: servers.map(uri).collect(),
            record: attached,
        })
    }

    /// Detaches a volume: its clients are refused from then on, and what they wrote is durable.
    pub(crate) async fn detach_volume(&self, caller: &Caller, key: &str) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        let (store, key) = (self.store().clone(), request::volume_key(key));
        let attachments = self.0.attachments.clone();
        let change = async move {
            let detached = store.detach_volume(&key?).await?;
            attachments.end(detached.id, detached.attachments).await?;
            Ok(detached)
        };
        let call = (caller, Action::DetachVolume);
        self.change(call, &on, change, |attempt, detached: &VolumeRecord| {
            done!(attempt, id = %detached.id, name = detached.name, "volume detached");
        })
        .await
    }
}

/// Parses the source of a clone, for the door and for the store. Its prefix is as in export names.
fn clone_source(source: &str) -> (Resource<'_>, CloneSource) {
    match ExportName::parse(source) {
        Some(ExportName::Snapshot(key)) => {
            (Resource::Snapshot(key), CloneSource::Snapshot(key.into()))
        }
        Some(ExportName::Volume(key)) => (Resource::Volume(key), CloneSource::Volume(key.into())),
        None => (Resource::SnapshotOrVolume(source), either(source)),
    }
}

/// The snapshot or the volume with this name or id.
fn either(source: &str) -> CloneSource {
    CloneSource::Either {
        snapshot: source.into(),
        volume: source.into(),
    }
}
