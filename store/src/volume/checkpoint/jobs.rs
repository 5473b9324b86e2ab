//! The checkpoints of a volume that are due: their order, their retries, and their outcomes.
//!
//! A task that keeps the volume open takes one cut after the other into the store, in their order.
//! Writes after a cut stay in their own epochs, above the new base.
//!
//! A journal that has grown to half of its limit is checkpointed automatically. If it fills up all
//! the same, its writers wait for the space that the checkpoint frees.
//!
//! A promised snapshot is retried until it is done. A full disk and a reached limit are temporary,
//! so the snapshot waits and shows the reason, and its volume's journal keeps its content. It is
//! retried after a pause, when a writer lacks space, and when the store is opened again, until it
//! is done or deleted. An error of another kind, such as damage to the volume's base, fails it.

use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex as SyncMutex;
use tokio::{
    sync::{Mutex, Notify, oneshot, watch},
    time::sleep_until,
};
use varve_content::RootId;

use crate::{
    Error, Result,
    engine::{PoisonOnPanic, RootPin},
    meta::SnapshotId,
    volume::{
        queue::Queue,
        snapshot::{self, Progress},
        volume::{Volume, VolumeState},
    },
};

/// Pause before a checkpoint for room is tried again in the background.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Pause before a snapshot is tried again: the first one, and the longest. Each is twice as long as
/// the one before.
const SNAPSHOT_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Pauses between tries to make room, for which writers may be waiting. They are refused after the
/// last try.
const ROOM_PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
];

/// A cut through a volume's journal.
#[derive(Debug, Copy, Clone)]
pub(in crate::volume) struct Cut {
    /// The journal file that the epoch behind it begins with.
    pub(in crate::volume) next_file: u64,
    /// Size of the volume at that instant, in bytes.
    pub(in crate::volume) size_bytes: u64,
}

/// A checkpoint that is due: up to which cut, and for what.
#[derive(Debug)]
pub(in crate::volume) struct Job {
    pub(in crate::volume) cut: Cut,
    pub(in crate::volume) purpose: Purpose,
}

#[derive(Debug)]
pub(in crate::volume) enum Purpose {
    /// To make room in the journal, or in memory.
    Room,
    /// To complete a snapshot.
    Snapshot(SnapshotId, Arc<Progress>),
    /// For a caller that waits for the root.
    Root(oneshot::Sender<Result<RootPin>>),
}

/// The checkpoints of a volume.
#[derive(Debug, Default)]
pub(in crate::volume) struct Checkpoints {
    jobs: SyncMutex<Jobs>,
    /// Their progress: the end of one means room in the journal.
    pace: watch::Sender<Pace>,
    /// Ends the pause of a job that waits to be tried again.
    again: Notify,
    /// True once the volume is being closed: nothing is tried again.
    closing: watch::Sender<bool>,
    /// Held from a cut until its job is queued, so that jobs are in the order of their cuts.
    pub(in crate::volume) cutting: Arc<Mutex<()>>,
    /// The last root that became the base, and how many of its blocks are data. Counting them would
    /// read all leaves.
    pub(in crate::volume) data_blocks: SyncMutex<Option<(RootId, u64)>>,
    /// Snapshots that have failed, and whose records do not say so yet.
    unrecorded: SyncMutex<Vec<(SnapshotId, String)>>,
}

/// The progress of the checkpoints of a volume.
#[derive(Debug, Copy, Clone, Default)]
pub(in crate::volume) struct Pace {
    /// Jobs that are under way or queued.
    jobs: u32,
    /// True if the first of them waits for its next attempt, and the others wait behind it.
    is_stalled: bool,
}

impl Pace {
    /// Returns true if the job makes progress, so that waiting for its end makes sense.
    pub(in crate::volume) fn goes_on(self) -> bool {
        self.jobs > 0 && !self.is_stalled
    }
}

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// True if a task runs them.
    is_running: bool,
    /// True if a checkpoint for space was begun.
    for_room: bool,
    /// The time when the last job for room failed.
    failed_at: Option<Instant>,
}

