//! `CopyService`: snapshots copied from other stores.

use prost::Message as _;
use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, copy_service_server::CopyService};

use super::{calls, convert};
use crate::{auth::Action, service::Service};

/// The service.
#[derive(Debug)]
pub(super) struct CopyCalls(pub(super) Service);

#[async_trait]
impl CopyService for CopyCalls {
    async fn create_copy(
        &self,
        request: Request<v1::CreateCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let new = calls::decoded(&self.0, &caller, Action::CreateCopy, || {
            convert::new_copy(request)
        })?;
        calls::answer(self.0.create_copy(&caller, new), convert::copy).await
    }

    async fn get_copy(
        &self,
        request: Request<v1::GetCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        calls::answer(self.0.copy(&caller, &request.copy), convert::copy).await
    }

    async fn list_copies(
        &self,
        request: Request<v1::ListCopiesRequest>,
    ) -> Result<Response<v1::ListCopiesResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let request = convert::list_copies(request);
        calls::answer(self.0.list_copies(&caller, &request), |page| {
            let (copies, next_page_token) = page.encode(convert::copy, v1::Copy::encoded_len);
            v1::ListCopiesResponse {
                copies,
                next_page_token,
            }
        })
        .await
    }

    async fn cancel_copy(
        &self,
        request: Request<v1::CancelCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let cancelled = self.0.cancel_copy(&caller, &request.copy);
        calls::answer(cancelled, convert::copy).await
    }

    async fn limit_copy(
        &self,
        request: Request<v1::LimitCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let limited = self
            .0
            .limit_copy(&caller, &request.copy, request.bytes_per_second);
        calls::answer(limited, convert::copy).await
    }

    async fn estimate_copy(
        &self,
        request: Request<v1::EstimateCopyRequest>,
    ) -> Result<Response<v1::EstimateCopyResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let source = || convert::copy_source(request.source);
        let source = calls::decoded(&self.0, &caller, Action::EstimateCopy, source)?;
        let estimate = self.0.estimate_copy(&caller, &source);
        calls::answer(estimate, |it| convert::estimate(&it)).await
    }
}
