//! What is here already of a snapshot, because one before it is: subtrees that both have are not looked into.

use varve_client::FETCH_NODES_MAX;
use varve_content::{
    NodeId,
    block::{BLOCK_BYTES, segment_blocks},
    tree::{LeafWalk, NodeSource, Root, WalkError},
};
use varve_store::{SnapshotRecord, Store};

use crate::limits::COPY_KEPT_LEAVES;

/// A completed snapshot of this store that the wanted one was made after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    pub(super) root: Root,
    data_blocks: u64,
}

impl Base {
    pub(super) async fn of(
        store: &Store,
        record: &SnapshotRecord,
    ) -> Result<Self, varve_store::Error> {
        let root = *store.open_snapshot(&record.id.to_string()).await?.root();
        let data_bytes = record.completed()?.data_bytes;
        Ok(Self {
            root,
            // What is cut off at the end of an odd size is part of a block.
            data_blocks: data_bytes.div_ceil(BLOCK_BYTES as u64),
        })
    }

    /// Blocks of data in the leaves that are kept, if those that are not have so many.
    pub(super) fn kept_blocks(&self, dropped_blocks: u64) -> u64 {
        self.data_blocks.saturating_sub(dropped_blocks)
    }
}

/// Some leaves of a snapshot that is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// Those that are not in its base, or not there: at most [`FETCH_NODES_MAX`].
    pub(super) wanted: Vec<(u32, NodeId)>,
    /// Those that its base has in the same place.
    pub(super) kept: Vec<(u32, NodeId)>,
    /// Leaves of the base, over the same segments, that it has not.
    pub(super) dropped: Vec<NodeId>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.wanted.len() == FETCH_NODES_MAX
            || self.dropped.len() == FETCH_NODES_MAX
            || self.kept.len() == COPY_KEPT_LEAVES
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.kept.is_empty() && self.dropped.is_empty()
    }
}

/// A walk through a snapshot and its base, side by side.
#[derive(Debug)]
pub(super) struct Comparison {
    wanted: Leaves,
    base: Option<Leaves>,
}

impl Comparison {
    pub(super) fn new(wanted: &Root, base: Option<&Root>) -> Self {
        Self {
            wanted: Leaves::of(wanted),
            base: base.map(Leaves::of),
        }
    }

    /// The next leaves; `None` when there are no more.
    pub(super) async fn next<S: NodeSource>(
        &mut self,
        nodes: &S,
    ) -> Result<Option<Batch>, WalkError<S::Error>> {
        let mut batch = Batch::default();
        while !batch.is_full() {
            let base = match &mut self.base {
                Some(base) => base.peek(nodes).await?,
                None => None,
            };
            let wanted = self.wanted.peek(nodes).await?;
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
                    batch.dropped.extend(base.map(|(_, id)| id));
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

    /// Whether a segment ends at the same place in both: where a volume ends, content is cut in its own way.
    fn is_alike(&self, segment: u32) -> bool {
        let blocks = |leaves: &Leaves| segment_blocks(leaves.size_bytes, segment);
        self.base
            .as_ref()
            .is_some_and(|base| blocks(base) == blocks(&self.wanted))
    }
}

/// The leaves of a tree, the next of which can be looked at.
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

    use varve_content::{
        block::SEGMENT_BYTES,
        tree::{Inner, Leaf, TreeBuilder},
    };

    use super::*;

    #[derive(Default)]
    struct Nodes(BTreeMap<NodeId, Arc<Inner>>);

    impl NodeSource for Nodes {
        type Error = Infallible;

        async fn leaf(&self, id: NodeId) -> Result<Arc<Leaf>, Infallible> {
            panic!("leaf {id} is not needed to compare trees");
        }

        async fn inner(&self, id: NodeId) -> Result<Arc<Inner>, Infallible> {
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

    async fn compared(wanted: (u64, &[(u32, u8)]), base: (u64, &[(u32, u8)])) -> Batch {
        let mut nodes = Nodes::default();
        let wanted = nodes.tree(wanted.0, wanted.1);
        let base = nodes.tree(base.0, base.1);
        let mut comparison = Comparison::new(&wanted, Some(&base));
        let mut all = Batch::default();
        while let Some(batch) = comparison.next(&nodes).await.unwrap() {
            assert!(batch.wanted.len() <= FETCH_NODES_MAX);
            all.wanted.extend(batch.wanted);
            all.kept.extend(batch.kept);
            all.dropped.extend(batch.dropped);
        }
        all
    }

    const SEGMENT: u64 = SEGMENT_BYTES as u64;

    #[tokio::test]
    async fn leaves_are_kept_replaced_added_and_dropped() {
        let size = 1000 * SEGMENT;
        let found = compared(
            (size, &[(0, 1), (2, 9), (5, 5), (700, 7)]),
            (size, &[(0, 1), (2, 2), (3, 3), (700, 7), (800, 8)]),
        )
        .await;
        assert_eq!(found.kept, [(0, id(1)), (700, id(7))]);
        assert_eq!(found.wanted, [(2, id(9)), (5, id(5))]);
        assert_eq!(found.dropped, [id(2), id(3), id(8)]);
        let nothing = compared((size, &[]), (size, &[])).await;
        assert_eq!(nothing, Batch::default());
    }

    #[tokio::test]
    async fn a_volume_that_grew_keeps_all_but_its_old_end() {
        let leaves = [(0, 1), (1, 2)];
        let found = compared((9 * SEGMENT, &leaves), (2 * SEGMENT - 4096, &leaves)).await;
        assert_eq!(found.kept, [(0, id(1))]);
        assert_eq!(found.wanted, [(1, id(2))]);
        assert_eq!(found.dropped, [id(2)]);
    }

    #[tokio::test]
    async fn batches_are_bounded_and_complete() {
        let many: Vec<_> = (0..200).map(|segment| (segment, 1)).collect();
        let other: Vec<_> = (0..200).map(|segment| (segment, 2)).collect();
        let size = 300 * SEGMENT;
        let found = compared((size, &many), (size, &other)).await;
        assert_eq!((found.wanted.len(), found.dropped.len()), (200, 200));
        assert_eq!(compared((size, &many), (size, &many)).await.kept.len(), 200);
    }
}
