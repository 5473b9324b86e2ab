//! Uploads: chunks in, leaves in, commit.

#[expect(clippy::module_inception, reason = "the type that the folder is about")]
mod ingest;

pub use self::ingest::{IncomingChunk, Ingest, Lineage, NewSnapshot, PutOutcome};
