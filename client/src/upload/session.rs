//! The calls of one upload.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use tokio::{
    sync::{AcquireError, Semaphore},
    task,
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    body::Body,
    client::Grpc,
    codegen::{
        Service,
        http::{self, uri::PathAndQuery},
    },
};
use tonic_prost::ProstCodec;
use varve_content::{
    chunk_id::ChunkId,
    codec::{Codec, Compression, Encoder},
    tree::{Leaf, RootId},
};
use varve_proto::v1::{self, content_service_client::ContentServiceClient};

use super::{body::ChunksBody, read::CutChunk};
use crate::{
    activity::Connection,
    cancel::{Cancel, NOTHING_VISIBLE},
    connect::Client,
    convert::chunk_message,
    error::{Error, ErrorKind, Result},
    limits::{
        ABORT_TIMEOUT, COMPRESSED_JOBS_MAX, MESSAGE_BYTES_MAX, MESSAGE_PAYLOAD_BYTES, PUT_STREAMS,
    },
    retry,
    snapshots::Snapshot,
};

/// The path of the call, as in the generated client.
const PUT_CHUNKS: &str = "/varve.v1.ContentService/PutChunks";

/// An upload that the daemon has begun.
#[derive(Debug)]
pub(crate) struct Session {
    content: ContentServiceClient<Connection>,
    connection: Connection,
    /// Verb and object, for errors.
    pub(crate) what: String,
    upload_id: String,
    ids_max: usize,
    payload_max: usize,
    /// The daemon is on this machine. If not, chunks go out compressed: over a network the bytes
    /// cost more than the time.
    local: bool,
    compressing: Semaphore,
    streams: Semaphore,
    /// Held by the one stream that is sending, so that chunks reach the daemon, and its packs, in
    /// the order of the volume: a later read of the volume then reads the packs in order.
    turn: Arc<Semaphore>,
}

/// Counts of chunks that were sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) chunks: u64,
    /// Payload bytes: compressed where chunks were.
    pub(crate) payload_bytes: u64,
}

