//! `snapctl` as a user runs it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    process::{Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tonic::Status;
use varve_client::{FileSink, RootId, Sink};
use varve_fake_daemon::{FakeDaemon, Manners};

pub(crate) fn snapctl(daemon: &FakeDaemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapctl"));
    command
        .env_remove("VARVE_LOG")
        .env_remove("VARVE_PROFILE")
        .env_remove("VARVE_TOKEN_FILE")
        // Not the settings of whoever runs the tests.
        .env("XDG_CONFIG_HOME", daemon.path("config"))
        .env("VARVE_ENDPOINT", daemon.endpoint.to_string())
        .current_dir(daemon.path(""))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs to the end. Returns exit code, standard output and standard error.
pub(crate) fn run(daemon: &FakeDaemon, arguments: &[&str]) -> (i32, String, String) {
    finished(snapctl(daemon, arguments).output().unwrap())
}

pub(crate) fn finished(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs a command that must succeed and print nothing on standard error.
pub(crate) fn succeed(daemon: &FakeDaemon, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = run(daemon, arguments);
    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
    stdout
}

pub(crate) fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A 20 MiB file called disk.img with some data, and its bytes.
pub(crate) fn disk(daemon: &FakeDaemon) -> Vec<u8> {
    let path = daemon.path("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(20 << 20).unwrap();
    let data: Vec<u8> = (0..200_000_u32)
        .flat_map(|number| (number * 77).to_le_bytes())
        .collect();
    file.write_all_at(&data, 4096).unwrap();
    file.write_all_at(&data, 12 << 20).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn json_is_stable() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let import = [
        "import", "disk.img", "--name", "web-1", "--tag", "host=a", "--tag", "empty=", "--output",
        "json",
    ];
    let mut report = parse(&succeed(&daemon, &import));
    let seconds = report["seconds"].as_f64().unwrap();
    let rate = report["bytes_per_second"].as_u64().unwrap();
    assert!(
        seconds > 0.0 && (rate as f64 - 1_605_632.0 / seconds).abs() < 2.0,
        "{seconds} {rate}"
    );
    report["seconds"] = json!(0);
    report["bytes_per_second"] = json!(0);
    let root = RootId::try_from(&daemon.state().snapshots["web-1"].0.root[..])
        .unwrap()
        .to_string();
    let snapshot = json!({
        "id": "snap-00000000000000001",
        "name": "web-1",
        "state": "completed",
        "size_bytes": 20 << 20,
        "data_bytes": 1_605_632,
        "root": root,
        "created_at": "2023-11-14T22:13:20.005Z",
        "tags": { "empty": "", "host": "a" },
        "new_bytes": 802_816,
        "stored_bytes": 267_605,
        "volume_id": null,
        "volume_name": null,
        "parent": null,
        "progress": null,
        "failure": null,
        "owner": "000000000000",
        "shared_accounts": [],
        "shared_with_everybody": false,
    });
    assert_eq!(
        report,
        json!({
            "snapshot": snapshot,
            "size_bytes": 20 << 20,
            "data_bytes": 1_605_632,
            "new_bytes": 802_816,
            "stored_bytes": 267_605,
            "sent_bytes": 802_816,
            "root": root,
            "seconds": 0,
            "bytes_per_second": 0,
        })
    );
    assert_eq!(
        parse(&succeed(
            &daemon,
            &["snapshot", "show", "web-1", "--output", "json"]
        )),
        snapshot
    );
    assert_eq!(
        parse(&succeed(&daemon, &["--output=json", "snapshot", "list"])),
        json!({ "snapshots": [snapshot] })
    );

    let export = ["export", "web-1", "out.img", "--output", "json"];
    let report = parse(&succeed(&daemon, &export));
    assert_eq!(
        (&report["snapshot"], &report["data_bytes"]),
        (&snapshot, &json!(1_605_632))
    );

    assert_eq!(
        succeed(&daemon, &["--output=json", "snapshot", "diff", "a", "b"]),
        "{\"base\":\"a\",\"target\":\"b\",\"extents\":[\n\
         {\"offset_bytes\":0,\"length_bytes\":4096,\"kind\":\"changed\"},\n\
         {\"offset_bytes\":8192,\"length_bytes\":4096,\"kind\":\"added\"},\n\
         {\"offset_bytes\":16384,\"length_bytes\":4096,\"kind\":\"removed\"}],\
         \"changed_bytes\":4096,\"added_bytes\":4096,\"removed_bytes\":4096}\n"
    );
    assert_eq!(
        parse(&succeed(
            &daemon,
            &["--output=json", "snapshot", "diff", "a", "b", "--summary"]
        )),
        json!({ "base": "a", "target": "b", "changed_bytes": 4096, "added_bytes": 4096, "removed_bytes": 4096 })
    );
    assert_eq!(
        parse(&succeed(&daemon, &["--output=json", "status"])),
        json!({
            "version": "1.2.3", "store_id": "5eed", "format_version": 1, "chunker_version": 1, "data_dir": "/data",
            "started_at": "2023-11-14T22:13:20Z", "snapshots": 2, "volumes": 4, "logical_bytes": 8_u64 << 30, "chunks": 3,
            "chunk_bytes": 300 << 10, "stored_bytes": 100 << 10, "packs": 1, "uploads": 0, "nbd_connections": 0,
            "images": 0,
            "io_engine": "io_uring", "compression": "zstd", "free_bytes": 1_u64 << 40,
            "read_only_reason": "fdatasync failed", "nbd_uris": ["nbd+unix:///?socket=/data/nbd.sock"],
            "dead_bytes": null, "dedupe_ratio": f64::from(8 << 20) / 300.0, "compression_ratio": 3.0, "gc": null,
        })
    );

    let (code, stdout, stderr) = run(
        &daemon,
        &["--output=json", "--quiet", "snapshot", "verify", "web-1"],
    );
    assert_eq!((code, stderr.as_str()), (6, ""));
    assert_eq!(
        parse(&stdout),
        json!({
            "snapshot": "web-1", "ok": false, "checked": 2, "checked_bytes": 0, "violation_count": 1,
            "violations": [{ "message": "chunk 00 in pack 1", "offset_bytes": 4096 }],
        })
    );

    let (code, _, stderr) = run(&daemon, &["--output=json", "snapshot", "show", "none"]);
    assert_eq!(code, 3);
    assert_eq!(
        parse(&stderr),
        json!({ "error": { "kind": "not_found", "message": "get snapshot none: no snapshot none" } })
    );
}

#[test]
fn tables_are_for_people() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let text = succeed(
        &daemon,
        &["import", "disk.img", "--name", "web-1", "--tag", "host=a"],
    );
    assert!(text.starts_with("Snapshot  web-1 (snap-00000000000000001)\nSize      20.0 MiB\nData      1.5 MiB\nNew       784.0 KiB\nStored    261.3 KiB\nRoot      "), "{text}");
    assert_eq!(
        succeed(&daemon, &["snapshot", "list"]),
        "NAME   ID                      STATE          SIZE     DATA\n\
         web-1  snap-00000000000000001  completed  20.0 MiB  1.5 MiB\n"
    );
    assert_eq!(
        succeed(&daemon, &["snapshot", "list", "-o", "wide"]),
        "NAME   ID                      STATE          SIZE     DATA        NEW  CREATED               TAGS\n\
         web-1  snap-00000000000000001  completed  20.0 MiB  1.5 MiB  784.0 KiB  2023-11-14T22:13:20Z  host=a\n"
    );
    assert_eq!(
        succeed(&daemon, &["snapshot", "diff", "a", "b"]),
        "          OFFSET           LENGTH  KIND\n               0             4096  changed\n            \
         8192             4096  added\n           16384             4096  removed\n\nChanged  4.0 KiB\nAdded    4.0 KiB\n\
         Removed  4.0 KiB\n"
    );
    assert!(succeed(&daemon, &["status"]).contains("READ-ONLY        fdatasync failed\n"));
    let tagged = succeed(
        &daemon,
        &["snapshot", "tag", "web-1", "a=b=c", "--remove", "host"],
    );
    assert!(
        tagged.ends_with("Tag      a=b=c\n") && !tagged.contains("host"),
        "{tagged}"
    );
    assert_eq!(
        succeed(&daemon, &["snapshot", "delete", "web-1"]),
        "deleted web-1 (snap-00000000000000001)\n"
    );
    assert_eq!(succeed(&daemon, &["snapshot", "list"]), "no snapshots\n");
    for (noun, none) in [
        ("volume", "volumes"),
        ("copy", "copies"),
        ("remote", "remotes"),
    ] {
        let list = [noun, "list"];
        assert_eq!(succeed(&daemon, &list), format!("no {none}\n"));
        let json = succeed(&daemon, &[&list[..], &["--output", "json"]].concat());
        assert_eq!(parse(&json)[none], json!([]), "{json}");
    }
}

#[test]
fn exit_codes_and_messages_tell_what_happened() {
    let full = Status::resource_exhausted("no space left in the store");
    let daemon = FakeDaemon::start(Manners {
        refuse_after: Some((10, full)),
        ..Manners::default()
    });
    let expect = |arguments: &[&str], code, message: &str| {
        let (found, stdout, stderr) = run(&daemon, arguments);
        assert_eq!(
            (found, stdout.as_str()),
            (code, ""),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    };
    expect(
        &["import", "none.img", "--name", "a"],
        1,
        "snapctl: open none.img: No such file or directory\n",
    );
    fs::write(daemon.path("empty.img"), "").unwrap();
    expect(
        &["import", "empty.img", "--name", "a"],
        1,
        "snapctl: open empty.img: is empty\n",
    );
    expect(
        &["import", ".", "--name", "a"],
        1,
        "snapctl: open .: is a directory, not a disk image\n",
    );
    expect(&["import", "x"], 2, "--name <NAME>");
    expect(
        &["import", "x", "--name", "a", "--tag", "novalue"],
        2,
        "write KEY=VALUE",
    );
    expect(
        &["--endpoint", "tcp:1", "status"],
        2,
        "write unix:PATH, http://HOST:PORT or https://HOST:PORT",
    );
    expect(
        &["snapshot", "show", "none"],
        3,
        "snapctl: get snapshot none: no snapshot none\n",
    );
    expect(
        &["export", "none", "out.img"],
        3,
        "snapctl: export none to out.img: no snapshot none\n",
    );
    expect(
        &["--endpoint", "unix:none.sock", "status"],
        5,
        "snapctl: connect to unix:none.sock: No such file or directory",
    );
    disk(&daemon);
    expect(
        &["export", "none", "disk.img"],
        4,
        "snapctl: write disk.img: exists already; --force overwrites it\n",
    );
    expect(
        &["import", "disk.img", "--name", "a"],
        7,
        "snapctl: import disk.img as a: no space left in the store\n",
    );
    assert!(!daemon.path("out.img").exists());
    assert_eq!(daemon.state().aborted, 1);
}

#[test]
fn without_an_endpoint_the_default_is_named_and_how_to_change_it() {
    let daemon = FakeDaemon::start(Manners::default());
    let mut command = snapctl(&daemon, &["status"]);
    let (code, _, stderr) = finished(command.env_remove("VARVE_ENDPOINT").output().unwrap());
    assert_eq!(code, 5);
    assert!(
        stderr.starts_with("snapctl: connect to unix:/run/varve/grpc.sock: "),
        "{stderr}"
    );
    assert!(
        stderr.ends_with(
            "is varved running there? When it starts, it prints a line \
             `export VARVE_ENDPOINT=...`: use that line, or --endpoint\n"
        ),
        "{stderr}"
    );
}

#[test]
fn a_name_that_is_taken_is_exit_code_4() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    assert_eq!(run(&daemon, &["import", "disk.img", "--name", "a"]).0, 4);
}

#[test]
fn standard_input_and_output_are_volumes_too() {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = disk(&daemon);
    // A pipe.
    let mut child = snapctl(&daemon, &["import", "-", "--name", "pipe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&plain).unwrap();
    let (code, _, stderr) = finished(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("copying standard input to"), "{stderr}");
    // A file is not copied.
    let file = File::open(daemon.path("disk.img")).unwrap();
    let (code, _, stderr) = finished(
        snapctl(&daemon, &["import", "-", "--name", "file"])
            .stdin(file)
            .output()
            .unwrap(),
    );
    assert_eq!((code, stderr.as_str()), (0, ""));

    for name in ["pipe", "file"] {
        let output = snapctl(&daemon, &["export", name, "-"]).output().unwrap();
        assert!(output.stdout == plain);
    }
    let (code, _, stderr) = run(&daemon, &["import", "-", "--name", "none"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.ends_with("snapctl: open standard input: is empty\n"),
        "{stderr}"
    );
}

#[test]
fn a_reader_that_goes_away_ends_the_export_in_silence() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    let mut child = snapctl(&daemon, &["export", "a", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let (code, _, stderr) = finished(child.wait_with_output().unwrap());
    assert_eq!((code, stderr.as_str()), (141, ""));
}

#[test]
fn an_interrupted_import_is_aborted() {
    let manners = Manners {
        delay: Duration::from_secs(60),
        ..Manners::default()
    };
    let daemon = FakeDaemon::start(manners);
    disk(&daemon);
    let child = snapctl(&daemon, &["import", "disk.img", "--name", "a"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while daemon.state().asked == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, _, stderr) = finished(child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{stderr}");
    assert_eq!(
        stderr,
        "snapctl: import disk.img as a: it was cancelled; nothing is visible\n"
    );
    let state = daemon.state();
    assert_eq!((state.aborted, state.snapshots.len()), (1, 0));
}

#[test]
fn an_export_replaces_a_file_only_by_force_and_stays_sparse() {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    fs::write(daemon.path("out.img"), "mine").unwrap();
    assert_eq!(run(&daemon, &["export", "a", "out.img"]).0, 4);
    succeed(&daemon, &["export", "a", "out.img", "--force"]);
    assert!(fs::read(daemon.path("out.img")).unwrap() == plain);
    assert!(fs::metadata(daemon.path("out.img")).unwrap().blocks() * 512 < 3 << 20);
}

#[test]
fn completions_are_printed() {
    let daemon = FakeDaemon::start(Manners::default());
    assert!(succeed(&daemon, &["completions", "bash"]).contains("_snapctl()"));
}

#[test]
fn a_tag_that_is_given_twice_is_refused() {
    let daemon = FakeDaemon::start(Manners::default());
    for command in [
        "import none.img --name x",
        "snapshot create v --name x",
        "snapshot list",
        "snapshot tag x",
        "volume create x --size 1M",
        "volume clone x --name y",
        "volume list",
        "volume tag x",
        "copy x --from unix:/x",
    ] {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(if command.contains(" tag ") {
            vec!["a=1", "b=1", "a=2"]
        } else {
            vec!["--tag", "a=1", "--tag", "b=1", "--tag", "a=2"]
        });
        let (code, stdout, stderr) = run(&daemon, &arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{command}: {stderr}");
        let why = "the tag a is given more than once";
        assert!(stderr.contains(why), "{command}: {stderr}");
    }
}

#[test]
fn what_goes_wrong_with_a_temporary_file_is_said_of_that() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let sink = FileSink::scratch(&full, varve_client::scratch_name()).unwrap();
    let name = sink.name();
    assert!(
        name.starts_with("a temporary file in ") && name.ends_with(" (TMPDIR sets another place)"),
        "{name}"
    );
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    let client = daemon.client();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime
        .block_on(async { client.await.download("a").run(sink).await })
        .unwrap_err();
    assert!(error.to_string().contains(&name), "{error}");
}

/// An invalid endpoint fails only commands that use it.
#[test]
fn a_wrong_endpoint_does_not_stop_what_needs_none() {
    let daemon = FakeDaemon::start(Manners::default());
    let garbage = |arguments: &[&str]| {
        let mut command = snapctl(&daemon, arguments);
        finished(command.env("VARVE_ENDPOINT", "garbage").output().unwrap())
    };
    for arguments in [
        &["completions", "bash"][..],
        &["device", "list"],
        &["--help"],
        &["snapshot", "list", "--help"],
    ] {
        let (code, _, stderr) = garbage(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
    }
    for verb in ["show", "verify"] {
        let (code, _, stderr) = garbage(&["archive", verb, "none"]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.starts_with("snapctl: open none: "), "{stderr}");
    }
    let (code, stdout, stderr) = garbage(&["snapshot", "list"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(
        stderr,
        "snapctl: endpoint \"garbage\": write unix:PATH, http://HOST:PORT or https://HOST:PORT\n"
    );
}

#[test]
fn every_answer_is_json_where_that_is_asked_for() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let copy = "copy-00000000000000001";
    for (command, field, value) in [
        ("import disk.img --name a", "size_bytes", json!(20 << 20)),
        ("snapshot tag a x=1", "tags", json!({ "x": "1" })),
        ("snapshot delete a", "name", json!("a")),
        ("volume create v --size 1M", "size_bytes", json!(1 << 20)),
        ("volume tag v x=1", "tags", json!({ "x": "1" })),
        ("volume resize v 2M", "size_bytes", json!(2 << 20)),
        ("volume delete v", "name", json!("v")),
        ("copy create web --from unix:/x", "id", json!(copy)),
        ("copy show copy-00000000000000001", "state", json!("queued")),
        (
            "copy limit copy-00000000000000001 1M",
            "limit_bytes_per_second",
            json!(1 << 20),
        ),
        (
            "copy cancel copy-00000000000000001",
            "state",
            json!("cancelled"),
        ),
        (
            "copy estimate web --from unix:/x",
            "missing_chunks",
            json!(3),
        ),
        ("remote create eu https://eu:7420", "name", json!("eu")),
        ("remote show eu", "endpoint", json!("https://eu:7420")),
        ("remote delete eu", "name", json!("eu")),
    ] {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(["--quiet", "--output", "json"]);
        let answer = parse(&succeed(&daemon, &arguments));
        assert_eq!(answer[field], value, "{command}: {answer}");
    }
    for command in ["snapshot show", "copy create x", "snapshot list --none"] {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(["--output", "json"]);
        let (code, stdout, stderr) = run(&daemon, &arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{command}");
        assert_eq!(parse(&stderr)["error"]["kind"], "invalid", "{stderr}");
    }
}

/// A peer that accepts connections and speaks another protocol, or hangs up.
#[test]
fn a_connection_that_fails_says_what_to_do() {
    let daemon = FakeDaemon::start(Manners::default());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 16];
            let _ = stream.read(&mut asked);
            // Answers TLS clients with another protocol, and other clients with TLS.
            let answer: &[u8] = match asked[0] {
                0x16 => b"HTTP/1.1 400 Bad Request\r\n\r\n",
                _ => b"\x15\x03\x03\0\x02\x02\x32",
            };
            let _ = stream.write_all(answer);
        }
    });
    for (scheme, question) in [
        ("http", "does it want https?"),
        ("https", "does it want http?"),
    ] {
        let endpoint = format!("{scheme}://127.0.0.1:{port}");
        let (code, _, stderr) = run(&daemon, &["status", "--endpoint", &endpoint]);
        assert_eq!(code, 5, "{stderr}");
        assert!(stderr.contains(question), "{stderr}");
    }
}
