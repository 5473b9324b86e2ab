//! Notices a client that leaves the server waiting.

use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::limits::{STALL_BYTES, STALL_PART};

/// Watches one direction of a connection, in which the client sometimes owes progress: to take its
/// replies, or to send the rest of a payload.
///
/// The more memory it holds meanwhile, the less time it has, and it has to move a fixed part of the
/// bytes that it held. None of this matters while nobody else waits for memory.
pub(super) struct Stall {
    after: Duration,
    /// Runs while the client owes progress.
    watch: Option<Watch>,
    /// Bytes moved since the watch began.
    moved_bytes: u64,
    caught_up: bool,
}

/// The time in which the client has to move.
struct Watch {
    began: Instant,
    timer: Pin<Box<Sleep>>,
    held_bytes: u64,
    contended: bool,
}

impl Stall {
    pub(super) fn new(after: Duration) -> Self {
        Self {
            after,
            watch: None,
            moved_bytes: 0,
            caught_up: false,
        }
    }

    /// Records that the client took or sent bytes. `caught_up`: it owes nothing any more.
    pub(super) fn note(&mut self, moved_bytes: usize, caught_up: bool) {
        self.moved_bytes += moved_bytes as u64;
        self.caught_up |= caught_up;
    }

    /// Returns true if the client has stalled: it has made too little progress while holding
    /// `held_bytes`, and somebody else waited for such bytes (`contended`) at the beginning and at
    /// the end of its time.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        held_bytes: u64,
        contended: impl Fn() -> bool,
    ) -> bool {
        if self.watch.is_none() && held_bytes == 0 {
            return false;
        }
        let time = time(self.after, held_bytes);
        let watch = self.watch.get_or_insert_with(|| {
            self.moved_bytes = 0;
            self.caught_up = false;
            Watch {
                began: Instant::now(),
                timer: Box::pin(sleep(time)),
                held_bytes,
                contended: contended(),
            }
        });
        // It may hold more by now than when the watch began.
        let due = watch.began + time;
        if due < watch.timer.deadline() {
            watch.timer.as_mut().reset(due);
        }
        while watch.timer.as_mut().poll(cx).is_ready() {
            if held_bytes == 0 {
                self.watch = None;
                return false;
            }
            let contended = contended();
            let too_slow = !self.caught_up && self.moved_bytes < watch.held_bytes / STALL_PART;
            if too_slow && watch.contended && contended {
                return true;
            }
            watch.began = Instant::now();
            watch.held_bytes = held_bytes;
            watch.contended = contended;
            watch.timer.as_mut().reset(watch.began + time);
            self.moved_bytes = 0;
            self.caught_up = false;
        }
        false
    }
}

/// The time of a client that holds this much.
fn time(after: Duration, held_bytes: u64) -> Duration {
    let least = after / 3;
    let times = held_bytes.div_ceil(STALL_BYTES.into()).max(1);
    let part = after / u32::try_from(times).unwrap_or(u32::MAX);
    part.max(least)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const AFTER: Duration = Duration::from_secs(30);
    const MIB: u64 = 1 << 20;

    /// The time until a client stalls that holds this much and moves a part of it each second.
    async fn lasts(held_bytes: u64, bytes_a_second: usize, contended: bool) -> Option<u64> {
        let mut stall = Stall::new(AFTER);
        let mut cx = Context::from_waker(Waker::noop());
        for second in 0..300 {
            if stall.poll(&mut cx, held_bytes, || contended) {
                return Some(second);
            }
            stall.note(bytes_a_second, false);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_more_has_less_time_and_has_to_be_faster() {
        assert_eq!(lasts(64 << 10, 0, true).await, Some(30));
        assert_eq!(lasts(MIB, 0, true).await, Some(30));
        assert_eq!(lasts(2 * MIB, 0, true).await, Some(15));
        assert_eq!(lasts(64 * MIB, 0, true).await, Some(10));
        // A third of 1 MiB in 30 s, a third of 60 MiB in 10 s.
        assert_eq!(lasts(MIB, 12 << 10, true).await, None);
        assert_eq!(lasts(MIB, 11 << 10, true).await, Some(30));
        assert_eq!(lasts(60 * MIB, 2 << 20, true).await, None);
        assert_eq!(lasts(60 * MIB, 19 << 16, true).await, Some(10));
        assert_eq!(lasts(60 * MIB, 100_000, true).await, Some(10));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_hurried_for_nothing() {
        assert_eq!(lasts(64 * MIB, 0, false).await, None);
        assert_eq!(lasts(0, 0, true).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn time_counts_from_when_others_wait() {
        let mut stall = Stall::new(AFTER);
        let mut cx = Context::from_waker(Waker::noop());
        let mut poll = |contended: bool| stall.poll(&mut cx, 64 * MIB, || contended);
        assert!(!poll(false));
        tokio::time::advance(Duration::from_hours(1)).await;
        assert!(!poll(true), "it could not know");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!poll(true));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(poll(true));
    }

    #[tokio::test(start_paused = true)]
    async fn holding_more_later_shortens_the_time() {
        let mut stall = Stall::new(AFTER);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(!stall.poll(&mut cx, MIB, || true));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(stall.poll(&mut cx, 64 * MIB, || true));
    }
}
