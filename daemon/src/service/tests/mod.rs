#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, time::SystemTime};

use futures::{poll, stream};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use varve_store::{AccountId, IncomingChunk, Options};

use super::*;
use crate::{
    auth::{Face, Rates, audit::Audit},
    config::Config,
    error::{Classified as _, ErrorKind},
    net::{peer::Peer, places::Places},
    telemetry::capture::Captured,
};

mod tickets;

const NEW: AttachRequest = AttachRequest {
    force: false,
    with_ticket: false,
};
const TAKE_OVER: AttachRequest = AttachRequest { force: true, ..NEW };

/// A service over a real store, and a caller.
struct Fixture {
    service: Service,
    caller: Caller,
    _dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::for_data_dir(dir.path()).unwrap();
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let tasks = Tasks::new();
        let stop = CancellationToken::new();
        let copies = Copies::new(store.clone(), config.copies, tasks.clone(), stop.clone());
        let key_file = dir.path().join("auth.key");
        let accounts = Accounts::load(store.clone(), key_file).await.unwrap();
        let audit = Audit::open(dir.path(), &Default::default()).unwrap();
        let door = Door {
            directory: accounts.directory().clone(),
            audit: Some(Arc::new(audit)),
            rates: Arc::new(Rates::new()),
        };
        let service = Service::new(Parts {
            accounts,
            door,
            store,
            tasks,
            copies,
            stop,
            uploads: Arc::new(Uploads::new(limits::UPLOAD_IDLE)),
            hides_dedupe: false,
            gc: config.gc.settings,
            facts: Facts {
                data_dir: dir.path().to_owned(),
                started_at: SystemTime::now(),
                nbd_servers: vec![varve_nbd::ServerUri::Tcp("127.0.0.1:10809".to_owned())],
                nbd_places: Places::new(1),
            },
        });
        Self {
            service,
            caller: Caller::new(Face::Grpc, Peer::Given),
            _dir: dir,
        }
    }

    async fn volume(&self, name: &str) {
        let new = VolumeRequest {
            name: name.to_owned(),
            size_bytes: Some(1 << 20),
            from: None,
            tags: BTreeMap::new(),
        };
        self.service.create_volume(&self.caller, new).await.unwrap();
    }
}

#[tokio::test]
async fn a_volume_is_served_while_it_is_attached_and_as_long_as_it_is_that_attachment() {
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    fixture.volume("db").await;
    let refused = service.open_volume_export(caller, "db").await.unwrap_err();
    assert!(matches!(refused, Error::NotAttached { .. }), "{refused}");

    let attached = service.attach_volume(caller, "db", NEW).await.unwrap();
    assert_eq!(attached.nbd_uris, ["nbd://127.0.0.1:10809/volume/db"]);
    let first = format!("{}@1", attached.record.id);
    let opened = service.open_volume_export(caller, &first).await.unwrap();
    assert_eq!(opened.record().name.as_deref(), Some("db"));
    drop(opened.volume().await.unwrap());
    let exported = service.exported_volumes(caller, None, 10).await.unwrap();
    assert_eq!(exported.len(), 1);

    service
        .attach_volume(caller, "db", TAKE_OVER)
        .await
        .unwrap();
    let ended = opened.volume().await.err().unwrap();
    assert!(matches!(ended, Error::Detached), "{ended}");
    let refused = service
        .open_volume_export(caller, &first)
        .await
        .unwrap_err();
    let is_other = matches!(
        refused,
        Error::AttachedAgain {
            current: 2,
            wanted: 1,
            ..
        }
    );
    assert!(is_other, "{refused}");
    service.open_volume_export(caller, "db").await.unwrap();

    service.detach_volume(caller, "db").await.unwrap();
    let refused = service.open_volume_export(caller, "db").await.unwrap_err();
    assert!(matches!(refused, Error::NotAttached { .. }), "{refused}");
}

#[tokio::test]
async fn requests_are_checked_before_the_store_is_asked() {
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    let long = "x".repeat(limits::KEY_BYTES_MAX + 1);
    for key in ["", &long] {
        let refused = service.snapshot(caller, key).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        let refused = service.volume(caller, key).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        let refused = service.download(caller, key, false).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    let unknown = service.snapshot(caller, "web").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound, "{unknown}");
    let ids = vec![varve_content::ChunkId::of(b"x"); limits::FIND_IDS_MAX as usize + 1];
    let refused = service
        .find_missing(caller, "up-1", &ids, &[])
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutOfRange, "{refused}");
}

