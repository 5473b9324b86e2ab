//! A tree made from a base and its changes, without reading the rest.

use std::ops::Range;
use std::sync::Arc;

use super::geometry::{NodePlace, child_segment, has_segment, slot_of};
use super::walk::{checked_child, inner_at};
use super::{INNER_CHILDREN, InnerNode, NodeId, NodeSource, Root, TreeError, WalkError, height};
use crate::block::{MAX_VOLUME_BYTES, segment_count};
use crate::chunker::CHUNKER_VERSION;

/// Makes a tree from a base: changes come in ascending order of their segments, and everything
/// between them stays as in the base. The root is the same as that of
/// [`TreeBuilder`](super::TreeBuilder) over all leaves.
///
/// It reads and makes only the inner nodes on the path to a change. It keeps or drops a whole
/// subtree by its id, without reading below. It holds one node of each tree per level, and finished
/// inner nodes until the caller takes them.
///
/// After an error, discard it.
#[derive(Debug)]
pub struct TreeUpdate {
    base_bytes: u64,
    size_bytes: u64,
    /// A place above the top of both trees, whose only child is the top.
    above: Open,
    /// Open nodes from the top down.
    open: Vec<Open>,
    /// Everything before this segment is decided. A child of the last open node begins with it.
    position: u64,
    finished: Vec<InnerNode>,
}

/// The reason why a tree could not be updated.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpdateError<E> {
    /// A change is out of order or beyond the end of the volume.
    #[error(transparent)]
    Change(#[from] TreeError),
    /// A node of the base is not available or does not fit.
    #[error(transparent)]
    Base(#[from] WalkError<E>),
}

/// A node of the base. If the tree gains levels, the base's top also takes the places on them, as
/// the only child in slot 0: there, its level is below that of its place.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Subtree {
    id: NodeId,
    level: u8,
}

/// A node that is being made.
#[derive(Debug)]
struct Open {
    level: u8,
    first_segment: u32,
    old: Old,
    children: Vec<(u8, NodeId)>,
}

/// The base's content in the place of a node.
#[derive(Debug)]
enum Old {
    /// Nothing, so there is nothing to keep.
    Nothing,
    /// Its top, which belongs at a lower level.
    Top(Subtree),
    Node(NodeId, Arc<InnerNode>),
}

impl Old {
    /// The subtree in a slot of a node of `level`.
    fn child(&self, level: u8, slot: u8) -> Option<Subtree> {
        match self {
            Self::Nothing => None,
            Self::Top(top) => (slot == 0).then_some(*top),
            Self::Node(_, inner) => inner.child(slot).map(|id| Subtree {
                id,
                level: level - 1,
            }),
        }
    }
}

/// The decision about a range of the base.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Fate {
    Kept,
    Removed,
}

impl TreeUpdate {
    /// Creates an update of `base` to a volume of `size_bytes`, larger or smaller. Without a base
    /// it begins with an empty tree.
    ///
    /// # Errors
    ///
    /// [`TreeError::TooLarge`] if the new size or that of the base exceeds [`MAX_VOLUME_BYTES`].
    pub fn new(base: Option<&Root>, size_bytes: u64) -> Result<Self, TreeError> {
        let base_bytes = base.map_or(0, |base| base.size_bytes);
        for size_bytes in [size_bytes, base_bytes] {
            if size_bytes > MAX_VOLUME_BYTES {
                return Err(TreeError::TooLarge { size_bytes });
            }
        }
        let top = base.and_then(|base| {
            let level = base.height();
            base.top.map(|id| Subtree { id, level })
        });
        let level = height(size_bytes).max(height(base_bytes)) + 1;
        Ok(Self {
            base_bytes,
            size_bytes,
            above: Open {
                level,
                first_segment: 0,
                old: top.map_or(Old::Nothing, Old::Top),
                children: Vec::new(),
            },
            open: Vec::with_capacity(level.into()),
            position: 0,
            finished: Vec::new(),
        })
    }

    /// Sets the leaf of a segment, and replaces that of the base.
    ///
    /// # Errors
    ///
    /// * [`UpdateError::Change`] if the segment is not behind all earlier changes, or is beyond the
    ///   end of the volume.
    /// * [`UpdateError::Base`] if a node of the base cannot be read, has the wrong level, or
    ///   reaches beyond the end of its volume.
    pub async fn put<S: NodeSource>(
        &mut self,
        source: &S,
        segment: u32,
        leaf: NodeId,
    ) -> Result<(), UpdateError<S::Error>> {
        self.check(segment)?;
        if !has_segment(self.size_bytes, segment) {
            return Err(UpdateError::Change(TreeError::SegmentOutside {
                segment,
                size_bytes: self.size_bytes,
            }));
        }
        self.keep(source, segment.into()).await?;
        self.close_passed();
        while self.last().level > 1 {
            self.enter(source).await?;
        }
        self.last_mut().children.push((slot_of(segment, 1), leaf));
        self.position += 1;
        Ok(())
    }

    /// Turns segments into holes. They may lie beyond the end of the volume.
    ///
    /// # Errors
    ///
    /// * [`UpdateError::Change`] if the segments are not behind all earlier changes.
    /// * [`UpdateError::Base`] as for [`put`](Self::put).
    pub async fn remove<S: NodeSource>(
        &mut self,
        source: &S,
        segments: Range<u32>,
    ) -> Result<(), UpdateError<S::Error>> {
        self.check(segments.start)?;
        self.keep(source, segments.start.into()).await?;
        self.advance(source, segments.end.into(), Fate::Removed)
            .await
    }

