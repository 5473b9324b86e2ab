//! Quotas of accounts: random operations of several owners, and the same on a plain model.

use std::{collections::BTreeMap, fmt::Debug, fs};

use super::{Random, block_on, cut, new_snapshot, repairs::closed, seed, send, volume_data};
use crate::{
    AccountId, AccountRecord, CloneSource, Error, NewClone, NewSnapshot, NewSnapshots, NewVolume,
    Options, Quota, Result, SnapshotId, Store, VolumeId,
    format::{keys::Holdings, names},
    meta::{SnapshotKey, VolumeKey},
    rebuild,
};

const OWNERS: [u64; 3] = [0, 7, 8];
const LIMITED: [Quota; 3] = [Quota::Volumes, Quota::Snapshots, Quota::AttachedVolumes];

fn id(number: u64) -> AccountId {
    AccountId::from_number(number).unwrap()
}

fn name_of(owner: u64) -> String {
    match owner {
        0 => "admin".to_owned(),
        owner => format!("account{owner}"),
    }
}

async fn create_accounts(store: &Store) {
    for owner in &OWNERS[1..] {
        let account = AccountRecord {
            id: id(*owner),
            name: name_of(*owner),
            ..AccountRecord::administrator()
        };
        store.create_account(account).await.unwrap();
    }
}

async fn limit(store: &Store, owner: u64, quota: Quota, limit: Option<u64>) {
    let change = move |record: &mut AccountRecord| {
        match limit {
            Some(limit) => record.quotas.insert(quota, limit),
            None => record.quotas.remove(&quota),
        };
        Ok(())
    };
    store.update_account(id(owner), change).await.unwrap();
}

fn volume_key(id: VolumeId) -> VolumeKey {
    VolumeKey::from(&*id.to_string())
}

fn snapshot_key(id: SnapshotId) -> SnapshotKey {
    SnapshotKey::from(&*id.to_string())
}

fn volume_of(owner: u64, name: &str) -> NewVolume {
    NewVolume {
        owner: id(owner),
        ..volume_data::new_volume(name, 1 << 20)
    }
}

const VOLUME: Holdings = Holdings {
    volumes: 1,
    snapshots: 0,
    attached_volumes: 0,
    images: 0,
};
const ATTACHED: Holdings = Holdings {
    volumes: 0,
    snapshots: 0,
    attached_volumes: 1,
    images: 0,
};

fn snapshots(count: usize) -> Holdings {
    Holdings {
        snapshots: count as u64,
        ..Holdings::default()
    }
}

#[derive(Default)]
struct Model {
    /// Their owners, and whether they are attached.
    volumes: BTreeMap<VolumeId, (u64, bool)>,
    snapshots: BTreeMap<SnapshotId, u64>,
    limits: BTreeMap<(u64, Quota), u64>,
    refused: u64,
}

impl Model {
    fn held(&self, owner: u64) -> Holdings {
        let own = |it: &&(u64, bool)| it.0 == owner;
        Holdings {
            volumes: self.volumes.values().filter(own).count() as u64,
            snapshots: self.snapshots.values().filter(|it| **it == owner).count() as u64,
            attached_volumes: self.volumes.values().filter(own).filter(|it| it.1).count() as u64,
            images: 0,
        }
    }

    /// The outcome, unless the quotas refuse it: then it has to be an error that says why.
    fn check<T: Debug>(&mut self, owner: u64, gains: Holdings, outcome: Result<T>) -> Option<T> {
        let held = self.held(owner);
        let lacking = LIMITED.into_iter().find_map(|quota| {
            let (used, more) = (held.of(quota)?, gains.of(quota)?);
            let limit = *self.limits.get(&(owner, quota))?;
            (more > 0 && used + more > limit).then_some((quota, limit, used, more))
        });
        match (outcome, lacking) {
            (Ok(done), None) => Some(done),
            (
                Err(Error::Quota {
                    account,
                    quota,
                    limit,
                    used,
                    more,
                }),
                Some(lacking),
            ) => {
                assert_eq!((quota, limit, used, more), lacking);
                assert_eq!(account, name_of(owner));
                self.refused += 1;
                None
            }
            (outcome, lacking) => panic!("{outcome:?}, and {lacking:?} is lacking"),
        }
    }

