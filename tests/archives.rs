//! Snapshots as archives: written, checked, read into other stores; truncated, damaged, and without
//! their base.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use varve_content::ChunkId;
use varve_tests::{
    files, image,
    lab::Lab,
    process::{run, run_with_input, start_given},
    random::Random,
    rpc::Content,
    snapctl::{Snapctl, exit, number},
};

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The report of `snapctl export --archive`, and the archive.
fn archive(lab: &Lab, snapshot: &str, more: &[&str]) -> (Value, PathBuf) {
    let file = lab.scratch.join(format!("{snapshot}.varve"));
    let arguments = ["export", "--archive", snapshot, text(&file)];
    let said = lab.snapctl().json(arguments.iter().chain(more));
    assert_eq!(number(&said, "archive_bytes"), files::len(&file));
    (said, file)
}

fn import(snapctl: &Snapctl, file: &Path, more: &[&str]) -> Value {
    let arguments = ["import", "--archive", text(file)];
    snapctl.json(arguments.iter().chain(more))
}

fn chunks(image: &Path) -> BTreeSet<ChunkId> {
    let content = Content::of(&fs::read(image).unwrap());
    let ids = content.chunks.iter().map(|chunk| chunk.id.as_ref());
    ids.map(|id| ChunkId::try_from(id).unwrap()).collect()
}

/// A store with a snapshot, a volume from it, and a slightly different snapshot of that.
fn store() -> (Lab, PathBuf, PathBuf) {
    let lab = Lab::new();
    let one = lab.image("one.img", 40 * MIB + 517, 801);
    let two = image::copy(&lab.scratch, &one, "two.img");
    image::change(&two, 12, &mut Random::seeded(802));
    let snapctl = lab.snapctl();
    snapctl.import_with(&one, "one", ["--tag", "tier=gold"]);
    snapctl.import(&two, "two");
    (lab, one, two)
}

#[test]
fn a_snapshot_goes_into_another_store_as_an_archive() {
    let (there, one, _) = store();
    let (written, file) = archive(&there, "one", &[]);
    let mut original = there.snapctl().show("one");
    assert_eq!(written["snapshot"], original);
    // An archive belongs to whoever has it.
    original["owner"] = Value::Null;
    assert_eq!(number(&written, "chunks"), chunks(&one).len() as u64);
    // Payloads come as they are stored; records and leaves take little.
    let (payload, whole) = (number(&written, "payload_bytes"), files::len(&file));
    assert!(whole - payload < payload / 50, "{written}");

    // It can be shown and checked without a store.
    let nowhere = Snapctl::new("unix:/nowhere");
    let shown = nowhere.json(["archive", "show", text(&file)]);
    assert_eq!(
        (&shown["snapshot"], &shown["base"]),
        (&original, &Value::Null)
    );
    let verified = nowhere.json(["archive", "verify", text(&file)]);
    for field in ["chunks", "payload_bytes", "archive_bytes"] {
        assert_eq!(verified[field], written[field], "{field}");
    }

    let here = Lab::new();
    let snapctl = here.snapctl();
    let restored = import(&snapctl, &file, &["--tag", "by=disk"]);
    assert_eq!(restored["sent_chunks"], written["chunks"]);
    let shown = snapctl.show("one");
    for field in ["root", "size_bytes", "data_bytes", "created_at"] {
        assert_eq!(shown[field], original[field], "{field}");
    }
    assert_eq!(shown["tags"], json!({ "tier": "gold", "by": "disk" }));
    here.assert_content("one", &one);
    snapctl.verify("one");
    // Packed as at the source.
    let difference = number(&shown, "stored_bytes").abs_diff(number(&original, "stored_bytes"));
    assert!(difference < 8192, "{shown} {original}");

    // A second import: the name is taken. Under another name, nothing has to be sent.
    let arguments = ["import", "--archive", text(&file)];
    let said = snapctl.run(arguments).fails(exit::ALREADY_EXISTS);
    assert!(said.contains("one"), "{said}");
    let again = import(&snapctl, &file, &["--name", "again"]);
    assert_eq!(number(&again, "sent_chunks"), 0);
    // The archive is the same from either store.
    let (_, second) = archive(&there, "one", &["--force"]);
    assert_eq!(fs::read(&file).unwrap(), fs::read(second).unwrap());
}

