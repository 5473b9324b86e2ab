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
        if let Some(turn) = self.turn(bytes, Instant::now()) {
            sleep_until(turn).await;
        }
    }

    /// When so many more bytes may be read or written; `None`: now.
    fn turn(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut due_at = self.due_at.lock();
        // Time in which nothing was asked for is not saved up.
        let turn = (*due_at).max(now);
        *due_at = turn + takes;
        (turn > now).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_and_idle_time_is_not_saved_up() {
        let pace = Pace::new(NonZeroU64::new(1000));
        let begun_at = Instant::now();
        let after = |millis| begun_at + Duration::from_millis(millis);
        assert_eq!(pace.turn(500, after(60_000)), None);
        assert_eq!(pace.turn(1500, after(60_100)), Some(after(60_500)));
        assert_eq!(pace.turn(0, after(60_200)), Some(after(62_000)));
        assert_eq!(pace.turn(1, after(62_000)), None);
        assert_eq!(Pace::new(None).turn(u64::MAX, begun_at), None);
    }
}
