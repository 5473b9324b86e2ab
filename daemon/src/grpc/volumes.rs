//! `VolumeService`: volumes as records. Reads and writes go over NBD.

use prost::Message as _;
use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, volume_service_server::VolumeService};

use super::{calls, convert};
use crate::service::{AttachRequest, Service, TagChange};

/// The service.
#[derive(Debug)]
pub(super) struct Volumes(pub(super) Service);

#[async_trait]
impl VolumeService for Volumes {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let created = self.0.create_volume(&caller, convert::new_volume(request));
        calls::answer(created, convert::volume).await
    }

    async fn clone_volume(
        &self,
        request: Request<v1::CloneVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let made = self.0.clone_volume(&caller, convert::new_clone(request));
        calls::answer(made, convert::volume).await
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let resized = self
            .0
            .resize_volume(&caller, &request.volume, request.size_bytes);
        calls::answer(resized, convert::volume).await
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let found = self.0.volume(&caller, &request.volume);
        calls::answer(found, convert::volume_details).await
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let request = convert::list_volumes(request);
        calls::answer(self.0.list_volumes(&caller, &request), |page| {
            let (volumes, next_page_token) = page.encode(convert::volume, v1::Volume::encoded_len);
            v1::ListVolumesResponse {
                volumes,
                next_page_token,
            }
        })
        .await
    }

    async fn tag_volume(
        &self,
        request: Request<v1::TagVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let change = TagChange {
            set: request.set,
            remove: request.remove,
        };
        let tagged = self.0.tag_volume(&caller, &request.volume, change);
        calls::answer(tagged, convert::volume).await
    }

    async fn give_volume(
        &self,
        request: Request<v1::GiveVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let given = self
            .0
            .give_volume(&caller, &request.volume, &request.account);
        calls::answer(given, convert::volume).await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let deleted = self.0.delete_volume(&caller, &request.volume);
        calls::answer(deleted, |deleted| v1::DeleteVolumeResponse {
            deleted: Some(convert::volume(deleted)),
        })
        .await
    }

    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let how = AttachRequest {
            force: request.force,
            with_ticket: request.with_ticket,
        };
        let attached = self.0.attach_volume(&caller, &request.volume, how);
        calls::answer(attached, |attached| v1::AttachVolumeResponse {
            nbd_uris: attached.nbd_uris,
            export: attached.export,
            volume: Some(convert::volume(attached.record)),
        })
        .await
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let detached = self.0.detach_volume(&caller, &request.volume);
        calls::answer(detached, convert::volume).await
    }
}
