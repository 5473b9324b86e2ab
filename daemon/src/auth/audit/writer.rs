//! The thread that writes the log, and what it shares with those who record.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use super::{
    event::{Body, Event, LOST, UNSYNCED, Waiting},
    files::Files,
    limits::{
        BATCH_EVENTS_MAX, CLOSING_RETRY_PAUSE, QUEUE_EVENTS_MAX, RETRY_PAUSE, SYNC_INTERVAL,
        WARN_INTERVAL,
    },
    refusals::Refusals,
};

/// What the thread and those who record share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Signals that there is something for the thread to do.
    filled: Condvar,
    /// The room in the queue: a permit for each event that still fits.
    pub(super) room: Semaphore,
    pub(super) progress: watch::Sender<Progress>,
    /// True from a failed write to the next one that succeeds.
    pub(super) is_failing: AtomicBool,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Waiting>,
    /// The number of the last event that was put into the queue.
    ticket: u64,
    refusals: Refusals,
    lost: Option<Lost>,
    /// The time until which the thread may try to write the rest, once the log is closed.
    closing: Option<Instant>,
    why: String,
    warned: Option<Instant>,
    /// True if the daemon's log has a warning after which nothing says that all is well.
    is_warned: bool,
    /// Events that the daemon's log does not know to be lost yet.
    lost_unwarned: u64,
}

#[derive(Debug)]
struct Lost {
    first: Timestamp,
    last: Timestamp,
    count: u64,
}

/// Says at the end of the thread that it has ended, even if that is by a defect.
#[derive(Debug)]
pub(super) struct End(pub(super) Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.is_failing.store(true, Ordering::Release);
        }
        self.0.progress.send_modify(|progress| {
            progress.ended.get_or_insert(false);
        });
    }
}

/// How far the thread is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// The last event of the queue whose line is in the file.
    pub(super) written: u64,
    pub(super) is_failing: bool,
    /// Set at the end of the thread: true if everything is durable.
    pub(super) ended: Option<bool>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                ticket: 0,
                refusals: Refusals::new(Instant::now()),
                lost: None,
                closing: None,
                why: String::new(),
                warned: None,
                is_warned: false,
                lost_unwarned: 0,
            }),
            filled: Condvar::new(),
            room: Semaphore::new(QUEUE_EVENTS_MAX),
            progress: watch::Sender::new(Progress::default()),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Puts an event into the queue, for which the caller has room. Returns its ticket.
    pub(super) fn put(&self, body: Body) -> Option<u64> {
        let mut state = self.state.lock();
        if state.closing.is_some() {
            drop(state);
            self.lose();
            return None;
        }
        state.ticket += 1;
        let ticket = state.ticket;
        // Under the lock, so that lines have the order of their times.
        let time = Timestamp::now();
        state.queue.push_back(Waiting {
            time,
            last: None,
            count: 1,
            body,
            ticket,
        });
        self.filled.notify_one();
        Some(ticket)
    }

    /// Counts an event that has found no room.
    pub(super) fn lose(&self) {
        let mut state = self.state.lock();
        let time = Timestamp::now();
        let lost = state.lost.get_or_insert(Lost {
            first: time,
            last: time,
            count: 0,
        });
        lost.last = time;
        lost.count += 1;
        state.lost_unwarned += 1;
        if state.why.is_empty() {
            let why = if state.closing.is_some() {
                "it is closed"
            } else {
                "the disk is slow"
            };
            state.why = why.to_owned();
        }
        state.warn();
        self.filled.notify_one();
    }

    pub(super) fn refuse(&self, event: &Event<'_>) {
        let mut state = self.state.lock();
        let is_first = state.refusals.add(event, Timestamp::now(), Instant::now());
        if is_first {
            self.filled.notify_one();
        }
    }

    /// The reason why the log cannot be written.
    pub(super) fn why(&self) -> String {
        let state = self.state.lock();
        if state.why.is_empty() {
            "the disk is slow".to_owned()
        } else {
            state.why.clone()
        }
    }

    /// Asks the thread to write the rest, and to end by `until` at the latest.
    pub(super) fn close(&self, until: Instant) {
        let mut state = self.state.lock();
        state.closing.get_or_insert(until);
        self.filled.notify_one();
    }

    /// Notes that writing has failed.
    fn failed(&self, path: &Path, error: &io::Error) {
        // The reason first: whoever sees that it fails asks for it.
        {
            let mut state = self.state.lock();
            state.why = format!("{}: {error}", path.display());
            state.warn();
        }
        self.is_failing.store(true, Ordering::Release);
        self.progress
            .send_modify(|progress| progress.is_failing = true);
    }
}

impl State {
    /// Warns in the daemon's log, now and then.
    fn warn(&mut self) {
        let now = Instant::now();
        if self.warned.is_some_and(|last| now - last < WARN_INTERVAL) {
            return;
        }
        self.warned = Some(now);
        self.is_warned = true;
        let lost = std::mem::take(&mut self.lost_unwarned);
        warn!(why = self.why, lost, "the audit log cannot be written");
    }

    fn has_work(&self) -> bool {
        !self.queue.is_empty() || self.lost.is_some()
    }
}

