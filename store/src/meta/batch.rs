//! Changes that are made together.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Error, Result,
    format::{Change, LastRun, Location, Name, PackId, PackPhase, PackState, catalog_log::Record},
};

/// Changes to index and catalog that are made together. Of two changes under one key the later one
/// counts.
///
/// It is in memory as a whole, twice: here and in RocksDB. Some ten thousand entries are fine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Sorted, because that is fastest to search and to write.
    pub(super) rows: BTreeMap<Name, RowChange>,
    pub(super) packs: BTreeMap<PackId, Option<PackState>>,
    /// Packs whose rows may be replaced, even if the index still has the packs.
    pub(super) gone: BTreeSet<PackId>,
    pub(super) catalog: Vec<(u64, Record)>,
    /// The last garbage collection, from now on.
    pub(super) last_run: Option<Box<LastRun>>,
    /// A step on the way from a checkpoint of the catalog log to a catalog.
    pub(super) checkpoint: Option<CheckpointStep>,
}

/// A step from a checkpoint of the catalog log to a catalog. The sequence is 0 from the first step
/// to the last: a catalog that a crash left partly made is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CheckpointStep {
    /// All records go, and the sequence is 0.
    Clear,
    /// These records are added.
    Fill(Vec<Change>),
    /// All records are there: the sequence is this.
    Complete(u64),
}

/// A change of a row.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum RowChange {
    /// The row gets this place.
    Put(Location),
    /// The row gets this place, unless it points into a pack that is there.
    PutUnlessKept(Location),
    /// The row gets the place `to`, if it points into `from`.
    Move { from: PackId, to: Location },
    /// The row goes, if it points into `from`.
    Remove { from: PackId },
}

/// The effect of a change on the present row.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum RowFate {
    Stays,
    Becomes(Location),
    Goes,
}

impl RowChange {
    /// Returns the effect on a row. `is_there` returns true if a pack is there.
    pub(super) fn decide(
        self,
        row: Option<Location>,
        is_there: impl FnOnce(PackId) -> Result<bool>,
    ) -> Result<RowFate> {
        let points_into = |pack| row.is_some_and(|row| row.pack == pack);
        Ok(match self {
            Self::Put(location) => RowFate::Becomes(location),
            Self::PutUnlessKept(location) => match row {
                Some(row) if is_there(row.pack)? => RowFate::Stays,
                _ => RowFate::Becomes(location),
            },
            Self::Move { from, to } if points_into(from) => RowFate::Becomes(to),
            Self::Remove { from } if points_into(from) => RowFate::Goes,
            Self::Move { .. } | Self::Remove { .. } => RowFate::Stays,
        })
    }

    /// Returns true if it compares, and so may change nothing.
    const fn compares(self) -> bool {
        !matches!(self, Self::Put(_))
    }
}

/// The outcome of the comparing changes of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows that stayed as they were, ascending: nothing was put, moved or removed there.
    pub kept: Vec<Name>,
}

impl Outcome {
    /// Notes the effect on a row.
    pub(super) fn note(&mut self, name: Name, change: RowChange, fate: RowFate) {
        if fate == RowFate::Stays && change.compares() {
            self.kept.push(name);
        }
    }
}

impl Batch {
    /// Sets the place of a record, new or moved.
    pub fn put(&mut self, name: Name, location: Location) {
        debug_assert_eq!(
            name.kind(),
            location.payload.kind,
            "a name is where a record of its kind is"
        );
        self.rows.insert(name, RowChange::Put(location));
    }

    /// Adds a record. If the index has it in another pack, and knows that pack, the row stays: a
    /// row changes only when the pack that it points into goes.
    pub fn put_unless_kept(&mut self, name: Name, location: Location) {
        self.rows.insert(name, RowChange::PutUnlessKept(location));
    }

    /// Moves a record from one pack to a place in another. A row that does not point into `from`
    /// stays.
    pub fn move_from(&mut self, name: Name, from: PackId, to: Location) {
        self.rows.insert(name, RowChange::Move { from, to });
    }

    /// Removes a record from a pack. A row that does not point into that pack stays.
    pub fn remove_from(&mut self, name: Name, from: PackId) {
        self.rows.insert(name, RowChange::Remove { from });
    }

