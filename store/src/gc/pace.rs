//! How fast work in the background may read and write, and when it is to end.

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Tells work that it is to end. Once told, it stays so.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    is_set: AtomicBool,
    set: Notify,
}

impl Stop {
    pub(crate) fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        self.set.notify_waiters();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Waits until it is set.
    pub(crate) async fn wait(&self) {
        // In this order: from here on it is told.
        let set = self.set.notified();
        if !self.is_set() {
            set.await;
        }
    }
}

/// A limit of bytes a second, over all that share it. Waiting for it holds nothing.
#[derive(Debug)]
pub(crate) struct Pace {
    /// `None`: as fast as possible.
    bytes_per_second: Option<NonZeroU64>,
    /// When everything until now has had its time.
    due_at: Mutex<Instant>,
    /// What is left is to be done as fast as possible.
    stop: Arc<Stop>,
}

impl Pace {
    /// At most so many bytes a second; `None`: as fast as possible.
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self::until(Arc::default(), bytes_per_second)
    }

    /// The same until `stop` is set. From then on nobody waits: the work at hand ends soon.
    pub(crate) fn until(stop: Arc<Stop>, bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            bytes_per_second,
            due_at: Mutex::new(Instant::now()),
            stop,
        }
    }

    /// Waits until so many more bytes may be read or written.
    pub(crate) async fn spend(&self, bytes: u64) {
        if let Some(turn) = self.turn(bytes, Instant::now()) {
            tokio::select! {
                () = sleep_until(turn) => {}
                () = self.stop.wait() => {}
            }
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

    #[test]
    fn nobody_waits_for_a_turn_after_the_stop() {
        let stop = Arc::<Stop>::default();
        let pace = Pace::until(Arc::clone(&stop), NonZeroU64::new(1));
        crate::tests::block_on(async {
            pace.spend(1 << 40).await;
            let waiting = pace.spend(1);
            let stopping = async { stop.set() };
            tokio::join!(waiting, stopping);
            pace.spend(1).await;
        });
        assert!(stop.is_set());
    }
}
