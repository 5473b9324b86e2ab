//! Resources that volumes, guests and callers share: no one blocks the others, and the last one
//! leaves nothing behind.

use std::{collections::BTreeMap, sync::mpsc, task::Poll, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{
    Random, block_on,
    machine::Machine,
    pending::fill,
    volume_data::{BLOCK, contents, new_volume},
};
use crate::{AccountId, ListQuery, NewVolume, RemoteRecord, engine::Priority, limits};

const MIB: usize = 1 << 20;

/// Lets all concurrent work run for `count` turns.
async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

#[test]
fn volumes_without_room_in_their_journals_do_not_stop_one_that_has_some() {
    let mut machine = Machine::new();
    machine.journal_bytes_max = 16 << 20;
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut volumes = Vec::new();
        for name in ["a", "b", "c"] {
            store
                .create_volume(new_volume(name, 64 * MIB))
                .await
                .unwrap();
            volumes.push(store.open_volume(&name.into()).await.unwrap());
        }
        let [a, b, c] = &*volumes else { unreachable!() };
        // The one thread has something else to do: nothing is taken into the store, and no journal
        // is emptied.
        let (open, gate) = mpsc::sync_channel::<()>(1);
        let workers = &store.engine().workers;
        let mut busy = Box::pin(workers.run(Priority::Read, move |_| gate.recv().unwrap()));
        assert!(futures::poll!(&mut busy).is_pending());
        let write = async |(volume, mib): (&crate::Volume, usize)| {
            let data = Bytes::from(vec![mib as u8 + 1; MIB]);
            volume.write((mib * MIB) as u64, data).await.unwrap();
        };
        let all = [a, b].into_iter();
        let all = all.flat_map(|volume| (0..32).map(move |mib| (volume, mib)));
        let mut stopped = Box::pin(join_all(all.map(write)));
        // Until no further file of 4 MiB fits, and their writers wait for room.
        while [a, b].iter().any(|it| it.journal_bytes() <= 12 << 20) {
            assert!(futures::poll!(&mut stopped).is_pending());
            sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..100 {
            assert!(futures::poll!(&mut stopped).is_pending());
            sleep(Duration::from_millis(1)).await;
        }
        let mut third = Box::pin(fill(c, 0, 9));
        let mut polls = 0;
        while futures::poll!(&mut third) == Poll::Pending {
            polls += 1;
            assert!(polls < 60_000, "the volume waits for the others");
            sleep(Duration::from_millis(1)).await;
        }
        open.send(()).unwrap();
        busy.await.unwrap();
        stopped.await;
        let mut expected = vec![0; 64 * MIB];
        for (at, mib) in expected.chunks_mut(MIB).take(32).enumerate() {
            mib.fill(at as u8 + 1);
        }
        for volume in [a, b] {
            assert!(contents(volume).await == expected);
        }
        expected.fill(0);
        expected[..BLOCK].fill(9);
        assert!(contents(c).await == expected);
        store.close().await.unwrap();
    });
}

#[test]
fn a_change_of_the_catalog_does_not_wait_for_reads() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        // The only thread is busy with a read that does not end.
        let (open, gate) = mpsc::sync_channel::<()>(1);
        let workers = &store.engine().workers;
        let read = workers.run(Priority::Read, move |_| gate.recv().unwrap());
        let change = async {
            turns(1).await;
            let remote = RemoteRecord {
                owner: AccountId::ADMINISTRATOR,
                name: "there".to_owned(),
                endpoint: "https://there".to_owned(),
                allow_plaintext: false,
                tls_ca: String::new(),
                tls_cert: String::new(),
                tls_key: String::new(),
                token_file: String::new(),
                created_at_ns: 1,
            };
            store.add_remote(remote).await.unwrap();
            open.send(()).unwrap();
        };
        let (read, ()) = tokio::join!(read, change);
        read.unwrap();
        store.close().await.unwrap();
    });
}

#[test]
fn closing_the_store_makes_durable_what_was_written_by_those_who_left_before() {
    for seed in 0..8 {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            store.create_volume(new_volume("v", MIB)).await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            fill(&volume, 3, 7).await;
            drop(volume);
            store.close().await.unwrap();
        });
        let machine = machine.crash(&mut Random::new(seed));
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            let mut expected = vec![0; MIB];
            expected[3 * BLOCK..4 * BLOCK].fill(7);
            assert!(contents(&volume).await == expected, "seed {seed}");
        });
    }
}

/// A listing of many records is not made in one go, and a listing by tags examines only records
/// with them.
#[test]
fn a_listing_of_all_records_lets_others_have_their_turn() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let many = 5 * limits::LIST_SLICE_RECORDS + 7;
        for number in 0..many {
            let new = NewVolume {
                tags: BTreeMap::from([("odd".to_owned(), (number % 2).to_string())]),
                ..new_volume(&format!("v{number:04}"), MIB)
            };
            store.create_volume(new).await.unwrap();
        }
        let list = async |tag: Option<&str>, limit| {
            let tag = tag.map(|value| ("odd".to_owned(), value.to_owned()));
            let query = ListQuery {
                tags: tag.into_iter().collect(),
                limit,
                ..ListQuery::default()
            };
            store.list_volumes(query).await.unwrap()
        };
        let ended = Mutex::new(Vec::new());
        let all = async {
            assert_eq!(list(None, limits::PAGE_MAX).await.len(), many);
            ended.lock().push("all");
        };
        let few = async {
            let found = list(Some("1"), 3).await;
            let names: Vec<_> = found.iter().map(|record| record.label()).collect();
            assert_eq!(names, ["v0001", "v0003", "v0005"]);
            ended.lock().push("few");
        };
        // The first was asked for first, and there is one thread.
        tokio::join!(all, few);
        assert_eq!(*ended.lock(), ["few", "all"]);
        // Nothing is lost between slices.
        let odd = list(Some("1"), limits::PAGE_MAX).await;
        assert_eq!(list(Some("neither"), limits::PAGE_MAX).await, []);
        let expected: Vec<_> = (0..many).filter(|number| number % 2 == 1).collect();
        assert_eq!(odd.len(), expected.len());
        for (record, number) in odd.iter().zip(expected) {
            assert_eq!(record.label(), format!("v{number:04}"));
        }
        store.close().await.unwrap();
    });
}

/// Each takes memory for its readahead.
#[test]
fn however_many_volumes_are_opened_few_journals_are_read_at_a_time() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        for name in ["empty", "full"] {
            store.create_volume(new_volume(name, MIB)).await.unwrap();
        }
        let volume = store.open_volume(&"full".into()).await.unwrap();
        fill(&volume, 3, 7).await;
        drop(volume);
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let scans = &store.volumes().journal_scan_permits;
        let most = u32::try_from(limits::JOURNAL_SCANS).unwrap();
        let others = scans.acquire_many(most).await.unwrap();
        let key = "full".into();
        let mut opening = Box::pin(store.open_volume(&key));
        for _ in 0..2000 {
            assert!(futures::poll!(&mut opening).is_pending());
            turns(1).await;
        }
        // A volume without a journal need not wait for those whose journals are read.
        store.open_volume(&"empty".into()).await.unwrap();
        assert!(futures::poll!(&mut opening).is_pending());
        drop(others);
        let volume = opening.await.unwrap();
        assert_eq!(volume.journal_report().batches, 1);
        assert_eq!(scans.available_permits(), limits::JOURNAL_SCANS);
        drop(volume);
        store.close().await.unwrap();
    });
}
