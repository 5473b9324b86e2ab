//! Tests of trees that are made from others.

use std::collections::HashSet;
use std::ops::Range;

use proptest::prelude::*;

use super::super::*;
use super::walking::{
    Leaves, Missing, Nodes, SEGMENT, leaf_id, leaves, ready, root_over, size_bytes, volume,
};
use crate::block::{MAX_VOLUME_BYTES, segment_count};

/// A change of some segments.
#[derive(Clone, Debug)]
enum Change {
    Put(u32, NodeId),
    Remove(Range<u32>),
}

fn update(
    nodes: &Nodes,
    base: Option<&Root>,
    size_bytes: u64,
    changes: &[Change],
) -> Result<(Root, Vec<InnerNode>), UpdateError<Missing>> {
    let mut update = TreeUpdate::new(base, size_bytes)?;
    let mut made = Vec::new();
    for change in changes {
        match change {
            Change::Put(segment, leaf) => ready(update.put(nodes, *segment, *leaf))?,
            Change::Remove(segments) => ready(update.remove(nodes, segments.clone()))?,
        }
        if update.finished_count() > 2 {
            made.extend(update.take_finished());
        }
    }
    let root = ready(update.finish(nodes))?;
    made.extend(update.take_finished());
    Ok((root, made))
}

fn apply(leaves: &mut Leaves, changes: &[Change], size_bytes: u64) {
    for change in changes {
        match change {
            Change::Put(segment, leaf) => drop(leaves.insert(*segment, *leaf)),
            Change::Remove(segments) => leaves.retain(|segment, _| !segments.contains(segment)),
        }
    }
    leaves.split_off(&segment_count(size_bytes));
}

/// Changes in ascending order, short ones and long ones.
fn changes(size_bytes: u64) -> impl Strategy<Value = Vec<Change>> {
    let count = segment_count(size_bytes);
    let step = prop_oneof![
        3 => 0u32..4,
        2 => 0u32..300,
        1 => 0u32..70_000,
        1 => 0..=count,
    ];
    let len = prop_oneof![
        4 => Just(0u32),
        2 => 1u32..4,
        1 => 200u32..600,
        1 => 60_000u32..140_000,
        1 => Just(u32::MAX),
    ];
    prop::collection::vec((step, len, 0u32..4), 0..14).prop_map(move |steps| {
        let mut changes = Vec::new();
        let mut position = 0u32;
        for (step, len, id) in steps {
            position = position.saturating_add(step);
            if len > 0 {
                let end = position.saturating_add(len);
                changes.push(Change::Remove(position..end));
                position = end;
            } else if position < count {
                changes.push(Change::Put(position, leaf_id(id)));
                position += 1;
            }
        }
        changes
    })
}

