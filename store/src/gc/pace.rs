//! How fast work in the background may read and write.

use std::{num::NonZeroU64, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// A limit of bytes a second, over all that share it. Waiting for it holds nothing.
#[derive(Debug)]
pub(crate) struct Pace {
    /// `None`: as fast as possible.
    bytes_per_second: Option<NonZeroU64>,
    /// When everything until now has had its time.
    due_at: Mutex<Instant>,
}

impl Pace {
    /// At most so many bytes a second; `None`: as fast as possible.
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            bytes_per_second,
            due_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many more bytes may be read or written.
    pub(crate) async fn spend(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let turn = {
            let mut due_at = self.due_at.lock();
            // Time in which nothing was asked for is not saved up.
            let turn = (*due_at).max(Instant::now());
            *due_at = turn + takes;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(NonZeroU64::new(1000));
        tokio::time::advance(Duration::from_secs(60)).await;
        let begun_at = Instant::now();
        pace.spend(500).await;
        assert_eq!(begun_at.elapsed(), Duration::ZERO);
        futures::join!(pace.spend(1500), pace.spend(1000));
        assert_eq!(begun_at.elapsed(), Duration::from_secs(2));
        pace.spend(0).await;
        assert_eq!(begun_at.elapsed(), Duration::from_secs(3));
    }
}
