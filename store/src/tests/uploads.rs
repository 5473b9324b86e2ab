//! Uploads that are not right are refused, and say what is wrong.

use varve_content::{
    ChunkId, RootId,
    codec::Codec,
    tree::{Leaf, LeafEntry},
};

use super::{
    Cut, Random, assert_holds, block_on, cut, incoming, new_snapshot, random_image, send, upload,
};
use crate::{Error, IncomingChunk, Options, Store};

const BLOCK: usize = 4096;

fn with_store<F, T>(test: F) -> T
where
    F: AsyncFnOnce(Store) -> T,
{
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        test(store).await
    })
}

fn noise(blocks: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    let mut image = vec![0; blocks * BLOCK];
    image
        .chunks_mut(8)
        .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
    image
}

fn message(error: &Error) -> String {
    assert!(
        matches!(
            error,
            Error::Invalid(_) | Error::NotCanonical { .. } | Error::Limit(_)
        ),
        "{error}"
    );
    error.to_string()
}

#[test]
fn a_chunk_whose_bytes_have_another_id() {
    with_store(async |store| {
        let image = noise(4);
        let ingest = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        let mut chunk = incoming(ChunkId::of(&image), &image);
        chunk.id = ChunkId::of(b"other");
        let refused = message(&ingest.put_chunks(vec![chunk]).await.unwrap_err());
        assert!(
            refused.contains(&ChunkId::of(b"other").to_string()),
            "{refused}"
        );
        assert!(
            refused.contains(&ChunkId::of(&image).to_string()),
            "{refused}"
        );
    });
}

#[test]
fn a_chunk_of_a_length_that_no_chunk_has() {
    with_store(async |store| {
        let ingest = store
            .begin_ingest(new_snapshot("a", 1 << 20))
            .await
            .unwrap();
        for plain_bytes in [0, 1, 4095, 4097, (256 << 10) + 4096, u32::MAX] {
            let chunk = IncomingChunk {
                id: ChunkId::of(b""),
                codec: Codec::Zstd,
                plain_bytes,
                payload: vec![0; 10].into(),
            };
            let refused = message(&ingest.put_chunks(vec![chunk]).await.unwrap_err());
            assert!(refused.contains(&plain_bytes.to_string()), "{refused}");
        }
    });
}

#[test]
fn a_payload_that_does_not_unpack() {
    with_store(async |store| {
        let image = noise(4);
        let ingest = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let mut chunk = incoming(ChunkId::of(&image), &image);
            chunk.codec = codec;
            let refused = message(&ingest.put_chunks(vec![chunk]).await.unwrap_err());
            assert!(
                refused.contains(&ChunkId::of(&image).to_string()),
                "{refused}"
            );
        }
    });
}

#[test]
fn a_chunk_that_the_chunker_would_have_cut() {
    with_store(async |store| {
        // Noise of 64 blocks is cut somewhere with near certainty; a zero block inside always ends
        // a chunk.
        for image in [noise(64), [noise(4), vec![0; BLOCK], noise(4)].concat()] {
            let ingest = store
                .begin_ingest(new_snapshot("a", image.len()))
                .await
                .unwrap();
            let id = ChunkId::of(&image);
            let refused = message(
                &ingest
                    .put_chunks(vec![incoming(id, &image)])
                    .await
                    .unwrap_err(),
            );
            assert!(refused.contains("not cut as"), "{refused}");
            assert!(refused.contains(&id.to_string()), "{refused}");
        }
    });
}

fn leaf(entries: &[(u32, u32, ChunkId)]) -> Leaf {
    let entry = |(start_block, blocks, chunk): &(u32, u32, ChunkId)| LeafEntry {
        start_block: *start_block,
        blocks: *blocks,
        chunk: *chunk,
    };
    Leaf::new(entries.iter().map(entry).collect()).unwrap()
}

