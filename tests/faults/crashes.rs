//! The daemon ends as if it were killed, at any point of an import. Afterwards it starts, all
//! earlier snapshots verify, the new snapshot is whole or does not exist, and the import can be run
//! again.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use varve_store::failpoints::{Failpoint, VARIABLE};
use varve_tests::{
    image,
    lab::Lab,
    random::Random,
    snapctl::{exit, import_arguments, text},
};

const MIB: u64 = 1 << 20;

/// The state of a snapshot after its commit ended at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// It does not exist, and its chunks may have to be sent again.
    Absent,
    /// It does not exist, and its chunks are in the store.
    AbsentChunksKept,
    /// It is whole, or does not exist.
    Either,
    /// It exists.
    Present,
}

/// The catalogue of `store/src/failpoints.rs`, exhaustively: a new point does not compile without
/// an entry here. `None` for points that the commit of a snapshot does not pass.
fn after(point: Failpoint) -> Option<After> {
    Some(match point {
        Failpoint::ChunksAppended => After::Absent,
        Failpoint::PacksSynced | Failpoint::GroupIndexed | Failpoint::BeforeCatalogLog => {
            After::AbsentChunksKept
        }
        Failpoint::CatalogLogWritten => After::Either,
        Failpoint::CatalogLogSynced | Failpoint::CatalogApplied => After::Present,
        Failpoint::JournalWritten
        | Failpoint::JournalSynced
        | Failpoint::EpochsEnded
        | Failpoint::InstantDurable
        | Failpoint::LogCheckpointWritten
        | Failpoint::LogCheckpointRenamed
        // The points of collections are in `gc::crashes`.
        | Failpoint::GcMarked
        | Failpoint::GcCondemned
        | Failpoint::GcSurvivorsAppended
        | Failpoint::GcSurvivorsSynced
        | Failpoint::GcMoved
        | Failpoint::GcUnlinked => return None,
    })
}

/// All points that the commit of a snapshot passes.
fn points() -> impl Iterator<Item = (Failpoint, After)> {
    let all = Failpoint::ALL.iter().copied();
    all.filter_map(|point| after(point).map(|after| (point, after)))
}

/// A store with one snapshot, and a second image to import.
struct Scene {
    lab: Lab,
    old: PathBuf,
    new: PathBuf,
}

impl Scene {
    fn new(new_bytes: u64) -> Self {
        let lab = Lab::new();
        let old = lab.image("old", 12 * MIB, 81);
        lab.snapctl()
            .import_with(&old, "old", ["--tag", "state=before"]);
        let new = image::make_random(&lab.scratch, "new", new_bytes, 82);
        Self { lab, old, new }
    }

    /// Starts the daemon again with an armed point, and runs an action that reaches it.
    fn crash_at(&mut self, armed: &str, act: impl FnOnce(&Lab)) {
        self.lab.varved.stop();
        self.lab
            .restart_with(|options| options.env(VARIABLE, armed));
        act(&self.lab);
        let status = self.lab.varved.wait();
        assert!(
            status.signal().is_some(),
            "{armed}: varved should have been ended by the point, not with {status}"
        );
        let log = self.lab.varved.log();
        assert!(log.contains("failpoint"), "{armed}: {log}");
        self.lab.restart();
    }

    /// Asserts that everything is whole, and that the import can be run again, in any state that
    /// the crash left.
    fn check(&mut self, armed: &str, after: After) {
        let snapctl = self.lab.snapctl();
        let names = snapctl.verify_all();
        self.lab.assert_content("old", &self.old);
        let present = names.iter().any(|name| name == "new");
        match after {
            After::Present => assert!(present, "{armed}: the snapshot was durable"),
            After::Absent | After::AbsentChunksKept => {
                assert!(!present, "{armed}: the snapshot is there too early")
            }
            After::Either => {}
        }
        if present {
            snapctl
                .run(import_arguments(&self.new, "new"))
                .fails(exit::ALREADY_EXISTS);
        } else {
            let imported = snapctl.import(&self.new, "new");
            if after == After::AbsentChunksKept {
                assert_eq!(
                    imported.new_bytes(),
                    0,
                    "{armed}: synced chunks need not be sent again"
                );
            }
        }
        self.lab.assert_content("new", &self.new);
        self.lab.varved.stop();
        self.lab.restart();
        assert_eq!(self.lab.snapctl().verify_all(), ["new", "old"]);
    }
}

fn import_new(lab: &Lab) {
    lab.snapctl()
        .run(import_arguments(&lab.scratch.join("new"), "new"))
        .fails(exit::UNREACHABLE);
}

#[test]
fn a_crash_at_any_point_of_an_import_leaves_it_whole_or_absent() {
    for (point, after) in points() {
        let mut scene = Scene::new(20 * MIB);
        scene.crash_at(point.name(), import_new);
        scene.check(point.name(), after);
    }
}

/// The same later in a large import, whose chunks are indexed in several groups.
#[test]
fn a_crash_in_the_middle_of_a_large_import_keeps_what_was_indexed() {
    for (armed, after) in [
        ("chunks-appended:90", After::Absent),
        ("packs-synced:2", After::Absent),
        ("group-indexed:2", After::Absent),
        ("catalog-log-synced:1", After::Present),
    ] {
        let mut scene = Scene::new(120 * MIB);
        scene.crash_at(armed, import_new);
        if after == After::Absent {
            let again = scene.lab.snapctl().import(&scene.new, "again");
            assert!(
                again.new_bytes() < 120 * MIB,
                "{armed}: nothing was kept of the first groups: {again:?}"
            );
            scene
                .lab
                .snapctl()
                .run(["snapshot", "delete", "again"])
                .ok();
        }
        scene.check(armed, after);
    }
}

