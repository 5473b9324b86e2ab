//! Images: what they need, what becomes of them, and who sees them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Random,
    accounts::account,
    block_on,
    pending::{completed, fill, hold_checkpoints, pending},
    repairs::closed,
    seed, upload,
    volume_data::{new_volume, options},
};
use crate::{
    AccountId, DeviceSource, Error, ImageChange, ImageKey, ImageState, ListQuery, NewDevice,
    NewImage, NewSource, Protection, Quota, Sharing, SnapshotKey, SnapshotState, Store,
    limits::{IMAGE_DEVICES_MAX, PUBLIC_DEPRECATION_MAX},
    meta::now_ns,
    rebuild,
};

fn id(number: u64) -> AccountId {
    AccountId::from_number(number).unwrap()
}

fn device(name: &str, snapshot: &str) -> NewDevice {
    NewDevice {
        name: name.to_owned(),
        source: NewSource::Snapshot(snapshot.into()),
        size_bytes: None,
        delete_on_termination: None,
    }
}

/// An image that boots from the first of these snapshots.
fn image_of(name: &str, snapshots: &[&str]) -> NewImage {
    let devices = snapshots.iter().enumerate();
    NewImage {
        name: name.to_owned(),
        root_device: "sd0".to_owned(),
        devices: devices
            .map(|(number, snapshot)| device(&format!("sd{number}"), snapshot))
            .collect(),
        ..NewImage::default()
    }
}

fn with(accounts: &[u64], everybody: bool) -> Sharing {
    Sharing {
        accounts: accounts.iter().map(|number| id(*number)).collect(),
        everybody,
    }
}

async fn names(store: &Store, query: ListQuery) -> Vec<String> {
    let query = ListQuery {
        limit: 100,
        ..query
    };
    let images = store.list_images(query, |_| true).await.unwrap();
    images.into_iter().map(|it| it.record.name).collect()
}

