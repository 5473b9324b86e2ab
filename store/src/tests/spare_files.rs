//! Journal files that are written again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Random, assert_holds, block_on,
    machine::Machine,
    seed,
    volume_data::{BLOCK, contents, new_volume, read},
};
use crate::{Error, JournalReport, Store, Volume, VolumeId, format::names, limits};

const SIZE: usize = 2 << 20;

fn path(id: VolumeId, number: u64) -> PathBuf {
    names::journal_file(Path::new("/data"), id, number)
}

/// An image of which no two blocks are alike.
fn noise(random: &mut Random) -> Vec<u8> {
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    words.take(SIZE / 8).flatten().collect()
}

fn is_there(machine: &Machine, path: &Path) -> bool {
    machine.disk.contents(path).is_ok()
}

/// A volume whose writes were all taken into the store: file 1 is spare.
async fn with_spare(machine: &Machine, image: &[u8]) -> (Store, Volume, VolumeId) {
    let (store, _) = machine.open().await.unwrap();
    let record = store.create_volume(new_volume("v", SIZE)).await.unwrap();
    let volume = store.open_volume(&"v".into()).await.unwrap();
    volume.write(0, Bytes::from(image.to_vec())).await.unwrap();
    volume.snapshot("s", BTreeMap::new()).await.unwrap();
    assert!(is_there(machine, &path(record.id, 1)));
    assert_eq!(volume.journal_bytes(), 0);
    (store, volume, record.id)
}

#[test]
fn a_file_that_is_done_with_is_written_again() {
    let mut random = Random::new(seed());
    let image = noise(&mut random);
    let machine = Machine::new();
    let id = block_on(async {
        let (_store, volume, id) = with_spare(&machine, &image).await;
        volume.write(0, Bytes::from(vec![1; BLOCK])).await.unwrap();
        volume.flush().await.unwrap();
        assert!(!is_there(&machine, &path(id, 1)));
        id
    });
    // Its old content is behind the new one.
    let bytes = machine.disk.contents(&path(id, 2)).unwrap();
    assert_eq!(bytes.len() as u64, limits::JOURNAL_FILE_BYTES_MIN);
    assert!(bytes[4 * BLOCK..5 * BLOCK] == image[2 * BLOCK..3 * BLOCK]);

    let machine = machine.crash(&mut random);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let report = JournalReport {
            batches: 1,
            blocks: 1,
            files: 1,
            torn: None,
        };
        assert_eq!(*volume.journal_report(), report);
        let mut expected = image.clone();
        expected[..BLOCK].fill(1);
        assert!(contents(&volume).await == expected);
        assert_holds(&store, "s", &image).await;
    });
}

/// The name may be durable, and nothing that was written under it.
#[test]
fn what_a_file_was_is_told_from_what_it_is() {
    let seed = seed();
    let mut stale = 0;
    for round in 0..60 {
        let mut random = Random::new(seed + round);
        let image = noise(&mut random);
        let machine = Machine::new();
        let id = block_on(async {
            let (_store, volume, id) = with_spare(&machine, &image).await;
            for value in 1..4u8 {
                let bytes = Bytes::from(vec![value; BLOCK]);
                let at = usize::from(value) * 7 * BLOCK;
                volume.write(at as u64, bytes).await.unwrap();
            }
            id
        });
        let machine = machine.crash(&mut random);
        let says = |bytes: Vec<u8>| bytes.get(48).copied();
        stale += usize::from(machine.disk.contents(&path(id, 2)).ok().and_then(says) == Some(1));
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            // A prefix of the writes.
            let mut gone = false;
            for value in 1..4u8 {
                let at = usize::from(value) * 7 * BLOCK;
                let found = read(&volume, at, BLOCK).await;
                let is_written = found == vec![value; BLOCK];
                assert!(is_written || found == image[at..at + BLOCK]);
                assert!(
                    !(is_written && gone),
                    "write {value} without the one before"
                );
                gone |= !is_written;
            }
        });
    }
    assert!(stale > 0, "a header was never what it had been");
}

#[test]
fn a_file_in_the_place_of_another_is_refused() {
    let image = noise(&mut Random::new(seed()));
    let machine = Machine::new();
    let id = block_on(async {
        let (store, volume, id) = with_spare(&machine, &image).await;
        for _ in 0..3 {
            volume.write(0, Bytes::from(image.clone())).await.unwrap();
        }
        store.close().await.unwrap();
        id
    });
    let bytes = machine.disk.contents(&path(id, 3)).unwrap();
    machine.disk.put(&path(id, 2), &bytes).unwrap();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let refused = store.open_volume(&"v".into()).await.unwrap_err();
        assert!(matches!(refused, Error::Incompatible { .. }), "{refused}");
    });
}

#[test]
fn spare_files_go_when_space_is_short_and_when_the_volume_is_closed() {
    let image = noise(&mut Random::new(seed()));
    // Short for another journal file of another volume, short for chunks, closed.
    for case in 0..3 {
        let machine = Machine::new();
        block_on(async {
            let (store, volume, id) = with_spare(&machine, &image).await;
            match case {
                0 => {
                    store.create_volume(new_volume("w", SIZE)).await.unwrap();
                    let other = store.open_volume(&"w".into()).await.unwrap();
                    let used = limits::JOURNAL_FILE_BYTES_MIN + 2 * SIZE as u64;
                    let capacity = used + limits::FREE_BYTES_MIN + (9 << 20);
                    machine.disk.set_capacity(Some(capacity));
                    let written = other.write(0, Bytes::from(image.clone())).await;
                    written.unwrap();
                }
                1 => {
                    let used = limits::JOURNAL_FILE_BYTES_MIN + SIZE as u64;
                    let capacity = used + limits::FREE_BYTES_MIN - (1 << 20);
                    machine.disk.set_capacity(Some(capacity));
                    let other: Vec<u8> = image.iter().map(|byte| !byte).collect();
                    super::upload(&store, "other", &other).await.unwrap();
                }
                _ => {
                    drop(volume);
                    store.close().await.unwrap();
                    drop(store);
                }
            }
            assert!(!is_there(&machine, &path(id, 1)), "case {case}");
        });
    }
}
