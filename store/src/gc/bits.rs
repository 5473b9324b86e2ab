//! A set of slots, one bit each, that several threads fill.

use std::sync::atomic::{AtomicU64, Ordering};

/// A set of slots below a number.
#[derive(Debug, Default)]
pub(super) struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// The empty set, of slots below `len`.
    pub(super) fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds a slot. Returns true to exactly one caller, if the slot was not there. Slots that no
    /// name has are in no set.
    pub(super) fn insert(&self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        // A bit publishes nothing else: a reader that needs all bits waits for the threads that set
        // them.
        let word = self.0.get(slot / 64);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        let word = self.0.get(slot / 64);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (slot % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_new_once() {
        let bits = Bits::new(65);
        for slot in [0, 63, 64] {
            assert!(!bits.contains(slot));
            assert!(bits.insert(slot) && !bits.insert(slot));
            assert!(bits.contains(slot));
        }
        assert!(!bits.contains(1) && !bits.contains(65));
        assert!(!bits.insert(1000) && !bits.contains(1000));
    }
}
