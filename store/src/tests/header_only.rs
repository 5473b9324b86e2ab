//! Journal files of which a crash left the header and no batch, now and by earlier versions.

use std::path::{Path, PathBuf};

use super::{
    Random, assert_holds, block_on,
    machine::Machine,
    pending::{completed, fill, pending},
    volume_data::{BLOCK, contents, new_volume},
};
use crate::{
    Error, VolumeId,
    format::{
        journal::{Descriptor, FileHeader, first_sequence_of},
        names,
    },
    io::Disk as _,
};

const BLOCKS: usize = 16;

fn path(id: VolumeId, number: u64) -> PathBuf {
    names::journal_file(Path::new("/data"), id, number)
}

fn header_of(bytes: &[u8]) -> FileHeader {
    FileHeader::decode(bytes).unwrap()
}

/// A volume's content of which the first blocks are filled with these bytes.
fn image(blocks: &[u8]) -> Vec<u8> {
    let mut image: Vec<u8> = blocks.iter().flat_map(|byte| [*byte; BLOCK]).collect();
    image.resize(BLOCKS * BLOCK, 0);
    image
}

/// Block 0 is in pending snapshot `s`, and `more` is behind it: file 1 holds the one, file 2 the
/// others, each flushed.
async fn write_behind_a_pending_snapshot(machine: &Machine, more: &[u8]) -> VolumeId {
    let (store, _) = machine.open().await.unwrap();
    let new = new_volume("v", BLOCKS * BLOCK);
    let id = store.create_volume(new).await.unwrap().id;
    let volume = store.open_volume(&"v".into()).await.unwrap();
    let _turn = super::pending::hold_checkpoints(&store).await;
    fill(&volume, 0, 1).await;
    pending(&store, "v", "s").await.unwrap();
    for (at, byte) in more.iter().enumerate() {
        fill(&volume, 1 + at, *byte).await;
        volume.flush().await.unwrap();
    }
    id
}

/// After the power cut, blocks 2, and perhaps 3, are written and only the first of them is flushed.
fn a_cut_leaves_a_header(writes: usize) {
    let machine = Machine::new();
    let id = block_on(write_behind_a_pending_snapshot(&machine, &[]));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let _turn = super::pending::hold_checkpoints(&store).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 1, 2).await;
    });
    let mut bytes = machine.disk.contents(&path(id, 2)).unwrap();
    assert_eq!(header_of(&bytes).previous_sequence, first_sequence_of(1));
    bytes[BLOCK..].fill(0);
    let machine = machine.crash(&mut Random::new(1));
    machine.disk.put(&path(id, 2), &bytes).unwrap();

    let mut expected = image(&[1, 0]);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let turn = super::pending::hold_checkpoints(&store).await;
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert_eq!(volume.journal_report().files, 1, "the header is dropped");
        for block in (2..4).take(writes) {
            fill(&volume, block, 3).await;
            expected[block * BLOCK..][..BLOCK].fill(3);
            if block == 2 {
                volume.flush().await.unwrap();
            }
        }
        drop(turn);
        completed(&store, "s").await;
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        let report = volume.journal_report();
        assert_eq!(
            (report.torn.as_deref(), report.blocks),
            (None, writes as u64)
        );
        assert!(contents(&volume).await == expected);
        assert_holds(&store, "s", &image(&[1])).await;
    });
}

#[test]
fn what_is_flushed_behind_a_file_that_lost_its_batch_stays() {
    a_cut_leaves_a_header(1);
}

#[test]
fn a_volume_opens_behind_a_file_that_lost_its_batch() {
    a_cut_leaves_a_header(2);
}

/// The first file of all: there is nothing in front of it.
#[test]
fn the_first_file_may_lose_its_batch_again_and_again() {
    let machine = Machine::new();
    let id = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let new = new_volume("v", BLOCKS * BLOCK);
        store.create_volume(new).await.unwrap().id
    });
    for byte in 1..4 {
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            assert!(contents(&volume).await == image(&[]));
            fill(&volume, 0, byte).await;
        });
        let mut bytes = machine.disk.contents(&path(id, 1)).unwrap();
        bytes[BLOCK..].fill(0);
        machine.disk.put(&path(id, 1), &bytes).unwrap();
    }
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        fill(&volume, 0, 9).await;
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(contents(&volume).await == image(&[9]));
    });
}

/// A journal file as it would be under another number.
fn renumbered(bytes: &[u8], number: u64, previous_sequence: u64) -> Vec<u8> {
    let header = header_of(bytes);
    let first = first_sequence_of(number);
    let moved = |sequence: u64| match sequence.checked_sub(header.first_sequence) {
        Some(place) => first + place,
        None => sequence.min(previous_sequence),
    };
    let moved_header = FileHeader {
        number,
        first_sequence: first,
        previous_sequence,
        ..header
    };
    let mut moved_bytes = moved_header.encode().to_vec();
    let mut rest = &bytes[BLOCK..];
    while let Ok(descriptor) = Descriptor::decode(rest) {
        let (batch, behind) = rest.split_at(descriptor.batch_bytes() as usize);
        let descriptor = Descriptor {
            file_number: number,
            sequence: moved(descriptor.sequence),
            synced_sequence: moved(descriptor.synced_sequence),
            ..descriptor
        };
        moved_bytes.extend_from_slice(&descriptor.encode());
        moved_bytes.extend_from_slice(&batch[BLOCK..]);
        rest = behind;
    }
    moved_bytes
}

