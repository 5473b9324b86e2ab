//! Reading a snapshot's content: all of it, a range, or the changes since another snapshot.
//!
//! ```text
//! walk:   segments of the range, or those that differ   inner nodes, from the root down
//! plan:   their leaves -> chunks and holes              a batch of leaves a call
//! fetch:  chunks, unpacked and checked                  a few groups in flight
//! stream: extents in ascending order
//! ```
//!
//! Invariants: no byte leaves that was not hashed up to the root. The nodes and chunks come from
//! the calls that copies and archives use, because the RPC `ReadSnapshot` returns plain bytes,
//! which the client cannot verify. Memory is bounded; see `limits`.

mod fetch;
mod plan;
mod walk;

use std::{
    fmt,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

pub(crate) use self::{
    fetch::{LeafChunks, fetch_plain},
    walk::{Reader, Segment, Walk, batches},
};
use crate::{
    cancel::unless_cancelled,
    connect::Client,
    content::Content,
    control::Control,
    error::{Error, ErrorKind, Result},
    limits::{READ_GROUPS, READ_LEAF_FETCHES},
    snapshots::Snapshot,
};

/// The outcome of a read that was cancelled.
const CANCELLED: &str = "it was cancelled";

/// A read of a snapshot: see [`Client::read_snapshot`].
#[must_use = "nothing is read until this is run"]
pub struct ReadSnapshot<'a> {
    client: &'a Client,
    snapshot: String,
    since: Option<String>,
    range: Option<Range<u64>>,
    control: Control,
}

/// Some bytes of a snapshot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ContentExtent {
    /// Offset in the snapshot, in bytes.
    pub offset_bytes: u64,
    /// Length in bytes, more than 0.
    pub len_bytes: u64,
    /// The bytes, `len_bytes` of them, verified; `None` for a hole, which reads as zeros.
    pub data: Option<Bytes>,
}

impl ContentExtent {
    fn hole(range: Range<u64>) -> Self {
        Self {
            offset_bytes: range.start,
            len_bytes: range.end - range.start,
            data: None,
        }
    }

    /// The end of the extent in the snapshot, in bytes.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.len_bytes
    }
}

impl Client {
    /// Prepares to read the content of the snapshot with this name or id: all of it, unless
    /// [`range`](ReadSnapshot::range) or [`since`](ReadSnapshot::since) restricts it.
    ///
    /// # Verification
    ///
    /// The client verifies all bytes and holes against the root id in the snapshot's record: it
    /// hashes the bytes to the ids of their chunks, and checks these through the leaves and inner
    /// nodes up to the root. So neither a damaged disk nor a faulty daemon can return other
    /// content, or leave out a change. The record itself is not verified: a caller that knows the
    /// root compares it with [`ContentStream::snapshot`].
    pub fn read_snapshot(&self, snapshot: impl Into<String>) -> ReadSnapshot<'_> {
        ReadSnapshot {
            client: self,
            snapshot: snapshot.into(),
            since: None,
            range: None,
            control: Control::default(),
        }
    }
}

impl ReadSnapshot<'_> {
    /// Reads only this range of the snapshot, in bytes. The client fetches whole chunks, of at most
    /// 256 KiB.
    pub fn range(mut self, range_bytes: Range<u64>) -> Self {
        self.range = Some(range_bytes);
        self
    }

    /// Reads only the differences to the snapshot with this name or id, related or not: chunks that
    /// it does not have at the same place, and holes where it has data.
    ///
    /// The unit is the chunk, so single blocks of the result may be equal in both. Data of the
    /// other snapshot behind the end of this one is left out: see [`Snapshot::size_bytes`].
    pub fn since(mut self, base: impl Into<String>) -> Self {
        self.since = Some(base.into());
        self
    }

    /// Sets the control of the read. Its progress counts bytes of the range, including holes and
    /// equal ranges.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Finds the snapshots, and returns a stream of extents: ascending, without an overlap, and
    /// without a gap unless [`since`](Self::since) leaves one. It reads ahead while it is polled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such snapshot, [`ErrorKind::Conflict`] if it is not
    /// completed, [`ErrorKind::Invalid`] for a range outside of it. The stream ends with its first
    /// error: [`ErrorKind::Damaged`] for content that does not match its id,
    /// [`ErrorKind::Cancelled`], or an error of the connection.
    pub async fn run(self) -> Result<ContentStream> {
        let what = format!("read snapshot {}", self.snapshot);
        let finding = Box::pin(async {
            let content = Content::find(self.client, &what, &self.snapshot).await?;
            let base = match &self.since {
                Some(since) => Some(Content::find(self.client, &what, since).await?),
                None => None,
            };
            Ok((content, base))
        });
        let cancel = &self.control.cancel;
        let (content, base) = unless_cancelled(&what, CANCELLED, cancel, finding).await?;
        let size_bytes = content.root.size_bytes;
        let range = self.range.unwrap_or(0..size_bytes);
        if range.start > range.end || range.end > size_bytes {
            let why = format!(
                "bytes {} to {} are not a range of its {size_bytes}",
                range.start, range.end
            );
            return Err(Error::new(ErrorKind::Invalid, what, why));
        }
        self.control.progress.set_total(range.end - range.start);
        let extents = extents(self.client, &what, &content, base.as_ref(), range.clone());
        Ok(ContentStream {
            snapshot: content.snapshot,
            extents: Followed {
                extents: Some(extents),
                next_bytes: range.start,
                range,
                fills_gaps: base.is_none(),
                after_gap: None,
                what,
                control: self.control,
            }
            .stream(),
        })
    }

    /// Reads all of it into memory, zeros for holes: for a range of a few megabytes.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run) and of its stream.
    pub async fn to_vec(mut self) -> Result<Vec<u8>> {
        self.since = None;
        let what = format!("read snapshot {}", self.snapshot);
        let mut stream = self.run().await?;
        let mut bytes = Vec::new();
        while let Some(extent) = stream.try_next().await? {
            // A hole may be as long as a volume, and a failed allocation would end the program.
            let len = usize::try_from(extent.len_bytes).unwrap_or(usize::MAX);
            bytes.try_reserve(len).map_err(|error| {
                let why = "it does not fit into memory";
                Error::new(ErrorKind::Invalid, &what, why).with_source(error)
            })?;
            match extent.data {
                Some(data) => bytes.extend_from_slice(&data),
                None => bytes.resize(bytes.len() + len, 0),
            }
        }
        Ok(bytes)
    }
}

