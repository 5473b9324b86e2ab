//! Chunks on their way into the store.
//!
//! Invariants: chunks that wait for the store are bounded in bytes, over all uploads, and each
//! stream keeps several groups of them under way, so that all of the store's threads have work.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::{
    Stream,
    stream::{FuturesUnordered, StreamExt as _},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use varve_store::{IncomingChunk, Ingest, PutOutcome};

use super::table::Lease;
use crate::{
    limits,
    resources::shares::{Hold, Holder, Shares},
    service::{
        error::{Error, Result},
        streams,
    },
};

/// One message of a stream of chunks.
#[derive(Debug)]
pub(crate) struct ChunkMessage<C> {
    /// The upload's id.
    pub(crate) upload: String,
    /// Length of all payloads.
    pub(crate) payload_bytes: u64,
    /// The chunks, each decoded when it is its turn.
    pub(crate) chunks: C,
}

/// Takes chunks in, for all uploads.
#[derive(Debug)]
pub(in crate::service) struct Intake {
    /// Places for streams.
    streams: Shares,
    /// Bytes of payload that the store has not taken yet.
    bytes: Arc<Semaphore>,
}

impl Intake {
    pub(in crate::service) fn new() -> Self {
        Self {
            streams: streams::places("streams of chunks", limits::UPLOAD_STREAMS_MAX),
            bytes: Arc::new(Semaphore::new(limits::UPLOAD_BYTES_IN_FLIGHT as usize)),
        }
    }

    /// Takes the chunks of one stream for an upload, from its first message on. The first error
    /// ends the stream, and so does a silence of `idle`.
    pub(super) async fn take_chunks<S, C, E>(
        &self,
        (upload, idle): (Lease<Ingest>, Duration),
        holder: Holder,
        first: ChunkMessage<C>,
        mut messages: S,
        moves: impl FnOnce(&Arc<Hold>),
    ) -> Result<PutOutcome, E>
    where
        S: Stream<Item = Result<ChunkMessage<C>, E>> + Unpin,
        C: ExactSizeIterator<Item = Result<IncomingChunk>>,
        E: From<Error>,
    {
        let mut total = PutOutcome::default();
        // Take the place only after the first message: a silent stream keeps nobody from a place.
        let place = self.streams.take(holder, 1, limits::BUSY_WITHIN);
        let place = place.await.map_err(Error::from)?;
        place.settle(true);
        let place = Arc::new(place);
        moves(&place);
        let mut under_way = FuturesUnordered::new();
        let mut message = Some(first);
        while let Some(request) = message {
            check_same_upload(&upload, &request.upload)?;
            let work = (request.chunks.len() > 0).then(|| upload.work());
            let space = self.space(request.payload_bytes);
            let space = drive(&mut under_way, &mut total, space).await??;
            let space = Arc::new(space);
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
                    gave_way = place.gives_way() => Err(Error::from(gave_way).into()),
                    gone = upload.gone() => Err(Error::from(gone).into()),
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
    async fn space(&self, payload_bytes: u64) -> Result<OwnedSemaphorePermit> {
        let most = limits::UPLOAD_MESSAGE_BYTES;
        let bytes = u32::try_from(payload_bytes).ok();
        let Some(bytes) = bytes.filter(|bytes| *bytes <= most) else {
            return Err(Error::TooMuch {
                field: "chunks.payload",
                unit: "bytes of payload",
                found: payload_bytes,
                most: most.into(),
            });
        };
        Arc::clone(&self.bytes)
            .acquire_many_owned(bytes)
            .await
            .map_err(|_| Error::Stopping)
    }
}

/// Waits for `awaited` while the work under way continues. Otherwise a stream could wait for space
/// that its own chunks take.
async fn drive<T>(
    under_way: &mut FuturesUnordered<impl Future<Output = Result<PutOutcome>>>,
    total: &mut PutOutcome,
    awaited: impl Future<Output = T>,
) -> Result<T> {
    let mut awaited = pin!(awaited);
    loop {
        tokio::select! {
            done = &mut awaited => return Ok(done),
            Some(outcome) = under_way.next() => add(total, outcome?),
        }
    }
}

async fn receive<T, E: From<Error>>(
    messages: &mut (impl Stream<Item = Result<T, E>> + Unpin),
    idle: Duration,
) -> Result<Option<T>, E> {
    match tokio::time::timeout(idle, messages.next()).await {
        Ok(received) => received.transpose(),
        Err(_) => Err(Error::Silent {
            seconds: idle.as_secs(),
        }
        .into()),
    }
}

/// Checks that a message names the upload of the first one, and that the upload is still open.
fn check_same_upload(upload: &Lease<Ingest>, id: &str) -> Result<()> {
    if id != upload.id() {
        return Err(Error::field(
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
) -> Result<PutOutcome> {
    Ok(upload.put_chunks(chunks).await?)
}

fn add(total: &mut PutOutcome, outcome: PutOutcome) {
    total.chunks += outcome.chunks;
    total.new_bytes += outcome.new_bytes;
}

/// The chunks of a message in groups of about [`limits::PUT_GROUP_BYTES`] plain bytes. A group ends
/// with the first chunk that is refused.
fn groups(
    mut chunks: impl Iterator<Item = Result<IncomingChunk>>,
) -> impl Iterator<Item = Result<Vec<IncomingChunk>>> {
    std::iter::from_fn(move || {
        let mut group = Vec::new();
        let mut bytes = 0;
        while bytes < limits::PUT_GROUP_BYTES
            && let Some(chunk) = chunks.next()
        {
            match chunk {
                Ok(chunk) => {
                    bytes += chunk.plain_bytes as usize;
                    group.push(chunk);
                }
                Err(error) => return Some(Err(error)),
            }
        }
        (!group.is_empty()).then_some(Ok(group))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;
    use varve_content::{ChunkId, Codec};

    use super::*;

    #[test]
    fn groups_keep_order_and_bound_their_plain_bytes() {
        let chunk = |number: u8| IncomingChunk {
            id: ChunkId::from_bytes([number; 32]),
            codec: Codec::Raw,
            plain_bytes: 262_144,
            payload: Bytes::new(),
        };
        assert_eq!(groups(std::iter::empty()).count(), 0);
        let mut next = 0;
        for group in groups((0..=255).map(|number| Ok(chunk(number)))) {
            let group = group.unwrap();
            assert_eq!(group.len(), 4, "a mebibyte");
            for chunk in group {
                assert_eq!(chunk.id.as_bytes(), &[next; 32]);
                next = next.wrapping_add(1);
            }
        }
        let bad = || Err(Error::field("chunks.codec", "9"));
        let mixed: Vec<_> = groups([Ok(chunk(1)), bad()].into_iter()).collect();
        assert!(matches!(
            &mixed[..],
            [Err(Error::Field {
                field: "chunks.codec",
                ..
            })]
        ));
    }
}
