//! What the maps of all journals take in memory, which is bounded.
//!
//! From three quarters of the bound on, the volume with the largest map is taken into the store, and the next one. At the bound, a volume
//! whose map is not small waits until its own journal is in the store, so that each can go on, and all together take little more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::limits::{MAP_BYTES_LEAST, MAPS_BYTES_MAX};

/// Until somebody looks again for the largest map.
const PAUSE: Duration = Duration::from_millis(100);

/// Of the maps of all open volumes.
#[derive(Debug, Default)]
pub(crate) struct MapMemory {
    bytes: AtomicU64,
    /// When somebody looked for the largest map last.
    looked_at: Mutex<Option<Instant>>,
}

impl MapMemory {
    /// Counts so many bytes, for as long as what is returned is there.
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

    /// Whether a volume with a map of so many bytes has to do without more.
    pub(super) fn is_full_for(&self, map_bytes: u64) -> bool {
        map_bytes >= MAP_BYTES_LEAST && self.bytes() >= MAPS_BYTES_MAX
    }

    /// Whether the caller is to have the largest map taken into the store: not each batch of each volume looks for it.
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

/// What a map takes, counted.
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

    /// The same for another map, with nothing in it.
    pub(super) fn another(&self) -> Self {
        self.memory.charge(0)
    }
}

impl Drop for MapCharge {
    fn drop(&mut self) {
        self.set(0);
    }
}
