//! `snapctl snapshot delete`: by name and by filter, and its report on each snapshot.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::SystemTime,
};

use serde_json::json;
use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{finished, parse, run, succeed};

/// Snapshots of 1970 with these names, all with the tag `host=a`.
fn daemon_with(names: &[&str]) -> FakeDaemon {
    let daemon = FakeDaemon::start(Manners::default());
    plant(&daemon, names);
    daemon
}

fn plant(daemon: &FakeDaemon, names: &[&str]) {
    for name in names {
        daemon.plant(name, 4096, &[]);
        let mut state = daemon.state();
        let (snapshot, _) = state.snapshots.get_mut(*name).unwrap();
        snapshot.tags = [("host".to_owned(), "a".to_owned())].into();
    }
}

fn names(daemon: &FakeDaemon) -> Vec<String> {
    daemon.state().snapshots.keys().cloned().collect()
}

#[test]
fn filters_select_and_names_are_narrowed_by_them() {
    let daemon = daemon_with(&["bare", "new", "old", "older"]);
    {
        let snapshots = &mut daemon.state().snapshots;
        snapshots.get_mut("bare").unwrap().0.tags.clear();
        snapshots.get_mut("new").unwrap().0.created_at = Some(SystemTime::now().into());
    }
    for (filters, matching) in [
        (&["--older-than", "30d"][..], &["bare", "old", "older"][..]),
        (&["--tag", "host=a"], &["new", "old", "older"]),
        (
            &["--tag", "host=a", "--older-than", "1h"],
            &["old", "older"],
        ),
        (&["--tag", "host=b"], &[]),
        (&["old", "new", "--older-than", "2w"], &["old"]),
        (&["snap-old", "bare", "--tag", "host=a"], &["old"]),
        (&["old", "snap-old"], &["old"]),
    ] {
        let dry_run = [&["snapshot", "delete", "--dry-run"], filters].concat();
        let (code, stdout, _) = run(&daemon, &dry_run);
        let mut said: String = matching
            .iter()
            .map(|name| format!("would delete {name} (snap-{name})\n"))
            .collect();
        if said.is_empty() {
            "no snapshots\n".clone_into(&mut said);
        } else {
            let count = matching.len();
            said.push_str(&format!(
                "{}.0 MiB would become dead, and the next collection would return {}.0 MiB\n",
                3 * count,
                2 * count
            ));
        }
        assert_eq!((code, stdout), (0, said), "{filters:?}");
    }
    assert_eq!(names(&daemon), ["bare", "new", "old", "older"]);
    assert_eq!(daemon.state().deletions, 0);

    let narrowed = ["snapshot", "rm", "old", "new", "--older-than", "30d"];
    let (code, stdout, stderr) = run(&daemon, &narrowed);
    assert_eq!((code, stdout.as_str()), (0, "deleted old (snap-old)\n"));
    assert_eq!(stderr, "snapctl: new does not match\n");
    let filter = ["snapshot", "rm", "--older-than", "30d", "--yes"];
    let said = succeed(&daemon, &filter);
    assert_eq!(
        said,
        "deleted bare (snap-bare)\ndeleted older (snap-older)\n"
    );
    assert_eq!(names(&daemon), ["new"]);
}

#[test]
fn filters_alone_need_a_yes() {
    let daemon = daemon_with(&["a", "b"]);
    let filter = ["snapshot", "delete", "--tag", "host=a"];
    let (code, stdout, stderr) = run(&daemon, &filter);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(
        stderr.contains("--dry-run") && stderr.contains("--yes"),
        "{stderr}"
    );
    // The refusal comes before any call to the daemon.
    let nowhere = [&filter[..], &["--endpoint", "unix:/nowhere", "-o", "json"]].concat();
    let (code, _, stderr) = run(&daemon, &nowhere);
    assert_eq!(
        (code, &parse(&stderr)["error"]["kind"]),
        (2, &json!("invalid"))
    );
    let (code, _, stderr) = run(&daemon, &["snapshot", "delete", "--yes"]);
    assert_eq!(code, 2, "{stderr}");
    for wrong in ["30", "1y", "soon"] {
        let (code, _, stderr) = run(&daemon, &["snapshot", "delete", "--older-than", wrong]);
        assert!(code == 2 && stderr.contains("as in 30d"), "{stderr}");
    }
    assert_eq!(names(&daemon), ["a", "b"]);
}

