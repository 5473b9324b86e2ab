//! Volumes as records: made, listed, tagged, attached, detached, deleted.

use tonic::Code;

use super::*;

async fn create(
    daemon: &Daemon,
    name: &str,
    size_bytes: u64,
    from: &str,
) -> Result<v1::Volume, Status> {
    let request = v1::CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes,
        from_snapshot: from.to_owned(),
        tags: BTreeMap::new(),
    };
    let made = daemon.volumes().create_volume(request).await?;
    Ok(made.into_inner())
}

async fn get(daemon: &Daemon, volume: &str) -> Result<v1::Volume, Status> {
    let request = v1::GetVolumeRequest {
        volume: volume.to_owned(),
    };
    Ok(daemon.volumes().get_volume(request).await?.into_inner())
}

async fn attach(
    daemon: &Daemon,
    volume: &str,
    force: bool,
) -> Result<v1::AttachVolumeResponse, Status> {
    let request = v1::AttachVolumeRequest {
        volume: volume.to_owned(),
        force,
        with_ticket: false,
    };
    Ok(daemon.volumes().attach_volume(request).await?.into_inner())
}

async fn detach(daemon: &Daemon, volume: &str) -> Result<v1::Volume, Status> {
    let request = v1::DetachVolumeRequest {
        volume: volume.to_owned(),
    };
    Ok(daemon.volumes().detach_volume(request).await?.into_inner())
}

