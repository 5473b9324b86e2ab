//! Futures that are dropped half-way, as they are when a client goes away: nothing that was
//! promised is forgotten.

use std::{future::poll_fn, pin::pin, task::Poll};

use super::{
    Cut, Random, assert_holds, block_on, cut, incoming, machine::Machine, new_snapshot,
    random_image, seed, send, upload,
};
use crate::{Error, Options, Result, Store, limits};

/// Polls a future so many times, and drops it if that was not enough.
async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|context| {
        let Some(fewer) = left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        left = fewer;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[test]
fn an_upload_that_is_dropped_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed());
    let mut images = Vec::new();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        for polls in 0.. {
            let image = random_image(&mut random, 60);
            let (first, again) = (format!("first-{polls}"), format!("again-{polls}"));
            let ended = polled(polls, upload(&store, &first, &image)).await;
            upload(&store, &again, &image).await.unwrap();
            match store.snapshot(&first.as_str().into()).await {
                Ok(_) => assert_holds(&store, &first, &image).await,
                // A commit that has begun goes on, and may not have ended yet.
                Err(Error::NotFound { .. }) => assert!(ended.is_none()),
                Err(other) => panic!("{other}"),
            }
            assert_holds(&store, &again, &image).await;
            images.push((again, image));
            if ended.is_some() {
                break;
            }
        }
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        for (name, image) in &images {
            assert_holds(&store, name, image).await;
        }
    });
    assert!(images.len() > 2, "it was dropped at few points only");
}

/// Sends chunks in an order of its own. Polls the last call only a few times.
async fn send_dropping_the_last(
    store: &Store,
    image: &[u8],
    wanted: &Cut,
    polls: usize,
) -> Option<Result<()>> {
    let ingest = store
        .begin_ingest(new_snapshot("dropped", image.len()))
        .await
        .unwrap();
    let chunks: Vec<_> = wanted.chunks.iter().collect();
    let (last, rest) = chunks.split_last_chunk::<4>().unwrap();
    for part in rest.chunks(50) {
        let part = part.iter().map(|(id, plain)| incoming(**id, plain));
        ingest.put_chunks(part.collect()).await.unwrap();
    }
    let last = last.iter().map(|(id, plain)| incoming(**id, plain));
    polled(polls, async {
        ingest.put_chunks(last.collect()).await.map(drop)
    })
    .await
}

/// The call that fills a group indexes it, with the chunks of calls before.
#[test]
fn chunks_whose_indexing_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed());
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        for polls in 1.. {
            // Noise whose chunks, without the last few, do not quite fill a group.
            let mut image = vec![0; limits::INDEX_GROUP_BYTES as usize];
            image
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
            let wanted = cut(&image);
            let ended = send_dropping_the_last(&store, &image, &wanted, polls).await;

            let name = format!("again-{polls}");
            let ingest = store
                .begin_ingest(new_snapshot(&name, image.len()))
                .await
                .unwrap();
            send(&ingest, &wanted).await.unwrap();
            ingest.commit(wanted.root).await.unwrap();
            assert_holds(&store, &name, &image).await;
            if let Some(ended) = ended {
                ended.unwrap();
                break;
            }
        }
    });
}

/// A flush that cannot look up which rows are lost makes no rows. The records that it took are not
/// known any more, and the uploads that relied on them are told.
#[test]
fn records_of_a_flush_that_is_refused_are_not_known() {
    let machine = Machine::new();
    let image = random_image(&mut Random::new(7), 60);
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "before", &image[..4096]).await.unwrap();
        let engine = store.engine();
        let pack = engine.meta.pack_states().unwrap()[0].pack;
        engine.lost.write().add_record(pack, 1 << 40);
        let cut = cut(&image);
        let new = new_snapshot("s", image.len());
        let ingest = store.begin_ingest(new).await.unwrap();
        send(&ingest, &cut).await.unwrap();
        let generation = engine.commit.generation().unwrap();
        machine.refuse_lookup();
        let refused = engine.commit.flush(generation).await.unwrap_err();
        assert!(matches!(refused, Error::Shortage { .. }), "{refused:?}");
        let lost = ingest.commit(cut.root).await.unwrap_err();
        assert!(matches!(lost, Error::Dropped), "{lost:?}");
        drop(ingest);
        upload(&store, "s", &image).await.unwrap();
        assert_holds(&store, "s", &image).await;
    });
}
