//! Backups by the client library: its example programs, run one after the other as a user would.

use std::{ffi::OsStr, fs, path::Path, process::Command};

use varve_tests::{
    files, image,
    lab::Lab,
    process::{Finished, run},
    programs,
    random::Random,
    snapctl::text,
};

const MIB: u64 = 1 << 20;

/// Runs an example against a daemon.
fn example<S: AsRef<OsStr>>(
    lab: &Lab,
    name: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Finished {
    let mut command = Command::new(programs::example(name));
    command
        .args(["--address", &lab.varved.endpoint()])
        .args(arguments)
        .current_dir(lab.scratch.path());
    run(command)
}

fn zero(path: &Path, offset: u64, len: usize) {
    files::write_range(path, offset, &vec![0; len]);
}

#[test]
fn a_full_backup_and_two_increments_are_restored_into_another_store() {
    let from = Lab::new();
    let sunday = from.image("sunday", 64 * MIB + 517, 901);
    let monday = image::copy(&from.scratch, &sunday, "monday");
    image::change(&monday, 9, &mut Random::seeded(902));
    zero(&monday, 5 * MIB, 1 << 20);
    // The volume grows, too.
    let tuesday = image::copy(&from.scratch, &monday, "tuesday");
    image::change(&tuesday, 3, &mut Random::seeded(903));
    files::write_range(&tuesday, 90 * MIB, b"the new end");
    let snapctl = from.snapctl();
    for day in ["sunday", "monday", "tuesday"] {
        snapctl.import(&from.scratch.join(day), &format!("web/{day}"));
    }

    example(&from, "full_backup", ["web/sunday", "full.img"]).ok();
    files::assert_same(&sunday, &from.scratch.join("full.img"));
    for (day, before) in [("monday", "sunday"), ("tuesday", "monday")] {
        let names = [day, before].map(|name| format!("web/{name}"));
        let patch = format!("{day}.patch");
        let arguments = [&names[0], &names[1], &patch];
        example(&from, "incremental_backup", arguments).ok();
        let patch_bytes = files::len(&from.scratch.join(&patch));
        assert!(patch_bytes < 16 * MIB, "{day}: {patch_bytes} bytes");
    }

    let to = Lab::new();
    let backups = ["full.img", "monday.patch", "tuesday.patch"];
    let backups = backups.map(|name| from.scratch.join(name).into_os_string());
    let mut arguments = vec!["restored".into()];
    arguments.extend(backups);
    let said = example(&to, "restore", arguments).success().text();
    let snapctl = to.snapctl();
    for (number, day) in [&sunday, &monday, &tuesday].into_iter().enumerate() {
        let name = format!("restored/{number}");
        to.assert_content(&name, day);
        snapctl.verify(&name);
    }
    // Equal content has an equal root in both stores.
    let root = text(&from.snapctl().show("web/tuesday"), "root");
    assert_eq!(said, format!("restored/2: root {root}\n"));
    assert_eq!(text(&snapctl.show("restored/2"), "root"), root);
}

#[test]
fn a_backup_that_is_not_complete_is_not_restored() {
    let lab = Lab::new();
    let image = lab.image("image", 9 * MIB, 911);
    lab.snapctl().import(&image, "one");
    fs::write(lab.scratch.join("p"), "").unwrap();
    for index in [
        "",
        "size 100\n",
        "size 100\ndata 0 100\n",
        "size 100\nwhat\nend\n",
    ] {
        fs::write(lab.scratch.join("p.index"), index).unwrap();
        let refused = example(&lab, "restore", ["again", "image", "p"]).fails(1);
        assert!(refused.contains("the index"), "{refused}");
        lab.snapctl().run(["snapshot", "delete", "again/0"]).ok();
    }
    assert_eq!(lab.snapctl().names(), ["one"]);
    // Existing files are not overwritten.
    let _ = example(&lab, "full_backup", ["one", "image"]).fails(1);
    files::assert_same(&image, &lab.scratch.join("image"));
}

#[test]
fn snapshots_are_listed_and_tagged_once() {
    let lab = Lab::new();
    let image = lab.image("image", 5000, 921);
    let snapctl = lab.snapctl();
    for name in ["web/1", "web/2", "db/1"] {
        snapctl.import(&image, name);
    }
    let tag = ["web/", "backup=done"];
    let first = example(&lab, "list_and_tag", tag).success().text();
    assert_eq!(first.matches("tagged now").count(), 2, "{first}");
    let again = example(&lab, "list_and_tag", tag).success().text();
    assert_eq!(again.lines().count(), 2);
    assert!(!again.contains("tagged now"), "{again}");
    assert_eq!(snapctl.show("web/2")["tags"]["backup"], "done");
    assert_eq!(snapctl.show("db/1")["tags"], serde_json::json!({}));
    let usage = example(&lab, "list_and_tag", ["web/"]).fails(2);
    assert!(usage.contains("usage: "), "{usage}");
}
