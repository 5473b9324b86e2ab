//! Damage to the catalog log: a start refuses it with its place and the remedy, and a rebuild
//! writes the log anew from a source that has the lost part, or reports why it cannot.

use std::path::{Path, PathBuf};

use super::{
    Random, block_on,
    log_checkpoints::{
        Everything, checkpoint, everything, header, log_path, make_changes, old_path,
    },
    machine::Machine,
};
use crate::{
    Error, Place, RebuildReport, Result,
    format::{
        catalog_log::{LOG_ALIGN, sequence_at},
        names,
    },
    io::Disk as _,
};

const DATA_DIR: &str = "/data";

fn damaged_path(nth: u32) -> PathBuf {
    names::catalog_log_damaged(Path::new(DATA_DIR), nth)
}

/// A store with so many records in its log, and as many behind a checkpoint if it has one.
fn machine(has_checkpoint: bool, records: usize) -> (Machine, Everything) {
    let machine = Machine::new();
    let everything = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut random = Random::new(11);
        make_changes(&store, &mut random, records).await.unwrap();
        if has_checkpoint {
            checkpoint(&store).await.unwrap();
            make_changes(&store, &mut random, records).await.unwrap();
        }
        let everything = everything(&store);
        store.close().await.unwrap();
        everything
    });
    (machine, everything)
}

/// The offset of the record with a number.
fn offset_of(machine: &Machine, number: u64) -> u64 {
    let log = machine.disk.contents(&log_path()).unwrap();
    let blocks = log.chunks(LOG_ALIGN);
    let mut found = blocks
        .enumerate()
        .filter(|(_, block)| sequence_at(block) == Some(number));
    (found.next().unwrap().0 * LOG_ALIGN) as u64
}

/// The place of the damage that a start finds, and its whole message.
async fn refusal(machine: &Machine) -> (u64, String) {
    match machine.open().await.unwrap_err() {
        Error::Damaged(damage) => match &damage.place {
            Place::File { path, offset_bytes } if *path == log_path() => {
                (*offset_bytes, damage.to_string())
            }
            place => panic!("{place:?}"),
        },
        error => panic!("{error}"),
    }
}

/// Checks that a rebuild has mended the log, and that everything is there from then on.
fn assert_mended(
    mut machine: Machine,
    expected: &Everything,
    report: &RebuildReport,
    context: &str,
) {
    assert!(!report.is_whole(), "{context}");
    let mended = report.mended_log.as_ref().unwrap();
    assert_eq!(mended.damaged_log, damaged_path(0), "{context}");
    let said = report.to_string();
    assert!(
        said.contains("written anew") && said.contains("catalog.log.damaged"),
        "{said}"
    );
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        assert_eq!(everything(&store), *expected, "{context}");
        store.close().await.unwrap();
    });
    // By the log alone, and without a word about damage.
    machine.lose_index();
    block_on(async {
        let report = machine.rebuild(false).await.unwrap();
        assert!(report.is_whole(), "{context}: {report}");
        let (store, _) = machine.open().await.unwrap();
        assert_eq!(everything(&store), *expected, "{context}");
        make_changes(&store, &mut Random::new(1), 2).await.unwrap();
        checkpoint(&store).await.unwrap();
        store.close().await.unwrap();
    });
}

fn unmended(result: Result<RebuildReport>) -> String {
    match result.unwrap_err() {
        Error::Damaged(damage) => damage.to_string(),
        error => panic!("{error}"),
    }
}

/// Checks that a rebuild does not mend the log, and touches nothing.
fn assert_refused(machine: &mut Machine, has_old: bool, words: &[&str]) {
    let before = machine.disk.contents(&log_path()).unwrap();
    let said = unmended(block_on(machine.rebuild(has_old)));
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    assert!(machine.disk.contents(&log_path()).unwrap() == before);
    let names = machine.disk.list(Path::new(DATA_DIR)).unwrap();
    let strange = ["catalog.log.new", "catalog.log.damaged"];
    assert!(
        !names.iter().any(|name| strange.iter().any(|it| name == it)),
        "{names:?}"
    );
}

