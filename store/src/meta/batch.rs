//! Changes that are made together.

use std::collections::BTreeMap;

use varve_content::ChunkId;

use super::NodeKey;
use crate::{
    Error, Result,
    format::{Location, PackId, PackState, catalog_log::Record},
};

/// Changes to index and catalog that are made together. Of two puts under one key the later counts.
///
/// It is held in memory as a whole, by whoever builds it and by RocksDB: some ten thousand entries are fine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Sorted, for that is how the index is fastest to search and to write.
    pub(super) chunks: BTreeMap<ChunkId, Location>,
    pub(super) nodes: BTreeMap<NodeKey, Location>,
    pub(super) packs: BTreeMap<PackId, PackState>,
    pub(super) catalog: Vec<(u64, Record)>,
}

impl Batch {
    /// A chunk is there, or somewhere else than before.
    pub fn put_chunk(&mut self, id: ChunkId, location: Location) {
        self.chunks.insert(id, location);
    }

    /// A node or root is there, or somewhere else than before.
    pub fn put_node(&mut self, key: NodeKey, location: Location) {
        debug_assert_eq!(
            key.kind(),
            location.payload.kind,
            "a node is where a record of its kind is"
        );
        self.nodes.insert(key, location);
    }

    /// Packs are indexed this far.
    pub fn packs<'a>(&mut self, states: impl IntoIterator<Item = &'a PackState>) {
        self.packs
            .extend(states.into_iter().map(|state| (state.pack, *state)));
    }

    /// A record of the catalog log, with its number.
    pub fn catalog(&mut self, sequence: u64, record: Record) {
        self.catalog.push((sequence, record));
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len() + self.nodes.len() + self.packs.len() + self.catalog.len()
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The catalog sequence once this is applied behind `last`. A gap, or a record for the second time, would leave
    /// a catalog that the log does not give.
    pub(super) fn sequence_after(&self, last: u64) -> Result<u64> {
        self.catalog.iter().try_fold(last, |last, (sequence, _)| {
            if last.checked_add(1) == Some(*sequence) {
                return Ok(*sequence);
            }
            Err(Error::Index {
                verb: "apply a catalog record",
                message: format!("record {sequence} does not follow record {last}"),
            })
        })
    }
}
