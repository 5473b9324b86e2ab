//! Appended records, and the proof that they are durable.

use super::{super::PlacedRecord, state::Goal};
use crate::{Error, format::PackState};

/// Records that were appended. [`Flushed::settle`] returns their locations, which are useless
/// before the records are durable.
#[derive(Debug)]
#[must_use = "without it nobody learns where the records are"]
pub struct Appended {
    /// A full disk ends a generation, and loses its records that were not durable.
    generation: u64,
    /// Number of records appended so far, these included.
    upto: u64,
    records: Vec<PlacedRecord>,
}

impl Appended {
    pub(super) const fn new(generation: u64, upto: u64, records: Vec<PlacedRecord>) -> Self {
        Self {
            generation,
            upto,
            records,
        }
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns true if there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that they take in packs.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.records
            .iter()
            .map(|record| record.location.payload.record_bytes())
            .sum()
    }

    /// Adds others of the same writer. If any of all these are lost, all count as lost.
    pub fn join(&mut self, others: Self) {
        self.generation = self.generation.min(others.generation);
        self.upto = self.upto.max(others.upto);
        self.records.extend(others.records);
    }
}

/// The receipt of a flush: proof that all records appended before are durable. Only a flush makes
/// one.
#[derive(Debug)]
pub struct Flushed {
    generation: u64,
    upto: u64,
    packs: Vec<PackState>,
}

impl Flushed {
    pub(super) const fn new(goal: &Goal, packs: Vec<PackState>) -> Self {
        Self {
            generation: goal.generation,
            upto: goal.appended,
            packs,
        }
    }

    /// Returns the locations of records that this flush, or an earlier one, made durable. They must
    /// be of the same writer.
    ///
    /// # Errors
    ///
    /// [`Lost`] if this receipt does not prove that they are durable.
    pub fn settle(&self, appended: Appended) -> Result<Vec<PlacedRecord>, Lost> {
        if appended.generation == self.generation && appended.upto <= self.upto {
            return Ok(appended.records);
        }
        Err(Lost {
            records: appended.records.len(),
        })
    }

    /// The same receipt, with the later states of packs.
    pub(super) fn with_packs(self, packs: Vec<PackState>) -> Self {
        Self { packs, ..self }
    }

    /// The packs that this flush made durable, and up to where; `indexed_bytes` is true once all
    /// records are indexed that were appended before.
    #[must_use]
    pub fn packs(&self) -> &[PackState] {
        &self.packs
    }
}

/// The error for records that a receipt does not cover: the disk was full, and they were dropped;
/// or they were appended after the flush had begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{records} records were appended and not kept")]
pub struct Lost {
    records: usize,
}

impl From<Lost> for Error {
    fn from(_: Lost) -> Self {
        Self::Dropped
    }
}