    /// Takes the new inner nodes that were finished since the last call: children before parents.
    /// Nodes of the base are not among them.
    pub fn take_finished(&mut self) -> Vec<InnerNode> {
        std::mem::take(&mut self.finished)
    }

    /// Number of inner nodes that are finished and not taken.
    #[must_use]
    pub fn finished_count(&self) -> usize {
        self.finished.len()
    }

    /// Keeps the rest of the base up to the end of the volume, completes the tree, and returns its
    /// root. Call [`take_finished`](Self::take_finished) once more afterwards.
    ///
    /// # Errors
    ///
    /// [`UpdateError::Base`] as for [`put`](Self::put).
    pub async fn finish<S: NodeSource>(
        &mut self,
        source: &S,
    ) -> Result<Root, UpdateError<S::Error>> {
        self.keep(source, u64::MAX).await?;
        self.close_passed();
        Ok(Root {
            size_bytes: self.size_bytes,
            chunker_version: CHUNKER_VERSION,
            top: self.above.children.first().map(|&(_, top)| top),
        })
    }

    fn check<E>(&self, segment: u32) -> Result<(), UpdateError<E>> {
        if u64::from(segment) < self.position {
            let previous = u32::try_from(self.position - 1).unwrap_or(u32::MAX);
            return Err(UpdateError::Change(TreeError::SegmentOrder {
                segment,
                previous,
            }));
        }
        Ok(())
    }

    /// Keeps all segments before `to` that the volume has.
    async fn keep<S: NodeSource>(
        &mut self,
        source: &S,
        to: u64,
    ) -> Result<(), UpdateError<S::Error>> {
        if self.base_bytes > self.size_bytes {
            let end = u64::from(segment_count(self.size_bytes));
            self.advance(source, to.min(end), Fate::Kept).await?;
            return self.advance(source, to, Fate::Removed).await;
        }
        self.advance(source, to, Fate::Kept).await
    }

    /// Decides about all segments before `to`.
    async fn advance<S: NodeSource>(
        &mut self,
        source: &S,
        to: u64,
        fate: Fate,
    ) -> Result<(), UpdateError<S::Error>> {
        let to = to.min(span(self.above.level - 1));
        while self.position < to {
            self.close_passed();
            let position = self.position;
            let open = self.last_mut();
            let slot = slot_at(position, open.level);
            let child_level = open.level - 1;
            let child_end = position + span(child_level);
            let old = open.old.child(open.level, slot);
            // The base's top may belong further down.
            let is_in_place = old.is_none_or(|old| old.level == child_level);
            if child_end > to || (fate == Fate::Kept && !is_in_place) {
                self.enter(source).await?;
                continue;
            }
            if let (Some(old), Fate::Kept) = (old, fate) {
                open.children.push((slot, old.id));
            }
            self.position = child_end;
        }
        Ok(())
    }

    /// Opens the child of the last open node that begins at the position.
    async fn enter<S: NodeSource>(&mut self, source: &S) -> Result<(), UpdateError<S::Error>> {
        let parent = self.last();
        let level = parent.level - 1;
        let slot = slot_at(self.position, parent.level);
        let first_segment = child_segment(parent.first_segment, parent.level, slot);
        let old = match parent.old.child(parent.level, slot) {
            None => Old::Nothing,
            Some(top) if top.level < level => Old::Top(top),
            Some(Subtree { id, .. }) => {
                let at = NodePlace {
                    level,
                    first_segment,
                };
                let inner = inner_at(source, id, at).await?;
                for (slot, _) in inner.children() {
                    checked_child(id, first_segment, level, *slot, self.base_bytes)?;
                }
                Old::Node(id, inner)
            }
        };
        self.open.push(Open {
            level,
            first_segment,
            old,
            children: Vec::new(),
        });
        Ok(())
    }

    /// Closes the open nodes that end at the position.
    fn close_passed(&mut self) {
        let position = self.position;
        let is_passed =
            |open: &mut Open| u64::from(open.first_segment) + span(open.level) <= position;
        while let Some(done) = self.open.pop_if(is_passed) {
            let slot = slot_of(done.first_segment, done.level + 1);
            // Above the new top there is nothing but what becomes the top.
            let id = if done.level > height(self.size_bytes) {
                done.children.first().map(|&(_, top)| top)
            } else {
                self.made(done)
            };
            self.last_mut().children.extend(id.map(|id| (slot, id)));
        }
    }

    /// The id of a closed node: a new node, unless the base has the same one there.
    fn made(&mut self, done: Open) -> Option<NodeId> {
        if done.children.is_empty() {
            return None;
        }
        if let Old::Node(id, inner) = &done.old
            && inner.children() == done.children
        {
            return Some(*id);
        }
        let inner = InnerNode::from_ascending(done.level, done.children);
        let id = inner.id();
        self.finished.push(inner);
        Some(id)
    }

    fn last(&self) -> &Open {
        self.open.last().unwrap_or(&self.above)
    }

    fn last_mut(&mut self) -> &mut Open {
        self.open.last_mut().unwrap_or(&mut self.above)
    }
}

/// Segments under a node of `level` (0 = a leaf).
fn span(level: u8) -> u64 {
    (INNER_CHILDREN as u64).pow(level.into())
}

/// The slot of a node of `level` in which a segment is.
fn slot_at(segment: u64, level: u8) -> u8 {
    u32::try_from(segment).map_or(u8::MAX, |segment| slot_of(segment, level))
}
