//! The segments of a snapshot to read: those of a range, or those of them that differ from a base.

use std::{ops::Range, sync::Arc};

use futures::{Stream, future::try_join, stream};
use varve_content::{
    block::SEGMENT_BYTES,
    tree::{INNER_CHILDREN, Leaf, LeafWalk, NodeId, SegmentDiff, TreeDiff},
};

use super::plan::{SegmentPlan, plan};
use crate::{
    connect::Client,
    content::{Content, Nodes, check_end, walk_error},
    error::Result,
    limits::FETCH_NODES_MAX,
};

/// The settings that all steps of a read share.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(super) client: Client,
    /// Verb and object, for errors.
    pub(super) what: String,
    /// The bytes that are read; may be empty.
    pub(super) range: Range<u64>,
    /// The snapshot, and the base that it is compared with, for requests.
    pub(super) of: Vec<String>,
    size_bytes: u64,
    nodes: Nodes,
}

/// A walk through the leaves of a snapshot.
pub(crate) enum Walk {
    All(LeafWalk),
    /// Only leaves that differ from those of a base.
    Differing(TreeDiff),
}

/// A segment with its leaf, and with the base's leaf if that differs. At least one of the two
/// exists.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) leaf: Option<(NodeId, Leaf)>,
    pub(crate) base: Option<Leaf>,
}

impl Reader {
    pub(crate) fn new(
        client: &Client,
        what: &str,
        content: &Content,
        base: Option<&Content>,
        range: Range<u64>,
    ) -> Self {
        let of = content.origin(base);
        // An inner node of level 1 covers this many bytes: a read within two of them does not walk.
        let node_bytes = (INNER_CHILDREN * SEGMENT_BYTES) as u64;
        let nodes = if range.end - range.start > node_bytes {
            Nodes::of_whole(client, of.clone())
        } else {
            Nodes::of_part(client, of.clone())
        };
        Self {
            client: client.clone(),
            what: what.to_owned(),
            range,
            of,
            size_bytes: content.root.size_bytes,
            nodes,
        }
    }

    fn first_segment(&self) -> u32 {
        segment_of(self.range.start)
    }

    /// Returns true if a segment begins before the range ends. None does if the range is empty.
    fn begins_within(&self, segment: u32) -> bool {
        let first = u64::from(segment) * SEGMENT_BYTES as u64;
        first < self.range.end && !self.range.is_empty()
    }

    /// The leaves of some segments.
    pub(crate) async fn leaves(&self, batch: Vec<SegmentDiff>) -> Result<Vec<Segment>> {
        let of = |leaf: fn(&SegmentDiff) -> Option<NodeId>| -> Vec<_> {
            let leaves = batch.iter().map(|it| Some((it.segment, leaf(it)?)));
            leaves.flatten().collect()
        };
        let (targets, bases) = (of(|it| it.target), of(|it| it.base));
        let (targets, bases) = try_join(self.fetch(&targets), self.fetch(&bases)).await?;
        let (mut targets, mut bases) = (targets.into_iter(), bases.into_iter());
        let segments = batch.into_iter().map(
            |SegmentDiff {
                 segment,
                 base,
                 target,
             }| {
                let leaf = target.and_then(|id| Some((id, targets.next()?)));
                if let Some((id, leaf)) = &leaf {
                    check_end(&self.what, self.size_bytes, segment, *id, leaf)?;
                }
                Ok(Segment {
                    number: segment,
                    leaf,
                    base: base.and_then(|_| bases.next()),
                })
            },
        );
        segments.collect()
    }

    async fn fetch(&self, wanted: &[(u32, NodeId)]) -> Result<Vec<Leaf>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let fetched = self.client.fetch_leaves(&self.of, wanted).await?;
        Ok(fetched.into_iter().map(|fetched| fetched.leaf).collect())
    }

    /// Plans the read of some segments.
    pub(super) async fn plan(&self, batch: Vec<SegmentDiff>) -> Result<Vec<SegmentPlan>> {
        let segments = self.leaves(batch).await?;
        let plans = segments.iter().map(|segment| plan(segment, &self.range));
        Ok(plans.collect())
    }
}

impl Walk {
    pub(crate) fn new(reader: &Reader, content: &Content, base: Option<&Content>) -> Self {
        match base {
            None => Self::All(LeafWalk::new(&content.root, reader.first_segment())),
            Some(base) => Self::Differing(TreeDiff::new(&base.root, &content.root)),
        }
    }

    /// The next segments of the range; `None` after the last.
    async fn next(&mut self, reader: &Reader) -> Result<Option<Vec<SegmentDiff>>> {
        let mut batch = Vec::new();
        while batch.len() < FETCH_NODES_MAX {
            let next = match self {
                Self::All(walk) => walk.next(&reader.nodes).await.map(|next| {
                    next.map(|(segment, leaf)| SegmentDiff {
                        segment,
                        base: None,
                        target: Some(leaf),
                    })
                }),
                Self::Differing(walk) => walk.next(&reader.nodes).await,
            };
            let next = next.map_err(|error| walk_error(&reader.what, error))?;
            match next.filter(|it| reader.begins_within(it.segment)) {
                Some(segment) if segment.segment < reader.first_segment() => {}
                Some(segment) => batch.push(segment),
                None => break,
            }
        }
        Ok((!batch.is_empty()).then_some(batch))
    }
}

/// The segments of a walk, up to [`FETCH_NODES_MAX`] at a time.
pub(crate) fn batches(
    reader: Arc<Reader>,
    walk: Walk,
) -> impl Stream<Item = Result<Vec<SegmentDiff>>> + Send + 'static {
    stream::try_unfold(walk, move |mut walk| {
        let reader = Arc::clone(&reader);
        async move {
            let batch = walk.next(&reader).await?;
            Ok(batch.map(|batch| (batch, walk)))
        }
    })
}

/// The number of the segment with a byte.
pub(crate) fn segment_of(offset_bytes: u64) -> u32 {
    u32::try_from(offset_bytes / SEGMENT_BYTES as u64).unwrap_or(u32::MAX)
}
