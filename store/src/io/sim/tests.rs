//! Power cuts of the simulated disk: the content that it keeps, and the content that it loses.

#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::collections::BTreeSet;

use super::*;

const PATH: &str = "/file";
/// Enough for each of a handful of outcomes to occur.
const SEEDS: std::ops::Range<u64> = 0..300;

fn path() -> &'static Path {
    Path::new(PATH)
}

fn write(disk: &SimDisk, file: &File, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
    disk.write(file, offset_bytes, AlignedBuf::from_slice(bytes))
        .blocking_wait()
        .map(drop)
}

/// A disk with a file whose name is durable.
fn with_file() -> (Arc<SimDisk>, File) {
    let disk = SimDisk::new();
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    disk.sync_dir(Path::new("/")).blocking_wait().unwrap();
    (disk, file)
}

fn outcomes<T: Ord>(disk: &SimDisk, look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    SEEDS.map(|seed| look(&disk.crash(seed))).collect()
}

#[test]
fn what_was_synced_is_kept() {
    let (disk, file) = with_file();
    write(&disk, &file, 0, &[1; 10_000]).unwrap();
    disk.sync_data(&file).blocking_wait().unwrap();
    write(&disk, &file, 8192, &[2; 8192]).unwrap();
    for seed in SEEDS {
        let kept = disk.crash(seed).contents(path()).unwrap();
        assert_eq!(kept[..8192], [1; 8192], "seed {seed}");
        assert!((10_000..=16384).contains(&kept.len()), "seed {seed}");
    }
}

#[test]
fn what_was_not_synced_is_kept_lost_or_torn() {
    let (disk, file) = with_file();
    write(&disk, &file, 0, &[1; 3 * 4096]).unwrap();
    let kinds = outcomes(&disk, |disk| {
        let kept = disk.contents(path()).unwrap();
        assert!(
            kept.chunks(512)
                .all(|sector| sector.iter().all(|byte| *byte == sector[0])),
            "sectors are whole"
        );
        let pages: Vec<_> = kept
            .chunks(4096)
            .map(|page| page.iter().filter(|byte| **byte == 1).count())
            .collect();
        match pages.as_slice() {
            [] => "lost",
            [4096, 4096, 4096] => "kept",
            [0, 0, 0] => "only the length",
            pages if pages.iter().any(|count| !matches!(count, 0 | 4096)) => "torn page",
            _ => "some pages",
        }
    });
    assert_eq!(
        kinds,
        BTreeSet::from(["lost", "kept", "only the length", "torn page", "some pages"])
    );
}

#[test]
fn the_same_seed_gives_the_same_crash() {
    let (disk, file) = with_file();
    for n in 0..20 {
        write(&disk, &file, n * 3000, &[n as u8; 5000]).unwrap();
    }
    for seed in SEEDS {
        assert_eq!(
            disk.crash(seed).contents(path()).unwrap(),
            disk.crash(seed).contents(path()).unwrap()
        );
    }
}

#[test]
fn a_sync_covers_only_writes_that_had_completed() {
    let (disk, file) = with_file();
    let before = disk.write(&file, 0, AlignedBuf::from_slice(&[1; 4096]));
    let sync = disk.sync_data(&file);
    before.blocking_wait().unwrap();
    sync.blocking_wait().unwrap();
    assert!(
        outcomes(&disk, |disk| disk.contents(path()).unwrap()).len() > 1,
        "the write was under way"
    );
    disk.sync_data(&file).blocking_wait().unwrap();
    assert_eq!(
        outcomes(&disk, |disk| disk.contents(path()).unwrap()),
        BTreeSet::from([vec![1; 4096]])
    );
}

#[test]
fn a_write_whose_completion_is_dropped_is_seen_by_nobody_and_may_be_kept() {
    let (disk, file) = with_file();
    drop(disk.write(&file, 0, AlignedBuf::from_slice(&[1; 512])));
    disk.sync_data(&file).blocking_wait().unwrap();
    assert_eq!(disk.contents(path()).unwrap(), []);
    let kept = outcomes(&disk, |disk| disk.contents(path()).unwrap());
    assert!(kept.contains(&vec![1; 512]) && kept.contains(&Vec::new()));
}

