//! Snapshots: listing, showing, tagging, deleting, comparing and verifying them.

use std::{collections::BTreeSet, fs::File, path::Path};

use serde_json::{Value, json};
use varve_tests::{
    files, image,
    lab::Lab,
    random::Random,
    rpc::{Content, Rpc},
    snapctl::{exit, number, text},
};

const MIB: u64 = 1 << 20;

/// The names of a JSON object's fields.
fn fields(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap_or_else(|| panic!("no object: {value}"))
        .keys()
        .map(String::as_str)
        .collect()
}

fn names(list: &Value) -> Vec<String> {
    list["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|snapshot| text(snapshot, "name"))
        .collect()
}

/// Programs depend on these names: a change here is a change of the interface.
#[test]
fn json_has_the_field_names_that_programs_know() {
    const SNAPSHOT: [&str; 18] = [
        "created_at",
        "data_bytes",
        "failure",
        "id",
        "name",
        "new_bytes",
        "owner",
        "parent",
        "progress",
        "root",
        "shared_accounts",
        "shared_with_everybody",
        "size_bytes",
        "state",
        "stored_bytes",
        "tags",
        "volume_id",
        "volume_name",
    ];
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", 9 * MIB, 31);
    let imported = snapctl
        .import_with(&file, "one", ["--tag", "host=web", "--tag", "note=a=b"])
        .0;
    let report = [
        "bytes_per_second",
        "data_bytes",
        "new_bytes",
        "root",
        "seconds",
        "sent_bytes",
        "size_bytes",
        "snapshot",
        "stored_bytes",
    ];
    assert_eq!(fields(&imported), report);

    let shown = snapctl.show("one");
    assert_eq!(fields(&shown), SNAPSHOT);
    assert_eq!(shown["name"], "one");
    assert_eq!(shown["state"], "completed");
    assert_eq!(shown["size_bytes"], 9 * MIB);
    assert_eq!(shown["tags"], json!({ "host": "web", "note": "a=b" }));
    assert_eq!(imported["snapshot"], shown);
    for field in [
        "data_bytes",
        "new_bytes",
        "root",
        "size_bytes",
        "stored_bytes",
    ] {
        assert_eq!(imported[field], shown[field], "{field}");
    }
    let id = text(&shown, "id");
    assert!(
        id.len() == 22 && id.starts_with("snap-") && is_hex(&id[5..]),
        "{id}"
    );
    let root = text(&shown, "root");
    assert!(root.len() == 64 && is_hex(&root), "{root}");
    let created_at = text(&shown, "created_at");
    assert!(is_rfc3339(&created_at), "{created_at}");
    assert_eq!(snapctl.show(&id), shown, "by id as by name");

    let list = snapctl.json(["snapshot", "list"]);
    assert_eq!(list["snapshots"], json!([shown]));

    let verified = snapctl.json(["snapshot", "verify", "one"]);
    assert_eq!(
        fields(&verified),
        [
            "checked",
            "checked_bytes",
            "ok",
            "snapshot",
            "violation_count",
            "violations"
        ]
    );
    assert_eq!(verified["ok"], true);
    assert_eq!(verified["violations"], json!([]));

    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(8 * MIB)
        .unwrap();
    snapctl.import(&file, "two");
    let diff = snapctl.json(["snapshot", "diff", "one", "two"]);
    assert_eq!(
        fields(&diff),
        [
            "added_bytes",
            "base",
            "changed_bytes",
            "extents",
            "removed_bytes",
            "target"
        ]
    );
    for extent in diff["extents"].as_array().unwrap() {
        assert_eq!(fields(extent), ["kind", "length_bytes", "offset_bytes"]);
    }

    let out = lab.scratch.join("out");
    let exported = snapctl.json(["export", "one", out.to_str().unwrap()]);
    let report = [
        "bytes_per_second",
        "data_bytes",
        "received_bytes",
        "root",
        "seconds",
        "size_bytes",
        "snapshot",
    ];
    assert_eq!(fields(&exported), report);

    let failed = snapctl
        .run(["--output", "json", "snapshot", "show", "absent"])
        .fails(exit::NOT_FOUND);
    let error: Value = serde_json::from_str(failed.lines().last().unwrap()).unwrap();
    assert_eq!(error["error"]["kind"], "not_found");
    assert!(
        text(&error["error"], "message").contains("absent"),
        "{error}"
    );

    let status = snapctl.json(["status"]);
    let status_fields = [
        "chunk_bytes",
        "chunker_version",
        "chunks",
        "compression",
        "compression_ratio",
        "data_dir",
        "dead_bytes",
        "dedupe_ratio",
        "format_version",
        "free_bytes",
        "gc",
        "images",
        "io_engine",
        "logical_bytes",
        "nbd_connections",
        "nbd_uris",
        "packs",
        "read_only_reason",
        "snapshots",
        "started_at",
        "store_id",
        "stored_bytes",
        "uploads",
        "version",
        "volumes",
    ];
    assert_eq!(fields(&status), status_fields);
    assert_eq!(
        (
            number(&status, "snapshots"),
            number(&status, "logical_bytes")
        ),
        (2, 17 * MIB)
    );
    assert_eq!(status["data_dir"], lab.data_dir().to_str().unwrap());
    assert!(is_rfc3339(&text(&status, "started_at")), "{status}");
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// "2026-01-31T23:59:59Z", or with a fraction of the second.
fn is_rfc3339(time: &str) -> bool {
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else {
        return false;
    };
    let Some(fraction) = rest.strip_suffix('Z') else {
        return false;
    };
    fraction.is_empty()
        || fraction
            .strip_prefix('.')
            .is_some_and(|digits| digits.bytes().all(|digit| digit == b'0'))
}

#[test]
fn people_get_tables() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", 9 * MIB, 32);
    let imported = snapctl
        .run(["import", file.to_str().unwrap(), "--name", "daily/monday"])
        .success();
    let id = text(&snapctl.show("daily/monday"), "id");
    let root = text(&snapctl.show("daily/monday"), "root");
    let said = imported.text() + &imported.stderr;
    assert!(said.contains(&root), "an import ends with the root: {said}");
    assert!(said.contains("iB/s"), "and the rate: {said}");

    let list = snapctl.run(["snapshot", "list"]).success().text();
    assert!(
        list.contains("daily/monday") && list.contains(&id),
        "{list}"
    );
    let show = snapctl
        .run(["snapshot", "show", "daily/monday"])
        .success()
        .text();
    assert!(show.contains(&root) && show.contains("completed"), "{show}");
    let status = snapctl.run(["status"]).success().text();
    assert!(
        status.contains("io_uring") || status.contains("blocking"),
        "{status}"
    );
    let verify = snapctl
        .run(["snapshot", "verify", "daily/monday"])
        .success();
    assert!(!(verify.text() + &verify.stderr).trim().is_empty());
    let help = snapctl.run(["--help"]).success().text();
    for word in ["import", "export", "snapshot", "status", "VARVE_ENDPOINT"] {
        assert!(help.contains(word), "{word} in {help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            !snapctl
                .run(["completions", shell])
                .success()
                .stdout
                .is_empty(),
            "{shell}"
        );
    }
}

#[test]
fn listings_are_sorted_and_filtered() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", MIB, 33);
    let tags = |name: &str| match name {
        "web-1" => vec!["--tag", "host=web", "--tag", "day=1"],
        "web-2" => vec!["--tag", "host=web", "--tag", "day=2"],
        "database" => vec!["--tag", "host=database", "--tag", "day=1"],
        _ => vec![],
    };
    for name in ["web-2", "other", "Web-0", "database", "web-1", "web"] {
        snapctl.import_with(&file, name, tags(name));
    }
    let all = ["Web-0", "database", "other", "web", "web-1", "web-2"];
    assert_eq!(snapctl.names(), all);
    let filtered =
        |arguments: &[&str]| names(&snapctl.json(["snapshot", "list"].iter().chain(arguments)));
    assert_eq!(
        filtered(&["--name-prefix", "web"]),
        ["web", "web-1", "web-2"]
    );
    assert_eq!(filtered(&["--name-prefix", "web-1"]), ["web-1"]);
    assert!(filtered(&["--name-prefix", "nothing"]).is_empty());
    assert_eq!(filtered(&["--tag", "host=web"]), ["web-1", "web-2"]);
    assert_eq!(
        filtered(&["--tag", "host=web", "--tag", "day=2"]),
        ["web-2"]
    );
    assert_eq!(filtered(&["--tag", "day=1"]), ["database", "web-1"]);
    assert_eq!(
        filtered(&["--name-prefix", "web", "--tag", "day=1"]),
        ["web-1"]
    );
    assert!(filtered(&["--tag", "host=webs"]).is_empty());
}

