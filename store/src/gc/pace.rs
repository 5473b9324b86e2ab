//! The rate at which background work may read and write, and the signal that ends it.

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

/// Tells work to end. Once set, it stays set.
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
        // In this order: `notified` also sees a `set` that comes between the two lines.
        let set = self.set.notified();
        if !self.is_set() {
            set.await;
        }
    }
}

/// A limit of bytes a second, shared by all users. Waiting for it holds nothing.
#[derive(Debug)]
pub(crate) struct Pace {
    /// `None`: as fast as possible.
    bytes_per_second: Option<NonZeroU64>,
    /// The moment by which all bytes so far are paid for.
    due_at: Mutex<Instant>,
    /// Once set, the rest of the work is done as fast as possible.
    stop: Arc<Stop>,
}

impl Pace {
    /// At most `bytes_per_second`; `None`: as fast as possible.
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self::until(Arc::default(), bytes_per_second)
    }

    /// The same until `stop` is set. Then nobody waits any more: the work at hand ends soon.
    pub(crate) fn until(stop: Arc<Stop>, bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            bytes_per_second,
            due_at: Mutex::new(Instant::now()),
            stop,
        }
    }

    /// Waits until `bytes` more may be read or written.
    pub(crate) async fn spend(&self, bytes: u64) {
        if let Some(turn) = self.turn(bytes, Instant::now()) {
            tokio::select! {
                () = sleep_until(turn) => {}
                () = self.stop.wait() => {}
            }
        }
    }

    /// The moment at which `bytes` more may be read or written; `None`: now.
    fn turn(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut due_at = self.due_at.lock();
        // Idle time is not saved up.
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