#[test]
fn names_are_kept_by_a_sync_of_their_directory_alone() {
    let disk = SimDisk::new();
    let file = disk.open(path(), OpenMode::CreateNew).unwrap();
    write(&disk, &file, 0, b"text").unwrap();
    disk.sync_data(&file).blocking_wait().unwrap();
    let exists = |disk: &SimDisk| disk.contents(path()).is_ok();
    assert_eq!(outcomes(&disk, exists), BTreeSet::from([false, true]));
    disk.sync_dir(Path::new("/")).blocking_wait().unwrap();
    assert_eq!(outcomes(&disk, exists), BTreeSet::from([true]));

    disk.rename(path(), Path::new("/other")).unwrap();
    let names = |disk: &SimDisk| disk.list(Path::new("/")).unwrap();
    assert_eq!(
        outcomes(&disk, names),
        BTreeSet::from([vec!["file".into()], vec!["other".into()]])
    );
    disk.sync_dir(Path::new("/")).blocking_wait().unwrap();
    disk.remove(Path::new("/other")).unwrap();
    assert_eq!(
        outcomes(&disk, names),
        BTreeSet::from([vec!["other".into()], vec![]])
    );
}

#[test]
fn what_is_in_a_lost_directory_is_lost() {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/dir")).unwrap();
    disk.open(Path::new("/dir/file"), OpenMode::CreateNew)
        .unwrap();
    disk.sync_dir(Path::new("/dir")).blocking_wait().unwrap();
    let found = |disk: &SimDisk| {
        (
            disk.list(Path::new("/dir")).is_ok(),
            disk.contents(Path::new("/dir/file")).is_ok(),
        )
    };
    assert_eq!(
        outcomes(&disk, found),
        BTreeSet::from([(false, false), (true, true)])
    );
}

#[test]
fn a_failed_write_or_sync_leaves_doubt() {
    let (disk, file) = with_file();
    disk.fail_write(2, io::ErrorKind::PermissionDenied);
    write(&disk, &file, 0, &[1; 512]).unwrap();
    assert_eq!(
        write(&disk, &file, 512, &[2; 512]).unwrap_err().kind(),
        io::ErrorKind::PermissionDenied
    );
    write(&disk, &file, 1024, &[3; 512]).unwrap();
    let second = |disk: &SimDisk| disk.contents(path()).unwrap().get(512).copied();
    assert_eq!(
        outcomes(&disk, second),
        BTreeSet::from([None, Some(0), Some(2)])
    );
    disk.sync_data(&file).blocking_wait().unwrap();
    assert_eq!(outcomes(&disk, second), BTreeSet::from([Some(0)]));

    write(&disk, &file, 0, &[4; 512]).unwrap();
    disk.fail_sync(1);
    assert!(disk.sync_data(&file).blocking_wait().is_err());
    disk.sync_data(&file).blocking_wait().unwrap();
    let first = |disk: &SimDisk| disk.contents(path()).unwrap()[0];
    assert_eq!(
        outcomes(&disk, first),
        BTreeSet::from([1, 4]),
        "a later sync does not help"
    );
    assert_eq!(disk.contents(path()).unwrap()[0], 4, "but processes see it");
}