/// The stream bounds the time until the first message of chunks.
#[tokio::test]
async fn a_first_message_that_is_late_is_received() {
    let fixture = Fixture::new().await;
    tokio::time::pause();
    let late = stream::once(async {
        tokio::time::sleep(limits::REQUEST_WITHIN + limits::BUSY_WITHIN).await;
        Ok::<_, Error>(ChunkMessage {
            upload: "up-1".to_owned(),
            payload_bytes: 0,
            chunks: std::iter::empty::<Result<IncomingChunk>>(),
        })
    });
    let taken = fixture
        .service
        .put_chunks(&fixture.caller, Box::pin(late), |_| {});
    let error = taken.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    let nothing = stream::empty::<Result<ChunkMessage<std::iter::Empty<_>>>>();
    let taken = fixture.service.put_chunks(&fixture.caller, nothing, |_| {});
    assert_eq!(taken.await.unwrap().chunks, 0);
}

/// Waits for the log line of a change.
async fn logged(log: &Captured, what: &str) -> String {
    for _ in 0..1000 {
        if log.lines().iter().any(|line| line.contains(what)) {
            return log.line(what);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{what}: {:#?}", log.lines());
}

#[tokio::test]
async fn a_change_is_logged_even_if_its_caller_has_gone() {
    let log = Captured::new();
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    fixture.volume("db").await;
    {
        let attach = std::pin::pin!(service.attach_volume(caller, "db", NEW));
        assert!(poll!(attach).is_pending());
    }
    let line = logged(&log, "volume attached").await;
    assert!(line.contains(&format!("caller={caller}")), "{line}");
    service.detach_volume(caller, "db").await.unwrap();
    {
        let delete = std::pin::pin!(service.delete_volume(caller, "db"));
        assert!(poll!(delete).is_pending());
    }
    let line = logged(&log, "volume deleted").await;
    assert!(line.contains(r#"name="db""#), "{line}");
    assert!(line.contains(&format!("caller={caller}")), "{line}");
    // A deletion that fails.
    {
        let delete = std::pin::pin!(service.delete_volume(caller, "db"));
        assert!(poll!(delete).is_pending());
    }
    let line = logged(&log, "call refused").await;
    assert!(line.contains(r#"on="volume db""#), "{line}");
}

#[tokio::test]
async fn each_change_is_one_line_that_says_who_made_it_and_to_what() {
    let log = Captured::new();
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    let mut seen = 0;
    let mut changed = |call: &str, on: &str, words: &[&str]| {
        let mut lines = log.lines();
        lines.retain(|line| line.contains("INFO") && !line.contains("g-*"));
        let new = &lines[seen..];
        seen = lines.len();
        assert_eq!(new.len(), 1, "{call}: {new:#?}");
        let call = format!("call={call:?} caller={caller} on={on:?}");
        assert!(new[0].contains(&call), "{call}: {}", new[0]);
        for word in words {
            assert!(new[0].contains(word), "{word}: {}", new[0]);
        }
    };
    fixture.volume("db").await;
    let id = &*format!(
        "id={}",
        service.volume(caller, "db").await.unwrap().record.id
    );
    changed(
        "CreateVolume",
        "volume db",
        &["volume created", id, "size_bytes=1048576"],
    );
    service.resize_volume(caller, "db", 2 << 20).await.unwrap();
    changed(
        "ResizeVolume",
        "volume db",
        &["volume resized", id, "size_bytes=2097152"],
    );
    let tags = || TagChange {
        set: [("a".to_owned(), "b".to_owned())].into(),
        remove: Vec::new(),
    };
    service.tag_volume(caller, "db", tags()).await.unwrap();
    changed("TagVolume", "volume db", &["volume tagged", id, "tags=1"]);
    service.attach_volume(caller, "db", NEW).await.unwrap();
    changed(
        "AttachVolume",
        "volume db",
        &["volume attached", id, "attachment=1"],
    );
    // With a client, which is cut off.
    service.open_volume_export(caller, "db").await.unwrap();
    service.detach_volume(caller, "db").await.unwrap();
    changed(
        "DetachVolume",
        "volume db",
        &["volume detached", id, r#"name="db""#],
    );

    let new = SnapshotsRequest {
        volumes: vec!["db".to_owned()],
        name: "s".to_owned(),
        tags: BTreeMap::new(),
    };
    service.create_snapshots(caller, new).await.unwrap();
    let snapshot = service.snapshot(caller, "s").await.unwrap().record.id;
    let id = &*format!("id={snapshot}");
    changed(
        "CreateSnapshots",
        "volume db, snapshot s",
        &["is pending", id, r#"volume="db""#],
    );
    service.tag_snapshot(caller, "s", tags()).await.unwrap();
    changed(
        "TagSnapshot",
        "snapshot s",
        &["snapshot tagged", id, r#"name="s""#],
    );
    service.delete_snapshot(caller, "s").await.unwrap();
    changed(
        "DeleteSnapshot",
        "snapshot s",
        &["snapshot deleted", id, r#"name="s""#],
    );

    // One line for each snapshot of a group.
    fixture.volume("other").await;
    changed("CreateVolume", "volume other", &[]);
    let new = SnapshotsRequest {
        volumes: vec!["db".to_owned(), "other".to_owned()],
        name: "g".to_owned(),
        tags: BTreeMap::new(),
    };
    service.create_snapshots(caller, new).await.unwrap();
    let mut lines = log.lines();
    lines.retain(|line| line.contains("snapshots \\\"g-*\\\""));
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let remote = varve_store::RemoteRecord {
        owner: AccountId::ADMINISTRATOR,
        name: "eu".to_owned(),
        endpoint: "unix:/nowhere/x.sock".to_owned(),
        allow_plaintext: false,
        tls_ca: String::new(),
        tls_cert: String::new(),
        tls_key: String::new(),
        token_file: String::new(),
        created_at_ns: 0,
    };
    service.add_remote(caller, remote, "").await.unwrap();
    changed(
        "AddRemote",
        "remote eu",
        &["remote added", r#"endpoint="unix:/nowhere/x.sock""#],
    );
    let new = NewCopy {
        owner: AccountId::ADMINISTRATOR,
        source: CopySource {
            endpoint: "eu".to_owned(),
            snapshot: "web".to_owned(),
            allow_plaintext: false,
        },
        name: "here".to_owned(),
        tags: BTreeMap::new(),
        bytes_per_second: 0,
    };
    let copy = service
        .create_copy(caller, new)
        .await
        .unwrap()
        .record
        .id
        .to_string();
    let (id, on) = (&*format!("id={copy}"), &*format!("copy {copy}"));
    changed(
        "CreateCopy",
        "remote eu, snapshot here",
        &["copy begun", id, r#"snapshot="web""#],
    );
    service.limit_copy(caller, &copy, 7).await.unwrap();
    changed("LimitCopy", on, &["copy limited", id, "bytes_per_second=7"]);
    service.cancel_copy(caller, &copy).await.unwrap();
    changed("CancelCopy", on, &["copy cancelled", id]);
    service.cancel_copy(caller, &copy).await.unwrap();
    service.remove_remote(caller, "eu", "").await.unwrap();
    changed(
        "RemoveRemote",
        "remote eu",
        &["remote removed", r#"name="eu""#],
    );
}

/// The line names the snapshot or upload, and is the only one of the call.
#[tokio::test]
async fn a_stream_is_one_line_at_its_end() {
    use futures::StreamExt as _;

    let log = Captured::new();
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    let new = varve_store::NewSnapshot {
        owner: AccountId::ADMINISTRATOR,
        name: "s".to_owned(),
        size_bytes: 4096,
        tags: BTreeMap::new(),
        chunker_version: varve_content::chunker::CHUNKER_VERSION,
        lineage: None,
    };
    let new = NewUpload {
        snapshot: new,
        base: String::new(),
        keep_packed: false,
    };
    let upload = service.begin_upload(caller, new).await.unwrap();
    let refused = service.abort_upload(caller, "up-x").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    service.abort_upload(caller, &upload).await.unwrap();
    let line = log.line("upload aborted");
    assert!(line.contains(&format!("on=\"upload {upload}\"")), "{line}");

    let items = service.diff_snapshots(caller, "s", "s").await;
    assert!(items.is_err());
    let line = log.line("DiffSnapshots");
    assert!(line.contains(r#"on="snapshot s, snapshot s""#), "{line}");

    fixture.volume("db").await;
    let new = SnapshotsRequest {
        volumes: vec!["db".to_owned()],
        name: "s".to_owned(),
        tags: BTreeMap::new(),
    };
    service.create_snapshots(caller, new).await.unwrap();
    while service
        .snapshot(caller, "s")
        .await
        .unwrap()
        .record
        .content()
        .is_none()
    {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let verified = service.verify_snapshot(caller, "s").await.unwrap();
    verified.collect::<Vec<_>>().await;
    let line = log.line("VerifySnapshot");
    assert!(
        line.contains("snapshot verified") && line.contains("INFO"),
        "{line}"
    );
    assert!(line.contains(r#"on="snapshot s""#), "{line}");
    let downloaded = service.download(caller, "s", true).await.unwrap();
    downloaded.collect::<Vec<_>>().await;
    let line = log.line("call=\"Download\"");
    assert!(
        line.contains("snapshot downloaded") && line.contains("INFO"),
        "{line}"
    );
    assert!(
        line.contains(&format!("caller={caller} on=\"snapshot s\"")),
        "{line}"
    );
    let read = service.read_snapshot(caller, "s", 0, 0).await.unwrap();
    drop(read);
    let line = logged(&log, "ReadSnapshot").await;
    assert!(
        line.contains("DEBUG") && line.contains(r#"on="snapshot s""#),
        "{line}"
    );
}

#[tokio::test]
async fn a_name_that_begins_like_that_of_an_export_can_be_cloned() {
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    fixture.volume("snapshot/x").await;
    let clone = async |source: &str, name: &str| {
        let request = CloneRequest {
            source: source.to_owned(),
            name: name.to_owned(),
            ..CloneRequest::default()
        };
        service.clone_volume(caller, request).await
    };
    for (number, source) in ["snapshot/x", "volume/snapshot/x"].into_iter().enumerate() {
        clone(source, &format!("c{number}")).await.unwrap();
    }
    let refused = clone("snapshot/y", "d").await.unwrap_err().to_string();
    assert!(refused.contains("snapshot \"y\""), "{refused}");
    // The prefix comes first.
    fixture.volume("x").await;
    service.resize_volume(caller, "x", 2 << 20).await.unwrap();
    fixture.volume("volume/x").await;
    let cloned = clone("volume/x", "e").await.unwrap();
    assert_eq!(cloned.size_bytes, 2 << 20);
}

#[tokio::test]
async fn each_of_several_deletions_is_one_line_by_the_name_or_id_that_was_given() {
    let log = Captured::new();
    let fixture = Fixture::new().await;
    let (service, caller) = (&fixture.service, &fixture.caller);
    fixture.volume("db").await;
    let mut ids = Vec::new();
    for name in ["t1", "t2"] {
        let new = SnapshotsRequest {
            volumes: vec!["db".to_owned()],
            name: name.to_owned(),
            tags: BTreeMap::new(),
        };
        let made = service.create_snapshots(caller, new).await.unwrap();
        ids.push(made[0].record.id.to_string());
    }
    let keys = ["none", "t1", &ids[1]].map(str::to_owned).to_vec();
    let outcomes = service.delete_snapshots(caller, keys).await.unwrap();
    let is_deleted: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(is_deleted, [false, true, true]);
    let mut lines = log.lines();
    lines.retain(|line| line.contains("call=\"DeleteSnapshots\""));
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for (line, (says, on, name)) in lines.iter().zip([
        ("call refused", "none", ""),
        ("snapshot deleted", "t1", "name=\"t1\""),
        ("snapshot deleted", &ids[1], "name=\"t2\""),
    ]) {
        let on = format!("on=\"snapshot {on}\"");
        assert!(
            line.contains(says) && line.contains(&on) && line.contains(name),
            "{line}"
        );
        assert!(line.contains(&format!("caller={caller}")), "{line}");
    }

    for keys in [vec![], vec![String::new()]] {
        let refused = service.delete_snapshots(caller, keys).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    let many = vec!["t".to_owned(); limits::DELETE_SNAPSHOTS_MAX + 1];
    let refused = service.delete_snapshots(caller, many).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutOfRange, "{refused}");
    let line = log.line("1001 snapshots");
    assert!(line.contains("snapshot t and 984 more"), "{line}");
}

/// What the door costs an operation, with as many accounts as there may be.
#[tokio::test]
#[ignore = "a measurement"]
async fn the_door() {
    let fixture = Fixture::new().await;
    let (service, root) = (&fixture.service, &fixture.caller);
    for number in 0..999_u32 {
        let new = NewAccount {
            name: format!("account-{number}"),
            identities: vec![varve_store::Identity::User(1000 + number)],
            ..NewAccount::default()
        };
        service.create_account(root, new).await.unwrap();
    }
    let peer = Peer::Unix {
        process: Some(1),
        user: 1500,
        group: 1500,
    };
    let caller = Caller::new(Face::Grpc, peer);
    for round in 0..3 {
        const TIMES: u32 = 100_000;
        let started = std::time::Instant::now();
        for _ in 0..TIMES {
            let sight = service.sight(&caller);
            let key = sight.volume("volume", "data").unwrap();
            let attempt = service.begin(&caller, Action::GetVolume, &[]).unwrap();
            std::hint::black_box((key, attempt));
        }
        println!("{round}: the door takes {:?}", started.elapsed() / TIMES);
    }
}
