//! A deduplicating store of block volume snapshots.
//!
//! Content is cut into chunks ([`varve_content`]), each kept once in an append-only pack file under
//! the BLAKE3 hash of its bytes, and a snapshot is the root of a Merkle tree over them. The store
//! knows nothing of gRPC, NBD or accounts.
//!
//! Invariants:
//!
//! - A snapshot is visible only after every byte of it is durable (`engine/commit.rs`).
//! - Bytes that were not checked against their id do not leave the store as content
//!   ([`VerifiedChunk`]).
//! - The packs and the catalog log are the truth: index and catalog can be rebuilt from them
//!   ([`rebuild`]).
//! - After a failed write or sync, the store writes nothing more.
//! - Memory, queues and concurrency are bounded ([`limits`]).
//! - Any future may be dropped at any point, without losing a promise.
//!
//! Futures that write must be polled within a tokio runtime: they spawn tasks for work that must
//! not stop half-way.

// Output goes through writers that report errors and escape: `println` panics instead.
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod error;
pub mod failpoints;
pub mod format;
pub mod io;
pub mod limits;
pub mod meta;
pub mod pack;

mod catalog_log;
mod engine;
mod gc;
mod ingest;
mod read;
mod recovery;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod volume;

pub use engine::{HeldPack, ListPlace, ListQuery, Options, RootPin, StoredChunk, VerifiedChunk};
pub use error::{Damage, Error, JournalLimit, Place, Result, Subject};
pub use format::{GcReport, LastRun};
pub use gc::{
    DeleteEstimate, GcAction, GcPhase, GcPlan, GcProgress, GcSettings, GcStatus, GcStep,
    StoreUsage, Usage,
};
pub use ingest::{IncomingChunk, Ingest, Lineage, NewSnapshot, PutOutcome};
pub use meta::{
    AccessKeyId, AccessKeyRecord, AccountId, AccountRecord, AccountState, Architecture,
    BlockDevice, BlockPublicAccess, BootMode, CatalogRecord, CopyId, CopyOutcome, CopyRecord,
    DeviceSource, Identity, ImageId, ImageKey, ImageRecord, PendingSnapshot, Platform, Protection,
    Quota, RemoteRecord, Scopes, SealedSecret, SecretHash, Sharing, SnapshotContent, SnapshotId,
    SnapshotKey, SnapshotOrigin, SnapshotRecord, SnapshotState, TokenId, TokenRecord, VolumeId,
    VolumeKey, VolumeRecord, fill_random, now_ns,
};
pub use read::{
    ChangeExtent, ContentReader, DiffExtent, Extent, Piece, ReadAhead, Segment, SegmentStream,
    SnapshotDiff, SnapshotReader,
};
pub use recovery::{
    Incomplete, MendedLog, RebuildReport, RecoveryReport, ShortLog, StrandedJournal, rebuild,
};
pub use store::{
    Deregistered, ExportedNode, Image, ImageChange, ImageState, NewDevice, NewImage, NewSource,
    NodeKey, Store, StoreStatus, check_snapshot_name, check_snapshot_tags,
};
pub use varve_content::tree::DiffKind;
pub use verify::{SnapshotVerify, VerifyProgress, Violation, ViolationKind};
pub use volume::{
    CloneSource, JournalReport, NewClone, NewSnapshots, NewVolume, SnapshotProgress, Volume,
    VolumeStatus,
};
