//! One attempt to copy one snapshot: from the source's root to the same root here.
//!
//! Invariant: a copy of the administrator takes what the store has. A copy of another account takes
//! only what a snapshot of that account has, its base, and fetches all else from the source. Its
//! source may be anybody's, and could name the content of others by ids alone.

mod fetches;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::UNIX_EPOCH,
};

use futures::{TryStreamExt, stream};
use tokio::{sync::Semaphore, time::timeout};
use tracing::warn;
use varve_client::ErrorKind;
use varve_content::{
    ChunkId, NodeId,
    block::BLOCK_BYTES,
    tree::{ComparedLeaves, Root, RootId},
};
use varve_store::{
    AccountId, Error, IncomingChunk, Ingest, Lineage, NewSnapshot, SnapshotKey, SnapshotOrigin,
    SnapshotRecord, Store,
};

use self::fetches::{Fetch, Places, fetches};
use super::{
    base::Base,
    claims::Claims,
    job::Job,
    remote_snapshot::RemoteSnapshot,
    remotes::{Remotes, Source},
    source::CopyError,
    tree::{Nodes, SizedLeaf},
};
use crate::{
    config::CopiesConfig,
    limits::{
        BUSY_WITHIN, COPIES_MAX, COPY_ANCESTORS_MAX, COPY_BATCHES_IN_FLIGHT, COPY_CLAIM_WAIT,
        COPY_ESTIMATES_MAX, COPY_FETCHES_IN_FLIGHT, COPY_FETCHES_OF_ONE, COPY_FLUSH_BYTES,
        COPY_YIELDS_AFTER, ESTIMATE_CHUNKS_MAX, FOREVER, REQUEST_BYTES_PER_SECOND,
    },
    resources::shares::{Hold, Holder, Rules, Shares},
};

/// An estimate of how much a copy would fetch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimate {
    pub(crate) root: Root,
    pub(crate) missing_chunks: u64,
    pub(crate) missing_bytes: u64,
    pub(crate) present_data_bytes: u64,
    pub(crate) data_bytes: u64,
}

/// A snapshot that the wanted one descends from.
enum Ancestor {
    Here(SnapshotRecord),
    /// At the source only.
    There(varve_client::Snapshot),
}

/// The parts that all copies share: the store, the remotes, and the places of fetches.
#[derive(Debug)]
pub(super) struct CopyEngine {
    pub(super) store: Store,
    pub(super) remotes: Remotes,
    claims: Arc<Claims>,
    /// Places for fetches of chunks.
    fetches: Shares,
    /// Places for estimates.
    estimates: Shares,
}

/// Places for copies, fetches or estimates, and how many of them one holder has: a copy of the
/// administrator, or an account. A waiting copy takes the place of one whose source is slow.
pub(super) fn places(
    what: &'static str,
    total: usize,
    (of_one, of_account): (usize, usize),
) -> Shares {
    Shares::new(Rules {
        what,
        total: total as u64,
        local: 0,
        of_one: of_one as u64,
        of_account: of_account as u64,
        // The most copies, each with all its fetches at one time.
        waiting: COPIES_MAX * COPY_FETCHES_IN_FLIGHT,
        yields_after: COPY_YIELDS_AFTER,
        pace: REQUEST_BYTES_PER_SECOND,
    })
}

impl CopyEngine {
    pub(super) fn new(store: Store, tls: CopiesConfig) -> Self {
        Self {
            remotes: Remotes::new(store.clone(), tls),
            store,
            claims: Arc::default(),
            fetches: places(
                "fetches of copies",
                COPY_FETCHES_IN_FLIGHT,
                (COPY_FETCHES_IN_FLIGHT, COPY_FETCHES_IN_FLIGHT),
            ),
            estimates: places("estimates", COPY_ESTIMATES_MAX, (COPY_ESTIMATES_MAX, 1)),
        }
    }

