//! An upload whose client stands still for the length of a collection.

use std::fs;

use rustix::process::Signal;
use varve_tests::{
    daemon::Options,
    image,
    lab::Lab,
    snapctl::{Snapctl, import_arguments, number},
    valve::Valve,
};

use super::{IMAGE_BYTES, MIB, delete_two, gc, import_three};

/// The first half is garbage in the store, of which the client was told that it need not be sent.
/// The client is stopped while it sends the other half, and continues after a collection.
#[test]
fn an_upload_that_stands_still_meanwhile_is_whole() {
    let lab = Lab::with(Options::tcp);
    let snapctl = lab.snapctl();
    let kept = import_three(&lab, "x", 9501);
    let new = image::make_random(&lab.scratch, "new", 64 * MIB, 9511);
    let both = [lab.scratch.join("x-a"), new].map(|path| fs::read(path).unwrap());
    let both = lab.scratch.file("both", both.concat());
    delete_two(&lab, "x");

    let valve = Valve::before(&lab.varved, 24 << 20);
    let import = import_arguments(&both, "both");
    let mut import = Snapctl::new(valve.endpoint()).start(import);
    valve.wait_until_spent();
    import.signal(Signal::STOP);
    valve.open();
    let report = gc(&lab, &["run", "--dead", "1", "--rate", "none"]);
    assert!(number(&report, "packs_held") > 0, "{report}");
    assert_eq!(report["held_by"][0], "both", "{report}");
    assert_eq!(snapctl.verify_all(), ["x-c"]);
    import.signal(Signal::CONT);
    import.wait().ok();

    assert_eq!(snapctl.verify_all(), ["both", "x-c"]);
    lab.assert_content("both", &both);
    lab.assert_content("x-c", &kept);
    // The upload holds nothing any more, so all garbage goes.
    let report = gc(&lab, &["run", "--dead", "1", "--rate", "none"]);
    assert_eq!(number(&report, "packs_held"), 0, "{report}");
    assert!(number(&report, "removed_bytes") > IMAGE_BYTES, "{report}");
    assert_eq!(snapctl.verify_all(), ["both", "x-c"]);
    lab.assert_content("both", &both);
}