#[test]
fn leaves_that_do_not_fit() {
    with_store(async |store| {
        let image = noise(3);
        let id = ChunkId::of(&image);
        let ingest = store
            .begin_ingest(new_snapshot("a", 10 * BLOCK))
            .await
            .unwrap();
        let absent = message(
            &ingest
                .put_leaves(vec![(0, leaf(&[(0, 3, id)]))])
                .await
                .unwrap_err(),
        );
        assert!(
            absent.contains("was not uploaded") && absent.contains(&id.to_string()),
            "{absent}"
        );

        ingest.put_chunks(vec![incoming(id, &image)]).await.unwrap();
        for (segment, entries, why) in [
            (1, vec![(0, 3, id)], "has 1 segments"),
            (0, vec![(8, 3, id)], "ends at block 11"),
            (0, vec![(0, 4, id)], "the leaf says 4 blocks"),
            (
                0,
                vec![(0, 3, id), (3, 3, id)],
                "must be followed by a hole",
            ),
        ] {
            let refused = message(
                &ingest
                    .put_leaves(vec![(segment, leaf(&entries))])
                    .await
                    .unwrap_err(),
            );
            assert!(refused.contains(why), "{refused}");
        }
        ingest
            .put_leaves(vec![(0, leaf(&[(7, 3, id)]))])
            .await
            .unwrap();
        ingest
            .put_leaves(vec![(0, leaf(&[(6, 3, id)]))])
            .await
            .unwrap();
        let twice = message(
            &ingest
                .commit(RootId::from_bytes([0; 32]))
                .await
                .unwrap_err(),
        );
        assert!(twice.contains("segment 0 was put twice"), "{twice}");
    });
}

#[test]
fn a_root_that_the_content_does_not_have() {
    with_store(async |store| {
        let image = random_image(&mut Random::new(3), 5000);
        let Cut { root, .. } = cut(&image);
        let ingest = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        let mut part = cut(&image);
        part.leaves.pop();
        send(&ingest, &part).await.unwrap();
        let refused = message(&ingest.commit(root).await.unwrap_err());
        assert!(refused.contains(&root.to_string()), "{refused}");
        assert!(matches!(
            store.snapshot(&"a".into()).await,
            Err(Error::NotFound { .. })
        ));
        let again = message(&ingest.commit(root).await.unwrap_err());
        assert!(again.contains("committed before"), "{again}");
    });
}

#[test]
fn sizes_names_and_versions_that_are_refused() {
    with_store(async |store| {
        assert!(store.begin_ingest(new_snapshot("a", 0)).await.is_err());
        assert!(
            store
                .begin_ingest(new_snapshot("a", (16 << 40) + 1))
                .await
                .is_err()
        );
        assert!(store.begin_ingest(new_snapshot("", 1)).await.is_err());
        let mut other = new_snapshot("a", 1);
        other.chunker_version = 2;
        let refused = message(&store.begin_ingest(other).await.unwrap_err());
        assert!(refused.contains("chunker version"), "{refused}");
    });
}

#[test]
fn an_upload_that_is_dropped_leaves_its_chunks_for_the_next() {
    with_store(async |store| {
        let image = random_image(&mut Random::new(5), 3000);
        let wanted = cut(&image);
        let first = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        let sent = send(&first, &wanted).await.unwrap();
        assert!(sent.new_bytes > 0);
        drop(first);
        assert!(matches!(
            store.snapshot(&"a".into()).await,
            Err(Error::NotFound { .. })
        ));
        let second = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        let sent = send(&second, &wanted).await.unwrap();
        assert_eq!(sent.new_bytes, 0);
        second.commit(wanted.root).await.unwrap();
        assert_holds(&store, "a", &image).await;
    });
}

#[test]
fn the_same_name_at_the_same_time_is_given_once() {
    with_store(async |store| {
        let image = noise(20);
        let wanted = cut(&image);
        let first = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        let second = store
            .begin_ingest(new_snapshot("a", image.len()))
            .await
            .unwrap();
        send(&first, &wanted).await.unwrap();
        send(&second, &wanted).await.unwrap();
        first.commit(wanted.root).await.unwrap();
        let refused = second.commit(wanted.root).await.unwrap_err();
        assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
    });
}

#[test]
fn an_image_of_zeros_takes_no_chunk() {
    with_store(async |store| {
        let record = upload(&store, "zeros", &vec![0; 3 << 20]).await.unwrap();
        let content = record.completed().unwrap();
        assert_eq!((content.data_bytes, content.new_bytes), (0, 0));
        assert_holds(&store, "zeros", &vec![0; 3 << 20]).await;
        assert_eq!(store.status().await.unwrap().chunks, 0);
    });
}