#[test]
fn an_image_is_what_its_snapshots_are() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        let done = upload(&store, "done", &[1; 8192]).await.unwrap();
        store.create_volume(new_volume("v", 1 << 20)).await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 1, 7).await;
        let held = hold_checkpoints(&store).await;
        let waits = pending(&store, "v", "waits").await.unwrap();
        let image = store
            .register_image(image_of("web", &["done", "waits"]))
            .await
            .unwrap();
        assert_eq!(image.state, ImageState::Pending);
        let refused = store.open_image(&"web".into(), None).await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::ImageUnavailable {
                    state: "pending",
                    ..
                }
            ),
            "{refused}"
        );
        // It cannot be disabled, nor can the snapshot be cancelled.
        let disable = ImageChange {
            is_disabled: Some(true),
            ..ImageChange::default()
        };
        store
            .update_image(&"web".into(), disable.clone())
            .await
            .unwrap_err();
        let refused = store.delete_snapshot(&"waits".into()).await.unwrap_err();
        let expected = format!(
            "snapshot \"waits\" is needed by image {}, \"web\": deregister the image first",
            image.record.id
        );
        assert_eq!(refused.to_string(), expected);
        drop(held);
        completed(&store, "waits").await;
        let image = store.image(&"web".into()).await.unwrap();
        assert_eq!(image.state, ImageState::Available);
        let sizes = image.record.devices.iter().map(|it| it.source.size_bytes());
        assert_eq!(sizes.collect::<Vec<_>>(), [Some(8192), Some(1 << 20)]);
        for (device, id) in [(Some("sd1"), waits.id), (None, done.id)] {
            let (_, reader) = store.open_image(&"web".into(), device).await.unwrap();
            assert_eq!(reader.record().id, id);
        }
        store
            .open_image(&"web".into(), Some("sd2"))
            .await
            .unwrap_err();

        let disabled = store.update_image(&"web".into(), disable).await.unwrap();
        assert_eq!(disabled.state, ImageState::Disabled);
        store.open_image(&"web".into(), None).await.unwrap_err();
        drop(volume);
        closed(store).await;
    });
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        upload(&store, "s", &[1; 8192]).await.unwrap();
        let change = |change: fn(&mut NewImage)| {
            let mut new = image_of("web", &["s"]);
            change(&mut new);
            new
        };
        let empty = |size_bytes| NewDevice {
            name: "e".to_owned(),
            source: NewSource::Empty,
            size_bytes,
            delete_on_termination: None,
        };
        let with_empty = |size_bytes| {
            let mut new = image_of("web", &["s"]);
            new.devices.push(empty(size_bytes));
            new
        };
        for (new, why) in [
            (
                change(|it| it.name = "ab".to_owned()),
                "2 characters, 3 to 128",
            ),
            (change(|it| it.name = "n".repeat(129)), "129 characters"),
            (
                change(|it| it.name = "a:b".to_owned()),
                "':' is not allowed",
            ),
            (change(|it| it.name = " web".to_owned()), "a space"),
            (
                change(|it| it.name = "AMI-12345678".to_owned()),
                "form of an id",
            ),
            (change(|it| it.description = "\u{1b}".to_owned()), "U+001B"),
            (
                change(|it| it.description = "ü".repeat(256)),
                "256 characters",
            ),
            (
                change(|it| it.root_device = "sd1".to_owned()),
                "not among its devices",
            ),
            (change(|it| it.devices.clear()), "not among its devices"),
            (
                change(|it| it.devices.push(device("sd0", "s"))),
                "two devices are named sd0",
            ),
            (
                change(|it| it.devices.push(device("s d", "s"))),
                "' ' is not allowed",
            ),
            (
                change(|it| it.devices.push(device("", "s"))),
                "0 characters",
            ),
            (
                change(|it| it.devices[0].source = NewSource::Empty),
                "no snapshot to boot from",
            ),
            (
                change(|it| it.devices[0].size_bytes = Some(4096)),
                "too few for snapshot \"s\"",
            ),
            (
                change(|it| it.devices[0].size_bytes = Some(8193)),
                "a multiple of 512",
            ),
            (with_empty(None), "a size is needed"),
            (with_empty(Some(1 << 60)), "at most"),
            (
                change(|it| {
                    it.devices.push(NewDevice {
                        source: NewSource::Ephemeral(24),
                        ..device("x", "s")
                    });
                }),
                "ephemeral23",
            ),
        ] {
            let refused = store.register_image(new).await.unwrap_err();
            assert!(matches!(refused, Error::Invalid(_)), "{refused}");
            assert!(refused.to_string().contains(why), "{refused}: {why}");
        }
        let many: Vec<_> = vec!["s"; IMAGE_DEVICES_MAX + 1];
        let refused = store
            .register_image(image_of("web", &many))
            .await
            .unwrap_err();
        assert!(
            matches!(refused, Error::TooMany { most: 27, .. }),
            "{refused}"
        );
        let refused = store
            .register_image(image_of("web", &["none"]))
            .await
            .unwrap_err();
        assert!(
            matches!(
                refused,
                Error::NotFound {
                    what: "snapshot",
                    ..
                }
            ),
            "{refused}"
        );

        let most = store
            .register_image(image_of("web", &many[1..]))
            .await
            .unwrap();
        assert_eq!(most.record.devices.len(), 27);
        assert!(most.record.devices[0].delete_on_termination);
        assert!(!most.record.devices[1].delete_on_termination);
        let refused = store
            .register_image(image_of("web", &["s"]))
            .await
            .unwrap_err();
        let expected = format!("an image named \"web\" already exists ({})", most.record.id);
        assert!(refused.to_string().ends_with(&expected[3..]), "{refused}");
        // An id from elsewhere, which no other image has.
        let given = NewImage {
            id: Some("ami-0668776718e604f".parse().unwrap()),
            ..image_of("given", &["s"])
        };
        let made = store.register_image(given.clone()).await.unwrap();
        assert_eq!(made.record.id.to_string(), "ami-0668776718e604f");
        let again = NewImage {
            name: "again".to_owned(),
            ..given
        };
        let refused = store.register_image(again).await.unwrap_err();
        assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
        let key = ImageKey::from("ami-0668776718e604f");
        assert_eq!(store.image(&key).await.unwrap().record.name, "given");
        closed(store).await;
    });
}

