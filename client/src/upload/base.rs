//! Upload of the changes since a snapshot that the store has.
//!
//! ```text
//! base:   leaves, in ascending order ─┬─> those of segments without a change: as they are
//! source: changed ranges ─────────────┴─> the others: base's bytes, changes over them, cut again
//! ```
//!
//! Invariants: the result equals that of an upload of all the bytes, so that the root depends on
//! the content alone. Only segments with a change cross the network.

use std::{collections::HashSet, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use tokio::task;
use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES, segment_blocks, segment_count},
    chunk_id::ChunkId,
    chunker::cut_segment,
    tree::{Leaf, LeafEntry, LeafWalk, NodeId, TreeBuilder},
};
use varve_proto::v1;

use super::{
    pipeline::{Finished, LeafBatch},
    read::CutChunk,
    session::{Sent, Session},
    source::Source,
};
use crate::{
    connect::Client,
    content::{Content, Nodes, check_end, walk_error},
    error::{Error, ErrorKind, Result},
    limits::{BASED_SEGMENTS, FETCH_NODES_MAX},
    progress::Progress,
    read::{LeafChunks, fetch_plain},
};

/// Uploads what `source` changes of `base`.
pub(super) async fn run(
    client: &Client,
    session: &Session,
    base: &Content,
    source: Arc<dyn Source>,
    progress: &Progress,
) -> Result<Finished> {
    let based = Based {
        client,
        session,
        base,
        of: base.origin(None),
        size_bytes: source.size_bytes(),
        source,
    };
    based.run(progress).await
}

struct Based<'a> {
    client: &'a Client,
    session: &'a Session,
    base: &'a Content,
    /// The base, for requests.
    of: Vec<String>,
    source: Arc<dyn Source>,
    size_bytes: u64,
}

/// Segments, in ascending order.
enum Part {
    /// Segments without a change: they are as in the base.
    Kept(Vec<(u32, NodeId)>),
    /// A segment with a change, and its leaf in the base.
    Changed(u32, Option<NodeId>),
}

/// Leaves whose chunks the daemon has.
#[derive(Default)]
struct Accepted {
    leaves: Vec<(u32, Leaf)>,
    sent: Sent,
    read_bytes: u64,
}

/// A segment that was cut again.
struct Recut {
    /// `None` if only zeros are left.
    leaf: Option<Leaf>,
    chunks: Vec<CutChunk>,
    read_bytes: u64,
}

