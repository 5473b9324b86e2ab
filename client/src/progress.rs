//! The progress of a long call.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counters that a long call keeps up to date. Clones share them: read one from another task, or
/// from a timer that draws a bar.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Progress {
    /// Counters at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are done. The documentation of each call says which bytes it counts.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.0.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes in all, never less than those done: an estimate for an upload, until its end. 0 until
    /// known.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let total_bytes = self.0.total_bytes.load(Ordering::Relaxed);
        // More may be done than was estimated.
        total_bytes.max(self.done_bytes())
    }

    /// Sets the number of bytes in all.
    pub fn set_total(&self, bytes: u64) {
        self.0.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Sets the number of bytes that are done.
    pub fn set_done(&self, bytes: u64) {
        self.0.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Counts further bytes as done.
    pub fn add_done(&self, bytes: u64) {
        self.0.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
