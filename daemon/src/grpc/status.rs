//! `StatusService`: the state of the daemon and its store.

use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, status_service_server::StatusService};

use super::{calls, convert};
use crate::service::Service;

/// The service.
#[derive(Debug)]
pub(super) struct StatusOf(pub(super) Service);

#[async_trait]
impl StatusService for StatusOf {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let (caller, _) = calls::opened(&self.0, request)?;
        calls::answer(self.0.status(&caller), convert::status).await
    }
}
