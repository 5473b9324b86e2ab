//! Places in leaves: when each is looked up, and what it proves about the chunk.

use std::sync::Arc;

use varve_content::{
    block::BLOCK_BYTES,
    tree::{Leaf, LeafEntry, find_leaf},
};

use super::{Cut, Random, block_on, cut, upload};
use crate::{
    ContentReader, Error, Options, Place, Store,
    engine::LocatedLeaf,
    format::{Location, Name},
    meta::Batch,
    pack::LostPlaces,
};

/// A store with one segment of chunks that all differ.
async fn opened(dir: &std::path::Path) -> (Store, Vec<u8>, Cut) {
    let mut random = Random::new(11);
    let words = (0..400 * BLOCK_BYTES / 8).flat_map(|_| random.next().to_le_bytes());
    let image: Vec<_> = words.collect();
    let (store, _) = Store::open(Options::new(dir)).await.unwrap();
    upload(&store, "web", &image).await.unwrap();
    let cut = cut(&image);
    assert_eq!(cut.chunks.len(), cut.leaves[0].1.entries().len());
    (store, image, cut)
}

async fn block_of(reader: &ContentReader, entry: &LeafEntry) -> crate::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let offset_bytes = u64::from(entry.start_block) * BLOCK_BYTES as u64;
    for piece in reader.read(offset_bytes, BLOCK_BYTES).await? {
        piece.append_to(&mut bytes);
    }
    Ok(bytes)
}

/// Positions of the places that a leaf knows.
fn known(leaf: &LocatedLeaf) -> Vec<usize> {
    let all: Vec<_> = (0..leaf.leaf().entries().len()).collect();
    let known: Vec<Option<Location>> = leaf.known(&all);
    let known = all.into_iter().zip(known);
    known.filter_map(|(at, place)| place.map(|_| at)).collect()
}

#[test]
fn a_read_looks_up_what_it_needs_and_as_much_ahead_as_is_known() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, image, cut) = opened(directory.path()).await;
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let located = reader.segment(0).await.unwrap().unwrap().located;
        let entries = cut.leaves[0].1.entries();
        assert_eq!(known(&located), []);
        for (at, expected) in [
            (1, vec![1]),
            (5, vec![1, 5, 6]),
            // It is in the cache.
            (5, vec![1, 5, 6]),
            // Known, and not in the cache.
            (6, vec![1, 5, 6]),
            (0, vec![0, 1, 2, 3, 4, 5, 6]),
        ] {
            let bytes = block_of(&reader, &entries[at]).await.unwrap();
            let start = entries[at].start_block as usize * BLOCK_BYTES;
            assert!(bytes == image[start..start + BLOCK_BYTES]);
            let again = reader.segment(0).await.unwrap().unwrap().located;
            assert!(Arc::ptr_eq(&again, &located), "it stays in the cache");
            assert_eq!(known(&located), expected, "after entry {at}");
        }
        let found = super::read(&store, "web", 0, image.len()).await.unwrap();
        assert!(found == image);
        assert_eq!(known(&located).len(), entries.len());
    });
}

/// A chunk in the cache is no proof that a leaf describes it as it is.
#[test]
fn a_leaf_with_another_length_of_a_chunk_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _, cut) = opened(directory.path()).await;
        let engine = store.engine();
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let id = find_leaf(&**engine, reader.root(), 0)
            .await
            .unwrap()
            .unwrap();
        let [first, second, ..] = *cut.leaves[0].1.entries() else {
            panic!("the image has more chunks");
        };
        let wrong = LeafEntry {
            blocks: first.blocks + 1,
            ..first
        };
        let wrong = LocatedLeaf::new(Leaf::new(vec![wrong]).unwrap());
        for is_cached in [false, true] {
            if is_cached {
                let of = LocatedLeaf::new(Leaf::new(vec![first]).unwrap());
                let wanted = [(first.chunk, engine.all_places(&of).await.unwrap()[0])];
                engine.load_chunks(&of, &wanted).await.unwrap();
                assert!(engine.cache.chunk(Name::chunk(first.chunk)).is_some());
            }
            let put = || async { Ok(LocatedLeaf::new((**wrong.leaf()).clone())) };
            engine.cache.leaf_or(Name::leaf(id), put).await.unwrap();
            for entry in [first, second] {
                match block_of(&reader, &entry).await.unwrap_err() {
                    Error::Damaged(damage) => assert_eq!(damage.snapshots, ["web"]),
                    error => panic!("{error}"),
                }
            }
        }
    });
}

#[test]
fn the_place_of_a_leaf_outlives_the_leaf_in_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, image, cut) = opened(directory.path()).await;
        let engine = store.engine();
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let [first, second, third, ..] = *cut.leaves[0].1.entries() else {
            panic!("the image has more chunks");
        };
        block_of(&reader, &first).await.unwrap();
        let name = Name::leaf(cut.leaves[0].1.id());
        let place = engine.meta.lookup(&[name]).unwrap()[0].unwrap();
        let mut batch = Batch::default();
        batch.remove_from(name, place.pack);
        engine.meta.apply(batch, true).unwrap();
        engine.cache.forget(name);
        // Without the index.
        let start = second.start_block as usize * BLOCK_BYTES;
        let bytes = block_of(&reader, &second).await.unwrap();
        assert!(bytes == image[start..start + BLOCK_BYTES]);
        // A place that is lost is no place to read again.
        engine.cache.forget(name);
        let mark = |lost: &mut LostPlaces| lost.add_record(place.pack, place.offset_bytes);
        assert!(mark(&mut engine.lost.write()));
        match block_of(&reader, &third).await.unwrap_err() {
            Error::Damaged(damage) => assert_eq!(damage.place, Place::Missing),
            error => panic!("{error}"),
        }
    });
}
