//! The order of durability. Only this file decides the order in which data is written, synced and
//! made visible.
//!
//! 1. Pack bytes are written and synced ([`PackWriter::flush`], whose receipt the next step asks
//!    for).
//! 2. A snapshot's record is appended to the catalog log and synced.
//! 3. Index entries and the snapshot's record enter RocksDB, in one batch with a synced WAL.
//!
//! Every other change of the catalog, volumes' records included, goes through 2 and 3.
//!
//! Nobody sees a snapshot before 3. A crash between 2 and 3 leaves a record that recovery applies:
//! the snapshot is whole by then, and nobody was told otherwise. Chunks are synced and indexed in
//! groups while an upload runs, so that an interrupted upload need not send them again.
//!
//! A full disk loses the data that was not synced yet, and nothing else: uploads under way fail
//! (their [`Generation`] has passed), the store goes on. If the system is short of a resource
//! (descriptors, memory), the store waits for it; a pack that cannot be made fails those who needed
//! it. Any other failure to write or to sync leaves the state of the disk unknown: nothing is
//! written any more until a restart. `docs/errors.md` lists the outcome of each error.
//!
//! A caller's future may be dropped at any `await`, as when its client goes away. Work between two
//! of the steps above would then be forgotten, so the steps run in tasks of their own
//! ([`Commit::to_the_end`]).

use std::{
    mem,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use parking_lot::RwLock;
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinError,
};

use crate::{
    Error, Result,
    catalog_log::CatalogLog,
    engine::{
        DirectoryLock, Reliance, Workers,
        pending::{Fill, Generation, Pending},
        unindexed::{Note, Unindexed},
    },
    failpoints::{Failpoint, reach},
    format::{
        CatalogRecord, Change, Name, PackKind, PackState, catalog_log::Record, pack::Payload,
    },
    io::Disk,
    meta::{Batch, Key, Lookup as _, Meta, SnapshotRecord, check_changes, check_owner},
    pack::{Appended, EncodedRecord, LostPlaces, PackWriter, PlacedRecord},
};

#[derive(Debug)]
pub(crate) struct Commit {
    pub(super) chunks: PackWriter,
    pub(super) nodes: PackWriter,
    meta: Arc<dyn Meta>,
    workers: Arc<Workers>,
    disk: Arc<dyn Disk>,
    /// True if the last batch found no space in the index.
    index_full: AtomicBool,
    pending: RwLock<Pending>,
    /// The pending records that packs may have already.
    pub(super) unindexed: Arc<Unindexed>,
    /// One flush at a time: a second one would sync the same data.
    pub(super) flushing: Mutex<()>,
    /// Changes of the catalog are made one after another.
    pub(super) catalog: Mutex<CatalogLog>,
    /// One checkpoint of the catalog log at a time.
    pub(super) log_checkpoint: Mutex<()>,
    /// Held as long as any part of the commit path may write.
    _lock: DirectoryLock,
    pub(super) lost: Arc<RwLock<LostPlaces>>,
    pub(super) reliance: Arc<Reliance>,
}

/// The parts of the commit path.
pub(crate) struct CommitParts {
    pub(crate) chunks: PackWriter,
    pub(crate) nodes: PackWriter,
    pub(crate) meta: Arc<dyn Meta>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) log: CatalogLog,
    pub(crate) lock: DirectoryLock,
    pub(crate) lost: Arc<RwLock<LostPlaces>>,
    pub(crate) reliance: Arc<Reliance>,
}

/// Stops the store when a task that changes it panics: nobody knows how far it came.
pub(crate) struct PoisonOnPanic(Arc<Commit>);

impl PoisonOnPanic {
    pub(crate) fn new(commit: &Arc<Commit>) -> Self {
        Self(Arc::clone(commit))
    }
}

impl Drop for PoisonOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.poison(&Error::Poisoned {
                reason: "a task that was writing has panicked".to_owned(),
            });
        }
    }
}

/// Waits for a task. A panic of the task continues here.
pub(crate) async fn joined<T>(
    task: impl Future<Output = std::result::Result<Result<T>, JoinError>>,
) -> Result<T> {
    match task.await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down.
        Err(Err(_)) => Err(Error::Closing),
    }
}

/// Joins `more` to the earlier appends.
fn join(all: &mut Option<Appended>, more: Appended) {
    match all {
        Some(all) => all.join(more),
        None => *all = Some(more),
    }
}

