//! How far an upload or a download has come, for whoever wants to show it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that a transfer keeps up to date. Share it by an [`Arc`](std::sync::Arc) and look at it
/// from another task.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Progress {
    /// Bytes of data, holes left out, that are done with.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of data there are; an estimate for an upload, until its end. 0 until known.
    pub fn total_bytes(&self) -> u64 {
        // More may be done than was estimated.
        self.total_bytes
            .load(Ordering::Relaxed)
            .max(self.done_bytes())
    }

    /// Says how many bytes of data there are.
    pub fn set_total(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Says how many bytes are done with.
    pub fn set_done(&self, bytes: u64) {
        self.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Says how many more bytes are done with.
    pub fn add_done(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
