//! Collections and usage, for people and for programs.

use serde_json::json;
use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, parse, run, succeed};

fn daemon() -> FakeDaemon {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "web", "--quiet"]);
    daemon
}

#[test]
fn a_collection_reports_what_it_gave_back_and_what_holds_the_rest() {
    let daemon = daemon();
    let text = succeed(&daemon, &["gc", "run", "--dead", "10", "--rate", "none"]);
    for says in [
        "600.0 MiB: 3 packs",
        "650.0 MiB dead",
        "by snapshot nightly",
    ] {
        assert!(text.contains(says), "{text}");
    }
    let asked = daemon.state().gc_options.unwrap();
    assert_eq!(asked.rewrite_dead_percent, Some(10));
    assert_eq!(asked.bytes_per_second, Some(0));
    let report = parse(&succeed(&daemon, &["gc", "run", "-o", "json"]));
    assert_eq!(report["returned_bytes"], 600 << 20);
    assert_eq!(report["held_by"], json!(["snapshot nightly"]));
    let status = parse(&succeed(&daemon, &["gc", "status", "-o", "json"]));
    assert_eq!(status["running"], json!(null));
    assert_eq!(status["last"]["report"], report);
    assert_eq!(status["last"]["ended_at"], "2023-11-14T22:13:20Z");
    let text = succeed(&daemon, &["gc", "status"]);
    assert!(text.contains("ended at 2023-11-14T22:13:20Z"), "{text}");
    let text = succeed(&daemon, &["gc", "stop"]);
    assert!(text.contains("ends after the pack at hand"), "{text}");
}

#[test]
fn a_plan_is_the_dry_run_of_a_collection() {
    let daemon = daemon();
    let plan = parse(&succeed(&daemon, &["gc", "plan", "-o", "json"]));
    let dry_run = parse(&succeed(&daemon, &["gc", "run", "--dry-run", "-o", "json"]));
    assert_eq!(plan, dry_run);
    assert_eq!(plan["returned_bytes"], 256 << 20);
    assert_eq!(plan["steps"][0]["action"], "drop");
    assert_eq!(daemon.state().gc_options, None, "nothing was collected");
    let wide = succeed(&daemon, &["gc", "plan", "-o", "wide"]);
    assert!(wide.contains("chunk-0000000000000001"), "{wide}");
}

#[test]
fn a_dry_run_tells_what_a_deletion_gives_back() {
    let daemon = daemon();
    let command = ["snapshot", "delete", "web", "--dry-run"];
    let text = succeed(&daemon, &command);
    assert!(text.contains("would delete web"), "{text}");
    assert!(text.contains("3.0 MiB would become dead"), "{text}");
    assert!(text.contains("would return 2.0 MiB"), "{text}");
    let json = parse(&succeed(&daemon, &[&command[..], &["-o", "json"]].concat()));
    assert_eq!(json["snapshots"][0]["name"], "web");
    assert_eq!(json["dead_bytes"], 3 << 20);
    assert_eq!(json["returned_bytes"], 2 << 20);
}

#[test]
fn options_of_a_collection_are_checked() {
    let daemon = daemon();
    for (command, says) in [
        ("gc run --dead 0", "from 1 to 100"),
        ("gc plan --dead 101%", "from 1 to 100"),
        ("gc plan --rate 100M", "--rate"),
        ("gc run --rate 0", "write none for no limit"),
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        let (code, _, stderr) = run(&daemon, &arguments);
        assert_eq!(code, 2, "{command}: {stderr}");
        assert!(stderr.contains(says), "{command}: {stderr}");
    }
}

#[test]
fn what_snapshots_and_volumes_take_is_listed() {
    let daemon = daemon();
    succeed(&daemon, &["volume", "create", "web", "--size", "1M"]);
    succeed(&daemon, &["volume", "create", "db", "--size", "1M"]);
    let usage = parse(&succeed(&daemon, &["du", "-o", "json"]));
    assert_eq!(usage["snapshots"][0]["name"], "web");
    assert_eq!(usage["snapshots"][0]["exclusive_bytes"], 1 << 20);
    assert_eq!(usage["volumes"][0]["shared_bytes"], 2 << 20);
    assert_eq!(usage["volumes"][1]["name"], "web");
    // A name of a snapshot and a volume means both, unless it has a prefix.
    let both = succeed(&daemon, &["du", "web", "--exclusive"]);
    assert_eq!(both.lines().count(), 3, "{both}");
    assert!(
        both.contains("snapshot") && both.contains("volume"),
        "{both}"
    );
    let one = succeed(&daemon, &["du", "volume/web"]);
    assert_eq!(one.lines().count(), 2, "{one}");
    let (code, _, stderr) = run(&daemon, &["du", "none"]);
    assert_eq!(code, 3, "{stderr}");
}