impl Checkpoints {
    /// Watches their progress.
    pub(in crate::volume) fn watch(&self) -> watch::Receiver<Pace> {
        self.pace.subscribe()
    }

    /// Returns true if a checkpoint is under way.
    pub(in crate::volume) fn is_under_way(&self) -> bool {
        self.pace.borrow().goes_on()
    }

    /// Returns true if the jobs wait for the next attempt.
    pub(in crate::volume) fn is_stalled(&self) -> bool {
        self.pace.borrow().is_stalled
    }

    /// Tries nothing again from now on.
    pub(in crate::volume) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Marks the first job as waiting, and those behind it. Jobs for a root end with the reason.
    fn stall(&self, why: &Error) {
        let behind =
            format!("an earlier snapshot of the volume cannot be completed for now: {why}");
        let mut roots = Vec::new();
        {
            let mut jobs = self.jobs.lock();
            jobs.failed_at = Some(Instant::now());
            for job in mem::take(&mut jobs.waiting) {
                match job.purpose {
                    Purpose::Root(reply) => {
                        roots.push(reply);
                        continue;
                    }
                    Purpose::Snapshot(_, ref progress) => progress.wait(behind.clone()),
                    Purpose::Room => {}
                }
                jobs.waiting.push_back(job);
            }
        }
        let gone = u32::try_from(roots.len()).unwrap_or(u32::MAX);
        self.pace.send_modify(|pace| {
            pace.jobs -= gone;
            pace.is_stalled = true;
        });
        for reply in roots {
            // A caller that went away needs no answer.
            let _ = reply.send(Err(Error::Limit(behind.clone())));
        }
    }

    /// Lets the job that waits be tried again at once. Returns whether there is one.
    fn go_on(&self) -> bool {
        let was_stalled = self
            .pace
            .send_if_modified(|pace| mem::take(&mut pace.is_stalled));
        if was_stalled {
            self.again.notify_one();
        }
        was_stalled
    }

    /// Waits until a job is due to be tried again.
    async fn pause(&self, pause: Duration, progress: Option<&Progress>) -> Result<()> {
        let mut closing = self.closing.subscribe();
        let cancelled = async {
            match progress {
                Some(progress) => progress.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender lives as long as `self`.
            _ = closing.wait_for(|closing| *closing) => return Err(Error::Closing),
            () = tokio::time::sleep(pause) => {}
            () = self.again.notified() => {}
            () = cancelled => {}
        }
        self.pace
            .send_if_modified(|pace| mem::take(&mut pace.is_stalled));
        Ok(())
    }

    /// Claims the right to start a checkpoint for room. Returns false while one is under way, and
    /// for 1 s after a failure.
    fn may_make_room(&self) -> bool {
        if self.pace.borrow().is_stalled {
            return false;
        }
        let mut jobs = self.jobs.lock();
        let failed_at = jobs.failed_at;
        failed_at.is_none_or(|at| at.elapsed() >= PAUSE_AFTER_FAILURE)
            && !mem::replace(&mut jobs.for_room, true)
    }

    /// When a checkpoint for room may start again, if the last one failed.
    fn may_try_at(&self) -> Option<Instant> {
        let failed_at = self.jobs.lock().failed_at;
        failed_at.map(|at| at + PAUSE_AFTER_FAILURE)
    }

    fn room_ended(&self, failed: bool) {
        let mut jobs = self.jobs.lock();
        jobs.failed_at = failed.then(Instant::now);
        jobs.for_room = false;
    }

    /// The next job. After `None` no task carries jobs out any more.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        let next = jobs.waiting.pop_front();
        jobs.is_running = next.is_some();
        next
    }
}

/// Counts a job as under way until it is dropped.
struct UnderWay(Arc<VolumeState>);

impl UnderWay {
    fn begin(volume: &Arc<VolumeState>) -> Self {
        volume.checkpoints.pace.send_modify(|pace| pace.jobs += 1);
        Self(Arc::clone(volume))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.checkpoints.pace.send_modify(|pace| pace.jobs -= 1);
    }
}