    /// Copies the missing content and makes the snapshot, unless the place has to be given up.
    pub(super) async fn copy(
        &self,
        job: &Job,
        place: Arc<Hold>,
    ) -> Result<SnapshotRecord, CopyError> {
        let copying = Box::pin(self.copy_all(job, Arc::clone(&place)));
        place.unless_it_gives_way(copying).await?
    }

    async fn copy_all(&self, job: &Job, place: Arc<Hold>) -> Result<SnapshotRecord, CopyError> {
        let asked = job.record();
        let (remotes, turn) = (&self.remotes, Arc::clone(&place));
        let found = RemoteSnapshot::find(asked.owner, &job.source, remotes, turn).await;
        let wanted = match (found, asked.root) {
            (Err(CopyError::Source(error)), Some(root)) if error.kind() == ErrorKind::NotFound => {
                if let Some(made) = self.made(asked.owner, &asked.name, root).await? {
                    job.all_here();
                    return Ok(made);
                }
                return Err(CopyError::Deleted {
                    name: job.source.snapshot.clone(),
                    endpoint: job.source.endpoint.clone(),
                });
            }
            (Ok(wanted), Some(begun)) if wanted.root.id() != begun => {
                return Err(CopyError::Refused(format!(
                    "snapshot {} was deleted at {}, and another one has its name now",
                    wanted.snapshot.name, wanted.endpoint
                )));
            }
            (found, _) => found?,
        };
        let root = wanted.root.id();
        let name = if asked.name.is_empty() {
            wanted.snapshot.name.clone()
        } else {
            asked.name
        };
        varve_store::check_snapshot_name(&name).map_err(|error| job.blame(error))?;
        job.found(&name, &wanted.root, wanted.snapshot.data_bytes);
        if let Some(made) = self.made(asked.owner, &name, root).await? {
            job.all_here();
            return Ok(made);
        }
        if asked.root.is_none() {
            // Record the root before the snapshot is made. If the daemon ends before it records the
            // snapshot, the next one finds it by name and root, even if the source has deleted its
            // own.
            let _writing = job.writing.lock().await;
            self.store.put_copy(job.to_record()).await?;
        }
        let mut tags: BTreeMap<_, _> = wanted.snapshot.tags.clone();
        tags.extend(asked.tags);
        let parent = self.parent(asked.owner, &wanted).await?;
        let new = NewSnapshot {
            owner: asked.owner,
            name,
            size_bytes: wanted.root.size_bytes,
            tags,
            chunker_version: wanted.root.chunker_version,
            lineage: Some(lineage(&wanted.snapshot, parent.as_ref())?),
        };
        if let Some(same) = self.same(asked.owner, root).await? {
            let ingest = self.store.begin_ingest(new).await?;
            let record = ingest.commit_same(&same).await?;
            job.all_here();
            return Ok(record);
        }
        if let Some(base) = self.base(asked.owner, &wanted, parent).await? {
            match self
                .fetch(job, &place, &wanted, new.clone(), Some(base))
                .await
            {
                Err(CopyError::Base(error)) => {
                    let error = error.to_string();
                    warn!(id = %job.id, error, "a snapshot before is no help: the copy looks at everything");
                    job.found(&new.name, &wanted.root, wanted.snapshot.data_bytes);
                }
                outcome => return outcome,
            }
        }
        self.fetch(job, &place, &wanted, new, None).await
    }

