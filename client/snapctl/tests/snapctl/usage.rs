//! The answers of `snapctl` to impossible requests.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
};

use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, parse, run, succeed};

/// Errors of the grammar, of `snapctl` later on, and of the daemon.
#[test]
fn mistakes_of_usage_end_with_2() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    fs::write(daemon.path("empty.pem"), "no certificate").unwrap();
    for (command, says) in [
        ("volume create v1 --size 20T", "at most 16 TiB"),
        ("status --tls-cert x.pem", "--tls-key"),
        (
            "status --tls-ca empty.pem",
            "snapctl: empty.pem: there is no certificate in it\n",
        ),
        (
            "copy create a b --from unix:/x --name c",
            "--name is for one",
        ),
        ("device map s", "volume/NAME"),
        ("snapshot list --limit 0", "1.."),
        ("device map volume/web --block-size 100", "power of two"),
        ("device map volume/web --connections 0", "1 to "),
        ("export web out.img --format qcow3", "qcow3"),
        (
            "remote create eu https://eu:1 --ca empty.pem",
            "snapctl: empty.pem: there is no certificate in it\n",
        ),
    ] {
        if command.starts_with("device map volume") {
            run(&daemon, &["volume", "create", "web", "--size", "1M"]);
        }
        let arguments: Vec<_> = command.split(' ').collect();
        let (code, stdout, stderr) = run(&daemon, &arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{command}: {stderr}");
        assert!(stderr.contains(says), "{command}: {stderr}");
    }
    // A missing file, or one that is no disk, is no mistake of the command line.
    for command in [
        "import nope.img --name a",
        "import . --name a",
        "status --tls-ca nope.pem",
        "remote create eu https://eu:1 --ca nope.pem",
        "remote create eu https://eu:1 --cert nope.pem --key empty.pem",
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        let (code, _, stderr) = run(&daemon, &arguments);
        assert_eq!(code, 1, "{command}: {stderr}");
        assert!(
            stderr.contains("No such file") || stderr.contains("directory"),
            "{stderr}"
        );
    }
}

#[test]
fn with_json_standard_error_holds_one_error_or_nothing() {
    let daemon = FakeDaemon::start(Manners::default());
    fs::write(
        daemon.path("cut.img.gz"),
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b",
    )
    .unwrap();
    let import = ["import", "cut.img.gz", "--name", "a", "-o", "json"];
    let (code, stdout, stderr) = run(&daemon, &import);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    let error = &parse(&stderr)["error"];
    assert_eq!(error["kind"], "file");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("read cut.img.gz: it is cut off: "),
        "{message}"
    );
    // People see a report of the change.
    let (_, _, stderr) = run(&daemon, &import[..4]);
    assert!(
        stderr.starts_with("snapctl: unpacking cut.img.gz"),
        "{stderr}"
    );
    let help = run(&daemon, &["--help"]).1;
    for kind in ["not_found", "out_of_space", "internal"] {
        assert!(help.contains(kind), "{help}");
    }
}

#[test]
fn the_nbd_socket_is_told_from_the_one_for_grpc() {
    let daemon = FakeDaemon::start(Manners::default());
    let listener = UnixListener::bind(daemon.path("nbd.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A client that has gone away gets no greeting.
            let _ = stream.write_all(b"NBDMAGICIHAVEOPT\0\x03");
            // It ends the connection when it gets HTTP/2 in place of flags, if it gets anything.
            let _ = stream.read(&mut [0; 4]);
        }
    });
    let (code, _, stderr) = run(&daemon, &["--endpoint", "unix:nbd.sock", "status"]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("is this the NBD socket?"), "{stderr}");
}

#[test]
fn the_other_kind_of_thing_is_told_with_what_makes_one_of_it() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "base"]);
    succeed(&daemon, &["volume", "create", "web", "--size", "1M"]);
    let of_volume = ": there is a volume \"web\": make a snapshot of it first (snapctl snapshot create web --name NAME)\n";
    let of_snapshot = ": there is a snapshot \"base\": make a volume of it first (snapctl volume create NAME --from base)\n";
    for (command, advice) in [
        ("export web out.img", of_volume),
        ("export volume/web out.img", of_volume),
        ("export --archive web out.varve", of_volume),
        ("snapshot show web", of_volume),
        ("snapshot delete web", of_volume),
        ("volume create v --from web", of_volume),
        ("volume attach base", of_snapshot),
        ("volume delete snapshot/base", of_snapshot),
        ("volume show none", ": no volume none\n"),
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        let (code, _, stderr) = run(&daemon, &arguments);
        assert_eq!(code, 3, "{command}: {stderr}");
        assert!(stderr.ends_with(advice), "{command}: {stderr}");
    }
}

#[test]
fn names_may_have_their_kind_in_front() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    for name in ["base", "snapshot/own"] {
        succeed(&daemon, &["import", "disk.img", "--name", name]);
    }
    for command in [
        "export snapshot/base out.img",
        "snapshot tag snapshot/base a=b",
        "volume create web --from snapshot/base",
        "volume attach volume/web",
        "volume detach volume/web",
        "volume delete volume/web",
    ] {
        succeed(&daemon, &command.split(' ').collect::<Vec<_>>());
    }
    // A snapshot whose own name has the prefix comes first.
    for name in ["snapshot/own", "snapshot/snapshot/own"] {
        let shown = succeed(&daemon, &["snapshot", "show", name]);
        assert!(shown.starts_with("Name     snapshot/own\n"), "{shown}");
    }
}

#[test]
fn several_are_deleted_at_once() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    for name in ["a", "b", "c"] {
        succeed(&daemon, &["import", "disk.img", "--name", name]);
        succeed(&daemon, &["volume", "create", name, "--size", "1M"]);
    }
    for (noun, nouns) in [("snapshot", "snapshots"), ("volume", "volumes")] {
        let said = succeed(&daemon, &[noun, "delete", "a", "b"]);
        assert!(
            said.starts_with("deleted a (") && said.contains("\ndeleted b ("),
            "{said}"
        );
        let (code, stdout, stderr) = run(&daemon, &[noun, "delete", "c", "a"]);
        assert_eq!(code, 3, "{stderr}");
        assert!(stdout.starts_with("deleted c ("), "{stdout}");
        let list = parse(&succeed(&daemon, &[noun, "list", "-o", "json"]));
        assert_eq!(list[nouns], serde_json::json!([]));
    }
}

#[test]
fn a_name_that_promises_another_format_is_remarked() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    for (file, says) in [
        (
            "y.qcow2",
            "snapctl: y.qcow2 is written as a raw image; for a qcow2 image, use --format qcow2\n",
        ),
        (
            "y.vdi",
            "snapctl: y.vdi is written as a raw image; export writes only raw and qcow2\n",
        ),
        ("y.img", ""),
    ] {
        let (code, _, stderr) = run(&daemon, &["export", "a", file]);
        assert_eq!((code, stderr.as_str()), (0, says), "{file}");
    }
    let raw = ["export", "a", "y.qcow2", "--format", "raw", "--force"];
    succeed(&daemon, &raw);
    let import = ["import", "y.img", "--name", "b", "--format", "qcow2"];
    let (code, _, stderr) = run(&daemon, &import);
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(
        stderr,
        "snapctl: import y.img: it does not begin like a qcow2 image; without --format, the format is \
         detected\n"
    );
}
