//! `ContentService`: content in and out.
//!
//! - `intake`: begin, chunks, leaves, commit.
//! - `download`: a whole snapshot, as leaves and chunks.
//! - `read`: a range of a snapshot, as bytes and holes.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming, async_trait};
use varve_proto::v1::{self, content_service_server::ContentService};
use varve_store::{Ingest, Store};

use super::{
    Uploads,
    calls::{self, AnswerStream},
    convert,
};
pub(super) use crate::service::content::download::message_sized;
use crate::{
    limits,
    resources::shares::Shares,
    service::{
        content::{download::Download, read},
        uploads::intake::Intake,
    },
    tasks::Tasks,
};

/// The service.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) store: Store,
    pub(crate) tasks: Tasks,
    pub(crate) uploads: Arc<Uploads<Ingest>>,
    intake: Intake,
    /// Places for downloads and reads.
    readers: Shares,
    /// Segments that downloads may read ahead.
    read_ahead: Arc<Semaphore>,
}

impl Content {
    pub(super) fn new(store: Store, tasks: Tasks, uploads: Arc<Uploads<Ingest>>) -> Self {
        Self {
            store,
            tasks,
            uploads,
            intake: Intake::new(),
            readers: calls::places("exports and reads", limits::READ_STREAMS_MAX),
            read_ahead: Arc::new(Semaphore::new(limits::READ_AHEAD_SEGMENTS_SHARED)),
        }
    }
}

#[async_trait]
impl ContentService for Content {
    type DownloadStream = AnswerStream<v1::DownloadResponse>;
    type ReadSnapshotStream = AnswerStream<v1::ReadSnapshotResponse>;

    async fn begin_upload(
        &self,
        request: Request<v1::BeginUploadRequest>,
    ) -> Result<Response<v1::BeginUploadResponse>, Status> {
        let holder = calls::holder(&request);
        calls::answer("BeginUpload", self.begin(request.into_inner(), holder)).await
    }

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        calls::answer("FindMissing", async {
            let request = request.get_ref();
            let ids = convert::chunk_ids(&request.ids)?;
            let upload = self.uploads.lease(&request.upload_id)?;
            // One of no ids brings nothing further.
            let _work = (!ids.is_empty()).then(|| upload.work());
            Ok(v1::FindMissingResponse {
                missing: upload.missing(&ids).await?,
            })
        })
        .await
    }

    async fn put_chunks(
        &self,
        request: Request<Streaming<v1::PutChunksRequest>>,
    ) -> Result<Response<v1::PutChunksResponse>, Status> {
        let (holder, arrives) = (calls::holder(&request), calls::arrives(&request));
        let messages = request.into_inner();
        let taken = self
            .intake
            .take_chunks(&self.uploads, holder, messages, arrives);
        calls::answer("PutChunks", taken).await
    }

    async fn put_leaves(
        &self,
        request: Request<v1::PutLeavesRequest>,
    ) -> Result<Response<v1::PutLeavesResponse>, Status> {
        calls::answer("PutLeaves", async {
            let request = request.get_ref();
            let leaves = request
                .leaves
                .iter()
                .map(convert::incoming_leaf)
                .collect::<Result<Vec<_>, _>>()?;
            let upload = self.uploads.lease(&request.upload_id)?;
            let _work = (!leaves.is_empty()).then(|| upload.work());
            upload.put_leaves(leaves).await?;
            Ok(v1::PutLeavesResponse {})
        })
        .await
    }

    async fn commit_upload(
        &self,
        request: Request<v1::CommitUploadRequest>,
    ) -> Result<Response<v1::CommitUploadResponse>, Status> {
        calls::answer("CommitUpload", self.commit(request.into_inner())).await
    }

    async fn abort_upload(
        &self,
        request: Request<v1::AbortUploadRequest>,
    ) -> Result<Response<v1::AbortUploadResponse>, Status> {
        calls::answer("AbortUpload", async {
            self.abort(&request.get_ref().upload_id)?;
            Ok(v1::AbortUploadResponse {})
        })
        .await
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let holder = calls::holder(&request);
        let request = request.into_inner();
        let opened = calls::answer("Download", async {
            let key = convert::snapshot_key("snapshot", &request.snapshot)?;
            let place = calls::place(&self.readers, holder).await?;
            let reader = self.store.open_snapshot(key).await?;
            let download = Download {
                reader,
                plain: request.plain,
                tasks: self.tasks.clone(),
                read_ahead: Arc::clone(&self.read_ahead),
            };
            Ok((download, place))
        });
        let (download, place) = opened.await?.into_inner();
        Ok(calls::stream(
            &self.tasks,
            "Download",
            Some(place),
            |answers| download.send(answers),
        ))
    }

    async fn read_snapshot(
        &self,
        request: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<Self::ReadSnapshotStream>, Status> {
        let holder = calls::holder(&request);
        let request = request.into_inner();
        let opened = calls::answer("ReadSnapshot", async {
            let key = convert::snapshot_key("snapshot", &request.snapshot)?;
            let place = calls::place(&self.readers, holder).await?;
            let reader = self.store.open_snapshot(key).await?;
            let range = read::range(
                reader.size_bytes(),
                request.offset_bytes,
                request.length_bytes,
            )?;
            Ok((reader, range, place))
        });
        let (reader, range, place) = opened.await?.into_inner();
        Ok(calls::stream(
            &self.tasks,
            "ReadSnapshot",
            Some(place),
            |answers| read::send(reader, range, answers),
        ))
    }
}
