//! `VolumeService`: volumes as records. What is read and written goes over NBD.

use std::{sync::Arc, time::Instant};

use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use varve_proto::v1::{self, volume_service_server::VolumeService};
use varve_store::{Error, Result as StoreResult, Store, VolumeRecord};

use super::{
    Facts, calls, convert,
    failure::Failure,
    page_token::{self, Filters},
    pages::{self, Listed},
};
use crate::{exports::Attachments, tasks::Tasks};

/// The service.
#[derive(Debug)]
pub(super) struct Volumes {
    pub(super) store: Store,
    pub(super) tasks: Tasks,
    pub(super) facts: Arc<Facts>,
    pub(super) attachments: Arc<Attachments>,
}

#[async_trait]
impl VolumeService for Volumes {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        calls::answer("CreateVolume", self.create(request.into_inner())).await
    }

    async fn clone_volume(
        &self,
        request: Request<v1::CloneVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        calls::answer("CloneVolume", self.make_clone(request.into_inner())).await
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        calls::answer("ResizeVolume", self.resize(request.into_inner())).await
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        calls::answer("GetVolume", async {
            let key = convert::volume_key(&request.get_ref().volume)?;
            self.show(key).await
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        calls::answer("ListVolumes", self.list(request.into_inner())).await
    }

    async fn tag_volume(
        &self,
        request: Request<v1::TagVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        calls::answer("TagVolume", self.tag(request.into_inner())).await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        calls::answer("DeleteVolume", self.delete(request.into_inner())).await
    }

    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        calls::answer("AttachVolume", self.attach(request.into_inner())).await
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        calls::answer("DetachVolume", self.detach(request.into_inner())).await
    }
}

impl Volumes {
    /// Changes a volume in a task: what has begun is brought to its end, even if the client goes.
    async fn change<F>(
        &self,
        name: &'static str,
        change: impl FnOnce(Store) -> F,
    ) -> Result<VolumeRecord, Failure>
    where
        F: Future<Output = StoreResult<VolumeRecord>> + Send + 'static,
    {
        let change = change(self.store.clone());
        Ok(self.tasks.spawn(name, change).await??)
    }

    async fn create(&self, request: v1::CreateVolumeRequest) -> Result<v1::Volume, Failure> {
        let new = convert::new_volume(request)?;
        let created = self
            .change("create volume", |store| async move {
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
        Ok(convert::volume(created))
    }

    async fn make_clone(&self, request: v1::CloneVolumeRequest) -> Result<v1::Volume, Failure> {
        let started = Instant::now();
        let source = request.source.clone();
        let new = convert::new_clone(request)?;
        let made = self
            .change("clone volume", |store| async move {
                store.clone_volume(new).await
            })
            .await?;
        info!(
            id = %made.id,
            name = made.name,
            source,
            size_bytes = made.size_bytes,
            parent = made.parent.map(tracing::field::display),
            seconds = started.elapsed().as_secs_f64(),
            "volume cloned"
        );
        Ok(convert::volume(made))
    }

    async fn resize(&self, request: v1::ResizeVolumeRequest) -> Result<v1::Volume, Failure> {
        let key = convert::volume_key(&request.volume)?.to_owned();
        let resized = self
            .change("resize volume", |store| async move {
                store.resize_volume(&key, request.size_bytes).await
            })
            .await?;
        info!(
            id = %resized.id,
            name = resized.name,
            size_bytes = resized.size_bytes,
            "volume resized"
        );
        Ok(convert::volume(resized))
    }

    /// A volume with its status.
    async fn show(&self, key: &str) -> Result<v1::Volume, Failure> {
        let record = self.store.volume(key).await?;
        let status = self.store.volume_status(&record.id.to_string()).await?;
        let mut pending = Vec::with_capacity(record.pending.len());
        for snapshot in &record.pending {
            match self.store.snapshot(&snapshot.snapshot.to_string()).await {
                Ok(snapshot) => pending.push(convert::snapshot(&self.store, snapshot)),
                // Deleted just now.
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(v1::Volume {
            status: Some(convert::volume_status(status, pending)),
            ..convert::volume(record)
        })
    }

    async fn list(
        &self,
        request: v1::ListVolumesRequest,
    ) -> Result<v1::ListVolumesResponse, Failure> {
        let filters = Filters {
            listing: page_token::VOLUMES,
            name_prefix: &request.name_prefix,
            tags: &request.tags,
        };
        let listed = Listed {
            list: |query| self.store.list_volumes(query),
            convert: convert::volume,
            name: volume_name,
        };
        let (volumes, next_page_token) =
            pages::page(filters, request.page_size, &request.page_token, listed).await?;
        Ok(v1::ListVolumesResponse {
            volumes,
            next_page_token,
        })
    }

    async fn tag(&self, request: v1::TagVolumeRequest) -> Result<v1::Volume, Failure> {
        let key = convert::volume_key(&request.volume)?.to_owned();
        let tagged = self
            .change("tag volume", |store| async move {
                store.tag_volume(&key, request.set, request.remove).await
            })
            .await?;
        info!(id = %tagged.id, name = tagged.name, tags = tagged.tags.len(), "volume tagged");
        Ok(convert::volume(tagged))
    }

    async fn delete(
        &self,
        request: v1::DeleteVolumeRequest,
    ) -> Result<v1::DeleteVolumeResponse, Failure> {
        let key = convert::volume_key(&request.volume)?.to_owned();
        let deleted = self
            .change("delete volume", |store| async move {
                store.delete_volume(&key).await
            })
            .await?;
        info!(
            id = %deleted.id,
            name = deleted.name,
            size_bytes = deleted.size_bytes,
            "volume deleted"
        );
        Ok(v1::DeleteVolumeResponse {
            deleted: Some(convert::volume(deleted)),
        })
    }

    async fn attach(
        &self,
        request: v1::AttachVolumeRequest,
    ) -> Result<v1::AttachVolumeResponse, Failure> {
        let key = convert::volume_key(&request.volume)?.to_owned();
        let force = request.force;
        let attachments = Arc::clone(&self.attachments);
        let attached = self
            .change("attach volume", |store| async move {
                let attached = store.attach_volume(&key, force).await?;
                // Whoever had it is cut off before anybody else is told that it is theirs.
                attachments
                    .end(attached.id, attached.attachments.saturating_sub(1))
                    .await?;
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
        let export = convert::volume_export(&attached.name);
        let uri = |base: &String| convert::export_uri(base, &export);
        Ok(v1::AttachVolumeResponse {
            nbd_uris: self.facts.nbd_uris.iter().map(uri).collect(),
            volume: Some(convert::volume(attached)),
        })
    }

    async fn detach(&self, request: v1::DetachVolumeRequest) -> Result<v1::Volume, Failure> {
        let key = convert::volume_key(&request.volume)?.to_owned();
        let attachments = Arc::clone(&self.attachments);
        let detached = self
            .change("detach volume", |store| async move {
                let detached = store.detach_volume(&key).await?;
                attachments.end(detached.id, detached.attachments).await?;
                Ok(detached)
            })
            .await?;
        info!(id = %detached.id, name = detached.name, "volume detached");
        Ok(convert::volume(detached))
    }
}

fn volume_name(volume: &v1::Volume) -> &str {
    &volume.name
}
