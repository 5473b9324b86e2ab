//! A tree of a million chunks, made without its volume; and an increment of it.

use std::time::Instant;

use bytes::Bytes;
use prost_types::Timestamp;
use varve_content::{
    ChunkId, SEGMENT_BYTES,
    chunker::CHUNKER_VERSION,
    tree::{self, RootId, TreeBuilder},
};
use varve_proto::v1::{
    BeginUploadRequest, Chunk, ChunkerParameters, Leaf, LeafEntry, SnapshotLineage,
};
use varve_tests::{
    link::Link,
    random::Random,
    rpc::{Content, Rpc},
    snapctl::{number, text},
};

use super::{MIB, Pair};

const ENTRIES: usize = 1_000_000;
const SEGMENT_BLOCKS: u32 = 2048;
const DAEMON_MAX: u64 = 512 * MIB;

/// Chunks that were cut where their content says so, and are chunks at any place, with their
/// lengths.
fn pool(seed: u64, mib: usize) -> Vec<(Chunk, u32)> {
    let mut noise = vec![0; mib << 20];
    Random::seeded(seed).fill(&mut noise);
    let content = Content::of(&noise);
    let mut chunks = content.chunks.into_iter();
    let mut pool = Vec::new();
    for leaf in &content.leaves {
        let of_leaf: Vec<_> = chunks.by_ref().take(leaf.entries.len()).collect();
        let blocks = leaf.entries.iter().map(|entry| entry.blocks);
        pool.extend(of_leaf.into_iter().zip(blocks));
        // The last chunk was cut by the end of its segment.
        pool.pop();
    }
    pool
}

/// A leaf full of chunks of a pool, in random order.
fn leaf(segment: u32, pool: &[(Chunk, u32)], random: &mut Random) -> Leaf {
    let mut entries = Vec::new();
    let mut start_block = 0;
    loop {
        let (chunk, blocks) = &pool[random.index(pool.len())];
        if start_block + blocks > SEGMENT_BLOCKS {
            return Leaf { segment, entries };
        }
        entries.push(LeafEntry {
            start_block,
            blocks: *blocks,
            chunk_id: chunk.id.clone(),
        });
        start_block += blocks;
    }
}

fn root(size_bytes: u64, leaves: &[Leaf]) -> RootId {
    let mut builder = TreeBuilder::new(size_bytes).unwrap();
    for leaf in leaves {
        let entries = leaf.entries.iter().map(|entry| tree::LeafEntry {
            start_block: entry.start_block,
            blocks: entry.blocks,
            chunk: ChunkId::try_from(&entry.chunk_id[..]).unwrap(),
        });
        let id = tree::Leaf::new(entries.collect()).unwrap().id();
        builder.push(leaf.segment, id).unwrap();
    }
    builder.finish().0.id()
}

/// Makes a snapshot of chunks and leaves, with a parent. Returns its id.
async fn put(
    rpc: &Rpc,
    name: &str,
    size_bytes: u64,
    new: &[(Chunk, u32)],
    leaves: &[Leaf],
    parent: &str,
) -> String {
    let request = BeginUploadRequest {
        name: name.to_owned(),
        size_bytes,
        chunker: Some(ChunkerParameters {
            version: CHUNKER_VERSION,
        }),
        lineage: Some(SnapshotLineage {
            created_at: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 5,
            }),
            parent: parent.to_owned(),
            ..SnapshotLineage::default()
        }),
        ..BeginUploadRequest::default()
    };
    let begun = rpc.content.clone().begin_upload(request).await.unwrap();
    let upload_id = begun.into_inner().upload_id;
    let chunks: Vec<_> = new.iter().map(|(chunk, _)| chunk.clone()).collect();
    rpc.put_chunks(&upload_id, &chunks).await.unwrap();
    for leaves in leaves.chunks(64) {
        rpc.put_leaves(&upload_id, leaves).await.unwrap();
    }
    let snapshot = rpc.commit(&upload_id, root(size_bytes, leaves)).await;
    snapshot.unwrap().id
}

#[tokio::test]
async fn a_tree_of_a_million_chunks_and_its_increment_are_copied() {
    let pair = Pair::new();
    let there = Rpc::connect(&pair.there.varved).await;
    let mut random = Random::seeded(901);
    let old = pool(902, 48);
    let mut leaves = Vec::new();
    let mut entries = 0;
    while entries < ENTRIES {
        // Every third segment is a hole.
        let segment = u32::try_from(leaves.len() * 3 / 2).unwrap();
        leaves.push(leaf(segment, &old, &mut random));
        entries += leaves.last().unwrap().entries.len();
    }
    let segments = u64::from(leaves.last().unwrap().segment) + 100;
    let size_bytes = segments * SEGMENT_BYTES as u64;
    let first = put(&there, "first", size_bytes, &old, &leaves, "").await;

    let link = Link::to(&pair.there.varved);
    let copy = |snapshot: &str| {
        let started = Instant::now();
        let before = link.answered_bytes();
        let estimate = ["copy", "estimate", snapshot, "--from", &link.endpoint()];
        let estimate = pair.here.snapctl().json(estimate);
        let copied = super::copy(&pair.here.varved, &link.endpoint(), snapshot, &[]);
        for (estimated, found) in [
            ("missing_chunks", "received_chunks"),
            ("missing_bytes", "received_bytes"),
            ("data_bytes", "done_data_bytes"),
        ] {
            assert_eq!(estimate[estimated], copied[found], "{snapshot}: {found}");
        }
        let (original, shown) = (
            pair.there.snapctl().show(snapshot),
            pair.here.snapctl().show(snapshot),
        );
        for field in ["root", "size_bytes", "data_bytes", "created_at"] {
            assert_eq!(shown[field], original[field], "{snapshot}: {field}");
        }
        println!("{snapshot}: {:.2?}", started.elapsed());
        (copied, link.answered_bytes() - before)
    };
    let (copied, _) = copy("first");
    // With this many picks, every chunk of the pool occurs.
    assert_eq!(number(&copied, "received_chunks"), old.len() as u64);

    // Some segments change, some appear, some disappear.
    let new = pool(903, 8);
    for at in (0..leaves.len()).step_by(leaves.len() / 9) {
        leaves[at] = leaf(leaves[at].segment, &new, &mut random);
    }
    leaves.remove(leaves.len() / 2);
    leaves.push(leaf(
        u32::try_from(segments).unwrap() - 1,
        &new,
        &mut random,
    ));
    let used = leaves.iter().flat_map(|leaf| &leaf.entries);
    let used: std::collections::HashSet<&Bytes> = used.map(|entry| &entry.chunk_id).collect();
    let new: Vec<_> = new
        .into_iter()
        .filter(|(chunk, _)| used.contains(&chunk.id))
        .collect();
    put(&there, "second", size_bytes, &new, &leaves, &first).await;
    let (copied, crossed) = copy("second");
    assert_eq!(number(&copied, "received_chunks"), new.len() as u64);
    // Twelve leaves and the nodes above them, once for the estimate.
    let besides = crossed - number(&copied, "received_bytes");
    assert!(besides < MIB, "{besides} bytes besides the chunks");
    assert_eq!(
        pair.here.snapctl().show("second")["parent"],
        pair.here.snapctl().show("first")["id"]
    );
    let peaks = [&pair.there, &pair.here].map(|lab| lab.varved.peak_memory_bytes());
    println!("peaks: {} and {} MiB", peaks[0] / MIB, peaks[1] / MIB);
    assert!(peaks.iter().all(|peak| *peak < DAEMON_MAX), "{peaks:?}");
    assert_eq!(text(&copied, "state"), "completed");
}
