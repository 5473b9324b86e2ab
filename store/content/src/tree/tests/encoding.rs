//! Tests of nodes and roots, and of their bytes.

#![allow(clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;

use super::super::*;
use crate::block::MAX_VOLUME_BYTES;
use crate::chunk_id::ChunkId;

fn entry(start_block: u32, blocks: u32, id: u8) -> LeafEntry {
    LeafEntry {
        start_block,
        blocks,
        chunk: ChunkId::from_bytes([id; 32]),
    }
}

fn node(id: u8) -> NodeId {
    NodeId::from_bytes([id; 32])
}

fn sample_leaf() -> Leaf {
    Leaf::new(vec![
        entry(0, 64, 0x11),
        entry(64, 1, 0x22),
        entry(0x7ff, 1, 0x33),
    ])
    .unwrap()
}

fn sample_inner() -> InnerNode {
    InnerNode::new(2, vec![(0, node(0x44)), (9, node(0x55)), (255, node(0x66))]).unwrap()
}

fn sample_root() -> Root {
    Root {
        size_bytes: 0x0102_0304_0506,
        chunker_version: 1,
        top: Some(node(0x77)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// A failure of one of the three tests below means that stores and peers of other versions read
// these records no more, or know them by other ids. If that is meant, it takes a new version byte
// in the record and a new format version of the store, and the old form stays readable.

#[test]
fn leaf_bytes_are_pinned() {
    let expected = [
        "4c010300",
        "000040",
        &"11".repeat(32),
        "400001",
        &"22".repeat(32),
        "ff0701",
        &"33".repeat(32),
    ]
    .concat();
    assert_eq!(hex(&sample_leaf().encode()), expected);
    assert_eq!(
        sample_leaf().id().to_string(),
        "483bfe876c6d38a9884edb940f8745f4324e979f5bb060aa974ba69b1bc7646a"
    );
}

#[test]
fn inner_bytes_are_pinned() {
    let expected = [
        "49010202",
        "00",
        &"44".repeat(32),
        "09",
        &"55".repeat(32),
        "ff",
        &"66".repeat(32),
    ]
    .concat();
    assert_eq!(hex(&sample_inner().encode()), expected);
    assert_eq!(
        sample_inner().id().to_string(),
        "2ff6f6a26ca7b3bebf7317baf7493ed6cb18539b390d38f99f79327885dee2bc"
    );
}

#[test]
fn root_bytes_are_pinned() {
    let expected = ["52010100", "01000000", "0605040302010000", &"77".repeat(32)].concat();
    assert_eq!(hex(&sample_root().encode()), expected);
    assert_eq!(
        sample_root().id().to_string(),
        "5740b1607f243ce42f917d7d66cb2919f57c8835b7cf14928ac624c364ec5787"
    );
    let hole = Root {
        size_bytes: 4096,
        chunker_version: 1,
        top: None,
    };
    let expected = ["52010000", "01000000", "0010000000000000", &"00".repeat(32)].concat();
    assert_eq!(hex(&hole.encode()), expected);
    assert_eq!(
        hole.id().to_string(),
        "77bc2f08d10e8549fcdae3c8be0c787837faca30d9abcb58f974d6a3f30be2de"
    );
}

#[test]
fn equal_bytes_have_another_id_as_each_kind() {
    let bytes = sample_leaf().encode();
    let ids = [
        *NodeId::of_leaf(&bytes).as_bytes(),
        *NodeId::of_inner(&bytes).as_bytes(),
        *RootId::of(&bytes).as_bytes(),
        *ChunkId::of(&bytes).as_bytes(),
    ];
    for (index, id) in ids.iter().enumerate() {
        assert!(!ids[..index].contains(id));
    }
}

/// Bytes that were flipped, cut off or added are refused, or are another record's only encoding.
fn check_damage<T: std::fmt::Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, TreeError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    assert_eq!(encode(&decode(bytes).unwrap()), bytes);
    for at in 0..bytes.len() {
        for flip in 1..=u8::MAX {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= flip;
            if let Ok(other) = decode(&flipped) {
                assert_eq!(encode(&other), flipped, "byte {at} flipped by {flip:#x}");
            }
        }
        assert!(decode(&bytes[..at]).is_err(), "cut off at {at}");
    }
    assert!(decode(&[bytes, &[0]].concat()).is_err());
}

#[test]
fn damaged_records_are_refused_or_other_records() {
    check_damage(&sample_leaf().encode(), Leaf::decode, Leaf::encode);
    check_damage(
        &sample_inner().encode(),
        InnerNode::decode,
        InnerNode::encode,
    );
    check_damage(&sample_root().encode(), Root::decode, |root| {
        root.encode().to_vec()
    });
    check_damage(&sample_leaf().encode(), Node::decode, Node::encode);
    check_damage(&sample_inner().encode(), Node::decode, Node::encode);
}

#[test]
fn kinds_are_told_apart() {
    let (leaf, inner) = (sample_leaf(), sample_inner());
    assert_eq!(
        Leaf::decode(&inner.encode()).unwrap_err().to_string(),
        "decode a leaf: tag 0x49, version 1 instead of 0x4c, 1"
    );
    assert!(InnerNode::decode(&leaf.encode()).is_err());
    assert_eq!(Node::decode(&leaf.encode()), Ok(Node::Leaf(leaf.clone())));
    assert_eq!(
        Node::decode(&inner.encode()),
        Ok(Node::Inner(inner.clone()))
    );
    assert_eq!(Node::Leaf(leaf.clone()).id(), leaf.id());
    assert_eq!(Node::Inner(inner.clone()).id(), inner.id());
}

#[test]
fn leaves_hold_their_invariants() {
    assert_eq!(Leaf::new(vec![]), Err(TreeError::Empty { what: "leaf" }));
    let chunk_length = |blocks| {
        Err(TreeError::ChunkLength {
            start_block: 5,
            blocks,
        })
    };
    for blocks in [0, 65, u32::MAX] {
        assert_eq!(Leaf::new(vec![entry(5, blocks, 1)]), chunk_length(blocks));
    }
    for (start_block, blocks) in [(2048, 1), (2047, 2), (1985, 64), (u32::MAX, 64)] {
        assert_eq!(
            Leaf::new(vec![entry(start_block, blocks, 1)]),
            Err(TreeError::OutsideSegment {
                start_block,
                blocks
            })
        );
    }
    let overlap = |start_block, previous_end| {
        Err(TreeError::Overlap {
            start_block,
            previous_end,
        })
    };
    assert_eq!(
        Leaf::new(vec![entry(0, 4, 1), entry(3, 4, 2)]),
        overlap(3, 4)
    );
    assert_eq!(
        Leaf::new(vec![entry(9, 1, 1), entry(0, 4, 2)]),
        overlap(0, 10)
    );
    assert_eq!(
        Leaf::new(vec![entry(9, 1, 1), entry(9, 1, 1)]),
        overlap(9, 10)
    );
    // The longest of all.
    let leaf = Leaf::new((0..2048).map(|block| entry(block, 1, 1)).collect()).unwrap();
    assert_eq!(leaf.encode().len(), LEAF_MAX_BYTES);
    assert_eq!(Leaf::decode(&leaf.encode()), Ok(leaf));
}

#[test]
fn leaves_find_their_entries() {
    let leaf = Leaf::new(vec![entry(2, 4, 1), entry(6, 2, 2), entry(20, 1, 3)]).unwrap();
    let starts = |blocks| -> Vec<u32> {
        leaf.entries_in(blocks)
            .iter()
            .map(|entry| entry.start_block)
            .collect()
    };
    assert_eq!(starts(0..2048), [2, 6, 20]);
    assert_eq!(starts(0..2), []);
    assert_eq!(starts(0..3), [2]);
    assert_eq!(starts(5..7), [2, 6]);
    assert_eq!(starts(8..20), []);
    assert_eq!(starts(20..21), [20]);
    assert_eq!(starts(21..2048), []);
    assert_eq!((leaf.data_blocks(), leaf.end_block()), (7, 21));

    assert!(
        !leaf.open_end_fits(0, 2048),
        "another chunk follows at once"
    );
    assert!(leaf.open_end_fits(1, 2048), "a hole follows");
    assert!(leaf.open_end_fits(2, 2048), "a hole follows");
    assert!(leaf.open_end_fits(2, 21), "the edge follows");
    assert!(!leaf.open_end_fits(2, 20), "outside");
    assert!(!leaf.open_end_fits(3, 2048), "no such entry");
}

#[test]
fn inner_nodes_hold_their_invariants() {
    assert_eq!(
        InnerNode::new(1, vec![]),
        Err(TreeError::Empty { what: "inner node" })
    );
    for level in [0, 4, 255] {
        assert_eq!(
            InnerNode::new(level, vec![(0, node(1))]),
            Err(TreeError::Level { level })
        );
    }
    let order = |slot, previous| Err(TreeError::SlotOrder { slot, previous });
    assert_eq!(
        InnerNode::new(1, vec![(3, node(1)), (3, node(2))]),
        order(3, 3)
    );
    assert_eq!(
        InnerNode::new(1, vec![(0, node(1)), (9, node(2)), (8, node(2))]),
        order(8, 9)
    );
    // The longest of all.
    let inner = InnerNode::new(3, (0..=255).map(|slot| (slot, node(slot))).collect()).unwrap();
    assert_eq!(inner.encode().len(), INNER_MAX_BYTES);
    assert_eq!(InnerNode::decode(&inner.encode()), Ok(inner));

    let inner = sample_inner();
    assert_eq!(inner.child(9), Some(node(0x55)));
    assert_eq!(inner.child(10), None);
}

#[test]
fn roots_hold_their_invariants() {
    let decode = |root: Root| Root::decode(&root.encode());
    let (size_bytes, chunker_version) = (MAX_VOLUME_BYTES, u32::MAX);
    let largest = Root {
        size_bytes,
        chunker_version,
        top: Some(node(0)),
    };
    assert_eq!(decode(largest), Ok(largest));
    let too_large = Root {
        size_bytes: MAX_VOLUME_BYTES + 1,
        ..largest
    };
    assert_eq!(
        decode(too_large).unwrap_err().to_string(),
        "decode a root record: the size in bytes is 70368744177665"
    );
    let nothing = Root {
        size_bytes: 0,
        chunker_version,
        top: None,
    };
    assert_eq!(decode(nothing), Ok(nothing));
    assert!(
        decode(Root {
            size_bytes: 0,
            ..largest
        })
        .is_err()
    );
}

#[test]
fn heights_follow_from_sizes() {
    let segment = 8 << 20;
    assert_eq!([0, 1, 256 * segment].map(height), [1, 1, 1]);
    assert_eq!([256 * segment + 1, 65536 * segment].map(height), [2, 2]);
    assert_eq!([65536 * segment + 1, MAX_VOLUME_BYTES].map(height), [3, 3]);
}

proptest! {
    #[test]
    fn leaves_round_trip(gaps in prop::collection::vec((0u32..9, 1u32..=64, any::<u8>()), 1..28)) {
        let mut end = 0;
        let entries: Vec<_> = gaps
            .into_iter()
            .map(|(gap, blocks, id)| {
                let entry = entry(end + gap, blocks, id);
                end = entry.end_block();
                entry
            })
            .collect();
        let leaf = Leaf::new(entries).unwrap();
        prop_assert_eq!(Leaf::decode(&leaf.encode()).unwrap(), leaf);
    }

    #[test]
    fn inner_nodes_round_trip(
        level in 1u8..=3,
        children in prop::collection::btree_map(any::<u8>(), any::<[u8; 32]>(), 1..256),
    ) {
        let children = children.into_iter().map(|(slot, id)| (slot, NodeId::from_bytes(id)));
        let inner = InnerNode::new(level, children.collect()).unwrap();
        prop_assert_eq!(InnerNode::decode(&inner.encode()).unwrap(), inner);
    }

    #[test]
    fn roots_round_trip(
        size_bytes in 1..=MAX_VOLUME_BYTES,
        chunker_version: u32,
        top: Option<[u8; 32]>,
    ) {
        let top = top.map(NodeId::from_bytes);
        let root = Root { size_bytes, chunker_version, top };
        prop_assert_eq!(Root::decode(&root.encode()).unwrap(), root);
    }

    /// Bytes that decode encode to the same bytes.
    #[test]
    fn any_bytes_are_survived(tag in "[LIR]", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for version in [&[][..], &[1], &[1, 1], &[1, 1, 0]] {
            let bytes = [tag.as_bytes(), version, &bytes].concat();
            if let Ok(node) = Node::decode(&bytes) {
                prop_assert_eq!(node.encode(), bytes);
            } else if let Ok(root) = Root::decode(&bytes) {
                prop_assert_eq!(&root.encode()[..], bytes);
            }
        }
    }
}
