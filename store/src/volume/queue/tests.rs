//! Tests of the queue.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use bytes::Bytes;
use futures::poll;

use crate::{
    Store,
    limits::VOLUME_QUEUE_BYTES,
    tests::{
        block_on,
        volume_data::{contents, new_volume, options},
    },
};

/// The store's own threads do not take part, so the writing task does not run between the two.
#[test]
fn a_change_of_any_length_waits_with_no_more_than_the_room_of_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * VOLUME_QUEUE_BYTES + 5000;
    let image: Vec<u8> = (0..size).map(|at| (at / 700) as u8).collect();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        for start in [0, 100] {
            let name = format!("v{start}");
            let new = new_volume(&name, size.next_multiple_of(512));
            store.create_volume(new).await.unwrap();
            let volume = store.open_volume(&name.as_str().into()).await.unwrap();
            let data = Bytes::from(image[start..].to_vec());
            let mut write = Box::pin(volume.write(start as u64, data));
            assert!(poll!(&mut write).is_pending());
            let queued = volume.inner().queue.state.lock().data_bytes;
            assert!(
                (1..=VOLUME_QUEUE_BYTES).contains(&queued),
                "{queued} bytes of {size} wait"
            );
            write.await.unwrap();
            assert!(contents(&volume).await[start..size] == image[start..]);
        }
        store.close().await.unwrap();
    });
}