#[test]
fn images_are_seen_by_those_whom_they_are_shared_with() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        for (number, name) in [(7, "web"), (8, "db")] {
            store.create_account(account(number, name)).await.unwrap();
        }
        upload(&store, "s", &[1; 8192]).await.unwrap();
        let new = NewImage {
            owner: id(7),
            ..image_of("base", &["s"])
        };
        let image = store.register_image(new.clone()).await.unwrap().record.id;
        let own = ImageKey::Owned {
            owner: id(7),
            id: image,
        };
        let read = ImageKey::Readable {
            reader: id(8),
            id: image,
        };
        let of = |reader| ListQuery {
            reader: Some(id(reader)),
            ..ListQuery::default()
        };
        store.image(&read).await.unwrap_err();
        assert_eq!(names(&store, of(8)).await, [""; 0]);
        store.share_image(&own, with(&[8], false)).await.unwrap();
        store.image(&read).await.unwrap();
        assert_eq!(names(&store, of(8)).await, ["base"]);
        // It is for launching, and not for the snapshot by itself.
        let snapshot = store.snapshot(&"s".into()).await.unwrap().id;
        let key = SnapshotKey::Readable {
            reader: id(8),
            id: snapshot,
        };
        store.open_snapshot(&key).await.unwrap_err();
        store.open_image(&read, None).await.unwrap();
        // Nobody else changes it.
        let others = ImageKey::Owned {
            owner: id(8),
            id: image,
        };
        store
            .update_image(&others, ImageChange::default())
            .await
            .unwrap_err();
        store.deregister_image(&others, true).await.unwrap_err();
        store.unshare_image(&own, with(&[8], false)).await.unwrap();
        store.image(&read).await.unwrap_err();

        // With everybody only if the account allows that; what is shared stays so.
        let refused = store.share_image(&own, with(&[], true)).await.unwrap_err();
        let expected = "account \"web\" blocks public access: it shares images with named accounts \
                        only";
        assert_eq!(refused.to_string(), expected);
        let allow = |allows| {
            store.update_account(id(7), move |record| {
                record.allows_public_images = allows;
                Ok(())
            })
        };
        allow(true).await.unwrap();
        let public = store
            .share_image(&own, with(&[], true))
            .await
            .unwrap()
            .record;
        let latest = public.created_at_ns + PUBLIC_DEPRECATION_MAX.as_nanos() as u64;
        assert_eq!(public.deprecated_at_ns, Some(latest));
        allow(false).await.unwrap();
        store.image(&read).await.unwrap();
        assert_eq!(names(&store, of(8)).await, ["base"]);
        let deprecate = |at_ns| ImageChange {
            deprecated_at_ns: Some(at_ns),
            ..ImageChange::default()
        };
        for at in [None, Some(latest + 120_000_000_000), Some(0)] {
            let refused = store.update_image(&own, deprecate(at)).await.unwrap_err();
            assert!(matches!(refused, Error::Invalid(_)), "{refused}");
        }
        let soon = now_ns() + 100_000_000_000;
        let changed = store
            .update_image(&own, deprecate(Some(soon)))
            .await
            .unwrap();
        let at = changed.record.deprecated_at_ns.unwrap();
        assert!(at.is_multiple_of(60_000_000_000) && at.abs_diff(soon) <= 30_000_000_000);

        // Disabled, it is shared with nobody, and stays so.
        for is_disabled in [true, false] {
            let change = ImageChange {
                is_disabled: Some(is_disabled),
                ..ImageChange::default()
            };
            let changed = store.update_image(&own, change).await.unwrap();
            assert!(changed.record.sharing.is_empty());
            let refused = store.share_image(&own, with(&[8], false)).await;
            assert_eq!(refused.is_err(), is_disabled);
            store.unshare_image(&own, with(&[8], false)).await.unwrap();
        }
        store.image(&read).await.unwrap_err();

        // It is something that the account owns, and a quota limits.
        store.delete_account(id(7)).await.unwrap_err();
        let limit = |record: &mut crate::AccountRecord| {
            record.quotas.insert(Quota::Images, 1);
            Ok(())
        };
        store.update_account(id(7), limit).await.unwrap();
        let second = NewImage {
            name: "second".to_owned(),
            ..new
        };
        let refused = store.register_image(second).await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::Quota {
                    quota: Quota::Images,
                    ..
                }
            ),
            "{refused}"
        );
        let given = store.give_image(&own, id(8)).await.unwrap();
        assert_eq!(given.record.owner, id(8));
        assert_eq!(store.holdings(id(8)).await.unwrap().images, 1);
        store.delete_account(id(7)).await.unwrap();
        closed(store).await;
    });
}

