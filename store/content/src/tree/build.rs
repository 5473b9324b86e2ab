//! Building a tree from its leaves, in one pass.

use super::geometry::{has_segment, slot_of, subtree_of};
use super::{InnerNode, NodeId, Root, TreeError, height};
use crate::block::MAX_VOLUME_BYTES;
use crate::chunker::CHUNKER_VERSION;

/// Builds a volume's tree from its leaves. It keeps one open node per level, and finished inner
/// nodes until the caller takes them: with a large volume, take them now and then.
#[derive(Debug)]
pub struct TreeBuilder {
    size_bytes: u64,
    /// Children of the open node of each level, from level 1 up.
    open: Vec<Vec<(u8, NodeId)>>,
    last_segment: Option<u32>,
    finished: Vec<InnerNode>,
}

impl TreeBuilder {
    /// Creates a builder for a volume of `size_bytes`.
    ///
    /// # Errors
    ///
    /// [`TreeError::TooLarge`] above [`MAX_VOLUME_BYTES`].
    pub fn new(size_bytes: u64) -> Result<Self, TreeError> {
        if size_bytes > MAX_VOLUME_BYTES {
            return Err(TreeError::TooLarge { size_bytes });
        }
        Ok(Self {
            size_bytes,
            open: vec![Vec::new(); height(size_bytes).into()],
            last_segment: None,
            finished: Vec::new(),
        })
    }

    /// Adds the leaf of a segment. Segments ascend; leave out segments that are all hole.
    ///
    /// # Errors
    ///
    /// * [`TreeError::SegmentOutside`] if the segment is beyond the end of the volume.
    /// * [`TreeError::SegmentOrder`] if it is not behind the previous segment.
    ///
    /// In both cases the leaf is not added, and the builder remains usable.
    pub fn push(&mut self, segment: u32, leaf: NodeId) -> Result<(), TreeError> {
        if !has_segment(self.size_bytes, segment) {
            return Err(TreeError::SegmentOutside {
                segment,
                size_bytes: self.size_bytes,
            });
        }
        if let Some(previous) = self.last_segment {
            if segment <= previous {
                return Err(TreeError::SegmentOrder { segment, previous });
            }
            for level in 1..=height(self.size_bytes) {
                if subtree_of(segment, level) == subtree_of(previous, level) {
                    break;
                }
                self.close(level, previous);
            }
        }
        self.last_segment = Some(segment);
        self.open[0].push((slot_of(segment, 1), leaf));
        Ok(())
    }

    /// Takes the inner nodes that were finished since the last call: children before parents.
    pub fn take_finished(&mut self) -> Vec<InnerNode> {
        std::mem::take(&mut self.finished)
    }

    /// Completes the tree. Returns its root, and the inner nodes that were not taken yet, children
    /// before parents.
    #[must_use]
    pub fn finish(mut self) -> (Root, Vec<InnerNode>) {
        let mut top = None;
        if let Some(last) = self.last_segment {
            for level in 1..=height(self.size_bytes) {
                top = Some(self.close(level, last));
            }
        }
        let root = Root {
            size_bytes: self.size_bytes,
            chunker_version: CHUNKER_VERSION,
            top,
        };
        (root, self.finished)
    }

    /// Closes the open node of `level`, which holds `segment`, and hangs it into the one above.
    fn close(&mut self, level: u8, segment: u32) -> NodeId {
        let children = std::mem::take(&mut self.open[usize::from(level) - 1]);
        let inner = InnerNode::from_ascending(level, children);
        let id = inner.id();
        self.finished.push(inner);
        if let Some(parent) = self.open.get_mut(usize::from(level)) {
            parent.push((slot_of(segment, level + 1), id));
        }
        id
    }
}
