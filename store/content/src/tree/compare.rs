//! Comparison of a tree with its base, leaf by leaf.

use super::{LeafWalk, NodeId, NodeSource, Root, WalkError};
use crate::block::segment_blocks;

/// The error of a comparison, by the side on which it occurred.
#[derive(Debug)]
pub enum CompareError<E, B> {
    /// In the tree itself.
    Tree(WalkError<E>),
    /// In its base.
    Base(WalkError<B>),
}

/// A batch of leaves of a tree, compared with those of its base.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ComparedLeaves {
    /// Leaves of the tree that the base does not have, or not in the same segment: segment number
    /// and id.
    pub wanted: Vec<(u32, NodeId)>,
    /// Leaves that the base has in the same segment: segment number and id.
    pub kept: Vec<(u32, NodeId)>,
    /// Leaves of the base, over the same segments, that the tree does not have: segment number and
    /// id.
    pub dropped: Vec<(u32, NodeId)>,
}

impl ComparedLeaves {
    fn is_full(&self, read_max: usize, kept_max: usize) -> bool {
        self.wanted.len() >= read_max
            || self.dropped.len() >= read_max
            || self.kept.len() >= kept_max
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.kept.is_empty() && self.dropped.is_empty()
    }
}

/// Walks a tree and its base side by side, down to the ids of their leaves. Reads all inner nodes,
/// and no leaf.
#[derive(Debug)]
pub struct LeafComparison {
    wanted: Leaves,
    base: Option<Leaves>,
}

impl LeafComparison {
    /// Creates a comparison that begins at the first segment. Without a base, all leaves are
    /// wanted.
    #[must_use]
    pub fn new(wanted: &Root, base: Option<&Root>) -> Self {
        Self {
            wanted: Leaves::of(wanted),
            base: base.map(Leaves::of),
        }
    }

