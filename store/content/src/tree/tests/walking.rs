//! Tests of building, walking and comparing trees.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::super::*;
use crate::block::{MAX_VOLUME_BYTES, SEGMENT_BYTES, segment_count};

pub(super) const SEGMENT: u64 = SEGMENT_BYTES as u64;

/// The leaves of a volume by segment.
pub(super) type Leaves = BTreeMap<u32, NodeId>;

/// InnerNode nodes by id. Leaves are ids only: walks do not look into them.
#[derive(Default)]
pub(super) struct Nodes {
    pub(super) inner: Mutex<HashMap<NodeId, Arc<InnerNode>>>,
    reads: AtomicUsize,
    /// What was asked for, and where.
    asked: Mutex<Vec<(NodeId, NodePlace)>>,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no node {0}")]
pub(super) struct Missing(pub(super) NodeId);

impl NodeSource for Nodes {
    type Error = Missing;

    async fn inner(&self, id: NodeId, at: NodePlace) -> Result<Arc<InnerNode>, Missing> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.asked.lock().unwrap().push((id, at));
        self.inner
            .lock()
            .unwrap()
            .get(&id)
            .cloned()
            .ok_or(Missing(id))
    }
}

impl Nodes {
    pub(super) fn add(&self, inner: InnerNode) -> NodeId {
        let id = inner.id();
        self.inner.lock().unwrap().insert(id, Arc::new(inner));
        id
    }

    pub(super) fn build(&self, size_bytes: u64, leaves: &Leaves) -> Root {
        let mut builder = TreeBuilder::new(size_bytes).unwrap();
        for (&segment, &leaf) in leaves {
            builder.push(segment, leaf).unwrap();
        }
        let (root, inner) = builder.finish();
        inner.into_iter().for_each(|inner| {
            self.add(inner);
        });
        root
    }

    pub(super) fn walk(
        &self,
        root: &Root,
        from_segment: u32,
    ) -> Result<Vec<(u32, NodeId)>, WalkError<Missing>> {
        let mut walk = LeafWalk::new(root, from_segment);
        std::iter::from_fn(|| ready(walk.next(self)).transpose()).collect()
    }

    fn diff(&self, base: &Root, target: &Root) -> Result<Vec<SegmentDiff>, WalkError<Missing>> {
        let mut diff = TreeDiff::new(base, target);
        std::iter::from_fn(|| ready(diff.next(self)).transpose()).collect()
    }

    fn asked(&self) -> Vec<(NodeId, NodePlace)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn find(&self, root: &Root, level: u8, first_segment: u32) -> Option<NodeId> {
        let at = NodePlace {
            level,
            first_segment,
        };
        ready(find_node(self, root, at)).unwrap()
    }

    pub(super) fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

/// Runs a future that never waits.
pub(in crate::tree) fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a source in memory never waits"),
    }
}

pub(super) fn leaf_id(number: u32) -> NodeId {
    NodeId::of_leaf(&number.to_le_bytes())
}

fn naive_diff(base: &Leaves, target: &Leaves) -> Vec<SegmentDiff> {
    let segments: std::collections::BTreeSet<u32> =
        base.keys().chain(target.keys()).copied().collect();
    let diff = |segment| SegmentDiff {
        segment,
        base: base.get(&segment).copied(),
        target: target.get(&segment).copied(),
    };
    segments
        .into_iter()
        .map(diff)
        .filter(|diff| diff.base != diff.target)
        .collect()
}

/// Sizes of trees of one, two and three levels.
pub(super) fn size_bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        1..=256 * SEGMENT,
        256 * SEGMENT + 1..=65536 * SEGMENT,
        65536 * SEGMENT + 1..=MAX_VOLUME_BYTES,
        Just(MAX_VOLUME_BYTES),
    ]
}

/// Segments of a volume, some of them close together.
pub(super) fn leaves(size_bytes: u64) -> impl Strategy<Value = Leaves> {
    let count = segment_count(size_bytes);
    let runs = prop::collection::vec((0..count, 1u32..40, 0u32..4), 0..12);
    runs.prop_map(move |runs| {
        let run = |(start, len, id): (u32, u32, u32)| {
            (start..count.min(start.saturating_add(len))).map(move |segment| (segment, leaf_id(id)))
        };
        runs.into_iter().flat_map(run).collect()
    })
}

