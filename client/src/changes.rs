//! The differences between two snapshots, or the data of one.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    tree::{self, diff_leaves},
};
use varve_proto::v1;

use crate::{
    cancel::unless_cancelled,
    connect::Client,
    content::Content,
    control::Control,
    error::{Error, ErrorKind, Result},
    limits::READ_LEAF_FETCHES,
    read::{Reader, Segment, Walk, batches},
};

/// The outcome of a list that was cancelled.
const CANCELLED: &str = "it was cancelled";

/// A list of changes: see [`Client::changes`].
#[must_use = "nothing is listed until this is run"]
pub struct Changes<'a> {
    client: &'a Client,
    snapshot: String,
    since: Option<String>,
    control: Control,
}

/// Bytes that differ between two snapshots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChangedExtent {
    /// Offset in the snapshots, in bytes.
    pub offset_bytes: u64,
    /// Length in bytes, more than 0. The extent ends within the larger of the two snapshots.
    pub len_bytes: u64,
    /// The kind of difference.
    pub kind: ChangeKind,
}

/// The kinds of difference between bytes of two snapshots.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum ChangeKind {
    /// Data in both, and different.
    Changed,
    /// A hole, or past the end, in the older; data in the newer.
    Added,
    /// Data in the older; a hole, or past the end, in the newer.
    Removed,
}

impl ChangeKind {
    /// The kind as one lowercase word: stable, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }
}

impl Client {
    /// Prepares a list of the changes of the snapshot with this name or id since another one.
    /// Without [`since`](Changes::since), all of its data is [`ChangeKind::Added`].
    ///
    /// This lists ranges only. For a backup that also reads them, use
    /// [`read_snapshot`](Self::read_snapshot), which has the same `since`.
    pub fn changes(&self, snapshot: impl Into<String>) -> Changes<'_> {
        Changes {
            client: self,
            snapshot: snapshot.into(),
            since: None,
            control: Control::default(),
        }
    }
}

impl Changes<'_> {
    /// Compares with the snapshot with this name or id, which need not be related.
    ///
    /// The daemon compares the two, and the client cannot check its answer.
    /// [`ReadSnapshot::since`](crate::ReadSnapshot::since) verifies its result. A stream of changes
    /// that is held and not taken can delay all other calls of this client.
    pub fn since(mut self, base: impl Into<String>) -> Self {
        self.since = Some(base.into());
        self
    }

    /// Sets the control of the call. Its progress counts bytes up to the end of the last extent.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Returns a stream of extents: ascending, and without an overlap. The unit is the chunk, so
    /// single blocks of a changed extent may be equal.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such snapshot, [`ErrorKind::Conflict`] if it is not
    /// completed. The stream ends with its first error: [`ErrorKind::Cancelled`],
    /// [`ErrorKind::Damaged`], or an error of the connection.
    pub async fn run(self) -> Result<ChangeStream> {
        let Self {
            client,
            snapshot,
            since,
            control,
        } = self;
        let cancel = control.cancel.clone();
        let (what, extents) = match since {
            Some(base) => {
                let what = format!("compare snapshots {base} and {snapshot}");
                let comparing = Box::pin(compared(client, &what, base, snapshot));
                let extents = unless_cancelled(&what, CANCELLED, &cancel, comparing).await?;
                (what, extents)
            }
            None => {
                let what = format!("list the data of snapshot {snapshot}");
                let finding = Box::pin(Content::find(client, &what, &snapshot));
                let content = unless_cancelled(&what, CANCELLED, &cancel, finding).await?;
                control.progress.set_total(content.root.size_bytes);
                let extents = data(client, &what, &content);
                (what, extents)
            }
        };
        let cancelled = stream::once(async move {
            cancel.cancelled().await;
            Err(Error::new(ErrorKind::Cancelled, what, CANCELLED))
        });
        let extents = extents.inspect_ok(move |extent| {
            let end_bytes = extent.offset_bytes.saturating_add(extent.len_bytes);
            control.progress.set_done(end_bytes);
        });
        Ok(ChangeStream(until_first_error(cancelled, extents)))
    }
}

/// Passes `extents` on, until it ends or one of the two streams has an error.
fn until_first_error(
    cancelled: impl Stream<Item = Result<ChangedExtent>> + Send + 'static,
    extents: impl Stream<Item = Result<ChangedExtent>> + Send + 'static,
) -> BoxStream<'static, Result<ChangedExtent>> {
    let streams = Some((cancelled.boxed(), extents.boxed()));
    stream::unfold(streams, |streams| async move {
        let (mut cancelled, mut extents) = streams?;
        let next = tokio::select! {
            biased;
            Some(error) = cancelled.next() => error,
            next = extents.next() => next?,
        };
        let streams = next.is_ok().then_some((cancelled, extents));
        Some((next, streams))
    })
    .fuse()
    .boxed()
}

