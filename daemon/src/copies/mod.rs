//! Copies of snapshots from other stores.
//!
//! ```text
//! service::copies ──> Copies ──> job: state, counters, limit; tried again after pauses
//!                               └> remotes: where the other daemon is
//!                               └> transfer ──> remote_snapshot: what is copied, and held there
//!                                           └─> tree: nodes, from here or from the source
//!                                           └─> base: what a snapshot before it has here already
//!                                           └─> source: connections to the other daemon
//!                                           └─> claims: each missing chunk crosses once
//! ```
//!
//! What must hold: nothing that arrives is believed; it is taken in by the store's `Ingest`, like
//! an upload. What has been taken in stays, whatever becomes of the copy. A copy is complete when
//! the root that this store has built is the source's.

mod base;
mod claims;
mod job;
mod limiter;
mod patience;
mod remote_snapshot;
mod remotes;
mod source;
mod table;
mod transfer;
mod tree;

pub(crate) use job::{Begun, State, Status};
pub(crate) use remotes::Source;
pub(crate) use source::CopyError;
pub(crate) use table::{Copies, NewCopy};
pub(crate) use transfer::Estimate;
