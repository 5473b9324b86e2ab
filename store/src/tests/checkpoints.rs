//! The cost of a checkpoint: it follows the amount of writes, not the size of the volume.

use std::collections::BTreeMap;

use bytes::Bytes;
use varve_content::{
    ChunkId, RootId,
    block::{SEGMENT_BLOCKS, SEGMENT_BYTES},
    tree::{Leaf, LeafEntry, TreeBuilder},
};

use super::{
    Random, assert_holds, block_on, incoming,
    machine::Machine,
    new_snapshot,
    pending::{completed, fill, pending},
    read, seed,
    volume_data::{BLOCK, contents, new_volume, options},
};
use crate::{Store, Volume, limits};

const SEGMENT: u64 = SEGMENT_BYTES as u64;
/// 1 TiB.
const LARGE: u64 = 1 << 40;
/// Blocks of data that each segment of a full volume has here.
const FULL_BLOCKS: u32 = 3;

/// The leaf of a segment that holds a few blocks, and their bytes.
fn full_leaf() -> (Leaf, Vec<u8>) {
    let bytes = vec![9; FULL_BLOCKS as usize * BLOCK];
    let leaf = Leaf::new(vec![LeafEntry {
        start_block: 7,
        blocks: FULL_BLOCKS,
        chunk: ChunkId::of(&bytes),
    }]);
    (leaf.unwrap(), bytes)
}

/// The root of a volume with that leaf in some segments.
fn root_with(size_bytes: u64, segments: impl Iterator<Item = u32>) -> RootId {
    let leaf = full_leaf().0.id();
    let mut builder = TreeBuilder::new(size_bytes).unwrap();
    for segment in segments {
        builder.push(segment, leaf).unwrap();
    }
    builder.finish().0.id()
}

/// A snapshot with a leaf in each of its segments.
async fn full_snapshot(store: &Store, name: &str, size_bytes: u64) {
    let segments = u32::try_from(size_bytes / SEGMENT).unwrap();
    let (leaf, bytes) = full_leaf();
    let new = new_snapshot(name, size_bytes as usize);
    let ingest = store.begin_ingest(new).await.unwrap();
    let chunk = incoming(ChunkId::of(&bytes), &bytes);
    ingest.put_chunks(vec![chunk]).await.unwrap();
    for start in (0..segments).step_by(1 << 14) {
        let end = segments.min(start + (1 << 14));
        let leaves = (start..end).map(|segment| (segment, leaf.clone()));
        ingest.put_leaves(leaves.collect()).await.unwrap();
    }
    let root = root_with(size_bytes, 0..segments);
    ingest.commit(root).await.unwrap();
}

async fn volume_from(store: &Store, name: &str, snapshot: &str) -> Volume {
    let mut new = new_volume(name, LARGE as usize);
    new.from = Some(snapshot.into());
    store.create_volume(new).await.unwrap();
    store.open_volume(&name.into()).await.unwrap()
}

/// Trims as a file system does: in pieces that keep to no segments.
async fn trim_in_pieces(volume: &Volume, end: u64) {
    let mut position = 0;
    while position < end {
        let len = ((1 << 30) - 5 * BLOCK as u64).min(end - position);
        volume.trim(position, len).await.unwrap();
        position += len;
    }
}

/// Takes a snapshot, and returns the number of disk reads for it.
async fn reads_of_snapshot(machine: &Machine, volume: &Volume, name: &str) -> u64 {
    let before = machine.disk.reads();
    volume.snapshot(name, BTreeMap::new()).await.unwrap();
    machine.disk.reads() - before
}

#[test]
fn what_was_given_back_costs_nothing() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store
            .create_volume(new_volume("empty", LARGE as usize))
            .await
            .unwrap();
        let empty = store.open_volume(&"empty".into()).await.unwrap();
        full_snapshot(&store, "full", LARGE).await;
        let full = volume_from(&store, "was-full", "full").await;
        for (volume, name) in [(&empty, "e"), (&full, "f")] {
            trim_in_pieces(volume, LARGE).await;
            assert!(volume.map_bytes() < 8192, "{}", volume.map_bytes());
            // It only reads its own root.
            let reads = reads_of_snapshot(&machine, volume, name).await;
            assert!(reads <= 2, "{name}: {reads} reads");
            let record = store.snapshot(&name.into()).await.unwrap();
            assert_eq!(record.root(), Some(root_with(LARGE, 0..0)), "{name}");
            assert_eq!(record.completed().unwrap().data_bytes, 0);
        }
        store.close().await.unwrap();
    });
}

