#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::sync::Barrier;

use super::*;
use crate::io::IoEngine;

#[test]
fn what_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "do not lose").unwrap();
    let refused = lock_directory(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("thesis.txt"), "{refused}");
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["thesis.txt"]);
}

/// What somebody sees who looked for the identity just before another process wrote it, and for other files after that.
#[test]
fn a_store_that_is_made_meanwhile_is_not_taken_for_something_else() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(names::packs(dir.path())).unwrap();
    refuse_other_files(dir.path()).unwrap_err();
    fs::write(names::store_file(dir.path()), "an identity").unwrap();
    refuse_other_files(dir.path()).unwrap();
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
            let _lock = lock_directory(dir)?;
            if read_identity(dir)?.is_some() {
                return Ok(false);
            }
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.build().unwrap();
            runtime.block_on(create_identity(&disk, dir, Compression::default()))?;
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
