//! Identities on a real file system, and on one that loses its power.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

use std::{fs, sync::Barrier};

use super::*;
use crate::io::{self, IoEngine, sim::SimDisk};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.build().unwrap().block_on(work)
}

#[test]
fn what_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "do not lose").unwrap();
    let disk = io::choose(IoEngine::Blocking).unwrap();
    let refused = block_on(lock_directory(&disk, dir.path()))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("thesis.txt"), "{refused}");
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["thesis.txt"]);
}

/// The view of a process that looked for the identity just before another process wrote it, and for
/// other files after that.
#[test]
fn a_store_that_is_made_meanwhile_is_not_taken_for_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let disk = io::choose(IoEngine::Blocking).unwrap();
    fs::create_dir(names::packs(dir.path())).unwrap();
    refuse_other_files(&disk, dir.path()).unwrap_err();
    fs::write(names::store_file(dir.path()), "an identity").unwrap();
    refuse_other_files(&disk, dir.path()).unwrap();
}

#[test]
fn of_first_starts_at_one_time_one_makes_the_store() {
    const STARTS: usize = 4;
    let disk = io::choose(IoEngine::Blocking).unwrap();
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let (dir, barrier) = (dir.path(), Barrier::new(STARTS));
        let start = || -> Result<bool> {
            barrier.wait();
            let _lock = block_on(lock_directory(&disk, dir))?;
            if block_on(read_identity(&disk, dir))?.is_some() {
                return Ok(false);
            }
            block_on(create_identity(&disk, dir, Compression::default()))?;
            fs::create_dir(names::packs(dir)).unwrap();
            Ok(true)
        };
        let made = std::thread::scope(|threads| {
            let starts = [(); STARTS].map(|()| threads.spawn(start));
            let made = starts.map(|start| match start.join().unwrap() {
                Ok(made) => made,
                Err(Error::InUse(_)) => false,
                Err(error) => panic!("{error}"),
            });
            made.into_iter().filter(|made| *made).count()
        });
        assert_eq!(made, 1);
    }
}

/// A crash at any moment leaves a whole identity or none, and a directory in which one can be made.
#[test]
fn the_making_of_an_identity_survives_a_loss_of_power() {
    let dir = Path::new("/data");
    for operations in 0..40 {
        let sim = SimDisk::new();
        sim.create_dir(dir).unwrap();
        block_on(sim.sync_dir(Path::new("/"))).unwrap();
        sim.power_off_after(operations);
        let disk: Arc<dyn Disk> = Arc::<SimDisk>::clone(&sim);
        let made = block_on(create_identity(&disk, dir, Compression::Lz4));
        let after: Arc<dyn Disk> = sim.crash(operations);
        let found = block_on(read_identity(&after, dir)).unwrap();
        if let Ok(made) = made {
            assert_eq!(found, Some(made), "after {operations}");
            continue;
        }
        if found.is_none() {
            block_on(create_identity(&after, dir, Compression::Lz4)).unwrap();
        }
    }
}
