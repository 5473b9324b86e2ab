//! VHDs as programs other than QEMU make them: their size differs from their geometry, and some
//! have only the changes since another one.

use std::{fs, process::Command};

use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::run;

const DISK_BYTES: usize = 5 << 20;
const FOOTER_BYTES: usize = 512;

/// A disk of which the last sector has content, too.
fn disk(daemon: &FakeDaemon) {
    let mut disk = vec![0; DISK_BYTES];
    disk[..100_000].fill(7);
    disk[DISK_BYTES - 512..].fill(9);
    fs::write(daemon.path("disk.img"), disk).unwrap();
}

/// Makes it a VHD.
fn convert(daemon: &FakeDaemon, subformat: &str) -> Vec<u8> {
    let options = format!("subformat={subformat},force_size=on");
    let done = Command::new("qemu-img")
        .current_dir(daemon.path(""))
        .args(["convert", "-f", "raw", "-O", "vpc", "-o", &options])
        .args(["disk.img", "made.vhd"])
        .output();
    let done = done.expect("this test needs qemu-img (apt install qemu-utils)");
    assert!(done.status.success(), "{done:?}");
    fs::read(daemon.path("made.vhd")).unwrap()
}

/// Changes the footer, and its copy at the front if there is one.
fn edit(image: &mut [u8], change: impl Fn(&mut [u8])) {
    let end = image.len() - FOOTER_BYTES;
    for at in [0, end] {
        let footer = &mut image[at..at + FOOTER_BYTES];
        if !footer.starts_with(b"conectix") {
            assert_eq!(at, 0, "it ends with one");
            continue;
        }
        change(footer);
        footer[64..68].fill(0);
        let sum: u32 = footer.iter().copied().map(u32::from).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
}

/// Imports the image. Returns the root, or the error message.
fn import(daemon: &FakeDaemon, image: &[u8], format: &str) -> Result<Vec<u8>, String> {
    fs::write(daemon.path("it.vhd"), image).unwrap();
    daemon.state().snapshots.remove("it");
    let import = ["import", "it.vhd", "--name", "it", "--format", format];
    let (code, _, stderr) = run(daemon, &import);
    if code != 0 {
        assert_eq!(code, 1, "{stderr}");
        return Err(stderr);
    }
    Ok(daemon.state().snapshots["it"].0.root.to_vec())
}

#[test]
fn a_vhd_is_as_large_as_it_says_whatever_its_geometry_is() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let disk = fs::read(daemon.path("disk.img")).unwrap();
    let root = import(&daemon, &disk, "raw").unwrap();
    for subformat in ["dynamic", "fixed"] {
        let made = convert(&daemon, subformat);
        for creator in [b"vbox", b"vs  ", b"win "] {
            let mut image = made.clone();
            edit(&mut image, |footer| {
                footer[28..32].copy_from_slice(creator);
                // 150 cylinders, 4 heads, 17 sectors: 40 sectors less than the disk has.
                footer[56..60].copy_from_slice(&[0, 150, 4, 17]);
            });
            let found = import(&daemon, &image, "auto");
            assert_eq!(found.as_ref(), Ok(&root), "{subformat} of {creator:?}");
        }
    }
}

#[test]
fn what_has_changed_since_another_image_is_not_taken_for_all_of_it() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let made = convert(&daemon, "dynamic");
    for (kind, said) in [
        (4, "import it.vhd: it is a difference to another vhd"),
        (2, "read it.vhd: its footer has the invalid type 2"),
        (0, "read it.vhd: its footer has the invalid type 0"),
    ] {
        let mut image = made.clone();
        edit(&mut image, |footer| footer[63] = kind);
        for format in ["auto", "vhd"] {
            let refused = import(&daemon, &image, format).unwrap_err();
            assert!(refused.contains(said), "{kind}: {refused}");
        }
    }
}

#[test]
fn a_fixed_vhd_that_lacks_a_part_before_its_footer_is_refused() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let mut image = convert(&daemon, "fixed");
    image.drain(1 << 20..2 << 20);
    let refused = import(&daemon, &image, "auto").unwrap_err();
    assert!(refused.contains("it is truncated"), "{refused}");
}