#[tokio::test]
async fn a_listing_that_takes_many_pages_is_whole() {
    let lab = Lab::new();
    let rpc = Rpc::connect(&lab.varved).await;
    let content = Content::of(&[1; 4096]);
    let names: Vec<String> = (0..450)
        .map(|number| format!("snapshot-{number:03}"))
        .collect();
    for name in &names {
        rpc.upload(name, &content).await.unwrap();
    }
    assert_eq!(lab.snapctl().names(), names);
    for limit in [1, 200, 201, 1000] {
        let list = lab
            .snapctl()
            .json(["snapshot", "list", "--limit", &limit.to_string()]);
        assert_eq!(self::names(&list), names[..limit.min(450)]);
    }
}

#[test]
fn tags_are_set_and_removed() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", MIB, 34);
    snapctl.import_with(
        &file,
        "one",
        [
            "--tag",
            "keep=yes",
            "--tag",
            "change=before",
            "--tag",
            "drop=me",
        ],
    );
    let before = snapctl.show("one");
    let tag = [
        "snapshot",
        "tag",
        "one",
        "change=after",
        "new=a b=c",
        "--remove",
        "drop",
        "--remove",
        "absent",
    ];
    snapctl.run(tag).ok();
    let expected = json!({ "keep": "yes", "change": "after", "new": "a b=c" });
    let mut after = snapctl.show("one");
    assert_eq!(after["tags"], expected);
    after["tags"] = before["tags"].clone();
    assert_eq!(after, before, "nothing else changes");
    snapctl
        .run(["snapshot", "tag", "absent", "a=b"])
        .fails(exit::NOT_FOUND);
}

