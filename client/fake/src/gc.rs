//! Collections that find the same each time.

use futures::{StreamExt, stream};
use tonic::{Request, Response, Status};
use varve_proto::v1::{self, gc_service_server::GcService};

use super::{Answers, Service};

const TIME: prost_types::Timestamp = prost_types::Timestamp {
    seconds: 1_700_000_000,
    nanos: 0,
};

/// The report of each collection.
fn report() -> v1::GcReport {
    v1::GcReport {
        packs_removed: 3,
        removed_bytes: 700 << 20,
        copied_bytes: 100 << 20,
        dead_bytes: 650 << 20,
        live_bytes: 1 << 30,
        packs_held: 1,
        held_by: vec!["snapshot nightly".to_owned()],
        ..v1::GcReport::default()
    }
}

#[tonic::async_trait]
impl GcService for Service {
    type RunGcStream = Answers<v1::RunGcResponse>;

    async fn run_gc(
        &self,
        request: Request<v1::RunGcRequest>,
    ) -> Result<Response<Self::RunGcStream>, Status> {
        use v1::run_gc_response::State;

        let options = request.into_inner().options.unwrap_or_default();
        self.state().gc_options = Some(options);
        self.take_time("RunGc").await;
        let progress = v1::GcProgress {
            phase: v1::GcPhase::Sweeping.into(),
            packs_planned: 3,
            packs_removed: 1,
            removed_bytes: 200 << 20,
            copied_bytes: 0,
        };
        let states = [State::Progress(progress), State::Report(report())];
        let answers = states.map(|state| Ok(v1::RunGcResponse { state: Some(state) }));
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn get_gc_status(
        &self,
        _: Request<v1::GetGcStatusRequest>,
    ) -> Result<Response<v1::GcStatus>, Status> {
        let outcome = v1::gc_ended::Outcome::Report(report());
        Ok(Response::new(v1::GcStatus {
            running: None,
            last: Some(v1::GcEnded {
                started_at: Some(TIME),
                ended_at: Some(TIME),
                outcome: Some(outcome),
            }),
        }))
    }

    async fn stop_gc(
        &self,
        _: Request<v1::StopGcRequest>,
    ) -> Result<Response<v1::GcStatus>, Status> {
        Ok(Response::new(v1::GcStatus {
            running: Some(v1::GcRunning {
                started_at: Some(TIME),
                progress: None,
            }),
            last: None,
        }))
    }

    async fn plan_gc(&self, _: Request<v1::PlanGcRequest>) -> Result<Response<v1::GcPlan>, Status> {
        Ok(Response::new(v1::GcPlan {
            steps: vec![v1::GcStep {
                action: v1::GcAction::Drop.into(),
                packs: vec!["chunk-0000000000000001".to_owned()],
                copied_bytes: 0,
                removed_bytes: 256 << 20,
            }],
            packs_dropped: 1,
            removed_bytes: 256 << 20,
            ..v1::GcPlan::default()
        }))
    }

    async fn estimate_delete(
        &self,
        request: Request<v1::EstimateDeleteRequest>,
    ) -> Result<Response<v1::EstimateDeleteResponse>, Status> {
        let keys = request.into_inner().snapshots;
        let state = self.state();
        for key in &keys {
            let mut snapshots = state.snapshots.values();
            if !snapshots.any(|(it, _)| it.name == *key || it.id == *key) {
                return Err(Status::not_found(format!("no snapshot {key}")));
            }
        }
        Ok(Response::new(v1::EstimateDeleteResponse {
            dead_bytes: keys.len() as u64 * (3 << 20),
            returned_bytes: keys.len() as u64 * (2 << 20),
        }))
    }

    async fn get_usage(
        &self,
        request: Request<v1::GetUsageRequest>,
    ) -> Result<Response<v1::GetUsageResponse>, Status> {
        let request = request.into_inner();
        let usage = v1::Usage {
            exclusive_bytes: 1 << 20,
            shared_bytes: if request.with_shared { 2 << 20 } else { 0 },
        };
        Ok(Response::new(v1::GetUsageResponse {
            snapshots: vec![usage; request.snapshots.len()],
            volumes: vec![usage; request.volumes.len()],
        }))
    }
}