/// One bit of each part of the checkpoint.
#[test]
fn a_damaged_checkpoint_is_mended_from_the_log_before_it() {
    let (whole, expected) = machine(true, 150);
    let first = offset_of(&whole, header(&whole, &log_path()).base_sequence() + 1);
    let places = (4096..first)
        .step_by(9973)
        .chain([first - 4096, first - 4090, first - 1]);
    for at in places {
        let context = format!("byte {at} of {first}");
        let mut machine = whole.copy();
        machine.disk.flip(&log_path(), at, 4).unwrap();
        let (offset, said) = block_on(refusal(&machine));
        assert!(offset <= at && offset >= 4096, "{context}: {said}");
        for word in [
            "checkpoint",
            "expected",
            "found",
            "varved rebuild",
            "catalog.log.old",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        // With and without an index that has everything.
        for has_old in [true, false] {
            let mut machine = machine.copy();
            let report = block_on(machine.rebuild(has_old)).unwrap();
            let source = report.mended_log.as_ref().map(|it| it.source.clone());
            assert_eq!(source, Some(old_path()), "{context}");
            assert_mended(machine, &expected, &report, &context);
        }
        // Without the log before, the index.
        machine.disk.remove(&old_path()).unwrap();
        let mut lost = machine.copy();
        assert_refused(&mut lost, false, &["there is none", "no old index"]);
        let report = block_on(machine.rebuild(true)).unwrap();
        let source = report.mended_log.as_ref().map(|it| it.source.clone());
        assert_eq!(source, Some(names::index(Path::new(DATA_DIR))), "{context}");
        assert_mended(machine, &expected, &report, &context);
    }
}

/// A log of which the file before is another, or is damaged as well.
#[test]
fn a_log_that_is_not_the_one_before_is_not_taken_for_it() {
    let (whole, _) = machine(true, 40);
    let at = 4200;
    // It has the same generation: a crash has left a second name of the log.
    let mut machine = whole.copy();
    let log = machine.disk.contents(&log_path()).unwrap();
    machine.disk.put(&old_path(), &log).unwrap();
    machine.disk.flip(&log_path(), at, 1).unwrap();
    assert_refused(&mut machine, false, &["generation 1", "is of 0"]);
    // It is damaged, or ends too early.
    let mut machine = whole.copy();
    machine.disk.flip(&log_path(), at, 1).unwrap();
    machine.disk.flip(&old_path(), 8200, 1).unwrap();
    assert_refused(&mut machine, false, &["catalog.log.old at offset 8192"]);
    let mut machine = whole.copy();
    machine.disk.flip(&log_path(), at, 1).unwrap();
    let old = machine.disk.contents(&old_path()).unwrap();
    machine.disk.put(&old_path(), &old[..8192]).unwrap();
    assert_refused(&mut machine, false, &["ends with record 1"]);
    // A record behind the checkpoint is damaged, too.
    let mut machine = whole.copy();
    let base = header(&machine, &log_path()).base_sequence();
    let record = offset_of(&machine, base + 2);
    machine.disk.flip(&log_path(), at, 1).unwrap();
    machine.disk.flip(&log_path(), record + 40, 1).unwrap();
    let lost = format!("record {} cannot be read", base + 2);
    assert_refused(&mut machine, false, &[&lost]);
}

/// The index has applied the damaged record and agrees with those behind it.
#[test]
fn a_damaged_record_is_mended_from_the_index() {
    for has_checkpoint in [false, true] {
        let (whole, expected) = machine(has_checkpoint, 30);
        let base = header(&whole, &log_path()).base_sequence();
        let last = base + 30;
        for number in base + 1..last {
            for byte in [1, 33] {
                let context = format!("byte {byte} of record {number}");
                let mut machine = whole.copy();
                let at = offset_of(&machine, number);
                machine.disk.flip(&log_path(), at + byte, 1).unwrap();
                let (offset, said) = block_on(refusal(&machine));
                assert_eq!(offset, at, "{context}: {said}");
                assert!(said.contains("varved rebuild"), "{said}");
                let mut lost = machine.copy();
                assert_refused(&mut lost, false, &["no old index"]);
                let report = block_on(machine.rebuild(true)).unwrap();
                assert_mended(machine, &expected, &report, &context);
            }
        }
    }
}

/// Several places, and the header.
#[test]
fn damage_in_several_places_is_mended_together() {
    for has_checkpoint in [false, true] {
        let (whole, expected) = machine(has_checkpoint, 30);
        let base = header(&whole, &log_path()).base_sequence();
        for numbers in [&[2, 3][..], &[1, 9, 28], &[5, 6, 7, 20]] {
            for header in [false, true] {
                let mut machine = whole.copy();
                for number in numbers {
                    let at = offset_of(&whole, base + number);
                    machine.disk.flip(&log_path(), at + 2, 1).unwrap();
                }
                if header {
                    machine.disk.flip(&log_path(), 20, 1).unwrap();
                }
                let context = format!("records {numbers:?}, header: {header}");
                let report = block_on(machine.rebuild(true)).unwrap();
                assert_mended(machine, &expected, &report, &context);
            }
        }
    }
}

/// An index that is behind the damage, or of another past, is not believed.
#[test]
fn an_index_that_cannot_know_is_not_believed() {
    let machine = Machine::new();
    let mut older = Vec::new();
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let mut random = Random::new(12);
        for _ in 0..30 {
            make_changes(&store, &mut random, 1).await.unwrap();
            older.push(machine.index_of_now());
        }
        store.close().await.unwrap();
    });
    let expected = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        everything(&store)
    });
    let damaged = 15;
    let at = offset_of(&machine, damaged);
    for (applied, index) in (1..).zip(&older) {
        let mut machine = machine.copy();
        machine.disk.flip(&log_path(), at + 40, 1).unwrap();
        index(&mut machine);
        if applied < damaged {
            let words = ["has applied", "record 15 cannot be read"];
            assert_refused(&mut machine, true, &words);
        } else {
            let report = block_on(machine.rebuild(true)).unwrap();
            assert_mended(machine, &expected, &report, &format!("{applied} applied"));
        }
    }
    // As many changes, others.
    let mut machine = machine.copy();
    let stranger = Machine::new();
    block_on(async {
        let (store, _) = stranger.open().await.unwrap();
        make_changes(&store, &mut Random::new(13), 30)
            .await
            .unwrap();
    });
    machine.disk.flip(&log_path(), at + 40, 1).unwrap();
    stranger.index_of_now()(&mut machine);
    assert_refused(&mut machine, true, &["differs"]);
}

