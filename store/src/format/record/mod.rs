//! The records of the catalog, one file per noun.

pub mod copy;
pub mod remote;
pub mod snapshot;
pub mod volume;
