//! Brings jobs into order, sends their chunks, then their leaves, and builds the tree.
//!
//! Invariants: a leaf is put only when all chunks it names are at the daemon; no chunk is sent
//! twice. A job *claims* the chunks it asks about. While a claim stands, later jobs that hold the
//! same chunk neither ask nor send, but rely on the claim; as jobs complete in order, a job's
//! leaves are put after every claim it relied on was settled. A claim ends with its job, when the
//! daemon has the chunk and reports that to every caller: so the claims are as bounded as the jobs
//! in flight.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
};

use futures::{
    StreamExt,
    stream::{FuturesOrdered, FuturesUnordered},
};
use varve_content::{
    chunk_id::ChunkId,
    tree::{Leaf, Root, TreeBuilder},
};
use varve_proto::v1;

use super::{
    read::{CutJob, Readers},
    session::{Sent, Session, leaf_message},
};
use crate::{
    error::{Error, Result},
    limits::{JOBS_IN_FLIGHT, LEAF_CALLS_MAX, LEAF_ENTRIES_PER_MESSAGE},
    progress::Progress,
};

/// The outcome of sending all jobs.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) root: Root,
    pub(crate) sent: Sent,
    pub(crate) read_bytes: u64,
}

/// A job whose chunks the daemon has.
struct Accepted {
    leaves: Vec<(u32, Leaf)>,
    claimed: Vec<ChunkId>,
    sent: Sent,
    read_bytes: u64,
}

/// Sends all jobs of `readers`.
pub(crate) async fn run(
    session: &Session,
    mut readers: Readers,
    size_bytes: u64,
    progress: &Progress,
) -> Result<Finished> {
    let mut tree = Tree::new(size_bytes)?;
    let mut early: BTreeMap<u64, CutJob> = BTreeMap::new();
    let mut next_number = 0;
    let mut claims: HashSet<ChunkId> = HashSet::new();
    let mut sending = FuturesOrdered::new();
    let mut putting = FuturesUnordered::new();
    let mut reading = true;
    let mut total = Sent::default();
    let mut read_bytes = 0;
    loop {
        while sending.len() < JOBS_IN_FLIGHT
            && let Some(job) = early.remove(&next_number)
        {
            next_number += 1;
            sending.push_back(send(session, job, &mut claims));
        }
        if !reading && sending.is_empty() {
            break;
        }
        tokio::select! {
            Some(accepted) = sending.next(), if putting.len() < LEAF_CALLS_MAX => {
                let accepted: Accepted = accepted?;
                for id in &accepted.claimed {
                    claims.remove(id);
                }
                total.chunks += accepted.sent.chunks;
                total.payload_bytes += accepted.sent.payload_bytes;
                read_bytes += accepted.read_bytes;
                progress.add_done(accepted.read_bytes);
                if let Some(leaves) = tree.add(accepted.leaves)? {
                    putting.push(session.put_leaves(leaves));
                }
            }
            Some(put) = putting.next() => put?,
            job = readers.next(), if reading && sending.len() < JOBS_IN_FLIGHT => match job {
                Some(job) => {
                    let job = job?;
                    early.insert(job.number, job);
                }
                None => reading = false,
            },
        }
    }
    if !early.is_empty() {
        return Err(Error::internal(
            "read the source",
            format!("job {next_number} was lost"),
        ));
    }
    let (rest, root) = tree.finish();
    if !rest.is_empty() {
        putting.push(session.put_leaves(rest));
    }
    while let Some(put) = putting.next().await {
        put?;
    }
    Ok(Finished {
        root,
        sent: total,
        read_bytes,
    })
}

/// Claims the unclaimed chunks of a job, and ensures that the daemon has them.
fn send<'a>(
    session: &'a Session,
    job: CutJob,
    claims: &mut HashSet<ChunkId>,
) -> impl Future<Output = Result<Accepted>> + use<'a> {
    let CutJob {
        leaves,
        mut chunks,
        read_bytes,
        ..
    } = job;
    chunks.retain(|chunk| claims.insert(chunk.id));
    let segments: Vec<_> = leaves.iter().map(|(segment, _)| *segment).collect();
    let claimed = chunks.iter().map(|chunk| chunk.id).collect();
    async move {
        Ok(Accepted {
            sent: session.send(chunks, &segments).await?,
            leaves,
            claimed,
            read_bytes,
        })
    }
}

/// The tree as it grows, and the leaves that wait to be put.
struct Tree {
    builder: TreeBuilder,
    waiting: LeafBatch,
}

/// Leaves that wait to be put together.
#[derive(Debug, Default)]
pub(crate) struct LeafBatch {
    leaves: Vec<v1::Leaf>,
    entries: usize,
}

impl LeafBatch {
    /// Adds a leaf.
    pub(crate) fn push(&mut self, segment: u32, leaf: &Leaf) {
        self.entries += leaf.entries().len();
        self.leaves.push(leaf_message(segment, leaf));
    }

    /// Returns all leaves, once there are enough.
    pub(crate) fn take_full(&mut self) -> Option<Vec<v1::Leaf>> {
        if self.entries < LEAF_ENTRIES_PER_MESSAGE {
            return None;
        }
        self.entries = 0;
        Some(mem::take(&mut self.leaves))
    }

    /// The leaves that are left.
    pub(crate) fn rest(self) -> Vec<v1::Leaf> {
        self.leaves
    }
}

impl Tree {
    fn new(size_bytes: u64) -> Result<Self> {
        let builder = TreeBuilder::new(size_bytes).map_err(refused)?;
        Ok(Self {
            builder,
            waiting: LeafBatch::default(),
        })
    }

    /// Adds leaves. Returns those to put when there are enough of them.
    fn add(&mut self, leaves: Vec<(u32, Leaf)>) -> Result<Option<Vec<v1::Leaf>>> {
        for (segment, leaf) in leaves {
            self.builder.push(segment, leaf.id()).map_err(refused)?;
            self.waiting.push(segment, &leaf);
        }
        // The daemon builds the tree for itself; only the root is compared.
        drop(self.builder.take_finished());
        Ok(self.waiting.take_full())
    }

    /// Returns the leaves not put yet, and the root.
    fn finish(self) -> (Vec<v1::Leaf>, Root) {
        let (root, _) = self.builder.finish();
        (self.waiting.rest(), root)
    }
}

fn refused(error: varve_content::tree::TreeError) -> Error {
    Error::internal("build the tree", error.to_string()).with_source(error)
}
