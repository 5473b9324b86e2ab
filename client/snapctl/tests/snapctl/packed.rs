//! Images in packed files, in an OVA, through a pipe, or in files that are not what they look like.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, finished, run, snapctl, succeed};

fn tool(daemon: &FakeDaemon, program: &str, arguments: &[&str]) {
    let done = Command::new(program)
        .current_dir(daemon.path(""))
        .args(arguments)
        .output();
    let done = done.unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
}

fn root(daemon: &FakeDaemon, name: &str) -> Vec<u8> {
    daemon.state().snapshots[name].0.root.to_vec()
}

/// Imports a file that must be accepted, and compares the snapshot with the disk.
fn imports(daemon: &FakeDaemon, arguments: &[&str]) {
    daemon.state().snapshots.remove("it");
    let mut all = vec!["import"];
    all.extend(arguments);
    all.extend(["--name", "it"]);
    let (code, _, stderr) = run(daemon, &all);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    assert_eq!(root(daemon, "it"), root(daemon, "raw"), "{arguments:?}");
}

/// Imports a file that must be refused with these words.
fn refused(daemon: &FakeDaemon, arguments: &[&str], message: &str) {
    let mut all = vec!["import"];
    all.extend(arguments);
    all.extend(["--name", "refused"]);
    let (code, _, stderr) = run(daemon, &all);
    assert_eq!(code, 1, "{arguments:?}: {stderr}");
    assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    assert!(!daemon.state().snapshots.contains_key("refused"));
}

const PACKERS: [(&str, &str); 4] = [
    ("gzip", "gz"),
    ("xz", "xz"),
    ("zstd", "zst"),
    ("bzip2", "bz2"),
];

#[test]
fn packed_disks_and_images_are_unpacked() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "raw"]);
    tool(
        &daemon,
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "disk.img",
            "disk.qcow2",
        ],
    );
    for (program, extension) in PACKERS {
        for file in ["disk.img", "disk.qcow2"] {
            let packed = format!("{file}.{extension}");
            tool(&daemon, program, &["-k", "-1", file]);
            imports(&daemon, &[&packed]);
            // Under any name.
            fs::rename(daemon.path(&packed), daemon.path("backup")).unwrap();
            imports(&daemon, &["backup"]);
            // Cut off, it is refused.
            let len = fs::metadata(daemon.path("backup")).unwrap().len();
            let cut = File::options().write(true).open(daemon.path("backup"));
            cut.unwrap().set_len(len - 20).unwrap();
            refused(&daemon, &["backup"], "snapctl: read backup: ");
        }
        // Through a pipe.
        tool(&daemon, program, &["-k", "-1", "-f", "disk.qcow2"]);
        let packed = daemon.path(&format!("disk.qcow2.{extension}"));
        daemon.state().snapshots.remove("pipe");
        let mut pipe = Command::new("cat")
            .arg(&packed)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = snapctl(&daemon, &["import", "-", "--name", "pipe"])
            .stdin(pipe.stdout.take().unwrap())
            .output();
        assert!(pipe.wait().unwrap().success());
        let (code, _, stderr) = finished(output.unwrap());
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(root(&daemon, "pipe"), root(&daemon, "raw"));
        // A file that is packed twice is not accepted as a disk.
        tool(&daemon, "gzip", &["-k", "-f", packed.to_str().unwrap()]);
        let twice = format!("disk.qcow2.{extension}.gz");
        refused(&daemon, &[&twice], "packed more than once");
    }
    // `--format raw` means the bytes as they are.
    succeed(
        &daemon,
        &["import", "disk.qcow2.gz", "--name", "gz", "--format", "raw"],
    );
    let len = fs::metadata(daemon.path("disk.qcow2.gz")).unwrap().len();
    assert_eq!(daemon.state().snapshots["gz"].0.size_bytes, len);
}

const OVF: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:id="f1" ovf:href="disk.vmdk"/>
    <File ovf:id="f2" ovf:href="other.img.gz" ovf:compression="gzip"/>
  </References>
  <DiskSection>
    <Disk ovf:diskId="d1" ovf:fileRef="f1"/>
    <Disk ovf:diskId="d2" ovf:fileRef="f2"/>
  </DiskSection>
