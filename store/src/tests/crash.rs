//! Power cuts on a simulated disk: after each, everything that was promised is there, and nothing
//! is there in part.

use std::{collections::BTreeMap, path::Path};

use super::{
    Random, assert_holds, block_on,
    machine::{DATA_DIR, Machine},
    random_image, scribble, seed, upload,
};
use crate::{
    Error, Result, Store,
    format::names,
    io::{
        Disk as _,
        sim::{Call, SimDisk},
    },
};

/// The promises, and further changes that may have happened.
#[derive(Default)]
struct Promises {
    /// Acknowledged.
    there: BTreeMap<String, Vec<u8>>,
    /// Begun and not acknowledged: there whole, or not.
    perhaps: BTreeMap<String, Vec<u8>>,
}

/// Does the same with the same seed, until the power fails.
async fn work(store: &Store, random: &mut Random, promises: &mut Promises) -> Result<()> {
    let mut image = random_image(random, 300);
    for number in 0..6 {
        let name = format!("s{number}");
        promises.perhaps.insert(name.clone(), image.clone());
        let record = upload(store, &name, &image).await?;
        promises.perhaps.remove(&name);
        promises.there.insert(name.clone(), image.clone());
        assert_eq!(record.label(), *name);
        scribble(random, &mut image, 2);
        if number == 2 {
            let image = promises.there.remove("s0").unwrap();
            promises.perhaps.insert("s0".to_owned(), image);
            store.delete_snapshot(&"s0".into()).await?;
            promises.perhaps.remove("s0");
        }
        if number == 3 {
            store
                .tag_snapshot(
                    &"s1".into(),
                    BTreeMap::from([("k".to_owned(), "v".to_owned())]),
                    Vec::new(),
                )
                .await?;
        }
    }
    Ok(())
}

async fn check(store: &Store, promises: &Promises) {
    for (name, image) in &promises.there {
        assert_holds(store, name, image).await;
    }
    for (name, image) in &promises.perhaps {
        match store.snapshot(&name.as_str().into()).await {
            Ok(_) => assert_holds(store, name, image).await,
            Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// One power cut after `operations` operations of the disk. False when the work ended before.
fn cut_after(operations: u64, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let mut promises = Promises::default();
    let machine = Machine::new();
    machine.disk.power_off_after(operations);
    let finished = block_on(async {
        // Making the store may be cut short as well.
        let (store, _) = machine.open().await?;
        work(&store, &mut random, &mut promises).await
    });
    let cut = finished.is_err();
    let mut random = Random::new(seed ^ operations);
    let machine = machine.crash(&mut random);
    block_on(async {
        let (store, report) = machine
            .open()
            .await
            .unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
        // The store goes on.
        let image = random_image(&mut random, 50);
        upload(&store, "after", &image).await.unwrap();
        promises.there.insert("after".to_owned(), image);
        store.close().await.unwrap();
    });
    // And its new promises survive the next one, too.
    let machine = machine.crash(&mut random);
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
    });
    cut
}

#[test]
fn a_power_cut_at_every_operation_takes_nothing_that_was_promised() {
    let seed = seed();
    let mut operations = 1;
    while cut_after(operations, seed) {
        operations += 1;
    }
    assert!(
        operations > 30,
        "the work is long enough to be cut: {operations} operations"
    );
}

/// The process is killed after some operations. The state that the next one finds is durable, even
/// if the power fails then.
fn kill_after(operations: u64, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let mut promises = Promises::default();
    let machine = Machine::new();
    machine.disk.power_off_after(operations);
    let finished = block_on(async {
        let (store, _) = machine.open().await?;
        work(&store, &mut random, &mut promises).await
    });
    let mut random = Random::new(seed ^ operations);
    let machine = machine.kill(random.next());
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
        for (name, image) in std::mem::take(&mut promises.perhaps) {
            if store.snapshot(&name.as_str().into()).await.is_ok() {
                promises.there.insert(name, image);
            }
        }
    });
    let machine = machine.crash(&mut random);
    block_on(async {
        let opened = machine.open().await;
        let (store, report) =
            opened.unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
        assert_eq!(report.damage, [], "after {operations} operations");
        check(&store, &promises).await;
    });
    finished.is_err()
}