/// The differences that the daemon reports.
async fn compared(
    client: &Client,
    what: &str,
    base: String,
    target: String,
) -> Result<BoxStream<'static, Result<ChangedExtent>>> {
    let request = v1::DiffSnapshotsRequest { base, target };
    let answers = client.snapshot_service().diff_snapshots(request).await;
    let answers = answers.map_err(|status| Error::rpc(what, status))?;
    let what = what.to_owned();
    // Everything before this was reported.
    let mut next_bytes = 0;
    let extents = answers.into_inner().flat_map(move |answer| {
        let extents = match answer {
            Ok(answer) => answer
                .extents
                .iter()
                .map(|extent| ChangedExtent::from_proto(&what, extent, &mut next_bytes))
                .collect(),
            Err(status) => vec![Err(Error::rpc(&what, status))],
        };
        stream::iter(extents)
    });
    Ok(extents.boxed())
}

/// The data of a snapshot, from its leaves.
fn data(
    client: &Client,
    what: &str,
    content: &Content,
) -> BoxStream<'static, Result<ChangedExtent>> {
    let size_bytes = content.root.size_bytes;
    let reader = Arc::new(Reader::new(client, what, content, None, 0..size_bytes));
    let walk = Walk::new(&reader, content, None);
    batches(Arc::clone(&reader), walk)
        .map_ok(move |batch| {
            let reader = Arc::clone(&reader);
            async move { reader.leaves(batch).await }
        })
        .try_buffered(READ_LEAF_FETCHES)
        .map_ok(move |segments| {
            let extents = segments.iter();
            let extents = extents.flat_map(|segment| of_segment(segment, size_bytes));
            let extents: Vec<_> = extents.collect();
            stream::iter(extents.into_iter().map(Ok))
        })
        .try_flatten()
        .boxed()
}

/// The differences in a segment of a snapshot of `size_bytes`.
fn of_segment(segment: &Segment, size_bytes: u64) -> Vec<ChangedExtent> {
    let first = u64::from(segment.number) * SEGMENT_BYTES as u64;
    let leaf = segment.leaf.as_ref().map(|(_, leaf)| leaf);
    let differences = diff_leaves(segment.base.as_ref(), leaf).into_iter();
    let extents = differences.map(|it| {
        let offset_bytes = first + u64::from(it.start_block) * BLOCK_BYTES as u64;
        let len_bytes = u64::from(it.blocks) * BLOCK_BYTES as u64;
        ChangedExtent {
            offset_bytes,
            // The volume may end within its last block.
            len_bytes: len_bytes.min(size_bytes.saturating_sub(offset_bytes)),
            kind: match it.kind {
                tree::DiffKind::Changed => ChangeKind::Changed,
                tree::DiffKind::Added => ChangeKind::Added,
                tree::DiffKind::Removed => ChangeKind::Removed,
            },
        }
    });
    extents.collect()
}

impl ChangedExtent {
    /// Decodes an extent, which must not begin before `next_bytes`, and moves that to its end.
    fn from_proto(what: &str, extent: &v1::DiffExtent, next_bytes: &mut u64) -> Result<Self> {
        let end_bytes = extent.offset_bytes.checked_add(extent.length_bytes);
        let end_bytes = end_bytes.filter(|end| *end > extent.offset_bytes);
        let Some(end_bytes) = end_bytes.filter(|_| extent.offset_bytes >= *next_bytes) else {
            let why = format!(
                "a difference of {} bytes at {}, after others up to {next_bytes}",
                extent.length_bytes, extent.offset_bytes
            );
            return Err(Error::protocol(what, why));
        };
        *next_bytes = end_bytes;
        let kind = match extent.kind() {
            v1::DiffKind::Changed => ChangeKind::Changed,
            v1::DiffKind::Added => ChangeKind::Added,
            v1::DiffKind::Removed => ChangeKind::Removed,
            v1::DiffKind::Unspecified => {
                let why = format!("a difference of unknown kind {}", extent.kind);
                return Err(Error::protocol(what, why));
            }
        };
        Ok(Self {
            offset_bytes: extent.offset_bytes,
            len_bytes: extent.length_bytes,
            kind,
        })
    }
}

/// The changes of a snapshot, in ascending order: see [`Changes::run`].
pub struct ChangeStream(BoxStream<'static, Result<ChangedExtent>>);

impl Stream for ChangeStream {
    type Item = Result<ChangedExtent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("snapshot", &self.snapshot)
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ChangeStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeStream").finish_non_exhaustive()
    }
}
