//! The audit log: one line of JSON for each change and each refusal, in the directory `audit`.
//!
//! - `event`: an event, and its line. `refusals`: equal refusals become one line.
//! - `writer`: the thread that writes, behind a bounded queue. `files`: rotation, the end of a file
//!   after a crash. `read`: pages of events, also while the thread writes.
//! - `limits`: every bound.
//!
//! What holds:
//!
//! - When [`Audit::record`] has returned [`Recorded::Written`], the line is in the file: the end of
//!   the process, however sudden, does not take it away. The call waits for that, 2 s at most.
//! - A power failure takes away at most the lines of the last second, and of the `fdatasync` under
//!   way: there is one a second while lines are written, the first one at once.
//! - The end of the process takes away what was not waited for: events of
//!   [`Audit::try_record`] for some milliseconds, refusals for a second.
//! - Nothing is left out in silence. A line `audit-lost` counts the events that found no room,
//!   `audit-unsynced` the earlier lines that the disk did not confirm. Only events that are lost
//!   and not yet counted in a line when the process ends are known to the daemon's log alone.
//! - Lines have ascending numbers without gaps. A power failure may take the last lines, and their
//!   numbers are used again; any gap shows that lines were removed.
//! - While the log cannot be written, events wait in the queue, and further ones are counted. The
//!   thread tries again every second. See [`OnFailure`] for what happens to changes.
//!
//! The directory has the mode 0700 and files 0600. An existing directory keeps its mode. With
//! [`OnFailure::Stop`] the directory should be on a file system of its own: if it shares a full one
//! with the store, nothing can be deleted to make room.

mod event;
mod files;
mod limits;
mod read;
mod refusals;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

use self::{
    event::Body,
    files::{Files, MakeSink},
    limits::{FILE_BYTES, LINE_BYTES_MAX, RECORD_WITHIN, TOTAL_BYTES},
    writer::{End, Progress, Shared, Writer},
};
pub use self::{
    event::{EVENTS, Entry, Event, OK, SHOW_TOKEN},
    read::{Page, Query, ReadError, read},
};

/// Settings of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Length at which the current file is rotated.
    pub file_bytes: u64,
    /// Length of all files. It is at least twice that of one.
    pub total_bytes: u64,
    pub on_failure: OnFailure,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            file_bytes: FILE_BYTES,
            total_bytes: TOTAL_BYTES,
            on_failure: OnFailure::Count,
        }
    }
}

/// What happens to changes while the log cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused. Those under way go on: the queue has room for their events.
    Stop,
    /// They go on. Events that find no room are counted.
    Count,
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A setting is out of range.
    #[error("the audit log: {0}")]
    Setting(&'static str),
    /// The directory cannot be used.
    #[error("cannot open the audit log in {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    /// The system cannot start a thread.
    #[error("cannot start the thread that writes the audit log: {0}")]
    Thread(io::Error),
    /// Changes are refused until the log can be written.
    #[error("changes are refused because the audit log cannot be written: {0}")]
    Failing(String),
    /// Not all events were durable in time when the log was closed.
    #[error("the audit log was closed before everything was written")]
    Unfinished,
}

/// What has become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// Its line is in the file.
    Written,
    /// It waits in the queue.
    Queued,
    /// It found no room, and is counted.
    Lost,
}

/// The running log. It is shared by all who record. Dropping it ends the thread, which tries once
/// to write the rest; [`close`](Self::close) waits for that.
#[derive(Debug)]
pub struct Audit {
    shared: Arc<Shared>,
    on_failure: OnFailure,
}

impl Audit {
    /// Opens the log in the directory `audit` of `dir`, which it makes, and starts its thread. It
    /// reads and writes files, so it is not for an async task. A file that cannot be opened, for
    /// example because the disk is full, is a failure like a later one.
    ///
    /// # Errors
    ///
    /// A setting is out of range, the directory cannot be made, another daemon uses it, or the
    /// system cannot start a thread.
    pub fn open(dir: &Path, settings: &Settings) -> Result<Self, AuditError> {
        Self::open_with(dir, settings, Box::new(|file| Box::new(file)))
    }

