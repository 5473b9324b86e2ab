//! An upload: begin, chunks, leaves, commit.
//!
//! What must hold: chunks that wait for the store are bounded in bytes, over all uploads, and each stream keeps
//! several groups of them under way, so that all of the store's threads have work.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};
use tracing::{debug, info};
use varve_proto::v1;
use varve_store::{IncomingChunk, Ingest, NewSnapshot, PutOutcome};

use crate::{
    grpc::{content::Content, convert, serve::Arrives},
    limits,
    resources::shares::{Holder, Shares},
    service::{
        error::Failure,
        streams as calls,
        uploads::table::{Lease, Uploads},
    },
};

impl Content {
    pub(crate) async fn begin(
        &self,
        request: v1::BeginUploadRequest,
        holder: Holder,
    ) -> Result<v1::BeginUploadResponse, Failure> {
        let Some(chunker) = request.chunker else {
            return Err(Failure::field(
                "chunker",
                "it is not set, and says how content is cut",
            ));
        };
        self.uploads.make_room(holder)?;
        let new = NewSnapshot {
            lineage: request.lineage.map(convert::lineage).transpose()?,
            name: request.name,
            size_bytes: request.size_bytes,
            tags: request.tags,
            chunker_version: chunker.version,
        };
        let (name, size_bytes) = (new.name.clone(), new.size_bytes);
        let mut ingest = self.store.begin_ingest(new).await?;
        if request.keep_packed {
            ingest = ingest.keep_packed();
        }
        let upload_id = self.uploads.open(ingest, holder)?;
        debug!(upload = upload_id, name, size_bytes, "upload begun");
        Ok(v1::BeginUploadResponse {
            upload_id,
            max_ids: limits::FIND_IDS_MAX,
            max_message_bytes: limits::UPLOAD_MESSAGE_BYTES,
        })
    }

    /// An upload commits once, and is closed by that whether or not it succeeds. In a task: a commit that has begun is
    /// brought to its end, even if the client goes.
    pub(crate) async fn commit(
        &self,
        request: v1::CommitUploadRequest,
    ) -> Result<v1::CommitUploadResponse, Failure> {
        let started = Instant::now();
        let root = convert::root(&request.root)?;
        let ingest = self.uploads.remove(&request.upload_id)?;
        let record = self
            .tasks
            .spawn("commit upload", async move { ingest.commit(root).await })
            .await??;
        let content = record.content();
        info!(
            id = %record.id,
            name = record.name,
            size_bytes = record.size_bytes,
            data_bytes = content.map(|content| content.data_bytes),
            new_bytes = content.map(|content| content.new_bytes),
            stored_bytes = content.map(|content| content.stored_bytes),
            root = content.map(|content| tracing::field::display(content.root)),
            seconds = started.elapsed().as_secs_f64(),
            "snapshot committed"
        );
        Ok(v1::CommitUploadResponse {
            snapshot: Some(convert::completed_snapshot(record)),
        })
    }

    pub(crate) fn abort(&self, id: &str) -> Result<(), Failure> {
        let ingest = self.uploads.remove(id)?;
        info!(
            upload = id,
            name = ingest.new_snapshot().name,
            "upload aborted by its client"
        );
        Ok(())
    }
}

/// Takes chunks in, for all uploads.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Places for streams.
    streams: Shares,
    /// Bytes of payload that the store has not taken yet.
    bytes: Arc<Semaphore>,
}

impl Intake {
    pub(crate) fn new() -> Self {
        Self {
            streams: calls::places("streams of chunks", limits::UPLOAD_STREAMS_MAX),
            bytes: Arc::new(Semaphore::new(limits::UPLOAD_BYTES_IN_FLIGHT as usize)),
        }
    }

