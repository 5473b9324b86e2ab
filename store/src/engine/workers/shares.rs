//! The turns of jobs on the store's threads, by shares of their time. Pure, so that the outcome can
//! be predicted.
//!
//! Strict precedence starves: guests that read without a pause would keep everybody else waiting
//! for ever, and some of those hold what the guests need. So each class has a clock of its own.
//! Each job puts it forward by the job's time divided by the class's weight, and of the classes
//! with work the one with the earliest clock is next. An idle class does not save up time: its
//! clock starts where the others are, which is also early enough to be next.

use std::time::Duration;

/// The class of a job's caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Somebody waits for these bytes, mostly a guest.
    Read,
    /// Data that is to become durable: throughput matters, latency does not.
    Write,
    /// Listings and totals, whose cost grows with the number of records. Their jobs must be short,
    /// and long work comes in slices.
    Manage,
}

/// Number of classes.
pub(super) const CLASSES: usize = 3;

/// All classes; the first goes first where all else is equal.
const ALL: [Priority; CLASSES] = [Priority::Read, Priority::Write, Priority::Manage];

impl Priority {
    /// Its share of the threads' time while all have work, in sixteenths.
    const fn weight(self) -> u64 {
        match self {
            Self::Read => 12,
            Self::Write => 3,
            Self::Manage => 1,
        }
    }
}

/// The time that each class has had.
#[derive(Debug)]
pub(super) struct Shares {
    classes: [Class; CLASSES],
    /// The clock of the class that was next last time, before it was put forward.
    now: u64,
    /// Jobs of management that may be under way at a time: not all threads, so that a guest need
    /// not wait until one ends.
    management_max: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Class {
    /// Time of its jobs, in nanoseconds by weight.
    clock: u64,
    /// Expected time of its next job, by the last ones.
    expected_ns: u64,
    under_way: usize,
}

impl Shares {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            classes: [Class::default(); CLASSES],
            now: 0,
            management_max: (threads / 2).max(1),
        }
    }

    /// The next class of those that wait. Its clock advances by the expected time of its job;
    /// otherwise all threads would begin jobs of the same class before the first has ended.
    pub(super) fn next(&mut self, waits: [bool; CLASSES], stopping: bool) -> Option<Priority> {
        let waiting = ALL.into_iter().zip(waits).zip(&self.classes);
        let may = waiting.filter(|((class, waits), it)| {
            let held_back = *class == Priority::Manage && it.under_way >= self.management_max;
            *waits && (stopping || !held_back)
        });
        let now = self.now;
        let (class, clock) = may
            .map(|((class, _), it)| (class, it.clock.max(now)))
            .min_by_key(|(_, clock)| *clock)?;
        self.now = clock;
        let next = self.classes.get_mut(class as usize)?;
        next.clock = clock + charge(class, next.expected_ns);
        next.under_way += 1;
        Some(class)
    }

    /// Records the time that a job took.
    pub(super) fn ended(&mut self, class: Priority, took: Duration) {
        let Some(it) = self.classes.get_mut(class as usize) else {
            return;
        };
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // The charge at the beginning may have used another expectation; over time the difference
        // evens out.
        let charged = charge(class, it.expected_ns);
        it.clock = (it.clock + charge(class, took_ns)).saturating_sub(charged);
        it.expected_ns = (it.expected_ns * 7 + took_ns) / 8;
        it.under_way -= 1;
    }
}

/// The time by which a clock advances. Never zero, or jobs that take no time would go on for ever.
const fn charge(class: Priority, ns: u64) -> u64 {
    // So that small charges are not rounded to nothing.
    const SCALE: u64 = 16;
    ns.saturating_mul(SCALE) / class.weight() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// How often each class is next in so many turns, if all wait and a job of each takes that
    /// long.
    fn turns(threads: usize, count: usize, took_us: [u64; CLASSES]) -> [usize; CLASSES] {
        let mut shares = Shares::new(threads);
        let mut had = [0; CLASSES];
        for _ in 0..count {
            let class = shares.next([true; CLASSES], false).unwrap();
            had[class as usize] += 1;
            let took = Duration::from_micros(took_us[class as usize]);
            shares.ended(class, took);
        }
        had
    }

    #[track_caller]
    fn assert_near(found: usize, expected: usize) {
        let off = found.abs_diff(expected);
        assert!(off * 20 <= expected, "{found} where {expected} is due");
    }

    #[test]
    fn time_is_shared_by_weight_whatever_a_job_takes() {
        let [reads, writes, management] = turns(1, 16_000, [100, 100, 100]);
        assert_near(reads, 12_000);
        assert_near(writes, 3_000);
        assert_near(management, 1_000);
        // A job ten times as long has its turn a tenth as often.
        let [reads, writes, _] = turns(1, 16_000, [100, 1000, 100_000]);
        assert_near(reads, writes * 40);
    }

    #[test]
    fn a_class_that_had_nothing_to_do_is_next_and_has_saved_nothing_up() {
        let mut shares = Shares::new(1);
        let took = Duration::from_micros(50);
        for _ in 0..1000 {
            assert_eq!(
                shares.next([true, false, false], false),
                Some(Priority::Read)
            );
            shares.ended(Priority::Read, took);
        }
        let mut order = Vec::new();
        for _ in 0..32 {
            let class = shares.next([true, true, false], false).unwrap();
            order.push(class);
            shares.ended(class, took);
        }
        assert_eq!(order[0], Priority::Write);
        let writes = order.iter().filter(|it| **it == Priority::Write).count();
        assert!((5..=9).contains(&writes), "{order:?}");
        // The same the other way round: a guest that comes back after a pause waits for nobody.
        for _ in 0..1000 {
            assert_eq!(
                shares.next([false, false, true], false),
                Some(Priority::Manage)
            );
            shares.ended(Priority::Manage, took);
        }
        assert_eq!(shares.next([true, true, true], false), Some(Priority::Read));
    }

    #[test]
    fn management_leaves_threads_to_others() {
        let mut shares = Shares::new(4);
        let wait = [false, false, true];
        assert_eq!(shares.next(wait, false), Some(Priority::Manage));
        assert_eq!(shares.next(wait, false), Some(Priority::Manage));
        assert_eq!(shares.next(wait, false), None);
        // After the stop any thread runs the queued jobs.
        assert_eq!(shares.next(wait, true), Some(Priority::Manage));
        shares.ended(Priority::Manage, Duration::ZERO);
        shares.ended(Priority::Manage, Duration::ZERO);
        assert_eq!(shares.next(wait, false), Some(Priority::Manage));
        let mut alone = Shares::new(1);
        assert_eq!(alone.next(wait, false), Some(Priority::Manage));
    }
}
