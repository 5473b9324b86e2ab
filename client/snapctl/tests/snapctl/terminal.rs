//! The output of `snapctl`: with text of any origin, and with or without a reader.

use std::{fs::OpenOptions, process::Stdio};

use varve_fake_daemon::{FakeDaemon, Manners};
use varve_proto::v1;

use crate::commands::{disk, finished, parse, run, snapctl, succeed};

/// Standard errors that take nothing: a full file system, and a pipe that nobody reads.
fn useless() -> [Stdio; 2] {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    [full.into(), writer.into()]
}

#[test]
fn work_goes_on_and_codes_are_right_where_nobody_can_be_told() {
    let daemon = FakeDaemon::start(Manners::default());
    let image = disk(&daemon);
    let code = |arguments: &[&str], stderr: Stdio| {
        let output = snapctl(&daemon, arguments).stderr(stderr).output().unwrap();
        finished(output).0
    };
    for (number, stderr) in useless().into_iter().enumerate() {
        let name = format!("web-{number}");
        assert_eq!(code(&["import", "disk.img", "--name", &name], stderr), 0);
        let out = format!("out-{number}.img");
        let [full, _] = useless();
        assert_eq!(code(&["export", &name, &out], full), 0);
        assert!(std::fs::read(daemon.path(&out)).unwrap() == image, "{out}");
    }
    for output in ["table", "json"] {
        for (arguments, expected) in [
            (vec!["snapshot", "show", "none"], 3),
            (vec!["import", "disk.img", "--name", "web-0"], 4),
            (vec!["status", "--endpoint", "unix:/nowhere"], 5),
        ] {
            for stderr in useless() {
                let arguments = [&arguments[..], &["--output", output]].concat();
                assert_eq!(code(&arguments, stderr), expected, "{arguments:?}");
            }
        }
    }
}

#[test]
fn text_of_a_daemon_does_nothing_to_the_terminal() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "web"]);
    let hostile = "x\u{1b}]0;title\u{7}\nforged  snap-0  completed\u{202e}\u{2028}";
    {
        let mut state = daemon.state();
        let (snapshot, leaves) = state.snapshots["web"].clone();
        let snapshot = v1::Snapshot {
            name: hostile.to_owned(),
            tags: [(hostile.to_owned(), hostile.to_owned())].into(),
            ..snapshot
        };
        state
            .snapshots
            .insert("evil".to_owned(), (snapshot, leaves));
    }
    for arguments in [
        &["snapshot", "list"][..],
        &["snapshot", "show", "evil"],
        &["snapshot", "delete", "evil"],
    ] {
        let (code, stdout, stderr) = run(&daemon, arguments);
        assert_eq!(code, 0, "{stderr}");
        assert!(
            stdout.contains("x\\u{1b}]0;title\\u{7}\\nforged"),
            "{stdout}"
        );
        for shown in [stdout, stderr] {
            assert!(
                !shown.contains(['\u{1b}', '\u{7}', '\u{202e}', '\u{2028}']),
                "{shown:?}"
            );
            assert!(
                !shown.lines().any(|line| line.starts_with("forged")),
                "{shown}"
            );
        }
    }
    // Errors repeat the requested name.
    let missing = "no\u{1b}[2J\nforged";
    let (code, _, stderr) = run(&daemon, &["snapshot", "show", missing]);
    assert_eq!((code, stderr.lines().count()), (3, 1), "{stderr:?}");
    assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
    // An error as JSON has nothing around it.
    let (_, _, stderr) = run(&daemon, &["snapshot", "show", missing, "--output", "json"]);
    assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
    assert_eq!(parse(&stderr)["error"]["kind"], "not_found", "{stderr}");
}
