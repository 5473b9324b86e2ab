//! Volumes as records: making, listing, showing, tagging, attaching, detaching and deleting them.
//! They survive crashes of the daemon and the loss of its index.

use std::fs;

use serde_json::{Value, json};
use varve_store::{failpoints::Failpoint, format::names};
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{command, run},
    programs,
    snapctl::{Snapctl, exit, number, text},
};

const MIB: u64 = 1 << 20;

fn names_of(list: &Value) -> Vec<String> {
    let volumes = list["volumes"].as_array().unwrap();
    volumes.iter().map(|volume| text(volume, "name")).collect()
}

/// Three volumes: of zeros, of a snapshot and attached, and of a deleted snapshot. Returns the
/// listing.
fn make_some(lab: &Lab) -> Value {
    let snapctl = lab.snapctl();
    for (name, seed) in [("kept", 71), ("gone", 72)] {
        snapctl.import(&lab.image(name, 9 * MIB, seed), name);
    }
    for arguments in [
        "create zeros --size 10G",
        "create of-kept --from kept --tag tier=gold",
        "create of-gone --from gone --size 1T",
        "attach of-kept",
        "tag zeros a=b",
    ] {
        let arguments = arguments.split(' ');
        snapctl.run(["volume"].into_iter().chain(arguments)).ok();
    }
    snapctl.run(["snapshot", "delete", "gone"]).ok();
    snapctl.json(["volume", "list"])
}

/// Programs depend on these names: a change here is a change of the interface.
#[test]
fn json_has_the_field_names_that_programs_know() {
    let lab = Lab::new();
    let list = make_some(&lab);
    assert_eq!(names_of(&list), ["of-gone", "of-kept", "zeros"]);
    for volume in list["volumes"].as_array().unwrap() {
        let fields: Vec<_> = volume.as_object().unwrap().keys().collect();
        assert_eq!(
            fields,
            [
                "attached_at",
                "attachments",
                "base",
                "created_at",
                "id",
                "name",
                "owner",
                "parent",
                "size_bytes",
                "tags"
            ]
        );
        for key in ["name", "id"] {
            let mut shown = lab.snapctl().json(["volume", "show", &text(volume, key)]);
            let status = shown.as_object_mut().unwrap().remove("status").unwrap();
            let fields: Vec<_> = status.as_object().unwrap().keys().collect();
            assert_eq!(
                fields,
                [
                    "found",
                    "journal_bytes",
                    "journal_bytes_max",
                    "map_bytes",
                    "pending"
                ]
            );
            assert_eq!(shown, *volume, "by {key}");
        }
    }
    let kept = lab.snapctl().show("kept");
    let of_kept = &list["volumes"][1];
    assert_eq!(of_kept["base"], kept["root"]);
    assert_eq!(of_kept["parent"], kept["id"]);
    assert_eq!(of_kept["size_bytes"], kept["size_bytes"]);
    assert_eq!(list["volumes"][0]["size_bytes"], 1_u64 << 40);
    let id = text(of_kept, "id");
    assert!(id.len() == 21 && id.starts_with("vol-"), "{id}");
    assert_eq!(number(&lab.snapctl().json(["status"]), "volumes"), 3);
}

