//! `CopyService`: snapshots copied from other stores.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use varve_proto::v1::{self, copy_service_server::CopyService};

use super::{
    calls, convert,
    failure::Failure,
    page_token::{self, Filters},
    pages,
};
use crate::{
    copies::{self, Begun, Copies, CopyError, NewCopy, Source, State},
    limits,
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
        request: Request<v1::ListCopiesRequest>,
    ) -> Result<Response<v1::ListCopiesResponse>, Status> {
        calls::answer("ListCopies", async { self.list(request.get_ref()) }).await
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

impl CopyCalls {
    fn list(&self, request: &v1::ListCopiesRequest) -> Result<v1::ListCopiesResponse, Failure> {
        let before = match page_token::decode(ALL, &request.page_token)? {
            Some(place) => Some(begun_at(&place)?),
            None => None,
        };
        let found = self.copies.list(before);
        let (copies, next) = page_of(found, pages::size(request.page_size));
        Ok(v1::ListCopiesResponse {
            copies,
            next_page_token: next.unwrap_or_default(),
        })
    }
}

/// Copies are not filtered.
const ALL: Filters<'static> = Filters {
    listing: page_token::COPIES,
    name_prefix: "",
    tags: &BTreeMap::new(),
};

/// At most so many of them, and of so many bytes as one message takes; the token of the page behind them, if there are more.
fn page_of(
    found: impl Iterator<Item = copies::Status>,
    limit: usize,
) -> (Vec<v1::Copy>, Option<String>) {
    let mut page = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    for status in found {
        let place = (status.record.created_at_ns, status.record.id);
        let message = copy(status);
        bytes += message.encoded_len();
        if let Some((begun, id)) = last
            && (page.len() == limit || bytes > limits::PAGE_BYTES)
        {
            let token = page_token::encode(ALL, &format!("{begun} {id}"));
            return (page, Some(token));
        }
        page.push(message);
        last = Some(place);
    }
    (page, None)
}

/// The place of a page's last copy.
fn begun_at(place: &str) -> Result<Begun, Failure> {
    let place = place.split_once(' ');
    place
        .and_then(|(begun, id)| Some((begun.parse().ok()?, id.parse().ok()?)))
        .ok_or_else(|| Failure::field("page_token", "it is not one that this daemon gave"))
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
        State::Queued => v1::CopyState::Queued,
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
        last_error_code: record.last_error_code.into(),
        snapshot_id: record.made.map(|id| id.to_string()).unwrap_or_default(),
        tags: record.tags,
    }
}

/// What a caller is told who waits for the source.
pub(super) fn failure(error: CopyError) -> Failure {
    match error {
        CopyError::Store(error) => error.into(),
        CopyError::Busy(busy) => busy.into(),
        CopyError::GaveWay(gave_way) => gave_way.into(),
        other => Failure::Source {
            code: other.code(),
            problem: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use varve_store::{CopyId, CopyRecord};

    use super::*;

    /// One that was begun at that time, and of which there is so much to say.
    fn status(number: u8, begun_ns: u64, error_bytes: usize) -> copies::Status {
        let id = CopyId::from_low_bits([number; 9]);
        copies::Status {
            record: CopyRecord {
                last_error: "x".repeat(error_bytes),
                ..CopyRecord::begun(id, "unix:/x".to_owned(), "web".to_owned(), begun_ns)
            },
            state: State::Waiting,
            rate_bytes_per_second: 0,
        }
    }

    /// Reads all pages, as a client does.
    fn walk(all: &[copies::Status], limit: usize) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut token = String::new();
        loop {
            let before = page_token::decode(ALL, &token).unwrap();
            let before = before.map(|place| begun_at(&place).unwrap());
            let found = all.iter().filter(|status| {
                let begun = (status.record.created_at_ns, status.record.id);
                before.is_none_or(|before| begun < before)
            });
            let (page, next) = page_of(found.cloned(), limit);
            let bytes: usize = page.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes <= limits::PAGE_BYTES || page.len() == 1);
            pages.push(page.into_iter().map(|copy| copy.id).collect());
            match next {
                Some(next) => token = next,
                None => return pages,
            }
        }
    }

    #[test]
    fn pages_have_every_copy_once_and_fit_into_a_message() {
        // Two of one instant, and the newest first.
        let all: Vec<_> = (0..10)
            .map(|number: u8| status(9 - number, u64::from(9 - number) / 2, 0))
            .collect();
        let ids: Vec<_> = all.iter().map(|copy| copy.record.id.to_string()).collect();
        for limit in [1, 3, 5, 10, 100] {
            let pages = walk(&all, limit);
            assert_eq!(pages.concat(), ids, "{limit}");
            assert_eq!(pages.len(), 10_usize.div_ceil(limit), "{limit}");
        }
        let long: Vec<_> = (0..10)
            .map(|number: u8| status(9 - number, 7, limits::PAGE_BYTES / 4))
            .collect();
        let pages = walk(&long, 100);
        assert_eq!(pages.concat(), ids);
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
        assert!(begun_at("7").is_err() && begun_at("7 copy").is_err());
    }

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
