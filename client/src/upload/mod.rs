//! Making a snapshot of a source's bytes.
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

mod body;
mod buffers;

mod pipeline;
mod plan;
mod read;
mod session;
mod source;
mod spool;

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use varve_content::{block::MAX_VOLUME_BYTES, chunker::CHUNKER_VERSION};
use varve_proto::v1;

use self::read::Readers;
pub(crate) use self::{
    pipeline::LeafBatch,
    session::{Sent, Session, leaf_message},
};
pub use self::{
    source::{FileSource, Source},
    spool::{scratch_file, scratch_name, spool_dir},
};
use crate::{
    cancel::{Completing, NOTHING, unless_cancelled},
    connect::Client,
    error::{Error, ErrorKind, Result},
    limits::ABORT_TIMEOUT,
    progress::Progress,
    snapshots::Snapshot,
};

/// An upload to be: see [`Client::upload`].
#[must_use = "an upload does nothing until it is run"]
pub struct Upload<'a> {
    client: &'a Client,
    name: String,
    tags: BTreeMap<String, String>,
    progress: Arc<Progress>,
    cancel: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What an upload came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UploadReport {
    /// The snapshot that was made.
    pub snapshot: Snapshot,
    /// Bytes read from the source, holes left out.
    pub read_bytes: u64,
    /// Chunks that were sent.
    pub sent_chunks: u64,
    /// Bytes of those chunks as they were sent: compressed over a network.
    pub sent_bytes: u64,
    /// From the first call to the commit.
    pub elapsed: Duration,
}

impl Client {
    /// Prepares the upload of a source as a snapshot called `name`.
    ///
    /// Nothing is visible before the upload is complete. If it fails, or its future is dropped, what has
    /// arrived is kept for a while: running it again sends only what is missing.
    pub fn upload(&self, name: impl Into<String>) -> Upload<'_> {
        Upload {
            client: self,
            name: name.into(),
            tags: BTreeMap::new(),
            progress: Arc::default(),
            cancel: Box::pin(std::future::pending()),
        }
    }
}

impl Upload<'_> {
    /// Tags for the snapshot.
    pub fn tags(mut self, tags: BTreeMap<String, String>) -> Self {
        self.tags = tags;
        self
    }

    /// Counters to keep up to date.
    pub fn progress(mut self, progress: Arc<Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Gives the upload up, and tells the daemon so, when `cancel` completes.
    pub fn cancel_on(mut self, cancel: impl Future<Output = ()> + Send + 'static) -> Self {
        self.cancel = Box::pin(cancel);
        self
    }

    /// Uploads `source`.
    pub async fn run(self, source: impl Source) -> Result<UploadReport> {
        let started = Instant::now();
        let source: Arc<dyn Source> = Arc::new(source);
        let what = format!("import {} as {}", source.name(), self.name);
        let size_bytes = source.size_bytes();
        if size_bytes == 0 {
            return Err(Error::new(ErrorKind::File, what, "it is empty"));
        }
        if size_bytes > MAX_VOLUME_BYTES {
            let why = format!(
                "its {size_bytes} bytes are more than a volume may have ({MAX_VOLUME_BYTES})"
            );
            return Err(Error::new(ErrorKind::File, what, why));
        }
        self.progress.set_total(source.data_bytes_hint());
        let request = v1::BeginUploadRequest {
            name: self.name,
            size_bytes,
            chunker: Some(v1::ChunkerParameters {
                version: CHUNKER_VERSION,
            }),
            tags: self.tags,
            ..v1::BeginUploadRequest::default()
        };
        let mut cancel = self.cancel;
        let mut begin = Box::pin(Session::begin(self.client, request, what.clone()));
        let session = tokio::select! {
            session = &mut begin => session?,
            () = &mut cancel => {
                // It may have begun, and would keep its place among the daemon's uploads until it expires.
                if let Ok(Ok(session)) = timeout(ABORT_TIMEOUT, begin).await {
                    session.abort().await;
                }
                return Err(Error::new(ErrorKind::Cancelled, &what, NOTHING));
            }
        };
        let completing = Completing::default();
        let uploading = Box::pin(upload(&session, source, &self.progress, &completing));
        let uploaded = unless_cancelled(&what, NOTHING, &completing, cancel, uploading).await;
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

async fn upload(
    session: &Session,
    source: Arc<dyn Source>,
    progress: &Progress,
    completing: &Completing,
) -> Result<(Snapshot, pipeline::Finished)> {
    let readers = Readers::start(Arc::clone(&source), session.is_local());
    let finished = pipeline::run(session, readers, source.size_bytes(), progress).await?;
    source
        .check_unchanged()
        .map_err(|error| Error::file(format!("read {}", source.name()), error))?;
    progress.set_total(finished.read_bytes);
    completing.begin();
    Ok((session.commit(finished.root.id()).await?, finished))
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("name", &self.name)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}