/// Runs on a terminal, which `script` makes.
#[test]
fn on_a_terminal_it_asks() {
    let daemon = daemon_with(&["a", "b"]);
    let ask = |answer: &str| {
        let snapctl = env!("CARGO_BIN_EXE_snapctl");
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--command"])
            .arg(format!("{snapctl} snapshot delete --tag host=a"))
            .arg("/dev/null")
            .env_remove("VARVE_LOG")
            .env("VARVE_ENDPOINT", daemon.endpoint.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = script.stdin.take().unwrap();
        stdin.write_all(answer.as_bytes()).unwrap();
        let finished = finished(script.wait_with_output().unwrap());
        drop(stdin);
        finished
    };
    for no in ["\n", "n\n", "yesterday\n"] {
        let (code, said, _) = ask(no);
        assert_eq!(code, 130, "{said}");
        assert!(
            said.contains("a (snap-a), created 1970-01-01T00:00:00Z"),
            "{said}"
        );
        assert!(said.contains("Delete 2 snapshots? [y/N] "), "{said}");
        assert!(said.contains("no snapshot is deleted"), "{said}");
    }
    assert_eq!(names(&daemon), ["a", "b"]);
    let (code, said, _) = ask("y\n");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("deleted b (snap-b)"), "{said}");
    assert!(names(&daemon).is_empty());
    // Without snapshots there is no question.
    let (code, said, _) = ask("");
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("no snapshots") && !said.contains('?'),
        "{said}"
    );
}

#[test]
fn what_is_not_deleted_is_told_and_the_rest_is_deleted() {
    let daemon = daemon_with(&["a", "b", "c", "d"]);
    let (code, stdout, stderr) = run(&daemon, &["snapshot", "delete", "a", "none", "b", "gone"]);
    assert_eq!(code, 3);
    assert_eq!(stdout, "deleted a (snap-a)\ndeleted b (snap-b)\n");
    assert_eq!(
        stderr,
        "snapctl: delete snapshot none: no snapshot none\n\
         snapctl: delete snapshot gone: no snapshot gone\n\
         snapctl: delete snapshots: 2 snapshots are not deleted\n"
    );
    let json = ["snapshot", "delete", "c", "none", "d", "-o", "json"];
    let (code, stdout, stderr) = run(&daemon, &json);
    assert_eq!(code, 3);
    let deleted = parse(&stdout);
    let named: Vec<_> = deleted["snapshots"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&named[0]["name"], &named[1]["name"]),
        (&json!("c"), &json!("d"))
    );
    assert_eq!(
        deleted["not_deleted"],
        json!([{ "snapshot": "none", "kind": "not_found", "message": "no snapshot none" }])
    );
    assert_eq!(
        parse(&stderr)["error"]["message"],
        "delete snapshot none: no snapshot none"
    );
    assert!(names(&daemon).is_empty());

    // A missing one fails a dry run, too.
    let dry_run = ["snapshot", "delete", "none", "--dry-run"];
    let (code, stdout, stderr) = run(&daemon, &dry_run);
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    let filter = ["snapshot", "delete", "--tag", "a=b", "--yes", "-o", "json"];
    let none = parse(&succeed(&daemon, &filter));
    assert_eq!(none, json!({ "snapshots": [], "not_deleted": [] }));
}

#[test]
fn a_snapshot_that_is_named_twice_is_deleted_once() {
    let daemon = daemon_with(&["a", "b"]);
    let twice = ["snapshot", "delete", "a", "a", "snap-a", "snap-b", "b"];
    let said = succeed(&daemon, &twice);
    assert_eq!(said, "deleted a (snap-a)\ndeleted b (snap-b)\n");
}

#[test]
fn what_others_delete_meanwhile_is_no_failure() {
    let daemon = daemon_with(&["a", "b", "c"]);
    daemon.state().deleted_meanwhile = vec!["b".to_owned()];
    let filter = ["snapshot", "delete", "--older-than", "1d", "--yes"];
    let (code, stdout, stderr) = run(&daemon, &filter);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, "deleted a (snap-a)\ndeleted c (snap-c)\n");
    assert_eq!(stderr, "snapctl: snap-b was deleted meanwhile\n");
}

#[test]
fn a_daemon_that_fails_half_way_leaves_a_count() {
    let manners = Manners {
        deletions_max: 0,
        ..Manners::default()
    };
    let daemon = FakeDaemon::start(manners);
    plant(&daemon, &["a", "b"]);
    let (code, stdout, stderr) = run(&daemon, &["snapshot", "delete", "a", "b", "-o", "json"]);
    assert_eq!(code, 1);
    assert_eq!(
        parse(&stdout),
        json!({ "snapshots": [], "not_deleted": [] })
    );
    assert!(stderr.contains("0 of 2 snapshots are deleted"), "{stderr}");
}
