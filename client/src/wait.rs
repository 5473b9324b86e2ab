//! Waiting for background work of a daemon: pending snapshots and copies.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use crate::{
    cancel::unless_cancelled,
    connect::Client,
    control::Control,
    copies::{Copy, CopyState},
    error::{Error, ErrorKind, Result},
    limits::{COPY_POLL, COPY_POLL_PART, SNAPSHOT_POLL},
    progress::Progress,
    snapshots::{Snapshot, SnapshotState},
};

/// Waiting for snapshots: see [`Client::wait_for_snapshots`].
#[must_use = "nothing is waited for until this is run"]
pub struct SnapshotWait<'a> {
    client: &'a Client,
    snapshots: Vec<String>,
    control: Control,
    on_retry: Box<dyn FnMut(&Snapshot) + Send + 'a>,
}

/// Waiting for copies: see [`Client::wait_for_copies`].
#[must_use = "nothing is waited for until this is run"]
pub struct CopyWait<'a> {
    client: &'a Client,
    ids: Vec<String>,
    control: Control,
    on_change: Box<dyn FnMut(&Copy) + Send + 'a>,
}

impl Client {
    /// Prepares to wait until none of these snapshots, by name or id, is pending.
    pub fn wait_for_snapshots(
        &self,
        snapshots: impl IntoIterator<Item = impl Into<String>>,
    ) -> SnapshotWait<'_> {
        SnapshotWait {
            client: self,
            snapshots: snapshots.into_iter().map(Into::into).collect(),
            control: Control::default(),
            on_retry: Box::new(|_| ()),
        }
    }

    /// Prepares to wait until the copies with these ids have ended.
    pub fn wait_for_copies(
        &self,
        ids: impl IntoIterator<Item = impl Into<String>>,
    ) -> CopyWait<'_> {
        CopyWait {
            client: self,
            ids: ids.into_iter().map(Into::into).collect(),
            control: Control::default(),
            on_change: Box::new(|_| ()),
        }
    }
}

impl<'a> SnapshotWait<'a> {
    /// Sets the control of the wait; cancelling it does not stop the snapshots. Its progress counts
    /// changed bytes of the volumes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Sets a function that takes a snapshot whenever an attempt could not complete it, for a new
    /// reason. The daemon retries by itself.
    pub fn on_retry(mut self, take: impl FnMut(&Snapshot) + Send + 'a) -> Self {
        self.on_retry = Box::new(take);
        self
    }

    /// Waits. Returns the final state of the snapshots, in the order in which they were given.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] as soon as one of them has failed, [`ErrorKind::NotFound`] if one
    /// was deleted, [`ErrorKind::Cancelled`].
    pub async fn run(mut self) -> Result<Vec<Snapshot>> {
        let what = format!("wait for snapshot {}", self.snapshots.join(", "));
        let outcome = "it was cancelled; the snapshot continues";
        let cancel = self.control.cancel.clone();
        unless_cancelled(&what, outcome, &cancel, self.wait()).await
    }

    async fn wait(&mut self) -> Result<Vec<Snapshot>> {
        let mut told = HashMap::new();
        loop {
            let mut found = Vec::with_capacity(self.snapshots.len());
            for snapshot in &self.snapshots {
                found.push(self.client.snapshot(snapshot).await?);
            }
            for snapshot in &found {
                if snapshot.state == SnapshotState::Failed {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("wait for snapshot {}", snapshot.name),
                        format!(
                            "it has failed: {}",
                            snapshot.failure.as_deref().unwrap_or("no reason given")
                        ),
                    ));
                }
            }
            let pending = |snapshot: &&Snapshot| snapshot.state == SnapshotState::Pending;
            if !found.iter().any(|snapshot| pending(&snapshot)) {
                return Ok(found);
            }
            for snapshot in found.iter().filter(pending) {
                if snapshot.failure.is_some() && told.get(&snapshot.id) != Some(&snapshot.failure) {
                    (self.on_retry)(snapshot);
                    told.insert(snapshot.id.clone(), snapshot.failure.clone());
                }
            }
            let all = found.iter().filter_map(|snapshot| snapshot.progress);
            // Saturating: these are numbers of another program.
            let (done, total) = all.fold((0_u64, 0_u64), |(done, total), it| {
                (
                    done.saturating_add(it.done_bytes),
                    total.saturating_add(it.total_bytes),
                )
            });
            self.control.progress.set_total(total);
            self.control.progress.set_done(done);
            tokio::time::sleep(SNAPSHOT_POLL).await;
        }
    }
}

impl<'a> CopyWait<'a> {
    /// Sets the control of the wait; cancelling it does not stop the copies. Its progress counts
    /// bytes of data, without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Sets a function that takes each copy at first, and whenever its state or last error changes.
    pub fn on_change(mut self, take: impl FnMut(&Copy) + Send + 'a) -> Self {
        self.on_change = Box::new(take);
        self
    }

