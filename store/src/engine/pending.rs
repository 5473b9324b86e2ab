//! Appended records that wait for the index.

use std::collections::HashMap;

use super::unindexed::Note;
use crate::{
    Error, Result,
    format::{Name, pack::Payload},
    limits,
    pack::Appended,
};

/// A span between two losses of unsynced records. Facts learned in one do not hold in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(pub(super) u64);

/// Records that were appended and are not in the index yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) generation: u64,
    pub(super) records: HashMap<Name, Payload>,
    pub(super) chunks_appended: Option<Appended>,
    pub(super) nodes_appended: Option<Appended>,
    /// The notes of their appends.
    pub(super) notes: Vec<Note>,
    /// Set once: the reason why nothing is written any more.
    pub(super) poisoned: Option<String>,
    pub(super) closing: bool,
}

/// A measure of how many records wait to be indexed.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Fill {
    Some,
    /// Enough for a group.
    Group,
    /// More than may be while another group is being indexed.
    TooMany,
}

impl Pending {
    pub(super) fn check(&self, generation: Generation) -> Result<()> {
        if let Some(reason) = &self.poisoned {
            return Err(Error::Poisoned {
                reason: reason.clone(),
            });
        }
        if self.closing {
            return Err(Error::Closing);
        }
        if self.generation != generation.0 {
            return Err(Error::Dropped);
        }
        Ok(())
    }

    fn appended_bytes(&self) -> u64 {
        let bytes =
            |appended: &Option<Appended>| appended.as_ref().map_or(0, Appended::stored_bytes);
        bytes(&self.chunks_appended) + bytes(&self.nodes_appended)
    }

    /// Returns whether the records are enough to be indexed.
    pub(super) fn fill(&self) -> Fill {
        let records = self.records.len();
        if records >= 2 * limits::INDEX_GROUP_RECORDS {
            Fill::TooMany
        } else if records >= limits::INDEX_GROUP_RECORDS
            || self.appended_bytes() >= limits::INDEX_GROUP_BYTES
        {
            Fill::Group
        } else {
            Fill::Some
        }
    }
}