/// The extents of a snapshot, in ascending order: see [`ReadSnapshot::run`].
pub struct ContentStream {
    snapshot: Snapshot,
    extents: BoxStream<'static, Result<ContentExtent>>,
}

impl ContentStream {
    /// The snapshot that is read, as of the start of the read.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl Stream for ContentStream {
    type Item = Result<ContentExtent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.extents.poll_next_unpin(context)
    }
}

/// The extents of `range` that have to be read, in ascending order. Without a base, holes are left
/// out.
fn extents(
    client: &Client,
    what: &str,
    content: &Content,
    base: Option<&Content>,
    range: Range<u64>,
) -> BoxStream<'static, Result<ContentExtent>> {
    let reader = Arc::new(Reader::new(client, what, content, base, range));
    let walk = Walk::new(&reader, content, base);
    let planned = batches(Arc::clone(&reader), walk)
        .map_ok({
            let reader = Arc::clone(&reader);
            move |batch| {
                let reader = Arc::clone(&reader);
                async move { Ok(fetch::grouped(reader.plan(batch).await?)) }
            }
        })
        .try_buffered(READ_LEAF_FETCHES)
        .map_ok(|groups| stream::iter(groups.into_iter().map(Ok)))
        .try_flatten();
    planned
        .map_ok(move |group| {
            let reader = Arc::clone(&reader);
            async move { fetch::fetch(&reader, group).await }
        })
        .try_buffered(READ_GROUPS)
        .map_ok(|extents| stream::iter(extents.into_iter().map(Ok)))
        .try_flatten()
        .boxed()
}

/// Extents on their way to the caller: without gaps, counted, and cancelled if need be.
struct Followed {
    /// `None` after the end: then nothing more is fetched, even if the caller keeps the stream.
    extents: Option<BoxStream<'static, Result<ContentExtent>>>,
    range: Range<u64>,
    /// Everything before this offset was returned.
    next_bytes: u64,
    /// True if gaps between extents are returned as holes.
    fills_gaps: bool,
    /// An extent that follows the hole returned last.
    after_gap: Option<ContentExtent>,
    what: String,
    control: Control,
}

impl Followed {
    fn stream(self) -> BoxStream<'static, Result<ContentExtent>> {
        stream::unfold(self, |mut followed| async move {
            let next = followed.next().await?;
            if next.is_err() {
                followed.extents = None;
            }
            Some((next, followed))
        })
        .fuse()
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<ContentExtent>> {
        let extent = match self.after_gap.take() {
            Some(extent) => Some(extent),
            None => {
                let extents = self.extents.as_mut()?;
                let next = tokio::select! {
                    biased;
                    () = self.control.cancel.cancelled() => {
                        let error = Error::new(ErrorKind::Cancelled, &self.what, CANCELLED);
                        return Some(Err(error));
                    }
                    next = extents.next() => next,
                };
                match next {
                    Some(Ok(extent)) => Some(extent),
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        self.extents = None;
                        None
                    }
                }
            }
        };
        let gap = self.next_bytes..extent.as_ref().map_or(self.range.end, |it| it.offset_bytes);
        if self.fills_gaps && !gap.is_empty() {
            self.after_gap = extent;
            return Some(Ok(self.given(ContentExtent::hole(gap))));
        }
        match extent {
            Some(extent) => Some(Ok(self.given(extent))),
            None => {
                self.count(self.range.end);
                None
            }
        }
    }

    fn given(&mut self, extent: ContentExtent) -> ContentExtent {
        self.count(extent.end_bytes());
        extent
    }

    fn count(&mut self, end_bytes: u64) {
        self.next_bytes = end_bytes;
        let done_bytes = end_bytes - self.range.start;
        self.control.progress.set_done(done_bytes);
    }
}

impl fmt::Debug for ReadSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadSnapshot")
            .field("snapshot", &self.snapshot)
            .field("since", &self.since)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ContentStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentStream")
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}
