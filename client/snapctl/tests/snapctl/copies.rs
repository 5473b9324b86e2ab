//! `snapctl copy` as a user runs it.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use varve_fake_daemon::{FakeDaemon, Manners};
use varve_proto::v1::{self, CopyState};

use crate::commands::{finished, run, snapctl, succeed};

fn step(state: CopyState, last_error: &str) -> v1::Copy {
    v1::Copy {
        state: state.into(),
        last_error: last_error.to_owned(),
        ..v1::Copy::default()
    }
}

#[test]
fn whoever_waits_for_a_copy_is_told_why() {
    let daemon = FakeDaemon::start(Manners::default());
    daemon.state().course = vec![
        step(CopyState::Running, ""),
        step(CopyState::Waiting, "lost the connection"),
        step(CopyState::Waiting, "lost the connection"),
        step(CopyState::Running, "lost the connection"),
        step(CopyState::Completed, "lost the connection"),
    ];
    let wait = ["copy", "web", "--from", "unix:/x", "--wait"];
    let (code, stdout, stderr) = run(&daemon, &wait);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("completed"), "{stdout}");
    assert_eq!(
        stderr,
        "snapctl: copy-00000000000000001 (web) waits for its turn\n\
         snapctl: copy-00000000000000001 (web) will be retried: lost the connection\n"
    );
    daemon.state().course = vec![step(CopyState::Completed, "")];
    succeed(&daemon, &[&wait[..], &["--quiet"]].concat());
}

/// The exit code is that of the error, not of the copy.
#[test]
fn a_copy_that_fails_ends_as_what_failed_it_would() {
    let daemon = FakeDaemon::start(Manners::default());
    // Codes of gRPC: not found, data loss, resource exhausted, failed precondition, internal; and a
    // daemon that sends none.
    let ends = [(5, 3), (15, 6), (8, 7), (9, 8), (13, 1), (0, 8)];
    for (code, expected) in ends {
        daemon.state().course = vec![v1::Copy {
            last_error_code: code,
            ..step(CopyState::Failed, "it is so")
        }];
        let (exit_code, _, stderr) = run(&daemon, &["copy", "web", "--from", "unix:/x", "--wait"]);
        assert_eq!(exit_code, expected, "{code}: {stderr}");
        assert!(
            stderr.contains("copy web from unix:/x: it is so"),
            "{stderr}"
        );
    }
}

#[test]
fn copies_that_wait_for_their_turn_are_shown_as_queued() {
    let daemon = FakeDaemon::start(Manners::default());
    succeed(&daemon, &["copy", "web", "--from", "unix:/x"]);
    for arguments in [
        &["copy", "list"][..],
        &["copy", "show", "copy-00000000000000001"],
    ] {
        let shown = succeed(&daemon, arguments);
        assert!(shown.contains("queued"), "{shown}");
    }
}

#[test]
fn an_interrupted_wait_says_that_the_copy_goes_on() {
    let daemon = FakeDaemon::start(Manners::default());
    daemon.state().course = vec![step(CopyState::Running, "")];
    let arguments = ["copy", "create", "a", "--from", "unix:/x", "--wait"];
    let child = snapctl(&daemon, &[&arguments[..], &["--quiet"]].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // snapctl waits once it has asked for the copy's state.
    while daemon
        .state()
        .copies
        .values()
        .all(|script| script.len() > 1)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, _, stderr) = finished(child.wait_with_output().unwrap());
    assert_eq!(
        (code, stderr.as_str()),
        (
            130,
            "snapctl: wait for copy-00000000000000001: interrupted; the copy continues, and \
             `snapctl copy cancel copy-00000000000000001` ends it\n"
        )
    );
}
