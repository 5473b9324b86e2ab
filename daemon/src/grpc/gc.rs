//! `GcService`: garbage collection, and what snapshots and volumes take.

use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, gc_service_server::GcService};

use super::{
    calls::{self, AnswerStream},
    convert,
};
use crate::service::Service;

/// The service.
#[derive(Debug)]
pub(super) struct GcCalls(pub(super) Service);

#[async_trait]
impl GcService for GcCalls {
    type RunGcStream = AnswerStream<v1::RunGcResponse>;

    async fn run_gc(
        &self,
        request: Request<v1::RunGcRequest>,
    ) -> Result<Response<Self::RunGcStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let choice = convert::gc_choice(request.options);
        let run = async { self.0.run_gc(&caller, choice) };
        calls::stream(run, convert::gc_state).await
    }

    async fn get_gc_status(
        &self,
        request: Request<v1::GetGcStatusRequest>,
    ) -> Result<Response<v1::GcStatus>, Status> {
        let (caller, _) = calls::opened(&self.0, request)?;
        calls::answer(self.0.gc_status(&caller), convert::gc_status).await
    }

    async fn stop_gc(
        &self,
        request: Request<v1::StopGcRequest>,
    ) -> Result<Response<v1::GcStatus>, Status> {
        let (caller, _) = calls::opened(&self.0, request)?;
        calls::answer(self.0.stop_gc(&caller), convert::gc_status).await
    }

    async fn plan_gc(
        &self,
        request: Request<v1::PlanGcRequest>,
    ) -> Result<Response<v1::GcPlan>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let choice = convert::gc_choice(request.options);
        calls::answer(self.0.plan_gc(&caller, choice), convert::gc_plan).await
    }

    async fn estimate_delete(
        &self,
        request: Request<v1::EstimateDeleteRequest>,
    ) -> Result<Response<v1::EstimateDeleteResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let estimate = self.0.estimate_delete(&caller, &request.snapshots);
        calls::answer(estimate, |it| v1::EstimateDeleteResponse {
            dead_bytes: it.dead_bytes,
            returned_bytes: it.returned_bytes,
        })
        .await
    }

    async fn get_usage(
        &self,
        request: Request<v1::GetUsageRequest>,
    ) -> Result<Response<v1::GetUsageResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let v1::GetUsageRequest {
            snapshots,
            volumes,
            with_shared,
        } = request;
        let usage = self.0.usage(&caller, &snapshots, &volumes, with_shared);
        calls::answer(usage, |it| v1::GetUsageResponse {
            snapshots: it.snapshots.into_iter().map(convert::usage).collect(),
            volumes: it.volumes.into_iter().map(convert::usage).collect(),
        })
        .await
    }
}
