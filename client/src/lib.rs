//! The client of Varve: what backup tools use, and what `snapctl` is made of.
//!
//! A [`Client`] is a connection to a daemon. It uploads a [`Source`] as a snapshot, downloads a snapshot to a [`Sink`],
//! and looks after the snapshots and volumes of a store:
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
//! What must hold here:
//!
//! * **Chunks are cut and hashed as the daemon does it**: both use `varve-content`. No RocksDB underneath.
//! * **Nothing is half visible.** A snapshot appears when its upload commits, a file when its download is complete.
//! * **Memory is bounded**, whatever the size of a volume: see `limits`.
//! * **Errors say what to do about them**: see [`ErrorKind`].

// What is said goes through what can fail and escapes: `println` panics where nobody can be told.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod activity;
mod archive;
mod cancel;
mod connect;
mod convert;
mod copies;
mod download;
mod error;
mod limits;
mod pages;
mod progress;
mod remotes;
mod replication;
mod retry;
mod snapshots;
mod status;
mod unpack;
mod upload;
mod volumes;

pub use activity::Activity;
pub use archive::{
    ArchiveFacts, ArchiveRead, ArchiveReport, ArchiveWrite, RestoreReport, archive_head,
    is_archive, verify_archive,
};
pub use connect::{Client, Endpoint, Tls};
pub use copies::{Copy, CopyEstimate, CopySource, CopyState, NewCopy};
pub use download::{
    Download, DownloadReport, Existing, FileSink, NewFile, Sink, StreamSink, open_stream,
};
pub use error::{Error, ErrorKind, Result};
pub use progress::Progress;
pub use remotes::Remote;
pub use replication::{
    ChunkStream, FETCH_CHUNKS_MAX, FETCH_NODES_MAX, FetchedChunk, FetchedLeaf, WantedChunks,
};
pub use snapshots::{
    DiffExtent, DiffKind, Snapshot, SnapshotFilter, SnapshotProgress, SnapshotState,
    SnapshotVolume, VerifyProgress, Violation,
};
pub use status::Status;
pub use upload::{FileSource, Source, Upload, UploadReport, scratch_file, scratch_name, spool_dir};
pub use varve_content::RootId;
pub use volumes::{
    Attachment, JournalFound, NewClone, NewVolume, Volume, VolumeFilter, VolumeStatus,
};