#[test]
fn a_protected_image_stays_and_a_cooldown_takes_a_day() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(options(dir.path())).await.unwrap();
        upload(&store, "s", &[1; 8192]).await.unwrap();
        store.register_image(image_of("web", &["s"])).await.unwrap();
        let key: ImageKey = "web".into();
        let protect = async |protection| {
            let change = ImageChange {
                protection: Some(protection),
                ..ImageChange::default()
            };
            store
                .update_image(&key, change)
                .await
                .unwrap()
                .record
                .protection
        };
        assert_eq!(protect(Protection::On).await, Protection::On);
        let refused = store.deregister_image(&key, false).await.unwrap_err();
        assert!(
            refused.to_string().contains("end its protection first"),
            "{refused}"
        );
        assert_eq!(protect(Protection::Off).await, Protection::Off);
        protect(Protection::WithCooldown).await;
        store.deregister_image(&key, false).await.unwrap_err();
        let cooling = protect(Protection::Off).await;
        let Protection::Cooldown { until_ns } = cooling else {
            panic!("{cooling:?}")
        };
        assert!(until_ns > now_ns() + 86_000_000_000_000);
        let refused = store.deregister_image(&key, false).await.unwrap_err();
        assert!(refused.to_string().contains("24 h 0 min left"), "{refused}");
        // To end it again makes it no shorter, nor longer.
        assert_eq!(protect(Protection::Off).await, cooling);
        // There is no way around it.
        assert_eq!(protect(Protection::On).await, Protection::WithCooldown);
        let again = protect(Protection::Off).await;
        assert!(matches!(again, Protection::Cooldown { .. }), "{again:?}");
        store.deregister_image(&key, false).await.unwrap_err();
        closed(store).await;
    });
}

/// What there is, in plain words.
#[derive(Default)]
struct Model {
    snapshots: BTreeSet<String>,
    /// By their names: the snapshots that they need.
    images: BTreeMap<String, BTreeSet<String>>,
    next: usize,
}

impl Model {
    fn is_needed(&self, snapshot: &str) -> bool {
        self.images.values().any(|needs| needs.contains(snapshot))
    }

    fn name(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{:04}", self.next)
    }

