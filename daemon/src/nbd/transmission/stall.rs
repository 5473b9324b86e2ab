//! Notices a client that leaves the server waiting.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::nbd::limits::STALL_BYTES;

/// Watches one direction of a connection, in which the client owes something now and then: to take
/// its replies, or to send the rest of a payload.
pub(super) struct Stall {
    after: Duration,
    /// Runs while the client owes something that it did not do at once.
    timer: Option<Pin<Box<Sleep>>>,
    /// Since the timer was last set.
    moved_bytes: u64,
    caught_up: bool,
}

impl Stall {
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            timer: None,
            moved_bytes: 0,
            caught_up: false,
        }
    }

    /// The client took or sent something, and `caught_up` if it owes nothing any more.
    pub(super) fn note(&mut self, moved_bytes: usize, caught_up: bool) {
        self.moved_bytes += moved_bytes as u64;
        self.caught_up |= caught_up;
    }

    /// Whether the client has stalled, and `contended`: somebody else waits for what it holds.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, owes: bool, contended: bool) -> bool {
        if self.timer.is_none() {
            if !owes {
                return false;
            }
            self.moved_bytes = 0;
            self.caught_up = false;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(self.after)));
        while timer.as_mut().poll(cx).is_ready() {
            if !owes {
                self.timer = None;
                return false;
            }
            if !self.caught_up && self.moved_bytes < STALL_BYTES && contended {
                return true;
            }
            timer.as_mut().reset(Instant::now() + self.after);
            self.moved_bytes = 0;
            self.caught_up = false;
        }
        false
    }
}
