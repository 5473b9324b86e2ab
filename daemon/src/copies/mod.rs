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
//! Invariants: nothing that arrives is trusted. The store's `Ingest` takes it in, like an upload,
//! and keeps it even if the copy fails. A copy is complete when the root that this store has built
//! is the source's.

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
