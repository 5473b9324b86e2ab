//! Uploading the bytes of a source as a snapshot.
//!
//! ```text
//! source -> plan: jobs of whole segments, holes left out
//!        -> read, cut, hash            a few threads
//!        -> ask what is missing        many jobs in flight
//!        -> send what is               in the order of the volume
//!        -> leaves, when their chunks are at the daemon
//!        -> commit by root
//! ```
//!
//! Memory is bounded by the buffers that are read into; see `limits`.

mod base;
mod body;
mod buffers;
mod patch;
mod pipeline;
mod plan;
mod read;
mod session;
mod source;
mod spool;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use varve_content::{block::MAX_VOLUME_BYTES, chunker::CHUNKER_VERSION};
use varve_proto::v1;

use self::read::Readers;
pub use self::{
    patch::PatchSource,
    source::{FileSource, Source},
    spool::{scratch_file, scratch_name, spool_dir},
};
pub(crate) use self::{
    pipeline::LeafBatch,
    session::{Sent, Session, leaf_message},
};
use crate::{
    cancel::{Completing, NOTHING_VISIBLE, unless_cancelled, until_completing},
    connect::Client,
    content::Content,
    control::Control,
    error::{Error, ErrorKind, Result},
    snapshots::Snapshot,
};

/// An upload: see [`Client::upload`].
#[must_use = "an upload does nothing until it is run"]
pub struct Upload<'a> {
    client: &'a Client,
    name: String,
    tags: BTreeMap<String, String>,
    base: Option<Base>,
    control: Control,
}

/// A snapshot that an upload builds on.
enum Base {
    /// The source has the changes to it.
    Changed(String),
    /// The source has all bytes, and is similar.
    Similar(String),
}

/// The outcome of an upload.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UploadReport {
    /// The snapshot that was made.
    pub snapshot: Snapshot,
    /// Bytes read from the source, without holes.
    pub read_bytes: u64,
    /// Chunks that were sent.
    pub sent_chunks: u64,
    /// Bytes of those chunks as they were sent: compressed, unless the daemon is on this machine.
    pub sent_bytes: u64,
    /// Time from the first call to the commit.
    pub elapsed: Duration,
}

impl Client {
    /// Prepares the upload of a source as a snapshot called `name`.
    ///
    /// Nothing is visible before the upload is complete. If it fails, or its future is dropped, the
    /// daemon keeps the chunks that have arrived: another upload sends only those that are missing.
    pub fn upload(&self, name: impl Into<String>) -> Upload<'_> {
        Upload {
            client: self,
            name: name.into(),
            tags: BTreeMap::new(),
            base: None,
            control: Control::default(),
        }
    }
}

impl Upload<'_> {
    /// Tags for the snapshot.
    pub fn tags(mut self, tags: BTreeMap<String, String>) -> Self {
        self.tags = tags;
        self
    }

    /// Uploads changes to the snapshot with this name or id: the data of the source, including
    /// zeros, replaces that snapshot's bytes, and everything else stays the same. The sizes may
    /// differ.
    ///
    /// Segments of 8 MiB without a change are neither read nor transferred.
    pub fn base(mut self, snapshot: impl Into<String>) -> Self {
        self.base = Some(Base::Changed(snapshot.into()));
        self
    }

    /// Does not send what the snapshot with this name or id has in the same segment of 8 MiB. The
    /// source has all bytes, as without a base, and is read as a whole.
    ///
    /// The administrator does not need this, because it sends nothing that the store has. Other
    /// accounts prove by this that they have the content.
    pub fn similar_to(mut self, snapshot: impl Into<String>) -> Self {
        self.base = Some(Base::Similar(snapshot.into()));
        self
    }

    /// Sets the control of the upload. Its progress counts bytes of data, without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Uploads `source`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::File`] for a source that is empty, is larger than the largest volume, cannot be
    /// read, or has changed meanwhile; [`ErrorKind::AlreadyExists`] if the name is taken;
    /// [`ErrorKind::NotFound`] if the base does not exist, and [`ErrorKind::Conflict`] if it is not
    /// completed; [`ErrorKind::OutOfSpace`], [`ErrorKind::Cancelled`], and errors of the
    /// connection. Nothing is visible then.
    pub async fn run(self, source: impl Source) -> Result<UploadReport> {
        let started = Instant::now();
        let Control { progress, cancel } = self.control;
        let source: Arc<dyn Source> = Arc::new(source);
        let what = format!("import {} as {}", source.name(), self.name);
        let size_bytes = source.size_bytes();
        if size_bytes == 0 {
            return Err(Error::new(ErrorKind::File, what, "it is empty"));
        }
        if size_bytes > MAX_VOLUME_BYTES {
            let why =
                format!("its {size_bytes} bytes exceed the largest volume ({MAX_VOLUME_BYTES})");
            return Err(Error::new(ErrorKind::File, what, why));
        }
        progress.set_total(source.data_bytes_hint());
        let request = v1::BeginUploadRequest {
            name: self.name,
            size_bytes,
            chunker: Some(v1::ChunkerParameters {
                version: CHUNKER_VERSION,
            }),
            tags: self.tags,
            base: match &self.base {
                Some(Base::Changed(base) | Base::Similar(base)) => base.clone(),
                None => String::new(),
            },
            ..v1::BeginUploadRequest::default()
        };
        let client = self.client;
        let base = match &self.base {
            Some(Base::Changed(base)) => {
                let finding = Box::pin(Content::find(client, &what, base));
                let outcome = NOTHING_VISIBLE;
                Some(unless_cancelled(&what, outcome, &cancel, finding).await?)
            }
            Some(Base::Similar(_)) | None => None,
        };
        let begin = Session::begin_unless_cancelled(client, request, what.clone(), &cancel);
        let session = begin.await?;
        let completing = Completing::default();
        let uploading = Box::pin(async {
            let finished = match &base {
                Some(base) => {
                    let source = Arc::clone(&source);
                    base::run(client, &session, base, source, &progress).await?
                }
                None => {
                    let readers = Readers::start(Arc::clone(&source), session.is_local());
                    pipeline::run(&session, readers, size_bytes, &progress).await?
                }
            };
            source
                .check_unchanged()
                .map_err(|error| Error::file(format!("read {}", source.name()), error))?;
            progress.set_total(finished.read_bytes);
            completing.begin();
            Ok((session.commit(finished.root.id()).await?, finished))
        });
        let uploaded =
            until_completing(&what, NOTHING_VISIBLE, &completing, &cancel, uploading).await;
        match uploaded {
            Ok((snapshot, finished)) => Ok(UploadReport {
                snapshot,
                read_bytes: finished.read_bytes,
                sent_chunks: finished.sent.chunks,
                sent_bytes: finished.sent.payload_bytes,
                elapsed: started.elapsed(),
            }),
            Err(error) => {
                if error.kind() != ErrorKind::Unreachable {
                    session.abort().await;
                }
                Err(error)
            }
        }
    }
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("name", &self.name)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}
