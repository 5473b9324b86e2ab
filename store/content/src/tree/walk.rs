//! Walking a tree: the source of its nodes, one leaf by its segment, all leaves in order.

use std::future::Future;
use std::sync::Arc;

use super::geometry::{NodePlace, child_segment, has_segment, slot_of};
use super::{InnerNode, Leaf, NodeId, Root, TreeError, WalkError};

/// A node of a tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Node {
    /// A leaf: the chunks of one segment.
    Leaf(Leaf),
    /// An inner node: the children of the level below.
    Inner(InnerNode),
}

impl Node {
    /// Decodes a node of either kind.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if these bytes are not the [encoding](Self::encode) of any node.
    pub fn decode(encoded: &[u8]) -> Result<Self, TreeError> {
        match encoded.first() {
            Some(b'I') => InnerNode::decode(encoded).map(Self::Inner),
            _ => Leaf::decode(encoded).map(Self::Leaf),
        }
    }

    /// Returns the encoding of this node. There is only one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(leaf) => leaf.encode(),
            Self::Inner(inner) => inner.encode(),
        }
    }

    /// Computes the id of this node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        match self {
            Self::Leaf(leaf) => leaf.id(),
            Self::Inner(inner) => inner.id(),
        }
    }
}

/// A source of inner nodes: a store, its cache, or a peer. It checks every node that it returns
/// against the requested id.
pub trait NodeSource {
    /// The error of a source that fails to return a node.
    type Error;

    /// Returns the inner node with this id. Fails if the source does not have it, or has another
    /// kind of node under the id. The node is wanted for this place in the tree: a peer has to be
    /// told of it.
    fn inner(
        &self,
        id: NodeId,
        at: NodePlace,
    ) -> impl Future<Output = Result<Arc<InnerNode>, Self::Error>> + Send;
}

/// The inner node that belongs at a place.
pub(super) async fn inner_at<S: NodeSource>(
    source: &S,
    node: NodeId,
    at: NodePlace,
) -> Result<Arc<InnerNode>, WalkError<S::Error>> {
    let inner = source.inner(node, at).await.map_err(WalkError::Source)?;
    if inner.level() != at.level {
        return Err(WalkError::Level {
            node,
            expected: at.level,
            found: inner.level(),
        });
    }
    Ok(inner)
}

/// The first segment under the child of `node` in `slot`, if the volume has it.
pub(super) fn checked_child<E>(
    node: NodeId,
    first_segment: u32,
    level: u8,
    slot: u8,
    size_bytes: u64,
) -> Result<u32, WalkError<E>> {
    let segment = child_segment(first_segment, level, slot);
    if !has_segment(size_bytes, segment) {
        return Err(WalkError::Outside {
            node,
            segment,
            size_bytes,
        });
    }
    Ok(segment)
}

/// Finds the leaf of one segment; `None` if it is all hole or beyond the end of the volume.
///
/// # Errors
///
/// [`WalkError`] if a node on the path cannot be read or has the wrong level.
pub async fn find_leaf<S: NodeSource>(
    source: &S,
    root: &Root,
    segment: u32,
) -> Result<Option<NodeId>, WalkError<S::Error>> {
    let found = find_leaf_and_parent(source, root, segment).await?;
    Ok(found.map(|(_, leaf)| leaf))
}

/// Finds the leaf of one segment, and the inner node that it is a child of: first the latter.
///
/// # Errors
///
/// As of [`find_leaf`].
pub async fn find_leaf_and_parent<S: NodeSource>(
    source: &S,
    root: &Root,
    segment: u32,
) -> Result<Option<(NodeId, NodeId)>, WalkError<S::Error>> {
    if !has_segment(root.size_bytes, segment) {
        return Ok(None);
    }
    let Some(mut node) = root.top else {
        return Ok(None);
    };
    let mut found = None;
    for level in (1..=root.height()).rev() {
        let at = NodePlace::of_leaf(segment).within(level);
        let inner = inner_at(source, node, at).await?;
        let Some(child) = inner.child(slot_of(segment, level)) else {
            return Ok(None);
        };
        found = Some((node, child));
        node = child;
    }
    Ok(found)
}

