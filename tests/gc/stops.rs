//! Collections that are stopped, and second ones that are refused.

use varve_tests::{
    lab::Lab,
    process::{Running, wait_for},
    snapctl::exit,
};

use super::{IMAGE_BYTES, delete_two, gc, import_three, pack_bytes};

/// Begins a collection that would take minutes, and waits until it moves records.
fn begin_slow(lab: &Lab) -> Running {
    let running = lab.snapctl().start(["gc", "run", "--rate", "1M"]);
    wait_for("the collection to move records", || {
        let status = gc(lab, &["status"]);
        (status["running"]["phase"] == "sweeping").then_some(())
    });
    running
}

#[test]
fn a_collection_that_is_stopped_ends_soon_and_the_next_one_goes_on() {
    let lab = Lab::new();
    let kept = import_three(&lab, "x", 9501);
    delete_two(&lab, "x");
    let running = begin_slow(&lab);
    let refused = lab.snapctl().run(["gc", "run"]).fails(exit::CONFLICT);
    assert!(
        refused.contains("a garbage collection is running"),
        "{refused}"
    );
    let planned = gc(&lab, &["status"]);
    assert!(planned["last"].is_null(), "{planned}");
    // Commands that would wait for the end of the collection fail with the reason.
    for command in [
        &["du"][..],
        &["gc", "plan"],
        &["snapshot", "delete", "--dry-run", "x-c"],
    ] {
        let refused = lab.snapctl().run(command).fails(exit::CONFLICT);
        assert!(
            refused.contains("a garbage collection is running"),
            "{command:?}: {refused}"
        );
    }

    gc(&lab, &["stop"]);
    let said = running.wait().success().text();
    assert!(said.contains("the next collection goes on"), "{said}");
    let last = &gc(&lab, &["status"])["last"];
    assert_eq!(last["report"]["stopped"], true, "{last}");
    assert_eq!(lab.snapctl().verify_all(), ["x-c"]);

    gc(&lab, &["run"]);
    assert!(pack_bytes(&lab) < 2 * IMAGE_BYTES);
    assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
    lab.assert_content("x-c", &kept);
}

#[test]
fn the_daemon_stops_soon_while_it_collects_and_goes_on_after_its_start() {
    let mut lab = Lab::new();
    let kept = import_three(&lab, "x", 9511);
    let before = gc(&lab, &["run"]);
    delete_two(&lab, "x");
    let running = begin_slow(&lab);
    lab.varved.stop();
    drop(running);
    lab.restart();
    // The status shows the collection before: the one that the daemon ended is to continue.
    let last = &gc(&lab, &["status"])["last"];
    assert_eq!(last["report"], before, "{last}");
    assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
    gc(&lab, &["run"]);
    assert!(pack_bytes(&lab) < 2 * IMAGE_BYTES);
    assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
    lab.assert_content("x-c", &kept);
}