#[test]
fn a_deleted_snapshot_is_gone_and_its_name_is_free() {
    let mut lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", 5 * MIB, 35);
    let id = snapctl.import(&file, "one").id();
    snapctl.import(&file, "two");
    snapctl.run(["snapshot", "delete", &id]).ok();
    for key in ["one", &id] {
        for command in ["show", "delete", "verify"] {
            let said = snapctl
                .run(["snapshot", command, key])
                .fails(exit::NOT_FOUND);
            assert!(said.contains(key), "{said}");
        }
        let out = lab.scratch.join("out");
        snapctl
            .run(["export", key, out.to_str().unwrap()])
            .fails(exit::NOT_FOUND);
        assert!(!out.exists(), "an export that failed leaves a file");
    }
    assert_eq!(snapctl.names(), ["two"]);
    lab.assert_content("two", &file);
    let again = snapctl.import(&file, "one");
    assert_ne!(again.id(), id);
    assert_eq!(again.new_bytes(), 0, "chunks stay when a record is deleted");
    lab.varved.stop();
    lab.restart();
    assert_eq!(lab.snapctl().names(), ["one", "two"]);
    assert_eq!(text(&lab.snapctl().show("one"), "id"), again.id());
}

#[test]
fn snapshots_are_deleted_by_filters_and_stay_deleted() {
    let mut lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", MIB, 44);
    for (name, tags) in [
        ("a", &["--tag", "keep=no"][..]),
        ("b", &["--tag", "keep=no", "--tag", "host=web"]),
        ("c", &["--tag", "keep=yes"]),
    ] {
        snapctl.import_with(&file, name, tags.iter().copied());
    }
    let volume = ["volume", "create", "disk", "--size", "1M"];
    snapctl.run(volume).ok();
    let pending = [
        "snapshot", "create", "disk", "--name", "d", "--tag", "keep=no",
    ];
    snapctl.run(pending).ok();

    let filter = [
        "snapshot",
        "delete",
        "--tag",
        "keep=no",
        "--older-than",
        "0s",
    ];
    let refused = snapctl.run(filter).fails(exit::USAGE);
    assert!(refused.contains("--yes"), "{refused}");
    let dry_run = snapctl.json(filter.iter().chain(&["--dry-run"]));
    assert_eq!(names(&dry_run), ["a", "b", "d"]);
    let young = ["snapshot", "delete", "--older-than", "1d", "--yes"];
    assert!(names(&snapctl.json(young)).is_empty());
    assert_eq!(snapctl.names(), ["a", "b", "c", "d"]);

    let deleted = snapctl.json(filter.iter().chain(&["--tag", "host=web", "--yes"]));
    assert_eq!(names(&deleted), ["b"]);
    let deleted = snapctl.json(filter.iter().chain(&["--yes"]));
    assert_eq!(names(&deleted), ["a", "d"]);
    lab.varved.kill();
    lab.restart();
    assert_eq!(lab.snapctl().names(), ["c"]);
    lab.assert_content("c", &file);
}

