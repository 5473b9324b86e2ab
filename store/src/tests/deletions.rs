//! Several snapshots deleted at once, against a model, and as many as one change has room for.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Random, block_on,
    pending::{fill, hold_checkpoints, pending},
    repairs::closed,
    seed, upload,
    volume_data::new_volume,
};
use crate::{
    AccountId, Error, ListPlace, ListQuery, Options, Sharing, SnapshotId, SnapshotKey,
    SnapshotRecord, SnapshotState, Store, VolumeId, format::Change, limits, meta::Meta,
};

/// Snapshots by name: their ids, and the volumes of the pending ones.
type Model = BTreeMap<String, (SnapshotId, Option<VolumeId>)>;

async fn names(store: &Store) -> Vec<String> {
    let mut query = ListQuery {
        limit: limits::PAGE_MAX,
        ..ListQuery::default()
    };
    let mut names = Vec::new();
    loop {
        let page = store.list_snapshots(query.clone()).await.unwrap();
        let Some(last) = page.last() else {
            return names;
        };
        query.after = Some(ListPlace::of(last));
        names.extend(page.iter().map(|it| it.label().into_owned()));
    }
}

/// Snapshots are as in the model, and so are the cuts of volumes.
async fn check(store: &Store, model: &Model) {
    assert_eq!(
        names(store).await,
        model.keys().cloned().collect::<Vec<_>>()
    );
    let all = ListQuery {
        limit: limits::PAGE_MAX,
        ..ListQuery::default()
    };
    let mut pending = BTreeSet::new();
    for volume in store.list_volumes(all).await.unwrap() {
        let cuts = volume.pending.iter();
        pending.extend(cuts.map(|cut| (cut.snapshot, Some(volume.id))));
    }
    let expected = model.values().filter(|(_, volume)| volume.is_some());
    assert_eq!(pending, expected.copied().collect());
    let status = store.status().await.unwrap();
    assert_eq!(status.snapshots, model.len() as u64);
}

/// Deletes all of these, however many calls it takes, and compares the outcomes.
async fn delete_all(store: &Store, model: &mut Model, keys: &[SnapshotKey]) -> usize {
    let mut rest = keys;
    let mut calls = 0;
    while !rest.is_empty() {
        let outcomes = store.delete_snapshots(rest.to_vec()).await.unwrap();
        assert!((1..=rest.len()).contains(&outcomes.len()));
        let (done, later) = rest.split_at(outcomes.len());
        for (key, outcome) in done.iter().zip(outcomes) {
            let name = model.iter().find_map(|(name, (id, _))| match key {
                SnapshotKey::Id(wanted)
                | SnapshotKey::Owned { id: wanted, .. }
                | SnapshotKey::Readable { id: wanted, .. } => (id == wanted).then(|| name.clone()),
                SnapshotKey::Name { name: wanted, .. } => (name == wanted).then(|| name.clone()),
            });
            match (name, outcome) {
                (Some(name), Ok(deleted)) => {
                    let (id, volume) = model.remove(&name).unwrap();
                    assert_eq!((deleted.id, deleted.name), (id, Some(name)));
                    assert_eq!(deleted.state == SnapshotState::Pending, volume.is_some());
                }
                (None, Err(Error::NotFound { what, name })) => {
                    assert_eq!((what, name), ("snapshot", key.to_string()));
                }
                (name, outcome) => panic!("{key}: {name:?}, {outcome:?}"),
            }
        }
        rest = later;
        calls += 1;
    }
    calls
}

#[test]
fn several_are_deleted_as_one_after_the_other() {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path().join("store"));
    let mut model = Model::new();
    block_on(async {
        let (store, _) = Store::open(options.clone()).await.unwrap();
        let held = hold_checkpoints(&store).await;
        for volume in ["a", "b"] {
            let new = new_volume(volume, 1 << 20);
            let volume_id = store.create_volume(new).await.unwrap().id;
            for number in 0..limits::PENDING_SNAPSHOTS_MAX {
                let opened = store.open_volume(&volume.into()).await.unwrap();
                fill(&opened, number, 7).await;
                let name = format!("{volume}-{number}");
                let made = pending(&store, volume, &name).await.unwrap();
                model.insert(name, (made.id, Some(volume_id)));
            }
        }
        for number in 0..12 {
            let name = format!("uploaded-{number}");
            upload(&store, &name, &[number + 1; 4096]).await.unwrap();
            let id = store.snapshot(&name.as_str().into()).await.unwrap().id;
            model.insert(name, (id, None));
        }
        check(&store, &model).await;
        let mut gone: Vec<SnapshotKey> = vec!["none".into()];
        while !model.is_empty() {
            let mut keys = Vec::new();
            for _ in 0..random.below(12) {
                let all: Vec<_> = model.iter().collect();
                let (name, (id, _)) = all[random.below(all.len())];
                keys.push(match random.below(5) {
                    0 | 1 => SnapshotKey::from(&**name),
                    2 | 3 => SnapshotKey::Id(*id),
                    _ => gone[random.below(gone.len())].clone(),
                });
            }
            delete_all(&store, &mut model, &keys).await;
            check(&store, &model).await;
            gone.extend(keys);
        }
        drop(held);
        closed(store).await;
        let (store, report) = Store::open(options).await.unwrap();
        assert!(report.is_clean(), "{report}");
        check(&store, &model).await;
        store.close().await.unwrap();
    });
}

/// Puts snapshots without content into the catalog, many with each change.
async fn plant(store: &Store, count: usize, tags: &BTreeMap<String, String>) -> Model {
    let mut model = Model::new();
    for first in (0..count).step_by(20) {
        let mut changes = Vec::new();
        for number in first..count.min(first + 20) {
            let record = SnapshotRecord {
                id: SnapshotId::random().unwrap(),
                name: Some(format!("planted-{number:05}")),
                owner: AccountId::ADMINISTRATOR,
                description: String::new(),
                size_bytes: 4096,
                state: SnapshotState::Failed {
                    reason: "planted".to_owned(),
                },
                created_at_ns: 1,
                tags: tags.clone(),
                origin: None,
                parent: None,
                sharing: Sharing::default(),
            };
            changes.push(Change::put(&record));
            model.insert(record.name.unwrap(), (record.id, None));
        }
        let put = move |_: &dyn Meta| Ok((changes.clone(), ()));
        store.engine().commit.change((), put).await.unwrap();
    }
    model
}

#[test]
fn one_change_deletes_thousands_and_no_more_bytes_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let long = |number| (format!("key-{number}"), "v".repeat(255));
    let longest: BTreeMap<_, _> = (0..limits::TAGS_MAX).map(long).collect();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        for (count, tags, calls) in [(2000, BTreeMap::new(), 1), (200, longest, 3)] {
            let mut model = plant(&store, count, &tags).await;
            let keys: Vec<_> = model.values().map(|(id, _)| SnapshotKey::Id(*id)).collect();
            assert_eq!(delete_all(&store, &mut model, &keys).await, calls);
            check(&store, &model).await;
        }
        store.close().await.unwrap();
    });
}
