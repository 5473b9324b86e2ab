//! Images in other formats, by `qemu-img`.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, finished, run, snapctl, succeed};

#[test]
fn other_formats_go_through_qemu_img() {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = disk(&daemon);
    let root = |name: &str| daemon.state().snapshots[name].0.root.clone();
    let qemu_img = |arguments: &[&str]| {
        let done = Command::new("qemu-img")
            .current_dir(daemon.path(""))
            .args(arguments)
            .output();
        let done = done.expect("this test needs qemu-img (apt install qemu-utils)");
        assert!(done.status.success(), "{done:?}");
    };
    succeed(&daemon, &["import", "disk.img", "--name", "raw"]);
    for (format, extra) in [
        ("qcow2", "compression_type=zstd"),
        ("vmdk", "subformat=streamOptimized"),
    ] {
        let image = format!("disk.{format}");
        qemu_img(&[
            "convert", "-c", "-O", format, "-o", extra, "disk.img", &image,
        ]);
        for choice in ["auto", format] {
            let name = format!("{format}-{choice}");
            let (code, _, stderr) = run(
                &daemon,
                &["import", &image, "--name", &name, "--format", choice],
            );
            assert_eq!(code, 0, "{stderr}");
            assert_eq!(root(&name), root("raw"));
        }
    }
    // From a pipe.
    let image = fs::read(daemon.path("disk.qcow2")).unwrap();
    let mut child = snapctl(&daemon, &["import", "-", "--name", "pipe", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&image).unwrap();
    assert_eq!(
        finished(child.wait_with_output().unwrap()),
        (0, String::new(), String::new())
    );
    assert_eq!(root("pipe"), root("raw"));
    // A truncated image is not taken for one that ends in zeros.
    fs::write(daemon.path("cut.qcow2"), &image[..image.len() / 2]).unwrap();
    let (code, _, stderr) = run(&daemon, &["import", "cut.qcow2", "--name", "cut"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("snapctl: read cut.qcow2: it is truncated"),
        "{stderr}"
    );
    // An image whose format was guessed as qcow2 cannot read other files.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "disk.img",
        "-F",
        "raw",
        "overlay.qcow2",
    ]);
    let (code, _, stderr) = run(&daemon, &["import", "overlay.qcow2", "--name", "overlay"]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("with content in") && stderr.contains("--format qcow2"),
        "{stderr}"
    );
    let (code, _, stderr) = run(
        &daemon,
        &[
            "import",
            "overlay.qcow2",
            "--name",
            "overlay",
            "--format",
            "qcow2",
        ],
    );
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("disk.img\n"),
        "the backing file is named: {stderr}"
    );
    assert_eq!(root("overlay"), root("raw"));

    let (code, _, stderr) = run(
        &daemon,
        &["export", "raw", "out.qcow2", "--format", "qcow2"],
    );
    assert_eq!(code, 0, "{stderr}");
    qemu_img(&["check", "-q", "out.qcow2"]);
    qemu_img(&["convert", "-O", "raw", "out.qcow2", "back.img"]);
    assert!(fs::read(daemon.path("back.img")).unwrap() == plain);

    let without = snapctl(&daemon, &["import", "disk.qcow2", "--name", "b"])
        .env("PATH", "")
        .output()
        .unwrap();
    let (code, _, stderr) = finished(without);
    assert_eq!(code, 1);
    assert!(
        stderr.contains(
            "this needs qemu-img, which is not installed; on Debian: apt install qemu-utils"
        ),
        "{stderr}"
    );
}
