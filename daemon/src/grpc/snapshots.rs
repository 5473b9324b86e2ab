//! `SnapshotService`: snapshots as records, their differences, their verification.

use prost::Message as _;
use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, snapshot_service_server::SnapshotService};

use super::{
    calls::{self, AnswerStream},
    convert,
};
use crate::service::{Grantees, Service, TagChange};

/// The service.
#[derive(Debug)]
pub(super) struct Snapshots(pub(super) Service);

#[async_trait]
impl SnapshotService for Snapshots {
    type DiffSnapshotsStream = AnswerStream<v1::DiffSnapshotsResponse>;
    type VerifySnapshotStream = AnswerStream<v1::VerifySnapshotResponse>;

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let request = convert::list_snapshots(request);
        calls::answer(self.0.list_snapshots(&caller, &request), |page| {
            let (snapshots, next_page_token) =
                page.encode(convert::snapshot, v1::Snapshot::encoded_len);
            v1::ListSnapshotsResponse {
                snapshots,
                next_page_token,
            }
        })
        .await
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let found = self.0.snapshot(&caller, &request.snapshot);
        calls::answer(found, convert::snapshot).await
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let made = self
            .0
            .create_snapshots(&caller, convert::new_snapshots(request));
        calls::answer(made, |made| v1::CreateSnapshotsResponse {
            snapshots: made.into_iter().map(convert::snapshot).collect(),
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let deleted = self.0.delete_snapshot(&caller, &request.snapshot);
        calls::answer(deleted, |deleted| v1::DeleteSnapshotResponse {
            deleted: Some(convert::snapshot(deleted)),
        })
        .await
    }

    async fn delete_snapshots(
        &self,
        request: Request<v1::DeleteSnapshotsRequest>,
    ) -> Result<Response<v1::DeleteSnapshotsResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let deleted = self.0.delete_snapshots(&caller, request.snapshots);
        calls::answer(deleted, |outcomes| v1::DeleteSnapshotsResponse {
            outcomes: outcomes.into_iter().map(convert::deletion).collect(),
        })
        .await
    }

    async fn tag_snapshot(
        &self,
        request: Request<v1::TagSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let change = TagChange {
            set: request.set,
            remove: request.remove,
        };
        let tagged = self.0.tag_snapshot(&caller, &request.snapshot, change);
        calls::answer(tagged, convert::snapshot).await
    }

    async fn give_snapshot(
        &self,
        request: Request<v1::GiveSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let given = self
            .0
            .give_snapshot(&caller, &request.snapshot, &request.account);
        calls::answer(given, convert::snapshot).await
    }

    async fn share_snapshot(
        &self,
        request: Request<v1::ShareSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let with = Grantees {
            accounts: request.accounts,
            everybody: request.everybody,
        };
        let shared = self
            .0
            .share_snapshot(&caller, &request.snapshot, with, false);
        calls::answer(shared, convert::snapshot).await
    }

    async fn unshare_snapshot(
        &self,
        request: Request<v1::UnshareSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let with = Grantees {
            accounts: request.accounts,
            everybody: request.everybody,
        };
        let unshared = self
            .0
            .share_snapshot(&caller, &request.snapshot, with, true);
        calls::answer(unshared, convert::snapshot).await
    }

    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let diff = self
            .0
            .diff_snapshots(&caller, &request.base, &request.target);
        calls::stream(diff, |extents| v1::DiffSnapshotsResponse {
            extents: extents.into_iter().map(convert::diff_extent).collect(),
        })
        .await
    }

    async fn verify_snapshot(
        &self,
        request: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let verify = self.0.verify_snapshot(&caller, &request.snapshot);
        calls::stream(verify, convert::verify_state).await
    }
}
