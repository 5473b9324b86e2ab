//! Snapshots as records: listed, tagged, deleted, compared, verified.

use futures::TryStreamExt;
use tonic::Code;

use super::*;

async fn list(
    daemon: &Daemon,
    request: v1::ListSnapshotsRequest,
) -> Result<(Vec<String>, String), Status> {
    let page = daemon
        .snapshots()
        .list_snapshots(request)
        .await?
        .into_inner();
    Ok((
        page.snapshots
            .into_iter()
            .map(|snapshot| snapshot.name)
            .collect(),
        page.next_page_token,
    ))
}

fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

async fn tag(
    daemon: &Daemon,
    snapshot: &str,
    set: &[(&str, &str)],
    remove: &[&str],
) -> Result<v1::Snapshot, Status> {
    let request = v1::TagSnapshotRequest {
        snapshot: snapshot.to_owned(),
        set: tags(set),
        remove: remove.iter().map(|key| (*key).to_owned()).collect(),
    };
    Ok(daemon.snapshots().tag_snapshot(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_and_the_last_has_no_token() {
    let daemon = Daemon::start().await;
    let volume = noise(1, 1 << 20);
    for name in ["a", "b-1", "b-2", "b-3", "b-4", "c"] {
        daemon.upload(name, &volume).await;
    }
    let mut request = v1::ListSnapshotsRequest {
        page_size: 2,
        name_prefix: "b-".to_owned(),
        ..v1::ListSnapshotsRequest::default()
    };
    let (names, token) = list(&daemon, request.clone()).await.unwrap();
    assert_eq!(names, ["b-1", "b-2"]);
    assert!(!token.is_empty());
    request.page_token = token.clone();
    assert_eq!(
        list(&daemon, request.clone()).await.unwrap(),
        (vec!["b-3".into(), "b-4".into()], String::new())
    );

    let other = v1::ListSnapshotsRequest {
        name_prefix: "b".to_owned(),
        ..request.clone()
    };
    let status = list(&daemon, other).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("page_token"), "{status}");
    request.page_token = "rubbish".to_owned();
    assert_eq!(
        list(&daemon, request).await.unwrap_err().code(),
        Code::InvalidArgument
    );

    let all = list(&daemon, v1::ListSnapshotsRequest::default())
        .await
        .unwrap();
    assert_eq!(
        all,
        (
            ["a", "b-1", "b-2", "b-3", "b-4", "c"]
                .map(String::from)
                .to_vec(),
            String::new()
        )
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_set_removed_and_searched_for() {
    let daemon = Daemon::start().await;
    let volume = noise(1, 1 << 20);
    daemon.upload("a", &volume).await;
    let b = daemon.upload("b", &volume).await;
    let tagged = tag(
        &daemon,
        &b.id,
        &[("os", "debian"), ("tier", "db")],
        &["absent"],
    )
    .await
    .unwrap();
    assert_eq!(tagged.tags, tags(&[("os", "debian"), ("tier", "db")]));
    tag(&daemon, "a", &[("os", "debian")], &[]).await.unwrap();
    let tagged = tag(&daemon, "b", &[("os", "arch")], &["tier"])
        .await
        .unwrap();
    assert_eq!(tagged.tags, tags(&[("os", "arch")]));

    let request = v1::ListSnapshotsRequest {
        tags: tags(&[("os", "debian")]),
        ..v1::ListSnapshotsRequest::default()
    };
    assert_eq!(list(&daemon, request).await.unwrap().0, ["a"]);
    assert_eq!(
        tag(&daemon, "absent", &[], &[]).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        tag(&daemon, "a", &[("", "x")], &[])
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    let dir = daemon.stop().await;

    let daemon = Daemon::start_in(dir).await;
    let get = v1::GetSnapshotRequest {
        snapshot: "b".to_owned(),
    };
    assert_eq!(
        daemon
            .snapshots()
            .get_snapshot(get)
            .await
            .unwrap()
            .into_inner()
            .tags,
        tags(&[("os", "arch")])
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_snapshot_is_gone_and_its_name_free() {
    let daemon = Daemon::start().await;
    let volume = noise(1, 1 << 20);
    let snapshot = daemon.upload("web", &volume).await;
    let request = v1::DeleteSnapshotRequest {
        snapshot: snapshot.id.clone(),
    };
    let deleted = daemon
        .snapshots()
        .delete_snapshot(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(deleted.deleted.unwrap(), snapshot);
    assert_eq!(
        daemon
            .snapshots()
            .delete_snapshot(request)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    assert!(daemon.names().await.is_empty());
    let again = daemon.upload("web", &volume).await;
    assert_ne!(again.id, snapshot.id);
    assert_eq!(again.new_bytes, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_are_deleted_and_what_does_not_exist_is_told() {
    let daemon = Daemon::start().await;
    let volume = noise(1, 1 << 20);
    let a = daemon.upload("a", &volume).await;
    let b = daemon.upload("b", &volume).await;
    daemon.upload("kept", &volume).await;
    let request = v1::DeleteSnapshotsRequest {
        snapshots: ["a", "none", &b.id, "b"].map(str::to_owned).into(),
    };
    let answer = daemon.snapshots().delete_snapshots(request).await.unwrap();
    let outcomes = answer.into_inner().outcomes;
    let is_gone = |name: &str| v1::SnapshotDeletion {
        deleted: None,
        code: Code::NotFound.into(),
        message: format!("snapshot {name:?} not found"),
    };
    let deleted = |snapshot| v1::SnapshotDeletion {
        deleted: Some(snapshot),
        ..v1::SnapshotDeletion::default()
    };
    assert_eq!(outcomes[0], deleted(a));
    assert_eq!(outcomes[1], is_gone("none"));
    assert_eq!(outcomes[2], deleted(b));
    assert_eq!(outcomes[3], is_gone("b"));
    assert_eq!(daemon.names().await, ["kept"]);
    let refused = daemon
        .snapshots()
        .delete_snapshots(v1::DeleteSnapshotsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_told_with_neighbours_joined() {
    let daemon = Daemon::start().await;
    let base = sparse_volume(1);
    let mut target = base.clone();
    // Changed: all of the first half segment, which is many chunks. Added: into the hole. Removed:
    // all of the last segment.
    let half = SEGMENT_BYTES / 2;
    target[..half].copy_from_slice(&noise(50, half));
    target[SEGMENT_BYTES..SEGMENT_BYTES + BLOCK_BYTES].copy_from_slice(&noise(51, BLOCK_BYTES));
    target[2 * SEGMENT_BYTES..].fill(0);
    daemon.upload("base", &base).await;
    daemon.upload("target", &target).await;
    let diff = async |base: &str, target: &str| -> Vec<v1::DiffExtent> {
        let request = v1::DiffSnapshotsRequest {
            base: base.to_owned(),
            target: target.to_owned(),
        };
        let messages = daemon
            .snapshots()
            .diff_snapshots(request)
            .await
            .unwrap()
            .into_inner();
        messages
            .try_collect::<Vec<_>>()
            .await
            .unwrap()
            .into_iter()
            .flat_map(|message| message.extents)
            .collect()
    };
    let extent = |offset: usize, length: usize, kind: v1::DiffKind| v1::DiffExtent {
        offset_bytes: offset as u64,
        length_bytes: length as u64,
        kind: kind.into(),
    };
    assert_eq!(
        diff("base", "target").await,
        [
            extent(0, half, v1::DiffKind::Changed),
            extent(SEGMENT_BYTES, BLOCK_BYTES, v1::DiffKind::Added),
            extent(2 * SEGMENT_BYTES, half, v1::DiffKind::Removed),
        ]
    );
    assert_eq!(diff("base", "base").await, []);
    let absent = v1::DiffSnapshotsRequest {
        base: "base".to_owned(),
        target: "absent".to_owned(),
    };
    assert_eq!(
        daemon
            .snapshots()
            .diff_snapshots(absent)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_snapshot_verifies_and_the_last_message_says_done() {
    let daemon = Daemon::start().await;
    let snapshot = daemon.upload("web", &sparse_volume(1)).await;
    let request = v1::VerifySnapshotRequest {
        snapshot: "web".to_owned(),
    };
    let messages = daemon
        .snapshots()
        .verify_snapshot(request)
        .await
        .unwrap()
        .into_inner();
    let messages: Vec<_> = messages.try_collect().await.unwrap();
    let (last, before) = messages.split_last().unwrap();
    assert!(last.done && before.iter().all(|message| !message.done));
    assert!(
        messages.iter().all(|message| message.violations.is_empty()),
        "{messages:?}"
    );
    assert_eq!(
        (last.checked_bytes, last.total_bytes),
        (snapshot.data_bytes, snapshot.data_bytes)
    );
    daemon.stop().await;
}
