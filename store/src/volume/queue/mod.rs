//! The changes of a volume that wait to be written, and the cuts between them.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{
    Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, oneshot,
};

use super::journal::{Batch, Change, Taken};
use crate::{
    Error, Result,
    limits::{JOURNAL_WAITING_BYTES, JOURNAL_WRITES_IN_FLIGHT},
};

/// Keeps a change of a part of a block apart from all others, until the change is in the map.
#[derive(Debug)]
pub(super) enum BlockLock {
    /// For whole blocks: many at once.
    Shared { _guard: OwnedRwLockReadGuard<()> },
    /// For a block that is read, changed and written back.
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
}

/// A change that waits, and its caller.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) change: Change,
    /// True if a batch has taken a part of the change.
    pub(super) is_begun: bool,
    pub(super) reply: oneshot::Sender<Result<()>>,
    pub(super) _lock: Arc<BlockLock>,
    /// Its bytes in the queue.
    pub(super) _budget: OwnedSemaphorePermit,
}

/// The changes that wait. The budget that each of them holds bounds the queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    pub(super) wake: Notify,
}

#[derive(Debug)]
enum Item {
    Change(Op),
    /// A cut: ends the epoch.
    EndEpoch(oneshot::Sender<Ended>),
}

/// The place where an epoch has ended.
#[derive(Debug, Copy, Clone)]
pub(super) struct Ended {
    /// The journal file that the next epoch begins with.
    pub(super) next_file: u64,
    /// The last batch before the cut.
    pub(super) last_sequence: u64,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    /// Bytes of data of all items.
    data_bytes: usize,
    closed: bool,
}

impl Queue {
    /// Adds a change behind all others.
    ///
    /// # Errors
    ///
    /// [`Error::Closing`] once the queue is closed.
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

    /// Cuts through the changes of several volumes at one instant, and does `then` at that instant.
    /// Changes that were added before are in the epochs that end, all others are not. So a cut that
    /// holds a change holds all that was acknowledged before that change was made, on whichever of
    /// the volumes. Callers keep to one order of queues.
    ///
    /// # Errors
    ///
    /// [`Error::Closing`] if one of the queues is closed. Nothing was cut then.
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

    /// Takes no more changes. Waiting changes are still written.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// Takes no more changes, and drops those that wait.
    pub(super) fn abandon(&self) {
        self.close();
        let items = std::mem::take(&mut self.state.lock().items);
        drop(items);
    }

    /// The next batch and the changes that it completes; `None` if no change waits.
    pub(super) fn next_batch(&self) -> Option<(Batch, Vec<Op>)> {
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

    /// Returns true if another batch may begin beside so many in flight. While one is in flight, a
    /// few bytes wait for more to come.
    pub(super) fn may_begin(&self, in_flight: usize) -> bool {
        in_flight == 0
            || (in_flight < JOURNAL_WRITES_IN_FLIGHT
                && self.state.lock().data_bytes >= JOURNAL_WAITING_BYTES)
    }

    /// Takes the change of which a batch took a part and not the rest.
    pub(super) fn take_begun(&self) -> Option<Op> {
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

    /// Takes the next cut, from before or behind changes that wait.
    pub(super) fn take_end(&self) -> Option<oneshot::Sender<Ended>> {
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

    /// Returns true if it is closed and empty.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.items.is_empty()
    }
}

#[cfg(test)]
mod tests;