    /// Returns the next batch: up to `read_max` wanted leaves, `read_max` dropped ones and
    /// `kept_max` kept ones; `None` at the end. After an error, discard the comparison.
    ///
    /// # Errors
    ///
    /// [`CompareError::Tree`] or [`CompareError::Base`] if a node of that tree cannot be read, has
    /// the wrong level, or reaches beyond the end of its volume.
    pub async fn next<S: NodeSource, B: NodeSource>(
        &mut self,
        nodes: &S,
        base_nodes: &B,
        read_max: usize,
        kept_max: usize,
    ) -> Result<Option<ComparedLeaves>, CompareError<S::Error, B::Error>> {
        let mut batch = ComparedLeaves::default();
        while !batch.is_full(read_max, kept_max) {
            let base = match &mut self.base {
                Some(base) => base.peek(base_nodes).await.map_err(CompareError::Base)?,
                None => None,
            };
            let wanted = self.wanted.peek(nodes).await.map_err(CompareError::Tree)?;
            let (of_base, of_wanted) = match (base, wanted) {
                (None, None) => break,
                (Some(base), Some(wanted)) => (base.0 <= wanted.0, wanted.0 <= base.0),
                (base, wanted) => (base.is_some(), wanted.is_some()),
            };
            match (base.filter(|_| of_base), wanted.filter(|_| of_wanted)) {
                (Some(base), Some(wanted)) if base == wanted && self.is_alike(wanted.0) => {
                    batch.kept.push(wanted);
                }
                (base, wanted) => {
                    batch.dropped.extend(base);
                    batch.wanted.extend(wanted);
                }
            }
            if let Some(base) = self.base.as_mut().filter(|_| of_base) {
                base.peeked = None;
            }
            if of_wanted {
                self.wanted.peeked = None;
            }
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// Returns true if a segment has the same length in both volumes: at the end of a volume, equal
    /// content is cut differently.
    fn is_alike(&self, segment: u32) -> bool {
        let blocks = |leaves: &Leaves| segment_blocks(leaves.size_bytes, segment);
        self.base
            .as_ref()
            .is_some_and(|base| blocks(base) == blocks(&self.wanted))
    }
}

/// The leaves of a tree, with a look ahead at the next one.
#[derive(Debug)]
struct Leaves {
    size_bytes: u64,
    walk: LeafWalk,
    peeked: Option<(u32, NodeId)>,
}

impl Leaves {
    fn of(root: &Root) -> Self {
        Self {
            size_bytes: root.size_bytes,
            walk: LeafWalk::new(root, 0),
            peeked: None,
        }
    }

    async fn peek<S: NodeSource>(
        &mut self,
        nodes: &S,
    ) -> Result<Option<(u32, NodeId)>, WalkError<S::Error>> {
        if self.peeked.is_none() {
            self.peeked = self.walk.next(nodes).await?;
        }
        Ok(self.peeked)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

    use super::super::{InnerNode, NodePlace, TreeBuilder, tests::walking::ready};
    use crate::block::SEGMENT_BYTES;

    use super::*;

    #[derive(Default)]
    struct Nodes(BTreeMap<NodeId, Arc<InnerNode>>);

    impl NodeSource for Nodes {
        type Error = Infallible;

        async fn inner(&self, id: NodeId, _: NodePlace) -> Result<Arc<InnerNode>, Infallible> {
            Ok(Arc::clone(&self.0[&id]))
        }
    }

    fn id(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    impl Nodes {
        fn tree(&mut self, size_bytes: u64, leaves: &[(u32, u8)]) -> Root {
            let mut builder = TreeBuilder::new(size_bytes).unwrap();
            for (segment, number) in leaves {
                builder.push(*segment, id(*number)).unwrap();
            }
            let (root, inners) = builder.finish();
            let inners = inners
                .into_iter()
                .map(|inner| (inner.id(), Arc::new(inner)));
            self.0.extend(inners);
            root
        }
    }

    fn compared(wanted: (u64, &[(u32, u8)]), base: (u64, &[(u32, u8)])) -> ComparedLeaves {
        let mut nodes = Nodes::default();
        let wanted = nodes.tree(wanted.0, wanted.1);
        let base = nodes.tree(base.0, base.1);
        let mut comparison = LeafComparison::new(&wanted, Some(&base));
        let mut all = ComparedLeaves::default();
        while let Some(batch) = ready(comparison.next(&nodes, &nodes, READ, KEPT)).unwrap() {
            assert!(batch.wanted.len() <= READ && batch.kept.len() <= KEPT);
            all.wanted.extend(batch.wanted);
            all.kept.extend(batch.kept);
            all.dropped.extend(batch.dropped);
        }
        all
    }

    const READ: usize = 32;
    const KEPT: usize = 64;
    const SEGMENT: u64 = SEGMENT_BYTES as u64;

    #[test]
    fn leaves_are_kept_replaced_added_and_dropped() {
        let size = 1000 * SEGMENT;
        let found = compared(
            (size, &[(0, 1), (2, 9), (5, 5), (700, 7)]),
            (size, &[(0, 1), (2, 2), (3, 3), (700, 7), (800, 8)]),
        );
        assert_eq!(found.kept, [(0, id(1)), (700, id(7))]);
        assert_eq!(found.wanted, [(2, id(9)), (5, id(5))]);
        assert_eq!(found.dropped, [(2, id(2)), (3, id(3)), (800, id(8))]);
        let nothing = compared((size, &[]), (size, &[]));
        assert_eq!(nothing, ComparedLeaves::default());
    }

    #[test]
    fn a_volume_that_grew_keeps_all_but_its_old_end() {
        let leaves = [(0, 1), (1, 2)];
        let found = compared((9 * SEGMENT, &leaves), (2 * SEGMENT - 4096, &leaves));
        assert_eq!(found.kept, [(0, id(1))]);
        assert_eq!(found.wanted, [(1, id(2))]);
        assert_eq!(found.dropped, [(1, id(2))]);
    }

    #[test]
    fn batches_are_bounded_and_complete() {
        let many: Vec<_> = (0..200).map(|segment| (segment, 1)).collect();
        let other: Vec<_> = (0..200).map(|segment| (segment, 2)).collect();
        let size = 300 * SEGMENT;
        let found = compared((size, &many), (size, &other));
        assert_eq!((found.wanted.len(), found.dropped.len()), (200, 200));
        assert_eq!(compared((size, &many), (size, &many)).kept.len(), 200);
    }
}