    /// The snapshot of this owner and name in this store, if it has this content.
    async fn made(
        &self,
        owner: AccountId,
        name: &str,
        root: RootId,
    ) -> Result<Option<SnapshotRecord>, CopyError> {
        let name = name.to_owned();
        match self
            .store
            .snapshot(&SnapshotKey::Name { owner, name })
            .await
        {
            Ok(there) if there.root() == Some(root) => Ok(Some(there)),
            Ok(_) | Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Fetches the content that neither the base nor the store has, and makes the snapshot.
    async fn fetch(
        &self,
        job: &Job,
        place: &Hold,
        wanted: &RemoteSnapshot,
        new: NewSnapshot,
        base: Option<Base>,
    ) -> Result<SnapshotRecord, CopyError> {
        let proves = proves(new.owner);
        let mut ingest = self.store.begin_ingest(new).await?;
        if !proves {
            ingest = ingest.keep_packed();
        }
        let own = (!proves).then_some(&self.store);
        let nodes = Nodes::new(own, &wanted.connections, wanted.of());
        // `take` subtracts the leaves that are dropped.
        let base_blocks = base.as_ref().map_or(0, |base| base.data_blocks);
        job.based(base_blocks * BLOCK_BYTES as u64);
        let transfer = Transfer {
            engine: self,
            job,
            place,
            ingest: &ingest,
            wanted,
            nodes: &nodes,
            base: base.as_ref(),
            proves,
            fetches: Semaphore::new(COPY_FETCHES_OF_ONE),
            dropped_blocks: AtomicU64::new(0),
        };
        let transferring = wanted
            .batches(&nodes, base.as_ref())
            .try_for_each_concurrent(COPY_BATCHES_IN_FLIGHT, |batch| transfer.take(batch));
        wanted.held(Box::pin(transferring)).await?;
        let dropped_blocks = transfer.dropped_blocks.into_inner();
        if let Some(base) = &base {
            let kept_blocks = base_blocks.saturating_sub(dropped_blocks);
            ingest.keep_leaves(base.pin(), Vec::new(), kept_blocks)?;
        }
        let committed = place.excused(ingest.commit(wanted.root.id())).await;
        committed.map_err(|error| job.blame(error))
    }

    /// A snapshot of this store with exactly this content, which the account may read.
    async fn same(&self, owner: AccountId, root: RootId) -> Result<Option<SnapshotRecord>, Error> {
        if !self.store.vouches_for_snapshots() {
            return Ok(None);
        }
        self.store
            .snapshot_of(root, proves(owner).then_some(owner))
            .await
    }

    /// The parent, here or at the source; `None` if there is none, or it is deleted at the source.
    async fn parent(
        &self,
        owner: AccountId,
        wanted: &RemoteSnapshot,
    ) -> Result<Option<Ancestor>, CopyError> {
        match &wanted.snapshot.parent {
            Some(id) => self.ancestor(owner, wanted, id).await,
            None => Ok(None),
        }
    }

    /// The snapshot here of this owner with the name and the content of one at the source;
    /// otherwise the one at the source.
    async fn ancestor(
        &self,
        owner: AccountId,
        wanted: &RemoteSnapshot,
        id: &str,
    ) -> Result<Option<Ancestor>, CopyError> {
        let connections = &wanted.connections;
        let there = match connections.heard(connections.client().snapshot(id)).await {
            Ok(there) => there,
            Err(CopyError::Source(error)) if error.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let name = there.name.clone();
        let key = SnapshotKey::Name { owner, name };
        match self.store.snapshot(&key).await {
            Ok(here) if here.root().is_some() && here.root() == there.root => {
                Ok(Some(Ancestor::Here(here)))
            }
            Ok(_) | Err(Error::NotFound { .. }) => Ok(Some(Ancestor::There(there))),
            Err(error) => Err(error.into()),
        }
    }

    /// The nearest ancestor that is here with all its content.
    async fn base(
        &self,
        owner: AccountId,
        wanted: &RemoteSnapshot,
        parent: Option<Ancestor>,
    ) -> Result<Option<Base>, CopyError> {
        if !self.store.vouches_for_snapshots() {
            return Ok(None);
        }
        let mut next = parent;
        for _ in 0..COPY_ANCESTORS_MAX {
            match next {
                None => break,
                Some(Ancestor::Here(here)) => {
                    let base = Base::of(&self.store, &here).await;
                    return Ok(base
                        .inspect_err(|error| {
                            warn!(
                                snapshot = &*here.label(),
                                error = error.to_string(),
                                "a snapshot before is no help"
                            )
                        })
                        .ok());
                }
                Some(Ancestor::There(there)) => {
                    next = match &there.parent {
                        Some(id) => self.ancestor(owner, wanted, id).await?,
                        None => None,
                    };
                }
            }
        }
        Ok(None)
    }

    /// Estimates how much a copy would fetch. Fetches only tree nodes.
    pub(super) async fn estimate(
        &self,
        owner: AccountId,
        source: &Source,
    ) -> Result<Estimate, CopyError> {
        let holder = match owner {
            AccountId::ADMINISTRATOR => Holder::OWN,
            owner => Holder::of_account(owner.number(), true),
        };
        let place = self.estimates.take(holder, 1, BUSY_WITHIN).await?;
        let place = Arc::new(place);
        let estimating = Box::pin(self.estimate_all(owner, source, Arc::clone(&place)));
        place.unless_it_gives_way(estimating).await?
    }

    async fn estimate_all(
        &self,
        owner: AccountId,
        source: &Source,
        place: Arc<Hold>,
    ) -> Result<Estimate, CopyError> {
        let wanted = RemoteSnapshot::find(owner, source, &self.remotes, place).await?;
        if let Some(same) = self.same(owner, wanted.root.id()).await? {
            let data_bytes = same.content().map_or(0, |content| content.data_bytes);
            return Ok(Estimate {
                present_data_bytes: data_bytes,
                data_bytes,
                ..Estimate::of(wanted.root)
            });
        }
        let parent = self.parent(owner, &wanted).await?;
        if let Some(base) = self.base(owner, &wanted, parent).await? {
            let counting = Box::pin(self.count(owner, &wanted, Some(&base)));
            match wanted.held(counting).await {
                Err(CopyError::Base(error)) => {
                    let error = error.to_string();
                    warn!(error, "a snapshot before is no help to an estimate");
                }
                outcome => return outcome,
            }
        }
        wanted
            .held(Box::pin(self.count(owner, &wanted, None)))
            .await
    }

    /// Counts the content that neither the base nor the store has; for an account that the base
    /// does not have.
    async fn count(
        &self,
        owner: AccountId,
        wanted: &RemoteSnapshot,
        base: Option<&Base>,
    ) -> Result<Estimate, CopyError> {
        let mut estimate = Estimate::of(wanted.root);
        let own = (!proves(owner)).then_some(&self.store);
        let nodes = &Nodes::new(own, &wanted.connections, wanted.of());
        let mut kept_blocks = base.map_or(0, |base| base.data_blocks);
        // The first eight bytes of each id: ids that share them would count as one.
        let mut counted: HashSet<u64> = HashSet::new();
        let mut batches = std::pin::pin!(
            wanted
                .batches(nodes, base)
                .map_ok(|batch| async move {
                    let mut based = HashSet::new();
                    let mut dropped = 0;
                    if let Some(base) = base {
                        dropped = base.blocks_of(&batch.dropped).await?;
                        if proves(owner) {
                            based = base.chunks_of(&batch.dropped).await?;
                        }
                    }
                    Ok((nodes.leaves(&batch.wanted).await?, based, dropped))
                })
                .try_buffered(COPY_BATCHES_IN_FLIGHT)
        );
        while let Some((leaves, based, dropped)) = batches.try_next().await? {
            kept_blocks = kept_blocks.saturating_sub(dropped);
            let places = Places::of(&leaves);
            let missing = match proves(owner) {
                false => self.store.missing_chunks(&places.ids).await?,
                true => (0u32..)
                    .zip(&places.ids)
                    .filter(|(_, id)| !based.contains(*id))
                    .map(|(at, _)| at)
                    .collect(),
            };
            for ((at, id), bytes) in (0u32..).zip(&places.ids).zip(&places.data_bytes) {
                estimate.data_bytes += bytes;
                if missing.binary_search(&at).is_err() {
                    estimate.present_data_bytes += bytes;
                    continue;
                }
                let first = id.as_bytes().first_chunk().copied().unwrap_or_default();
                let first = u64::from_le_bytes(first);
                // Beyond this number, a chunk that repeats is counted again.
                let is_new = if counted.len() < ESTIMATE_CHUNKS_MAX {
                    counted.insert(first)
                } else {
                    !counted.contains(&first)
                };
                if is_new {
                    estimate.missing_chunks += 1;
                    estimate.missing_bytes += places.payload_bytes(at as usize, &leaves);
                }
            }
        }
        let kept_bytes = kept_blocks * BLOCK_BYTES as u64;
        estimate.present_data_bytes += kept_bytes;
        estimate.data_bytes += kept_bytes;
        Ok(estimate)
    }
}

/// Returns true if copies of an account take nothing of the store but what its own snapshots have.
fn proves(owner: AccountId) -> bool {
    owner != AccountId::ADMINISTRATOR
}

impl Estimate {
    const fn of(root: Root) -> Self {
        Self {
            root,
            missing_chunks: 0,
            missing_bytes: 0,
            present_data_bytes: 0,
            data_bytes: 0,
        }
    }
}

/// The lineage of a snapshot as the source reports it. If its parent is here, the parent has the id
/// that it has here.
fn lineage(
    snapshot: &varve_client::Snapshot,
    parent: Option<&Ancestor>,
) -> Result<Lineage, CopyError> {
    let refused = |what: &str, said: &str| {
        CopyError::Refused(format!("the source says {said:?} for the {what}"))
    };
    let since = snapshot.created_at.duration_since(UNIX_EPOCH).ok();
    let created_at_ns = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
    let origin = match &snapshot.volume {
        None => None,
        Some(volume) => Some(SnapshotOrigin {
            volume: volume
                .id
                .parse()
                .map_err(|_| refused("volume", &volume.id))?,
            name: volume.name.clone(),
        }),
    };
    let parent = match (parent, &snapshot.parent) {
        (Some(Ancestor::Here(here)), _) => Some(here.id),
        (_, Some(id)) => Some(id.parse().map_err(|_| refused("parent", id))?),
        (_, None) => None,
    };
    Ok(Lineage {
        created_at_ns: created_at_ns.ok_or_else(|| refused("time", "before 1970"))?,
        origin,
        parent,
    })
}

/// One attempt to copy one snapshot.
struct Transfer<'a> {
    engine: &'a CopyEngine,
    job: &'a Job,
    place: &'a Hold,
    ingest: &'a Ingest,
    wanted: &'a RemoteSnapshot,
    nodes: &'a Nodes<'a>,
    base: Option<&'a Base>,
    /// All chunks that the base does not have are fetched.
    proves: bool,
    /// Places for this transfer's fetches.
    fetches: Semaphore,
    /// Blocks of data that only the base has.
    dropped_blocks: AtomicU64,
}

impl Transfer<'_> {
    /// Takes leaves in, with all their chunks.
    async fn take(&self, batch: ComparedLeaves) -> Result<(), CopyError> {
        if let Some(base) = self.base {
            let dropped = base.blocks_of(&batch.dropped).await?;
            self.dropped_blocks.fetch_add(dropped, Ordering::Relaxed);
            self.job.undone(dropped * BLOCK_BYTES as u64);
            self.ingest.keep_leaves(base.pin(), batch.kept, 0)?;
        }
        let leaves = self.nodes.leaves(&batch.wanted).await?;
        let mut wanted = Places::of(&leaves).ids;
        if self.proves {
            let (based, unproved) = self.based(wanted, &batch.dropped).await?;
            // The claims of copies would tell of each other.
            self.fetch_all(&leaves, unproved).await?;
            self.fetch_missing(&leaves, &based).await?;
            wanted = Vec::new();
        }
        while !wanted.is_empty() {
            let (claim, foreign) = self.engine.claims.claim(wanted);
            self.fetch_missing(&leaves, &claim.ids).await?;
            // Drop the claim only now: a copy that waits for these chunks looks in the store next.
            drop(claim);
            // The copies that had claimed the others may have given up.
            wanted = foreign;
            let released = self.engine.claims.released(&wanted);
            if timeout(COPY_CLAIM_WAIT, released).await.is_err() {
                // Rather fetch the chunks twice than let a slow copy slow down others.
                self.fetch_missing(&leaves, &wanted).await?;
                break;
            }
        }
        let data_blocks = leaves.iter().map(|leaf| leaf.leaf.data_blocks());
        let data_bytes = data_blocks.map(u64::from).sum::<u64>() * BLOCK_BYTES as u64;
        let leaves = leaves.into_iter();
        let leaves = leaves.map(|leaf| (leaf.segment, Arc::unwrap_or_clone(leaf.leaf)));
        let put = self.ingest.put_leaves(leaves.collect()).await;
        put.map_err(|error| self.job.blame(error))?;
        self.job.done(data_bytes);
        Ok(())
    }

    /// Fetches those of the chunks `ids` that are missing here.
    async fn fetch_missing(&self, leaves: &[SizedLeaf], ids: &[ChunkId]) -> Result<(), CopyError> {
        let missing = self.ingest.missing(ids, &[]).await?;
        let missing = missing.iter();
        let missing = missing.filter_map(|at| ids.get(*at as usize).copied());
        self.fetch_all(leaves, missing.collect()).await
    }

    /// Divides chunks into those that these leaves of the base have, and all others.
    async fn based(
        &self,
        chunks: Vec<ChunkId>,
        dropped: &[(u32, NodeId)],
    ) -> Result<(Vec<ChunkId>, HashSet<ChunkId>), CopyError> {
        let based = match self.base {
            Some(base) => base.chunks_of(dropped).await?,
            None => HashSet::new(),
        };
        let (based, unproved): (Vec<_>, Vec<_>) =
            chunks.into_iter().partition(|id| based.contains(id));
        Ok((based, unproved.into_iter().collect()))
    }

    /// Fetches chunks, whether or not they are here.
    async fn fetch_all(
        &self,
        leaves: &[SizedLeaf],
        chunks: HashSet<ChunkId>,
    ) -> Result<(), CopyError> {
        stream::iter(fetches(leaves, &chunks).into_iter().map(Ok))
            .try_for_each_concurrent(COPY_FETCHES_OF_ONE, |fetch| self.fetch(fetch))
            .await
    }

    async fn fetch(&self, fetch: Fetch) -> Result<(), CopyError> {
        // Wait for the limit before taking a place: a slow copy keeps none from others.
        let passing = self.job.limiter.pass(fetch.payload_bytes);
        self.place.excused(passing).await;
        let own = self.fetches.acquire().await;
        let _own = own.map_err(|_| Error::Closing)?;
        let fetches = &self.engine.fetches;
        let place = fetches.take(self.job.holder(), 1, FOREVER).await?;
        let fetched = self.fetch_now(fetch, &place);
        place.unless_it_gives_way(Box::pin(fetched)).await?
    }

    async fn fetch_now(&self, fetch: Fetch, place: &Hold) -> Result<(), CopyError> {
        let source = &self.wanted.connections;
        let chunks = source
            .client()
            .fetch_chunks(self.wanted.of(), &fetch.wanted);
        let mut chunks = source.heard(chunks).await?;
        while let Some(chunks) = source.heard(chunks.next()).await? {
            // From here the fetch waits for this store.
            place.settle(true);
            let bytes: usize = chunks.iter().map(|chunk| chunk.payload.len()).sum();
            let count = chunks.len();
            let incoming = chunks.into_iter().map(|chunk| IncomingChunk {
                id: chunk.id,
                codec: chunk.codec,
                plain_bytes: chunk.plain_bytes,
                payload: chunk.payload,
            });
            let put = self.ingest.put_chunks(incoming.collect()).await;
            put.map_err(|error| self.job.blame(error))?;
            if self.job.received(count as u64, bytes as u64) >= COPY_FLUSH_BYTES {
                self.job.flushed();
                self.ingest.flush().await?;
            }
            place.settle(false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
