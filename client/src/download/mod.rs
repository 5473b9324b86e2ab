//! Writing a snapshot's bytes to a sink.
//!
//! ```text
//! daemon -> receive: right order, every chunk has its place, the root is the snapshot's
//!        -> write: decode, check the id, write        as many threads as cores
//!        -> finish, once everything was checked
//! ```
//!
//! Invariants: no byte that was not checked against its id reaches a sink, and a sink is finished
//! only if all bytes are there and their root is the one on record. Memory is bounded by the
//! messages under way; see `limits`.

mod file;
mod new_file;
mod receive;
mod sink;
mod write;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesOrdered};
use tokio::task;
use tonic::Streaming;
use varve_proto::v1::{self, download_response::Part};

pub use self::{
    file::FileSink,
    new_file::{Existing, NewFile, open_stream},
    sink::{Sink, StreamSink},
};
use self::{
    receive::{Receiver, Work},
    write::ChunkWriter,
};
use crate::{
    cancel::{Completing, until_completing},
    connect::Client,
    control::Control,
    error::{Error, Result},
    limits::{DECODERS_MAX, worker_threads},
    progress::Progress,
    retry,
    snapshots::Snapshot,
};

/// A download: see [`Client::download`].
#[must_use = "a download does nothing until it is run"]
pub struct Download<'a> {
    client: &'a Client,
    snapshot: String,
    control: Control,
}

/// The outcome of a download.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DownloadReport {
    /// The snapshot that was written.
    pub snapshot: Snapshot,
    /// Bytes of data written, without holes.
    pub data_bytes: u64,
    /// Bytes of chunks as received, most of them compressed.
    pub received_bytes: u64,
    /// Time from the first call until the sink was finished.
    pub elapsed: Duration,
}

impl Client {
    /// Prepares the download of the snapshot with this name or id: all of its content, checked
    /// against its root, to a file, device or pipe.
    pub fn download(&self, snapshot: impl Into<String>) -> Download<'_> {
        Download {
            client: self,
            snapshot: snapshot.into(),
            control: Control::default(),
        }
    }
}

impl Download<'_> {
    /// Sets the control of the download. Its progress counts bytes of data, without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Writes the snapshot to `sink`. The sink is finished only if this succeeds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such snapshot,
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if it is not completed,
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) for content that does not match its id,
    /// [`ErrorKind::File`](crate::ErrorKind::File) or
    /// [`ErrorKind::OutOfSpace`](crate::ErrorKind::OutOfSpace) from the sink,
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled); errors of the connection.
    pub async fn run(self, sink: impl Sink) -> Result<DownloadReport> {
        let what = format!("export {} to {}", self.snapshot, sink.name());
        let sink: Arc<dyn Sink> = Arc::new(sink);
        let Control { progress, cancel } = self.control;
        let completing = Completing::default();
        let snapshot = self.snapshot;
        let downloading = Box::pin(download(
            self.client,
            snapshot,
            &what,
            sink,
            &progress,
            &completing,
        ));
        let outcome = "it was cancelled";
        until_completing(&what, outcome, &completing, &cancel, downloading).await
    }
}

async fn download(
    client: &Client,
    snapshot: String,
    what: &str,
    sink: Arc<dyn Sink>,
    progress: &Progress,
    completing: &Completing,
) -> Result<DownloadReport> {
    let started = Instant::now();
    let request = v1::DownloadRequest {
        snapshot,
        plain: false,
    };
    let answer = retry::while_busy(|| {
        let (mut content, request) = (client.content_service(), request.clone());
        async move { content.download(request).await }
    });
    let mut parts = answer
        .await
        .map_err(|status| Error::rpc(what, status))?
        .into_inner();
    let snapshot = match next_part(&mut parts, what).await? {
        Some(Part::Snapshot(snapshot)) => Snapshot::from_proto(what, Some(snapshot))?,
        _ => {
            return Err(Error::protocol(
                what,
                "a download that does not begin with its snapshot",
            ));
        }
    };
    progress.set_total(snapshot.data_bytes);
    let size_bytes = snapshot.size_bytes;
    let mut receiver = Receiver::new(snapshot, what.to_owned())?;
    let writer = Arc::new(ChunkWriter::new(sink, what.to_owned(), size_bytes));
    blocking(&writer, move |writer| {
        writer
            .sink
            .begin(size_bytes)
            .map_err(|error| Error::file(&writer.what, error))
    })
    .await?;

    let mut writing = Writing::new(Arc::clone(&writer), progress);
    let mut received_bytes = 0;
    while let Some(part) = next_part(&mut parts, what).await? {
        let work = match part {
            Part::Leaf(leaf) => receiver.leaf(leaf)?,
            Part::Chunks(batch) => {
                received_bytes += batch
                    .chunks
                    .iter()
                    .map(|chunk| chunk.payload.len() as u64)
                    .sum::<u64>();
                receiver.chunks(batch.chunks)?
            }
            Part::Snapshot(_) => {
                return Err(Error::protocol(what, "a second snapshot in a download"));
            }
        };
        writing.add(work).await?;
    }
    let (snapshot, rest) = receiver.finish()?;
    writing.add(rest).await?;
    let data_bytes = writing.finish().await?;
    completing.begin();
    blocking(&writer, |writer| {
        let failed = |error| Error::file(format!("complete {}", writer.sink.name()), error);
        writer.sink.finish().map_err(failed)
    })
    .await?;
    Ok(DownloadReport {
        snapshot,
        data_bytes,
        received_bytes,
        elapsed: started.elapsed(),
    })
}