#[test]
fn what_one_snapshot_has_beyond_another_needs_that() {
    let (there, one, two) = store();
    let new: BTreeSet<_> = &chunks(&two) - &chunks(&one);
    let (written, file) = archive(&there, "two", &["--since", "one"]);
    assert_eq!(
        number(&written, "chunks"),
        new.len() as u64,
        "the difference of the sets"
    );
    assert_eq!(written["base"]["name"], "one");
    Snapctl::new("unix:/nowhere")
        .run(["archive", "verify", text(&file)])
        .ok();

    let here = Lab::new();
    let snapctl = here.snapctl();
    let arguments = ["import", "--archive", text(&file)];
    let said = snapctl.run(arguments).fails(exit::NOT_FOUND);
    assert!(
        said.contains(" to one, and") && said.contains("import the base first"),
        "{said}"
    );
    assert_eq!(snapctl.names(), [""; 0]);
    // The base may have come in any way.
    snapctl.import(&one, "renamed");
    let restored = import(&snapctl, &file, &[]);
    assert_eq!(number(&restored, "sent_chunks"), new.len() as u64);
    assert_eq!(
        snapctl.show("two")["root"],
        there.snapctl().show("two")["root"]
    );
    here.assert_content("two", &two);
    snapctl.verify("two");

    // The difference to itself is empty.
    let (written, file) = archive(&there, "one", &["--since", "one"]);
    assert_eq!(number(&written, "chunks"), 0);
    assert!(files::len(&file) < 4096);
    import(&snapctl, &file, &["--name", "same"]);
    here.assert_content("same", &one);
}

#[test]
fn a_lineage_goes_along() {
    let (there, ..) = store();
    let snapctl = there.snapctl();
    snapctl
        .run(["volume", "create", "disk", "--from", "one"])
        .ok();
    for name in ["first", "second"] {
        snapctl
            .run(["snapshot", "create", "disk", "--name", name, "--wait"])
            .ok();
    }
    let (_, first) = archive(&there, "first", &[]);
    let (_, second) = archive(&there, "second", &["--since", "first"]);
    let here = Lab::new();
    let snapctl = here.snapctl();
    import(&snapctl, &first, &[]);
    import(&snapctl, &second, &[]);
    for (name, parent) in [
        ("first", there.snapctl().show("one")["id"].clone()),
        ("second", snapctl.show("first")["id"].clone()),
    ] {
        let (original, restored) = (there.snapctl().show(name), snapctl.show(name));
        for field in ["created_at", "volume_id", "volume_name", "root"] {
            assert_eq!(restored[field], original[field], "{name}: {field}");
        }
        assert_eq!(restored["parent"], parent, "{name}");
    }
}

#[test]
fn archives_go_through_pipes_and_hold_all_kinds_of_volumes() {
    let there = Lab::new();
    let here = Lab::new();
    let far = (1u64 << 40) - 4096;
    let part = |size_bytes: u64, parts: &[(u64, &[u8])]| {
        let path = there.scratch.join(format!("{size_bytes}.img"));
        fs::File::create(&path)
            .unwrap()
            .set_len(size_bytes)
            .unwrap();
        for (offset, bytes) in parts {
            files::write_range(&path, *offset, bytes);
        }
        path
    };
    for (name, image) in [
        ("holes", part(1 << 30, &[])),
        ("tiny", part(1, &[(0, b"x")])),
        (
            "odd",
            part(8 * MIB + 517, &[(8 * MIB, &[7; 517]), (4096, &[9; 9000])]),
        ),
        (
            "large",
            part(
                1 << 40,
                &[(0, &[1; 4096]), (3 << 32, &[2; 70_000]), (far, &[3; 4096])],
            ),
        ),
    ] {
        there.snapctl().import(&image, name);
        let piped = run(there.snapctl().command(["export", "--archive", name, "-"])).success();
        let restored = run_with_input(
            here.snapctl()
                .command(["import", "--archive", "-", "--name", name]),
            &piped.stdout,
        );
        restored.ok();
        let (original, restored) = (there.snapctl().show(name), here.snapctl().show(name));
        assert_eq!(original["root"], restored["root"], "{name}");
        here.snapctl().verify(name);
    }
}