    /// Marks a pack as gone, even if the index still has it: rows that point into it [are not
    /// kept](Self::put_unless_kept).
    pub fn pack_is_gone(&mut self, pack: PackId) {
        self.gone.insert(pack);
    }

    /// Sets how far packs are indexed.
    pub fn packs<'a>(&mut self, states: impl IntoIterator<Item = &'a PackState>) {
        self.packs
            .extend(states.into_iter().map(|state| (state.pack, Some(*state))));
    }

    /// Forgets a pack that was removed, and that no row points into. Its number is not given again.
    pub fn forget_pack(&mut self, pack: PackId) {
        self.packs.insert(pack, None);
    }

    /// Sets the last garbage collection.
    pub fn last_run(&mut self, run: LastRun) {
        self.last_run = Some(Box::new(run));
    }

    /// Adds a record of the catalog log, with its number.
    pub fn catalog(&mut self, sequence: u64, record: Record) {
        self.catalog.push((sequence, record));
    }

    /// A batch that removes all records of the catalog, and sets its sequence to 0.
    #[must_use]
    pub fn clearing_the_catalog() -> Self {
        Self::of_step(CheckpointStep::Clear)
    }

    /// A batch of changes in a checkpoint of the log. The sequence of the catalog must be 0, and
    /// stays 0.
    #[must_use]
    pub fn of_checkpoint(changes: Vec<Change>) -> Self {
        Self::of_step(CheckpointStep::Fill(changes))
    }

    /// A batch that ends the changes of a checkpoint: the catalog, whose sequence must be 0, then
    /// has all records up to `base_sequence`.
    #[must_use]
    pub fn completing_checkpoint(base_sequence: u64) -> Self {
        Self::of_step(CheckpointStep::Complete(base_sequence))
    }

    fn of_step(step: CheckpointStep) -> Self {
        Self {
            checkpoint: Some(step),
            ..Self::default()
        }
    }

    /// The changes of a checkpoint in this batch, if any.
    pub(super) fn checkpoint_changes(&self) -> &[Change] {
        match &self.checkpoint {
            Some(CheckpointStep::Fill(changes)) => changes,
            _ => &[],
        }
    }

    /// Returns true if it removes all records of the catalog.
    pub(super) fn clears_the_catalog(&self) -> bool {
        self.checkpoint == Some(CheckpointStep::Clear)
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        let step = match &self.checkpoint {
            Some(CheckpointStep::Fill(changes)) => changes.len(),
            Some(CheckpointStep::Clear | CheckpointStep::Complete(_)) => 1,
            None => 0,
        };
        let run = usize::from(self.last_run.is_some());
        self.rows.len() + self.packs.len() + self.catalog.len() + run + step
    }

    /// Returns true if nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if a pack is there after this batch; `None` if the batch does not name it.
    pub(super) fn says_of(&self, pack: PackId) -> Option<bool> {
        if self.gone.contains(&pack) {
            return Some(false);
        }
        let state = self.packs.get(&pack)?;
        Some(state.is_some_and(|state| state.phase != PackPhase::Emptied))
    }

    /// The highest pack number in this batch; 0 if it has no packs.
    pub(super) fn last_pack_number(&self) -> u64 {
        let numbers = self.packs.keys().map(|pack| pack.number);
        numbers.max().unwrap_or_default()
    }

    /// The catalog sequence once this is applied behind `last`. A gap, or a record for the second
    /// time, would leave a catalog that differs from the log.
    pub(super) fn sequence_after(&self, last: u64) -> Result<u64> {
        let refused = |message| {
            Err(Error::Index {
                verb: "apply a checkpoint of the catalog log",
                message,
            })
        };
        match &self.checkpoint {
            None => {}
            Some(_) if !self.catalog.is_empty() => {
                return refused("records of the log do not go with it".to_owned());
            }
            Some(CheckpointStep::Clear) => return Ok(0),
            Some(_) if last != 0 => {
                return refused(format!("the catalog has records up to number {last}"));
            }
            Some(CheckpointStep::Fill(_)) => return Ok(0),
            Some(CheckpointStep::Complete(base_sequence)) => return Ok(*base_sequence),
        }
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
