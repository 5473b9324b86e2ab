//! A catalog log that has grown is replaced by one that begins with a checkpoint, while the daemon
//! runs. It may be killed at any moment.

use std::{fs, os::unix::process::ExitStatusExt as _, path::Path};

use varve_store::{
    failpoints::{Failpoint, VARIABLE},
    format::{
        Change, Kinds, SnapshotRecord,
        catalog_log::{self, Found, LOG_HEADER_BYTES, LogHeader, Position, Record},
        names,
    },
    limits,
};
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{command, run, wait_for},
    programs,
    snapctl::exit,
};

const MIB: u64 = 1 << 20;

/// A stopped daemon, and a log that is too long: it has the same snapshot many times, the last time
/// with a tag that says so.
fn with_long_log() -> Lab {
    let mut lab = Lab::new();
    let image = lab.image("image", 4 * MIB, 71);
    lab.snapctl().import(&image, "image");
    lab.varved.stop();
    lengthen_log(&lab, "image");
    lab
}

/// Gives a snapshot of a stopped daemon a tag so often that the log needs a checkpoint.
pub(super) fn lengthen_log(lab: &Lab, snapshot: &str) {
    let path = names::catalog_log(&lab.data_dir());
    let mut log = fs::read(&path).unwrap();
    let records = &log[LOG_HEADER_BYTES..];
    let (mut last, mut tagged) = (0, None);
    for found in catalog_log::scan(Kinds::ALL, records, Position::START, true) {
        let Found::Record {
            sequence, record, ..
        } = found
        else {
            panic!("{found:?}");
        };
        last = sequence;
        let puts = record.changes().iter();
        let mut puts = puts.filter_map(Change::as_put::<SnapshotRecord>);
        tagged = puts.rfind(|it| it.label() == snapshot).or(tagged);
    }
    let mut tagged = tagged.expect("a snapshot of that name");
    while log.len() as u64 <= limits::LOG_CHECKPOINT_BYTES {
        last += 1;
        tagged.tags.insert("number".to_owned(), last.to_string());
        log.extend(Record::One(Change::put(&tagged)).encode(last));
    }
    fs::write(&path, &log).unwrap();
}

pub(super) fn header(path: &Path) -> LogHeader {
    LogHeader::decode(&fs::read(path).unwrap()).unwrap()
}

/// The number of the last record, by the tag that it gave the snapshot.
fn last_number(lab: &Lab) -> u64 {
    let tags = &lab.snapctl().show("image")["tags"];
    tags["number"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_log_that_has_grown_is_replaced_and_the_store_goes_on() {
    let mut lab = with_long_log();
    let dir = lab.data_dir();
    let (path, old) = (names::catalog_log(&dir), names::catalog_log_old(&dir));
    let long_bytes = fs::metadata(&path).unwrap().len();
    lab.restart();
    wait_for("the log to begin with a checkpoint", || {
        header(&path).checkpoint
    });
    let number = last_number(&lab);
    assert_eq!(header(&path).base_sequence(), number);
    assert_eq!(fs::metadata(&old).unwrap().len(), long_bytes);
    assert!(fs::metadata(&path).unwrap().len() < MIB);
    let tag = ["snapshot", "tag", "image", "after=checkpoint"];
    lab.snapctl().run(tag).ok();
    let shown = lab.snapctl().show("image");
    lab.varved.stop();
    lab.restart();
    assert_eq!(lab.snapctl().show("image"), shown);
    assert_eq!(lab.snapctl().verify_all(), ["image"]);
    lab.varved.stop();

    // A flipped bit of the checkpoint, without an index: the old log has what it had.
    let mut bytes = fs::read(&path).unwrap();
    bytes[LOG_HEADER_BYTES + 40] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let said = Options::new(&dir).start_refused();
    for word in ["catalog.log at offset 4096", "catalog.log.old", "rebuild"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    fs::remove_dir_all(names::index(&dir)).unwrap();
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(&dir);
    let rebuilt = run(rebuild);
    assert_eq!(rebuilt.status.code(), Some(exit::DAMAGED), "{rebuilt:?}");
    assert!(rebuilt.text().contains("written anew"), "{rebuilt:?}");
    lab.restart();
    assert_eq!(lab.snapctl().show("image"), shown);
    lab.assert_content("image", &lab.scratch.join("image"));
}

#[test]
fn a_crash_while_the_log_is_replaced_leaves_one_of_both() {
    for point in [
        Failpoint::LogCheckpointWritten,
        Failpoint::LogCheckpointRenamed,
    ] {
        let mut lab = with_long_log();
        let dir = lab.data_dir();
        let path = names::catalog_log(&dir);
        lab.varved = Options::new(&dir).env(VARIABLE, point.name()).spawn();
        let status = lab.varved.wait();
        let log = lab.varved.log();
        assert!(status.signal().is_some(), "{point:?}: {status}: {log}");
        let is_new = header(&path).checkpoint.is_some();
        assert_eq!(is_new, point == Failpoint::LogCheckpointRenamed);
        let new = names::catalog_log_new(&dir);
        assert_eq!(new.exists(), !is_new);
        lab.restart();
        let number = last_number(&lab);
        assert!(number > 10_000, "{number}");
        wait_for("the log to begin with a checkpoint", || {
            header(&path).checkpoint
        });
        assert!(!new.exists());
        assert_eq!(header(&path).base_sequence(), number);
        assert_eq!(lab.snapctl().verify_all(), ["image"]);
        lab.assert_content("image", &lab.scratch.join("image"));
    }
}