#[test]
fn damaged_and_cut_archives_are_refused_and_leave_nothing() {
    let (there, ..) = store();
    let (_, file) = archive(&there, "one", &[]);
    let good = fs::read(&file).unwrap();
    let here = Lab::new();
    let snapctl = here.snapctl();
    let mut random = Random::of_test("damaged_and_cut_archives_are_refused_and_leave_nothing");
    let bad = here.scratch.join("bad.varve");
    let mut damaged = 0;
    for round in 0..24 {
        let mut bytes = good.clone();
        let at = random.index(bytes.len() - 16) + 16;
        if round % 3 == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << random.index(8);
        }
        fs::write(&bad, &bytes).unwrap();
        let verify = ["archive", "verify", text(&bad)];
        let import = ["import", "--archive", text(&bad)];
        for arguments in [verify, import] {
            let refused = snapctl.run(arguments);
            let code = refused.status.code();
            // A readable head may be damaged into another chunker or an invalid name.
            let expected = matches!(
                code,
                Some(exit::DAMAGED | exit::FAILURE | exit::USAGE | exit::NOT_FOUND)
            );
            assert!(expected, "at {at}: {refused:?}");
            assert!(refused.stderr.contains("bad.varve"), "at {at}: {refused:?}");
            if code == Some(exit::DAMAGED) {
                assert!(refused.stderr.contains("at offset"), "at {at}: {refused:?}");
            }
            damaged += u32::from(code == Some(exit::DAMAGED));
        }
        assert_eq!(snapctl.names(), [""; 0], "at {at}");
    }
    // Nearly all of it is chunks and their ids.
    assert!(damaged > 40, "{damaged} of 48");
    // Their remains do not disturb the import of a good archive.
    import(&snapctl, &file, &[]);
    snapctl.verify("one");
}

/// The input stalls, and the user interrupts the import.
#[test]
fn an_import_from_a_pipe_that_is_idle_can_be_interrupted() {
    let (there, ..) = store();
    let (_, file) = archive(&there, "one", &[]);
    let bytes = fs::read(&file).unwrap();
    let here = Lab::new();
    for given in [0, 10, bytes.len() / 2] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut command = here.snapctl().command(["import", "--archive", "-"]);
        command.stdin(reader);
        let mut importing = start_given(command);
        writer.write_all(&bytes[..given]).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(importing.ended().is_none(), "it waits for the rest");
        importing.signal(Signal::TERM);
        importing.wait().fails(exit::INTERRUPTED);
    }
    assert_eq!(here.snapctl().names(), [""; 0]);
}

#[test]
fn what_is_no_archive_or_no_name_is_told() {
    let (there, one, _) = store();
    let snapctl = there.snapctl();
    let (_, file) = archive(&there, "one", &[]);
    let refused = |arguments: &[&str], code, says: &str| {
        let said = snapctl.run(arguments).fails(code);
        assert!(said.contains(says), "{arguments:?}: {said}");
    };
    refused(
        &["import", "--archive", text(&one)],
        exit::FAILURE,
        "does not begin like an archive",
    );
    refused(
        &["archive", "verify", text(&one)],
        exit::FAILURE,
        "does not begin like an archive",
    );
    refused(
        &["archive", "show", "/nowhere/x"],
        exit::FAILURE,
        "/nowhere/x",
    );
    // A guest may write an archive to its disk. Such a disk is not read as an archive unless
    // requested.
    refused(
        &["import", text(&file), "--name", "x"],
        exit::FAILURE,
        "use --archive",
    );
    snapctl
        .run(["import", text(&file), "--name", "x", "--format", "raw"])
        .ok();
    there.assert_content("x", &file);
    refused(&["import", text(&one)], exit::USAGE, "--name");
    refused(
        &["export", "--archive", "none", "/tmp/none.varve"],
        exit::NOT_FOUND,
        "none",
    );
    refused(
        &["export", "--archive", "one", text(&file)],
        exit::ALREADY_EXISTS,
        "--force",
    );
    refused(
        &["export", "one", "y", "--since", "two"],
        exit::USAGE,
        "--archive",
    );
    refused(
        &[
            "export",
            "--archive",
            "one",
            "--since",
            "none",
            "/tmp/none.varve",
        ],
        exit::NOT_FOUND,
        "none",
    );
    assert!(!Path::new("/tmp/none.varve").exists());
}
