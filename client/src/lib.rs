//! The client library of Varve, for backup tools and other programs; `snapctl` is built on it.
//!
//! A [`Client`] is a connection to a daemon. It uploads a [`Source`] as a snapshot, downloads a
//! snapshot to a [`Sink`], reads ranges and changes, and manages the snapshots and volumes of a
//! store:
//!
//! ```no_run
//! use std::collections::BTreeMap;
//!
//! use futures::TryStreamExt;
//! use varve_client::{Client, Endpoint, Existing, FileSink, FileSource, Result, SnapshotFilter};
//!
//! async fn back_up() -> Result<()> {
//!     let client = Client::connect(&Endpoint::unix("/run/varve/grpc.sock")).await?;
//!
//!     // Holes of the file are not read; chunks that the store has are not sent.
//!     let tags = BTreeMap::from([("host".to_owned(), "web-1".to_owned())]);
//!     let disk = FileSource::open("/srv/images/web-1.img")?;
//!     let report = client.upload("web-1/monday").tags(tags).run(disk).await?;
//!     println!("{}: {} bytes are new", report.snapshot.id, report.snapshot.new_bytes);
//!
//!     let mut snapshots = std::pin::pin!(client.snapshots(SnapshotFilter::default()));
//!     while let Some(snapshot) = snapshots.try_next().await? {
//!         println!("{} {}", snapshot.name, snapshot.state.as_str());
//!     }
//!
//!     // Every byte is checked before the file takes its name.
//!     let copy = FileSink::create("/srv/restore/web-1.img", Existing::Keep)?;
//!     client.download("web-1/monday").run(copy).await?;
//!     Ok(())
//! }
//! ```
//!
//! # Where to begin
//!
//! | to | use |
//! | --- | --- |
//! | back up all of a snapshot | [`Client::download`], [`FileSink`] |
//! | read a range of a snapshot | [`Client::read_snapshot`], [`ReadSnapshot::range`] |
//! | back up what has changed | [`Client::read_snapshot`], [`ReadSnapshot::since`] |
//! | list what has changed | [`Client::changes`] |
//! | restore a full backup | [`Client::upload`], [`FileSource`] |
//! | restore changes on a full backup | [`Upload::base`], [`PatchSource`] |
//! | move snapshots without a network | [`Client::export_archive`], [`Client::import_archive`] |
//! | delete snapshots | [`Client::delete_snapshots`] |
//! | collect garbage, see what takes space | [`Client::run_gc`], [`Client::usage`] |
//! | make snapshots of volumes | [`Client::create_snapshots`], [`Client::wait_for_snapshots`] |
//! | act for an account by a token | [`Connector`], [`TokenSecret`] |
//! | manage accounts and tokens | [`Client::create_account`], [`Client::create_token`] |
//! | make keys for signed requests | [`Client::create_access_key`] |
//! | follow or end a long call | [`Control`] |
//!
//! The programs in `examples/` do these things from beginning to end.
//!
//! # Long calls
//!
//! A method of [`Client`] prepares each long call, further methods set it up, and `run` begins it.
//! Each takes a [`Control`], which shows the progress and cancels the call. Dropping the future
//! cancels it, too.
//!
//! Invariants:
//!
//! * **The client cuts and hashes chunks like the daemon**: both use `varve-content`. It does not
//!   link RocksDB.
//! * **Results are visible only when complete.** A snapshot appears when its upload commits, a file
//!   when its download is complete.
//! * **Memory is bounded** for volumes of any size: see `limits`.
//! * **Errors tell the caller what to do**: see [`ErrorKind`].

#![warn(missing_docs)]
// Output goes through functions that can fail and escape: `println` panics if it cannot write.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod access_keys;
mod accounts;
mod activity;
mod archive;
mod audit;
mod cancel;
mod changes;
mod connect;
mod content;
mod control;
mod convert;
mod copies;
mod credentials;
mod download;
mod error;
mod gc;
mod hold;
mod images;
mod limits;
mod pages;
mod progress;
mod quotas;
mod read;
mod remotes;
mod replication;
mod retry;
mod snapshots;
mod status;
mod unpack;
mod upload;
mod verify;
mod volumes;
mod wait;

pub use access_keys::{AccessKey, CreatedAccessKey};
pub use accounts::{
    ADMINISTRATOR, Account, AccountState, AccountUpdate, CreatedToken, NewAccount, NewToken, Token,
    TokenScope, WhoAmI,
};
pub use activity::Activity;
pub use archive::{
    ArchiveExport, ArchiveExportReport, ArchiveFacts, ArchiveImport, ArchiveImportReport,
    ArchiveVerify, archive_head, is_archive, verify_archive,
};
pub use audit::{AuditEvent, AuditPage, AuditQuery};
pub use cancel::Cancel;
pub use changes::{ChangeKind, ChangeStream, ChangedExtent, Changes};
pub use connect::{Client, Connector, Endpoint, Tls};
pub use control::Control;
pub use copies::{Copy, CopyEstimate, CopySource, CopyState, NewCopy};
pub use credentials::{SecretAccessKey, TokenSecret, read_secret_line};
pub use download::{
    Download, DownloadReport, Existing, FileSink, NewFile, Sink, StreamSink, open_stream,
};
pub use error::{Error, ErrorKind, Result};
pub use gc::{
    DeleteEstimate, GcAction, GcEnded, GcOptions, GcPhase, GcPlan, GcProgress, GcReport, GcRun,
    GcRunning, GcStatus, GcStep, StoreUsage, Usage, Usages,
};
pub use hold::SnapshotHold;
pub use images::{
    Architecture, BootMode, DeregisteredImage, DeviceSource, Image, ImageDevice, ImageFilter,
    ImageState, ImageUpdate, NewImage, Platform, Protection,
};
pub use limits::{
    DELETE_SNAPSHOTS_MAX, FETCH_CHUNKS_MAX, FETCH_NODES_MAX, HOLD_SILENCE, USAGE_RECORDS_MAX,
};
pub use progress::Progress;
pub use quotas::{AccountQuota, PublicAccessBlock, Quota};
pub use read::{ContentExtent, ContentStream, ReadSnapshot};
pub use remotes::Remote;
pub use replication::{ChunkRequest, ChunkStream, FetchedChunk, FetchedLeaf};
pub use snapshots::{
    Sharing, Snapshot, SnapshotDeletion, SnapshotFilter, SnapshotProgress, SnapshotState,
    SnapshotVolume,
};
pub use status::Status;
pub use upload::{
    FileSource, PatchSource, Source, Upload, UploadReport, scratch_file, scratch_name, spool_dir,
};
pub use varve_content::RootId;
pub use verify::{Verify, VerifyReport, Violation};
pub use volumes::{
    Attachment, JournalFound, NewClone, NewVolume, Volume, VolumeFilter, VolumeStatus,
};
pub use wait::{CopyWait, SnapshotWait};