impl Based<'_> {
    async fn run(&self, progress: &Progress) -> Result<Finished> {
        let refused = |error: varve_content::tree::TreeError| {
            Error::internal("build the tree", error.to_string()).with_source(error)
        };
        let mut tree = TreeBuilder::new(self.size_bytes).map_err(refused)?;
        let mut waiting = LeafBatch::default();
        let mut sent = Sent::default();
        let mut read_bytes = 0;
        let parts = Parts::begin(self).await?;
        let mut accepted = self.all_accepted(parts);
        while let Some(next) = accepted.try_next().await? {
            sent.chunks += next.sent.chunks;
            sent.payload_bytes += next.sent.payload_bytes;
            read_bytes += next.read_bytes;
            progress.add_done(next.read_bytes);
            for (segment, leaf) in next.leaves {
                tree.push(segment, leaf.id()).map_err(refused)?;
                waiting.push(segment, &leaf);
            }
            // The daemon builds the tree for itself; only the root is compared.
            drop(tree.take_finished());
            if let Some(full) = waiting.take_full() {
                self.put(full).await?;
            }
        }
        let rest = waiting.rest();
        if !rest.is_empty() {
            self.put(rest).await?;
        }
        let (root, _) = tree.finish();
        Ok(Finished {
            root,
            sent,
            read_bytes,
        })
    }

    /// All segments, in ascending order, with several under way at one time.
    fn all_accepted<'b>(&'b self, parts: Parts<'b>) -> BoxStream<'b, Result<Accepted>> {
        stream::try_unfold(parts, |mut parts| async move {
            let next = parts.next().await?;
            Ok(next.map(|part| (part, parts)))
        })
        .map_ok(|part| self.accepted(part))
        .try_buffered(BASED_SEGMENTS)
        .boxed()
    }

    async fn put(&self, leaves: Vec<v1::Leaf>) -> Result<()> {
        let put = self.session.put_leaves(leaves).await;
        put.map_err(|error| match error.kind() {
            ErrorKind::Invalid => {
                let why = format!(
                    "{}; the content of {} is not complete in the store",
                    error.why(),
                    self.base.snapshot.name
                );
                Error::new(ErrorKind::Conflict, error.what(), why)
            }
            _ => error,
        })
    }

    /// Sends those chunks of some segments that the daemon lacks.
    async fn accepted(&self, part: Part) -> Result<Accepted> {
        match part {
            Part::Kept(kept) => {
                let fetched = self.client.fetch_leaves(&self.of, &kept).await?;
                let leaves = kept.into_iter().zip(fetched);
                let leaves = leaves.map(|((segment, id), fetched)| {
                    self.check_end(segment, id, &fetched.leaf)?;
                    Ok((segment, fetched.leaf))
                });
                Ok(Accepted {
                    leaves: leaves.collect::<Result<_>>()?,
                    ..Accepted::default()
                })
            }
            Part::Changed(segment, base) => {
                let bytes = self.base_bytes(segment, base).await?;
                let source = Arc::clone(&self.source);
                let size_bytes = self.size_bytes;
                let recut =
                    task::spawn_blocking(move || recut(&*source, size_bytes, segment, bytes));
                let broke = |error| {
                    Error::internal(&self.session.what, "a reading thread broke").with_source(error)
                };
                let recut = recut.await.map_err(broke)??;
                Ok(Accepted {
                    sent: self.session.send(recut.chunks, &[segment]).await?,
                    leaves: recut.leaf.map(|leaf| (segment, leaf)).into_iter().collect(),
                    read_bytes: recut.read_bytes,
                })
            }
        }
    }

    /// Checks that a leaf of the base ends within it.
    fn check_end(&self, segment: u32, id: NodeId, leaf: &Leaf) -> Result<()> {
        let what = &self.session.what;
        check_end(what, self.base.root.size_bytes, segment, id, leaf)
    }

    /// The base's bytes of a segment, as far as the volume reaches; zeros where the base has none.
    async fn base_bytes(&self, segment: u32, leaf: Option<NodeId>) -> Result<Vec<u8>> {
        let blocks = segment_blocks(self.size_bytes, segment);
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        let Some(id) = leaf else {
            return Ok(bytes);
        };
        let what = &self.session.what;
        let fetched = self.client.fetch_leaves(&self.of, &[(segment, id)]).await?;
        let leaf = fetched.into_iter().next().map(|fetched| fetched.leaf);
        let leaf = leaf.ok_or_else(|| Error::protocol(what, "it sent no leaf"))?;
        self.check_end(segment, id, &leaf)?;
        let mut seen = HashSet::new();
        let entries = (0u32..).zip(leaf.entries());
        let distinct = entries.filter(|(_, entry)| seen.insert(entry.chunk));
        let wanted = LeafChunks {
            leaf: id,
            segment,
            chunks: distinct
                .map(|(position, entry)| (position, entry.chunk, entry.blocks))
                .collect(),
        };
        let plain = fetch_plain(self.client, what, &self.of, vec![wanted]).await?;
        for entry in leaf.entries() {
            let chunk = plain.chunk(what, entry.chunk, entry.blocks)?;
            let at = entry.start_block as usize * BLOCK_BYTES;
            // A volume that has become smaller ends within the segment.
            let within = bytes.get_mut(at..).unwrap_or_default();
            let len = chunk.len().min(within.len());
            within[..len].copy_from_slice(&chunk[..len]);
        }
        Ok(bytes)
    }
}

/// Puts a source's changes over the bytes of a segment, and cuts it.
fn recut(source: &dyn Source, size_bytes: u64, segment: u32, mut bytes: Vec<u8>) -> Result<Recut> {
    let first = u64::from(segment) * SEGMENT_BYTES as u64;
    let end = size_bytes.min(first + SEGMENT_BYTES as u64);
    let at = |offset: u64| usize::try_from(offset - first).unwrap_or(SEGMENT_BYTES);
    let mut read_bytes = 0;
    let mut next = first;
    while let Some(range) = next_change(source, next)?
        && range.start < end
    {
        let range = range.start..range.end.min(end);
        let buffer = &mut bytes[at(range.start)..at(range.end)];
        source.read_at(range.start, buffer).map_err(|error| {
            let what = format!("read {} at offset {}", source.name(), range.start);
            Error::file(what, error)
        })?;
        read_bytes += range.end - range.start;
        next = range.end;
    }
    // The last block of a volume is padded with zeros, even if the base had data there.
    bytes[at(end)..].fill(0);
    let mut cuts = Vec::new();
    cut_segment(&bytes, &mut cuts);
    let bytes = Bytes::from(bytes);
    let mut entries = Vec::with_capacity(cuts.len());
    let mut seen = HashSet::new();
    let mut chunks = Vec::new();
    for cut in &cuts {
        let plain = bytes.slice(cut.byte_range());
        let id = ChunkId::of(&plain);
        entries.push(LeafEntry {
            start_block: cut.start_block,
            blocks: cut.blocks,
            chunk: id,
        });
        if seen.insert(id) {
            chunks.push(CutChunk { id, plain });
        }
    }
    let leaf = if entries.is_empty() {
        None
    } else {
        let leaf = Leaf::new(entries).map_err(|error| {
            Error::internal("cut a segment", "the chunker gave no leaf").with_source(error)
        })?;
        Some(leaf)
    };
    Ok(Recut {
        leaf,
        chunks,
        read_bytes,
    })
}