/// Changes of the catalog alone pass the same points.
#[test]
fn a_crash_while_a_record_changes_leaves_the_old_or_the_new() {
    for (point, after) in points() {
        let changed = match after {
            After::Present => Some(true),
            After::Either => None,
            After::Absent | After::AbsentChunksKept if point == Failpoint::BeforeCatalogLog => {
                Some(false)
            }
            // Not reached without content.
            After::Absent | After::AbsentChunksKept => continue,
        };
        let mut scene = Scene::new(MIB);
        scene.crash_at(point.name(), |lab| {
            lab.snapctl()
                .run(["snapshot", "tag", "old", "state=after"])
                .fails(exit::UNREACHABLE);
        });
        let state = text(&scene.lab.snapctl().show("old")["tags"], "state");
        assert!(
            changed.is_none_or(|changed| (state == "after") == changed),
            "{}: {state}",
            point.name()
        );
        scene.lab.assert_content("old", &scene.old);

        scene.crash_at(point.name(), |lab| {
            lab.snapctl()
                .run(["snapshot", "delete", "old"])
                .fails(exit::UNREACHABLE);
        });
        let names = scene.lab.snapctl().verify_all();
        assert!(
            changed.is_none_or(|changed| names.is_empty() == changed),
            "{}: {names:?}",
            point.name()
        );
    }
}

#[test]
fn a_point_that_does_not_exist_is_refused() {
    let lab = Lab::new();
    let other = lab.scratch.join("other");
    for armed in ["no-such-point", "group-indexed:x"] {
        let log = varve_tests::daemon::Options::new(&other)
            .env(VARIABLE, armed)
            .start_refused();
        assert!(log.contains(VARIABLE) && log.contains(armed), "{log}");
    }
}

#[test]
fn kills_at_random_moments_lose_nothing_that_was_reported() {
    const ROUNDS: u64 = 4;
    let mut random = Random::of_test("kills_at_random_moments");
    let mut lab = Lab::new();
    let mut reported: Vec<(String, PathBuf)> = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("round-{round}");
        let file = image::make_random(&lab.scratch, &name, 72 * MIB, random.next_u64());
        let import = lab.snapctl().start(import_arguments(&file, &name));
        // Imports of this size take some tenths of a second, so these hit all parts of one, and now
        // and then the time after it.
        thread::sleep(Duration::from_millis(random.within(0..600)));
        lab.varved.kill();
        let imported = import.wait();
        if imported.status.success() {
            reported.push((name.clone(), file.clone()));
        } else {
            imported.fails(exit::UNREACHABLE);
        }
        lab.restart();
        let names = lab.snapctl().verify_all();
        for (name, file) in &reported {
            assert!(
                names.contains(name),
                "{name} was reported as imported, and is gone: {names:?}"
            );
            lab.assert_content(name, file);
        }
        if names.contains(&name) {
            lab.assert_content(&name, &file);
        } else {
            lab.snapctl().import(&file, &name);
        }
        if !reported.iter().any(|(reported, _)| *reported == name) {
            reported.push((name, file));
        }
        forget_oldest(&lab, &mut reported);
    }
}

/// Removes the oldest of the snapshots that each round compares again, so that the test stays
/// small.
fn forget_oldest(lab: &Lab, reported: &mut Vec<(String, PathBuf)>) {
    if reported.len() > 2 {
        let (name, file): (String, PathBuf) = reported.remove(0);
        lab.snapctl().run(["snapshot", "delete", &name]).ok();
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_kill_while_the_daemon_starts_loses_nothing() {
    let mut random = Random::of_test("a_kill_while_the_daemon_starts");
    let mut scene = Scene::new(20 * MIB);
    scene.crash_at("group-indexed", import_new);
    for _ in 0..6 {
        scene.lab.varved.kill();
        let mut starting = varve_tests::daemon::Options::new(scene.lab.data_dir()).spawn();
        thread::sleep(Duration::from_millis(random.within(0..80)));
        starting.kill();
        scene.lab.restart();
        assert_eq!(scene.lab.snapctl().verify_all(), ["old"]);
    }
    scene.check("group-indexed", After::AbsentChunksKept);
}

/// If a daemon is killed while it makes its store, the next one can use the directory.
#[test]
fn a_kill_while_a_store_is_made_leaves_a_directory_that_can_be_used() {
    let mut random = Random::of_test("a_kill_while_a_store_is_made");
    let lab = Lab::new();
    let file = lab.image("image", MIB, 83);
    for round in 0..8 {
        let data_dir = lab.scratch.join(format!("made-{round}"));
        let options = varve_tests::daemon::Options::new(&data_dir);
        let mut starting = options.spawn();
        thread::sleep(Duration::from_micros(random.within(0..60_000)));
        starting.kill();
        let varved = options.start();
        varved.snapctl().import(&file, "image");
        verify_content(&varved, &lab, &file);
    }
}

fn verify_content(varved: &varve_tests::daemon::Varved, lab: &Lab, file: &Path) {
    let out = lab.scratch.join("out");
    varved.snapctl().export("image", &out);
    varve_tests::files::assert_same(file, &out);
    std::fs::remove_file(out).unwrap();
}
