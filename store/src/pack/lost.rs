//! Places in packs whose records are known to be lost.

use std::collections::{BTreeSet, HashMap};

use super::RecoveredPack;
use crate::{
    format::{Location, PackId, pack::Payload},
    limits::LOST_RECORDS_MAX,
};

/// Records that are in the index and were found missing or damaged, by recovery or by a read since.
/// They do not count as stored: an upload that sends one again repairs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostPlaces(HashMap<PackId, Lost>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Lost {
    /// All from an offset on.
    From(u64),
    /// All but the records at these offsets, which ascend.
    AllBut(Vec<(u64, Payload)>),
    /// The records at these offsets.
    At(BTreeSet<u64>),
}

impl LostPlaces {
    /// Marks a whole pack as lost.
    pub fn add_pack(&mut self, pack: PackId) {
        self.add_end(pack, 0);
    }

    /// Marks everything from an offset on as lost: the pack ends there, and was longer once.
    pub fn add_end(&mut self, pack: PackId, end_bytes: u64) {
        self.0.insert(pack, Lost::From(end_bytes));
    }

    /// Marks everything in a damaged pack that its survey did not find undamaged.
    pub fn add_recovered(&mut self, recovered: &RecoveredPack) {
        if recovered.damage.is_empty() {
            return;
        }
        let whole = recovered.records.iter();
        let whole = whole.map(|record| (record.location.offset_bytes, record.location.payload));
        self.0.insert(recovered.pack, Lost::AllBut(whole.collect()));
    }

    /// Marks the record at an offset of a pack as damaged. Returns true if it was not marked
    /// before.
    pub fn add_record(&mut self, pack: PackId, offset_bytes: u64) -> bool {
        let lost = self.0.entry(pack).or_insert(Lost::At(BTreeSet::new()));
        match lost {
            Lost::From(from) => {
                let is_new = offset_bytes < *from;
                // The records behind it may be undamaged. Storing those twice does no harm.
                *from = offset_bytes.min(*from);
                is_new
            }
            Lost::AllBut(whole) => {
                let found = whole.binary_search_by_key(&offset_bytes, |(offset, _)| *offset);
                found.map(|at| whole.remove(at)).is_ok()
            }
            Lost::At(offsets) => {
                let is_new = offsets.insert(offset_bytes);
                if offsets.len() > LOST_RECORDS_MAX {
                    *lost = Lost::From(0);
                }
                is_new
            }
        }
    }

    /// Returns true if a record is in such a place, at least in part.
    #[must_use]
    pub fn hold(&self, location: &Location) -> bool {
        let start = location.offset_bytes;
        match self.0.get(&location.pack) {
            None => false,
            Some(Lost::From(lost)) => start.saturating_add(location.payload.record_bytes()) > *lost,
            Some(Lost::AllBut(whole)) => {
                let found = whole.binary_search_by_key(&start, |(offset_bytes, _)| *offset_bytes);
                let found = found.ok().and_then(|at| whole.get(at));
                found.is_none_or(|(_, payload)| *payload != location.payload)
            }
            Some(Lost::At(offsets)) => offsets.contains(&start),
        }
    }

    /// Returns true if a whole pack is lost.
    #[must_use]
    pub fn hold_all_of(&self, pack: PackId) -> bool {
        matches!(self.0.get(&pack), Some(Lost::From(0)))
    }

    /// Forgets a pack that no row points into.
    pub fn forget(&mut self, pack: PackId) {
        self.0.remove(&pack);
    }

    /// Returns true if nothing is lost, as usual.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
