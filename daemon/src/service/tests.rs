#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, time::SystemTime};

use futures::stream;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use varve_store::{IncomingChunk, Options};

use super::*;
use crate::{
    auth::Face,
    config::Config,
    error::{Classified as _, ErrorKind},
    net::{peer::Peer, places::Places},
};

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
        let copies = Copies::new(store.clone(), config.copies, tasks.clone(), stop);
        let service = Service::new(Parts {
            store,
            tasks,
            copies,
            uploads: Arc::new(Uploads::new(limits::UPLOAD_IDLE)),
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

    let attached = service.attach_volume(caller, "db", false).await.unwrap();
    assert_eq!(attached.nbd_uris, ["nbd://127.0.0.1:10809/volume/db"]);
    let first = format!("{}@1", attached.record.id);
    let opened = service.open_volume_export(caller, &first).await.unwrap();
    assert_eq!(opened.record().name.as_deref(), Some("db"));
    drop(opened.volume().await.unwrap());
    let exported = service.exported_volumes(caller, None, 10).await.unwrap();
    assert_eq!(exported.len(), 1);

    service.attach_volume(caller, "db", true).await.unwrap();
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
        .find_missing(caller, "up-1", &ids)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutOfRange, "{refused}");
}

/// How long the first message of a stream of chunks may take is up to the stream.
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
