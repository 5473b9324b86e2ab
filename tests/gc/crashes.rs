//! The daemon ends as if it were killed, at any point of a collection. Afterwards all needed
//! content is there, even in a new index, and the next collection takes the rest.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf};

use varve_store::{
    failpoints::{Failpoint, VARIABLE},
    format::names,
};
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{command, run},
    programs::varved,
    snapctl::exit,
};

use super::{IMAGE_BYTES, delete_two, gc, import_three, pack_bytes};

/// The points that a collection passes, in their order.
const POINTS: [Failpoint; 6] = [
    Failpoint::GcMarked,
    Failpoint::GcCondemned,
    Failpoint::GcSurvivorsAppended,
    Failpoint::GcSurvivorsSynced,
    Failpoint::GcMoved,
    Failpoint::GcUnlinked,
];

fn crash_at(lab: &mut Lab, point: &str) {
    lab.varved.stop();
    lab.restart_with(|options| options.env(VARIABLE, point));
    collect_and_crash(lab, point);
    lab.restart();
}

fn collect_and_crash(lab: &mut Lab, point: &str) {
    lab.snapctl().run(["gc", "run"]).fails(exit::UNREACHABLE);
    let status = lab.varved.wait();
    assert!(
        status.signal().is_some(),
        "{point}: varved should have been ended by the point, not with {status}"
    );
}

/// The log of RocksDB that is written to.
fn index_log(lab: &Lab) -> PathBuf {
    let files = fs::read_dir(names::index(&lab.data_dir())).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let logs = paths.filter(|path| path.extension().is_some_and(|it| it == "log"));
    // Their names are numbers with leading zeros.
    logs.max().expect("a log")
}

fn rebuild(lab: &mut Lab) {
    lab.varved.stop();
    let data_dir = lab.data_dir();
    let arguments = [
        "rebuild".as_ref(),
        "--data-dir".as_ref(),
        data_dir.as_os_str(),
    ];
    run(command(varved(), arguments)).ok();
    lab.varved = Options::new(data_dir).start();
}

#[test]
fn a_crash_at_any_point_of_a_collection_loses_nothing() {
    let mut lab = Lab::new();
    let mut kept = Vec::new();
    for (point, seed) in POINTS.iter().zip((0..).step_by(10)) {
        let point = point.name();
        // A crash before the rows have moved leaves the garbage to the next one.
        if matches!(point, "gc-marked" | "gc-unlinked") {
            let file = import_three(&lab, point, 9100 + seed);
            delete_two(&lab, point);
            kept.push((format!("{point}-c"), file));
        }
        let names: Vec<_> = kept.iter().map(|(name, _)| name.clone()).collect();
        crash_at(&mut lab, point);
        assert_eq!(lab.snapctl().verify_all(), names, "{point}");
        rebuild(&mut lab);
        assert_eq!(lab.snapctl().verify_all(), names, "{point}: made anew");
    }
    let before = pack_bytes(&lab);
    gc(&lab, &["run"]);
    let after = pack_bytes(&lab);
    assert!(after <= before, "{before} {after}");
    // Two images, and the part of a pack that may be dead.
    assert!(after < 4 * IMAGE_BYTES, "{after}");
    for (name, file) in kept {
        lab.snapctl().verify(&name);
        lab.assert_content(&name, &file);
    }
}

/// RocksDB loses the end of its log, as after damage there: the rows are as before the collection
/// moved them, and the files to which they point are gone.
#[test]
fn an_index_from_before_a_collection_loses_nothing() {
    let point = Failpoint::GcUnlinked.name();
    // Of the change that moves the rows, nothing is there, or a part.
    for kept_percent in [0, 60] {
        let mut lab = Lab::new();
        let kept = import_three(&lab, "x", 9241 + kept_percent);
        delete_two(&lab, "x");
        lab.varved.stop();
        lab.restart_with(|options| options.env(VARIABLE, point));
        let log = index_log(&lab);
        let before = fs::metadata(&log).unwrap().len();
        collect_and_crash(&mut lab, point);
        assert_eq!(index_log(&lab), log);
        let after = fs::metadata(&log).unwrap().len();
        assert!(after > before, "{before} {after}");
        let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
        let cut = before + (after - before) * kept_percent / 100;
        file.set_len(cut).unwrap();
        lab.restart();
        assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
        lab.assert_content("x-c", &kept);
        // The store works, and the next collection leaves no trace of the packs that are gone.
        let first = lab.scratch.join("x-a");
        lab.snapctl().import(&first, "x-a");
        gc(&lab, &["run", "--dead", "1"]);
        lab.varved.stop();
        lab.restart();
        let log = lab.varved.log();
        assert!(!log.contains("its file is missing"), "{log}");
        assert_eq!(lab.snapctl().verify_all(), ["x-a", "x-c"]);
        lab.assert_content("x-a", &first);
        lab.assert_content("x-c", &kept);
        assert!(pack_bytes(&lab) < 3 * IMAGE_BYTES);
    }
}

/// Kills at moments that no point names.
#[test]
fn kills_during_collections_lose_nothing() {
    let mut random = varve_tests::random::Random::of_test("kills_during_collections");
    let mut lab = Lab::new();
    let kept = import_three(&lab, "x", 9201);
    delete_two(&lab, "x");
    for _ in 0..4 {
        let running = lab.snapctl().start(["gc", "run", "--rate", "20M"]);
        std::thread::sleep(std::time::Duration::from_millis(random.within(1..2000)));
        lab.varved.kill();
        drop(running);
        lab.restart();
        assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
    }
    gc(&lab, &["run"]);
    assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
    lab.assert_content("x-c", &kept);
    assert!(pack_bytes(&lab) < 2 * IMAGE_BYTES);
}
