//! Marks the records that are needed: those that roots reach.
//!
//! No view of the index is held while the marks are made. That is right because a row changes only
//! when its pack is swept or was found lost, and a new row points to where nothing was indexed
//! before (see [`ranks`](super::ranks)). So if a row points below the watermark whenever it is
//! looked up, it was there in the view of the ranks, and has the slot that was marked. Every other
//! row was made or moved since, and counts as needed.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use varve_content::RootId;

use super::{
    bits::Bits,
    pace::Pace,
    ranks::Ranks,
    roots::RootOwner,
    walk::{Reached, Visitor, walk},
};
use crate::{
    Result,
    engine::Engine,
    format::{Location, Name},
};

/// Bits of marks for each name.
pub(crate) const MARK_BITS: u64 = 1;

/// The records that some roots reach.
///
/// Marks of a walk that failed or was given up are useless: the walk has marked nodes whose
/// children it did not reach. So adding roots takes the marks, and gives them back when it is done.
#[derive(Debug)]
pub(crate) struct Live {
    ranks: Arc<Ranks>,
    marks: Arc<Marks>,
    /// Roots that were walked: all below them is marked.
    roots: HashSet<RootId>,
}

/// The marks themselves.
#[derive(Debug)]
pub(super) struct Marks {
    slots: Bits,
    /// Nodes that were indexed after the view of the ranks: few.
    late: Mutex<HashSet<Name>>,
}

impl Marks {
    pub(super) fn new(ranks: &Ranks) -> Self {
        Self {
            slots: Bits::new(ranks.len()),
            late: Mutex::default(),
        }
    }

    /// Returns true if a node was reached before.
    pub(super) fn has(&self, node: Reached<'_>) -> bool {
        match node {
            Reached::Slot(slot) => self.slots.contains(slot),
            Reached::Late(name) => self.late.lock().contains(name),
        }
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        self.slots.contains(slot)
    }
}

impl Visitor for Marks {
    fn node(&self, node: Reached<'_>) -> bool {
        match node {
            Reached::Slot(slot) => self.slots.insert(slot),
            Reached::Late(name) => self.late.lock().insert(*name),
        }
    }

    fn chunk(&self, slot: usize) {
        self.slots.insert(slot);
    }
}

/// Marks all that `roots` reach.
///
/// # Errors
///
/// [`Error::Damaged`](crate::Error::Damaged) for a node that cannot be read, with the owner of a
/// root that needs it: the nodes below are unknown, so nothing may be called garbage. Errors of
/// reading.
pub(crate) async fn mark(
    engine: &Arc<Engine>,
    ranks: &Arc<Ranks>,
    pace: &Pace,
    roots: &[RootOwner],
) -> Result<Live> {
    let live = Live {
        ranks: Arc::clone(ranks),
        marks: Arc::new(Marks::new(ranks)),
        roots: HashSet::new(),
    };
    live.and(engine, pace, roots).await
}

impl Live {
    /// Marks the records that more roots reach. The tree of a root never changes, so no root is
    /// walked twice: each group of condemned packs asks for all roots.
    ///
    /// # Errors
    ///
    /// As [`mark`].
    pub(crate) async fn and(
        mut self,
        engine: &Arc<Engine>,
        pace: &Pace,
        roots: &[RootOwner],
    ) -> Result<Self> {
        let new = roots.iter().filter(|it| self.roots.insert(it.root));
        let new: Vec<_> = new.cloned().collect();
        walk(engine, &self.ranks, pace, &new, &self.marks).await?;
        Ok(self)
    }

    /// Returns true if a record is needed, by its name and the place in its row now. Records that
    /// are unknown here count as needed: those indexed after the view of the ranks, and chunks of
    /// other slices.
    pub(crate) fn needs(&self, name: &Name, place: &Location) -> bool {
        if !self.ranks.is_below(place) || !self.ranks.covers(name) {
            return true;
        }
        let slot = self.ranks.slot(name);
        slot.is_none_or(|slot| self.marks.contains(slot))
    }

    pub(super) fn ranks(&self) -> &Arc<Ranks> {
        &self.ranks
    }

    /// The marks, for a caller that goes on from them.
    pub(super) fn shared_marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }
}
