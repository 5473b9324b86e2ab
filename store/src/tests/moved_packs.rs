//! Records that are moved to other packs while readers hold places of the old ones.

use std::{fs, ops::ControlFlow, sync::Arc};

use varve_content::block::SEGMENT_BYTES;

use super::{Random, assert_holds, block_on, random_image, repairs::closed, upload};
use crate::{
    ContentReader, Error, Options, Place, Store,
    format::{Location, Name, PackId, PackKind, names},
    limits,
    meta::{Batch, IndexView, Meta as _, RocksMeta},
    pack::LocalPacks,
    rebuild,
};

/// The packs of a store.
fn packs_of(store: &Store) -> Arc<LocalPacks> {
    let engine = store.engine();
    let dir = &engine.options.data_dir;
    LocalPacks::open(
        Arc::clone(&engine.disk),
        dir,
        engine.store_id,
        limits::PACK_BYTES_MAX,
        4,
    )
    .unwrap()
}

/// Moves all records to packs of other numbers, as a collector would: copies, index, files.
async fn move_all(store: &Store) {
    let engine = store.engine();
    let dir = &engine.options.data_dir;
    let packs = packs_of(store);
    let old = packs.list().unwrap();
    let mut batch = Batch::default();
    for pack in &old {
        let to = PackId {
            number: pack.number + 1000,
            ..*pack
        };
        fs::hard_link(names::pack(dir, *pack), names::pack(dir, to)).unwrap();
    }
    // Not by the packs: the header of a moved pack names another one.
    let mut add = |name: Name, mut location: Location| {
        location.pack.number += 1000;
        batch.put(name, location);
        ControlFlow::Continue(())
    };
    let mut look = |view: &dyn IndexView| {
        view.scan(PackKind::Chunks, &mut add)?;
        view.scan(PackKind::Nodes, &mut add)
    };
    engine.meta.view(&mut look).unwrap();
    engine.meta.apply(batch, true).unwrap();
    for pack in old {
        engine.packs.store().delete(pack).await.unwrap();
    }
}

async fn read(reader: &ContentReader, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for piece in reader.read(offset as u64, len).await.unwrap() {
        piece.append_to(&mut bytes);
    }
    bytes
}

#[test]
fn readers_find_records_that_were_moved() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    // Leaves stay in the cache, with the places of their chunks; most chunks do not.
    options.chunk_cache_bytes = 512 << 10;
    let image = random_image(&mut Random::new(5), 5000);
    block_on(async {
        let (store, _) = Store::open(options).await.unwrap();
        upload(&store, "web", &image).await.unwrap();
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let stale = reader.segment(0).await.unwrap().unwrap();
        let stored = reader.stored_chunks(&stale).await.unwrap();
        let place = async |segment: &crate::Segment| {
            let places = store.engine().places(&segment.located, &[0]).await.unwrap();
            places[0].unwrap()
        };
        let old = place(&stale).await;
        for segment in 0..image.len() / SEGMENT_BYTES {
            read(&reader, segment * SEGMENT_BYTES, 4096).await;
        }

        move_all(&store).await;
        // By places in a leaf that is cached.
        assert!(read(&reader, 0, image.len()).await == image);
        // By places that a caller holds.
        let again = reader.stored_chunks(&stale).await.unwrap();
        let payloads = |chunks: &[crate::StoredChunk]| -> Vec<_> {
            chunks.iter().map(|it| it.payload.clone()).collect()
        };
        assert_eq!(payloads(&again), payloads(&stored));
        assert_eq!(reader.chunks(&stale).await.unwrap().len(), stored.len());
        // Moved records are located anew.
        let fresh = reader.segment(0).await.unwrap().unwrap();
        assert_eq!(place(&fresh).await.pack.number, old.pack.number + 1000);
        assert_holds(&store, "web", &image).await;
        assert!(store.vouches_for_snapshots());
        assert!(store.engine().lost.read().is_empty());

        // Moved again and again.
        move_all(&store).await;
        move_all(&store).await;
        assert_eq!(reader.chunks(&stale).await.unwrap().len(), stored.len());
        assert_holds(&store, "web", &image).await;
    });
}

