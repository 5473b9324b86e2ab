//! The spelling of `snapctl`, and the width of its output.

use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, finished, run, snapctl, succeed};

/// The old syntax of scripts still works.
#[test]
fn old_spellings_stay() {
    let daemon = FakeDaemon::start(Manners::default());
    for (old, new) in [
        (
            "copy web --from unix:/x --limit 1M",
            "copy create web --from unix:/x --limit 1M",
        ),
        (
            "remote add eu https://eu:7420",
            "remote create eu https://eu:7420",
        ),
        ("remote list", "remote ls"),
        ("mapped", "device list"),
        ("volume list", "volume ls"),
        ("snapshot list", "snapshot ls"),
        ("copy list", "copy ls"),
        ("remote remove eu", "remote rm eu"),
    ] {
        let answer = |command: &str| {
            daemon.state().copies.clear();
            if command.ends_with(" eu") {
                succeed(&daemon, &["remote", "create", "eu", "https://eu:7420"]);
            }
            let mut arguments: Vec<_> = command.split(' ').collect();
            arguments.push("--quiet");
            succeed(&daemon, &arguments)
        };
        assert_eq!(answer(old), answer(new), "{old}");
    }
    // These end otherwise where the kernel has such devices, but in the same way.
    for (old, new) in [
        (["map", "volume/none"], ["device", "map", "volume/none"]),
        (["unmap", "x"], ["device", "unmap", "x"]),
    ] {
        let ended = run(&daemon, &old);
        assert!(ended.0 != 0 && ended.0 != 2, "{ended:?}");
        assert_eq!(ended, run(&daemon, &new), "{old:?}");
    }
}

#[test]
fn help_begins_with_what_a_command_has_of_its_own() {
    let daemon = FakeDaemon::start(Manners::default());
    let help = succeed(&daemon, &["snapshot", "list", "--help"]);
    let own = help.find("--name-prefix").unwrap();
    let global = help.find("Global options:").unwrap();
    assert!(
        own < global && global < help.find("--endpoint").unwrap(),
        "{help}"
    );
    // The short help leaves out rarely used options.
    let short = succeed(&daemon, &["snapshot", "list", "-h"]);
    assert!(
        !short.contains("--tls-key") && short.len() < help.len(),
        "{short}"
    );
    let top = succeed(&daemon, &["--help"]);
    for old in ["mapped", "unmap"] {
        assert!(!top.contains(old), "{top}");
    }
    let copy = succeed(&daemon, &["copy", "--help"]);
    assert!(
        copy.contains("create") && !copy.contains("--wait"),
        "{copy}"
    );
}

/// With names of 13 letters, as people give them.
#[test]
fn tables_fit_a_terminal() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    let name = "debian/monday";
    succeed(
        &daemon,
        &["import", "disk.img", "--name", name, "--tag", "host=web-1"],
    );
    succeed(
        &daemon,
        &[
            "volume",
            "create",
            name,
            "--size",
            "1000M",
            "--tag",
            "host=web-1",
        ],
    );
    succeed(&daemon, &["volume", "attach", name]);
    succeed(
        &daemon,
        &[
            "copy",
            "create",
            name,
            "--from",
            "https://eu.example.com:7420",
        ],
    );
    for noun in ["snapshot", "volume", "copy"] {
        let narrow = succeed(&daemon, &[noun, "list"]);
        let wide = succeed(&daemon, &[noun, "list", "--output", "wide"]);
        let width = |text: &str| text.lines().map(str::len).max().unwrap();
        assert!(width(&narrow) <= 80 && narrow.contains(name), "{narrow}");
        assert!(width(&wide) > width(&narrow), "{wide}");
        assert_eq!(narrow.lines().count(), 2, "{narrow}");
    }
}

#[test]
fn help_is_as_wide_as_the_terminal_and_no_wider_than_is_read_easily() {
    let daemon = FakeDaemon::start(Manners::default());
    for command in [
        "",
        "import",
        "export",
        "archive",
        "snapshot create",
        "volume clone",
        "copy create",
        "remote create",
        "account create",
        "account token create",
        "account access-key create",
        "device map",
        "status",
    ] {
        for (columns, most) in [("80", 80), ("300", 100)] {
            let mut arguments: Vec<_> = command.split_whitespace().collect();
            arguments.push("--help");
            let output = snapctl(&daemon, &arguments)
                .env("COLUMNS", columns)
                .output();
            let (code, help, _) = finished(output.unwrap());
            assert_eq!(code, 0);
            let widest = help.lines().map(|line| line.chars().count()).max();
            assert!(widest.unwrap() <= most, "{help}");
        }
    }
}