pub(super) fn volume() -> impl Strategy<Value = (u64, Leaves)> {
    size_bytes().prop_flat_map(|size_bytes| (Just(size_bytes), leaves(size_bytes)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_was_built_is_what_is_walked(
        (size_bytes, leaves) in volume(),
        from in any::<prop::sample::Index>(),
    ) {
        let nodes = Nodes::default();
        let root = nodes.build(size_bytes, &leaves);
        prop_assert_eq!(root.top.is_some(), !leaves.is_empty());
        let from_segment = u32::try_from(from.index(segment_count(size_bytes) as usize)).unwrap();
        for from_segment in leaves.keys().copied().chain([0, from_segment, u32::MAX]) {
            let expected: Vec<_> =
                leaves.range(from_segment..).map(|(&segment, &leaf)| (segment, leaf)).collect();
            prop_assert_eq!(nodes.walk(&root, from_segment).unwrap(), expected);
            let found = ready(find_leaf(&nodes, &root, from_segment)).unwrap();
            prop_assert_eq!(found, leaves.get(&from_segment).copied());
            prop_assert_eq!(nodes.find(&root, 0, from_segment), found);
        }
        // Everything was asked for at its place.
        for (id, at) in nodes.asked() {
            prop_assert_eq!(ready(find_node(&nodes, &root, at)), Ok(Some(id)));
        }
    }

    #[test]
    fn a_diff_asks_for_nodes_at_their_places(
        (base_bytes, base) in volume(),
        (target_bytes, target) in volume(),
    ) {
        let nodes = Nodes::default();
        let roots = [nodes.build(base_bytes, &base), nodes.build(target_bytes, &target)];
        nodes.diff(&roots[0], &roots[1]).unwrap();
        for (id, at) in nodes.asked() {
            let found = roots.map(|root| ready(find_node(&nodes, &root, at)).unwrap());
            prop_assert!(found.contains(&Some(id)), "{at:?}");
        }
    }

    #[test]
    fn diff_equals_the_naive_diff((base_bytes, base) in volume(), (target_bytes, target) in volume()) {
        let nodes = Nodes::default();
        let base_root = nodes.build(base_bytes, &base);
        let target_root = nodes.build(target_bytes, &target);
        prop_assert_eq!(nodes.diff(&base_root, &target_root).unwrap(), naive_diff(&base, &target));
    }

    #[test]
    fn diff_after_some_changes_equals_the_naive_diff(
        (size_bytes, base) in volume(),
        other_bytes in size_bytes(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u32..6), 0..6),
    ) {
        let target_bytes = size_bytes.max(other_bytes);
        let mut target = base.clone();
        for (at, id) in changes {
            let segment = u32::try_from(at.index(segment_count(target_bytes) as usize)).unwrap();
            if id > 4 {
                target.remove(&segment);
            } else {
                target.insert(segment, leaf_id(id));
            }
        }
        let nodes = Nodes::default();
        let base_root = nodes.build(size_bytes, &base);
        let target_root = nodes.build(target_bytes, &target);
        prop_assert_eq!(nodes.diff(&base_root, &target_root).unwrap(), naive_diff(&base, &target));
        prop_assert_eq!(nodes.diff(&target_root, &base_root).unwrap(), naive_diff(&target, &base));
    }

    /// However often finished nodes are taken, the same nodes come out, children first.
    #[test]
    fn equal_leaves_have_an_equal_root((size_bytes, leaves) in volume()) {
        let nodes = Nodes::default();
        let root = nodes.build(size_bytes, &leaves);
        let mut builder = TreeBuilder::new(size_bytes).unwrap();
        let mut taken = Vec::new();
        for (&segment, &leaf) in &leaves {
            builder.push(segment, leaf).unwrap();
            taken.extend(builder.take_finished());
        }
        let (again, rest) = builder.finish();
        taken.extend(rest);
        prop_assert_eq!(again, root);
        prop_assert_eq!(again.id(), root.id());
        let mut known = std::collections::HashSet::new();
        for inner in &taken {
            let children_known = inner.children().iter().all(|(_, child)| known.contains(child));
            prop_assert!(inner.level() == 1 || children_known);
            known.insert(inner.id());
        }
        prop_assert_eq!(taken.last().map(InnerNode::id), root.top);
    }

    #[test]
    fn another_size_or_leaf_has_another_root((size_bytes, mut leaves) in volume()) {
        let nodes = Nodes::default();
        let root = nodes.build(size_bytes, &leaves);
        if size_bytes < MAX_VOLUME_BYTES {
            prop_assert_ne!(nodes.build(size_bytes + 1, &leaves).id(), root.id());
        }
        leaves.insert(0, leaf_id(99));
        prop_assert_ne!(nodes.build(size_bytes, &leaves).id(), root.id());
    }
}

#[test]
fn the_last_segment_of_the_largest_volume() {
    let nodes = Nodes::default();
    let last = segment_count(MAX_VOLUME_BYTES) - 1;
    let leaves = Leaves::from([(0, leaf_id(1)), (last, leaf_id(2))]);
    let root = nodes.build(MAX_VOLUME_BYTES, &leaves);
    assert_eq!(nodes.walk(&root, 1), Ok(vec![(last, leaf_id(2))]));
    assert_eq!(ready(find_leaf(&nodes, &root, last)), Ok(Some(leaf_id(2))));
    assert_eq!(ready(find_leaf(&nodes, &root, last + 1)), Ok(None));
}

#[test]
fn nothing_stands_at_a_place_that_a_tree_does_not_have() {
    let nodes = Nodes::default();
    let leaves = Leaves::from([(0, leaf_id(1)), (300, leaf_id(2))]);
    let root = nodes.build(400 * SEGMENT, &leaves);
    let top = nodes.find(&root, 2, 0);
    assert_eq!(top, root.top);
    let below = [0, 256].map(|first| nodes.find(&root, 1, first).unwrap());
    assert_ne!(below[0], below[1]);
    let inner = ready(nodes.inner(root.top.unwrap(), NodePlace::of_leaf(0))).unwrap();
    let at = NodePlace {
        level: 2,
        first_segment: 0,
    };
    for (slot, id) in inner.children() {
        assert_eq!(
            ready(find_node(&nodes, &root, at.child(*slot))),
            Ok(Some(*id))
        );
    }
    // Holes, places within a node, levels above the top, segments behind the end.
    for (level, first_segment) in [
        (0, 1),
        (0, 400),
        (0, u32::MAX),
        (1, 1),
        (1, 300),
        (1, 512),
        (2, 256),
        (3, 0),
        (4, 0),
        (u8::MAX, 0),
    ] {
        let found = nodes.find(&root, level, first_segment);
        assert_eq!(found, None, "{level}, {first_segment}");
    }
    let empty = TreeBuilder::new(400 * SEGMENT).unwrap().finish().0;
    assert_eq!(nodes.find(&empty, 0, 0), None);
}

#[test]
fn a_diff_reads_only_what_differs() {
    let nodes = Nodes::default();
    let size_bytes = 3 * 65536 * SEGMENT;
    let base: Leaves = (0..3 * 65536)
        .step_by(1001)
        .map(|segment| (segment, leaf_id(segment)))
        .collect();
    let mut target = base.clone();
    target.insert(70_000, leaf_id(1));
    let base_root = nodes.build(size_bytes, &base);
    let target_root = nodes.build(size_bytes, &target);
    assert_eq!(nodes.diff(&base_root, &base_root), Ok(vec![]));
    assert_eq!(nodes.reads(), 0);
    assert_eq!(nodes.diff(&base_root, &target_root).unwrap().len(), 1);
    assert!(nodes.reads() <= 2 * 3, "one path in each tree");
}

#[test]
fn the_builder_refuses_what_does_not_fit() {
    assert_eq!(
        TreeBuilder::new(MAX_VOLUME_BYTES + 1).unwrap_err(),
        TreeError::TooLarge {
            size_bytes: MAX_VOLUME_BYTES + 1
        }
    );
    let size_bytes = 3 * SEGMENT + 1;
    let mut builder = TreeBuilder::new(size_bytes).unwrap();
    builder.push(1, leaf_id(1)).unwrap();
    for segment in [0, 1] {
        let error = TreeError::SegmentOrder {
            segment,
            previous: 1,
        };
        assert_eq!(builder.push(segment, leaf_id(2)), Err(error));
    }
    let error = TreeError::SegmentOutside {
        segment: 4,
        size_bytes,
    };
    assert_eq!(builder.push(4, leaf_id(2)), Err(error));
    builder.push(3, leaf_id(3)).unwrap();

    let (root, inner) = builder.finish();
    let expected = InnerNode::new(1, vec![(1, leaf_id(1)), (3, leaf_id(3))]).unwrap();
    assert_eq!(root.top, Some(expected.id()));
    assert_eq!(inner, [expected]);
}

#[test]
fn a_volume_without_data_has_no_nodes() {
    for size_bytes in [0, 1, MAX_VOLUME_BYTES] {
        let (root, inner) = TreeBuilder::new(size_bytes).unwrap().finish();
        assert_eq!((root.top, inner.len()), (None, 0));
        let nodes = Nodes::default();
        assert_eq!(nodes.walk(&root, 0), Ok(vec![]));
        assert_eq!(nodes.diff(&root, &root), Ok(vec![]));
    }
}

/// A root over a hand-made top node.
pub(super) fn root_over(
    nodes: &Nodes,
    size_bytes: u64,
    level: u8,
    children: Vec<(u8, NodeId)>,
) -> Root {
    let top = nodes.add(InnerNode::new(level, children).unwrap());
    Root {
        size_bytes,
        chunker_version: 1,
        top: Some(top),
    }
}

#[test]
fn a_node_at_the_wrong_level_is_an_error() {
    let nodes = Nodes::default();
    let empty = Root {
        size_bytes: SEGMENT,
        chunker_version: 1,
        top: None,
    };
    // A node of level 2 where the size demands one of level 1, and one that is its own level's
    // child.
    let small = root_over(&nodes, SEGMENT, 2, vec![(0, leaf_id(1))]);
    let child = nodes.add(InnerNode::new(2, vec![(0, leaf_id(1))]).unwrap());
    let large = root_over(&nodes, 300 * SEGMENT, 2, vec![(0, child)]);
    for (root, node, expected, found) in [(small, small.top.unwrap(), 1, 2), (large, child, 1, 2)] {
        let error = WalkError::Level {
            node,
            expected,
            found,
        };
        assert_eq!(nodes.walk(&root, 0), Err(error.clone()));
        assert_eq!(ready(find_leaf(&nodes, &root, 0)), Err(error.clone()));
        assert_eq!(nodes.diff(&empty, &root), Err(error.clone()));
        assert_eq!(nodes.diff(&root, &empty), Err(error));
    }
}

#[test]
fn a_node_behind_the_end_is_an_error() {
    let nodes = Nodes::default();
    let empty = Root {
        size_bytes: SEGMENT,
        chunker_version: 1,
        top: None,
    };
    let low = root_over(
        &nodes,
        3 * SEGMENT,
        1,
        vec![(0, leaf_id(1)), (3, leaf_id(2))],
    );
    let child = nodes.add(InnerNode::new(1, vec![(0, leaf_id(1))]).unwrap());
    let high = root_over(&nodes, 300 * SEGMENT, 2, vec![(0, child), (2, child)]);
    for (root, segment) in [(low, 3), (high, 512)] {
        let (node, size_bytes) = (root.top.unwrap(), root.size_bytes);
        let error = WalkError::Outside {
            node,
            segment,
            size_bytes,
        };
        let mut walk = LeafWalk::new(&root, 0);
        assert_eq!(ready(walk.next(&nodes)), Ok(Some((0, leaf_id(1)))));
        assert_eq!(ready(walk.next(&nodes)), Err(error.clone()));
        assert_eq!(nodes.diff(&empty, &root), Err(error));
    }
}

#[test]
fn a_walk_goes_on_after_an_error_of_the_source() {
    let nodes = Nodes::default();
    let leaves: Leaves = (0..1000)
        .step_by(90)
        .map(|segment| (segment, leaf_id(segment)))
        .collect();
    let root = nodes.build(1000 * SEGMENT, &leaves);
    let stored = nodes.inner.lock().unwrap().clone();
    let empty = Root {
        size_bytes: 1,
        chunker_version: 1,
        top: None,
    };
    let (mut walk, mut diff) = (LeafWalk::new(&root, 0), TreeDiff::new(&empty, &root));
    // Nodes appear one after the other, each after it was missed.
    nodes.inner.lock().unwrap().clear();
    let (mut walked, mut differing) = (Vec::new(), Vec::new());
    loop {
        match ready(walk.next(&nodes)) {
            Ok(Some(leaf)) => walked.push(leaf),
            Ok(None) => break,
            Err(WalkError::Source(Missing(id))) => {
                nodes.inner.lock().unwrap().insert(id, stored[&id].clone());
            }
            Err(error) => panic!("{error}"),
        }
    }
    nodes.inner.lock().unwrap().clear();
    loop {
        match ready(diff.next(&nodes)) {
            Ok(Some(diff)) => differing.push((diff.segment, diff.target.unwrap())),
            Ok(None) => break,
            Err(WalkError::Source(Missing(id))) => {
                nodes.inner.lock().unwrap().insert(id, stored[&id].clone());
            }
            Err(error) => panic!("{error}"),
        }
    }
    let expected: Vec<_> = leaves.into_iter().collect();
    assert_eq!(walked, expected);
    assert_eq!(differing, expected);
}
