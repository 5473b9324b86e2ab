//! Collections that the daemon begins by itself.

use varve_tests::{lab::Lab, process::wait_for};

use super::{IMAGE_BYTES, delete_two, gc, import_three, pack_bytes};

#[test]
fn the_daemon_collects_by_itself() {
    let mut lab = Lab::with(|options| options.env("VARVE_GC_EVERY", "1s"));
    let kept = import_three(&lab, "x", 9401);
    let full = pack_bytes(&lab);
    delete_two(&lab, "x");
    wait_for("space to come back", || {
        (pack_bytes(&lab) + IMAGE_BYTES < full).then_some(())
    });
    let log = lab.varved.log();
    assert!(log.contains("garbage collection begins"), "{log}");
    assert_eq!(lab.snapctl().verify_all(), ["x-c"]);
    lab.assert_content("x-c", &kept);
    lab.varved.stop();
    let log = lab.varved.log();
    let line = log
        .lines()
        .find(|line| line.contains("garbage collection ended"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    for figure in ["removed_bytes=", "copied_bytes=", "dead_bytes=", "seconds="] {
        assert!(line.contains(figure), "{line}");
    }
}

#[test]
fn it_does_not_where_that_is_turned_off() {
    let lab = Lab::with(|options| options.env("VARVE_GC_EVERY", "off"));
    assert!(gc(&lab, &["status"])["last"].is_null());
    gc(&lab, &["run"]);
    assert!(!gc(&lab, &["status"])["last"].is_null());
}