#[test]
fn everything_is_there_after_a_restart() {
    let mut lab = Lab::new();
    let files: Vec<_> = (0..3)
        .map(|seed| lab.image(&format!("image-{seed}"), 12 * MIB, 36 + seed))
        .collect();
    for (number, file) in files.iter().enumerate() {
        lab.snapctl()
            .import_with(file, &format!("snapshot-{number}"), ["--tag", "a=b"]);
    }
    let (list, mut status) = (
        lab.snapctl().json(["snapshot", "list"]),
        lab.snapctl().json(["status"]),
    );
    for killed in [false, true] {
        if killed {
            lab.varved.kill()
        } else {
            lab.varved.stop()
        }
        lab.restart();
        assert_eq!(lab.snapctl().json(["snapshot", "list"]), list);
        let mut now = lab.snapctl().json(["status"]);
        for field in ["started_at", "free_bytes"] {
            now[field] = Value::Null;
            status[field] = Value::Null;
        }
        assert_eq!(now, status);
        for (number, file) in files.iter().enumerate() {
            lab.assert_content(&format!("snapshot-{number}"), file);
        }
    }
}

/// Blocks of a diff, with their kinds.
fn diff_blocks(diff: &Value) -> Vec<(u64, String)> {
    let mut blocks = Vec::new();
    let mut end = 0;
    for extent in diff["extents"]
        .as_array()
        .unwrap_or_else(|| panic!("no extents in {diff}"))
    {
        let (offset, length) = (
            number(extent, "offset_bytes"),
            number(extent, "length_bytes"),
        );
        assert!(
            offset >= end && length > 0,
            "extents ascend and do not overlap: {diff}"
        );
        end = offset + length;
        let kind = text(extent, "kind");
        blocks.extend((offset / 4096..end.div_ceil(4096)).map(|block| (block, kind.clone())));
    }
    blocks
}

/// The chunk of each block: its start, and its id. `None`: a hole.
fn chunk_of_blocks(volume: &Path, blocks: u64) -> Vec<Option<(u64, Vec<u8>)>> {
    let content = Content::of(&std::fs::read(volume).unwrap());
    let mut covered = vec![None; usize::try_from(blocks).unwrap()];
    for leaf in &content.leaves {
        for entry in &leaf.entries {
            let start = u64::from(leaf.segment) * 2048 + u64::from(entry.start_block);
            for block in start..start + u64::from(entry.blocks) {
                covered[usize::try_from(block).unwrap()] = Some((start, entry.chunk_id.to_vec()));
            }
        }
    }
    covered
}