    /// Waits, even through restarts of the source, but not of the daemon. Returns the final state
    /// of the copies, in the order in which they were given.
    ///
    /// # Errors
    ///
    /// The error of the first copy that fails, as soon as it has; [`ErrorKind::Cancelled`] if a
    /// copy or the wait was cancelled. The other copies continue.
    pub async fn run(mut self) -> Result<Vec<Copy>> {
        let what = format!("wait for {}", self.ids.join(", "));
        let outcome = "it was cancelled; the copy continues";
        let cancel = self.control.cancel.clone();
        unless_cancelled(&what, outcome, &cancel, self.wait()).await
    }

    async fn wait(&mut self) -> Result<Vec<Copy>> {
        let begun = Instant::now();
        let mut arrivals = HashMap::new();
        let mut told = HashMap::new();
        loop {
            let mut copies = Vec::with_capacity(self.ids.len());
            for id in &self.ids {
                copies.push(self.client.copy_status(id).await?);
            }
            count(&copies, &mut arrivals, &self.control.progress);
            for copy in &copies {
                let now = (copy.state, copy.last_error.clone());
                if told.get(&copy.id) != Some(&now) {
                    (self.on_change)(copy);
                    told.insert(copy.id.clone(), now);
                }
            }
            for copy in &copies {
                let what = format!(
                    "copy {} from {}",
                    copy.source.snapshot, copy.source.endpoint
                );
                match copy.state {
                    CopyState::Failed => {
                        let why = copy.last_error.clone().unwrap_or_default();
                        let kind = copy.last_error_kind.unwrap_or(ErrorKind::Conflict);
                        return Err(Error::new(kind, what, why));
                    }
                    CopyState::Cancelled => {
                        return Err(Error::new(ErrorKind::Cancelled, what, "it was cancelled"));
                    }
                    _ => {}
                }
            }
            if copies.iter().all(|copy| copy.state.has_ended()) {
                return Ok(copies);
            }
            tokio::time::sleep(copy_pause(begun.elapsed())).await;
        }
    }
}

/// The pause before the next question about copies: a part of the time that they took so far, so
/// that the caller learns of their end soon after it.
fn copy_pause(elapsed: Duration) -> Duration {
    (elapsed / COPY_POLL_PART).clamp(COPY_POLL.0, COPY_POLL.1)
}

/// Counts the data of copies that has arrived.
fn count(copies: &[Copy], arrivals: &mut HashMap<String, Arrival>, progress: &Progress) {
    let (mut total, mut done) = (0_u64, 0_u64);
    for copy in copies {
        // Saturating: these are numbers of another machine.
        total = total.saturating_add(copy.data_bytes);
        let arrival = arrivals.entry(copy.id.clone()).or_default();
        done = done.saturating_add(arrival.seen(copy));
    }
    progress.set_total(total);
    progress.set_done(done);
}

/// The data of a copy that has arrived. A copy counts data as done in large steps, when all chunks
/// of a step are there. This already counts the arrived part of the next step, so that a slow copy
/// shows progress.
#[derive(Debug, Default)]
struct Arrival {
    done_data_bytes: u64,
    /// Received bytes when the done data last changed.
    received_bytes: u64,
    shown_bytes: u64,
}

impl Arrival {
    /// Returns the bytes of data that are there.
    fn seen(&mut self, copy: &Copy) -> u64 {
        if self.done_data_bytes != copy.done_data_bytes {
            self.done_data_bytes = copy.done_data_bytes;
            self.received_bytes = copy.received_bytes;
        }
        if copy.state == CopyState::Completed {
            return copy.data_bytes;
        }
        // The payload is packed: rarely more than the data that it holds.
        let arrived = copy.received_bytes.saturating_sub(self.received_bytes);
        let here = copy.done_data_bytes.saturating_add(arrived);
        self.shown_bytes = self.shown_bytes.max(here).min(copy.data_bytes);
        self.shown_bytes
    }
}

impl fmt::Debug for SnapshotWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWait")
            .field("snapshots", &self.snapshots)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CopyWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyWait")
            .field("ids", &self.ids)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use varve_proto::v1;

    use super::*;

    #[test]
    fn what_has_arrived_of_a_step_counts() {
        let mut copy = v1::Copy {
            state: v1::CopyState::Running.into(),
            created_at: Some(prost_types::Timestamp::default()),
            data_bytes: 10_000,
            ..v1::Copy::default()
        };
        let mut arrival = Arrival::default();
        for (done, received, shown) in [
            (0, 0, 0),
            (0, 500, 500),
            (0, 3000, 3000),
            // The step is done: its data is more than its payload.
            (4000, 3000, 4000),
            (4000, 3700, 4700),
            // The copy begins again, but its progress does not go back.
            (0, 3700, 4700),
            (9900, 9000, 9900),
            (9900, 9900, 10_000),
        ] {
            (copy.done_data_bytes, copy.received_bytes) = (done, received);
            let copy = Copy::from_proto("show", copy.clone()).unwrap();
            assert_eq!(arrival.seen(&copy), shown, "{done} {received}");
        }
    }
}
