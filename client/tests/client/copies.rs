//! `snapctl copy` as a user runs it.

use varve_proto::v1::{self, CopyState};

use crate::{
    fake::{FakeDaemon, Manners},
    snapctl::{run, succeed},
};

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
         snapctl: copy-00000000000000001 (web) is tried again: lost the connection\n"
    );
    daemon.state().course = vec![step(CopyState::Completed, "")];
    succeed(&daemon, &[&wait[..], &["--quiet"]].concat());
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
