//! `ContentService`: content in and out.
//!
//! - [`upload`]: begin, chunks, leaves, commit.
//! - [`download`]: a whole snapshot, as leaves and chunks.
//! - [`read`]: a range of a snapshot, as bytes and holes.

mod download;
mod read;
mod upload;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming, async_trait};
use varve_proto::v1::{self, content_service_server::ContentService};
use varve_store::{Ingest, Store};

pub(super) use self::download::message_sized;
use self::{download::Download, upload::Intake};
use super::{
    Uploads,
    calls::{self, AnswerStream},
    convert,
    failure::Failure,
};
use crate::{limits, tasks::Tasks};

/// The service.
#[derive(Debug)]
pub(super) struct Content {
    store: Store,
    tasks: Tasks,
    uploads: Arc<Uploads<Ingest>>,
    intake: Intake,
    /// Places for downloads and reads.
    readers: Arc<Semaphore>,
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
            readers: Arc::new(Semaphore::new(limits::READ_STREAMS_MAX)),
            read_ahead: Arc::new(Semaphore::new(limits::READ_AHEAD_SEGMENTS_SHARED)),
        }
    }

    async fn reader_place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.readers)
            .acquire_owned()
            .await
            .map_err(|_| Failure::Stopping)
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
        calls::answer("BeginUpload", self.begin(request.into_inner())).await
    }

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        calls::answer("FindMissing", async {
            let request = request.get_ref();
            let ids = convert::chunk_ids(&request.ids)?;
            let upload = self.uploads.lease(&request.upload_id)?;
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
        calls::answer(
            "PutChunks",
            self.intake.take_chunks(&self.uploads, request.into_inner()),
        )
        .await
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
                .collect::<Result<_, _>>()?;
            let upload = self.uploads.lease(&request.upload_id)?;
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
        let request = request.into_inner();
        let opened = calls::answer("Download", async {
            let key = convert::snapshot_key("snapshot", &request.snapshot)?;
            let place = self.reader_place().await?;
            let reader = self.store.open_snapshot(key).await?;
            Ok(Download {
                reader,
                plain: request.plain,
                tasks: self.tasks.clone(),
                read_ahead: Arc::clone(&self.read_ahead),
                _place: place,
            })
        });
        let download = opened.await?.into_inner();
        Ok(calls::stream(&self.tasks, "Download", |answers| {
            download.send(answers)
        }))
    }

    async fn read_snapshot(
        &self,
        request: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<Self::ReadSnapshotStream>, Status> {
        let request = request.into_inner();
        let opened = calls::answer("ReadSnapshot", async {
            let key = convert::snapshot_key("snapshot", &request.snapshot)?;
            let place = self.reader_place().await?;
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
            |answers| async move {
                let _place = place;
                read::send(reader, range, answers).await
            },
        ))
    }
}
