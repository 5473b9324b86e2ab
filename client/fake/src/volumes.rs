//! Looking after volumes.

use tonic::{Request, Response, Status};
use varve_client::ADMINISTRATOR;
use varve_proto::v1::{self, volume_service_server::VolumeService};

use super::Service;

const TIME: prost_types::Timestamp = prost_types::Timestamp {
    seconds: 1_700_000_000,
    nanos: 0,
};

impl Service {
    /// Changes the volume with that name.
    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut v1::Volume) -> Result<(), Status>,
    ) -> Result<v1::Volume, Status> {
        let mut state = self.state();
        let volume = state
            .volumes
            .get_mut(name)
            .ok_or_else(|| Status::not_found(format!("no volume {name}")))?;
        change(volume)?;
        Ok(volume.clone())
    }
}

fn detached(volume: &v1::Volume) -> Result<(), Status> {
    match volume.attached_at {
        Some(_) => Err(Status::failed_precondition(format!(
            "volume {} is attached",
            volume.name
        ))),
        None => Ok(()),
    }
}

#[tonic::async_trait]
impl VolumeService for Service {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        if state.volumes.contains_key(&request.name) {
            return Err(Status::already_exists(request.name));
        }
        if request.size_bytes > 16 << 40 {
            return Err(Status::invalid_argument("a volume has at most 16 TiB"));
        }
        let mut volume = v1::Volume {
            id: format!("vol-{:017x}", state.volumes.len() + 1),
            name: request.name.clone(),
            size_bytes: request.size_bytes,
            created_at: Some(TIME),
            tags: request.tags,
            owner: ADMINISTRATOR.to_owned(),
            ..v1::Volume::default()
        };
        if !request.from_snapshot.is_empty() {
            let (snapshot, _) = state
                .snapshots
                .get(&request.from_snapshot)
                .ok_or_else(|| Status::not_found("no such snapshot"))?;
            volume.size_bytes = volume.size_bytes.max(snapshot.size_bytes);
            volume.base = snapshot.root.clone();
            volume.parent = snapshot.id.clone();
        }
        state.volumes.insert(request.name, volume.clone());
        Ok(Response::new(volume))
    }

    async fn clone_volume(
        &self,
        request: Request<v1::CloneVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let source = state.volumes.get(&request.source);
        let mut volume = source
            .cloned()
            .ok_or_else(|| Status::not_found("no such snapshot or volume"))?;
        volume.id = format!("vol-{:017x}", state.volumes.len() + 1);
        volume.name.clone_from(&request.name);
        volume.size_bytes = volume.size_bytes.max(request.size_bytes);
        volume.tags = request.tags;
        state.volumes.insert(request.name, volume.clone());
        Ok(Response::new(volume))
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let volume = state.volumes.get_mut(&request.volume);
        let volume = volume.ok_or_else(|| Status::not_found("no such volume"))?;
        volume.size_bytes = request.size_bytes;
        Ok(Response::new(volume.clone()))
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        self.change(&request.get_ref().volume, |_| Ok(()))
            .map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        state.pages += 1;
        state.lists(&request.owner, "")?;
        let mut volumes: Vec<_> = state
            .volumes
            .values()
            .filter(|volume| volume.name.starts_with(&request.name_prefix))
            .filter(|volume| state.lists(&request.owner, &volume.owner).unwrap())
            .filter(|volume| volume.name > request.page_token)
            .filter(|volume| {
                request
                    .tags
                    .iter()
                    .all(|(k, v)| volume.tags.get(k) == Some(v))
            })
            .cloned()
            .collect();
        let mut next_page_token = String::new();
        if volumes.len() > request.page_size as usize {
            volumes.truncate(request.page_size as usize);
            next_page_token = volumes.last().unwrap().name.clone();
        }
        Ok(Response::new(v1::ListVolumesResponse {
            volumes,
            next_page_token,
        }))
    }

    async fn tag_volume(
        &self,
        request: Request<v1::TagVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::TagVolumeRequest {
            volume,
            set,
            remove,
        } = request.into_inner();
        let tagged = self.change(&volume, |volume| {
            volume.tags.retain(|key, _| !remove.contains(key));
            volume.tags.extend(set);
            Ok(())
        });
        tagged.map(Response::new)
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let deleted = self.change(&request.get_ref().volume, |volume| detached(volume))?;
        self.state().volumes.remove(&deleted.name);
        Ok(Response::new(v1::DeleteVolumeResponse {
            deleted: Some(deleted),
        }))
    }

    async fn give_volume(
        &self,
        request: Request<v1::GiveVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let request = request.into_inner();
        let owner = self.state().receiver(&request.account)?;
        let given = self.change(&request.volume, |volume| {
            detached(volume)?;
            volume.owner = owner;
            Ok(())
        });
        given.map(Response::new)
    }

    async fn attach_volume(
        &self,
        request: Request<v1::AttachVolumeRequest>,
    ) -> Result<Response<v1::AttachVolumeResponse>, Status> {
        let request = request.into_inner();
        let attached = self.change(&request.volume, |volume| {
            if !request.force {
                detached(volume)?;
            }
            volume.attached_at = Some(TIME);
            volume.attachments += 1;
            Ok(())
        })?;
        let name = match request.with_ticket {
            true => format!("{}@{}:varve_ticket_0a1b", attached.id, attached.attachments),
            false => attached.name.clone(),
        };
        Ok(Response::new(v1::AttachVolumeResponse {
            export: format!("volume/{name}"),
            nbd_uris: vec![
                format!("nbd+unix:///volume/{name}?socket=/data/nbd.sock"),
                format!("nbd://127.0.0.1:10809/volume/{name}"),
            ],
            volume: Some(attached),
        }))
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let detached = self.change(&request.get_ref().volume, |volume| {
            volume.attached_at = None;
            Ok(())
        });
        detached.map(Response::new)
    }
}
