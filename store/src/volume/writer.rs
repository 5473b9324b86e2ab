//! The one task that writes a volume's journal.
//!
//! Whoever changes the volume puts the change in a queue and waits. The task takes what has come together, up to a batch, and
//! writes it while the next one comes together. When a batch is in the kernel its blocks are put in the map, and its writers are
//! told, in the order of the batches: so what was acknowledged is always a beginning of the journal, without a gap.
//!
//! A change that is in the queue is carried out even if its writer has gone away.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, oneshot},
    time::sleep_until,
};

use super::{
    journal::{Batch, Begun, Change, Reservation, Taken},
    volume::VolumeState,
};
use crate::{
    Error, Result,
    engine::PoisonOnPanic,
    error::JournalLimit,
    failpoints::{Failpoint, reach},
    limits::{
        BRAKE_BYTES_PER_SECOND, BRAKE_FROM_PERMILLE, JOURNAL_WAITING_BYTES,
        JOURNAL_WRITES_IN_FLIGHT, MAPS_BYTES_MAX,
    },
};

/// Keeps changes of parts of a block apart from all others, until the change is in the map.
#[derive(Debug)]
pub(super) enum BlockLock {
    /// Whole blocks: many at once.
    Shared { _guard: OwnedRwLockReadGuard<()> },
    /// A block that was read, changed and is written back.
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
}

/// A change on its way.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) change: Change,
    /// A part of it was taken.
    pub(super) is_begun: bool,
    pub(super) reply: oneshot::Sender<Result<()>>,
    pub(super) _lock: Arc<BlockLock>,
    /// Room for its bytes among the changes of the volume that wait.
    pub(super) _room: OwnedSemaphorePermit,
}

/// What waits to be written. Its bound is the room that each change brings along.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
enum Item {
    Change(Op),
    /// Ends the epoch.
    EndEpoch(oneshot::Sender<Ended>),
}

/// Where an epoch has ended.
#[derive(Debug, Copy, Clone)]
pub(super) struct Ended {
    /// The journal file that the next one begins with.
    pub(super) next_file: u64,
    /// Its last batch, or one before it.
    pub(super) last_sequence: u64,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    /// Data of all items.
    data_bytes: usize,
    closed: bool,
}

impl Queue {
    /// Adds a change behind all others.
    pub(super) fn push(&self, op: Op) -> Result<()> {
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::Closing);
            }
            state.data_bytes += op.change.data_bytes();
            state.items.push_back(Item::Change(op));
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Cuts through the changes of several volumes at one instant, and does `then` at that instant: changes that were added before
    /// are in the epochs that end, all others are not. So if a change was added after another one was acknowledged, and is in its
    /// epoch, then the other is, too. Callers keep to one order of queues.
    pub(super) fn end_epochs<T>(
        queues: &[&Self],
        then: impl FnOnce() -> T,
    ) -> Result<(Vec<oneshot::Receiver<Ended>>, T)> {
        let mut states: Vec<_> = queues.iter().map(|queue| queue.state.lock()).collect();
        if states.iter().any(|state| state.closed) {
            return Err(Error::Closing);
        }
        let mut ended = Vec::with_capacity(states.len());
        for state in &mut states {
            let (reply, outcome) = oneshot::channel();
            state.items.push_back(Item::EndEpoch(reply));
            ended.push(outcome);
        }
        let outcome = then();
        drop(states);
        for queue in queues {
            queue.wake.notify_one();
        }
        Ok((ended, outcome))
    }

    /// Does something between two changes.
    pub(super) fn between<T>(&self, what: impl FnOnce() -> T) -> T {
        let _state = self.state.lock();
        what()
    }

    /// Takes no more. What is there is still written.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// Takes no more, and lets go of what is there.
    fn abandon(&self) {
        self.close();
        let items = std::mem::take(&mut self.state.lock().items);
        drop(items);
    }

    /// The next batch and the writers whose changes it completes, or none if nothing waits.
    fn next_batch(&self) -> Option<(Batch, Vec<Op>)> {
        let mut state = self.state.lock();
        let mut batch = Batch::default();
        let mut complete = Vec::new();
        while let Some(Item::Change(op)) = state.items.front_mut() {
            match batch.take(&mut op.change) {
                Taken::All => {
                    if let Some(Item::Change(op)) = state.items.pop_front() {
                        complete.push(op);
                    }
                }
                Taken::Some => {
                    op.is_begun = true;
                    break;
                }
                Taken::Nothing => break,
            }
        }
        state.data_bytes -= batch.data_bytes();
        (!batch.is_empty()).then_some((batch, complete))
    }

    /// Whether another batch may be begun, beside so many that are on their way. A few changes better wait for others to come, as long as
    /// there is something to wait for.
    fn may_begin(&self, in_flight: usize) -> bool {
        in_flight == 0
            || (in_flight < JOURNAL_WRITES_IN_FLIGHT
                && self.state.lock().data_bytes >= JOURNAL_WAITING_BYTES)
    }

    /// A change of which a part was taken and not the rest.
    fn take_begun(&self) -> Option<Op> {
        let mut state = self.state.lock();
        let begun = |item: &mut Item| matches!(item, Item::Change(op) if op.is_begun);
        match state.items.pop_front_if(begun) {
            Some(Item::Change(op)) => {
                state.data_bytes -= op.change.data_bytes();
                Some(op)
            }
            _ => None,
        }
    }

    /// Whether an epoch is to end, here or behind changes that wait.
    fn take_end(&self) -> Option<oneshot::Sender<Ended>> {
        let mut state = self.state.lock();
        let items = &mut state.items;
        let at = items
            .iter()
            .position(|item| matches!(item, Item::EndEpoch(_)))?;
        match items.remove(at) {
            Some(Item::EndEpoch(reply)) => Some(reply),
            _ => None,
        }
    }

    fn is_finished(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.items.is_empty()
    }
}