impl Session {
    async fn begin(client: &Client, request: v1::BeginUploadRequest, what: String) -> Result<Self> {
        let content = client.content_service();
        let begun = retry::while_busy(|| {
            let (mut content, request) = (content.clone(), request.clone());
            async move { content.begin_upload(request).await }
        });
        let begun = begun
            .await
            .map_err(|status| Error::rpc(&what, status))?
            .into_inner();
        if begun.max_ids == 0 || begun.max_message_bytes == 0 {
            return Err(Error::protocol(
                what,
                "it accepts messages of no ids or no bytes",
            ));
        }
        Ok(Self {
            content,
            connection: client.connection(),
            what,
            upload_id: begun.upload_id,
            ids_max: begun.max_ids as usize,
            payload_max: MESSAGE_PAYLOAD_BYTES.min(begun.max_message_bytes as usize),
            local: client.endpoint().is_unix(),
            compressing: Semaphore::new(COMPRESSED_JOBS_MAX),
            streams: Semaphore::new(PUT_STREAMS),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// Begins the upload, unless it is cancelled first. An upload that the daemon has begun by then
    /// would keep its place until it expires: so this waits for the answer, and aborts the upload.
    pub(crate) async fn begin_unless_cancelled(
        client: &Client,
        request: v1::BeginUploadRequest,
        what: String,
        cancel: &Cancel,
    ) -> Result<Self> {
        let mut begin = Box::pin(Self::begin(client, request, what.clone()));
        tokio::select! {
            session = &mut begin => return session,
            () = cancel.cancelled() => {}
        }
        if let Ok(Ok(session)) = timeout(ABORT_TIMEOUT, begin).await {
            session.abort().await;
        }
        Err(Error::new(ErrorKind::Cancelled, what, NOTHING_VISIBLE))
    }

    /// Sends those of `chunks` that the daemon wants, and returns when it has accepted them.
    /// `segments` are those that they are in.
    pub(crate) async fn send(&self, chunks: Vec<CutChunk>, segments: &[u32]) -> Result<Sent> {
        let ids: Vec<_> = chunks.iter().map(|chunk| chunk.id).collect();
        let missing = self.missing_of(&ids, segments).await?;
        // Return the buffers of the other chunks at once.
        let missing = pick(chunks, &missing);
        if missing.is_empty() {
            return Ok(Sent::default());
        }
        if self.local {
            let chunks = missing
                .into_iter()
                .map(|chunk| chunk_message(chunk.id, Codec::Raw, chunk.plain.len(), chunk.plain));
            return self.put(chunks.collect()).await;
        }
        // Held until the chunks are at the daemon: it limits the compressed chunks in memory.
        let _compressing = self
            .compressing
            .acquire()
            .await
            .map_err(|error| self.closed(error))?;
        let chunks = task::spawn_blocking(move || compress(missing))
            .await
            .map_err(|error| {
                Error::internal(&self.what, "a compressing thread broke").with_source(error)
            })?;
        self.put(chunks).await
    }

    /// Sends those of some packed chunks, which have these ids, that the daemon lacks.
    pub(crate) async fn send_packed(
        &self,
        ids: &[ChunkId],
        chunks: Vec<v1::Chunk>,
    ) -> Result<Sent> {
        let missing = self.missing_of(ids, &[]).await?;
        if missing.is_empty() {
            return Ok(Sent::default());
        }
        self.put(pick(chunks, &missing)).await
    }

    /// Returns true if the daemon is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// Positions of the chunks that the daemon wants, ascending.
    async fn missing_of(&self, ids: &[ChunkId], segments: &[u32]) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for (number, asked) in ids.chunks(self.ids_max).enumerate() {
            let mut raw = BytesMut::with_capacity(asked.len() * ChunkId::BYTES);
            asked.iter().for_each(|id| raw.put_slice(id.as_bytes()));
            let request = v1::FindMissingRequest {
                upload_id: self.upload_id.clone(),
                ids: raw.freeze(),
                segments: segments.to_vec(),
            };
            let found = retry::idempotent(|| {
                let mut content = self.content.clone();
                let request = request.clone();
                async move { content.find_missing(request).await }
            })
            .await
            .map_err(|status| self.failed(status))?
            .into_inner()
            .missing;
            // Checked to ascend, so that no answer makes the client send a chunk twice.
            if !found.is_sorted_by(|a, b| a < b) {
                return Err(Error::protocol(
                    &self.what,
                    "the positions of missing chunks do not ascend",
                ));
            }
            if found
                .last()
                .is_some_and(|last| *last as usize >= asked.len())
            {
                return Err(Error::protocol(
                    &self.what,
                    "it reports a missing chunk that was not in the question",
                ));
            }
            let before = number * self.ids_max;
            missing.extend(found.into_iter().map(|position| before + position as usize));
        }
        Ok(missing)
    }

    async fn put(&self, chunks: Vec<v1::Chunk>) -> Result<Sent> {
        let sent = Sent {
            chunks: chunks.len() as u64,
            payload_bytes: chunks.iter().map(|chunk| chunk.payload.len() as u64).sum(),
        };
        let _stream = self
            .streams
            .acquire()
            .await
            .map_err(|error| self.closed(error))?;
        let turn = Arc::clone(&self.turn)
            .acquire_owned()
            .await
            .map_err(|error| self.closed(error))?;
        // Not repeated if the daemon is busy: chunks are released as they are sent. The daemon has
        // waited for room for half a minute by then.
        let body = ChunksBody::new(&self.upload_id, chunks, self.payload_max, turn);
        let accepted = self
            .put_body(body)
            .await
            .map_err(|status| self.failed(status))?;
        if accepted.chunks != sent.chunks {
            let why = format!("of {} chunks it accepted {}", sent.chunks, accepted.chunks);
            return Err(Error::protocol(&self.what, why));
        }
        Ok(sent)
    }

    async fn put_body(&self, body: ChunksBody) -> Result<v1::PutChunksResponse, Status> {
        let mut calls = Grpc::new(WithBody {
            connection: self.connection.clone(),
            body: Some(body),
        })
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
        calls.ready().await.map_err(Status::from_error)?;
        let path = PathAndQuery::from_static(PUT_CHUNKS);
        let codec = ProstCodec::<v1::PutChunksRequest, v1::PutChunksResponse>::default();
        Ok(calls
            .client_streaming(Request::new(stream::empty()), path, codec)
            .await?
            .into_inner())
    }

    /// Puts leaves whose chunks the daemon has.
    pub(crate) async fn put_leaves(&self, leaves: Vec<v1::Leaf>) -> Result<()> {
        let request = v1::PutLeavesRequest {
            upload_id: self.upload_id.clone(),
            leaves,
        };
        let put = retry::while_busy(|| {
            let (mut content, request) = (self.content.clone(), request.clone());
            async move { content.put_leaves(request).await }
        });
        put.await.map_err(|status| self.failed(status))?;
        Ok(())
    }

    /// Makes the snapshot visible.
    pub(crate) async fn commit(&self, root: RootId) -> Result<Snapshot> {
        let request = v1::CommitUploadRequest {
            upload_id: self.upload_id.clone(),
            root: Bytes::copy_from_slice(root.as_bytes()),
        };
        let committed = retry::while_busy(|| {
            let (mut content, request) = (self.content.clone(), request.clone());
            async move { content.commit_upload(request).await }
        });
        let committed = committed
            .await
            .map_err(|status| self.failed(status))?
            .into_inner();
        let snapshot = Snapshot::from_proto(&self.what, committed.snapshot)?;
        if snapshot.root != Some(root) {
            let committed = snapshot.root.as_ref().map(ToString::to_string);
            let committed = committed.as_deref().unwrap_or("none");
            return Err(Error::protocol(
                &self.what,
                format!("it committed root {committed} for {root}"),
            ));
        }
        Ok(snapshot)
    }

    /// Tells the daemon that the upload is aborted. The daemon would notice by itself, later, so a
    /// failure is only logged.
    pub(crate) async fn abort(&self) {
        let request = v1::AbortUploadRequest {
            upload_id: self.upload_id.clone(),
        };
        match timeout(ABORT_TIMEOUT, self.content.clone().abort_upload(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                tracing::debug!(%status, upload = self.upload_id, "the upload was not aborted")
            }
            Err(_) => tracing::debug!(
                upload = self.upload_id,
                "the daemon did not answer to the abort"
            ),
        }
    }

    /// The error for a semaphore that was closed: none ever is.
    fn closed(&self, error: AcquireError) -> Error {
        Error::internal(&self.what, "the order of sending broke").with_source(error)
    }

    /// The error for a failed call of the upload.
    fn failed(&self, status: Status) -> Error {
        if status.code() == Code::NotFound {
            let why = format!(
                "the daemon no longer knows this upload ({}): the daemon was restarted, or the \
                 upload was idle for too long; \
                 import again, and only what is missing is sent",
                status.message()
            );
            return Error::new(ErrorKind::Unreachable, &self.what, why).with_source(status);
        }
        Error::rpc(&self.what, status)
    }
}

/// The items at these positions, which ascend.
fn pick<T>(all: Vec<T>, positions: &[usize]) -> Vec<T> {
    let mut positions = positions.iter().copied().peekable();
    let all = all.into_iter().enumerate();
    all.filter_map(|(at, it)| positions.next_if_eq(&at).map(|_| it))
        .collect()
}

/// A connection that replaces the body of a request by this one.
struct WithBody {
    connection: Connection,
    body: Option<ChunksBody>,
}

impl Service<http::Request<Body>> for WithBody {
    type Response = http::Response<Body>;
    type Error = <Connection as Service<http::Request<Body>>>::Error;
    type Future = <Connection as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connection.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let body = self.body.take();
        self.connection
            .call(request.map(|given| body.map_or(given, Body::new)))
    }
}

/// Chunks compressed for the network. The daemon unpacks them to check them, and packs them by its
/// own setting.
fn compress(chunks: Vec<CutChunk>) -> Vec<v1::Chunk> {
    let mut encoder = Encoder::new(Compression::Zstd);
    chunks
        .into_iter()
        .map(|chunk| {
            let (codec, stored) = encoder.encode(&chunk.plain);
            let payload = if codec == Codec::Raw {
                None
            } else {
                Some(Bytes::copy_from_slice(stored))
            };
            let plain_len = chunk.plain.len();
            chunk_message(chunk.id, codec, plain_len, payload.unwrap_or(chunk.plain))
        })
        .collect()
}

/// A leaf as it is sent.
pub(crate) fn leaf_message(segment: u32, leaf: &Leaf) -> v1::Leaf {
    let entries = leaf
        .entries()
        .iter()
        .map(|entry| v1::LeafEntry {
            start_block: entry.start_block,
            blocks: entry.blocks,
            chunk_id: Bytes::copy_from_slice(entry.chunk.as_bytes()),
        })
        .collect();
    v1::Leaf { segment, entries }
}