/// A volume, another size, and changes that fit there.
fn scene() -> impl Strategy<Value = ((u64, Leaves), u64, Vec<Change>)> {
    (volume(), size_bytes(), any::<bool>()).prop_flat_map(|(base, other, same)| {
        let size = if same { base.0 } else { other };
        (Just(base), Just(size), changes(size))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn an_update_gives_what_is_built_from_all_leaves(
        ((base_bytes, base), size_bytes, changes) in scene(),
    ) {
        let nodes = Nodes::default();
        let base_root = nodes.build(base_bytes, &base);
        let stored: HashSet<_> = nodes.inner.lock().unwrap().keys().copied().collect();
        let (root, made) = update(&nodes, Some(&base_root), size_bytes, &changes).unwrap();

        let mut target = base;
        apply(&mut target, &changes, size_bytes);
        let fresh = Nodes::default();
        prop_assert_eq!(root, fresh.build(size_bytes, &target));
        // Children come before their parents, and what was made is all that was lacking.
        let mut known = stored;
        for inner in &made {
            let children_known = inner.children().iter().all(|(_, child)| known.contains(child));
            prop_assert!(inner.level() == 1 || children_known);
            known.insert(inner.id());
        }
        let wanted = fresh.inner.lock().unwrap();
        prop_assert!(wanted.keys().all(|id| known.contains(id)));
        prop_assert!(made.iter().all(|inner| wanted.contains_key(&inner.id())));
    }

    #[test]
    fn an_update_of_nothing_is_a_tree((size_bytes, leaves) in volume(), some in leaves(SEGMENT * 300)) {
        let nodes = Nodes::default();
        let puts: Vec<_> = leaves.iter().map(|(&at, &leaf)| Change::Put(at, leaf)).collect();
        let (root, made) = update(&nodes, None, size_bytes, &puts).unwrap();
        prop_assert_eq!(root, nodes.build(size_bytes, &leaves));
        prop_assert_eq!(made.last().map(InnerNode::id), root.top);
        prop_assert_eq!(nodes.reads(), 0);
        // And of one that is removed, too.
        let base = nodes.build(SEGMENT * 300, &some);
        let all = [vec![Change::Remove(0..u32::MAX)]].concat();
        let (root, made) = update(&nodes, Some(&base), size_bytes, &all).unwrap();
        prop_assert_eq!((root.top, made.len(), nodes.reads()), (None, 0, 0));
    }
}

/// A volume of 16 TiB that is full.
fn large() -> (Nodes, u64, Root) {
    let nodes = Nodes::default();
    let size_bytes = 16 << 40;
    let leaves: Leaves = (0..segment_count(size_bytes))
        .map(|segment| (segment, leaf_id(segment)))
        .collect();
    let root = nodes.build(size_bytes, &leaves);
    (nodes, size_bytes, root)
}

#[test]
fn only_the_way_to_a_change_is_read_and_made() {
    let (nodes, size_bytes, base) = large();
    let put = |segment| Change::Put(segment, leaf_id(u32::MAX));
    let segments = 1 << 17;
    for (changes, reads, made) in [
        // Nothing, one leaf, two in one node, two far from each other.
        (vec![], 0, 0),
        (vec![put(100_000)], 3, 3),
        (vec![put(70_000), put(70_002)], 3, 3),
        (vec![put(1), put(2_000_000)], 5, 5),
        // 1 TiB from its beginning on: the top is all there is to look at.
        (vec![Change::Remove(segments..2 * segments)], 1, 1),
        // And not from the beginning of a node: its two edges are looked at, too.
        (vec![Change::Remove(segments + 9..2 * segments + 9)], 5, 5),
        // A leaf in the middle of what is removed.
        (
            vec![
                Change::Remove(segments..segments + 999),
                put(segments + 999),
                Change::Remove(segments + 1000..2 * segments),
            ],
            3,
            3,
        ),
        (vec![Change::Remove(0..u32::MAX)], 0, 0),
        (vec![Change::Remove(3..u32::MAX)], 3, 3),
    ] {
        let (_, inner) = update(&nodes, Some(&base), size_bytes, &changes).unwrap();
        assert_eq!((nodes.reads(), inner.len()), (reads, made), "{changes:?}");
    }
}

#[test]
fn what_is_put_where_it_was_makes_no_node() {
    let (nodes, size_bytes, base) = large();
    let same = [
        Change::Put(5, leaf_id(5)),
        Change::Put(70_000, leaf_id(70_000)),
    ];
    let (root, made) = update(&nodes, Some(&base), size_bytes, &same).unwrap();
    assert_eq!((root, made.len()), (base, 0));
}

#[test]
fn a_volume_that_grows_takes_its_tree_along() {
    let nodes = Nodes::default();
    let leaves = Leaves::from([(0, leaf_id(1)), (200, leaf_id(2))]);
    let base = nodes.build(256 * SEGMENT, &leaves);
    let (root, made) = update(&nodes, Some(&base), MAX_VOLUME_BYTES, &[]).unwrap();
    assert_eq!(root, nodes.build(MAX_VOLUME_BYTES, &leaves));
    assert_eq!(
        (nodes.reads(), made.len()),
        (0, 2),
        "one node for each new level"
    );
}

#[test]
fn changes_ascend_and_end_with_the_volume() {
    let nodes = Nodes::default();
    let size_bytes = 3 * SEGMENT + 1;
    let run = |changes: &[Change]| update(&nodes, None, size_bytes, changes).map(drop);
    let put = |segment| Change::Put(segment, leaf_id(1));
    for (changes, segment, previous) in [
        (vec![put(1), put(1)], 1, 1),
        (vec![put(2), put(0)], 0, 2),
        (vec![Change::Remove(0..3), put(2)], 2, 2),
        (vec![put(2), Change::Remove(1..3)], 1, 2),
    ] {
        let error = TreeError::SegmentOrder { segment, previous };
        assert_eq!(run(&changes), Err(UpdateError::Change(error)));
    }
    let error = TreeError::SegmentOutside {
        segment: 4,
        size_bytes,
    };
    assert_eq!(run(&[put(4)]), Err(UpdateError::Change(error)));
    assert_eq!(run(&[put(3), Change::Remove(4..9)]), Ok(()));
    let error = TreeError::TooLarge {
        size_bytes: MAX_VOLUME_BYTES + 1,
    };
    assert_eq!(
        TreeUpdate::new(None, MAX_VOLUME_BYTES + 1).unwrap_err(),
        error
    );
}

#[test]
fn a_base_that_does_not_fit_together_is_an_error() {
    let nodes = Nodes::default();
    let size_bytes = 3 * SEGMENT;
    let level = root_over(&nodes, size_bytes, 2, vec![(0, leaf_id(1))]);
    let outside = root_over(&nodes, size_bytes, 1, vec![(3, leaf_id(1))]);
    let change = [Change::Put(1, leaf_id(2))];
    let run = |base: &Root| update(&nodes, Some(base), size_bytes, &change).map(drop);
    assert_eq!(
        run(&level),
        Err(UpdateError::Base(WalkError::Level {
            node: level.top.unwrap(),
            expected: 1,
            found: 2,
        }))
    );
    assert_eq!(
        run(&outside),
        Err(UpdateError::Base(WalkError::Outside {
            node: outside.top.unwrap(),
            segment: 3,
            size_bytes,
        }))
    );
}
