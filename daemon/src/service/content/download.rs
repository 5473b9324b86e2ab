//! A whole snapshot, as leaves and chunks.
//!
//! Invariants: segments go out in ascending order, each leaf before its chunks. Each download may
//! always read one segment. Segments ahead of it take from a budget that all downloads share, and
//! never wait for it, so that a slow client holds up nobody.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use varve_store::{Segment, SegmentStream, SnapshotId, SnapshotReader, StoredChunk, VerifiedChunk};

use crate::{
    auth::{Attempt, done},
    limits,
    service::{Snapshot, error::Result, streams::Outlet},
    tasks::{Tasks, TiedTask},
};

/// A part of a download.
#[derive(Debug)]
pub(crate) enum DownloadPart {
    Snapshot(Box<Snapshot>),
    Leaf(Segment),
    /// Up to [`limits::READ_MESSAGE_BYTES`] of payload.
    Chunks(Vec<SentChunk>),
}

/// A chunk as it goes out.
#[derive(Debug)]
pub(crate) enum SentChunk {
    /// Unpacked, and verified by the store.
    Plain(VerifiedChunk),
    /// As it is stored; the receiver verifies it.
    Stored(StoredChunk),
}

impl SentChunk {
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Plain(chunk) => chunk.plain().len(),
            Self::Stored(chunk) => chunk.payload.len(),
        }
    }
}

/// A download under way.
pub(super) struct Download {
    /// The snapshot as the caller sees it.
    pub(super) shown: Snapshot,
    pub(super) reader: SnapshotReader,
    /// Unpacks chunks here.
    pub(super) plain: bool,
    pub(super) tasks: Tasks,
    pub(super) read_ahead: Arc<Semaphore>,
}

/// The outcome of a download.
pub(super) struct Downloaded {
    id: SnapshotId,
    name: Option<String>,
    payload_bytes: u64,
    plain: bool,
}

impl Downloaded {
    pub(super) fn tell(attempt: &Attempt, it: &Self) {
        done!(
            attempt,
            id = %it.id,
            name = it.name,
            payload_bytes = it.payload_bytes,
            plain = it.plain,
            "snapshot downloaded"
        );
    }
}

/// A segment that is being read, with its part of the budget of all downloads.
struct Pending {
    read: TiedTask<Result<Vec<DownloadPart>, varve_store::Error>>,
    ahead: Option<OwnedSemaphorePermit>,
}

impl Download {
    pub(super) async fn send(self, outlet: Outlet<DownloadPart>) -> Result<Downloaded> {
        let (id, name) = (self.shown.record.id, self.shown.record.name.clone());
        let shown = DownloadPart::Snapshot(Box::new(self.shown.clone()));
        outlet.send(shown).await?;

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
                outlet.send(part).await?;
            }
            drop(ahead);
        }
        Ok(Downloaded {
            id,
            name,
            payload_bytes: sent_bytes,
            plain: self.plain,
        })
    }

    /// Starts to read further segments while the budget has room.
    async fn read_on(
        &self,
        segments: &mut Option<SegmentStream>,
        pending: &mut VecDeque<Pending>,
    ) -> Result<()> {
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
    ) -> TiedTask<Result<Vec<DownloadPart>, varve_store::Error>> {
        let reader = self.reader.clone();
        let plain = self.plain;
        let read = async move {
            let chunks: Vec<_> = if plain {
                let chunks = reader.chunks(&segment).await?;
                chunks.into_iter().map(SentChunk::Plain).collect()
            } else {
                let chunks = reader.stored_chunks(&segment).await?;
                chunks.into_iter().map(SentChunk::Stored).collect()
            };
            let chunks = message_sized(chunks, SentChunk::payload_bytes);
            let leaf = std::iter::once(DownloadPart::Leaf(segment));
            Ok(leaf.chain(chunks.map(DownloadPart::Chunks)).collect())
        };
        self.tasks.spawn("read segment", read).tied()
    }
}

fn payload_bytes(part: &DownloadPart) -> u64 {
    match part {
        DownloadPart::Chunks(chunks) => {
            let bytes = chunks.iter().map(SentChunk::payload_bytes);
            bytes.sum::<usize>() as u64
        }
        DownloadPart::Snapshot(_) | DownloadPart::Leaf(_) => 0,
    }
}

/// Chunks in parts of up to [`limits::READ_MESSAGE_BYTES`] of payload, in order.
pub(in crate::service) fn message_sized<C>(
    chunks: Vec<C>,
    payload_bytes: impl Fn(&C) -> usize,
) -> impl Iterator<Item = Vec<C>> {
    let mut chunks = chunks.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = chunks.next_if(|next| {
            batch.is_empty() || bytes + payload_bytes(next) <= limits::READ_MESSAGE_BYTES
        }) {
            bytes += payload_bytes(&chunk);
            batch.push(chunk);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_order_and_bound_their_payload() {
        let chunks: Vec<usize> = (0..200).map(|number| 1 + number * 1000 % 262_144).collect();
        let sent: Vec<_> = message_sized(chunks.clone(), |bytes| *bytes).collect();
        let bytes = |batch: &Vec<usize>| batch.iter().sum::<usize>();
        assert!(
            sent.iter()
                .all(|batch| bytes(batch) <= limits::READ_MESSAGE_BYTES)
        );
        let full = sent
            .windows(2)
            .all(|pair| bytes(&pair[0]) > limits::READ_MESSAGE_BYTES - 262_144);
        assert!(full, "all but the last are nearly full");
        assert_eq!(sent.concat(), chunks);
        assert_eq!(message_sized(Vec::new(), |bytes: &usize| *bytes).count(), 0);
    }
}
