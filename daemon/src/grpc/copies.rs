//! `CopyService`: snapshots copied from other stores.

use bytes::Bytes;
use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use varve_client::ErrorKind;
use varve_proto::v1::{self, copy_service_server::CopyService};

use super::{calls, convert, failure::Failure};
use crate::{
    copies::{self, Copies, CopyError, NewCopy, Source, State},
    tasks::Tasks,
};

/// The service.
#[derive(Debug)]
pub(super) struct CopyCalls {
    pub(super) copies: Copies,
    pub(super) tasks: Tasks,
}

#[async_trait]
impl CopyService for CopyCalls {
    async fn create_copy(
        &self,
        request: Request<v1::CreateCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        calls::answer("CreateCopy", async {
            let request = new_copy(request.into_inner())?;
            let copies = self.copies.clone();
            // In a task: one that was promised is begun, even if the client goes.
            let begun = self
                .tasks
                .spawn("begin copy", async move { copies.begin(request).await });
            let status = begun.await?.map_err(failure)?;
            let record = &status.record;
            info!(
                id = %record.id,
                endpoint = record.endpoint,
                snapshot = record.snapshot,
                "copy begun"
            );
            Ok(copy(status))
        })
        .await
    }

    async fn get_copy(
        &self,
        request: Request<v1::GetCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        calls::answer("GetCopy", async {
            Ok(copy(self.copies.status(&request.get_ref().copy)?))
        })
        .await
    }

    async fn list_copies(
        &self,
        _request: Request<v1::ListCopiesRequest>,
    ) -> Result<Response<v1::ListCopiesResponse>, Status> {
        calls::answer("ListCopies", async {
            let copies = self.copies.list().into_iter().map(copy);
            Ok(v1::ListCopiesResponse {
                copies: copies.collect(),
            })
        })
        .await
    }

    async fn cancel_copy(
        &self,
        request: Request<v1::CancelCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        calls::answer("CancelCopy", async {
            Ok(copy(self.copies.cancel(&request.get_ref().copy).await?))
        })
        .await
    }

    async fn limit_copy(
        &self,
        request: Request<v1::LimitCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        calls::answer("LimitCopy", async {
            let request = request.get_ref();
            let limited = self.copies.limit(&request.copy, request.bytes_per_second);
            Ok(copy(limited.await?))
        })
        .await
    }

    async fn estimate_copy(
        &self,
        request: Request<v1::EstimateCopyRequest>,
    ) -> Result<Response<v1::EstimateCopyResponse>, Status> {
        calls::answer("EstimateCopy", async {
            let source = source(request.into_inner().source)?;
            let estimate = Box::pin(self.copies.estimate(&source)).await;
            let estimate = estimate.map_err(failure)?;
            Ok(v1::EstimateCopyResponse {
                root: Bytes::copy_from_slice(estimate.root.id().as_bytes()),
                size_bytes: estimate.root.size_bytes,
                missing_chunks: estimate.missing_chunks,
                missing_bytes: estimate.missing_bytes,
                present_data_bytes: estimate.present_data_bytes,
                data_bytes: estimate.data_bytes,
            })
        })
        .await
    }
}

fn source(source: Option<v1::CopySource>) -> Result<Source, Failure> {
    let source = source.ok_or_else(|| Failure::field("source", "it is missing"))?;
    convert::snapshot_key("source.snapshot", &source.snapshot)?;
    if source.endpoint.is_empty() {
        let why = "it is empty: write unix:PATH, http://HOST:PORT, https://HOST:PORT or the name of a remote";
        return Err(Failure::field("source.endpoint", why));
    }
    convert::check_remote_text("source.endpoint", &source.endpoint)?;
    Ok(Source {
        endpoint: source.endpoint,
        snapshot: source.snapshot,
        allow_plaintext: source.allow_plaintext,
    })
}

fn new_copy(request: v1::CreateCopyRequest) -> Result<NewCopy, Failure> {
    if !request.name.is_empty() {
        varve_store::check_snapshot_name(&request.name)?;
    }
    varve_store::check_snapshot_tags(&request.tags)?;
    Ok(NewCopy {
        source: source(request.source)?,
        name: request.name,
        tags: request.tags,
        bytes_per_second: request.bytes_per_second,
    })
}

fn copy(status: copies::Status) -> v1::Copy {
    let state = match status.state {
        State::Running => v1::CopyState::Running,
        State::Waiting => v1::CopyState::Waiting,
        State::Completed => v1::CopyState::Completed,
        State::Failed => v1::CopyState::Failed,
        State::Cancelled => v1::CopyState::Cancelled,
    };
    let record = status.record;
    v1::Copy {
        id: record.id.to_string(),
        source: Some(v1::CopySource {
            endpoint: record.endpoint,
            snapshot: record.snapshot,
            allow_plaintext: record.allow_plaintext,
        }),
        name: record.name,
        state: state.into(),
        created_at: Some(convert::timestamp(record.created_at_ns)),
        ended_at: record.ended_at_ns.map(convert::timestamp),
        root: record
            .root
            .map_or_else(Bytes::new, |root| Bytes::copy_from_slice(root.as_bytes())),
        size_bytes: record.size_bytes,
        data_bytes: record.data_bytes,
        done_data_bytes: record.done_data_bytes,
        received_chunks: record.received_chunks,
        received_bytes: record.received_bytes,
        rate_bytes_per_second: status.rate_bytes_per_second,
        limit_bytes_per_second: record.bytes_per_second,
        last_error: record.last_error,
        snapshot_id: record.made.map(|id| id.to_string()).unwrap_or_default(),
        tags: record.tags,
    }
}

/// What a caller is told who waits for the source.
pub(super) fn failure(error: CopyError) -> Failure {
    let code = match &error {
        CopyError::Source(error) => match error.kind() {
            ErrorKind::NotFound => tonic::Code::NotFound,
            ErrorKind::Damaged => tonic::Code::DataLoss,
            ErrorKind::Invalid => tonic::Code::InvalidArgument,
            _ => tonic::Code::Unavailable,
        },
        CopyError::Silent => tonic::Code::Unavailable,
        CopyError::NoRemote(_) => tonic::Code::NotFound,
        CopyError::NotCompleted { .. } | CopyError::Tls(_) | CopyError::Refused(_) => {
            tonic::Code::FailedPrecondition
        }
        CopyError::Store(_) | CopyError::Base(_) => tonic::Code::Internal,
    };
    match error {
        CopyError::Store(error) => error.into(),
        other => Failure::Source {
            code,
            problem: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_cannot_be_copied_is_refused_with_its_field() {
        let refused = |request| new_copy(request).unwrap_err().to_string();
        assert!(refused(v1::CreateCopyRequest::default()).contains("source: it is missing"));
        let mut unnamed = v1::CopySource {
            snapshot: "web".to_owned(),
            ..v1::CopySource::default()
        };
        for (endpoint, why) in [
            (String::new(), "it is empty"),
            ("x".repeat(2000), "2000 bytes"),
        ] {
            unnamed.endpoint = endpoint;
            let refused = source(Some(unnamed.clone())).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        let request = |name: &str, snapshot: &str| v1::CreateCopyRequest {
            source: Some(v1::CopySource {
                endpoint: "unix:/x".to_owned(),
                snapshot: snapshot.to_owned(),
                allow_plaintext: false,
            }),
            name: name.to_owned(),
            ..v1::CreateCopyRequest::default()
        };
        assert!(refused(request("", "")).contains("source.snapshot"));
        assert!(refused(request("a b", "web")).contains("a b"));
    }
}