#[test]
fn a_full_disk_takes_what_fits() {
    let (disk, file) = with_file();
    disk.set_capacity(Some(6000));
    write(&disk, &file, 0, &[1; 4096]).unwrap();
    assert_eq!(disk.free_bytes(path()).unwrap(), 1904);
    assert_eq!(
        write(&disk, &file, 4096, &[2; 4096]).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    assert_eq!(disk.contents(path()).unwrap().len(), 6000);
    write(&disk, &file, 0, &[3; 4096]).unwrap();
    disk.set_len(&file, 4096).unwrap();
    write(&disk, &file, 4096, &[2; 1000]).unwrap();
    disk.set_capacity(None);
    write(&disk, &file, 4096, &[2; 4096]).unwrap();
}

#[test]
fn without_power_nothing_works_and_nothing_changes() {
    let (disk, file) = with_file();
    write(&disk, &file, 0, &[1; 512]).unwrap();
    let pending = disk.write(&file, 512, AlignedBuf::from_slice(&[2; 512]));
    let count = disk.operations();
    disk.power_off_after(count);
    assert!(write(&disk, &file, 0, &[3; 512]).is_err());
    assert!(pending.blocking_wait().is_err());
    assert!(disk.sync_data(&file).blocking_wait().is_err());
    assert!(disk.read(&file, 0, 1).blocking_wait().is_err());
    assert!(disk.open(path(), OpenMode::Read).is_err() && disk.remove(path()).is_err());
    assert!(disk.rename(path(), Path::new("/b")).is_err() && disk.set_len(&file, 0).is_err());
    assert_eq!(disk.contents(path()).unwrap(), [1; 512]);
    let after = disk.crash(1);
    let file = after.open(path(), OpenMode::ReadWrite).unwrap();
    write(&after, &file, 0, &[4; 512]).unwrap();
}

#[test]
fn bytes_can_be_put_and_flipped() {
    let disk = SimDisk::new();
    disk.put(path(), b"abc").unwrap();
    disk.flip(path(), 1, 0x20).unwrap();
    assert!(disk.flip(path(), 3, 1).is_err());
    assert_eq!(
        outcomes(&disk, |disk| disk.contents(path()).unwrap()),
        BTreeSet::from([b"aBc".to_vec()])
    );
}

/// The content that the next process sees of a file that was being written during the kill.
fn after_kills<T: Ord>(under_way: bool, look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    let killed = |seed| {
        let (disk, file) = with_file();
        write(&disk, &file, 0, &[1; 4096]).unwrap();
        if under_way {
            drop(disk.write(&file, 4096, AlignedBuf::from_slice(&[2; 3 * 4096])));
        }
        let after = disk.kill(seed);
        assert!(write(&disk, &file, 0, &[9; 512]).is_err(), "it is dead");
        assert!(disk.list(Path::new("/")).is_err());
        look(&after)
    };
    SEEDS.map(killed).collect()
}

#[test]
fn a_kill_takes_nothing_that_had_completed() {
    let seen = after_kills(false, |disk| disk.contents(path()).unwrap());
    assert_eq!(seen, BTreeSet::from([vec![1; 4096]]));
    // But it is no more durable than it was, until somebody syncs it.
    let kept = after_kills(false, |disk| disk.crash(7).contents(path()).unwrap());
    assert_eq!(kept.len(), 1, "the same seed, whatever the kill's");
    let lens = after_kills(false, |disk| {
        let all = outcomes(disk, |disk| disk.contents(path()).unwrap());
        assert!(all.len() > 1);
        let file = disk.open(path(), OpenMode::ReadWrite).unwrap();
        disk.sync_data(&file).blocking_wait().unwrap();
        outcomes(disk, |disk| disk.contents(path()).unwrap())
    });
    assert_eq!(lens, BTreeSet::from([BTreeSet::from([vec![1; 4096]])]));
}

#[test]
fn what_is_under_way_at_a_kill_happens_or_not_by_pages() {
    let seen = after_kills(true, |disk| {
        let bytes = disk.contents(path()).unwrap();
        assert_eq!(bytes[..4096], [1; 4096]);
        let pages = bytes[4096..].chunks(4096);
        pages
            .map(|page| {
                assert!(
                    [[0; 4096], [2; 4096]].iter().any(|it| page == it),
                    "a page is whole"
                );
                page[0]
            })
            .collect::<Vec<_>>()
    });
    // All, none, or any of the three pages: what is behind the last of them is not there.
    let expected = [
        &[][..],
        &[2],
        &[0, 2],
        &[2, 2],
        &[0, 0, 2],
        &[2, 0, 2],
        &[0, 2, 2],
        &[2, 2, 2],
    ];
    assert_eq!(seen, expected.into_iter().map(<[u8]>::to_vec).collect());
}

#[test]
fn names_outlive_a_kill_and_are_no_more_durable() {
    let gone: BTreeSet<_> = SEEDS
        .map(|seed| {
            let disk = SimDisk::new();
            disk.open(path(), OpenMode::CreateNew).unwrap();
            let after = disk.kill(seed);
            assert_eq!(after.list(Path::new("/")).unwrap(), ["file"]);
            after.crash(seed).list(Path::new("/")).unwrap().len()
        })
        .collect();
    assert_eq!(gone, BTreeSet::from([0, 1]));
}

/// A reader finds bytes in the cache that never reached the disk, and has to drop the cache first.
#[test]
fn a_failed_sync_is_seen_once_the_cache_is_forgotten() {
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let (disk, file) = with_file();
        write(&disk, &file, 0, &[1; 4096]).unwrap();
        disk.fail_sync(1);
        assert!(disk.sync_data(&file).blocking_wait().is_err());
        let after = disk.kill(seed);
        let file = after.open(path(), OpenMode::ReadWrite).unwrap();
        after.sync_data(&file).blocking_wait().unwrap();
        assert_eq!(after.contents(path()).unwrap(), [1; 4096]);
        after.forget_cached(&file);
        let found = after.contents(path()).unwrap();
        // From now on it is as it is.
        let kept = outcomes(&after, |disk| disk.contents(path()).unwrap());
        assert_eq!(kept, BTreeSet::from([found.clone()]));
        seen.insert(found.first().copied());
    }
    assert!(
        seen.is_superset(&BTreeSet::from([None, Some(1)])),
        "{seen:?}"
    );
}