#[test]
fn a_pack_that_is_gone_with_the_index_pointing_there_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(directory.path());
    options.chunk_cache_bytes = 512 << 10;
    let image = random_image(&mut Random::new(6), 1000);
    block_on(async {
        let (store, _) = Store::open(options).await.unwrap();
        upload(&store, "web", &image).await.unwrap();
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let segment = reader.segment(0).await.unwrap().unwrap();
        let engine = store.engine();
        for pack in packs_of(&store).list().unwrap() {
            engine.packs.store().delete(pack).await.unwrap();
        }
        let outcomes = [
            reader.read(0, image.len()).await.map(drop),
            reader.stored_chunks(&segment).await.map(drop),
            reader.chunks(&segment).await.map(drop),
            store.open_snapshot(&"web".into()).await.map(drop),
        ];
        for outcome in outcomes {
            match outcome.unwrap_err() {
                Error::Damaged(damage) => {
                    assert_eq!(damage.problem, "the pack is gone");
                    assert!(matches!(damage.place, Place::Pack { .. }));
                }
                error => panic!("{error}"),
            }
        }
        assert!(!engine.lost.read().is_empty());
    });
}

#[test]
fn what_is_read_is_pinned_and_what_was_deleted_cannot_be() {
    let directory = tempfile::tempdir().unwrap();
    let image = random_image(&mut Random::new(7), 100);
    block_on(async {
        let (store, _) = Store::open(Options::new(directory.path())).await.unwrap();
        let record = upload(&store, "web", &image).await.unwrap();
        let root = record.root().unwrap();
        let pins = Arc::clone(&store.engine().pins);
        let reader = store.open_snapshot(&"web".into()).await.unwrap();
        let other = reader.clone();
        assert_eq!(reader.pin().root(), root);
        assert_eq!(pins.count(root), 1);
        store.delete_snapshot(&"web".into()).await.unwrap();
        drop(reader);
        assert_eq!(pins.count(root), 1);
        assert!(read(&other, 0, image.len()).await == image);
        drop(other);
        assert_eq!(pins.count(root), 0);

        // A record that was read before it was deleted names nothing any more.
        let late = crate::SnapshotReader::open(Arc::clone(store.engine()), record).await;
        assert!(matches!(late, Err(Error::NotFound { .. })));
        assert_eq!(pins.count(root), 0);
    });
}

/// Also if neither a file nor the index remains to show it.
#[test]
fn no_pack_gets_the_number_of_one_that_was_removed() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::new(directory.path());
    let image = |seed| random_image(&mut Random::new(seed), 100);
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        upload(&store, "web", &image(8)).await.unwrap();
        store.delete_snapshot(&"web".into()).await.unwrap();
        let removed = packs_of(&store).list().unwrap();
        let store_id = store.engine().store_id;
        closed(store).await;
        let mut batch = Batch::default();
        for pack in &removed {
            fs::remove_file(names::pack(directory.path(), *pack)).unwrap();
            batch.forget_pack(*pack);
        }
        let meta = RocksMeta::open(&names::index(directory.path()), store_id).unwrap();
        meta.apply(batch, true).unwrap();
        drop(meta);

        let (store, report) = Store::open(options.clone()).await.unwrap();
        assert_eq!(report.damage, []);
        upload(&store, "db", &image(9)).await.unwrap();
        let next = packs_of(&store).list().unwrap();
        assert_eq!(next.len(), 2);
        assert!(next[0].number > removed[1].number, "{next:?} {removed:?}");
        closed(store).await;

        // A new index knows of the packs that are there.
        rebuild(options.clone()).await.unwrap();
        let (store, _) = Store::open(options.clone()).await.unwrap();
        let meta = &store.engine().meta;
        assert_eq!(meta.last_pack_number().unwrap(), next[1].number);
        assert_holds(&store, "db", &image(9)).await;
        closed(store).await;
    });
}
