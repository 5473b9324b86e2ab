//! Looking after snapshots, and status.

use futures::{StreamExt, stream};
use tonic::{Request, Response, Status};
use varve_content::chunker::CHUNKER_VERSION;
use varve_proto::v1::{
    self, snapshot_service_server::SnapshotService, status_service_server::StatusService,
};

use super::{Answers, Service, State};

/// Some differences, in two messages.
pub(crate) fn differences() -> Vec<v1::DiffSnapshotsResponse> {
    let extent = |offset_bytes, kind: v1::DiffKind| v1::DiffExtent {
        offset_bytes,
        length_bytes: 4096,
        kind: kind.into(),
    };
    vec![
        v1::DiffSnapshotsResponse {
            extents: vec![extent(0, v1::DiffKind::Changed)],
        },
        v1::DiffSnapshotsResponse {
            extents: vec![
                extent(8192, v1::DiffKind::Added),
                extent(16384, v1::DiffKind::Removed),
            ],
        },
    ]
}

impl State {
    /// The name of the snapshot with this name or id.
    fn snapshot_name(&self, key: &str) -> Result<String, Status> {
        let mut all = self.snapshots.iter();
        let found = all.find(|(name, (snapshot, _))| *name == key || snapshot.id == key);
        let (name, _) = found.ok_or_else(|| Status::not_found(format!("no snapshot {key}")))?;
        Ok(name.clone())
    }

    fn remove_snapshot(&mut self, key: &str) -> Result<v1::Snapshot, Status> {
        let name = self.snapshot_name(key)?;
        let (snapshot, _) = self.snapshots.remove(&name).unwrap();
        Ok(snapshot)
    }
}