    /// Takes the chunks of one stream. The first thing that is wrong ends it.
    pub(crate) async fn take_chunks(
        &self,
        uploads: &Arc<Uploads<Ingest>>,
        holder: Holder,
        mut messages: Streaming<v1::PutChunksRequest>,
        arrives: Arrives,
    ) -> Result<v1::PutChunksResponse, Failure> {
        let mut total = v1::PutChunksResponse::default();
        // It has as long as a request has to arrive.
        let first = messages.message().await.map_err(Failure::Receive)?;
        let Some(first) = first else {
            return Ok(total);
        };
        let upload = uploads.lease(&first.upload_id)?;
        // Not before: one that says nothing keeps nobody from a place.
        let place = self.streams.take(holder, 1, limits::BUSY_WITHIN).await?;
        place.settle(true);
        let place = Arc::new(place);
        arrives.moves(&place);
        let idle = uploads.idle();
        let mut under_way = FuturesUnordered::new();
        let mut message = Some(first);
        while let Some(request) = message {
            check_same_upload(&upload, &request)?;
            let work = (!request.chunks.is_empty()).then(|| upload.work());
            let space = Arc::new(drive(&mut under_way, &mut total, self.space(&request)).await??);
            for group in groups(request.chunks) {
                if under_way.len() >= limits::PUT_GROUPS_IN_FLIGHT
                    && let Some(outcome) = under_way.next().await
                {
                    add(&mut total, outcome?);
                }
                under_way.push(put(&upload, group?, Arc::clone(&space)));
            }
            drop((space, work));
            place.settle(false);
            let next = async {
                tokio::select! {
                    received = receive(&mut messages, idle) => received,
                    gave_way = place.gives_way() => Err(gave_way.into()),
                    gone = upload.gone() => Err(gone.into()),
                }
            };
            message = drive(&mut under_way, &mut total, next).await??;
            place.settle(true);
        }
        let _work = upload.work();
        while let Some(outcome) = under_way.next().await {
            add(&mut total, outcome?);
        }
        Ok(total)
    }

    /// Waits until the payload of a message may be held.
    async fn space(&self, request: &v1::PutChunksRequest) -> Result<OwnedSemaphorePermit, Failure> {
        let bytes = request
            .chunks
            .iter()
            .map(|chunk| chunk.payload.len())
            .sum::<usize>();
        let most = limits::UPLOAD_MESSAGE_BYTES;
        let Some(bytes) = u32::try_from(bytes).ok().filter(|bytes| *bytes <= most) else {
            return Err(Failure::TooMuch {
                field: "chunks.payload",
                unit: "bytes of payload",
                found: bytes as u64,
                most: most.into(),
            });
        };
        Arc::clone(&self.bytes)
            .acquire_many_owned(bytes)
            .await
            .map_err(|_| Failure::Stopping)
    }
}

/// Waits for something while what is under way goes on. Without that a stream could wait for space that its own
/// chunks take.
async fn drive<T>(
    under_way: &mut FuturesUnordered<impl Future<Output = Result<PutOutcome, Failure>>>,
    total: &mut v1::PutChunksResponse,
    awaited: impl Future<Output = T>,
) -> Result<T, Failure> {
    let mut awaited = pin!(awaited);
    loop {
        tokio::select! {
            done = &mut awaited => return Ok(done),
            Some(outcome) = under_way.next() => add(total, outcome?),
        }
    }
}

async fn receive(
    messages: &mut Streaming<v1::PutChunksRequest>,
    idle: Duration,
) -> Result<Option<v1::PutChunksRequest>, Failure> {
    match tokio::time::timeout(idle, messages.message()).await {
        Ok(received) => received.map_err(|status: Status| Failure::Receive(status)),
        Err(_) => Err(Failure::Silent {
            seconds: idle.as_secs(),
        }),
    }
}

/// Every message names the upload of the first, and the upload is still open.
fn check_same_upload(
    upload: &Lease<Ingest>,
    request: &v1::PutChunksRequest,
) -> Result<(), Failure> {
    if request.upload_id != upload.id() {
        return Err(Failure::field(
            "upload_id",
            "it is not the one that the stream began with",
        ));
    }
    Ok(upload.check()?)
}