    fn some<'a>(
        random: &mut Random,
        names: impl ExactSizeIterator<Item = &'a String>,
    ) -> Option<String> {
        let count = names.len();
        let mut names = names.skip(if count == 0 { 0 } else { random.below(count) });
        names.next().cloned()
    }

    async fn step(&mut self, store: &Store, random: &mut Random) {
        match random.below(6) {
            0 => {
                let name = self.name("snap");
                let image = [random.below(256) as u8; 8192];
                upload(store, &name, &image).await.unwrap();
                self.snapshots.insert(name);
            }
            1 | 2 => {
                let mut needs = BTreeSet::new();
                for _ in 0..=random.below(3) {
                    needs.extend(Self::some(random, self.snapshots.iter()));
                }
                let name = self.name("image");
                let of: Vec<&str> = needs.iter().map(String::as_str).collect();
                let made = store.register_image(image_of(&name, &of)).await;
                assert_eq!(made.is_ok(), !needs.is_empty());
                if !needs.is_empty() {
                    self.images.insert(name, needs);
                }
            }
            3 => {
                // A few at once, some of which are needed.
                let mut named: Vec<String> = Vec::new();
                for _ in 0..=random.below(3) {
                    named.extend(Self::some(random, self.snapshots.iter()));
                }
                named.sort_unstable();
                named.dedup();
                let keys = named.iter().map(|name| name.as_str().into()).collect();
                let outcomes = store.delete_snapshots(keys).await.unwrap();
                for (name, outcome) in named.iter().zip(outcomes) {
                    match outcome {
                        Ok(_) => {
                            assert!(!self.is_needed(name));
                            self.snapshots.remove(name);
                        }
                        Err(error) => {
                            assert!(matches!(error, Error::Needed { .. }), "{error}");
                            assert!(self.is_needed(name));
                        }
                    }
                }
            }
            _ => {
                let Some(name) = Self::some(random, self.images.keys()) else {
                    return;
                };
                let needs = self.images.remove(&name).unwrap();
                let with_snapshots = random.below(2) == 0;
                let key = name.as_str().into();
                let gone = store.deregister_image(&key, with_snapshots).await.unwrap();
                assert_eq!(
                    gone.snapshots.len(),
                    if with_snapshots { needs.len() } else { 0 }
                );
                for (_, outcome) in gone.snapshots {
                    match outcome {
                        Ok(deleted) => {
                            let name = deleted.name.unwrap();
                            assert!(!self.is_needed(&name));
                            self.snapshots.remove(&name);
                        }
                        Err(error) => assert!(matches!(error, Error::Needed { .. }), "{error}"),
                    }
                }
            }
        }
    }

    async fn check(&self, store: &Store) {
        let query = ListQuery {
            limit: 1000,
            ..ListQuery::default()
        };
        let images = store.list_images(query.clone(), |_| true).await.unwrap();
        let found: Vec<_> = images.iter().map(|it| &it.record.name).collect();
        assert!(found.iter().copied().eq(self.images.keys()), "{found:?}");
        let snapshots = store.list_snapshots(query).await.unwrap();
        let by_id: BTreeMap<_, _> = snapshots
            .iter()
            .map(|it| (it.id, it.name.clone()))
            .collect();
        assert!(
            by_id.values().flatten().collect::<BTreeSet<_>>() == self.snapshots.iter().collect()
        );
        for image in &images {
            assert_eq!(image.state, ImageState::Available);
            let devices = image.record.devices.iter();
            let needs = devices.filter_map(|device| match device.source {
                DeviceSource::Snapshot { id, .. } => by_id[&id].clone(),
                _ => None,
            });
            assert_eq!(
                needs.collect::<BTreeSet<_>>(),
                self.images[&image.record.name]
            );
        }
        let holdings = store.holdings(AccountId::ADMINISTRATOR).await.unwrap();
        assert_eq!(holdings.images, self.images.len() as u64);
    }
}

/// Whatever is done, a snapshot stays as long as an image needs it, also after restarts and with an
/// index that was made again.
#[test]
fn images_and_their_snapshots_are_what_a_plain_model_says() {
    let mut random = Random::new(seed());
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let mut model = Model::default();
        let (mut store, _) = Store::open(options(dir.path())).await.unwrap();
        for round in 1..=150 {
            model.step(&store, &mut random).await;
            if round % 30 == 0 {
                model.check(&store).await;
                closed(store).await;
                if round % 60 == 0 {
                    let report = rebuild(options(dir.path())).await.unwrap();
                    assert_eq!(report.snapshots, model.snapshots.len() as u64);
                }
                (store, _) = Store::open(options(dir.path())).await.unwrap();
                model.check(&store).await;
            }
        }
        let failed = |state: &SnapshotState| matches!(state, SnapshotState::Failed { .. });
        let query = ListQuery {
            limit: 1000,
            ..ListQuery::default()
        };
        let snapshots = store.list_snapshots(query).await.unwrap();
        assert!(!snapshots.iter().any(|it| failed(&it.state)));
        closed(store).await;
    });
}