#[tonic::async_trait]
impl SnapshotService for Service {
    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        state.pages += 1;
        state.lists(&request.owner, "")?;
        let mut snapshots: Vec<_> = state
            .snapshots
            .values()
            .map(|(snapshot, _)| snapshot)
            .filter(|snapshot| snapshot.name.starts_with(&request.name_prefix))
            .filter(|snapshot| state.lists(&request.owner, &snapshot.owner).unwrap())
            .filter(|snapshot| snapshot.name > request.page_token)
            .filter(|snapshot| {
                let mut tags = request.tags.iter();
                tags.all(|(key, value)| snapshot.tags.get(key) == Some(value))
            })
            .cloned()
            .collect();
        let mut next_page_token = String::new();
        if snapshots.len() > request.page_size as usize {
            snapshots.truncate(request.page_size as usize);
            next_page_token = snapshots.last().unwrap().name.clone();
        }
        Ok(Response::new(v1::ListSnapshotsResponse {
            snapshots,
            next_page_token,
        }))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let name = request.into_inner().snapshot;
        self.take_time("GetSnapshot").await;
        let mut state = self.state();
        if !state.snapshot_course.is_empty() {
            return Ok(Response::new(state.snapshot_course.remove(0)));
        }
        let name = state.snapshot_name(&name)?;
        Ok(Response::new(state.snapshots[&name].0.clone()))
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let made = state.snapshots.values().next();
        let mut made = made
            .map(|(snapshot, _)| snapshot.clone())
            .ok_or_else(|| Status::not_found(format!("no volumes {:?}", request.volumes)))?;
        made.name.clone_from(&request.name);
        made.tags = request.tags;
        state
            .snapshots
            .insert(request.name, (made.clone(), Vec::new()));
        Ok(Response::new(v1::CreateSnapshotsResponse {
            snapshots: vec![made],
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let name = request.into_inner().snapshot;
        let deleted = self.state().remove_snapshot(&name)?;
        Ok(Response::new(v1::DeleteSnapshotResponse {
            deleted: Some(deleted),
        }))
    }

    async fn delete_snapshots(
        &self,
        request: Request<v1::DeleteSnapshotsRequest>,
    ) -> Result<Response<v1::DeleteSnapshotsResponse>, Status> {
        let names = request.into_inner().snapshots;
        let mut state = self.state();
        state.deletions += 1;
        for name in std::mem::take(&mut state.deleted_meanwhile) {
            state.snapshots.remove(&name);
        }
        let first = names.iter().take(self.manners.deletions_max);
        let outcomes = first.map(|name| match state.remove_snapshot(name) {
            Ok(deleted) => v1::SnapshotDeletion {
                deleted: Some(deleted),
                ..v1::SnapshotDeletion::default()
            },
            Err(status) => v1::SnapshotDeletion {
                code: status.code().into(),
                message: status.message().to_owned(),
                deleted: None,
            },
        });
        Ok(Response::new(v1::DeleteSnapshotsResponse {
            outcomes: outcomes.collect(),
        }))
    }

    async fn tag_snapshot(
        &self,
        request: Request<v1::TagSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let v1::TagSnapshotRequest {
            snapshot: name,
            set,
            remove,
        } = request.into_inner();
        let mut state = self.state();
        let (snapshot, _) = state
            .snapshots
            .get_mut(&name)
            .ok_or_else(|| Status::not_found(format!("no snapshot {name}")))?;
        snapshot.tags.retain(|key, _| !remove.contains(key));
        snapshot.tags.extend(set);
        Ok(Response::new(snapshot.clone()))
    }

    async fn give_snapshot(
        &self,
        request: Request<v1::GiveSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let owner = state.receiver(&request.account)?;
        let name = state.snapshot_name(&request.snapshot)?;
        let (snapshot, _) = state.snapshots.get_mut(&name).unwrap();
        snapshot.owner = owner;
        Ok(Response::new(snapshot.clone()))
    }

    async fn share_snapshot(
        &self,
        request: Request<v1::ShareSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let name = state.snapshot_name(&request.snapshot)?;
        let (snapshot, _) = state.snapshots.get_mut(&name).unwrap();
        snapshot.shared_accounts.extend(request.accounts);
        snapshot.shared_with_everybody |= request.everybody;
        Ok(Response::new(snapshot.clone()))
    }

    async fn unshare_snapshot(
        &self,
        request: Request<v1::UnshareSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let name = state.snapshot_name(&request.snapshot)?;
        let (snapshot, _) = state.snapshots.get_mut(&name).unwrap();
        let gone = &request.accounts;
        snapshot.shared_accounts.retain(|it| !gone.contains(it));
        snapshot.shared_with_everybody &= !request.everybody;
        Ok(Response::new(snapshot.clone()))
    }

    type DiffSnapshotsStream = Answers<v1::DiffSnapshotsResponse>;

    async fn diff_snapshots(
        &self,
        _: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        self.take_time("DiffSnapshots").await;
        let answers = (self.manners.differences)().into_iter().map(Ok);
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    type VerifySnapshotStream = Answers<v1::VerifySnapshotResponse>;

    async fn verify_snapshot(
        &self,
        _: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        let violation = v1::Violation {
            message: "chunk 00 in pack 1".to_owned(),
            offset_bytes: 4096,
        };
        let answers = [
            Ok(v1::VerifySnapshotResponse {
                checked: 1,
                violations: vec![violation],
                ..Default::default()
            }),
            Ok(v1::VerifySnapshotResponse {
                checked: 2,
                done: true,
                ..Default::default()
            }),
        ];
        Ok(Response::new(stream::iter(answers).boxed()))
    }
}

#[tonic::async_trait]
impl StatusService for Service {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse {
            version: "1.2.3".to_owned(),
            store_id: "5eed".to_owned(),
            format_version: 1,
            chunker_version: CHUNKER_VERSION,
            data_dir: "/data".to_owned(),
            started_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            snapshots: 2,
            volumes: 4,
            logical_bytes: 8 << 30,
            chunks: 3,
            chunk_bytes: 300 << 10,
            stored_bytes: 100 << 10,
            packs: 1,
            io_engine: "io_uring".to_owned(),
            compression: "zstd".to_owned(),
            free_bytes: 1 << 40,
            read_only_reason: "fdatasync failed".to_owned(),
            nbd_uris: vec!["nbd+unix:///?socket=/data/nbd.sock".to_owned()],
            ..Default::default()
        }))
    }
}
