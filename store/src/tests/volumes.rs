//! Volumes as records, on a real disk.

use std::collections::BTreeMap;

use super::{block_on, upload};
use crate::{
    Error, ListQuery, NewVolume, Options, Result, Store, VolumeKey, VolumeRecord, rebuild,
};

fn new(name: &str) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        size_bytes: Some(1 << 20),
        ..NewVolume::default()
    }
}

async fn names(store: &Store, query: ListQuery) -> Vec<String> {
    let query = ListQuery {
        limit: 100,
        ..query
    };
    let found = store.list_volumes(query).await.unwrap();
    found
        .into_iter()
        .map(|record| record.label().into_owned())
        .collect()
}

fn attached(result: &Result<VolumeRecord>) -> bool {
    matches!(result, Err(Error::Attached { name }) if name == "db")
}

#[test]
fn a_volume_is_made_found_changed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let made = store.create_volume(new("db")).await.unwrap();
        assert_eq!(store.volume(&"db".into()).await.unwrap(), made);
        assert_eq!(store.volume(&VolumeKey::Id(made.id)).await.unwrap(), made);
        assert_eq!(store.status().await.unwrap().volumes, 1);

        let tags = BTreeMap::from([("tier".to_owned(), "gold".to_owned())]);
        let tagged = store
            .tag_volume(&"db".into(), tags.clone(), vec![])
            .await
            .unwrap();
        assert_eq!(tagged.tags, tags);
        store.create_volume(new("web")).await.unwrap();
        assert_eq!(names(&store, ListQuery::default()).await, ["db", "web"]);
        let gold = ListQuery {
            tags,
            ..ListQuery::default()
        };
        assert_eq!(names(&store, gold).await, ["db"]);

        let taken = store.create_volume(new("db")).await.unwrap_err();
        assert!(
            matches!(&taken, Error::AlreadyExists { what: "volume", id, .. } if *id == made.id.to_string()),
            "{taken:?}"
        );
        let named = NewVolume {
            name: made.id.to_string(),
            ..new("")
        };
        assert!(
            store.create_volume(named).await.is_err(),
            "a name like an id"
        );

        store.delete_volume(&"db".into()).await.unwrap();
        for gone in [
            store.volume(&"db".into()).await,
            store.delete_volume(&"db".into()).await,
            store.attach_volume(&"db".into(), true).await,
            store.detach_volume(&"db".into()).await,
        ] {
            assert!(
                matches!(gone, Err(Error::NotFound { what: "volume", .. })),
                "{gone:?}"
            );
        }
        // The name is free again, and a volume and a snapshot may share one.
        store.create_volume(new("db")).await.unwrap();
        upload(&store, "db", &[1; 4096]).await.unwrap();
        store.close().await.unwrap();
    });
}

#[test]
fn an_attached_volume_is_held_on_to() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        store.create_volume(new("db")).await.unwrap();
        let first = store.attach_volume(&"db".into(), false).await.unwrap();
        assert_eq!(first.attachments, 1);
        assert!(first.attached_at_ns >= Some(first.created_at_ns));
        assert!(attached(&store.attach_volume(&"db".into(), false).await));
        assert!(attached(&store.delete_volume(&"db".into()).await));
        assert_eq!(store.volume(&"db".into()).await.unwrap(), first);

        let second = store.attach_volume(&"db".into(), true).await.unwrap();
        assert_eq!(second.attachments, 2);
        let detached = store.detach_volume(&"db".into()).await.unwrap();
        assert_eq!((detached.attachments, detached.attached_at_ns), (2, None));
        assert_eq!(
            store.detach_volume(&"db".into()).await.unwrap(),
            detached,
            "whoever lost the answer asks again"
        );
        let third = store.attach_volume(&"db".into(), true).await.unwrap();
        assert_eq!(third.attachments, 3);
        store.detach_volume(&"db".into()).await.unwrap();
        store.delete_volume(&"db".into()).await.unwrap();
        store.close().await.unwrap();
    });
}

/// The catalog log also has everything that the index has of volumes; and a snapshot's content
/// outlives the snapshot in them.
#[test]
fn volumes_are_there_again_after_a_restart_and_after_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path());
    let expected = block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        let snapshot = upload(&store, "base", &[1; 8192]).await.unwrap();
        let from = NewVolume {
            size_bytes: None,
            from: Some("base".into()),
            ..new("db")
        };
        let made = store.create_volume(from).await.unwrap();
        assert_eq!(made.base, snapshot.root());
        store.create_volume(new("gone")).await.unwrap();
        store.delete_volume(&"gone".into()).await.unwrap();
        store.delete_snapshot(&"base".into()).await.unwrap();
        let expected = store.attach_volume(&"db".into(), false).await.unwrap();
        store.close().await.unwrap();
        expected
    });
    for round in 0..2 {
        block_on(async {
            let (store, report) = Store::open(options.clone()).await.unwrap();
            assert!(report.is_clean(), "{report}");
            assert_eq!(store.volume(&"db".into()).await.unwrap(), expected);
            assert_eq!(names(&store, ListQuery::default()).await, ["db"]);
            store.close().await.unwrap();
        });
        if round == 0 {
            block_on(async {
                std::fs::remove_dir_all(dir.path().join("index")).unwrap();
                let report = rebuild(options.clone()).await.unwrap();
                assert_eq!((report.snapshots, report.volumes), (0, 1));
            });
        }
    }
}