</Envelope>"#;

#[test]
fn the_disk_of_an_ova_is_taken() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "raw"]);
    tool(
        &daemon,
        "qemu-img",
        &[
            "convert",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            "disk.img",
            "disk.vmdk",
        ],
    );
    fs::copy(daemon.path("disk.img"), daemon.path("other.img")).unwrap();
    tool(&daemon, "gzip", &["-1", "other.img"]);
    fs::write(daemon.path("vm.ovf"), OVF).unwrap();
    let pack = [
        "--format=ustar",
        "-cf",
        "vm.ova",
        "vm.ovf",
        "disk.vmdk",
        "other.img.gz",
    ];
    tool(&daemon, "tar", &pack);
    refused(
        &daemon,
        &["vm.ova"],
        "it has 2 disks: choose one with --disk; 1 is disk.vmdk, 2 is other.img.gz",
    );
    imports(&daemon, &["vm.ova", "--disk", "1"]);
    imports(&daemon, &["vm.ova", "--disk", "2"]);
    refused(&daemon, &["vm.ova", "--disk", "3"], "it has 2 disks");
    refused(&daemon, &["disk.img", "--disk", "1"], "and this is not one");
    // Packed itself, and with one disk.
    let end = OVF.find("    <Disk ovf:diskId=\"d2\"").unwrap();
    let one = format!("{}</DiskSection></Envelope>", &OVF[..end]);
    fs::write(daemon.path("vm.ovf"), one).unwrap();
    let pack = [
        "--format=pax",
        "-czf",
        "vm.ova.gz",
        "./vm.ovf",
        "./disk.vmdk",
    ];
    tool(&daemon, "tar", &pack);
    imports(&daemon, &["vm.ova.gz"]);
    // Cut off within the disk.
    let len = fs::metadata(daemon.path("disk.vmdk")).unwrap().len();
    let ova = File::options().write(true).open(daemon.path("vm.ova"));
    ova.unwrap().set_len(4096 + len / 2).unwrap();
    for disk in ["1", "2"] {
        refused(&daemon, &["vm.ova", "--disk", disk], "snapctl: read ");
    }
}

#[test]
fn what_is_not_read_is_not_taken_for_a_disk() {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = disk(&daemon);
    let file = |name: &str, head: &[u8]| {
        let mut bytes = plain[..65_536].to_vec();
        bytes[..head.len()].copy_from_slice(head);
        fs::write(daemon.path(name), bytes).unwrap();
    };
    for (head, what) in [
        (&b"PK\x03\x04"[..], "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"\x04\x22\x4d\x18", "a file packed by lz4"),
        (b"VMA\0", "a VMA archive"),
        (b"QFI\xfb\0\0\0\x01", "a qcow image of version 1"),
    ] {
        file("it", head);
        let message = format!("it looks like {what}");
        refused(&daemon, &["it"], &message);
        refused(&daemon, &["it"], "--format raw if it is a raw disk");
        daemon.state().snapshots.remove("it");
        succeed(
            &daemon,
            &["import", "it", "--name", "it", "--format", "raw"],
        );
    }
    // The name of a file counts, too.
    for name in ["it.vhd", "it.qcow2", "it.vmdk", "it.vdi.gz"] {
        file("it", b"");
        match name.strip_suffix(".gz") {
            Some(stem) => {
                fs::rename(daemon.path("it"), daemon.path(stem)).unwrap();
                tool(&daemon, "gzip", &[stem]);
            }
            None => fs::rename(daemon.path("it"), daemon.path(name)).unwrap(),
        }
        refused(&daemon, &[name], "but its content is not");
    }
    // Disks that begin like other formats.
    for head in [&b"LUKS\xba\xbe\0\x02"[..], b"XFSB", b"\xeb\x63\x90"] {
        file("it", head);
        daemon.state().snapshots.remove("it");
        succeed(&daemon, &["import", "it", "--name", "it"]);
    }
}

#[test]
fn a_pipe_by_name_is_read_as_standard_input_is() {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "raw"]);
    tool(&daemon, "mkfifo", &["fifo"]);
    let path = daemon.path("fifo");
    let writer = std::thread::spawn(move || {
        let mut fifo = File::options().write(true).open(path).unwrap();
        fifo.write_all(&plain).unwrap();
    });
    imports(&daemon, &["fifo"]);
    writer.join().unwrap();
    let script = r#""$0" import <(cat disk.img) --name substituted"#;
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_snapctl")])
        .env("VARVE_ENDPOINT", daemon.endpoint.to_string())
        .current_dir(daemon.path(""))
        .output();
    let (code, _, stderr) = finished(output.unwrap());
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(root(&daemon, "substituted"), root(&daemon, "raw"));
}

