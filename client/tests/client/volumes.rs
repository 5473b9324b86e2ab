//! Looking after volumes.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use varve_client::{ErrorKind, NewVolume, VolumeFilter};
use varve_fake_daemon::{FakeDaemon, Manners};

fn new(name: &str) -> NewVolume {
    NewVolume {
        name: name.to_owned(),
        size_bytes: Some(1 << 20),
        ..NewVolume::default()
    }
}

#[tokio::test]
async fn listing_follows_the_pages() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    for number in 0..401 {
        client
            .create_volume(new(&format!("v{number:04}")))
            .await
            .unwrap();
    }
    let all: Vec<_> = client
        .volumes(VolumeFilter::default())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(all.len(), 401);
    assert_eq!(daemon.state().pages, 3);
    let filter = VolumeFilter {
        name_prefix: "v000".to_owned(),
        ..VolumeFilter::default()
    };
    let few: Vec<_> = client.volumes(filter).try_collect().await.unwrap();
    assert_eq!(few.len(), 10);
}

#[tokio::test]
async fn a_volume_is_made_attached_tagged_and_deleted() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let made = client.create_volume(new("db")).await.unwrap();
    assert_eq!(
        (made.base, &made.parent, made.attached_at),
        (None, &None, None)
    );
    let set = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    let tagged = client.tag_volume("db", set.clone(), vec![]).await.unwrap();
    assert_eq!(tagged.tags, set);

    let attached = client.attach_volume("db", false).await.unwrap();
    assert!(attached.volume.attached_at.is_some());
    assert!(attached.nbd_uris[0].starts_with("nbd+unix:///volume/db?"));
    for error in [
        client.attach_volume("db", false).await.unwrap_err(),
        client.delete_volume("db").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    assert_eq!(attached.export, "volume/db");
    let taken = client.attach_volume_with_ticket("db", true).await.unwrap();
    assert_eq!(taken.volume.attachments, 2);
    let secret = "varve_ticket_0a1b";
    assert!(taken.export.ends_with(&format!("@2:{secret}")));
    assert!(taken.nbd_uris.iter().all(|uri| uri.contains(secret)));
    assert!(!format!("{taken:?}").contains(secret));
    let detached = client.detach_volume("db").await.unwrap();
    assert_eq!(detached.attached_at, None);
    assert_eq!(client.volume("db").await.unwrap(), detached);
    assert_eq!(client.delete_volume("db").await.unwrap(), detached);
    let error = client.volume("db").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    let empty = NewVolume {
        size_bytes: Some(0),
        ..new("empty")
    };
    let error = client.create_volume(empty).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
