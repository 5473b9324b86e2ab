//! `SnapshotService`: snapshots as records, their differences, their verification.

use std::time::Instant;

use tokio::time;
use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use varve_proto::v1::{self, snapshot_service_server::SnapshotService};
use varve_store::{DiffExtent, SnapshotDiff, SnapshotVerify, Store};

use super::{
    calls::{self, AnswerStream, Answers},
    convert,
    failure::Failure,
    page_token::{self, Filters},
    pages::{self, Listed},
};
use crate::{limits, resources::shares::Shares, tasks::Tasks};

/// The service.
#[derive(Debug)]
pub(super) struct Snapshots {
    store: Store,
    tasks: Tasks,
    /// Places for comparisons and verifications.
    checks: Shares,
}

impl Snapshots {
    pub(super) fn new(store: Store, tasks: Tasks) -> Self {
        Self {
            store,
            tasks,
            checks: calls::places("comparisons and verifications", limits::CHECK_STREAMS_MAX),
        }
    }
}

#[async_trait]
impl SnapshotService for Snapshots {
    type DiffSnapshotsStream = AnswerStream<v1::DiffSnapshotsResponse>;
    type VerifySnapshotStream = AnswerStream<v1::VerifySnapshotResponse>;

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        calls::answer("ListSnapshots", self.list(request.into_inner())).await
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        calls::answer("GetSnapshot", async {
            let key = convert::snapshot_key("snapshot", &request.get_ref().snapshot)?;
            Ok(convert::snapshot(
                &self.store,
                self.store.snapshot(key).await?,
            ))
        })
        .await
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Result<Response<v1::CreateSnapshotsResponse>, Status> {
        calls::answer("CreateSnapshots", self.create(request.into_inner())).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        calls::answer("DeleteSnapshot", self.delete(request.into_inner())).await
    }

    async fn tag_snapshot(
        &self,
        request: Request<v1::TagSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        calls::answer("TagSnapshot", self.tag(request.into_inner())).await
    }

    async fn diff_snapshots(
        &self,
        request: Request<v1::DiffSnapshotsRequest>,
    ) -> Result<Response<Self::DiffSnapshotsStream>, Status> {
        let holder = calls::holder(&request);
        let request = request.into_inner();
        let opened = calls::answer("DiffSnapshots", async {
            let base = convert::snapshot_key("base", &request.base)?;
            let target = convert::snapshot_key("target", &request.target)?;
            let place = calls::place(&self.checks, holder).await?;
            Ok((self.store.diff(base, target).await?, place))
        });
        let (diff, place) = opened.await?.into_inner();
        Ok(calls::stream(
            &self.tasks,
            "DiffSnapshots",
            Some(place),
            |answers| send_diff(diff, answers),
        ))
    }

    async fn verify_snapshot(
        &self,
        request: Request<v1::VerifySnapshotRequest>,
    ) -> Result<Response<Self::VerifySnapshotStream>, Status> {
        let holder = calls::holder(&request);
        let request = request.into_inner();
        let opened = calls::answer("VerifySnapshot", async {
            let key = convert::snapshot_key("snapshot", &request.snapshot)?;
            let place = calls::place(&self.checks, holder).await?;
            Ok((self.store.verify(key).await?, place))
        });
        let (verify, place) = opened.await?.into_inner();
        Ok(calls::stream(
            &self.tasks,
            "VerifySnapshot",
            Some(place),
            |answers| send_verify(request.snapshot, verify, answers),
        ))
    }
}

