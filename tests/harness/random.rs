//! Repeatable random numbers: every randomised test prints its seed.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    ops::Range,
};

/// The variable that sets the seed of every randomised test.
pub const VARIABLE: &str = "VARVE_SEED";

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The numbers of a randomised test, from `VARVE_SEED` or else a new seed. Prints the seed,
    /// which is shown when the test fails.
    #[must_use]
    pub fn of_test(test: &str) -> Self {
        let seed = match env::var(VARIABLE) {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("{VARIABLE}={text:?} is not a number from 0 to 2^64-1")),
            Err(_) => RandomState::new().hash_one(test),
        };
        println!("{test}: to repeat this run, set {VARIABLE}={seed}");
        Self(seed)
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "no number is within {range:?}");
        // The bias of a remainder does not matter to a test.
        range.start + self.next_u64() % (range.end - range.start)
    }

    /// An index into something with `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.within(0..len as u64)).expect("an index is less than the length")
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.next_u64().to_le_bytes()[0]
    }

    /// Fills with bytes that do not compress.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let (pieces, rest) = bytes.as_chunks_mut::<8>();
        for piece in pieces {
            *piece = self.next_u64().to_le_bytes();
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&self.next_u64().to_le_bytes()[..rest.len()]);
        }
    }
}
