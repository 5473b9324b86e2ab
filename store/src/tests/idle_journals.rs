//! Journals that nobody adds to: the store takes them in, and the content of their volumes stays.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;

use super::{
    Random, block_on,
    machine::Machine,
    pending::fill,
    volume_data::{BLOCK, contents, new_volume},
};
use crate::{Store, limits};

const MIB: usize = 1 << 20;

async fn journal_bytes(store: &Store) -> u64 {
    store
        .volume_status(&"v".into())
        .await
        .unwrap()
        .journal_bytes
}

async fn pass(store: &Store, idle: Duration) {
    let mut tried = HashMap::new();
    store
        .volumes()
        .empty_journals(idle, &mut tried)
        .await
        .unwrap();
}

#[test]
fn what_was_left_behind_is_taken_into_the_store_by_whomever() {
    let mut expected = vec![0; 4 * MIB];
    expected[3 * BLOCK..4 * BLOCK].fill(7);
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 4 * MIB)).await.unwrap();
        pass(&store, Duration::ZERO).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 3, 7).await;
        // The small journal of an open volume stays where it is.
        pass(&store, Duration::ZERO).await;
        assert_eq!(journal_bytes(&store).await, limits::JOURNAL_FILE_BYTES_MIN);
        drop(volume);
        pass(&store, Duration::from_secs(3600)).await;
        assert_eq!(journal_bytes(&store).await, 0);
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert_eq!(volume.journal_report().batches, 0);
        assert!(contents(&volume).await == expected);
        // The same for a journal left by a killed process.
        fill(&volume, 5, 9).await;
        volume.flush().await.unwrap();
        expected[5 * BLOCK..6 * BLOCK].fill(9);
    });
    let machine = machine.crash(&mut Random::new(1));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert!(journal_bytes(&store).await > 0);
        pass(&store, Duration::ZERO).await;
        assert_eq!(journal_bytes(&store).await, 0);
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert_eq!(volume.journal_report().batches, 0);
        assert!(contents(&volume).await == expected);
        store.close().await.unwrap();
    });
}

#[test]
fn a_large_journal_is_emptied_when_its_volume_rests() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        store.create_volume(new_volume("v", 4 * MIB)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let mut round = 0u8;
        while volume.journal_bytes() < limits::JOURNAL_IDLE_BYTES {
            round += 1;
            let bytes = Bytes::from(vec![round; 2 * MIB]);
            volume.write(MIB as u64, bytes).await.unwrap();
        }
        pass(&store, Duration::from_secs(3600)).await;
        assert!(volume.journal_bytes() >= limits::JOURNAL_IDLE_BYTES);
        pass(&store, Duration::ZERO).await;
        assert_eq!(volume.journal_bytes(), 0);
        let mut expected = vec![0; 4 * MIB];
        expected[MIB..3 * MIB].fill(round);
        assert!(contents(&volume).await == expected);
        store.close().await.unwrap();
    });
}
