//! The memory of the maps of all journals, which is bounded.
//!
//! From three quarters of the bound on, the volumes with the largest maps are checkpointed, one
//! after the other. At the bound, a volume whose map is not small waits for its own checkpoint. So
//! each volume can continue, and all together take little more than the bound.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::limits::{MAP_BYTES_LEAST, MAPS_BYTES_MAX};

/// Interval of the looks for the largest map.
const PAUSE: Duration = Duration::from_millis(100);

/// The memory of the maps of all open volumes.
#[derive(Debug, Default)]
pub(crate) struct MapMemory {
    bytes: AtomicU64,
    /// The time of the last look for the largest map.
    looked_at: Mutex<Option<Instant>>,
}

impl MapMemory {
    /// Counts so many bytes until the charge is dropped.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> MapCharge {
        let mut charge = MapCharge {
            memory: Arc::clone(self),
            bytes: 0,
        };
        charge.set(bytes);
        charge
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns true if a map of so many bytes may not grow.
    pub(super) fn is_full_for(&self, map_bytes: u64) -> bool {
        map_bytes >= MAP_BYTES_LEAST && self.bytes() >= MAPS_BYTES_MAX
    }

    /// Claims the look for the largest map, if memory is short. Returns false within 100 ms of the
    /// last one, so that not every batch of every volume looks.
    pub(super) fn wants_less(&self) -> bool {
        if self.bytes() < MAPS_BYTES_MAX / 4 * 3 {
            return false;
        }
        let mut looked_at = self.looked_at.lock();
        let is_due = looked_at.is_none_or(|at| at.elapsed() >= PAUSE);
        if is_due {
            *looked_at = Some(Instant::now());
        }
        is_due
    }
}

/// The counted memory of a map.
#[derive(Debug)]
pub(crate) struct MapCharge {
    memory: Arc<MapMemory>,
    bytes: u64,
}

impl MapCharge {
    /// Counts so many bytes from now on.
    pub(super) fn set(&mut self, bytes: u64) {
        let all = &self.memory.bytes;
        if bytes >= self.bytes {
            all.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            all.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// A charge for another map, which is empty.
    pub(super) fn another(&self) -> Self {
        self.memory.charge(0)
    }
}

impl Drop for MapCharge {
    fn drop(&mut self) {
        self.set(0);
    }
}