async fn delete(daemon: &Daemon, volume: &str) -> Result<v1::Volume, Status> {
    let request = v1::DeleteVolumeRequest {
        volume: volume.to_owned(),
    };
    let deleted = daemon.volumes().delete_volume(request).await?;
    Ok(deleted.into_inner().deleted.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_a_snapshot_outlives_it_and_the_daemon() {
    let daemon = Daemon::start().await;
    let snapshot = daemon.upload("base", &noise(1, 1 << 20)).await;
    let made = create(&daemon, "db", 0, "base").await.unwrap();
    assert_eq!(made.size_bytes, 1 << 20);
    assert_eq!((&made.base, &made.parent), (&snapshot.root, &snapshot.id));
    assert_eq!((made.attached_at, made.attachments), (None, 0));
    let larger = create(&daemon, "larger", 2 << 20, &snapshot.id)
        .await
        .unwrap();
    assert_eq!(larger.size_bytes, 2 << 20);
    let empty = create(&daemon, "empty", 512, "").await.unwrap();
    assert!(empty.base.is_empty() && empty.parent.is_empty());

    let gone = v1::DeleteSnapshotRequest {
        snapshot: "base".to_owned(),
    };
    daemon.snapshots().delete_snapshot(gone).await.unwrap();
    let dir = daemon.stop().await;
    let daemon = Daemon::start_in(dir).await;
    for key in ["db", &made.id] {
        let mut found = get(&daemon, key).await.unwrap();
        let status = found.status.take().unwrap();
        assert_eq!((status.journal_bytes, status.found), (0, None));
        assert_eq!(found, made);
    }
    let status = daemon.status().get_status(v1::GetStatusRequest {}).await;
    assert_eq!(status.unwrap().into_inner().volumes, 3);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_is_refused_with_its_code() {
    let daemon = Daemon::start().await;
    daemon.upload("base", &noise(1, 1 << 20)).await;
    create(&daemon, "base", 512, "").await.unwrap();
    for (name, size_bytes, from, code, text) in [
        ("base", 512, "", Code::AlreadyExists, "a volume named"),
        ("v", 0, "", Code::InvalidArgument, "a size is needed"),
        ("v", 513, "", Code::InvalidArgument, "513"),
        ("v", 512, "base", Code::InvalidArgument, "1048576"),
        ("v", 1 << 60, "", Code::InvalidArgument, "at most"),
        ("v", 0, "absent", Code::NotFound, "snapshot \"absent\""),
        ("-v", 512, "", Code::InvalidArgument, "volume name"),
        ("", 512, "", Code::InvalidArgument, "empty"),
    ] {
        let status = create(&daemon, name, size_bytes, from).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    for status in [
        get(&daemon, "v").await.unwrap_err(),
        attach(&daemon, "v", true).await.unwrap_err(),
        detach(&daemon, "v").await.unwrap_err(),
        delete(&daemon, "v").await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(status.message().contains("volume \"v\""), "{status}");
    }
    let status = get(&daemon, "").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_is_served_and_held_on_to() {
    let daemon = Daemon::start().await;
    create(&daemon, "web/db", 1 << 20, "").await.unwrap();
    let attached = attach(&daemon, "web/db", false).await.unwrap();
    let socket = daemon.dir.path().join("nbd.sock");
    let socket = socket.to_str().unwrap();
    assert_eq!(
        attached.nbd_uris,
        [format!("nbd+unix:///volume/web/db?socket={socket}")]
    );
    let volume = attached.volume.unwrap();
    assert!(volume.attached_at.is_some());
    assert_eq!(volume.attachments, 1);
    for status in [
        attach(&daemon, "web/db", false).await.unwrap_err(),
        delete(&daemon, "web/db").await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("is attached"), "{status}");
    }
    let taken = attach(&daemon, "web/db", true).await.unwrap();
    assert_eq!(taken.volume.unwrap().attachments, 2);
    for _ in 0..2 {
        let detached = detach(&daemon, "web/db").await.unwrap();
        assert_eq!((detached.attached_at, detached.attachments), (None, 2));
    }
    delete(&daemon, "web/db").await.unwrap();
    assert_eq!(
        get(&daemon, "web/db").await.unwrap_err().code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_listed_in_pages_and_by_their_tags() {
    let daemon = Daemon::start().await;
    for name in ["a", "b-1", "b-2", "b-3"] {
        create(&daemon, name, 512, "").await.unwrap();
    }
    let tag = |set: &[(&str, &str)], remove: &[&str]| v1::TagVolumeRequest {
        volume: "b-2".to_owned(),
        set: set
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        remove: remove.iter().map(|key| (*key).to_owned()).collect(),
    };
    let mut volumes = daemon.volumes();
    volumes
        .tag_volume(tag(&[("os", "debian"), ("old", "")], &[]))
        .await
        .unwrap();
    let tagged = volumes.tag_volume(tag(&[], &["old", "absent"])).await;
    let expected = BTreeMap::from([("os".to_owned(), "debian".to_owned())]);
    assert_eq!(tagged.unwrap().into_inner().tags, expected);
    let refused = volumes.tag_volume(tag(&[("", "x")], &[])).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);

    let list = async |request: v1::ListVolumesRequest| {
        let page = daemon.volumes().list_volumes(request).await?.into_inner();
        let names: Vec<_> = page.volumes.into_iter().map(|it| it.name).collect();
        Ok::<_, Status>((names.join(" "), page.next_page_token))
    };
    let mut request = v1::ListVolumesRequest {
        page_size: 2,
        name_prefix: "b-".to_owned(),
        ..v1::ListVolumesRequest::default()
    };
    let (names, token) = list(request.clone()).await.unwrap();
    assert_eq!(names, "b-1 b-2");
    request.page_token = token.clone();
    assert_eq!(
        list(request).await.unwrap(),
        ("b-3".to_owned(), String::new())
    );
    let by_tag = v1::ListVolumesRequest {
        tags: expected,
        ..v1::ListVolumesRequest::default()
    };
    assert_eq!(
        list(by_tag).await.unwrap(),
        ("b-2".to_owned(), String::new())
    );
    // A token is valid for one listing only.
    let other = v1::ListSnapshotsRequest {
        page_token: token,
        name_prefix: "b-".to_owned(),
        ..v1::ListSnapshotsRequest::default()
    };
    let refused = daemon.snapshots().list_snapshots(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    daemon.stop().await;
}