impl Snapshots {
    async fn list(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, Failure> {
        let filters = Filters {
            listing: page_token::SNAPSHOTS,
            name_prefix: &request.name_prefix,
            tags: &request.tags,
        };
        let listed = Listed {
            list: |query| self.store.list_snapshots(query),
            convert: |record| convert::snapshot(&self.store, record),
            name: snapshot_name,
        };
        let (snapshots, next_page_token) =
            pages::page(filters, request.page_size, &request.page_token, listed).await?;
        Ok(v1::ListSnapshotsResponse {
            snapshots,
            next_page_token,
        })
    }

    /// In a task: a change that has begun is brought to its end, even if the client goes.
    async fn delete(
        &self,
        request: v1::DeleteSnapshotRequest,
    ) -> Result<v1::DeleteSnapshotResponse, Failure> {
        let started = Instant::now();
        let key = convert::snapshot_key("snapshot", &request.snapshot)?.to_owned();
        let store = self.store.clone();
        let deleted = self
            .tasks
            .spawn("delete snapshot", async move {
                store.delete_snapshot(&key).await
            })
            .await??;
        info!(
            id = %deleted.id,
            name = deleted.name,
            size_bytes = deleted.size_bytes,
            seconds = started.elapsed().as_secs_f64(),
            "snapshot deleted"
        );
        Ok(v1::DeleteSnapshotResponse {
            deleted: Some(convert::snapshot(&self.store, deleted)),
        })
    }

    /// In a task, like a deletion.
    async fn create(
        &self,
        request: v1::CreateSnapshotsRequest,
    ) -> Result<v1::CreateSnapshotsResponse, Failure> {
        let started = Instant::now();
        let new = convert::new_snapshots(request)?;
        let store = self.store.clone();
        let made = self
            .tasks
            .spawn("create snapshots", async move {
                store.snapshot_volumes(new).await
            })
            .await??;
        for record in &made {
            info!(
                id = %record.id,
                name = record.name,
                volume = record.origin.as_ref().map(|origin| &*origin.name),
                size_bytes = record.size_bytes,
                seconds = started.elapsed().as_secs_f64(),
                "snapshot of a volume is pending"
            );
        }
        let snapshots = made.into_iter();
        let snapshots = snapshots.map(|record| convert::snapshot(&self.store, record));
        Ok(v1::CreateSnapshotsResponse {
            snapshots: snapshots.collect(),
        })
    }

    async fn tag(&self, request: v1::TagSnapshotRequest) -> Result<v1::Snapshot, Failure> {
        let key = convert::snapshot_key("snapshot", &request.snapshot)?.to_owned();
        let store = self.store.clone();
        let tagged = self
            .tasks
            .spawn("tag snapshot", async move {
                store.tag_snapshot(&key, request.set, request.remove).await
            })
            .await??;
        info!(id = %tagged.id, name = tagged.name, tags = tagged.tags.len(), "snapshot tagged");
        Ok(convert::snapshot(&self.store, tagged))
    }
}

fn snapshot_name(snapshot: &v1::Snapshot) -> &str {
    &snapshot.name
}

/// Sends the extents of a diff, neighbours of a kind as one.
async fn send_diff(
    mut diff: SnapshotDiff,
    answers: Answers<v1::DiffSnapshotsResponse>,
) -> Result<(), Failure> {
    let mut extents = Vec::new();
    // The last extent seen: the next one may go on where it ends.
    let mut last: Option<DiffExtent> = None;
    while let Some(found) = diff.next().await? {
        for extent in found {
            match &mut last {
                Some(last)
                    if last.kind == extent.kind
                        && last.offset_bytes + last.length_bytes == extent.offset_bytes =>
                {
                    last.length_bytes += extent.length_bytes;
                }
                _ => extents.extend(last.replace(extent).map(convert::diff_extent)),
            }
            if extents.len() >= limits::DIFF_EXTENTS_PER_MESSAGE {
                let extents = std::mem::take(&mut extents);
                answers.send(v1::DiffSnapshotsResponse { extents }).await?;
            }
        }
    }
    extents.extend(last.map(convert::diff_extent));
    if !extents.is_empty() {
        answers.send(v1::DiffSnapshotsResponse { extents }).await?;
    }
    Ok(())
}

/// Sends how far a verification is, now and then, and what it found; last of all that it is done.
async fn send_verify(
    key: String,
    mut verify: SnapshotVerify,
    answers: Answers<v1::VerifySnapshotResponse>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut next_message = time::Instant::now() + limits::VERIFY_PROGRESS_INTERVAL;
    let mut state = v1::VerifySnapshotResponse::default();
    let mut violations = 0;
    while let Some(progress) = verify.next().await? {
        state.checked = progress.checked;
        state.checked_bytes = progress.checked_bytes;
        state.total_bytes = progress.total_bytes;
        violations += progress.violations.len();
        for violation in progress.violations {
            state.violations.push(convert::violation(violation));
            if state.violations.len() >= limits::VIOLATIONS_PER_MESSAGE {
                answers.send(take_progress(&mut state)).await?;
            }
        }
        if time::Instant::now() >= next_message {
            answers.send(take_progress(&mut state)).await?;
            next_message = time::Instant::now() + limits::VERIFY_PROGRESS_INTERVAL;
        }
    }
    info!(
        snapshot = key,
        checked = state.checked,
        checked_bytes = state.checked_bytes,
        violations,
        seconds = started.elapsed().as_secs_f64(),
        "snapshot verified"
    );
    state.done = true;
    answers.send(state).await
}

/// The state as a message; what was found is told once.
fn take_progress(state: &mut v1::VerifySnapshotResponse) -> v1::VerifySnapshotResponse {
    v1::VerifySnapshotResponse {
        violations: std::mem::take(&mut state.violations),
        ..*state
    }
}
