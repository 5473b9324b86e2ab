//! Where chunks and nodes are: the contract of an index.

use std::ops::ControlFlow;

use super::PackState;
use crate::{
    Result,
    format::{LastRun, Location, Name, PackId, PackKind},
};

/// Where things are.
///
/// A location is a hint, and the index is the authority: a row that was read may be moved or
/// removed before it is used, and who finds nothing where it points asks again.
pub trait Index {
    /// Where records are, in the order of `names`, which may repeat.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn lookup(&self, names: &[Name]) -> Result<Vec<Option<Location>>>;

    /// How far a pack is indexed; `None` for one that the index has not heard of.
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

    /// The highest number that a pack ever had in here, whether or not it is still there; 0 before
    /// the first. No number is given twice, or what is cached of one pack would be taken for
    /// another's.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn last_pack_number(&self) -> Result<u64>;

    /// The last garbage collection, as far as the index knows of one.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    fn last_run(&self) -> Result<Option<LastRun>>;

    /// Shows `look` the index as it is at one moment. Others go on meanwhile, writes included.
    ///
    /// # Errors
    ///
    /// Those of `look`, and [`Error::Shortage`](crate::Error::Shortage) when the index has to be
    /// opened again meanwhile: what was seen until then is right, and all of it has to be looked at
    /// once more.
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
