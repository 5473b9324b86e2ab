//! The rate limit of a copy.

use std::time::Duration;

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};

/// Limits bytes per second. A new rate takes effect at once.
#[derive(Debug)]
pub(super) struct Limiter {
    /// 0: no limit.
    bytes_per_second: watch::Sender<u64>,
    /// Callers pass one after the other.
    turn: Mutex<()>,
}

impl Limiter {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: watch::Sender::new(bytes_per_second),
            turn: Mutex::default(),
        }
    }

    pub(super) fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.send_replace(bytes_per_second);
    }

    /// Waits for the time that `bytes` take at the rate, before they are requested.
    pub(super) async fn pass(&self, bytes: u64) {
        let mut limit = self.bytes_per_second.subscribe();
        let _turn = self.turn.lock().await;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a second more or less in a thousand years"
        )]
        let mut left = bytes as f64;
        while left > 0.0 {
            let rate = *limit.borrow_and_update();
            if rate == 0 {
                return;
            }
            #[expect(clippy::cast_precision_loss, reason = "as above")]
            let rate = rate as f64;
            let since = Instant::now();
            // The wait at a very low rate may exceed a `Duration`; the rate may rise meanwhile.
            let wait = Duration::try_from_secs_f64(left / rate).unwrap_or(Duration::MAX);
            tokio::select! {
                () = sleep(wait) => return,
                _ = limit.changed() => left -= since.elapsed().as_secs_f64() * rate,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds(limiter: &Limiter, bytes: u64) -> f64 {
        let since = Instant::now();
        limiter.pass(bytes).await;
        since.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time() {
        let limiter = Limiter::new(1000);
        assert!((seconds(&limiter, 2500).await - 2.5).abs() < 0.01);
        limiter.set(0);
        assert!(seconds(&limiter, u64::MAX).await < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_it() {
        let limiter = Limiter::new(1000);
        let since = Instant::now();
        tokio::join!(limiter.pass(1000), limiter.pass(1000), limiter.pass(1000));
        assert!((since.elapsed().as_secs_f64() - 3.0).abs() < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_counts_for_those_who_wait() {
        let limiter = Limiter::new(1);
        let since = Instant::now();
        let change = async {
            sleep(Duration::from_secs(10)).await;
            limiter.set(1000);
            sleep(Duration::from_secs(1)).await;
            limiter.set(0);
        };
        // Of 5010 bytes, 10 pass in ten seconds, 1000 in the next second, the rest at once.
        tokio::join!(limiter.pass(5010), change);
        assert!((since.elapsed().as_secs_f64() - 11.0).abs() < 0.01);
    }
}