/// Finds the node at a place; `None` if all is hole there, or the tree has no such place.
///
/// # Errors
///
/// As of [`find_leaf`].
pub async fn find_node<S: NodeSource>(
    source: &S,
    root: &Root,
    at: NodePlace,
) -> Result<Option<NodeId>, WalkError<S::Error>> {
    let is_place = at.level <= root.height()
        && at.within(at.level) == at
        && has_segment(root.size_bytes, at.first_segment);
    let Some(mut node) = root.top.filter(|_| is_place) else {
        return Ok(None);
    };
    for level in (at.level + 1..=root.height()).rev() {
        let inner = inner_at(source, node, at.within(level)).await?;
        let Some(child) = inner.child(slot_of(at.first_segment, level)) else {
            return Ok(None);
        };
        node = child;
    }
    Ok(Some(node))
}

/// Visits the leaves of a tree in ascending order of their segments. Holds one node per level.
#[derive(Debug)]
pub struct LeafWalk {
    root: Root,
    from_segment: u32,
    /// The root's top node, until it has been entered.
    top: Option<NodeId>,
    path: Vec<Step>,
}

/// An inner node on the way to the current leaf, and which child comes next.
#[derive(Debug)]
struct Step {
    id: NodeId,
    inner: Arc<InnerNode>,
    first_segment: u32,
    next_child: usize,
}

impl LeafWalk {
    /// Creates a walk over the leaves from `from_segment` on.
    #[must_use]
    pub fn new(root: &Root, from_segment: u32) -> Self {
        Self {
            root: *root,
            from_segment,
            top: root.top,
            path: Vec::new(),
        }
    }

    /// Returns the next segment that has a leaf, with the leaf's id; `None` behind the last. After
    /// an error, call it again to retry at the same place.
    ///
    /// # Errors
    ///
    /// [`WalkError`] if a node cannot be read, has the wrong level, or reaches beyond the end of
    /// the volume.
    pub async fn next<S: NodeSource>(
        &mut self,
        source: &S,
    ) -> Result<Option<(u32, NodeId)>, WalkError<S::Error>> {
        if let Some(top) = self.top {
            self.enter(source, top, 0, self.root.height()).await?;
            self.top = None;
        }
        while let Some(step) = self.path.last_mut() {
            let Some(&(slot, child)) = step.inner.children().get(step.next_child) else {
                self.path.pop();
                continue;
            };
            let level = step.inner.level();
            let size_bytes = self.root.size_bytes;
            let segment = checked_child(step.id, step.first_segment, level, slot, size_bytes)?;
            if level == 1 {
                step.next_child += 1;
                return Ok(Some((segment, child)));
            }
            self.enter(source, child, segment, level - 1).await?;
            // Only once the child is there, so that an error can be tried again.
            let parent = self.path.len() - 2;
            self.path[parent].next_child += 1;
        }
        Ok(None)
    }

    /// Steps down into a node, past the children that lie before the walk's start.
    async fn enter<S: NodeSource>(
        &mut self,
        source: &S,
        id: NodeId,
        first_segment: u32,
        level: u8,
    ) -> Result<(), WalkError<S::Error>> {
        let at = NodePlace {
            level,
            first_segment,
        };
        let inner = inner_at(source, id, at).await?;
        let next_child = inner.children().partition_point(|&(slot, _)| {
            last_segment(child_segment(first_segment, level, slot), level - 1) < self.from_segment
        });
        self.path.push(Step {
            id,
            inner,
            first_segment,
            next_child,
        });
        Ok(())
    }
}

/// Last segment under a node of `level` (0 = a leaf).
fn last_segment(first_segment: u32, level: u8) -> u32 {
    let mut last = first_segment;
    for level in 1..=level {
        last = child_segment(last, level, u8::MAX);
    }
    last
}