#[test]
fn only_paths_to_what_changed_are_read_and_stored() {
    let machine = Machine::new();
    let all = u32::try_from(LARGE / SEGMENT).unwrap();
    let leaf_bytes = u64::from(FULL_BLOCKS) * BLOCK as u64;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        full_snapshot(&store, "full", LARGE).await;

        // A block where none was, in the middle.
        let volume = volume_from(&store, "one-block", "full").await;
        let middle = LARGE / 2 + 100 * BLOCK as u64;
        let data = Bytes::from(vec![1; BLOCK]);
        volume.write(middle, data).await.unwrap();
        let reads = reads_of_snapshot(&machine, &volume, "s").await;
        // Three inner nodes, the leaf, the block and the new root.
        assert!(reads <= 8, "{reads} reads");
        let content = store.snapshot(&"s".into()).await.unwrap();
        let content = content.completed().unwrap();
        let data_bytes = u64::from(all) * leaf_bytes + BLOCK as u64;
        assert_eq!(content.data_bytes, data_bytes);
        let nodes = 3 * varve_content::tree::INNER_MAX_BYTES as u64;
        assert!(
            content.stored_bytes < nodes + 4096,
            "{}",
            content.stored_bytes
        );
        let found = read(&store, "s", middle as usize, BLOCK).await.unwrap();
        assert!(found == [1; BLOCK]);

        // Few leaves stay, or few go: the fewer are counted.
        for (name, kept) in [("few-stay", 0..3), ("few-go", 3..all)] {
            let volume = volume_from(&store, name, "full").await;
            let (start, end) = match kept.start {
                0 => (u64::from(kept.end) * SEGMENT, LARGE),
                start => (0, u64::from(start) * SEGMENT),
            };
            volume.write_zeroes(start, end - start).await.unwrap();
            let reads = reads_of_snapshot(&machine, &volume, &format!("s-{name}")).await;
            assert!(reads <= 16, "{name}: {reads} reads");
            let record = store
                .snapshot(&format!("s-{name}").as_str().into())
                .await
                .unwrap();
            assert_eq!(
                record.root(),
                Some(root_with(LARGE, kept.clone())),
                "{name}"
            );
            let data_bytes = u64::from(kept.end - kept.start) * leaf_bytes;
            assert_eq!(record.completed().unwrap().data_bytes, data_bytes, "{name}");
        }
        store.close().await.unwrap();
    });
}

/// The data size in a snapshot's record is exact, even if that of its base is unknown.
#[test]
fn data_is_counted_however_it_came_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed());
    let size = 40 * SEGMENT_BYTES + 512;
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        store.create_volume(new_volume("v", size)).await.unwrap();
        let mut volume = store.open_volume(&"v".into()).await.unwrap();
        let mut blocks = vec![false; size.div_ceil(BLOCK)];
        for round in 0..24 {
            for _ in 0..6 {
                let at = random.below(blocks.len() - 1);
                if random.below(3) == 0 {
                    let end =
                        (at + random.below(5 * SEGMENT_BLOCKS as usize)).min(blocks.len() - 1);
                    let len = ((end - at) * BLOCK) as u64;
                    volume.trim((at * BLOCK) as u64, len).await.unwrap();
                    blocks[at..end].fill(false);
                } else {
                    fill(&volume, at, 1 + random.below(3) as u8).await;
                    blocks[at] = true;
                }
            }
            let name = format!("s{round}");
            volume.snapshot(&name, BTreeMap::new()).await.unwrap();
            let record = store.snapshot(&name.as_str().into()).await.unwrap();
            let data_blocks = blocks.iter().filter(|is_data| **is_data).count();
            let data_bytes = (data_blocks * BLOCK) as u64;
            assert_eq!(record.completed().unwrap().data_bytes, data_bytes, "{name}");
            if random.below(3) == 0 {
                store.delete_snapshot(&name.as_str().into()).await.unwrap();
                volume.close().await.unwrap();
                drop(volume);
                volume = store.open_volume(&"v".into()).await.unwrap();
            }
        }
        volume.snapshot("last", BTreeMap::new()).await.unwrap();
        assert_holds(&store, "last", &contents(&volume).await).await;
        store.close().await.unwrap();
    });
}

