//! Records on their way into packs that the index does not have yet, and what they forbid it to
//! say of packs.
//!
//! A flush makes durable all that was appended before it. That may include records that enter the
//! index only with a later batch: those of an append that is under way, or that ended just now. The
//! state of a pack must not cover these. Recovery surveys what is behind
//! [`PackState::indexed_bytes`], and garbage collection concludes from a row before it that the row
//! is as old as the state.
//!
//! So each append notes where its pack ends when it begins; its records come behind. The note stays
//! until the rows of its records are made, or until the append has failed or was given up. The
//! lowest note also says which packs new rows may point into.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::Mutex;

use super::Floors;
use crate::format::{PackId, PackKind, PackPhase, PackState};

/// Where records may be that the index does not have.
#[derive(Debug, Default)]
pub(super) struct Unindexed(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    /// Kind, pack number and offset in bytes of where appends began, with numbers of their own.
    from: BTreeSet<(PackKind, u64, u64, u64)>,
    last: u64,
    /// States that must not be told yet.
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

    /// What may be told of packs that are durable as `states` say, and of those that were held back
    /// before, in a batch that has the records of some appends.
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

    /// Keeps states that could not be told, for the next time. Without them a pack with a footer
    /// would count as open until a restart.
    pub(super) fn hold(&self, states: Vec<PackState>) {
        let mut notes = self.0.lock();
        for state in states {
            // One that was told in part is held as a whole already.
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
        // What was told and not kept is told again.
        notes.hold(vec![state(7, 9000, true)]);
        assert_eq!(notes.tell(Vec::new(), &[]), [state(7, 9000, true)]);
        drop(other);
        assert!(notes.0.lock().from.is_empty());
    }
}