/// The part of a source's next changed range that is behind `offset_bytes`.
fn next_change(source: &dyn Source, offset_bytes: u64) -> Result<Option<Range<u64>>> {
    let failed = |error| Error::file(format!("find the data of {}", source.name()), error);
    let Some(range) = source.next_data(offset_bytes).map_err(failed)? else {
        return Ok(None);
    };
    if range.is_empty() || range.end <= offset_bytes {
        let why = format!(
            "the source says that data at {} follows {offset_bytes}",
            range.start
        );
        return Err(failed(std::io::Error::other(why)));
    }
    Ok(Some(range.start.max(offset_bytes)..range.end))
}

/// The segments of the new volume, in order.
struct Parts<'a> {
    based: &'a Based<'a>,
    nodes: Nodes,
    walk: LeafWalk,
    /// The base's next leaf that was not returned yet.
    leaf: Option<(u32, NodeId)>,
    /// The next segment that changes.
    changed: Option<u32>,
    /// The segment in which only one of the base and the volume ends. It changes, because the end
    /// of a volume changes how content is cut.
    end: Option<u32>,
}

impl<'a> Parts<'a> {
    async fn begin(based: &'a Based<'a>) -> Result<Self> {
        let base_bytes = based.base.root.size_bytes;
        let end_bytes = base_bytes.min(based.size_bytes);
        let ends_within =
            base_bytes != based.size_bytes && !end_bytes.is_multiple_of(SEGMENT_BYTES as u64);
        let mut parts = Self {
            based,
            nodes: Nodes::of_whole(based.client, based.of.clone()),
            walk: LeafWalk::new(&based.base.root, 0),
            leaf: None,
            changed: None,
            end: ends_within.then(|| segment_of(end_bytes)),
        };
        parts.leaf = parts.next_leaf().await?;
        parts.changed = parts.next_changed(0).await?;
        Ok(parts)
    }

    async fn next(&mut self) -> Result<Option<Part>> {
        let mut kept = Vec::new();
        while kept.len() < FETCH_NODES_MAX {
            match (self.leaf, self.changed) {
                (Some(leaf), changed) if changed.is_none_or(|changed| leaf.0 < changed) => {
                    kept.push(leaf);
                    self.leaf = self.next_leaf().await?;
                }
                (leaf, Some(changed)) if kept.is_empty() => {
                    let base = leaf.filter(|(segment, _)| *segment == changed);
                    if base.is_some() {
                        self.leaf = self.next_leaf().await?;
                    }
                    self.changed = self.next_changed(changed + 1).await?;
                    return Ok(Some(Part::Changed(changed, base.map(|(_, id)| id))));
                }
                _ => break,
            }
        }
        Ok((!kept.is_empty()).then_some(Part::Kept(kept)))
    }

    /// The base's next leaf that is within the volume.
    async fn next_leaf(&mut self) -> Result<Option<(u32, NodeId)>> {
        let next = self.walk.next(&self.nodes).await;
        let next = next.map_err(|error| walk_error(&self.based.session.what, error))?;
        let segments = segment_count(self.based.size_bytes);
        Ok(next.filter(|(segment, _)| *segment < segments))
    }

    /// The first segment with a change, from this one on.
    async fn next_changed(&self, from: u32) -> Result<Option<u32>> {
        let source = Arc::clone(&self.based.source);
        let offset_bytes = u64::from(from) * SEGMENT_BYTES as u64;
        let found = task::spawn_blocking(move || next_change(&*source, offset_bytes));
        let broke = |error| {
            Error::internal(&self.based.session.what, "a reading thread broke").with_source(error)
        };
        let found = found.await.map_err(broke)??;
        let found = found.filter(|range| range.start < self.based.size_bytes);
        let found = found.map(|range| segment_of(range.start));
        let end = self.end.filter(|end| *end >= from);
        Ok(match (found, end) {
            (Some(found), Some(end)) => Some(found.min(end)),
            (found, end) => found.or(end),
        })
    }
}

/// The number of the segment with a byte.
fn segment_of(offset_bytes: u64) -> u32 {
    u32::try_from(offset_bytes / SEGMENT_BYTES as u64).unwrap_or(u32::MAX)
}
