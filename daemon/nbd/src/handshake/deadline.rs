//! The time limit of a whole handshake.

use std::pin::pin;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::HandshakeError;
use crate::limits::{HANDSHAKE_CAP, LISTED_EXPORT_TIME, LISTING_PART};

/// The least time between two looks at a handshake that waits for the store.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The deadline of one handshake, from the first byte to the last and over all its steps, TLS
/// included. Time in the store does not count: opening a volume after a crash reads its journal
/// first, which is not the client's fault.
#[derive(Debug)]
pub struct Deadline {
    started: Instant,
    /// Time limit for the client, without listings.
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    listed_exports: u32,
    /// Set while the handshake waits for the store, not for the client.
    asking_since: Option<Instant>,
    asked: Duration,
}

impl Deadline {
    /// A handshake that begins now.
    pub fn new(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
            state: Mutex::default(),
        }
    }

    /// Adds time for a listing of this many exports: some clients ask for each of them afterwards.
    pub(super) fn listed(&self, exports: usize) {
        let exports = u32::try_from(exports).unwrap_or(u32::MAX);
        let mut state = self.state.lock();
        state.listed_exports = state.listed_exports.saturating_add(exports);
    }

    /// Waits for the store, without a limit.
    pub(super) async fn asking<T>(&self, question: impl Future<Output = T>) -> T {
        self.state.lock().asking_since = Some(Instant::now());
        let answer = question.await;
        let mut state = self.state.lock();
        if let Some(since) = state.asking_since.take() {
            state.asked += since.elapsed();
        }
        answer
    }

    /// Runs a part of the handshake within the time that is left.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::TimedOut`] if the time is over.
    pub async fn run<T>(&self, part: impl Future<Output = T>) -> Result<T, HandshakeError> {
        let mut part = pin!(part);
        loop {
            let left = self.left()?.max(LOOK_AGAIN);
            if let Ok(outcome) = timeout(left, &mut part).await {
                return Ok(outcome);
            }
        }
    }

    /// The remaining time of the client. An error if none remains.
    fn left(&self) -> Result<Duration, HandshakeError> {
        let state = self.state.lock();
        let elapsed = self.started.elapsed();
        let asking = state.asking_since.map(|since| since.elapsed());
        let asked = state.asked + asking.unwrap_or_default();
        let listing = LISTED_EXPORT_TIME
            .saturating_mul(state.listed_exports)
            .min(self.limit * LISTING_PART);
        let limit = self.limit + listing;
        let of_client = limit.saturating_sub(elapsed.saturating_sub(asked));
        let of_all = HANDSHAKE_CAP.saturating_sub(elapsed);
        let left = of_client.min(of_all);
        if left.is_zero() && asking.is_none() {
            return Err(HandshakeError::TimedOut {
                after: elapsed,
                limit,
            });
        }
        Ok(left)
    }
}
