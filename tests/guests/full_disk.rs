//! A guest whose volume finds no space: QEMU stops it, and it continues unharmed when there is
//! space again.

use std::fs;

use varve_tests::{
    daemon::Options,
    files,
    guest::{Machine, export, raw_file},
    image,
    loop_fs::LoopFs,
    process::{command, run, wait_for},
    programs::tool,
    qmp::Qmp,
    scratch::Scratch,
};

use crate::volumes::{make, uri};

const MIB: u64 = 1 << 20;

/// Copies a disk, of more than fits beside the other file, and reads it again.
const WRITE: &str = r#"
set -e
echo writing
cat /dev/vdd >/dev/vdc
sync
blockdev --flushbufs /dev/vdc
cmp -n $(blockdev --getsize64 /dev/vdd) /dev/vdd /dev/vdc
echo "it is the same"
"#;

#[test]
fn a_guest_is_stopped_by_a_full_disk_and_goes_on_when_there_is_room() {
    let Some(disk) = LoopFs::mount(200 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let varved = Options::new(disk.path().join("data")).start();
    make(&varved, "disk", "--size 128M");
    let other = disk.path().join("other");
    fs::write(&other, vec![0xab; 75 << 20]).unwrap();

    // Made outside: without KVM a guest makes random bytes slowly.
    let content = image::make_random(&scratch, "content", 100 * MIB, 231);
    let socket = scratch.join("qmp");
    let mut guest = Machine::new()
        .drive(&format!("werror=stop,{}", export(&uri(&varved, "disk"))))
        .drive(&format!("readonly=on,{}", raw_file(&content)))
        .argument("-qmp")
        .argument(&Qmp::listen(&socket))
        .start(WRITE);
    guest.wait_for("the guest to write", |said| {
        said.contains("writing").then_some(())
    });
    let mut qmp = Qmp::connect(&socket);
    wait_for("QEMU to stop the guest", || {
        let status = qmp.status();
        assert!(
            ["running", "io-error"].contains(&&*status),
            "{status}: {}",
            guest.console()
        );
        (status == "io-error").then_some(())
    });
    // Retrying does not help as long as there is no space.
    qmp.execute("cont");
    wait_for("QEMU to stop the guest again", || {
        (qmp.status() == "io-error").then_some(())
    });
    fs::remove_file(&other).unwrap();
    qmp.execute("cont");

    let console = guest.finish();
    assert!(console.contains("it is the same"), "{console}");
    let copy = scratch.join("copy");
    run(command(
        tool("nbdcopy"),
        [uri(&varved, "disk").as_ref(), copy.as_os_str()],
    ))
    .ok();
    fs::File::options()
        .write(true)
        .open(&copy)
        .unwrap()
        .set_len(100 * MIB)
        .unwrap();
    files::assert_same(&content, &copy);
}
