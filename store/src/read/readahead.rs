//! Readahead for sequential readers.
//!
//! A sequential reader with small reads, one after the other, like a guest that reads a file, keeps
//! at most one core busy, and waits for the disk each time. So the next range is read into the
//! cache meanwhile: little at first, and twice as much each time, as Linux does for files.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::limits::{READ_AHEAD_BYTES_MAX, READ_AHEAD_BYTES_MIN};

/// The readahead state of one reader, such as a connection.
#[derive(Debug, Default)]
pub struct ReadAhead {
    course: Mutex<Course>,
    /// True while a readahead is under way.
    busy: Arc<AtomicBool>,
}

impl ReadAhead {
    /// Records a read, and calls `fetch` for the next range, in a task of its own, when it is due.
    /// `end` is the end of the content, in bytes.
    pub fn follow<F>(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        end: u64,
        fetch: impl FnOnce(Range<u64>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let wanted = self.course.lock().next(offset_bytes, len_bytes, end);
        let Some(wanted) = wanted else { return };
        if self.busy.swap(true, Ordering::Acquire) {
            // One at a time: a reader that outruns its readahead needs no help.
            self.course.lock().ahead_to = wanted.start;
            return;
        }
        let busy = Busy(Arc::clone(&self.busy));
        let fetching = fetch(wanted);
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends by itself, soon, and nothing depends on it"
        )]
        drop(tokio::spawn(async move {
            fetching.await;
            drop(busy);
        }));
    }
}

/// Ends a readahead when it is dropped, for any reason.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The course of a reader.
#[derive(Debug, Default)]
struct Course {
    /// The end of the last read.
    position: u64,
    /// Bytes read sequentially up to there.
    run_bytes: u64,
    /// The end of the range read ahead.
    ahead_to: u64,
}

impl Course {
    /// The range to read ahead now.
    fn next(&mut self, offset: u64, len: u64, end: u64) -> Option<Range<u64>> {
        // Requests of one reader overtake each other on their way.
        let near = offset.abs_diff(self.position) <= READ_AHEAD_BYTES_MIN;
        let is_next = near && (self.run_bytes > 0 || offset == self.position && offset > 0);
        if is_next {
            self.run_bytes += len;
            self.position = self.position.max(offset + len);
        } else {
            *self = Self {
                position: offset + len,
                // The first of a run, if it begins at the content's start.
                run_bytes: if offset == 0 { len } else { 0 },
                ahead_to: 0,
            };
            return None;
        }
        let window = (2 * self.run_bytes).clamp(READ_AHEAD_BYTES_MIN, READ_AHEAD_BYTES_MAX);
        let start = self.ahead_to.max(self.position);
        let target = end.min(self.position + window);
        // Not a little for each request: when half of it was read, or all is there.
        let is_due = start < target && start - self.position <= window / 2;
        is_due.then(|| {
            self.ahead_to = target;
            start..target
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const KIB: u64 = 1 << 10;
    const END: u64 = 1 << 30;

    /// The bytes read ahead for these reads.
    fn brought(reads: impl IntoIterator<Item = (u64, u64)>) -> Vec<Range<u64>> {
        let mut course = Course::default();
        let reads = reads.into_iter();
        reads
            .filter_map(|(offset, len)| course.next(offset, len, END))
            .collect()
    }

    #[test]
    fn from_front_to_back_everything_is_brought_once_and_more_each_time() {
        for (start, len) in [(0, 4 * KIB), (0, 256 * KIB), (300 * KIB, 128 * KIB)] {
            let reads = (0..2000).map(|number| (start + number * len, len));
            let brought = brought(reads);
            assert!(brought.len() < 1200, "{} for {len}", brought.len());
            for pair in brought.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
            }
            let longest = brought.iter().map(|range| range.end - range.start);
            assert!(longest.max().unwrap() <= READ_AHEAD_BYTES_MAX);
            assert!(brought[0].end - brought[0].start <= 2 * READ_AHEAD_BYTES_MIN.max(2 * len));
            let end = start + 2000 * len;
            assert!(brought.last().unwrap().end >= end + READ_AHEAD_BYTES_MIN / 2);
        }
    }

    #[test]
    fn the_end_is_the_end() {
        let reads = (0..100).map(|number| (END - (100 - number) * KIB * 64, 64 * KIB));
        let brought = brought(reads);
        assert_eq!(brought.last().unwrap().end, END);
        assert!(brought.iter().all(|range| range.start < range.end));
    }

    #[test]
    fn here_and_there_brings_nothing() {
        let mut at = 12345_u64;
        let reads = (0..10_000).map(|_| {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (at % (END / 4096) * 4096, 4096)
        });
        // Two that happen to be neighbours.
        assert!(brought(reads).len() < 20);
        let backwards = (0..100).map(|number| (END - number * 4096 * 100, 4096));
        assert_eq!(brought(backwards), []);
    }

    #[test]
    fn requests_that_overtake_each_other_are_still_a_run() {
        let reads = (0..1000_u64).map(|number| ((number ^ 3) * 64 * KIB, 64 * KIB));
        let brought = brought(reads);
        let bytes: u64 = brought.iter().map(|range| range.end - range.start).sum();
        assert!(bytes > 900 * 64 * KIB, "{bytes}");
    }

    #[test]
    fn whoever_turns_elsewhere_begins_anew() {
        let run = |start: u64| (0..50).map(move |number| (start + number * 64 * KIB, 64 * KIB));
        let brought = brought(run(4096).chain(run(END / 2)));
        let second = brought.iter().find(|range| range.start >= END / 2).unwrap();
        assert!(second.end - second.start <= READ_AHEAD_BYTES_MIN);
    }

    #[tokio::test]
    async fn one_thing_is_brought_at_a_time() {
        let ahead = ReadAhead::default();
        let (release, held) = tokio::sync::watch::channel(false);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let read = |offset| {
            let (asked, mut held) = (Arc::clone(&asked), held.clone());
            ahead.follow(offset, 64 * KIB, END, |range| async move {
                asked.lock().push(range);
                held.wait_for(|released| *released).await.unwrap();
            });
        };
        for number in 0..40 {
            read(number * 64 * KIB);
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.lock().len(), 1);
        release.send(true).unwrap();
        while ahead.busy.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        read(40 * 64 * KIB);
        tokio::task::yield_now().await;
        let asked = asked.lock();
        assert_eq!(asked.len(), 2);
        // From the reader's position: its own reads have covered the part before.
        assert!(asked[1].start >= 40 * 64 * KIB && asked[1].end > asked[1].start);
    }
}
