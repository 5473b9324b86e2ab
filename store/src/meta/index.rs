//! The contract of an index: the places of chunks and nodes.

use std::ops::ControlFlow;

use super::PackState;
use crate::{
    Result,
    format::{LastRun, Location, Name, PackId, PackKind},
};

/// The places of records, and the states of packs.
///
/// A location is a hint, and the index is the authority: a row may be moved or removed between its
/// look-up and its use. A reader that finds nothing at the location asks again.
pub trait Index {
    /// Places of records, in the order of `names`, which may repeat.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn lookup(&self, names: &[Name]) -> Result<Vec<Option<Location>>>;

    /// How far a pack is indexed; `None` for a pack that the index lacks.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>>;

    /// The same of all packs, by number.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn pack_states(&self) -> Result<Vec<PackState>>;

    /// The highest number that a pack ever had in here, even if that pack is gone; 0 before the
    /// first. No number is given twice, or cached data of one pack would be taken for another's.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn last_pack_number(&self) -> Result<u64>;

    /// The last garbage collection, if the index knows one.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn last_run(&self) -> Result<Option<LastRun>>;

    /// Shows `look` the index as it is at one moment. Others go on meanwhile, writes included.
    ///
    /// # Errors
    ///
    /// Errors of `look`, and [`Error::Shortage`](crate::Error::Shortage) when the index has to be
    /// opened again meanwhile: the view until then was right, but the look must start over.
    fn view(&self, look: &mut dyn FnMut(&dyn IndexView) -> Result<()>) -> Result<()>;
}

/// An index at one moment.
pub trait IndexView {
    /// How far packs were indexed at that moment, by number.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn pack_states(&self) -> Result<Vec<PackState>>;

    /// Gives `row` all rows of records in packs of a kind whose names have at least the bytes
    /// `from`, ascending by the bytes of their names, until it breaks off.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn scan_from(
        &self,
        kind: PackKind,
        from: &[u8; 32],
        row: &mut dyn FnMut(Name, Location) -> ControlFlow<()>,
    ) -> Result<()>;

    /// The same from the first row on.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn scan(
        &self,
        kind: PackKind,
        row: &mut dyn FnMut(Name, Location) -> ControlFlow<()>,
    ) -> Result<()> {
        self.scan_from(kind, &[0; 32], row)
    }
}