async fn put(
    upload: &Lease<Ingest>,
    chunks: Vec<IncomingChunk>,
    _space: Arc<OwnedSemaphorePermit>,
) -> Result<PutOutcome, Failure> {
    Ok(upload.put_chunks(chunks).await?)
}

fn add(total: &mut v1::PutChunksResponse, outcome: PutOutcome) {
    total.chunks += outcome.chunks;
    total.new_bytes += outcome.new_bytes;
}

/// The chunks of a message in groups of about [`limits::PUT_GROUP_BYTES`] plain bytes. A group ends with the first chunk that is
/// refused.
fn groups(chunks: Vec<v1::Chunk>) -> impl Iterator<Item = Result<Vec<IncomingChunk>, Failure>> {
    let mut chunks = chunks.into_iter();
    std::iter::from_fn(move || {
        let mut group = Vec::new();
        let mut bytes = 0;
        while bytes < limits::PUT_GROUP_BYTES
            && let Some(chunk) = chunks.next()
        {
            match convert::incoming_chunk(chunk) {
                Ok(chunk) => {
                    bytes += chunk.plain_bytes as usize;
                    group.push(chunk);
                }
                Err(failure) => return Some(Err(failure)),
            }
        }
        (!group.is_empty()).then_some(Ok(group))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn groups_keep_order_and_bound_their_plain_bytes() {
        let chunk = |number: u8, plain_bytes| v1::Chunk {
            id: vec![number; 32].into(),
            plain_bytes,
            ..v1::Chunk::default()
        };
        assert_eq!(groups(Vec::new()).count(), 0);
        let chunks: Vec<_> = (0..=255).map(|number| chunk(number, 262_144)).collect();
        let mut next = 0;
        for group in groups(chunks) {
            let group = group.unwrap();
            assert_eq!(group.len(), 4, "a mebibyte");
            for chunk in group {
                assert_eq!(chunk.id.as_bytes(), &[next; 32]);
                next = next.wrapping_add(1);
            }
        }
        let mixed: Vec<_> = groups(vec![chunk(1, 4096), chunk(2, 1)]).collect();
        assert!(matches!(
            &mixed[..],
            [Err(Failure::Field {
                field: "chunks.plain_bytes",
                ..
            })]
        ));
    }

    /// A request that has to wait for room, or comes over a slow link.
    struct Late(std::pin::Pin<Box<tokio::time::Sleep>>, Option<bytes::Bytes>);

    impl http_body::Body for Late {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
            std::task::ready!(self.0.as_mut().poll(context));
            std::task::Poll::Ready(self.1.take().map(http_body::Frame::data).map(Ok))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_a_first_message_may_take_is_up_to_how_requests_arrive() {
        use prost::Message as _;
        use tonic::codec::Codec as _;

        let message = v1::PutChunksRequest {
            upload_id: "up-1".to_owned(),
            ..v1::PutChunksRequest::default()
        };
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let bytes = [&[0], &length[..], &message].concat();
        let late = tokio::time::sleep(limits::REQUEST_WITHIN + limits::BUSY_WITHIN);
        let mut codec = varve_proto::RequestCodec::<v1::PutChunksResponse, _>::default();
        let messages = Streaming::new_request(
            codec.decoder(),
            Late(Box::pin(late), Some(bytes.into())),
            None,
            None,
        );
        let uploads = Arc::new(Uploads::new(limits::UPLOAD_IDLE));
        let intake = Intake::new();
        let taken = intake.take_chunks(&uploads, Holder::OWN, messages, Arrives::default());
        let failure = taken.await.unwrap_err();
        assert!(
            matches!(failure, Failure::Store(varve_store::Error::NotFound { .. })),
            "it was received: {failure}"
        );
    }
}
