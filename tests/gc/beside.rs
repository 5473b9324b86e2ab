//! Collections beside everything else.

use std::thread;

use varve_tests::{
    image,
    lab::Lab,
    process::{command, start},
    programs::tool,
};

use super::{IMAGE_BYTES, MIB, delete_two, gc, import_three, pack_bytes};

/// Imports and deletes snapshots, writes to a volume and snapshots it, and collects all the time.
#[test]
fn imports_and_guests_notice_nothing() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let kept = import_three(&lab, "x", 9301);
    delete_two(&lab, "x");
    snapctl
        .run(["volume", "create", "web", "--size", "64M"])
        .ok();
    snapctl.run(["volume", "attach", "web"]).ok();
    let uri = format!(
        "--uri=nbd+unix:///volume/web?socket={}",
        lab.varved.nbd_socket().display()
    );
    let fio = [
        "--name=web",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--randseed=9302",
        "--output-format=terse",
        &uri,
        "--bsrange=4k-64k",
        "--size=64M",
        "--rate=8M",
    ];
    let mut fio = start(command(tool("fio"), fio));
    // The same content again and again: new imports need chunks that a collection takes.
    let again = image::make_random(&lab.scratch, "again", 24 * MIB, 9303);
    let before = pack_bytes(&lab);
    thread::scope(|scope| {
        let importing = scope.spawn(|| {
            for round in 0..4 {
                let name = format!("again-{round}");
                snapctl.import(&again, &name);
                lab.assert_content(&name, &again);
                if round < 3 {
                    snapctl.run(["snapshot", "delete", &name]).ok();
                }
            }
        });
        let snapshotting = scope.spawn(|| {
            for round in 0..4 {
                let name = format!("web-{round}");
                let arguments = ["snapshot", "create", "web", "--name", &name, "--wait"];
                snapctl.run(arguments).ok();
                if round % 2 == 0 {
                    snapctl.run(["snapshot", "delete", &name]).ok();
                }
            }
        });
        while !importing.is_finished() || !snapshotting.is_finished() {
            gc(&lab, &["run", "--dead", "10", "--rate", "none"]);
        }
    });
    while fio.ended().is_none() {
        gc(&lab, &["run", "--dead", "10", "--rate", "none"]);
    }
    let fio = fio.wait();
    assert!(fio.status.success(), "{fio:?}");
    snapctl
        .run(["snapshot", "create", "web", "--name", "web-end", "--wait"])
        .ok();
    let names = ["again-3", "web-1", "web-3", "web-end", "x-c"];
    assert_eq!(snapctl.verify_all(), names);
    lab.assert_content("x-c", &kept);
    lab.assert_content("again-3", &again);
    let after = pack_bytes(&lab);
    assert!(after < before, "{before} {after}");
    assert!(after < 4 * IMAGE_BYTES, "{after}");
}
