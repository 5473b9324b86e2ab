//! Tests how missing chunks are grouped into fetches.

#![allow(clippy::unwrap_used, reason = "tests")]

use varve_content::tree::{Leaf, LeafEntry};

use super::*;

fn leaf(segment: u32, chunks: &[u8], payload_bytes: u32) -> SizedLeaf {
    let entries = chunks.iter().zip(0u32..).map(|(number, at)| LeafEntry {
        start_block: at * 4,
        blocks: 4,
        chunk: ChunkId::from_bytes([*number; 32]),
    });
    let leaf = Leaf::new(entries.collect()).unwrap();
    SizedLeaf {
        id: leaf.id(),
        segment,
        payload_bytes: vec![payload_bytes; chunks.len()],
        leaf: Arc::new(leaf),
    }
}

fn ids(numbers: &[u8]) -> HashSet<ChunkId> {
    let ids = numbers.iter().map(|n| ChunkId::from_bytes([*n; 32]));
    ids.collect()
}

#[test]
fn each_missing_chunk_is_fetched_once_where_it_is_first() {
    let leaves = [leaf(0, &[1, 2, 1, 3], 10), leaf(7, &[3, 4, 2], 10)];
    let fetches = fetches(&leaves, &ids(&[1, 3, 4]));
    assert_eq!(fetches.len(), 1);
    let found: Vec<_> = fetches[0]
        .wanted
        .iter()
        .map(|wanted| {
            let positions: Vec<_> = wanted.entries.iter().map(|entry| entry.0).collect();
            (wanted.leaf, positions)
        })
        .collect();
    assert_eq!(found, [(leaves[0].id, vec![0, 3]), (leaves[1].id, vec![1])]);
    assert_eq!((fetches[0].chunks, fetches[0].payload_bytes), (3, 30));
}

#[test]
fn fetches_are_bounded() {
    let longest = |payload_bytes| {
        let entries = (0..20u8).map(|number| LeafEntry {
            start_block: u32::from(number) * 64,
            blocks: 64,
            chunk: ChunkId::from_bytes([number; 32]),
        });
        let leaf = Leaf::new(entries.collect()).unwrap();
        SizedLeaf {
            id: leaf.id(),
            segment: 0,
            payload_bytes: vec![payload_bytes; 20],
            leaf: Arc::new(leaf),
        }
    };
    let all = ids(&(0..20).collect::<Vec<_>>());
    let chunks = |payload_bytes| -> Vec<usize> {
        let fetches = fetches(&[longest(payload_bytes)], &all);
        fetches.iter().map(|fetch| fetch.chunks).collect()
    };
    // 256 KiB each, the plain length, to which larger claims are clamped.
    assert_eq!(chunks(256 << 10), [8, 8, 4]);
    assert_eq!(chunks(u32::MAX), [8, 8, 4]);
    assert_eq!(chunks(0), [20]);
}

#[test]
fn places_count_every_byte_and_each_chunk_once() {
    let leaves = [leaf(0, &[1, 2, 1], 10), leaf(1, &[2, 3], 20)];
    let places = Places::of(&leaves);
    assert_eq!(places.ids.len(), 3);
    assert_eq!(places.data_bytes, [32768, 32768, 16384]);
    assert_eq!(places.payload_bytes(2, &leaves), 20);
}
