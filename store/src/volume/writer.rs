//! The one task that writes a volume's journal.
//!
//! Whoever changes the volume puts the change in a queue and waits. The task takes what has come together, up to a batch, and
//! writes it while the next one comes together. When a batch is in the kernel its blocks are put in the map, and its writers are
//! told, in the order of the batches: so what was acknowledged is always a beginning of the journal, without a gap.
//!
//! A change that is in the queue is carried out even if its writer has gone away.

use std::{collections::VecDeque, io, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{
    Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, oneshot,
};

use super::{
    batch::{Batch, Change},
    device::Inner,
    journal::Begun,
};
use crate::{
    Error, Result,
    failpoints::{Failpoint, reach},
    io::AlignedBuf,
    limits::JOURNAL_WRITES_IN_FLIGHT,
};

/// Keeps changes of parts of a block apart from all others, until the change is in the map.
#[derive(Debug)]
pub(super) enum Turn {
    /// Whole blocks: many at once.
    Shared { _guard: OwnedRwLockReadGuard<()> },
    /// A block that was read, changed and is written back.
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// A change on its way.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) change: Change,
    /// A part of it was taken.
    pub(super) is_begun: bool,
    pub(super) reply: oneshot::Sender<Result<()>>,
    pub(super) _turn: Arc<Turn>,
    /// Room for its bytes.
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
    /// Ends the epoch, and tells the file that the next one begins with.
    EndEpoch(oneshot::Sender<u64>),
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    closed: bool,
}

impl Queue {
    /// Adds a change behind all others.
    pub(super) fn push(&self, op: Op) -> Result<()> {
        self.add(Item::Change(op))
    }

    /// Cuts through the changes of several volumes at one instant, and does `then` at that instant: changes that were added before
    /// are in the epochs that end, all others are not. So if a change was added after another one was acknowledged, and is in its
    /// epoch, then the other is, too. Callers keep to one order of queues.
    pub(super) fn end_epochs<T>(
        queues: &[&Self],
        then: impl FnOnce() -> T,
    ) -> Result<(Vec<oneshot::Receiver<u64>>, T)> {
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

    fn add(&self, item: Item) -> Result<()> {
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::Closing);
            }
            state.items.push_back(item);
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Takes no more. What is there is still written.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// The next batch and the writers whose changes it completes, or none if nothing waits.
    fn next_batch(&self) -> Option<(Batch, Vec<Op>)> {
        let mut state = self.state.lock();
        let mut batch = Batch::default();
        let mut complete = Vec::new();
        while let Some(Item::Change(op)) = state.items.front_mut() {
            if !batch.take(&mut op.change) {
                op.is_begun = true;
                break;
            }
            if let Some(Item::Change(op)) = state.items.pop_front() {
                complete.push(op);
            }
        }
        (!batch.is_empty()).then_some((batch, complete))
    }

    /// A change of which a part was taken and not the rest.
    fn take_begun(&self) -> Option<Op> {
        let mut state = self.state.lock();
        let begun = |item: &mut Item| matches!(item, Item::Change(op) if op.is_begun);
        match state.items.pop_front_if(begun) {
            Some(Item::Change(op)) => Some(op),
            _ => None,
        }
    }

    /// Whether an epoch is to end, here or behind changes that wait.
    fn take_end(&self) -> Option<oneshot::Sender<u64>> {
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
}

/// Writes what comes, until the queue is closed and empty.
pub(super) async fn run(volume: Arc<Inner>) {
    let mut in_flight: VecDeque<InFlight> = VecDeque::with_capacity(JOURNAL_WRITES_IN_FLIGHT);
    loop {
        while in_flight.len() < JOURNAL_WRITES_IN_FLIGHT
            && let Some((batch, complete)) = volume.queue.next_batch()
        {
            let begun = volume.begin_or_wait(&batch, &mut in_flight).await;
            match begun {
                Ok(begun) => in_flight.push_back(InFlight {
                    begun,
                    batch,
                    complete,
                }),
                // Nothing was begun, and what is on its way goes on.
                Err(error) => volume.refuse(complete, &error),
            }
            volume.fold_if_large();
        }
        let has_room = in_flight.len() < JOURNAL_WRITES_IN_FLIGHT;
        let Some(oldest) = in_flight.front_mut() else {
            if let Some(reply) = volume.queue.take_end() {
                volume.end_epoch(reply);
                continue;
            }
            if volume.queue.is_finished() {
                return;
            }
            volume.queue.wake.notified().await;
            continue;
        };
        let outcome = tokio::select! {
            biased;
            outcome = &mut oldest.begun.completion => outcome,
            () = volume.queue.wake.notified(), if has_room => continue,
        };
        if let Some(oldest) = in_flight.pop_front() {
            volume.end(oldest, outcome, &mut in_flight).await;
        }
    }
}

impl Inner {
    fn begin(&self, batch: &Batch) -> Result<Begun> {
        self.shared.commit.writable()?;
        self.journal.begin(batch)
    }

    /// Begins to write a batch. Where there is no room, waits for what is being taken into the store, after which there is.
    async fn begin_or_wait(
        &self,
        batch: &Batch,
        in_flight: &mut VecDeque<InFlight>,
    ) -> Result<Begun> {
        let mut folds = self.folds.watch();
        loop {
            let under_way = *folds.borrow_and_update() > 0;
            let begun = self.begin(batch);
            if !under_way || !matches!(begun, Err(Error::Full { .. })) {
                return begun;
            }
            while let Some(mut oldest) = in_flight.pop_front() {
                let outcome = (&mut oldest.begun.completion).await;
                self.end(oldest, outcome, in_flight).await;
            }
            // It may wait for the epoch to end. This batch was not acknowledged, so it may as well be in the next.
            if let Some(reply) = self.queue.take_end() {
                self.end_epoch(reply);
            }
            tokio::select! {
                _ = folds.changed() => {}
                () = self.queue.wake.notified() => {}
            }
        }
    }

    /// Draws the consequence of what became of a batch, the oldest of those that were on their way.
    async fn end(
        &self,
        oldest: InFlight,
        outcome: io::Result<AlignedBuf>,
        behind: &mut VecDeque<InFlight>,
    ) {
        match outcome {
            Ok(_) => self.settle(oldest),
            Err(source) => self.give_up(oldest, behind, source).await,
        }
    }

    /// A batch is in the kernel: its blocks are there from now on.
    fn settle(&self, done: InFlight) {
        reach(Failpoint::JournalWritten);
        self.journal.written(&done.begun);
        self.layers
            .write()
            .current
            .map
            .apply(done.batch.entries(), done.begun.first_slot);
        for op in done.complete {
            // Who went away needs no answer.
            let _ = op.reply.send(Ok(()));
        }
    }

    /// Ends the epoch, unless it is empty, and tells the file that the next one begins with. Nothing may be on its way.
    fn end_epoch(&self, reply: oneshot::Sender<u64>) {
        let mut layers = self.layers.write();
        if !layers.current.map.is_empty() {
            layers.end_epoch(self.journal.end_epoch());
        }
        // Who went away has no use for it; the epoch has ended all the same.
        let _ = reply.send(layers.current.first_file);
    }

    /// Tells writers, and the one whose change was begun and cannot be ended.
    fn refuse(&self, complete: Vec<Op>, error: &Error) {
        for op in complete.into_iter().chain(self.queue.take_begun()) {
            let _ = op.reply.send(Err(again(error)));
        }
    }

    /// A batch could not be written: those behind it are given up with it, for they would stand behind a gap.
    async fn give_up(&self, failed: InFlight, behind: &mut VecDeque<InFlight>, source: io::Error) {
        let error = Error::io("write", &self.journal.dir(), source);
        let mut writers = failed.complete;
        for later in behind.drain(..) {
            // Written or not, it does not count.
            let _ = later.begun.completion.await;
            writers.extend(later.complete);
        }
        let error = match &error {
            Error::Full { .. } => match self.journal.roll_back(&failed.begun) {
                Ok(()) => error,
                Err(worse) => self.stop_writing(worse),
            },
            _ => self.stop_writing(error),
        };
        tracing::warn!(volume = %self.name, %error, "writes were refused");
        self.refuse(writers, &error);
    }

    /// Nobody knows what is on the disk: nothing is written any more, by the whole store.
    pub(super) fn stop_writing(&self, error: Error) -> Error {
        self.shared.commit.poison(&error);
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
        Error::Closing => Error::Closing,
        Error::Poisoned { reason } => Error::Poisoned {
            reason: reason.clone(),
        },
        other => Error::Poisoned {
            reason: other.to_string(),
        },
    }
}