/// A batch on its way, and who waits for it.
struct InFlight {
    begun: Begun,
    batch: Batch,
    complete: Vec<Op>,
    /// Room for its bytes, which all volumes share.
    _room: OwnedSemaphorePermit,
}

/// Holds batches back while the journal runs full faster than it is emptied, so that writers are slowed before they are stopped.
#[derive(Debug, Default)]
struct Throttle {
    released_at: Option<Instant>,
}

impl Throttle {
    /// Takes note of a batch of so many bytes, behind which the journal is filled to so many parts of a thousand.
    fn passed(&mut self, bytes: u64, fill_permille: u64) {
        let Some(over) = fill_permille.checked_sub(BRAKE_FROM_PERMILLE) else {
            self.released_at = None;
            return;
        };
        // From the fast rate to the slow one, in proportion to what is left.
        let left = (1000 - BRAKE_FROM_PERMILLE).saturating_sub(over);
        let span = BRAKE_BYTES_PER_SECOND.1 - BRAKE_BYTES_PER_SECOND.0;
        let rate = BRAKE_BYTES_PER_SECOND.0 + span * left / (1000 - BRAKE_FROM_PERMILLE);
        let from = self
            .released_at
            .map_or_else(Instant::now, |at| at.max(Instant::now()));
        self.released_at = Some(from + Duration::from_micros(bytes * 1_000_000 / rate));
    }

    fn is_on(&self) -> bool {
        self.released_at.is_some_and(|at| at > Instant::now())
    }

    async fn released(&self) {
        match self.released_at {
            Some(at) if at > Instant::now() => sleep_until(at.into()).await,
            _ => {}
        }
    }
}

/// Lets nobody wait for a task that has panicked.
struct AbandonOnPanic(Arc<VolumeState>);

impl Drop for AbandonOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.queue.abandon();
        }
    }
}