#[test]
fn an_attached_volume_is_told_where_it_is_served() {
    let lab = Lab::with(Options::tcp);
    let snapctl = lab.snapctl();
    snapctl
        .run(["volume", "create", "web/db", "--size", "64M"])
        .ok();
    let attached = snapctl.json(["volume", "attach", "web/db"]);
    let unix = format!(
        "nbd+unix:///volume/web/db?socket={}",
        lab.varved.nbd_socket().display()
    );
    let tcp = format!("nbd://{}/volume/web/db", lab.varved.nbd_address());
    assert_eq!(attached["nbd_uris"], json!([unix, tcp]));
    assert_eq!(attached["volume"]["attachments"], 1);
    let mut shown = snapctl.json(["volume", "show", "web/db"]);
    shown.as_object_mut().unwrap().remove("status");
    assert_eq!(attached["volume"], shown);

    for command in ["attach", "delete"] {
        let said = snapctl
            .run(["volume", command, "web/db"])
            .fails(exit::CONFLICT);
        assert!(said.contains("\"web/db\" is attached"), "{said}");
    }
    let taken = snapctl.run(["volume", "attach", "web/db", "--force"]);
    let said = taken.success().text();
    let socket = lab.varved.nbd_socket();
    for told in [
        unix.as_str(),
        &format!("file.server.path={}", socket.display()),
        "file.export=volume/web/db",
        "snapctl device map volume/web/db",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    for _ in 0..2 {
        snapctl.run(["volume", "detach", "web/db"]).ok();
    }
    let detached = snapctl.json(["volume", "show", "web/db"]);
    assert_eq!(
        (&detached["attached_at"], &detached["attachments"]),
        (&Value::Null, &json!(2))
    );
    snapctl.run(["volume", "delete", "web/db"]).ok();
    snapctl
        .run(["volume", "show", "web/db"])
        .fails(exit::NOT_FOUND);
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    snapctl.import(&lab.image("image", 3 * MIB, 73), "base");
    // A volume and a snapshot may have the same name.
    snapctl
        .run(["volume", "create", "base", "--size", "1M"])
        .ok();
    let list = snapctl.json(["volume", "list"]);
    for (arguments, code, why) in [
        ("base --size 1M", exit::ALREADY_EXISTS, "already exists"),
        ("a --size 1000", exit::USAGE, "multiple of 512"),
        ("a --size 17T", exit::USAGE, "at most"),
        ("a --from base --size 2M", exit::USAGE, "snapshot \"base\""),
        ("a --from absent", exit::NOT_FOUND, "\"absent\""),
        ("a,b --size 1M", exit::USAGE, "','"),
        ("vol-0123456789abcdef0 --size 1M", exit::USAGE, "an id"),
        ("a --size 1X", exit::USAGE, "10G"),
    ] {
        let arguments = arguments.split(' ');
        let said = snapctl
            .run(["volume", "create"].into_iter().chain(arguments))
            .fails(code);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(snapctl.json(["volume", "list"]), list);
}

#[test]
fn everything_is_there_after_a_restart_and_after_a_rebuild() {
    let mut lab = Lab::new();
    let list = make_some(&lab);
    for killed in [false, true] {
        if killed {
            lab.varved.kill()
        } else {
            lab.varved.stop()
        }
        lab.restart();
        assert_eq!(lab.snapctl().json(["volume", "list"]), list);
    }
    lab.varved.stop();
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(lab.data_dir());
    let said = run(rebuild).success().text();
    assert!(said.contains("3 volumes"), "{said}");
    lab.restart();
    assert_eq!(lab.snapctl().json(["volume", "list"]), list);
    // They can be changed afterwards.
    lab.snapctl().run(["volume", "detach", "of-kept"]).ok();
    lab.snapctl().run(["volume", "delete", "of-kept"]).ok();
    let list = lab.snapctl().json(["volume", "list"]);
    assert_eq!(names_of(&list), ["of-gone", "zeros"]);
}

/// Acknowledged changes are there; others are there whole, or not at all.
#[test]
fn a_crash_leaves_the_record_of_before_or_after() {
    let change = |snapctl: &Snapctl| snapctl.run(["volume", "attach", "db"]);
    for (point, after) in [
        (Failpoint::BeforeCatalogLog, 0),
        (Failpoint::CatalogLogSynced, 1),
        (Failpoint::CatalogApplied, 1),
    ] {
        let mut lab = Lab::new();
        lab.snapctl()
            .run(["volume", "create", "db", "--size", "1G"])
            .ok();
        lab.varved.stop();
        lab.restart_with(|options| options.env("VARVE_FAILPOINT", point.name()));
        change(&lab.snapctl()).fails(exit::UNREACHABLE);
        lab.varved.wait();
        lab.restart();
        let found = lab.snapctl().json(["volume", "show", "db"]);
        assert_eq!(number(&found, "attachments"), after, "{}", point.name());
        assert_eq!(found["attached_at"].is_null(), after == 0);
    }
}
