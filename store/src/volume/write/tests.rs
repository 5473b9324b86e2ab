//! A change of a part of a block beside the growth of its volume.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use crate::{
    Store,
    tests::{
        block_on,
        volume_data::{contents, new_volume, options},
    },
};

use super::super::volume::BLOCK;
use super::*;

/// A change that zeroes up to the old end, and was begun before the volume grew, does not zero
/// later writes behind that end.
#[test]
fn a_volume_that_grows_beside_a_trim_of_its_last_block_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        for (name, is_trim) in [("t", true), ("z", false)] {
            store.create_volume(new_volume(name, 512)).await.unwrap();
            let volume = store.open_volume(&name.into()).await.unwrap();
            // Others have taken the whole budget, so that both have to wait.
            let all = u32::try_from(VOLUME_QUEUE_BYTES).unwrap();
            let others = volume.inner().queue_budget.acquire_many(all).await.unwrap();
            let mut zeroing = Box::pin(async {
                if is_trim {
                    volume.trim(0, 512).await
                } else {
                    volume.write_zeroes(0, 512).await
                }
            });
            assert!(futures::poll!(&mut zeroing).is_pending());
            store.resize_volume(&name.into(), BLOCK).await.unwrap();
            let data = Bytes::from(vec![7; BLOCK_BYTES]);
            let mut write = Box::pin(volume.write(0, data));
            assert!(futures::poll!(&mut write).is_pending());
            drop(others);
            // The later one gets to it first, if it may.
            let (written, zeroed) = futures::join!(write, zeroing);
            written.and(zeroed).unwrap();
            let found = contents(&volume).await;
            assert!(found[512..] == [7; BLOCK_BYTES - 512], "{name}");
        }
        store.close().await.unwrap();
    });
}