async fn next_part(
    parts: &mut Streaming<v1::DownloadResponse>,
    what: &str,
) -> Result<Option<Part>> {
    match parts.message().await {
        Ok(None) => Ok(None),
        Ok(Some(v1::DownloadResponse { part: Some(part) })) => Ok(Some(part)),
        Ok(Some(v1::DownloadResponse { part: None })) => {
            Err(Error::protocol(what, "a part of unknown kind"))
        }
        Err(status) => Err(Error::rpc(what, status)),
    }
}

/// Work on its way through the threads, oldest first.
struct Writing<'a> {
    writer: Arc<ChunkWriter>,
    progress: &'a Progress,
    under_way: FuturesOrdered<Running<Written>>,
    settling: Option<Running<()>>,
    threads: usize,
    data_bytes: u64,
}

/// Work that a thread does.
type Running<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Work that is done.
struct Written {
    data_bytes: u64,
    settled_bytes: Option<u64>,
}

impl<'a> Writing<'a> {
    fn new(writer: Arc<ChunkWriter>, progress: &'a Progress) -> Self {
        Self {
            writer,
            progress,
            under_way: FuturesOrdered::new(),
            settling: None,
            threads: worker_threads(DECODERS_MAX),
            data_bytes: 0,
        }
    }

    /// Starts work, once a thread is free for it.
    async fn add(&mut self, work: Work) -> Result<()> {
        while self.under_way.len() > self.threads {
            self.settle_oldest().await?;
        }
        if !work.is_empty() {
            let settled_bytes = work.settled_bytes;
            let writing = blocking(&self.writer, move |writer| writer.write(&work));
            self.under_way.push_back(Box::pin(async move {
                Ok(Written {
                    data_bytes: writing.await?,
                    settled_bytes,
                })
            }));
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<u64> {
        while !self.under_way.is_empty() {
            self.settle_oldest().await?;
        }
        self.settled().await?;
        Ok(self.data_bytes)
    }

    async fn settle_oldest(&mut self) -> Result<()> {
        let Some(written) = self.under_way.next().await else {
            return Ok(());
        };
        let written = written?;
        self.data_bytes += written.data_bytes;
        self.progress.add_done(written.data_bytes);
        if let Some(end_bytes) = written.settled_bytes {
            self.settle(end_bytes).await?;
        }
        Ok(())
    }

    /// Reports settled bytes to the sink, which works on them while other work continues.
    async fn settle(&mut self, end_bytes: u64) -> Result<()> {
        self.settled().await?;
        self.settling = Some(Box::pin(blocking(&self.writer, move |writer| {
            writer
                .sink
                .settled(end_bytes)
                .map_err(|error| writer.failed(end_bytes, error))
        })));
        Ok(())
    }

    /// Waits until the sink is done with the last report.
    async fn settled(&mut self) -> Result<()> {
        match self.settling.take() {
            Some(settling) => settling.await,
            None => Ok(()),
        }
    }
}

/// Runs `work` on a thread that may block. It starts at once, not when it is first polled.
fn blocking<T: Send + 'static>(
    writer: &Arc<ChunkWriter>,
    work: impl FnOnce(&ChunkWriter) -> Result<T> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send + 'static {
    let writer = Arc::clone(writer);
    let what = writer.what.clone();
    let running = task::spawn_blocking(move || work(&writer));
    async move {
        running
            .await
            .map_err(|error| Error::internal(what, "a writing thread broke").with_source(error))?
    }
}

impl fmt::Debug for Download<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}
