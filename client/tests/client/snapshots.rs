//! Looking after snapshots.

use std::{collections::BTreeMap, fs};

use bytes::Bytes;
use futures::TryStreamExt;
use varve_client::{DiffKind, ErrorKind, FileSource, Progress, SnapshotFilter};
use varve_fake_daemon::{FakeDaemon, Manners};
use varve_proto::v1;

/// A daemon with one snapshot, called base.
async fn daemon_with_base() -> FakeDaemon {
    let daemon = FakeDaemon::start(Manners::default());
    let path = daemon.path("disk.img");
    fs::write(&path, [1]).unwrap();
    daemon
        .client()
        .await
        .upload("base")
        .run(FileSource::open(&path).unwrap())
        .await
        .unwrap();
    daemon
}

#[tokio::test]
async fn listing_follows_the_pages() {
    let daemon = daemon_with_base().await;
    let count = 401;
    {
        let mut state = daemon.state();
        let base = state.snapshots.remove("base").unwrap();
        for number in 0..count {
            let mut copy = base.clone();
            copy.0.name = format!("s{number:04}");
            state.snapshots.insert(copy.0.name.clone(), copy);
        }
    }
    let client = daemon.client().await;
    let all: Vec<_> = client
        .snapshots(SnapshotFilter::default())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(all.len(), count);
    assert!(all.is_sorted_by_key(|snapshot| snapshot.name.clone()));
    assert_eq!(daemon.state().pages, 3);

    let filter = SnapshotFilter {
        name_prefix: "s000".to_owned(),
        ..SnapshotFilter::default()
    };
    let few: Vec<_> = client.snapshots(filter).try_collect().await.unwrap();
    assert_eq!(few.len(), 10);
}

#[tokio::test]
async fn a_snapshot_is_tagged_and_deleted() {
    let daemon = daemon_with_base().await;
    let client = daemon.client().await;
    let set = BTreeMap::from([
        ("a".to_owned(), "1".to_owned()),
        ("b".to_owned(), "2".to_owned()),
    ]);
    client
        .tag_snapshot("base", set.clone(), Vec::new())
        .await
        .unwrap();
    assert_eq!(client.snapshot("base").await.unwrap().tags, set);
    let tagged = client
        .tag_snapshot("base", BTreeMap::new(), vec!["a".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        tagged.tags,
        BTreeMap::from([("b".to_owned(), "2".to_owned())])
    );

    assert_eq!(client.delete_snapshot("base").await.unwrap().name, "base");
    let error = client.delete_snapshot("base").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "delete snapshot base: no snapshot base");
}

/// A reason is told once, and another one again.
#[tokio::test]
async fn whoever_waits_for_a_snapshot_is_told_why_it_is_tried_again() {
    let daemon = daemon_with_base().await;
    let client = daemon.client().await;
    {
        let mut state = daemon.state();
        let base = state.snapshots["base"].0.clone();
        let pending = |failure: &str| v1::Snapshot {
            state: v1::SnapshotState::Pending.into(),
            root: Bytes::new(),
            failure: failure.to_owned(),
            ..base.clone()
        };
        state.snapshot_course = ["", "no room", "no room", "", "no room", "too many files"]
            .map(pending)
            .into();
    }
    let mut told = Vec::new();
    let progress = Progress::default();
    let completed = client
        .completed_snapshots(&["base".to_owned()], &progress, |snapshot| {
            told.push(snapshot.failure.clone().unwrap());
        })
        .await
        .unwrap();
    assert_eq!(completed[0].name, "base");
    assert_eq!(told, ["no room", "too many files"]);
}

#[tokio::test]
async fn differences_and_violations_come_as_a_stream() {
    let daemon = daemon_with_base().await;
    let client = daemon.client().await;
    let extents: Vec<_> = client
        .diff_snapshots("a", "b")
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let kinds: Vec<_> = extents
        .iter()
        .map(|extent| (extent.offset_bytes, extent.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            (0, DiffKind::Changed),
            (8192, DiffKind::Added),
            (16384, DiffKind::Removed)
        ]
    );

    let messages: Vec<_> = client
        .verify_snapshot("base")
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(
        messages
            .iter()
            .map(|message| message.violations.len())
            .sum::<usize>(),
        1
    );
    assert!(messages.last().unwrap().done);
}