impl Volume {
    /// Queues a job behind all others. The caller holds [`Checkpoints::cutting`], or has the volume
    /// to itself.
    pub(in crate::volume) fn checkpoint_later(&self, job: Job) {
        let checkpoints = &self.inner().checkpoints;
        {
            let mut jobs = checkpoints.jobs.lock();
            let is_asked_for = !matches!(job.purpose, Purpose::Room);
            jobs.waiting.push_back(job);
            checkpoints.pace.send_modify(|pace| pace.jobs += 1);
            if mem::replace(&mut jobs.is_running, true) {
                drop(jobs);
                if is_asked_for {
                    checkpoints.go_on();
                }
                return;
            }
        }
        let volume = self.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the volume holds what it held, whatever becomes of it; a closed store \
                      refuses what it needs"
        )]
        drop(tokio::spawn(async move {
            let inner = volume.inner();
            let _guard = PoisonOnPanic::new(&inner.engine.commit);
            while let Some(job) = inner.checkpoints.next() {
                // It was counted when it was queued.
                let _under_way = UnderWay(Arc::clone(inner));
                inner.carry_out(job).await;
            }
        }));
    }

    /// Cuts the journal here and now: ends the epoch that is being written.
    pub(in crate::volume) async fn cut(&self) -> Result<Cut> {
        let inner = self.inner();
        let (ended, size_bytes) = Queue::end_epochs(&[&inner.queue], || inner.size_bytes())?;
        let mut cut = Cut {
            next_file: 0,
            size_bytes,
        };
        for ended in ended {
            cut.next_file = ended.await.map_err(|_| Error::Closing)?.next_file;
        }
        Ok(cut)
    }
}

impl VolumeState {
    /// Begins a checkpoint of this volume if its journal has grown large, and of the volume with
    /// the largest map if the maps of all volumes take much memory.
    pub(in crate::volume) fn checkpoint_if_large(self: &Arc<Self>) {
        if self.journal.is_large() {
            self.begin_checkpoint();
        }
        if self.volumes.map_memory.wants_less()
            && let Some(largest) = self.volumes.open.largest_map()
        {
            largest.inner().begin_checkpoint();
        }
    }

    /// Begins a checkpoint because there is no room in the journal. Returns false if none would be
    /// made.
    pub(in crate::volume) async fn checkpoint_for_room(self: &Arc<Self>) -> bool {
        if !self.journal.can_be_emptied().await {
            return false;
        }
        // A writer is refused only after a try of its own: space may have been freed since the last
        // one.
        if let Some(at) = self.checkpoints.may_try_at() {
            sleep_until(at.into()).await;
        }
        self.checkpoints.go_on() || self.begin_checkpoint()
    }

