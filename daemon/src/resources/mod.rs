//! Scarce resources, and their division.
//!
//! | file | content |
//! | --- | --- |
//! | [`core_dumps`] | dumps of the daemon's memory: none |
//! | [`descriptors`] | open files: those of the store, and those left for connections |
//! | [`limits`] | the fewest with which a daemon starts |
//! | `shares` | places and bytes that several callers share, with a part for this machine |

pub mod core_dumps;
pub mod descriptors;
pub mod limits;
pub(crate) mod shares;