impl Commit {
    pub(crate) fn new(parts: CommitParts) -> Arc<Self> {
        Arc::new(Self {
            chunks: parts.chunks,
            nodes: parts.nodes,
            meta: parts.meta,
            workers: parts.workers,
            disk: parts.disk,
            index_full: AtomicBool::new(false),
            pending: RwLock::default(),
            unindexed: Arc::default(),
            flushing: Mutex::new(()),
            catalog: Mutex::new(parts.log),
            log_checkpoint: Mutex::new(()),
            _lock: parts.lock,
            lost: parts.lost,
            reliance: parts.reliance,
        })
    }

    /// Runs work that must not stop half-way, even if the caller stops waiting for it.
    pub(crate) async fn to_the_end<T, W, F>(self: &Arc<Self>, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Self>) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let work = work(Arc::clone(self));
        let guard = PoisonOnPanic::new(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "`close` waits for all of them: it takes the locks that they hold"
        )]
        let task = tokio::spawn(async move {
            let done = work.await;
            drop(guard);
            done
        });
        joined(task).await
    }

    /// The current generation, for an upload that begins.
    pub(crate) fn generation(&self) -> Result<Generation> {
        let pending = self.pending.read();
        let generation = Generation(pending.generation);
        pending.check(generation)?;
        Ok(generation)
    }

    /// Checks that the generation has not passed, and that the store writes.
    ///
    /// # Errors
    ///
    /// [`Error::Dropped`] if it has, [`Error::Poisoned`], [`Error::Closing`].
    pub(crate) fn check(&self, generation: Generation) -> Result<()> {
        self.pending.read().check(generation)
    }

    /// The reason why the store has stopped writing, if it has.
    pub(crate) fn poisoned(&self) -> Option<String> {
        self.pending.read().poisoned.clone()
    }

    /// The payloads of records that were appended and that the index does not have yet.
    pub(crate) fn pending(&self, names: &[Name]) -> Vec<Option<Payload>> {
        let pending = self.pending.read();
        let records = names.iter().map(|name| pending.records.get(name).copied());
        records.collect()
    }

    /// Appends records to packs of a kind, and indexes when a group is full. Returns the bytes that
    /// they take in packs.
    pub(crate) async fn append(
        self: &Arc<Self>,
        generation: Generation,
        kind: PackKind,
        records: Vec<EncodedRecord>,
    ) -> Result<u64> {
        let kept: Vec<_> = records
            .iter()
            .map(|record| (record.name(), *record.payload()))
            .collect();
        let writer = match kind {
            PackKind::Chunks => &self.chunks,
            PackKind::Nodes => &self.nodes,
        };
        let note = self.unindexed.begin(kind, writer.end());
        let appended = self.appended(writer.append(records).await)?;
        let stored = appended.stored_bytes();
        let fill = {
            let mut pending = self.pending.write();
            pending.check(generation)?;
            pending.records.extend(kept);
            let before = match kind {
                PackKind::Chunks => &mut pending.chunks_appended,
                PackKind::Nodes => &mut pending.nodes_appended,
            };
            join(before, appended);
            pending.notes.push(note);
            pending.fill()
        };
        if kind == PackKind::Chunks {
            reach(Failpoint::ChunksAppended);
        }
        self.index_group(fill).await?;
        Ok(stored)
    }

    /// Indexes what was appended, if it is enough for a group.
    async fn index_group(self: &Arc<Self>, fill: Fill) -> Result<()> {
        if fill == Fill::Some {
            return Ok(());
        }
        self.to_the_end(move |commit| async move {
            let flushing = match commit.flushing.try_lock() {
                Ok(flushing) => flushing,
                // The next group includes these records.
                Err(_) if fill == Fill::Group => return Ok(()),
                Err(_) => commit.flushing.lock().await,
            };
            commit.flush_locked(&flushing, false).await
        })
        .await
    }

    /// Makes durable and indexes all that was appended.
    pub(crate) async fn flush(self: &Arc<Self>, generation: Generation) -> Result<()> {
        self.to_the_end(|commit| async move {
            let flushing = commit.flushing.lock().await;
            commit.check(generation)?;
            commit.flush_locked(&flushing, false).await?;
            // A full disk may just have lost the appended records.
            commit.check(generation)
        })
        .await
    }

    /// Makes the changes that `plan` returns for the current catalog, which does not change
    /// meanwhile: all of them, or none. Holds `held` until they are durable, also if the caller
    /// stops waiting for that.
    ///
    /// A plan is pure: it changes nothing, and only returns changes. So it may be called several
    /// times before its changes are made.
    pub(crate) async fn change<T, F>(
        self: &Arc<Self>,
        held: impl Send + 'static,
        plan: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&dyn Meta) -> Result<(Vec<Change>, T)> + Send + 'static,
    {
        self.to_the_end(|commit| async move {
            let mut log = commit.catalog.lock().await;
            let (mut changes, outcome) = commit.ask(plan).await?;
            let record = match (changes.pop(), changes.is_empty()) {
                (None, _) => return Ok(outcome),
                (Some(only), true) => Record::One(only),
                (Some(last), false) => {
                    changes.push(last);
                    Record::Several(changes)
                }
            };
            if !record.fits() {
                return Err(Error::Invalid(
                    "names and tags are too long to be changed all together".to_owned(),
                ));
            }
            commit.change_catalog(&mut log, record).await?;
            drop(held);
            Ok(outcome)
        })
        .await
    }

    /// Makes a snapshot of content whose nodes were all appended, and shows it. Until then it holds
    /// `held`, on which the content relies.
    pub(crate) async fn commit_snapshot(
        self: &Arc<Self>,
        generation: Generation,
        record: SnapshotRecord,
        held: impl Send + 'static,
    ) -> Result<SnapshotRecord> {
        self.to_the_end(|commit| async move {
            {
                let flushing = commit.flushing.lock().await;
                commit.check(generation)?;
                commit.flush_locked(&flushing, false).await?;
            }
            commit.check(generation)?;
            let made = commit.insert(move |_| Ok(record.clone())).await;
            drop(held);
            made
        })
        .await
    }

    /// Makes the record that `make` returns for the catalog, which does not change meanwhile. Holds
    /// `held` until the record is durable, also if the caller stops waiting for that.
    pub(crate) async fn create<R, F>(
        self: &Arc<Self>,
        held: impl Send + 'static,
        make: F,
    ) -> Result<R>
    where
        R: CatalogRecord,
        F: Fn(&dyn Meta) -> Result<R> + Send + 'static,
    {
        self.to_the_end(|commit| async move {
            let made = commit.insert(make).await;
            drop(held);
            made
        })
        .await
    }

    /// Replaces a record by the one that `change` returns. An unchanged record is not written
    /// again.
    pub(crate) async fn update<R, F>(self: &Arc<Self>, id: R::Id, change: F) -> Result<R>
    where
        R: CatalogRecord,
        F: Fn(R) -> Result<R> + Send + 'static,
    {
        self.to_the_end(move |commit| async move {
            let mut log = commit.catalog.lock().await;
            let before = commit.existing::<R>(id).await?;
            let after = change(before.clone())?;
            if after != before {
                let change = Change::put(&after);
                commit.change_catalog(&mut log, Record::One(change)).await?;
            }
            Ok(after)
        })
        .await
    }

    /// Removes a record, unless `may_go` returns an error.
    pub(crate) async fn delete<R, F>(self: &Arc<Self>, id: R::Id, may_go: F) -> Result<R>
    where
        R: CatalogRecord,
        F: Fn(&R) -> Result<()> + Send + 'static,
    {
        self.to_the_end(move |commit| async move {
            let mut log = commit.catalog.lock().await;
            let record = commit.existing::<R>(id).await?;
            may_go(&record)?;
            let change = Change::delete::<R>(&record.id());
            commit.change_catalog(&mut log, Record::One(change)).await?;
            Ok(record)
        })
        .await
    }

    /// Adds a record whose name nobody has yet. Only within [`Commit::to_the_end`].
    async fn insert<R, F>(&self, make: F) -> Result<R>
    where
        R: CatalogRecord,
        F: Fn(&dyn Meta) -> Result<R> + Send + 'static,
    {
        let mut log = self.catalog.lock().await;
        let make = move |meta: &dyn Meta| {
            let record = make(meta)?;
            check_owner(meta, record.keys().owner)?;
            match record.taken_by(meta)? {
                Some(taken) => Err(taken.name_taken_error()),
                None => Ok(record),
            }
        };
        let record = self.ask(make).await?;
        let change = Change::put(&record);
        self.change_catalog(&mut log, Record::One(change)).await?;
        Ok(record)
    }

    async fn existing<R: CatalogRecord>(&self, id: R::Id) -> Result<R> {
        self.ask(move |meta| R::find(meta, &Key::Id(id))).await
    }

    /// Steps 2 and 3.
    ///
    /// No other change comes between the check of the quotas and the record.
    async fn change_catalog(&self, log: &mut CatalogLog, record: Record) -> Result<()> {
        self.writable()?;
        self.index_writes().await?;
        let record = self
            .ask(move |meta| check_changes(meta, record.changes()).map(|()| record))
            .await?;
        reach(Failpoint::BeforeCatalogLog);
        let sequence = self.written(log.append(&record).await)?;
        reach(Failpoint::CatalogLogSynced);
        let mut batch = Batch::default();
        batch.catalog(sequence, record);
        let mut tries = self.disk.patience().tries();
        loop {
            match self.apply(batch.clone(), true).await {
                Ok(()) => break,
                // The record is durable, so it can be refused no more, and no other may overtake
                // it: all changes wait.
                Err(error @ Error::Full { .. }) if tries.again(&error).await => {}
                Err(error) => {
                    self.poison(&error);
                    return Err(error);
                }
            }
        }
        reach(Failpoint::CatalogApplied);
        Ok(())
    }

    /// Checks that the index can be written, if it could not be the last time: a change that is
    /// refused here leaves nothing behind.
    async fn index_writes(&self) -> Result<()> {
        if !self.index_full.load(Ordering::Relaxed) {
            return Ok(());
        }
        let meta = Arc::clone(&self.meta);
        self.workers.commit(move || meta.writes_again()).await??;
        self.index_full.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Makes durable and indexes all that was appended.
    pub(super) async fn flush_locked(
        &self,
        _flushing: &MutexGuard<'_, ()>,
        sync: bool,
    ) -> Result<()> {
        self.writable()?;
        // The flush covers all earlier appends. Later ones wait for the next flush.
        let (chunks, nodes, notes) = {
            let mut pending = self.pending.write();
            (
                pending.chunks_appended.take(),
                pending.nodes_appended.take(),
                mem::take(&mut pending.notes),
            )
        };
        if chunks.is_none() && nodes.is_none() {
            return Ok(());
        }
        let mut states = Vec::new();
        let taken = (chunks, nodes, notes);
        let done = self.index_taken(taken, &mut states, sync).await;
        if done.is_err() {
            // After any error: these records get no rows any more, and must not count as known.
            self.drop_pending();
            self.unindexed.hold(states);
        }
        done
    }

    /// Makes durable and indexes the records taken from the queue. If that fails, `states` has the
    /// states that the index lacks.
    async fn index_taken(
        &self,
        (chunks, nodes, notes): (Option<Appended>, Option<Appended>, Vec<Note>),
        states: &mut Vec<PackState>,
        sync: bool,
    ) -> Result<()> {
        let mut batch = Batch::default();
        let chunks = self.make_durable(&self.chunks, chunks, states).await?;
        let nodes = self.make_durable(&self.nodes, nodes, states).await?;
        reach(Failpoint::PacksSynced);
        self.put_rows(chunks.iter().chain(&nodes), &mut batch)
            .await?;
        *states = self.unindexed.tell(mem::take(states), &notes);
        batch.packs(&*states);
        // Records for which the index has no space are in packs, but count as lost: they are sent
        // again.
        self.flushed(self.apply(batch, sync).await)?;
        reach(Failpoint::GroupIndexed);
        let mut pending = self.pending.write();
        for record in chunks.iter().chain(&nodes) {
            pending.records.remove(&record.name);
        }
        // The records have their rows now.
        drop(notes);
        Ok(())
    }

    /// Step 1: syncs the appends of a writer, and returns their places. Only a receipt has places,
    /// so the index cannot point at bytes that a power cut may take.
    async fn make_durable(
        &self,
        writer: &PackWriter,
        appended: Option<Appended>,
        states: &mut Vec<PackState>,
    ) -> Result<Vec<PlacedRecord>> {
        let Some(appended) = appended else {
            return Ok(Vec::new());
        };
        let flushed = self.flushed(writer.flush().await)?;
        states.extend_from_slice(flushed.packs());
        self.flushed(flushed.settle(appended).map_err(Error::from))
    }

    pub(super) async fn ask<T, F>(&self, ask: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Meta) -> Result<T> + Send + 'static,
    {
        let meta = Arc::clone(&self.meta);
        self.workers.commit(move || ask(&*meta)).await?
    }

    pub(super) async fn apply(&self, batch: Batch, sync: bool) -> Result<()> {
        let mut tries = self.disk.patience().tries();
        loop {
            let (meta, batch) = (Arc::clone(&self.meta), batch.clone());
            let apply = move || meta.apply(batch, sync).map(drop);
            let applied = self.workers.commit(apply).await?;
            match applied {
                Err(error @ Error::Shortage { .. }) if tries.again(&error).await => {}
                Err(error @ Error::Full { .. }) => {
                    self.index_full.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                applied => return applied,
            }
        }
    }

    /// Returns true if everything is refused because the store is being closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.pending.read().closing
    }

    /// Checks that the store writes.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`].
    pub(crate) fn writable(&self) -> Result<()> {
        match &self.pending.read().poisoned {
            Some(reason) => Err(Error::Poisoned {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Checks that the catalog can be changed: the store writes, and is not closing.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`], [`Error::Closing`].
    pub(super) fn takes_changes(&self) -> Result<()> {
        self.writable()?;
        if self.is_closing() {
            return Err(Error::Closing);
        }
        Ok(())
    }

    /// Handles the outcome of an append.
    fn appended<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(Error::Full { .. } | Error::Dropped) => self.written(result),
            _ => self.packed(result),
        }
    }

    /// Handles the outcome of appending to packs, for any caller: only a failed write or sync stops
    /// the store, and the writer says which failed. A caller for which no pack could be made, or
    /// whose source cannot be read, has lost nothing.
    pub(crate) fn packed<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            if matches!(error, Error::Poisoned { .. }) {
                self.poison(error);
            }
        })
    }

    /// Handles the outcome of a write or sync: a full disk drops what was pending, any other
    /// failure stops the store.
    pub(super) fn written<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Full { .. } | Error::Dropped) = &result {
            self.drop_pending();
        }
        self.flushed(result)
    }

    /// The same for a step of a flush. The flush itself drops the pending records, whatever failed.
    fn flushed<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            let passes = matches!(
                error,
                Error::Closing
                    | Error::Limit(_)
                    | Error::Shortage { .. }
                    | Error::Full { .. }
                    | Error::Dropped
            );
            if !passes {
                self.poison(error);
            }
        })
    }

    /// Gives up the records that wait for the index. Ingests under way fail.
    fn drop_pending(&self) {
        let mut pending = self.pending.write();
        pending.generation += 1;
        pending.records.clear();
        pending.chunks_appended = None;
        pending.nodes_appended = None;
        pending.notes.clear();
    }

    /// Stops all writing of packs and journals.
    pub(crate) fn poison(&self, error: &Error) {
        let mut pending = self.pending.write();
        if pending.poisoned.is_none() {
            tracing::error!(%error, "the store stops writing");
            pending.poisoned = Some(match error {
                Error::Poisoned { reason } => reason.clone(),
                other => other.to_string(),
            });
        }
    }

    /// Syncs and indexes the pending records, and refuses everything after.
    pub(crate) async fn close(self: &Arc<Self>) -> Result<()> {
        self.to_the_end(|commit| async move {
            commit.pending.write().closing = true;
            // A checkpoint of the log ends soon: it checks whether the store is closing.
            let _log_checkpoint = commit.log_checkpoint.lock().await;
            let flushing = commit.flushing.lock().await;
            // A change of the catalog that has begun ends first.
            let _log = commit.catalog.lock().await;
            if commit.poisoned().is_some() {
                return Ok(());
            }
            commit.flush_locked(&flushing, true).await?;
            // Nothing is pending: closing syncs the lengths of the packs, and their footers.
            let mut batch = Batch::default();
            batch.packs(&commit.unindexed.tell(Vec::new(), &[]));
            batch.packs(commit.written(commit.chunks.close().await)?.packs());
            batch.packs(commit.written(commit.nodes.close().await)?.packs());
            let indexed = commit.apply(batch, true).await;
            indexed.inspect_err(|error| commit.poison(error))
        })
        .await
    }
}
