//! Memory for requests in flight: what all connections may hold together, and each on its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;

use super::limits::{MAX_CONNECTION_BYTES, MAX_SERVER_BYTES};

/// What all connections share.
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    /// Connections that cannot go on until another gives back.
    waiting: AtomicUsize,
}

impl Budget {
    pub(super) fn new() -> Arc<Self> {
        Self::with_bytes(MAX_SERVER_BYTES)
    }

    pub(super) fn with_bytes(bytes: u32) -> Arc<Self> {
        Arc::new(Self {
            bytes: Arc::new(Semaphore::new(bytes as usize)),
            waiting: AtomicUsize::new(0),
        })
    }

    #[cfg(test)]
    pub(super) fn available_bytes(&self) -> usize {
        self.bytes.available_permits()
    }
}

/// One connection's share. Gives everything back when it is dropped.
pub(super) struct Account {
    budget: Arc<Budget>,
    held_bytes: u32,
    /// Made when the budget is exhausted for the first time; keeps the place in the queue.
    queue: Option<PollSemaphore>,
    waits: bool,
}

impl Account {
    pub(super) fn open(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            held_bytes: 0,
            queue: None,
            waits: false,
        }
    }

    /// Whether another connection waits for what this one and others hold.
    pub(super) fn is_contended(&self) -> bool {
        self.budget.waiting.load(Ordering::Relaxed) > usize::from(self.waits)
    }

    /// Takes `bytes`, or says that they cannot be had now: until this connection gives some back,
    /// or until another does, in which case the task is woken.
    pub(super) fn poll_charge(&mut self, bytes: u32, cx: &mut Context<'_>) -> Poll<()> {
        if self.held_bytes.saturating_add(bytes) > MAX_CONNECTION_BYTES {
            return Poll::Pending;
        }
        if !self.waits
            && let Ok(permit) = self.budget.bytes.try_acquire_many(bytes)
        {
            permit.forget();
            self.held_bytes += bytes;
            return Poll::Ready(());
        }
        if !self.waits {
            self.waits = true;
            self.budget.waiting.fetch_add(1, Ordering::Relaxed);
        }
        let queue = self
            .queue
            .get_or_insert_with(|| PollSemaphore::new(Arc::clone(&self.budget.bytes)));
        let Some(permit) = ready!(queue.poll_acquire_many(cx, bytes)) else {
            // Only a closed semaphore has none, and this one is never closed.
            return Poll::Pending;
        };
        permit.forget();
        self.held_bytes += bytes;
        self.stop_waiting();
        Poll::Ready(())
    }

    pub(super) fn release(&mut self, bytes: u32) {
        assert!(
            bytes <= self.held_bytes,
            "only what was charged is released"
        );
        self.held_bytes -= bytes;
        self.budget.bytes.add_permits(bytes as usize);
    }

    fn stop_waiting(&mut self) {
        if self.waits {
            self.waits = false;
            self.budget.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.stop_waiting();
        self.budget.bytes.add_permits(self.held_bytes as usize);
    }
}