/// Writes what comes, until the queue is closed and empty.
pub(super) async fn run(volume: Arc<VolumeState>) {
    let _poison = PoisonOnPanic::new(&volume.engine.commit);
    let _abandon = AbandonOnPanic(Arc::clone(&volume));
    let mut in_flight: VecDeque<InFlight> = VecDeque::with_capacity(JOURNAL_WRITES_IN_FLIGHT);
    let mut brake = Throttle::default();
    loop {
        // Asked once: whoever finds it released further down would wait for a wake that was before.
        let mut is_held = brake.is_on();
        while volume.queue.may_begin(in_flight.len())
            && !is_held
            && let Some((batch, complete)) = volume.queue.next_batch()
        {
            let begun = volume.begin_or_wait(&batch, &mut in_flight).await;
            match begun {
                Ok((begun, room)) => in_flight.push_back(InFlight {
                    begun,
                    batch,
                    complete,
                    _room: room,
                }),
                // Nothing was begun, and what is on its way goes on.
                Err(error) => volume.refuse(complete, &error),
            }
            volume.sync_if_much();
            volume.checkpoint_if_large();
            if volume.checkpoints.is_under_way() {
                let bytes = in_flight.back().map_or(0, |last| last.batch.bytes());
                brake.passed(bytes, volume.journal.fill_permille());
                is_held = brake.is_on();
            }
        }
        let may_begin = volume.queue.may_begin(in_flight.len());
        let may_follow = in_flight.len() < JOURNAL_WRITES_IN_FLIGHT;
        let Some(oldest) = in_flight.front_mut() else {
            if let Some(reply) = volume.queue.take_end() {
                volume.end_epoch(reply);
                continue;
            }
            if volume.queue.is_finished() {
                return;
            }
            if is_held {
                tokio::select! {
                    () = brake.released() => {}
                    () = volume.queue.wake.notified() => {}
                }
            } else {
                volume.queue.wake.notified().await;
            }
            continue;
        };
        let outcome = tokio::select! {
            biased;
            outcome = &mut oldest.begun.completion => outcome,
            () = volume.queue.wake.notified(), if may_follow => continue,
            () = brake.released(), if may_begin && is_held => continue,
        };
        if let Some(oldest) = in_flight.pop_front() {
            // What went wrong was told to those whom it concerns.
            let _ = volume.end(oldest, outcome, &mut in_flight).await;
        }
    }
}

impl VolumeState {
    async fn begin(&self, batch: &Batch, descriptors: Reservation) -> Result<Begun> {
        self.engine.commit.writable()?;
        let map_bytes = || self.layers.read().current.map.memory_bytes();
        if self.volumes.map_memory.is_full_for(map_bytes()) {
            return Err(Error::JournalFull {
                path: self.journal.dir().path(),
                limit: JournalLimit::MapBytes(MAPS_BYTES_MAX),
            });
        }
        self.journal.begin(batch, descriptors).await
    }

