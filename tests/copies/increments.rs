//! Copies of a snapshot with an earlier one here: whole, with holes, or damaged.

use std::{fs, path::PathBuf};

use varve_store::format::{PackKind, pack::RecordKind};
use varve_tests::{
    data_dir, files,
    process::{command, run},
    programs,
    snapctl::number,
};

use super::{MIB, Pair};

/// Two slightly different snapshots of a volume there, and their content; the first is here, too.
fn first_is_here() -> (Pair, [PathBuf; 2]) {
    let pair = Pair::new();
    let there = pair.there.snapctl();
    let image = pair.image("image", 48, 951);
    there.import(&image, "image");
    there
        .run(["volume", "create", "disk", "--from", "image"])
        .ok();
    let mut contents = Vec::new();
    for (name, byte) in [("one", 1u8), ("two", 2)] {
        there.run(["volume", "attach", "disk", "--force"]).ok();
        let part = pair.there.scratch.file("part", vec![byte; 300_000]);
        let uri = format!(
            "nbd+unix:///volume/disk?socket={}",
            pair.there.varved.nbd_socket().display()
        );
        let written = format!(
            "write -s {} {} 300032",
            part.display(),
            20 * MIB + u64::from(byte) * 4096 * 50
        );
        run(command(
            programs::tool("qemu-io"),
            ["-f", "raw", "-c", &written, "-c", "flush", &uri],
        ))
        .ok();
        there
            .run(["snapshot", "create", "disk", "--name", name, "--wait"])
            .ok();
        let file = pair.there.scratch.join(name);
        there.export(name, &file);
        contents.push(file);
    }
    pair.copy("one", &[]);
    let contents = contents.try_into().unwrap();
    (pair, contents)
}

#[test]
fn only_what_differs_is_looked_into_and_all_of_it_is_counted() {
    let (pair, contents) = first_is_here();
    let copied = pair.copy("two", &[]);
    assert_eq!(copied["done_data_bytes"], copied["data_bytes"]);
    let (original, shown) = (
        pair.there.snapctl().show("two"),
        pair.here.snapctl().show("two"),
    );
    for field in ["root", "data_bytes", "size_bytes"] {
        assert_eq!(original[field], shown[field], "{field}");
    }
    pair.here.assert_content("two", &contents[1]);
    pair.here.snapctl().verify("two");
}

/// The catalog has the first snapshot, and a pack of its chunks is gone.
#[test]
fn what_a_rebuilt_store_has_lost_is_fetched_again() {
    let (mut pair, contents) = first_is_here();
    pair.here.varved.stop();
    let directory = pair.here.data_dir();
    for (_, pack) in data_dir::packs(&directory, PackKind::Chunks) {
        fs::remove_file(pack).unwrap();
    }
    let rebuilt = run(command(
        programs::varved(),
        ["rebuild", "--data-dir", directory.to_str().unwrap()],
    ));
    assert_eq!(rebuilt.status.code(), Some(6), "{rebuilt:?}");
    assert!(
        rebuilt.text().contains("snapshot \"one\" is incomplete"),
        "{rebuilt:?}"
    );
    pair.here.restart();
    let found = pair.here.snapctl().verify_finds("one");
    assert!(!found.is_empty());
    let original = pair.there.snapctl().show("two");
    let copied = pair.copy("two", &[]);
    assert!(
        number(&copied, "received_bytes") > number(&original, "data_bytes") / 3,
        "{copied}"
    );
    pair.here.assert_content("two", &contents[1]);
    pair.here.snapctl().verify("two");
    // The same content under another name is checked, too, and the snapshot that had lost its
    // chunks has them again.
    pair.copy("two", &["--name", "again"]);
    pair.copy("one", &["--name", "one-again"]);
    assert_eq!(pair.here.snapctl().verify_all().len(), 4);
}

/// The root of the first snapshot cannot be read: the copy does without it.
#[test]
fn a_damaged_snapshot_before_is_no_hindrance() {
    let (mut pair, contents) = first_is_here();
    pair.here.varved.stop();
    let directory = pair.here.data_dir();
    let mut damaged = 0;
    for record in data_dir::records(&directory, PackKind::Nodes) {
        if record.header.payload.kind == RecordKind::Root {
            record.flip();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    pair.here.restart();
    let copied = pair.copy("two", &[]);
    assert_eq!(copied["state"], "completed", "{copied}");
    pair.here.assert_content("two", &contents[1]);
    assert!(files::len(&contents[1]) > 0);
}