/// The thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) files: Files,
    /// Events taken from the queue and not written yet.
    batch: VecDeque<Waiting>,
    synced: Option<Instant>,
    retry: Option<Instant>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, files: Files) -> Self {
        Self {
            shared,
            files,
            batch: VecDeque::new(),
            synced: None,
            retry: None,
        }
    }

    /// Opens the file. A failure is one like later ones: it is retried.
    pub(super) fn open(&mut self) {
        if let Err(error) = self.files.open() {
            self.failed(&error);
        }
    }

    /// Writes until the log is closed.
    pub(super) fn run(mut self) {
        loop {
            let closing = self.wait();
            let result = self.write(closing.is_some());
            match &result {
                Ok(()) => self.succeeded(),
                Err(error) => self.failed(error),
            }
            let Some(until) = closing else {
                continue;
            };
            let is_done = result.is_ok() && self.is_done();
            if is_done || Instant::now() >= until {
                let Self { shared, files, .. } = self;
                // Another log may be opened there from now on.
                drop(files);
                shared
                    .progress
                    .send_modify(|progress| progress.ended = Some(is_done));
                return;
            }
        }
    }

    /// Waits for work, and takes it. Returns the deadline if the log is closed.
    fn wait(&mut self) -> Option<Instant> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        loop {
            let due = match (self.retry, state.closing) {
                (Some(retry), Some(until)) => Some(retry.min(until)),
                (Some(retry), None) => Some(retry),
                (None, Some(_)) => None,
                (None, None) if state.has_work() || !self.batch.is_empty() => None,
                (None, None) => match (state.refusals.due(), self.sync_due()) {
                    (Some(refusals), Some(sync)) => Some(refusals.min(sync)),
                    (Some(due), None) | (None, Some(due)) => Some(due),
                    (None, None) => {
                        shared.filled.wait(&mut state);
                        continue;
                    }
                },
            };
            match due.filter(|due| *due > Instant::now()) {
                Some(due) => drop(shared.filled.wait_until(&mut state, due)),
                None => break,
            }
        }
        if self.batch.is_empty() {
            self.take(&mut state);
        }
        state.closing
    }

    /// Takes events, in the order of their times as far as possible.
    fn take(&mut self, state: &mut State) {
        let now = Timestamp::now();
        let uncertain = std::mem::take(self.files.uncertain());
        if uncertain > 0 {
            let message = "the disk did not confirm the lines before this one, as many as counted";
            self.batch.push_back(Waiting {
                time: now,
                last: None,
                count: uncertain,
                body: Body::of_log(UNSYNCED, message),
                ticket: 0,
            });
        }
        let is_over = state
            .refusals
            .due()
            .is_some_and(|due| due <= Instant::now());
        if is_over || state.closing.is_some() {
            self.batch.extend(state.refusals.take());
        }
        let count = state.queue.len().min(BATCH_EVENTS_MAX);
        self.batch.extend(state.queue.drain(..count));
        self.shared.room.add_permits(count);
        // Events are lost while the queue is full, so those in it are older.
        if state.queue.is_empty()
            && let Some(lost) = state.lost.take()
        {
            let message = format!("these events are lost: {}", state.why);
            self.batch.push_back(Waiting {
                time: lost.first,
                last: (lost.count > 1).then_some(lost.last),
                count: lost.count,
                body: Body::of_log(LOST, &message),
                ticket: 0,
            });
            state.why.clear();
        }
    }

    fn write(&mut self, is_closing: bool) -> io::Result<()> {
        self.files.open()?;
        let mut last = 0;
        // Lines of refusals and of the log itself have no ticket.
        let written = |event: &Waiting| last = event.ticket.max(last);
        let result = self.files.append(&mut self.batch, written);
        if last > 0 {
            let progress = |progress: &mut Progress| progress.written = last;
            self.shared.progress.send_modify(progress);
        }
        result?;
        let is_due = self.sync_due().is_some_and(|due| due <= Instant::now());
        if is_due || (is_closing && self.files.unsynced() > 0) {
            let result = self.files.sync();
            // The next interval begins at the end: a slow disk is not kept busy.
            self.synced = Some(Instant::now());
            result?;
        }
        Ok(())
    }

    /// The time of the next `fdatasync`. `None` if there is nothing to sync.
    fn sync_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let next = self.synced.map_or(now, |synced| synced + SYNC_INTERVAL);
        (self.files.unsynced() > 0).then_some(next)
    }

    fn is_done(&mut self) -> bool {
        let is_synced = self.files.unsynced() == 0 && *self.files.uncertain() == 0;
        let state = self.shared.state.lock();
        is_synced && self.batch.is_empty() && !state.has_work() && state.refusals.due().is_none()
    }

    fn succeeded(&mut self) {
        self.retry = None;
        if !self.shared.is_failing.swap(false, Ordering::AcqRel) {
            return;
        }
        let progress = |progress: &mut Progress| progress.is_failing = false;
        self.shared.progress.send_modify(progress);
        let mut state = self.shared.state.lock();
        if state.lost.is_none() {
            state.why.clear();
        }
        if std::mem::take(&mut state.is_warned) {
            info!("the audit log is written again");
        }
    }

    fn failed(&mut self, error: &io::Error) {
        let is_closing = self.shared.state.lock().closing.is_some();
        let pause: Duration = if is_closing {
            CLOSING_RETRY_PAUSE
        } else {
            RETRY_PAUSE
        };
        self.retry = Some(Instant::now() + pause);
        self.shared.failed(self.files.dir(), error);
    }
}
