//! Bounds on memory at any size, measured as the peak resident memory of each process.

use std::ffi::OsString;

use varve_tests::{
    files, image,
    lab::Lab,
    process::{command, peak_memory_bytes, wait_for},
    programs::tool,
    snapctl::{Snapctl, import_arguments},
};

const MIB: u64 = 1 << 20;
/// Larger than either bound.
const SIZE: u64 = 480 * MIB;
const CLIENT_MAX: u64 = 256 * MIB;
const DAEMON_MAX: u64 = 448 * MIB;
const CACHE: u64 = 64 * MIB;

/// Runs a command of snapctl, and returns its peak memory.
fn peak(snapctl: &Snapctl, arguments: impl IntoIterator<Item = OsString>) -> u64 {
    let mut running = snapctl.start(arguments);
    let mut peak = 0;
    wait_for("snapctl to end", || {
        // The peak never falls, so the last reading is close to the final one.
        peak = peak_memory_bytes(running.id()).unwrap_or(peak);
        running.ended()
    });
    running.wait().ok();
    assert!(peak > 0, "nothing was measured");
    peak
}

#[test]
fn import_and_export_stay_within_their_bounds() {
    // The read cache is a setting, and the promise of this test holds with a small one.
    let lab = Lab::with(|options| {
        let options = options.tcp();
        options.env("VARVE_CHUNK_CACHE_BYTES", CACHE.to_string())
    });
    let file = image::make_random(&lab.scratch, "image", SIZE, 201);
    let out = lab.scratch.join("out");
    let export =
        |name: &str| ["export", name, out.to_str().unwrap(), "--force"].map(OsString::from);
    let over_unix = lab.snapctl();
    let over_tcp = Snapctl::new(lab.varved.tcp_endpoint());

    let assert_daemon = |what: &str| {
        let peak = lab.varved.peak_memory_bytes();
        println!("varved after {what}: {} MiB", peak / MIB);
        assert!(
            peak < DAEMON_MAX,
            "varved took {} MiB until after {what}",
            peak / MIB
        );
    };
    let assert_client = |what: &str, peak: u64| {
        println!("snapctl at {what}: {} MiB", peak / MIB);
        assert!(
            peak < CLIENT_MAX,
            "snapctl took {} MiB at {what}",
            peak / MIB
        );
        assert_daemon(what);
    };

    assert_client("import", peak(&over_unix, import_arguments(&file, "image")));
    assert_client(
        "import again",
        peak(&over_unix, import_arguments(&file, "again")),
    );
    assert_client("export", peak(&over_unix, export("image")));
    files::assert_same(&file, &out);
    assert_client("export over TCP", peak(&over_tcp, export("image")));
    files::assert_same(&file, &out);
    assert_client(
        "verify",
        peak(
            &over_unix,
            ["snapshot", "verify", "image"].map(OsString::from),
        ),
    );

    // New content over TCP, where it is compressed on the way.
    let other = image::make_random(&lab.scratch, "image", SIZE, 202);
    assert_client(
        "import over TCP",
        peak(&over_tcp, import_arguments(&other, "other")),
    );

    // All at once, with readers of the export beside them.
    let nbdcopy = command(
        tool("nbdcopy"),
        [
            "--connections=8",
            "--requests=64",
            &lab.varved.nbd_uri("other"),
            "null:",
        ],
    );
    let copies = [
        over_unix.start(export("other")),
        varve_tests::process::start(nbdcopy),
    ];
    assert_client(
        "import beside readers",
        peak(&over_unix, import_arguments(&other, "once-more")),
    );
    for copy in copies {
        copy.wait().ok();
    }
    files::assert_same(&other, &out);
    assert_daemon("everything at once");
}