    /// Room for the bytes of a batch while it is on its way, which all volumes share. Nobody waits for some while having some: what this
    /// volume has on its way is ended first.
    async fn room_on_the_way(
        &self,
        batch: &Batch,
        in_flight: &mut VecDeque<InFlight>,
    ) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(batch.bytes()).unwrap_or(u32::MAX);
        let room = &self.volumes.journal_write_budget;
        loop {
            if let Ok(permit) = Arc::clone(room).try_acquire_many_owned(bytes) {
                return Ok(permit);
            }
            let Some(mut oldest) = in_flight.pop_front() else {
                let permit = Arc::clone(room).acquire_many_owned(bytes).await;
                return permit.map_err(|_| Error::Closing);
            };
            let outcome = (&mut oldest.begun.completion).await;
            // A change that this batch ends may have begun in one that was given up.
            self.end(oldest, outcome, in_flight).await?;
        }
    }

    /// Begins to write a batch. Where there is no room in the journal, waits for what is being taken into the store, after which there
    /// is; where the system is short of something, for that. Until then it has nothing of what all volumes share.
    async fn begin_or_wait(
        self: &Arc<Self>,
        batch: &Batch,
        in_flight: &mut VecDeque<InFlight>,
    ) -> Result<(Begun, OwnedSemaphorePermit)> {
        let mut checkpoints = self.checkpoints.watch();
        let mut has_tried = false;
        let mut tries = self.engine.disk.patience().tries();
        loop {
            let room = self.room_on_the_way(batch, in_flight).await?;
            // Asked last, and nothing is waited for before the file is open: many may have waited, and each opens one.
            // Files that cannot be made durable any more stay open: then the batch is refused for that.
            let is_of_no_use = || {
                self.engine.disk.patience().has_ended() || self.engine.commit.writable().is_err()
            };
            let descriptors = match self.journal.reserve_for(batch) {
                Some(descriptors) => descriptors,
                None if is_of_no_use() => Reservation::none(),
                None => {
                    drop(room);
                    self.end_all(in_flight).await?;
                    self.journal.wait_for_descriptors(is_of_no_use).await;
                    continue;
                }
            };
            let under_way = checkpoints.borrow_and_update().goes_on();
            let error = match self.begin(batch, descriptors).await {
                Ok(begun) => return Ok((begun, room)),
                Err(error) => error,
            };
            drop(room);
            if let Error::Shortage { .. } = error {
                self.end_all(in_flight).await?;
                if !tries.again(&error).await {
                    return Err(error);
                }
                continue;
            }
            if !error.is_full() {
                return Err(error);
            }
            // What is under way may have begun before there was room for it.
            if !under_way && (has_tried || !self.checkpoint_for_room().await) {
                return Err(error);
            }
            has_tried |= !under_way;
            self.end_all(in_flight).await?;
            tokio::select! {
                _ = checkpoints.changed() => {}
                () = self.queue.wake.notified() => {}
            }
        }
    }

    /// Waits for what is on its way, while a batch cannot be begun. An error: a change that the batch ends may have begun in one that
    /// was given up.
    async fn end_all(&self, in_flight: &mut VecDeque<InFlight>) -> Result<()> {
        while let Some(mut oldest) = in_flight.pop_front() {
            let outcome = (&mut oldest.begun.completion).await;
            self.end(oldest, outcome, in_flight).await?;
        }
        // What makes room may wait for the epoch to end. The batch was not acknowledged, so it may as well be in the next.
        if let Some(reply) = self.queue.take_end() {
            self.end_epoch(reply);
        }
        Ok(())
    }

    /// Draws the consequence of what became of a batch, the oldest of those that were on their way. If it was not written its writers
    /// have been told why.
    async fn end(
        &self,
        oldest: InFlight,
        outcome: io::Result<()>,
        behind: &mut VecDeque<InFlight>,
    ) -> Result<()> {
        match outcome {
            Ok(()) => {
                self.settle(oldest);
                Ok(())
            }
            Err(source) => Err(self.give_up(oldest, behind, source).await),
        }
    }

    /// A batch is in the kernel: its blocks are there from now on.
    fn settle(&self, done: InFlight) {
        reach(Failpoint::JournalWritten);
        self.journal.written(done.begun.place);
        self.layers
            .write()
            .current
            .apply(done.batch.entries(), done.begun.first_slot);
        for op in done.complete {
            // Who went away needs no answer.
            let _ = op.reply.send(Ok(()));
        }
    }

    /// Ends the epoch, unless it is empty, and tells where. Nothing may be on its way.
    fn end_epoch(&self, reply: oneshot::Sender<Ended>) {
        let mut layers = self.layers.write();
        if !layers.current.map.is_empty() {
            layers.end_epoch(self.journal.end_epoch());
        }
        // Who went away has no use for it; the epoch has ended all the same.
        let _ = reply.send(Ended {
            next_file: layers.current.first_file,
            last_sequence: self.journal.last_sequence(),
        });
    }

    /// Tells writers, and the one whose change was begun and cannot be ended.
    fn refuse(&self, complete: Vec<Op>, error: &Error) {
        for op in complete.into_iter().chain(self.queue.take_begun()) {
            let _ = op.reply.send(Err(again(error)));
        }
    }

    /// A batch could not be written: those behind it are given up with it, for they would stand behind a gap.
    async fn give_up(
        &self,
        failed: InFlight,
        behind: &mut VecDeque<InFlight>,
        source: io::Error,
    ) -> Error {
        let error = Error::io("write", &self.journal.dir().path(), source);
        let mut writers = failed.complete;
        for later in behind.drain(..) {
            // Written or not, it does not count.
            let _ = later.begun.completion.await;
            writers.extend(later.complete);
        }
        let error = match &error {
            Error::Full { .. } => match self.journal.roll_back(failed.begun.place).await {
                Ok(()) => error,
                Err(worse) => self.stop_writing(worse),
            },
            _ => self.stop_writing(error),
        };
        tracing::warn!(volume = %self.name, %error, "writes were refused");
        self.refuse(writers, &error);
        error
    }

    /// Nobody knows what is on the disk: nothing is written any more, by the whole store.
    pub(super) fn stop_writing(&self, error: Error) -> Error {
        self.engine.commit.poison(&error);
        error
    }
}

/// The same error for one more writer.
fn again(error: &Error) -> Error {
    match error {
        Error::Full { verb, path } => Error::Full {
            verb,
            path: path.clone(),
        },
        Error::JournalFull { path, limit } => Error::JournalFull {
            path: path.clone(),
            limit: *limit,
        },
        Error::Closing => Error::Closing,
        Error::Shortage { verb, path, source } => Error::Shortage {
            verb,
            path: path.clone(),
            source: io::Error::new(source.kind(), source.to_string()),
        },
        Error::Io { verb, path, source } => Error::Io {
            verb,
            path: path.clone(),
            source: io::Error::new(source.kind(), source.to_string()),
        },
        Error::Poisoned { reason } => Error::Poisoned {
            reason: reason.clone(),
        },
        other => Error::Poisoned {
            reason: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