/// A log whose end cannot be read at all may have had records that nobody has applied.
#[test]
fn an_end_that_cannot_be_read_is_not_made_up() {
    let (mut machine, _) = machine(false, 300);
    let at = offset_of(&machine, 20);
    let mut log = machine.disk.contents(&log_path()).unwrap();
    assert!(log.len() as u64 - at > 600 << 10);
    log[at as usize..].fill(0xee);
    machine.disk.put(&log_path(), &log).unwrap();
    let most = 19 + (log.len() as u64 - at) / 4096;
    assert!(most > 300);
    let lost = format!("record {most} cannot be read");
    assert_refused(&mut machine, true, &["has applied 300", &lost]);
}

/// A loss of power while a rebuild mends the log: the next one mends it, or finds it mended.
#[test]
fn a_rebuild_that_is_interrupted_can_be_run_again() {
    let (whole, expected) = machine(true, 30);
    let base = header(&whole, &log_path()).base_sequence();
    let record = offset_of(&whole, base + 7);
    for at in [4200, record + 40] {
        let mut last = 0;
        loop {
            let mut machine = whole.copy();
            machine.disk.flip(&log_path(), at, 1).unwrap();
            let index = machine.index_of_now();
            machine.disk.power_off_after(last);
            let first = block_on(machine.rebuild(true));
            let mut random = Random::new(last);
            let mut machine = machine.crash(&mut random);
            // The old index keeps its place until the new one is complete.
            index(&mut machine);
            block_on(async {
                machine.rebuild(true).await.unwrap();
                let (store, _) = machine.open().await.unwrap();
                assert_eq!(everything(&store), expected, "operation {last}");
            });
            if first.is_ok() {
                break;
            }
            last += 1;
        }
        assert!(last > 5, "{last} operations");
    }
}