#[test]
fn what_is_found_after_a_kill_survives_a_power_cut() {
    let seed = seed();
    let mut operations = 1;
    while kill_after(operations, seed) {
        operations += 1;
    }
    assert!(operations > 30, "{operations} operations");
}

#[test]
fn a_sync_that_fails_stops_all_writing_and_no_reading() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let image = random_image(&mut Random::new(1), 100);
        upload(&store, "before", &image).await.unwrap();
        machine.disk.fail_sync(1);
        let failed = upload(&store, "during", &random_image(&mut Random::new(2), 100))
            .await
            .unwrap_err();
        assert!(
            matches!(failed, Error::Io { .. } | Error::Poisoned { .. }),
            "{failed}"
        );
        let refused = upload(&store, "later", &random_image(&mut Random::new(3), 100))
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        let refused = store.delete_snapshot(&"before".into()).await.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        assert_holds(&store, "before", &image).await;
        assert!(store.status().await.unwrap().read_only_reason.is_some());
    });
}

#[test]
fn a_full_disk_fails_the_upload_and_nothing_else() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let image = random_image(&mut Random::new(1), 100);
        upload(&store, "before", &image).await.unwrap();
        machine.disk.set_capacity(Some(3 << 20));
        let large = random_image(&mut Random::new(2), 4000);
        let failed = upload(&store, "large", &large).await.unwrap_err();
        assert!(failed.is_full(), "{failed}");
        assert!(matches!(
            store.snapshot(&"large".into()).await,
            Err(Error::NotFound { .. })
        ));
        assert_holds(&store, "before", &image).await;
        machine.disk.set_capacity(None);
        upload(&store, "large", &large).await.unwrap();
        assert_holds(&store, "large", &large).await;
        assert_holds(&store, "before", &image).await;
    });
}

/// A write that was refused for lack of space is not there after a loss of power either.
#[test]
fn a_change_that_was_refused_does_not_come_back() {
    let mut random = Random::new(seed());
    for round in 0..64 {
        let machine = Machine::new();
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            machine.disk.fail_write(1, std::io::ErrorKind::StorageFull);
            // EMFILE, ENFILE, ENOMEM, EAGAIN, EINTR
            let errno = [24, 23, 12, 11, 4][round % 5];
            machine.disk.refuse(Call::SetLen, 2, errno);
            let new = super::volume_data::new_volume("v", 4096);
            let refused = store.create_volume(new).await.unwrap_err();
            assert!(matches!(refused, Error::Full { .. }), "{refused}");
            assert_eq!(machine.disk.still_refused(Call::SetLen), 0);
        });
        let machine = machine.crash(&mut random);
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let found = store.volume(&"v".into()).await;
            assert!(
                matches!(found, Err(Error::NotFound { .. })),
                "round {round}"
            );
        });
    }
}

/// Nor is it there if a short shortage delayed cutting it off the log.
#[test]
fn a_change_that_was_refused_is_cut_off_as_soon_as_that_can_be() {
    let machine = Machine::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let log = names::catalog_log(Path::new(DATA_DIR));
        let len = |disk: &SimDisk| disk.contents(&log).unwrap().len();
        let before = len(&machine.disk);
        machine.disk.fail_write(1, std::io::ErrorKind::StorageFull);
        let errno = rustix::io::Errno::NOMEM.raw_os_error();
        machine.disk.refuse(Call::SetLen, 2, errno);
        let new = super::volume_data::new_volume("v", 4096);
        let refused = store.create_volume(new).await.unwrap_err();
        assert!(matches!(refused, Error::Full { .. }), "{refused}");
        assert_eq!(machine.disk.still_refused(Call::SetLen), 0);
        assert_eq!(len(&machine.disk), before);

        // If it cannot be cut until the store closes, the content of the log is unknown.
        machine.disk.fail_write(1, std::io::ErrorKind::StorageFull);
        machine.disk.refuse(Call::SetLen, u64::MAX, errno);
        machine.disk.patience().end();
        let new = super::volume_data::new_volume("v", 4096);
        let refused = store.create_volume(new).await.unwrap_err();
        assert!(matches!(refused, Error::Io { .. }), "{refused}");
        let new = super::volume_data::new_volume("w", 4096);
        let refused = store.create_volume(new).await.unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
    });
}
