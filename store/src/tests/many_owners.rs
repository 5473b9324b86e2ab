//! How long a page of a list takes in a store of many accounts: a measurement, run by
//! `cargo test --release -p varve-store --lib -- --ignored --nocapture many_owners`.

use std::time::Instant;

use super::{accounts::account, block_on, new_snapshot, repairs::closed};
use crate::{
    AccountId, ListPlace, ListQuery, Options, Sharing, SnapshotId, SnapshotRecord, Store,
    format::Change,
    meta::{Meta, SnapshotKey},
};

const ACCOUNTS: u64 = 100;
const SNAPSHOTS: u64 = 50_000;

fn owner(number: u64) -> AccountId {
    AccountId::from_number(1 + number % ACCOUNTS).unwrap()
}

#[test]
#[ignore = "a measurement"]
fn pages_of_many_owners() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        for number in 0..ACCOUNTS {
            let name = format!("account-{number}");
            let made = store.create_account(account(1 + number, &name));
            made.await.unwrap();
        }
        let ingest = store.begin_ingest(new_snapshot("first", 1)).await.unwrap();
        let root = super::cut(&[0]).root;
        let first = ingest.commit(root).await.unwrap();
        drop(ingest);
        let numbers: Vec<_> = (0..SNAPSHOTS).collect();
        for part in numbers.chunks(500) {
            let changes: Vec<_> = part
                .iter()
                .map(|number| {
                    Change::put(&SnapshotRecord {
                        id: SnapshotId::random().unwrap(),
                        name: Some(format!("snapshot-{number:06}")),
                        owner: owner(*number),
                        // One in ten is for everybody, one in ten for the first account.
                        sharing: Sharing {
                            everybody: number % 10 == 3,
                            accounts: (number % 10 == 4).then(|| owner(0)).into_iter().collect(),
                        },
                        ..first.clone()
                    })
                })
                .collect();
            let put = move |_: &dyn Meta| Ok((changes.clone(), ()));
            store.engine().commit.change((), put).await.unwrap();
        }
        for (what, reader, whose) in [
            ("all, as the administrator", None, None),
            ("own", None, Some(owner(0))),
            ("all that an account reads", Some(owner(0)), None),
            ("of another, as an account", Some(owner(0)), Some(owner(3))),
        ] {
            let mut times = Vec::new();
            let mut after = None;
            let mut count = 0;
            loop {
                let query = ListQuery {
                    owner: whose,
                    reader,
                    after: after.take(),
                    limit: 1000,
                    ..ListQuery::default()
                };
                let started = Instant::now();
                let page = store.list_snapshots(query).await.unwrap();
                times.push(started.elapsed());
                count += page.len();
                match page.last() {
                    Some(last) => after = Some(ListPlace::of(last)),
                    None => break,
                }
            }
            times.sort_unstable();
            let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
            println!("{what}: {count} snapshots, page p50 {middle:?}, slowest {most:?}");
            assert!(count > 0);
        }
        let key = SnapshotKey::Readable {
            reader: owner(0),
            id: first.id,
        };
        let started = Instant::now();
        for _ in 0..10_000 {
            store.snapshot(&key).await.unwrap_err();
        }
        println!(
            "a snapshot that is not shared: {:?}",
            started.elapsed() / 10_000
        );
        closed(store).await;
    });
}