/// An image may name any file of the machine.
#[test]
fn an_image_reads_other_files_only_where_it_may() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "raw"]);
    let path = |name: &str| daemon.path(name).to_str().unwrap().to_owned();
    fs::create_dir(daemon.path("in")).unwrap();
    fs::create_dir(daemon.path("out")).unwrap();
    fs::copy(daemon.path("disk.img"), daemon.path("out/disk.img")).unwrap();
    fs::copy(daemon.path("disk.img"), daemon.path("in/disk.img")).unwrap();
    let overlay = |name: &str, base: &str| {
        let name = format!("in/{name}");
        let create = [
            "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "raw", &name, "20M",
        ];
        tool(&daemon, "qemu-img", &create);
        name
    };
    let relative = overlay("relative.qcow2", "disk.img");
    let outside = overlay("outside.qcow2", &path("out/disk.img"));
    let upward = overlay("upward.qcow2", "../out/disk.img");
    symlink(daemon.path("out/disk.img"), daemon.path("in/link")).unwrap();
    let linked = overlay("linked.qcow2", "link");
    for image in [&relative, &outside, &upward, &linked] {
        refused(&daemon, &[image], "use --format qcow2");
    }
    imports(&daemon, &[&relative, "--format", "qcow2"]);
    for image in [&outside, &upward, &linked] {
        let message = "which is not below its own directory; allow it with --allow-dir ";
        refused(&daemon, &[image, "--format", "qcow2"], message);
        let allowed = [image.as_str(), "--format", "qcow2", "--allow-dir", "out"];
        imports(&daemon, &allowed);
    }
    // A target that is not a file is never opened.
    let remote = overlay("remote.qcow2", "nbd://127.0.0.1:1/x");
    refused(
        &daemon,
        &[&remote, "--format", "qcow2", "--allow-dir", "/"],
        "which is not a file",
    );
    // The content of an image may be in other files too.
    let vmdk = |target: &str| {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
             RW 40960 FLAT \"{target}\" 0\n"
        );
        fs::write(daemon.path("in/it.vmdk"), text).unwrap();
    };
    vmdk("disk.img");
    refused(&daemon, &["in/it.vmdk"], "use --format vmdk");
    imports(&daemon, &["in/it.vmdk", "--format", "vmdk"]);
    for target in ["../out/disk.img", &path("out/disk.img"), "link"] {
        vmdk(target);
        refused(&daemon, &["in/it.vmdk", "--format", "vmdk"], "--allow-dir");
    }
    let data = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=out/a.data",
        "in/data.qcow2",
        "1M",
    ];
    tool(&daemon, "qemu-img", &data);
    refused(
        &daemon,
        &["in/data.qcow2", "--format", "qcow2"],
        "open in/out/a.data",
    );
    // A remark names the files that are read.
    let (_, _, stderr) = run(
        &daemon,
        &["import", &relative, "--name", "told", "--format", "qcow2"],
    );
    let base = fs::canonicalize(daemon.path("in/disk.img")).unwrap();
    let told = format!(
        "snapctl: {relative} is read together with {}\n",
        base.display()
    );
    assert!(stderr.contains(&told), "{stderr}");
    assert!(Path::new(&base).is_absolute());
}
