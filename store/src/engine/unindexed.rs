//! Records in packs that the index does not have yet, and their effect on the states of packs.
//!
//! A flush makes durable all that was appended before it. That may include records that enter the
//! index only with a later batch: those of an append that is under way, or that has just ended. The
//! state of a pack must not cover these. Recovery surveys the part behind
//! [`PackState::indexed_bytes`], and garbage collection concludes that a row before it is as old as
//! the state.
//!
//! So each append notes the end of its pack when it begins; its records come behind. The note stays
//! until the rows of its records are made, or until the append has failed or was given up. The
//! lowest note also gives the lowest packs that new rows may point into.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;

use super::Floors;
use crate::format::{PackId, PackKind, PackPhase, PackState};

/// Places behind which records may be that the index does not have.
#[derive(Debug, Default)]
pub(super) struct Unindexed(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    /// Kind, pack number and offset in bytes at which each append began, and its own number.
    from: BTreeSet<(PackKind, u64, u64, u64)>,
    last: u64,
    /// States that the index must not have yet.
    held: BTreeMap<PackId, PackState>,
}

/// The note of one append.
#[derive(Debug)]
pub(super) struct Note {
    of: Arc<Unindexed>,
    from: (PackKind, u64, u64, u64),
}

impl Drop for Note {
    fn drop(&mut self) {
        self.of.0.lock().from.remove(&self.from);
    }
}

impl Unindexed {
    /// Notes that an append begins. Its records come at `end` or behind it: at that offset of the
    /// pack with that number, or in later packs.
    pub(super) fn begin(self: &Arc<Self>, kind: PackKind, end: (u64, u64)) -> Note {
        let mut notes = self.0.lock();
        notes.last += 1;
        let from = (kind, end.0, end.1, notes.last);
        notes.from.insert(from);
        Note {
            of: Arc::clone(self),
            from,
        }
    }

    /// The lowest packs of records that are on their way to the index.
    pub(super) fn floors(&self) -> Floors {
        let notes = self.0.lock();
        let lowest = notes.from.iter();
        let lowest = lowest.map(|(kind, number, ..)| Floors::of(*kind, *number));
        lowest.fold(Floors::NONE, Floors::lower)
    }

    /// Returns the states that the index may have of packs, with a batch of the records of
    /// `of_batch`. The packs are durable as `states` say; states held back before are included.
    pub(super) fn tell(&self, states: Vec<PackState>, of_batch: &[Note]) -> Vec<PackState> {
        let mut notes = self.0.lock();
        let notes = &mut *notes;
        notes
            .held
            .extend(states.into_iter().map(|state| (state.pack, state)));
        let first = |kind| {
            let mut behind = notes.from.range((kind, 0, 0, 0)..);
            let first = behind.find(|from| of_batch.iter().all(|note| note.from != **from));
            let first = first.filter(|first| first.0 == kind);
            first.map(|(_, number, offset_bytes, _)| (*number, *offset_bytes))
        };
        let told = notes
            .held
            .values()
            .map(|state| match first(state.pack.kind) {
                Some((number, offset_bytes)) if number <= state.pack.number => PackState {
                    pack: state.pack,
                    indexed_bytes: match number < state.pack.number {
                        true => 0,
                        false => state.indexed_bytes.min(offset_bytes),
                    },
                    phase: PackPhase::Open,
                },
                _ => *state,
            });
        let told: Vec<_> = told.collect();
        let mut told_whole = told.iter();
        notes
            .held
            .retain(|_, state| told_whole.next() != Some(&*state));
        told
    }

    /// Keeps states that the index did not get, for the next time. Without them a pack with a
    /// footer would count as open until a restart.
    pub(super) fn hold(&self, states: Vec<PackState>) {
        let mut notes = self.0.lock();
        for state in states {
            // A state that was returned in part is already held whole.
            notes.held.entry(state.pack).or_insert(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn state(number: u64, indexed_bytes: u64, sealed: bool) -> PackState {
        let phase = match sealed {
            true => PackPhase::Sealed,
            false => PackPhase::Open,
        };
        PackState {
            pack: PackId {
                kind: PackKind::Nodes,
                number,
            },
            indexed_bytes,
            phase,
        }
    }

    #[test]
    fn a_pack_is_indexed_up_to_the_first_record_that_is_not() {
        let notes = Arc::new(Unindexed::default());
        let other = notes.begin(PackKind::Chunks, (1, 0));
        let first = notes.begin(PackKind::Nodes, (7, 4096));
        let second = notes.begin(PackKind::Nodes, (7, 8192));
        assert_eq!(
            notes.tell(
                vec![
                    state(3, 9000, true),
                    state(7, 9000, true),
                    state(8, 5000, false)
                ],
                &[]
            ),
            [
                state(3, 9000, true),
                state(7, 4096, false),
                state(8, 0, false)
            ]
        );
        drop(first);
        assert_eq!(
            notes.tell(Vec::new(), &[]),
            [state(7, 8192, false), state(8, 0, false)]
        );
        drop(second);
        assert_eq!(
            notes.tell(vec![state(8, 6000, false)], &[]),
            [state(7, 9000, true), state(8, 6000, false)]
        );
        assert_eq!(notes.tell(Vec::new(), &[]), []);
        // A returned state that was not stored is returned again.
        notes.hold(vec![state(7, 9000, true)]);
        assert_eq!(notes.tell(Vec::new(), &[]), [state(7, 9000, true)]);
        drop(other);
        assert!(notes.0.lock().from.is_empty());
    }
}