/// An upload that holds all the leaves that uploads may hold does not block volumes.
#[test]
fn a_snapshot_needs_none_of_the_room_of_uploads() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let all = u32::try_from(limits::UPLOAD_LEAVES_MAX).unwrap();
        let room = &store.engine().budgets.leaves;
        let _uploads = room.acquire_many(all).await.unwrap();
        store
            .create_volume(new_volume("v", 4 * BLOCK))
            .await
            .unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 1, 5).await;
        volume.snapshot("s", BTreeMap::new()).await.unwrap();
        let mut image = vec![0; 4 * BLOCK];
        image[BLOCK..2 * BLOCK].fill(5);
        assert_holds(&store, "s", &image).await;
        store.close().await.unwrap();
    });
}

/// A volume with little to store does not wait for one with much. Segments are cut one at a time
/// here: with two places, a volume whose segments take longer would occupy one of them, and the
/// other volume could use the other as often as it likes.
#[test]
fn volumes_take_turns_by_the_segment() {
    const MUCH: u64 = 120;
    const LITTLE: u64 = 5;
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let segments = &store.volumes().checkpoint_segment_permits;
        let all = u32::try_from(limits::CHECKPOINT_SEGMENTS_IN_FLIGHT).unwrap();
        let kept = segments.acquire_many(all - 1).await.unwrap();
        let held = segments.acquire().await.unwrap();
        let mut ids = Vec::new();
        for (name, segments, byte) in [("much", MUCH, 1), ("little", LITTLE, 2)] {
            let size = segments as usize * SEGMENT_BYTES;
            store.create_volume(new_volume(name, size)).await.unwrap();
            let volume = store.open_volume(&name.into()).await.unwrap();
            for segment in 0..segments as usize {
                fill(&volume, segment * SEGMENT_BLOCKS as usize, byte).await;
            }
            ids.push(pending(&store, name, name).await.unwrap().id);
        }
        let done = |at: usize| store.snapshot_progress(ids[at]).unwrap();
        // Each asks for its first segments, the one with much before the other.
        while done(0).segments_total == 0 || done(1).segments_total == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(done(0).segments_total, MUCH);
        drop(held);
        while done(1).segments_done < LITTLE {
            tokio::task::yield_now().await;
        }
        // In turn it is as many as the other, and a few that are under way; what this leaves is for
        // threads that wait for a processor.
        let much = done(0);
        assert!(much.segments_done < MUCH / 2, "{much:?}");
        for name in ["much", "little"] {
            completed(&store, name).await;
        }
        drop(kept);
        store.close().await.unwrap();
    });
}

/// The maps of journals are bounded over all volumes: the largest one is checkpointed, whichever
/// volume is written.
#[test]
fn the_largest_map_makes_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let size = 256 * SEGMENT_BYTES;
        for name in ["large", "small"] {
            store.create_volume(new_volume(name, size)).await.unwrap();
        }
        let large = store.open_volume(&"large".into()).await.unwrap();
        let small = store.open_volume(&"small".into()).await.unwrap();
        for segment in 0..200 {
            fill(&large, segment * SEGMENT_BLOCKS as usize, 1).await;
        }
        fill(&small, 0, 1).await;
        assert!(large.map_bytes() > 10 * small.map_bytes());
        // Others have much.
        let others = limits::MAPS_BYTES_MAX / 4 * 3;
        let _charge = store.volumes().map_memory.charge(others);
        fill(&small, 1, 1).await;
        while large.map_bytes() > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(store.volume(&"large".into()).await.unwrap().base.is_some());
        assert_eq!(
            read_block(&large, 100 * SEGMENT_BLOCKS as usize).await,
            [1; BLOCK]
        );
        store.close().await.unwrap();
    });
}

#[test]
fn a_volume_goes_on_with_a_small_map_when_there_is_no_memory_for_more() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let size = 1024 * SEGMENT_BYTES;
        store.create_volume(new_volume("v", size)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let _charge = store.volumes().map_memory.charge(limits::MAPS_BYTES_MAX);
        let mut most = 0;
        for segment in 0..1000 {
            fill(
                &volume,
                segment * SEGMENT_BLOCKS as usize,
                1 + (segment % 255) as u8,
            )
            .await;
            most = most.max(volume.map_bytes());
        }
        // Its own least, and as much again that is on its way into the store.
        assert!(most < 3 * limits::MAP_BYTES_LEAST, "{most}");
        for segment in [0, 500, 999] {
            let found = read_block(&volume, segment * SEGMENT_BLOCKS as usize).await;
            assert_eq!(found, [1 + (segment % 255) as u8; BLOCK]);
        }
        store.close().await.unwrap();
    });
}

async fn read_block(volume: &Volume, block: usize) -> Vec<u8> {
    super::volume_data::read(volume, block * BLOCK, BLOCK).await
}