fn check_diff(lab: &Lab, base: (&str, &Path), target: (&str, &Path)) {
    let diff = lab.snapctl().json(["snapshot", "diff", base.0, target.0]);
    let named = diff_blocks(&diff);
    let named_set: BTreeSet<u64> = named.iter().map(|(block, _)| *block).collect();
    for block in files::differing_blocks(base.1, target.1) {
        assert!(
            named_set.contains(&block),
            "block {block} differs, and the diff does not say so"
        );
    }
    let blocks = files::len(base.1).max(files::len(target.1)).div_ceil(4096);
    let (old, new) = (
        chunk_of_blocks(base.1, blocks),
        chunk_of_blocks(target.1, blocks),
    );
    for (block, kind) in &named {
        let at = usize::try_from(*block).unwrap();
        assert_ne!(
            old[at], new[at],
            "block {block} is in the same chunk at the same place in both"
        );
        let expected = match (&old[at], &new[at]) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        assert_eq!(kind, expected, "block {block}");
    }
}

#[test]
fn a_diff_covers_what_differs_and_no_chunk_that_is_equal() {
    let lab = Lab::new();
    let mut random = Random::of_test("a_diff_covers_what_differs");
    let base = lab.image("base", 48 * MIB + 4096, 37);
    lab.snapctl().import(&base, "base");
    for round in 0..4 {
        let target = image::copy(&lab.scratch, &base, &format!("target-{round}"));
        image::change(&target, 8, &mut random);
        let name = format!("target-{round}");
        lab.snapctl().import(&target, &name);
        check_diff(&lab, ("base", &base), (&name, &target));
        check_diff(&lab, (&name, &target), ("base", &base));
    }
    let unrelated = lab.image("unrelated", 30 * MIB, 38);
    lab.snapctl().import(&unrelated, "unrelated");
    check_diff(&lab, ("base", &base), ("unrelated", &unrelated));
    check_diff(&lab, ("unrelated", &unrelated), ("base", &base));
    let same = lab.snapctl().json(["snapshot", "diff", "base", "base"]);
    assert_eq!(same["extents"], json!([]));
}

/// The tree of the smaller snapshot is lower.
#[test]
fn a_diff_compares_volumes_of_different_sizes() {
    let lab = Lab::new();
    let small = lab.image("small", 20 * MIB, 39);
    let large = image::copy(&lab.scratch, &small, "large");
    File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(3 << 30)
        .unwrap();
    files::write_range(&large, (3 << 30) - 4096, &[1; 4096]);
    lab.snapctl().import(&small, "small");
    lab.snapctl().import(&large, "large");
    let grown = lab.snapctl().json(["snapshot", "diff", "small", "large"]);
    assert_eq!(
        diff_blocks(&grown),
        [((3 << 30) / 4096 - 1, "added".to_owned())]
    );
    let shrunk = lab.snapctl().json(["snapshot", "diff", "large", "small"]);
    assert_eq!(
        diff_blocks(&shrunk),
        [((3 << 30) / 4096 - 1, "removed".to_owned())]
    );
    let said = lab
        .snapctl()
        .run(["snapshot", "diff", "small", "absent"])
        .fails(exit::NOT_FOUND);
    assert!(said.contains("absent"), "{said}");
}

#[test]
fn the_command_line_has_exit_codes_for_scripts() {
    let lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.image("image", MIB, 40);
    snapctl.import(&file, "taken");
    snapctl.run(["no-such-command"]).fails(exit::USAGE);
    snapctl.run(["snapshot", "show"]).fails(exit::USAGE);
    snapctl
        .run(["snapshot", "show", "absent"])
        .fails(exit::NOT_FOUND);
    snapctl
        .run(["snapshot", "verify", "snap-0123456789abcdef0"])
        .fails(exit::NOT_FOUND);
    snapctl
        .run(["import", file.to_str().unwrap(), "--name", "taken"])
        .fails(exit::ALREADY_EXISTS);
    snapctl.run(["--version"]).ok();
}