    fn open_with(dir: &Path, settings: &Settings, sink: MakeSink) -> Result<Self, AuditError> {
        if settings.file_bytes < LINE_BYTES_MAX as u64 {
            return Err(AuditError::Setting("a file has at least 8 KiB"));
        }
        if settings.total_bytes / 2 < settings.file_bytes {
            let problem = "all files together have at least twice the bytes of one";
            return Err(AuditError::Setting(problem));
        }
        let files = Files::new(dir, settings, sink).map_err(|error| AuditError::Open {
            path: files::audit_dir(dir),
            error,
        })?;
        let shared = Arc::new(Shared::new());
        let mut writer = Writer::new(Arc::clone(&shared), files);
        writer.open();
        let end = End(Arc::clone(&shared));
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                let _end = end;
                writer.run();
            })
            .map_err(AuditError::Thread)?;
        let on_failure = settings.on_failure;
        Ok(Self { shared, on_failure })
    }

    /// Permits a change, before it begins. Cheap.
    ///
    /// # Errors
    ///
    /// [`OnFailure::Stop`] is set, and the log cannot be written or is far behind.
    pub fn admit(&self) -> Result<(), AuditError> {
        if self.on_failure == OnFailure::Count {
            return Ok(());
        }
        let is_failing = self.shared.is_failing.load(Ordering::Acquire);
        if is_failing || self.shared.room.available_permits() == 0 {
            return Err(AuditError::Failing(self.shared.why()));
        }
        Ok(())
    }

    /// Records the outcome of a change, and waits until its line is in the file: 2 s at most, and
    /// not at all while the log fails.
    ///
    /// The event is recorded even if the future is dropped, or never polled.
    pub fn record(&self, event: &Event<'_>) -> impl Future<Output = Recorded> + Send + use<'_> {
        let until = tokio::time::Instant::now() + RECORD_WITHIN;
        let mut unqueued = Unqueued {
            shared: &self.shared,
            body: Some(Body::of_change(event)),
        };
        let mut ticket = unqueued.try_put();
        async move {
            if unqueued.body.is_some() && !self.shared.is_failing.load(Ordering::Acquire) {
                let room = timeout_at(until, self.shared.room.acquire()).await;
                if let (Ok(Ok(room)), Some(body)) = (room, unqueued.body.take()) {
                    room.forget();
                    ticket = self.shared.put(body);
                }
            }
            // Tries once more, and counts the event if there is still no room.
            ticket = ticket.or_else(|| unqueued.put_or_lose());
            let Some(ticket) = ticket else {
                return Recorded::Lost;
            };
            let is_over = |progress: &Progress| {
                progress.written >= ticket || progress.is_failing || progress.ended.is_some()
            };
            let mut progress = self.shared.progress.subscribe();
            match timeout_at(until, progress.wait_for(is_over)).await {
                Ok(Ok(progress)) if progress.written >= ticket => Recorded::Written,
                _ => Recorded::Queued,
            }
        }
    }

    /// Records the outcome of a change without waiting for anything, as a `Drop` needs it. The
    /// event is counted as lost if the queue is full.
    pub fn try_record(&self, event: &Event<'_>) -> Recorded {
        let body = Some(Body::of_change(event));
        let shared = &self.shared;
        match (Unqueued { shared, body }).put_or_lose() {
            Some(_) => Recorded::Queued,
            None => Recorded::Lost,
        }
    }

    /// Counts a refusal. It never waits: equal refusals within a second become one line, written at
    /// the end of that second. Refusals are equal if account, identity, host, action and result
    /// are; the line has the other texts of the first one.
    pub fn refuse(&self, event: &Event<'_>) {
        self.shared.refuse(event);
    }

    /// Writes everything, makes it durable and ends the thread. Events that come later are lost.
    ///
    /// # Errors
    ///
    /// That was not possible `within` this time. The daemon's log has the reason.
    pub async fn close(&self, within: Duration) -> Result<(), AuditError> {
        let until = Instant::now() + within;
        self.shared.close(until);
        let mut progress = self.shared.progress.subscribe();
        let ended = progress.wait_for(|progress| progress.ended.is_some());
        match timeout_at(until.into(), ended).await {
            Ok(Ok(progress)) if progress.ended == Some(true) => Ok(()),
            _ => Err(AuditError::Unfinished),
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.shared.close(Instant::now());
    }
}

/// An event on its way into the queue. If it is dropped before, it is counted, so that a caller who
/// goes away does not take its event along.
struct Unqueued<'a> {
    shared: &'a Shared,
    body: Option<Body>,
}

impl Unqueued<'_> {
    /// Puts the event into the queue if there is room.
    fn try_put(&mut self) -> Option<u64> {
        let body = self.body.take()?;
        match self.shared.room.try_acquire() {
            Ok(room) => {
                room.forget();
                self.shared.put(body)
            }
            Err(_) => {
                self.body = Some(body);
                None
            }
        }
    }

    /// The same. Without room the event is counted.
    fn put_or_lose(&mut self) -> Option<u64> {
        let ticket = self.try_put();
        if self.body.take().is_some() {
            self.shared.lose();
        }
        ticket
    }
}

impl Drop for Unqueued<'_> {
    fn drop(&mut self) {
        self.put_or_lose();
    }
}