    /// Begins a checkpoint for room, unless one is under way or has just failed.
    fn begin_checkpoint(self: &Arc<Self>) -> bool {
        if !self.checkpoints.may_make_room() {
            return false;
        }
        // No handle exists any more: the volume is being closed.
        let Some(volume) = self.volume() else {
            self.checkpoints.room_ended(true);
            return false;
        };
        // Counted from here on, because a writer without room waits for it.
        let under_way = UnderWay::begin(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "it waits for the writer, which runs as long as this holds the volume"
        )]
        drop(tokio::spawn(async move {
            let checkpoints = &volume.inner().checkpoints;
            let _cutting = checkpoints.cutting.lock().await;
            match volume.cut().await {
                Ok(cut) => volume.checkpoint_later(Job {
                    cut,
                    purpose: Purpose::Room,
                }),
                // The volume is being closed.
                Err(_) => checkpoints.room_ended(true),
            }
            drop(under_way);
        }));
        true
    }

    async fn carry_out(self: &Arc<Self>, job: Job) {
        let Job { cut, purpose } = job;
        match purpose {
            Purpose::Room => {
                let outcome = self.checkpoint_patiently(cut).await;
                match &outcome {
                    Ok(_) => {
                        tracing::info!(volume = self.name, "the journal was checkpointed");
                    }
                    Err(Error::Closing) => {}
                    Err(error) => {
                        let volume = &self.name;
                        tracing::warn!(volume, %error, "the journal was not checkpointed");
                    }
                }
                self.checkpoints.room_ended(outcome.is_err());
            }
            // A caller that went away has no use for it.
            Purpose::Root(reply) => drop(reply.send(self.checkpoint(cut, None).await)),
            Purpose::Snapshot(id, progress) => {
                let outcome = self.complete(cut, id, &progress).await;
                self.snapshot_ended(id, &progress, outcome).await;
            }
        }
    }

    /// Tries a few times to make room, because writers that wait for it are refused when this
    /// fails.
    async fn checkpoint_patiently(self: &Arc<Self>, cut: Cut) -> Result<()> {
        for pause in ROOM_PAUSES {
            match self.checkpoint(cut, None).await {
                Err(error) if passes(&error) => {
                    tracing::info!(volume = self.name, %error, "retrying the checkpoint of the \
                         journal");
                    self.checkpoints.pause(pause, None).await?;
                }
                outcome => return outcome.map(drop),
            }
        }
        self.checkpoint(cut, None).await.map(drop)
    }

    /// Tries to complete a snapshot until it is done, is deleted, or never can be done.
    async fn complete(
        self: &Arc<Self>,
        cut: Cut,
        id: SnapshotId,
        progress: &Progress,
    ) -> Result<()> {
        let (mut pause, longest) = SNAPSHOT_PAUSE;
        loop {
            let error = match self.checkpoint(cut, Some((id, progress))).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if progress.is_cancelled() || !passes(&error) {
                return Err(error);
            }
            let volume = &self.name;
            tracing::warn!(volume, snapshot = %id, %error, "a snapshot is not completed yet and \
                                                            will be retried");
            progress.wait(error.to_string());
            self.checkpoints.stall(&error);
            self.checkpoints.pause(pause, Some(progress)).await?;
            pause = longest.min(pause * 2);
        }
    }

    /// Records the outcome of a snapshot.
    async fn snapshot_ended(&self, id: SnapshotId, progress: &Progress, outcome: Result<()>) {
        let pending = &self.volumes.pending_snapshots;
        match outcome {
            Ok(()) => {
                tracing::info!(volume = self.name, snapshot = %id, "a snapshot is completed");
                pending.remove(id);
            }
            // It was deleted meanwhile.
            Err(_) if progress.is_cancelled() => pending.remove(id),
            // It is still pending, and goes on when the store is opened again.
            Err(Error::Closing) => {}
            Err(error @ Error::Poisoned { .. }) => progress.wait(error.to_string()),
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(volume = self.name, snapshot = %id, %error, "a snapshot has failed");
                progress.fail(reason.clone());
                let volume = self.record.id;
                match snapshot::record_failure(&self.engine, volume, id, &reason).await {
                    Ok(()) => pending.remove(id),
                    Err(error) => {
                        tracing::warn!(snapshot = %id, %error, "its failure was not recorded");
                        self.checkpoints.unrecorded.lock().push((id, reason));
                    }
                }
            }
        }
        progress.end();
    }

    /// Records failures that could not be recorded before. No new base may come before that: it
    /// would hold what was written after the instant of a snapshot that looks pending.
    pub(in crate::volume) async fn record_failures(&self) -> Result<()> {
        loop {
            let Some((id, reason)) = self.checkpoints.unrecorded.lock().first().cloned() else {
                return Ok(());
            };
            snapshot::record_failure(&self.engine, self.record.id, id, &reason).await?;
            self.volumes.pending_snapshots.remove(id);
            self.checkpoints
                .unrecorded
                .lock()
                .retain(|(it, _)| *it != id);
        }
    }
}

/// Returns true if an error goes away without a repair of the store.
pub(in crate::volume) fn passes(error: &Error) -> bool {
    error.is_full() || matches!(error, Error::Shortage { .. } | Error::Limit(_))
}
