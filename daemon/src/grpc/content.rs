//! `ContentService`: content in and out.

use futures::TryStreamExt as _;
use tonic::{Request, Response, Status, Streaming, async_trait};
use varve_proto::v1::{self, content_service_server::ContentService};

use super::{
    calls::{self, AnswerStream},
    convert,
    failure::Failure,
};
use crate::{auth::Action, limits, service::Service};

/// The service.
#[derive(Debug)]
pub(super) struct Content(pub(super) Service);

#[async_trait]
impl ContentService for Content {
    type DownloadStream = AnswerStream<v1::DownloadResponse>;
    type ReadSnapshotStream = AnswerStream<v1::ReadSnapshotResponse>;

    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let new = calls::decoded(&self.0, &caller, Action::BeginUpload, || {
            convert::new_upload(request)
        })?;
        calls::answer(self.0.begin_upload(&caller, new), |upload_id| {
            v1::BeginUploadResponse {
                upload_id,
                max_ids: limits::FIND_IDS_MAX,
                max_message_bytes: limits::UPLOAD_MESSAGE_BYTES,
            }
        })
        .await
    }

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let ids = || convert::chunk_ids(&request.ids);
        let ids = calls::decoded(&self.0, &caller, Action::FindMissing, ids)?;
        let (upload, segments) = (&request.upload_id, &request.segments);
        let missing = self.0.find_missing(&caller, upload, &ids, segments);
        calls::answer(missing, |missing| v1::FindMissingResponse { missing }).await
    }

    async fn put_chunks(
        &self,
        request: Request<Streaming<v1::PutChunksRequest>>,
    ) -> Result<Response<v1::PutChunksResponse>, Status> {
        let (caller, arrives) = (calls::caller(&request)?, calls::arrives(&request));
        let messages = request.into_inner().map_err(Failure::Receive);
        let messages = messages.map_ok(convert::chunk_message);
        let taken = self
            .0
            .put_chunks(&caller, messages, |place| arrives.moves(place))
            .await?;
        Ok(Response::new(v1::PutChunksResponse {
            chunks: taken.chunks,
            new_bytes: taken.new_bytes,
        }))
    }

    async fn put_leaves(
        &self,
        request: Request<v1::PutLeavesRequest>,
    ) -> Result<Response<v1::PutLeavesResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let leaves = || request.leaves.iter().map(convert::incoming_leaf).collect();
        let leaves = calls::decoded(&self.0, &caller, Action::PutLeaves, leaves)?;
        let put = self.0.put_leaves(&caller, &request.upload_id, leaves);
        calls::answer(put, |()| v1::PutLeavesResponse {}).await
    }

    async fn commit_upload(
        &self,
        request: Request<v1::CommitUploadRequest>,
    ) -> Result<Response<v1::CommitUploadResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let root = || convert::root(&request.root);
        let root = calls::decoded(&self.0, &caller, Action::CommitUpload, root)?;
        let committed = self.0.commit_upload(&caller, &request.upload_id, root);
        calls::answer(committed, |record| v1::CommitUploadResponse {
            snapshot: Some(convert::snapshot(record)),
        })
        .await
    }

    async fn abort_upload(
        &self,
        request: Request<v1::AbortUploadRequest>,
    ) -> Result<Response<v1::AbortUploadResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let aborted = self.0.abort_upload(&caller, &request.upload_id);
        calls::answer(aborted, |()| v1::AbortUploadResponse {}).await
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let download = self.0.download(&caller, &request.snapshot, request.plain);
        calls::stream(download, convert::download_part).await
    }

    async fn read_snapshot(
        &self,
        request: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<Self::ReadSnapshotStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let (offset_bytes, length_bytes) = (request.offset_bytes, request.length_bytes);
        let range = self
            .0
            .read_snapshot(&caller, &request.snapshot, offset_bytes, length_bytes);
        calls::stream(range, convert::range_part).await
    }
}
