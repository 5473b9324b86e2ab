//! `CopyService`: snapshots copied from other stores.

use bytes::Bytes;
use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use varve_client::{Endpoint, ErrorKind};
use varve_proto::v1::{self, copy_service_server::CopyService};

use super::{calls, convert, failure::Failure};
use crate::{
    copies::{self, Copies, CopyError, SourceAddress, State},
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
            let status = begun.await??;
            info!(
                id = %status.id,
                endpoint = %status.request.source.endpoint,
                snapshot = status.request.source.snapshot,
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

fn source(source: Option<v1::CopySource>) -> Result<SourceAddress, Failure> {
    let source = source.ok_or_else(|| Failure::field("source", "it is missing"))?;
    let endpoint: Endpoint = source
        .endpoint
        .parse()
        .map_err(|error: varve_client::Error| Failure::field("source.endpoint", error.why()))?;
    if endpoint.is_exposed() && !source.allow_plaintext {
        return Err(Failure::field(
            "source.endpoint",
            format!(
                "{endpoint} is plain HTTP to another machine: what crosses can be read on its way; use https, or say that it may be"
            ),
        ));
    }
    let snapshot = convert::snapshot_key("source.snapshot", &source.snapshot)?.to_owned();
    Ok(SourceAddress {
        endpoint,
        snapshot,
        allow_plaintext: source.allow_plaintext,
    })
}

fn new_copy(request: v1::CreateCopyRequest) -> Result<copies::Request, Failure> {
    if !request.name.is_empty() {
        varve_store::check_snapshot_name(&request.name)?;
    }
    varve_store::check_snapshot_tags(&request.tags)?;
    Ok(copies::Request {
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
    let source = status.request.source;
    v1::Copy {
        id: status.id.to_string(),
        source: Some(v1::CopySource {
            endpoint: source.endpoint.to_string(),
            snapshot: source.snapshot,
            allow_plaintext: source.allow_plaintext,
        }),
        name: status.name,
        state: state.into(),
        created_at: Some(convert::timestamp(status.created_at_ns)),
        ended_at: status.ended_at_ns.map(convert::timestamp),
        root: status
            .root
            .map_or_else(Bytes::new, |root| Bytes::copy_from_slice(root.as_bytes())),
        size_bytes: status.size_bytes,
        data_bytes: status.data_bytes,
        done_data_bytes: status.done_data_bytes,
        received_chunks: status.received_chunks,
        received_bytes: status.received_bytes,
        rate_bytes_per_second: status.rate_bytes_per_second,
        limit_bytes_per_second: status.limit_bytes_per_second,
        last_error: status.last_error,
        snapshot_id: status.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        tags: status.request.tags,
    }
}

/// What a caller is told who waits for the source.
fn failure(error: CopyError) -> Failure {
    match error {
        CopyError::Store(error) => error.into(),
        CopyError::Source(error) => match error.kind() {
            ErrorKind::NotFound => Failure::Source {
                code: tonic::Code::NotFound,
                problem: error.to_string(),
            },
            ErrorKind::Damaged => Failure::Source {
                code: tonic::Code::DataLoss,
                problem: error.to_string(),
            },
            _ => Failure::Source {
                code: tonic::Code::Unavailable,
                problem: error.to_string(),
            },
        },
        CopyError::Silent => Failure::Source {
            code: tonic::Code::Unavailable,
            problem: error.to_string(),
        },
        CopyError::NotCompleted { .. } | CopyError::Refused(_) => Failure::Source {
            code: tonic::Code::FailedPrecondition,
            problem: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tonic::Code;

    use super::*;

    fn request(endpoint: &str, allow_plaintext: bool) -> v1::CreateCopyRequest {
        v1::CreateCopyRequest {
            source: Some(v1::CopySource {
                endpoint: endpoint.to_owned(),
                snapshot: "web".to_owned(),
                allow_plaintext,
            }),
            ..v1::CreateCopyRequest::default()
        }
    }

    #[test]
    fn plaintext_over_a_network_has_to_be_allowed() {
        for (endpoint, allow, taken) in [
            ("unix:/run/x.sock", false, true),
            ("http://127.0.0.1:7420", false, true),
            ("https://eu.example.com:7420", false, true),
            ("http://eu.example.com:7420", false, false),
            ("http://eu.example.com:7420", true, true),
        ] {
            let outcome = new_copy(request(endpoint, allow));
            assert_eq!(outcome.is_ok(), taken, "{endpoint}");
            if let Err(refused) = outcome {
                assert_eq!(refused.code(), Code::InvalidArgument);
                assert!(refused.to_string().contains("plain HTTP"), "{refused}");
            }
        }
    }

    #[test]
    fn what_cannot_be_copied_is_refused_with_its_field() {
        let refused = |request| new_copy(request).unwrap_err().to_string();
        assert!(refused(v1::CreateCopyRequest::default()).contains("source: it is missing"));
        assert!(refused(request("ftp://x", false)).contains("source.endpoint: write unix:PATH"));
        let mut unnamed = request("unix:/x", false);
        unnamed.source.as_mut().unwrap().snapshot.clear();
        assert!(refused(unnamed).contains("source.snapshot"));
        let mut named = request("unix:/x", false);
        named.name = "a b".to_owned();
        assert!(refused(named).contains("a b"));
    }
}
