//! Slowing writers down before a full journal would stop them.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use crate::limits::{THROTTLE_BYTES_PER_SECOND, THROTTLE_FROM_PERMILLE};

/// Holds batches back while the journal fills faster than it is emptied.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    released_at: Option<Instant>,
}

impl Throttle {
    /// Counts a batch of so many bytes, with which the journal is as full as `fill_permille` says.
    pub(super) fn passed(&mut self, bytes: u64, fill_permille: u64) {
        let Some(over) = fill_permille.checked_sub(THROTTLE_FROM_PERMILLE) else {
            self.released_at = None;
            return;
        };
        // From the fast rate to the slow one, in proportion to the room that is left.
        let left = (1000 - THROTTLE_FROM_PERMILLE).saturating_sub(over);
        let range = THROTTLE_BYTES_PER_SECOND.1 - THROTTLE_BYTES_PER_SECOND.0;
        let rate = THROTTLE_BYTES_PER_SECOND.0 + range * left / (1000 - THROTTLE_FROM_PERMILLE);
        let from = self
            .released_at
            .map_or_else(Instant::now, |at| at.max(Instant::now()));
        self.released_at = Some(from + Duration::from_micros(bytes * 1_000_000 / rate));
    }

    /// Returns true if batches are held back now.
    pub(super) fn is_on(&self) -> bool {
        self.released_at.is_some_and(|at| at > Instant::now())
    }

    /// Waits until batches are no longer held back.
    pub(super) async fn released(&self) {
        match self.released_at {
            Some(at) if at > Instant::now() => sleep_until(at.into()).await,
            _ => {}
        }
    }
}
