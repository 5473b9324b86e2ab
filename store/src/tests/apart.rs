//! Shared work continues, even if the caller that began it waits for something else.

use std::{collections::BTreeMap, time::Duration};

use varve_content::{
    ChunkId,
    block::{SEGMENT_BLOCKS, SEGMENT_BYTES},
    tree::{InnerNode, Leaf, LeafEntry, TreeBuilder},
};

use super::{
    Random, block_on, incoming,
    machine::Machine,
    new_snapshot,
    pending::{completed, fill, pending},
    random_image, read, upload,
    volume_data::{BLOCK, new_volume},
};
use crate::{Store, limits};

/// Waits for an action that has all it needs. Times out, because its needs may be held by a caller
/// that is not polled.
pub(super) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let within = Duration::from_secs(100);
    let done = tokio::time::timeout(within, work).await;
    done.unwrap_or_else(|_| panic!("{what} waits for somebody who is not polled"))
}

/// Like a client that for a while takes none of the data read for it.
#[test]
fn what_others_want_too_is_read_though_nobody_polls_who_asked_first() {
    let machine = Machine::new();
    let image = random_image(&mut Random::new(5), 300);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "s", &image).await.unwrap();
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let first = store.open_snapshot(&"s".into()).await.unwrap();
        let second = store.open_snapshot(&"s".into()).await.unwrap();
        let mut asked = Box::pin(first.read(0, image.len()));
        assert!(futures::poll!(&mut asked).is_pending());
        let found = soon("the second", second.read(0, image.len())).await;
        let mut bytes = Vec::new();
        for piece in found.unwrap() {
            piece.append_to(&mut bytes);
        }
        assert!(bytes == image);
        // Nor does it keep a place among the reads under way.
        let read_budget = &store.engine().budgets.reads;
        assert_eq!(
            read_budget.available_permits(),
            limits::READ_BYTES_IN_FLIGHT
        );
        asked.await.unwrap();
        store.close().await.unwrap();
    });
}

const BASE_SEGMENTS: u32 = 300;

/// A snapshot with a block in each of its segments, and the last inner node above them.
async fn base(store: &Store, name: &str) -> InnerNode {
    let bytes = vec![9; BLOCK];
    let leaf = Leaf::new(vec![LeafEntry {
        start_block: 7,
        blocks: 1,
        chunk: ChunkId::of(&bytes),
    }]);
    let leaf = leaf.unwrap();
    let size = BASE_SEGMENTS as usize * SEGMENT_BYTES;
    let ingest = store.begin_ingest(new_snapshot(name, size)).await.unwrap();
    let chunk = incoming(ChunkId::of(&bytes), &bytes);
    ingest.put_chunks(vec![chunk]).await.unwrap();
    let mut tree = TreeBuilder::new(size as u64).unwrap();
    let mut leaves = Vec::new();
    for segment in 0..BASE_SEGMENTS {
        tree.push(segment, leaf.id()).unwrap();
        leaves.push((segment, leaf.clone()));
    }
    ingest.put_leaves(leaves).await.unwrap();
    let (root, inners) = tree.finish();
    ingest.commit(root.id()).await.unwrap();
    let children = BASE_SEGMENTS as usize % 256;
    let last = inners
        .into_iter()
        .find(|it| it.children().len() == children);
    last.unwrap()
}

/// A volume's tree that waits for a node, which another caller is reading slowly, keeps no segment
/// from being cut, its own or another volume's. Segments are cut one at a time.
#[test]
fn segments_are_cut_while_a_tree_waits_for_a_node() {
    let machine = Machine::new();
    let last = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let last = base(&store, "base").await;
        store.close().await.unwrap();
        last
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        // Larger than its base, and written behind the end of that, twice: only the tree needs the
        // node there.
        let mut new = new_volume("v", 2 * BASE_SEGMENTS as usize * SEGMENT_BYTES);
        new.from = Some("base".into());
        store.create_volume(new).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let new = new_volume("w", SEGMENT_BYTES);
        store.create_volume(new).await.unwrap();
        let other = store.open_volume(&"w".into()).await.unwrap();
        let written = [10, 11].map(|at| (BASE_SEGMENTS + at) as usize * SEGMENT_BLOCKS as usize);
        for block in written {
            fill(&volume, block, 1).await;
        }
        fill(&other, 0, 3).await;

        let engine = store.engine();
        let mut brought = Box::pin(engine.inner_node(last.id()));
        assert!(futures::poll!(&mut brought).is_pending());
        let most = u32::try_from(limits::CHECKPOINT_SEGMENTS_IN_FLIGHT).unwrap();
        let kept = store
            .volumes()
            .checkpoint_segment_permits
            .acquire_many(most - 1)
            .await
            .unwrap();
        let id = pending(&store, "v", "s").await.unwrap().id;
        let has_begun = async {
            while store.snapshot_progress(id).unwrap().segments_done == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon("the volume", has_begun).await;
        let taken = other.snapshot("t", BTreeMap::new());
        soon("the other volume", taken).await.unwrap();
        assert_eq!(store.snapshot(&"s".into()).await.unwrap().root(), None);
        brought.await.unwrap();
        completed(&store, "s").await;
        for block in written {
            let found = read(&store, "s", block * BLOCK, BLOCK).await.unwrap();
            assert!(found == [1; BLOCK]);
        }
        drop(kept);
        store.close().await.unwrap();
    });
}
