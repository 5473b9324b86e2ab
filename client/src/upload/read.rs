//! Reading, cutting and hashing: the work of the cores on this side of an upload.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::{sync::mpsc, task};
use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunk_id::ChunkId,
    chunker::cut_segment,
    tree::{Leaf, LeafEntry},
};

use super::{
    buffers::{Buffer, Buffers},
    plan::{Job, Planner},
    source::Source,
};
use crate::{
    error::{Error, Result},
    limits::{LOCAL_SPARE_BUFFERS, READERS_MAX, SEGMENT_BUFFERS, worker_threads},
};

/// A job read, cut and hashed.
#[derive(Debug)]
pub(crate) struct CutJob {
    pub(crate) number: u64,
    /// One for each segment that has data, ascending.
    pub(crate) leaves: Vec<(u32, Leaf)>,
    /// The chunks of the leaves, each once, in the order of their places.
    pub(crate) chunks: Vec<CutChunk>,
    /// Bytes read, zeros among them.
    pub(crate) read_bytes: u64,
}

/// A chunk's plain bytes, in the buffer they were read into.
#[derive(Clone, Debug)]
pub(crate) struct CutChunk {
    pub(crate) id: ChunkId,
    pub(crate) plain: Bytes,
}

/// The threads that read. Dropping this makes them stop.
#[derive(Debug)]
pub(crate) struct Readers {
    buffers: Arc<Buffers>,
    jobs: mpsc::Receiver<Result<CutJob>>,
    threads: task::JoinSet<()>,
}

impl Readers {
    /// Starts to read `source` for a daemon on this machine, or elsewhere.
    pub(crate) fn start(source: Arc<dyn Source>, local: bool) -> Self {
        let count = worker_threads(READERS_MAX);
        let buffers = if local {
            count + LOCAL_SPARE_BUFFERS
        } else {
            SEGMENT_BUFFERS
        };
        let buffers = Arc::new(Buffers::new(buffers));
        let planner = Arc::new(Mutex::new(Planner::new(Arc::clone(&source))));
        let (sender, jobs) = mpsc::channel(count);
        let mut threads = task::JoinSet::new();
        for _ in 0..count {
            let reader = Reader {
                source: Arc::clone(&source),
                planner: Arc::clone(&planner),
                buffers: Arc::clone(&buffers),
                sender: sender.clone(),
            };
            threads.spawn_blocking(move || reader.run());
        }
        Self {
            buffers,
            jobs,
            threads,
        }
    }

    /// The next job, in about ascending order; `None` after the last. No job is lost if the future
    /// is dropped.
    pub(crate) async fn next(&mut self) -> Option<Result<CutJob>> {
        if let Some(job) = self.jobs.recv().await {
            return Some(job);
        }
        // The channel also ends when a thread panicked, which is not the end of the source.
        while let Some(ended) = self.threads.join_next().await {
            if let Err(error) = ended {
                let error =
                    Error::internal("read the source", "a reading thread broke").with_source(error);
                return Some(Err(error));
            }
        }
        None
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.buffers.close();
    }
}

struct Reader {
    source: Arc<dyn Source>,
    planner: Arc<Mutex<Planner>>,
    buffers: Arc<Buffers>,
    sender: mpsc::Sender<Result<CutJob>>,
}

impl Reader {
    fn run(self) {
        // Take the buffer before the job. So the oldest job always has a buffer, and the order of
        // jobs cannot block the pipeline.
        while let Some(buffer) = self.buffers.take() {
            let planned = self
                .planner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next_job();
            let cut = match planned {
                Ok(None) => return,
                Ok(Some(job)) => self.cut(&job, buffer),
                Err(error) => Err(Error::file(
                    format!("find the data of {}", self.source.name()),
                    error,
                )),
            };
            let failed = cut.is_err();
            if self.sender.blocking_send(cut).is_err() || failed {
                return;
            }
        }
    }

    fn cut(&self, job: &Job, mut buffer: Buffer) -> Result<CutJob> {
        let size_bytes = self.source.size_bytes();
        let mut leaves = Vec::with_capacity(job.segments.len());
        let mut places = Vec::new();
        let mut cuts = Vec::new();
        let mut filled = 0;
        for segment in &job.segments {
            let mut entries = Vec::new();
            for extent in &segment.extents {
                let offset_bytes = u64::from(segment.segment) * SEGMENT_BYTES as u64
                    + u64::from(extent.start) * BLOCK_BYTES as u64;
                let len = extent.len() * BLOCK_BYTES;
                let data = &mut buffer[filled..filled + len];
                // The last block of a volume is filled up with zeros.
                let within =
                    usize::try_from(size_bytes - offset_bytes).map_or(len, |rest| rest.min(len));
                let (read, padding) = data.split_at_mut(within);
                self.source.read_at(offset_bytes, read).map_err(|error| {
                    Error::file(
                        format!("read {} at offset {offset_bytes}", self.source.name()),
                        error,
                    )
                })?;
                padding.fill(0);
                cut_segment(data, &mut cuts);
                for cut in &cuts {
                    let range = cut.byte_range();
                    let chunk = ChunkId::of(&data[range.clone()]);
                    places.push((chunk, filled + range.start..filled + range.end));
                    entries.push(LeafEntry {
                        start_block: extent.start + cut.start_block,
                        blocks: cut.blocks,
                        chunk,
                    });
                }
                filled += len;
            }
            if !entries.is_empty() {
                let leaf = Leaf::new(entries).map_err(|error| {
                    Error::internal("cut a segment", "the chunker gave no leaf").with_source(error)
                })?;
                leaves.push((segment.segment, leaf));
            }
        }
        let data = Bytes::from_owner(buffer);
        let mut seen = HashSet::with_capacity(places.len());
        let chunks = places
            .into_iter()
            .filter(|&(id, _)| seen.insert(id))
            .map(|(id, range)| CutChunk {
                id,
                plain: data.slice(range),
            })
            .collect();
        Ok(CutJob {
            number: job.number,
            leaves,
            chunks,
            read_bytes: filled as u64,
        })
    }
}
