//! Garbage collection: deleted snapshots give their space back, and nothing else goes.

mod beside;
mod crashes;
mod policy;
mod stalled;
mod stops;

use std::{fs, path::PathBuf};

use serde_json::Value;
use varve_store::format::PackKind;
use varve_tests::{
    data_dir::packs,
    image,
    lab::Lab,
    snapctl::{exit, number},
};

const MIB: u64 = 1 << 20;
/// Length of each image: three of them fill more than a pack.
const IMAGE_BYTES: u64 = 100 * MIB;

/// Bytes of the files of all packs.
fn pack_bytes(lab: &Lab) -> u64 {
    let kinds = [PackKind::Chunks, PackKind::Nodes];
    let all = kinds.iter().flat_map(|kind| packs(&lab.data_dir(), *kind));
    let lengths = all.map(|(_, path)| fs::metadata(path).map_or(0, |found| found.len()));
    lengths.sum()
}

/// Imports three images that fill a pack and the beginning of another: `NAME-a`, `NAME-b` and
/// `NAME-c`. Returns the file of the last one.
fn import_three(lab: &Lab, name: &str, seed: u64) -> PathBuf {
    let imported = ["a", "b", "c"].iter().zip(seed..).map(|(letter, seed)| {
        let name = format!("{name}-{letter}");
        let file = image::make_random(&lab.scratch, &name, IMAGE_BYTES, seed);
        lab.snapctl().import(&file, &name);
        file
    });
    imported.last().expect("three images")
}

/// Deletes two of three images, so that most of their pack is dead.
fn delete_two(lab: &Lab, name: &str) {
    for letter in ["a", "b"] {
        let name = format!("{name}-{letter}");
        lab.snapctl().run(["snapshot", "delete", &name]).ok();
    }
}

fn gc(lab: &Lab, arguments: &[&str]) -> Value {
    let arguments = ["gc"].iter().chain(arguments);
    lab.snapctl().json(arguments)
}

#[test]
fn what_deleted_snapshots_took_comes_back_as_it_was_said_before() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let kept = import_three(&lab, "x", 9001);
    let full = pack_bytes(&lab);
    let plan = gc(&lab, &["plan"]);
    assert_eq!(number(&plan, "returned_bytes"), 0);
    // Zeros at the ends of records.
    let before = number(&plan["usage"], "dead_bytes");
    assert!(before < MIB, "{plan}");

    let usage = snapctl.json(["du"]);
    let exclusive = |usage: &Value, at: usize| number(&usage["snapshots"][at], "exclusive_bytes");
    assert!((0..3).all(|at| exclusive(&usage, at) > IMAGE_BYTES));
    let of_two = exclusive(&usage, 0) + exclusive(&usage, 1);
    let dry_run = snapctl.json(["snapshot", "delete", "--dry-run", "x-a", "x-b"]);
    assert_eq!(number(&dry_run, "dead_bytes"), of_two, "they share nothing");
    let promised = number(&dry_run, "returned_bytes");

    delete_two(&lab, "x");
    let plan = gc(&lab, &["run", "--dry-run"]);
    let dead = number(&plan["usage"], "dead_bytes");
    assert_eq!(dead, before + of_two, "{plan}");
    assert_eq!(number(&plan, "returned_bytes"), promised, "{plan}");
    assert!(promised > IMAGE_BYTES, "{plan}");
    assert_eq!(pack_bytes(&lab), full, "a dry run changes nothing");

    let report = gc(&lab, &["run"]);
    assert_eq!(number(&report, "dead_bytes"), dead, "{report}");
    assert!(number(&report, "packs_removed") > 0, "{report}");
    let less = full - pack_bytes(&lab);
    assert!(less > IMAGE_BYTES, "{less} bytes less: {report}");
    assert_eq!(number(&report, "returned_bytes"), less, "{report}");
    assert_eq!(snapctl.verify_all(), ["x-c"]);
    lab.assert_content("x-c", &kept);

    let last = &gc(&lab, &["status"])["last"];
    assert_eq!(last["report"], report);
    let status = snapctl.json(["status"]);
    assert_eq!(status["gc"]["last"], *last);
    // Another one finds nothing to do.
    assert_eq!(number(&gc(&lab, &["run"]), "packs_removed"), 0);
}

#[test]
fn a_volume_holds_what_it_was_made_from() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let kept = import_three(&lab, "x", 9011);
    let first = lab.scratch.join("x-a");
    snapctl
        .run(["volume", "create", "web", "--from", "x-a"])
        .ok();
    delete_two(&lab, "x");
    let usage = snapctl.json(["du", "web", "x-c"]);
    assert!(number(&usage["volumes"][0], "exclusive_bytes") > IMAGE_BYTES);
    gc(&lab, &["run", "--dead", "1"]);
    snapctl
        .run(["snapshot", "create", "web", "--name", "web", "--wait"])
        .ok();
    assert_eq!(snapctl.verify_all(), ["web", "x-c"]);
    lab.assert_content("web", &first);
    lab.assert_content("x-c", &kept);
    let usage = snapctl.json(["du", "web"]);
    let [snapshot, volume] = [&usage["snapshots"][0], &usage["volumes"][0]];
    for record in [snapshot, volume] {
        assert_eq!(number(record, "exclusive_bytes"), 0, "{usage}");
        assert!(number(record, "shared_bytes") > IMAGE_BYTES, "{usage}");
    }
    let missing = snapctl.run(["du", "none"]).fails(exit::NOT_FOUND);
    assert!(missing.contains("none"), "{missing}");
}