    async fn step(&mut self, store: &Store, random: &mut Random, number: usize) {
        let owner = OWNERS[random.below(OWNERS.len())];
        let name = format!("n{number}");
        let volumes: Vec<_> = self.volumes.keys().copied().collect();
        let some_snapshots: Vec<_> = self.snapshots.keys().copied().collect();
        let volume = volumes.get(random.below(volumes.len().max(1))).copied();
        let snapshot = some_snapshots.get(random.below(some_snapshots.len().max(1)));
        match (random.below(11), volume, snapshot.copied()) {
            (0, ..) | (_, None, _) => {
                let made = store.create_volume(volume_of(owner, &name)).await;
                if let Some(made) = self.check(owner, VOLUME, made) {
                    self.volumes.insert(made.id, (owner, false));
                }
            }
            (1, Some(volume), _) => {
                let new = NewClone {
                    source: CloneSource::Volume(volume_key(volume)),
                    owner: id(owner),
                    name,
                    size_bytes: None,
                    tags: BTreeMap::new(),
                };
                let made = store.clone_volume(new).await;
                if let Some(made) = self.check(owner, VOLUME, made) {
                    self.volumes.insert(made.id, (owner, false));
                }
            }
            (2, ..) | (_, _, None) => {
                let made = uploaded(store, owner, &name).await;
                if let Some(made) = self.check(owner, snapshots(1), made) {
                    self.snapshots.insert(made, owner);
                }
            }
            (3, ..) => {
                let count = volumes.len().min(1 + random.below(3));
                let new = NewSnapshots {
                    owner: id(owner),
                    volumes: volumes[..count].iter().copied().map(volume_key).collect(),
                    name,
                    tags: BTreeMap::new(),
                };
                let made = store.snapshot_volumes(new).await;
                let made = self.check(owner, snapshots(count), made);
                let made: Vec<_> = made.into_iter().flatten().map(|it| it.id).collect();
                self.snapshots.extend(made.iter().map(|id| (*id, owner)));
                // They count while they are pending.
                self.assert_counts(store).await;
                for id in made {
                    store.completed_snapshot(id).await.unwrap();
                }
            }
            (4, Some(volume), _) => {
                let (owner, was_attached) = self.volumes[&volume];
                let gains = if was_attached {
                    Holdings::default()
                } else {
                    ATTACHED
                };
                let attached = store.attach_volume(&volume_key(volume), true).await;
                if self.check(owner, gains, attached).is_some() {
                    self.volumes.insert(volume, (owner, true));
                }
            }
            (5, Some(volume), _) => {
                store.detach_volume(&volume_key(volume)).await.unwrap();
                self.volumes.get_mut(&volume).unwrap().1 = false;
            }
            (6, Some(volume), _) => {
                let (from, is_attached) = self.volumes[&volume];
                let given = store.give_volume(&volume_key(volume), id(owner)).await;
                if from == owner {
                    assert!(matches!(given, Err(Error::Invalid(_))), "{given:?}");
                } else if is_attached {
                    assert!(matches!(given, Err(Error::Attached { .. })), "{given:?}");
                } else if self.check(owner, VOLUME, given).is_some() {
                    self.volumes.insert(volume, (owner, false));
                }
            }
            (7, _, Some(snapshot)) => {
                let from = self.snapshots[&snapshot];
                let given = store
                    .give_snapshot(&snapshot_key(snapshot), id(owner))
                    .await;
                if from == owner {
                    assert!(matches!(given, Err(Error::Invalid(_))), "{given:?}");
                } else if self.check(owner, snapshots(1), given).is_some() {
                    self.snapshots.insert(snapshot, owner);
                }
            }
            (8, Some(volume), _) => {
                let key = volume_key(volume);
                store.detach_volume(&key).await.unwrap();
                store.delete_volume(&key).await.unwrap();
                self.volumes.remove(&volume);
            }
            (9, _, Some(snapshot)) => {
                store
                    .delete_snapshot(&snapshot_key(snapshot))
                    .await
                    .unwrap();
                self.snapshots.remove(&snapshot);
            }
            _ => {
                let quota = LIMITED[random.below(LIMITED.len())];
                let new = Some(random.below(7) as u64).filter(|limit| *limit < 6);
                limit(store, owner, quota, new).await;
                self.limits.remove(&(owner, quota));
                self.limits.extend(new.map(|new| ((owner, quota), new)));
            }
        }
        self.assert_counts(store).await;
    }

    async fn assert_counts(&self, store: &Store) {
        for owner in OWNERS {
            assert_eq!(store.holdings(id(owner)).await.unwrap(), self.held(owner));
        }
    }
}

async fn uploaded(store: &Store, owner: u64, name: &str) -> Result<SnapshotId> {
    let image = [7; 8192];
    let new = NewSnapshot {
        owner: id(owner),
        ..new_snapshot(name, image.len())
    };
    let cut = cut(&image);
    let ingest = store.begin_ingest(new).await?;
    send(&ingest, &cut).await?;
    Ok(ingest.commit(cut.root).await?.id)
}

#[test]
fn nobody_gets_more_than_its_quotas_whatever_is_done() {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        create_accounts(&store).await;
        let mut model = Model::default();
        for owner in OWNERS {
            for (quota, most) in LIMITED.into_iter().zip([4, 5, 1]) {
                limit(&store, owner, quota, Some(most)).await;
                model.limits.insert((owner, quota), most);
            }
        }
        for number in 0..300 {
            model.step(&store, &mut random, number).await;
            if number % 100 == 99 {
                closed(store).await;
                if number == 199 {
                    fs::remove_dir_all(names::index(dir.path())).unwrap();
                    rebuild(Options::new(dir.path())).await.unwrap();
                }
                (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
                model.assert_counts(&store).await;
            }
        }
        assert!(model.refused > 0, "{} refusals", model.refused);
        closed(store).await;
    });
}

#[test]
fn of_many_at_once_as_many_as_fit_are_made() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        create_accounts(&store).await;
        limit(&store, 7, Quota::Volumes, Some(3)).await;
        limit(&store, 7, Quota::Snapshots, Some(2)).await;
        let made = (0..16).map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let name = format!("v{number}");
                let volume = store.create_volume(volume_of(7, &name)).await;
                let snapshot = uploaded(&store, 7, &name).await;
                (volume.map(drop), snapshot.map(drop))
            })
        });
        let made: Vec<_> = made.collect();
        let (mut volumes, mut snapshots) = (0, 0);
        for made in made {
            let (volume, snapshot) = made.await.unwrap();
            for (outcome, count) in [(volume, &mut volumes), (snapshot, &mut snapshots)] {
                match outcome {
                    Ok(()) => *count += 1,
                    Err(Error::Quota { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!((volumes, snapshots), (3, 2));
        let error = uploaded(&store, 7, "more").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "beyond the quota of snapshots of account \"account7\": limit 2, used 2, left 0, needed 1"
        );
        // What it has above a new limit stays, and nothing more comes.
        limit(&store, 7, Quota::Volumes, Some(1)).await;
        let error = store.create_volume(volume_of(7, "w")).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Quota {
                    used: 3,
                    limit: 1,
                    ..
                }
            ),
            "{error}"
        );
        closed(store).await;
    });
}
