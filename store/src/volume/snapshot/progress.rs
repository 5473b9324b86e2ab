//! The progress of pending snapshots, and the failed ones.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Error, Result,
    meta::{SnapshotId, SnapshotRecord, SnapshotState},
};

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 500;

/// The progress of a pending snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// Segments that were cut again and stored.
    pub segments_done: u64,
    /// Segments to be stored; 0 until its checkpoint begins.
    pub segments_total: u64,
    /// The reason why the last try failed, if it waits to be tried again.
    pub waits_for: Option<String>,
}

/// The progress of a pending snapshot.
#[derive(Debug)]
pub(crate) struct Progress {
    id: SnapshotId,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: watch::Sender<bool>,
    /// The reason why the last try failed.
    waits_for: Mutex<Option<String>>,
    /// The reason why it failed, whether or not its record has it.
    failed: OnceLock<String>,
    stage: watch::Sender<Stage>,
}

/// The stage of a pending snapshot.
#[derive(Debug, Default, Copy, Clone, PartialEq, Eq)]
enum Stage {
    /// Its checkpoint is due, or under way.
    #[default]
    UnderWay,
    /// It could not be completed, and waits to be tried again.
    Waits,
    /// Nothing more is done about it.
    Ended,
}

impl Progress {
    fn new(id: SnapshotId) -> Self {
        Self {
            id,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            cancelled: watch::Sender::default(),
            waits_for: Mutex::default(),
            failed: OnceLock::new(),
            stage: watch::Sender::default(),
        }
    }

    /// Begins a try, in which `segments` segments are to be stored.
    pub(in crate::volume) fn begin(&self, segments: u64) {
        // An earlier try may have counted some.
        self.done.store(0, Ordering::Relaxed);
        self.total.store(segments, Ordering::Relaxed);
    }

    /// Counts a segment.
    pub(in crate::volume) fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::volume) fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Waits until it is cancelled.
    pub(in crate::volume) async fn cancelled(&self) {
        // The sender lives as long as `self`.
        let _ = self.cancelled.subscribe().wait_for(|it| *it).await;
    }

    /// Sets the reason why it could not be completed for now.
    pub(in crate::volume) fn wait(&self, reason: String) {
        *self.waits_for.lock() = Some(shown(&reason));
        self.stage.send_replace(Stage::Waits);
    }

    /// Fails once it is cancelled.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]: the snapshot was deleted.
    pub(in crate::volume) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::NotFound {
                what: "snapshot",
                name: self.id.to_string(),
            });
        }
        Ok(())
    }

    /// Sets the reason why it has failed. The first reason stays.
    pub(in crate::volume) fn fail(&self, reason: String) {
        let _ = self.failed.set(reason);
    }

    /// The progress as shown to users.
    pub(super) fn shown(&self) -> SnapshotProgress {
        SnapshotProgress {
            segments_done: self.done.load(Ordering::Relaxed),
            segments_total: self.total.load(Ordering::Relaxed),
            waits_for: self.waits_for.lock().clone(),
        }
    }

    /// Cancels it.
    pub(super) fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Waits until nothing more is done about it.
    pub(super) async fn until_ended(&self) {
        self.reaches(|stage| stage == Stage::Ended).await;
    }

    /// Waits until it has ended, or waits to be tried again.
    pub(super) async fn until_tried(&self) {
        self.reaches(|stage| stage != Stage::UnderWay).await;
    }

    async fn reaches(&self, is_it: impl Fn(Stage) -> bool) {
        // The sender lives as long as `self`.
        let _ = self.stage.subscribe().wait_for(|stage| is_it(*stage)).await;
    }

    /// Tells all waiting callers that nothing more is done about it.
    pub(in crate::volume) fn end(&self) {
        self.stage.send_replace(Stage::Ended);
    }
}

/// The pending snapshots of open volumes, and those that have failed without a record that says so.
#[derive(Debug, Default)]
pub(crate) struct PendingSnapshots(Mutex<HashMap<SnapshotId, Arc<Progress>>>);

impl PendingSnapshots {
    pub(in crate::volume) fn add(&self, id: SnapshotId) -> Arc<Progress> {
        let mut all = self.0.lock();
        // A snapshot that failed before gets another try.
        let progress = Arc::new(Progress::new(id));
        all.insert(id, Arc::clone(&progress));
        progress
    }

    pub(in crate::volume) fn remove(&self, id: SnapshotId) {
        self.0.lock().remove(&id);
    }

    pub(super) fn get(&self, id: SnapshotId) -> Option<Arc<Progress>> {
        self.0.lock().get(&id).cloned()
    }

    /// The record of a snapshot, as failed if that could not be recorded.
    pub(crate) fn see(&self, record: SnapshotRecord) -> SnapshotRecord {
        if record.state != SnapshotState::Pending {
            return record;
        }
        let progress = self.get(record.id);
        match progress.as_ref().and_then(|progress| progress.failed.get()) {
            Some(reason) => SnapshotRecord {
                state: failed(reason),
                ..record
            },
            None => record,
        }
    }
}

pub(super) fn failed(reason: &str) -> SnapshotState {
    SnapshotState::Failed {
        reason: shown(reason),
    }
}

/// Shortens a reason to the length that is kept.
pub(super) fn shown(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}
