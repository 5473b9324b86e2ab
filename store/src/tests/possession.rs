//! Uploads of accounts, which prove that they have what they name.

use std::collections::HashSet;

use varve_content::{
    ChunkId,
    block::{BLOCK_BYTES, SEGMENT_BYTES},
};

use super::{Cut, Random, assert_holds, block_on, cut, incoming, new_snapshot, send, upload};
use crate::{Error, Ingest, Options, Result, SnapshotReader, Store};

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..bytes / 8)
        .flat_map(|_| random.next().to_le_bytes())
        .collect()
}

async fn proving(
    store: &Store,
    name: &str,
    size_bytes: usize,
    base: Option<&SnapshotReader>,
) -> Ingest {
    let ingest = store.begin_ingest(new_snapshot(name, size_bytes)).await;
    let base = base.map(|base| (*base.root(), base.pin().clone()));
    ingest.unwrap().only_what_is_proved(base).unwrap()
}

fn ids(cut: &Cut) -> Vec<ChunkId> {
    cut.chunks.keys().copied().collect()
}

async fn missing(ingest: &Ingest, cut: &Cut, segments: &[u32]) -> HashSet<ChunkId> {
    let ids = ids(cut);
    let missing = ingest.missing(&ids, segments).await.unwrap();
    missing.into_iter().map(|at| ids[at as usize]).collect()
}

fn refused(put: Result<()>) -> String {
    match put.unwrap_err() {
        Error::Invalid(why) => why,
        other => panic!("{other}"),
    }
}

#[test]
fn ids_of_another_account_give_no_content() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let image = noise(7, SEGMENT_BYTES + 3 * BLOCK_BYTES);
        upload(&store, "secret", &image).await.unwrap();
        let secret = cut(&image);
        let absent = cut(&noise(8, image.len()));

        let ingest = proving(&store, "stolen", image.len(), None).await;
        // As if the store had none of them.
        for cut in [&secret, &absent] {
            assert_eq!(missing(&ingest, cut, &[0, 1]).await.len(), cut.chunks.len());
        }
        let said = |cut: &Cut, why: String| {
            let named = &cut.leaves[0].1.entries()[0];
            why.replace(&named.chunk.to_string(), "ID")
        };
        let known = refused(ingest.put_leaves(secret.leaves.clone()).await);
        let unknown = refused(ingest.put_leaves(absent.leaves.clone()).await);
        assert_eq!(said(&secret, known), said(&absent, unknown));

        // Another's proof is none.
        let other = proving(&store, "other", image.len(), None).await;
        send(&other, &secret).await.unwrap();
        let why = refused(ingest.put_leaves(secret.leaves.clone()).await);
        assert!(why.contains("was not uploaded"), "{why}");
        // All but one.
        let (last, rest) = ids(&secret)
            .split_last()
            .map(|(a, b)| (*a, b.to_vec()))
            .unwrap();
        for id in &rest {
            let chunk = incoming(*id, &secret.chunks[id]);
            ingest.put_chunks(vec![chunk]).await.unwrap();
        }
        assert_eq!(
            missing(&ingest, &secret, &[0, 1]).await,
            HashSet::from([last])
        );
        let why = refused(ingest.put_leaves(secret.leaves.clone()).await);
        assert!(why.contains(&last.to_string()), "{why}");
        // Bytes that are not its own prove nothing.
        let wrong = incoming(last, &secret.chunks[&rest[0]]);
        refused(ingest.put_chunks(vec![wrong]).await.map(drop));
        refused(ingest.put_leaves(secret.leaves.clone()).await);

        let outcome = ingest
            .put_chunks(vec![incoming(last, &secret.chunks[&last])])
            .await;
        assert_eq!(outcome.unwrap().new_bytes, 0);
        ingest.put_leaves(secret.leaves.clone()).await.unwrap();
        ingest.commit(secret.root).await.unwrap();
        assert_holds(&store, "stolen", &image).await;
    });
}

#[test]
fn a_base_proves_what_it_has_at_the_same_place() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let image = noise(9, 3 * SEGMENT_BYTES);
        upload(&store, "base", &image).await.unwrap();
        let base = store.open_snapshot(&"base".into()).await.unwrap();
        // The first segment as it was, the second changed, the third where the first was.
        let mut next = image.clone();
        next[SEGMENT_BYTES + 5000] ^= 1;
        next.copy_within(..SEGMENT_BYTES, 2 * SEGMENT_BYTES);
        next.extend(noise(10, 2 * SEGMENT_BYTES));
        let new = cut(&next);
        let in_base: HashSet<_> = ids(&cut(&image)).into_iter().collect();
        let is_new = |id: &ChunkId| !in_base.contains(id);

        let ingest = proving(&store, "next", next.len(), Some(&base)).await;
        let before = missing(&ingest, &new, &[]).await;
        assert_eq!(before.len(), new.chunks.len(), "no segment was named");
        let rest = missing(&ingest, &new, &[0, 1, 4]).await;
        assert_eq!(rest, ids(&new).into_iter().filter(is_new).collect());
        assert!(rest.len() < new.chunks.len());
        for id in &rest {
            let chunk = incoming(*id, &new.chunks[id]);
            ingest.put_chunks(vec![chunk]).await.unwrap();
        }
        ingest.put_leaves(new.leaves.clone()).await.unwrap();
        ingest.commit(new.root).await.unwrap();
        assert_holds(&store, "next", &next).await;

        // A leaf that is as in the base needs no question.
        let ingest = proving(&store, "again", image.len(), Some(&base)).await;
        ingest.put_leaves(cut(&image).leaves).await.unwrap();
        // At another place it is not.
        let ingest = proving(&store, "moved", image.len(), Some(&base)).await;
        let (_, leaf) = cut(&image).leaves[0].clone();
        refused(ingest.put_leaves(vec![(1, leaf)]).await);
    });
}

#[test]
fn an_upload_that_writes_what_is_known_makes_the_same_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let image = noise(11, 2 * SEGMENT_BYTES);
        let first = upload(&store, "first", &image).await.unwrap();
        let before = store.status().await.unwrap();
        let ingest = proving(&store, "second", image.len(), None)
            .await
            .write_known();
        let cut = cut(&image);
        let sent = send(&ingest, &cut).await.unwrap();
        assert_eq!((sent.chunks, sent.new_bytes), (cut.chunks.len() as u64, 0));
        let second = ingest.commit(cut.root).await.unwrap();
        assert_eq!(second.root(), first.root());
        let written = second.content().unwrap().stored_bytes;
        assert!(
            written >= first.content().unwrap().stored_bytes / 2,
            "{written}"
        );
        // Each is counted once.
        let after = store.status().await.unwrap();
        assert_eq!(
            (after.chunks, after.chunk_bytes),
            (before.chunks, before.chunk_bytes)
        );
        store.delete_snapshot(&"first".into()).await.unwrap();
        assert_holds(&store, "second", &image).await;
    });
}
