//! Managing snapshots.

use std::{collections::BTreeMap, fs};

use bytes::Bytes;
use futures::TryStreamExt;
use varve_client::{ChangeKind, Control, ErrorKind, FileSource, SnapshotFilter};
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

#[tokio::test]
async fn many_are_deleted_with_few_calls() {
    let manners = Manners {
        deletions_max: 300,
        ..Manners::default()
    };
    let daemon = FakeDaemon::start(manners);
    let names: Vec<_> = (0..650).map(|number| format!("s{number:03}")).collect();
    for name in &names {
        daemon.plant(name, 4096, &[]);
    }
    let client = daemon.client().await;
    let mut wanted = names.clone();
    wanted.insert(400, "none".to_owned());
    wanted.push("snap-s001".to_owned());
    let deletions: Vec<_> = client
        .delete_snapshots(wanted.clone())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(daemon.state().deletions, 3);
    assert!(daemon.state().snapshots.is_empty());
    assert_eq!(deletions.len(), wanted.len());
    for (deletion, wanted) in deletions.into_iter().zip(wanted) {
        assert_eq!(deletion.snapshot, wanted);
        match deletion.outcome {
            Ok(deleted) => assert_eq!(deleted.name, wanted),
            Err(error) => {
                assert!(["none", "snap-s001"].contains(&&*wanted), "{error}");
                assert_eq!(error.kind(), ErrorKind::NotFound);
                let says = format!("delete snapshot {wanted}: no snapshot {wanted}");
                assert_eq!(error.to_string(), says);
            }
        }
    }
    let none: Vec<_> = client
        .delete_snapshots(Vec::new())
        .try_collect()
        .await
        .unwrap();
    assert!(none.is_empty() && daemon.state().deletions == 3);
}

/// Without an end, a daemon that answers nothing would be asked for ever.
#[tokio::test]
async fn an_answer_without_outcomes_is_an_error() {
    let manners = Manners {
        deletions_max: 0,
        ..Manners::default()
    };
    let daemon = FakeDaemon::start(manners);
    let client = daemon.client().await;
    let deletions = client.delete_snapshots(vec!["a".to_owned()]);
    let error = deletions.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.why().contains("0 outcomes for 1"), "{error}");
}

/// Each new reason is reported once.
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
    let completed = client
        .wait_for_snapshots(["base"])
        .on_retry(|snapshot| told.push(snapshot.failure.clone().unwrap()))
        .run()
        .await
        .unwrap();
    assert_eq!(completed[0].name, "base");
    assert_eq!(told, ["no room", "too many files"]);
}

#[tokio::test]
async fn differences_and_violations_come_as_they_are_found() {
    let daemon = daemon_with_base().await;
    let client = daemon.client().await;
    let extents: Vec<_> = client
        .changes("b")
        .since("a")
        .run()
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
            (0, ChangeKind::Changed),
            (8192, ChangeKind::Added),
            (16384, ChangeKind::Removed)
        ]
    );

    let mut found = Vec::new();
    let report = client
        .verify_snapshot("base")
        .on_violation(|violation| found.push(violation.offset_bytes))
        .run()
        .await
        .unwrap();
    assert_eq!((report.checked, report.violations), (2, 1));
    assert_eq!(found, [4096]);
}

/// Cancels a wait, then begins a call with the cancelled token.
#[tokio::test]
async fn waiting_ends_when_it_is_cancelled() {
    let daemon = daemon_with_base().await;
    let client = daemon.client().await;
    let pending = v1::Snapshot {
        state: v1::SnapshotState::Pending.into(),
        root: Bytes::new(),
        ..daemon.state().snapshots["base"].0.clone()
    };
    daemon.state().snapshot_course = vec![pending; 1000];
    let control = Control::new();
    let waiting = client.wait_for_snapshots(["base"]).control(&control).run();
    let cancelling = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        control.cancel.cancel();
    };
    let error = tokio::join!(waiting, cancelling).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(
        error.to_string(),
        "wait for snapshot base: it was cancelled; the snapshot continues"
    );
    // A call with a cancelled token ends where it begins.
    let changes = client.changes("b").since("a").control(&control);
    assert_eq!(
        changes.run().await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
}

#[tokio::test]
async fn a_hold_lasts_as_long_as_its_daemon() {
    let daemon = daemon_with_base().await;
    let client = daemon.client().await;
    let missing = client.hold_snapshot("none").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let mut hold = client.hold_snapshot("base").await.unwrap().unwrap();
    let snapshot = client.snapshot("base").await.unwrap();
    assert_eq!(hold.snapshot(), &snapshot);
    let (lost, ()) = tokio::join!(hold.lost(), async { drop(daemon) });
    assert_eq!(lost.kind(), ErrorKind::Unreachable, "{lost}");
}