/// A journal as earlier versions left it: `headers` files of which only the header is left, the
/// first of them file 2, and then one with blocks 1 and 2, which names `previous` as the batch
/// before.
fn with_headers_kept(machine: &Machine, headers: u64, previous: u64) -> VolumeId {
    let id = block_on(write_behind_a_pending_snapshot(machine, &[2, 3]));
    let bytes = machine.disk.contents(&path(id, 2)).unwrap();
    for number in 2..2 + headers {
        let kept = FileHeader {
            number,
            first_sequence: first_sequence_of(number),
            nonce: [number as u8; 16],
            previous_sequence: if number == 2 {
                first_sequence_of(1)
            } else {
                previous
            },
            ..header_of(&bytes)
        };
        machine.disk.put(&path(id, number), &kept.encode()).unwrap();
    }
    let behind = 2 + headers;
    let moved = renumbered(&bytes, behind, previous);
    machine.disk.put(&path(id, behind), &moved).unwrap();
    id
}

#[test]
fn headers_that_earlier_versions_kept_take_nothing_along() {
    for headers in 1..4 {
        let machine = Machine::new();
        with_headers_kept(&machine, headers, first_sequence_of(1));
        let mut expected = image(&[1, 2, 3]);
        // With file 1 in front, then without, then with the headers taken into the store as well.
        for round in 0..4u8 {
            block_on(async {
                let (store, _) = machine.open().await.unwrap();
                let turn = super::pending::hold_checkpoints(&store).await;
                let volume = store.open_volume(&"v".into()).await.unwrap();
                assert_eq!(volume.journal_report().torn, None, "round {round}");
                assert!(contents(&volume).await == expected, "round {round}");
                let block = 4 + usize::from(round);
                fill(&volume, block, round).await;
                expected[block * BLOCK..][..BLOCK].fill(round);
                volume.flush().await.unwrap();
                if round > 0 {
                    drop(turn);
                    completed(&store, "s").await;
                }
                if round > 1 {
                    let name = format!("s{round}");
                    volume.snapshot(&name, [].into()).await.unwrap();
                    assert_holds(&store, &name, &expected).await;
                }
                store.close().await.unwrap();
            });
        }
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            assert_holds(&store, "s", &image(&[1])).await;
        });
    }
}

/// The header was the first file already when it lost its batch: the file behind names a number
/// below it, and no batch.
#[test]
fn a_header_that_was_kept_as_the_first_file_takes_nothing_along() {
    for headers in 1..4 {
        let machine = Machine::new();
        let previous = first_sequence_of(2) - 1;
        let id = with_headers_kept(&machine, headers, previous);
        // File 1 is in the base.
        block_on(async {
            let saved: Vec<_> = (2..3 + headers)
                .map(|number| machine.disk.contents(&path(id, number)).unwrap())
                .collect();
            for number in 2..3 + headers {
                machine.disk.remove(&path(id, number)).unwrap();
            }
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            completed(&store, "s").await;
            drop(volume);
            store.close().await.unwrap();
            for (number, bytes) in (2..).zip(&saved) {
                machine.disk.put(&path(id, number), bytes).unwrap();
            }
        });
        block_on(async {
            let (store, _) = machine.open().await.unwrap();
            let volume = store.open_volume(&"v".into()).await.unwrap();
            let report = volume.journal_report();
            assert_eq!((report.torn.as_deref(), report.blocks), (None, 2));
            assert!(contents(&volume).await == image(&[1, 2, 3]));
        });
    }
}

/// Not every header without a batch is such a one: the file behind decides.
#[test]
fn a_first_file_that_lost_flushed_batches_is_damaged() {
    let machine = Machine::new();
    let id = block_on(write_behind_a_pending_snapshot(&machine, &[2]));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        completed(&store, "s").await;
        // In file 3, which names the batch in file 2.
        fill(&volume, 2, 3).await;
        store.close().await.unwrap();
    });
    let bytes = machine.disk.contents(&path(id, 2)).unwrap();
    machine.disk.put(&path(id, 2), &bytes[..BLOCK]).unwrap();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let refused = store.open_volume(&"v".into()).await.unwrap_err();
        assert!(matches!(refused, Error::Damaged(_)), "{refused}");
        let said = refused.to_string();
        let place = format!("{} at offset 4096", path(id, 2).display());
        assert!(said.contains(&place), "{said}");
    });
    // And nothing was cut off.
    assert!(machine.disk.contents(&path(id, 3)).is_ok());
}
