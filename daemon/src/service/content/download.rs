//! A whole snapshot, as leaves and chunks.
//!
//! What must hold: segments go out in ascending order, each leaf before its chunks. One segment of each download may
//! always be read; those ahead of it take from a budget that all downloads share, and only what is free at once, so that a slow
//! client can hold up nobody.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::info;
use varve_proto::v1::{self, download_response::Part};
use varve_store::{Segment, SegmentStream, SnapshotReader};

use crate::{
    grpc::convert,
    limits,
    service::{error::Failure, streams::Answers},
    tasks::{Tasks, TiedTask},
};

/// A download under way.
pub(crate) struct Download {
    pub(crate) reader: SnapshotReader,
    /// Whether chunks are unpacked here.
    pub(crate) plain: bool,
    pub(crate) tasks: Tasks,
    pub(crate) read_ahead: Arc<Semaphore>,
}

/// A segment that is being read, with what it takes from the budget of all downloads.
struct Pending {
    read: TiedTask<Result<Vec<v1::DownloadResponse>, varve_store::Error>>,
    ahead: Option<OwnedSemaphorePermit>,
}

impl Download {
    pub(crate) async fn send(self, answers: Answers<v1::DownloadResponse>) -> Result<(), Failure> {
        let started = Instant::now();
        let snapshot = convert::completed_snapshot(self.reader.record().clone());
        let (id, name) = (snapshot.id.clone(), snapshot.name.clone());
        answers.send(message(Part::Snapshot(snapshot))).await?;

        let mut segments = Some(self.reader.segments());
        let mut pending = VecDeque::new();
        let mut sent_bytes = 0;
        loop {
            self.read_on(&mut segments, &mut pending).await?;
            let Some(Pending { read, ahead }) = pending.pop_front() else {
                break;
            };
            for part in read.await?? {
                sent_bytes += payload_bytes(&part);
                answers.send(part).await?;
            }
            drop(ahead);
        }
        info!(
            id,
            name,
            payload_bytes = sent_bytes,
            plain = self.plain,
            seconds = started.elapsed().as_secs_f64(),
            "snapshot downloaded"
        );
        Ok(())
    }

    /// Starts to read further segments, as far as there is room.
    async fn read_on(
        &self,
        segments: &mut Option<SegmentStream>,
        pending: &mut VecDeque<Pending>,
    ) -> Result<(), Failure> {
        while pending.len() < limits::READ_AHEAD_SEGMENTS
            && let Some(stream) = segments
        {
            let ahead = if pending.is_empty() {
                None
            } else if let Ok(permit) = Arc::clone(&self.read_ahead).try_acquire_owned() {
                Some(permit)
            } else {
                break;
            };
            match stream.next().await? {
                Some(segment) => pending.push_back(Pending {
                    read: self.start_read(segment),
                    ahead,
                }),
                None => *segments = None,
            }
        }
        Ok(())
    }

    fn start_read(
        &self,
        segment: Segment,
    ) -> TiedTask<Result<Vec<v1::DownloadResponse>, varve_store::Error>> {
        let reader = self.reader.clone();
        let plain = self.plain;
        let read = async move {
            let leaf = message(Part::Leaf(convert::leaf(&segment)));
            let chunks: Vec<v1::Chunk> = if plain {
                reader
                    .chunks(&segment)
                    .await?
                    .iter()
                    .map(convert::plain_chunk)
                    .collect()
            } else {
                reader
                    .stored_chunks(&segment)
                    .await?
                    .into_iter()
                    .map(convert::stored_chunk)
                    .collect()
            };
            Ok(std::iter::once(leaf).chain(batches(chunks)).collect())
        };
        self.tasks.spawn("read segment", read).tied()
    }
}

fn message(part: Part) -> v1::DownloadResponse {
    v1::DownloadResponse { part: Some(part) }
}

fn payload_bytes(message: &v1::DownloadResponse) -> u64 {
    match &message.part {
        Some(Part::Chunks(batch)) => batch
            .chunks
            .iter()
            .map(|chunk| chunk.payload.len() as u64)
            .sum(),
        _ => 0,
    }
}

fn batches(chunks: Vec<v1::Chunk>) -> impl Iterator<Item = v1::DownloadResponse> {
    message_sized(chunks).map(|chunks| message(Part::Chunks(v1::ChunkBatch { chunks })))
}

/// Chunks in parts of up to [`limits::READ_MESSAGE_BYTES`] of payload, in order.
pub(crate) fn message_sized(chunks: Vec<v1::Chunk>) -> impl Iterator<Item = Vec<v1::Chunk>> {
    let mut chunks = chunks.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = chunks.next_if(|next| {
            batch.is_empty() || bytes + next.payload.len() <= limits::READ_MESSAGE_BYTES
        }) {
            bytes += chunk.payload.len();
            batch.push(chunk);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn batches_keep_order_and_bound_their_payload() {
        let chunk = |number: usize| v1::Chunk {
            id: vec![u8::try_from(number).unwrap(); 32].into(),
            payload: vec![0; 1 + number * 1000 % 262_144].into(),
            ..v1::Chunk::default()
        };
        let chunks: Vec<_> = (0..200).map(chunk).collect();
        let sent: Vec<_> = batches(chunks.clone()).collect();
        assert!(
            sent.iter()
                .all(|message| payload_bytes(message) <= limits::READ_MESSAGE_BYTES as u64)
        );
        let full = sent
            .windows(2)
            .all(|pair| payload_bytes(&pair[0]) > (limits::READ_MESSAGE_BYTES - 262_144) as u64);
        assert!(full, "all but the last are nearly full");
        let together: Vec<_> = sent
            .into_iter()
            .flat_map(|message| match message.part {
                Some(Part::Chunks(batch)) => batch.chunks,
                _ => panic!("not chunks"),
            })
            .collect();
        assert_eq!(together, chunks);
        assert_eq!(batches(Vec::new()).count(), 0);
    }
}
