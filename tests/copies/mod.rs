//! Snapshots copied from one daemon to another.

mod broken;
mod deleted;
mod increments;
mod large;
mod liar;
mod remotes;
mod sets;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::Value;
use varve_content::ChunkId;
use varve_tests::{
    daemon::{Options, Varved},
    image,
    lab::Lab,
    random::Random,
    rpc::Content,
    snapctl::{exit, number, text},
};

const MIB: u64 = 1 << 20;

/// Two stores with their daemons.
struct Pair {
    there: Lab,
    here: Lab,
}

impl Pair {
    fn new() -> Self {
        Self {
            there: Lab::with(Options::tcp),
            here: Lab::new(),
        }
    }

    /// Copies from there to here, and waits. Returns the final report.
    fn copy(&self, snapshot: &str, more: &[&str]) -> Value {
        copy(
            &self.here.varved,
            &self.there.varved.tcp_endpoint(),
            snapshot,
            more,
        )
    }

    fn image(&self, name: &str, mib: u64, seed: u64) -> PathBuf {
        self.there.image(name, mib * MIB, seed)
    }

    /// Imports another, slightly different image.
    fn changed(&self, of: &Path, name: &str, places: u32, seed: u64) -> PathBuf {
        let path = image::copy(&self.there.scratch, of, name);
        image::change(&path, places, &mut Random::seeded(seed));
        path
    }
}

fn copy(here: &Varved, endpoint: &str, snapshot: &str, more: &[&str]) -> Value {
    let arguments = ["copy", snapshot, "--from", endpoint, "--wait"];
    here.snapctl().json(arguments.iter().chain(more))
}

/// The distinct chunks of an image.
fn chunks(image: &Path) -> BTreeSet<ChunkId> {
    let content = Content::of(&std::fs::read(image).unwrap());
    let ids = content.chunks.iter().map(|chunk| chunk.id.as_ref());
    ids.map(|id| ChunkId::try_from(id).unwrap()).collect()
}

fn count(ids: &BTreeSet<ChunkId>) -> u64 {
    ids.len() as u64
}

#[test]
fn a_copy_brings_what_is_missing_and_no_more() {
    let pair = Pair::new();
    let first = pair.image("first", 40, 501);
    let second = pair.changed(&first, "second", 30, 502);
    let (there, here) = (pair.there.snapctl(), pair.here.snapctl());
    there.import_with(&first, "first", ["--tag", "tier=gold", "--tag", "by=night"]);
    there.import(&second, "second");
    let endpoint = pair.there.varved.tcp_endpoint();
    let estimate = |snapshot| {
        let arguments = ["copy", "estimate", snapshot, "--from", &endpoint];
        here.json(arguments)
    };

    let expected = estimate("first");
    assert_eq!(number(&expected, "present_data_bytes"), 0);
    let copied = pair.copy("first", &["--tag", "by=copy"]);
    assert_eq!(copied["state"], "completed");
    assert_eq!(number(&copied, "received_chunks"), count(&chunks(&first)));
    for field in ["chunks", "bytes"] {
        let (estimated, received) = (format!("missing_{field}"), format!("received_{field}"));
        assert_eq!(number(&expected, &estimated), number(&copied, &received));
    }
    let (original, shown) = (there.show("first"), here.show("first"));
    for field in ["root", "size_bytes", "data_bytes", "new_bytes"] {
        assert_eq!(shown[field], original[field], "{field}");
    }
    assert_eq!(
        (&shown["id"], &shown["root"]),
        (&copied["snapshot_id"], &copied["root"])
    );
    assert_eq!(
        shown["tags"],
        serde_json::json!({ "tier": "gold", "by": "copy" })
    );
    here.verify("first");
    pair.here.assert_content("first", &first);
    // Packed as at the source.
    let difference = number(&shown, "stored_bytes").abs_diff(number(&original, "stored_bytes"));
    assert!(difference < 8192, "{shown} {original}");

    // Only the difference.
    let expected = estimate("second");
    let copied = pair.copy("second", &[]);
    let missing: BTreeSet<_> = &chunks(&second) - &chunks(&first);
    assert!(!missing.is_empty());
    assert_eq!(number(&copied, "received_chunks"), count(&missing));
    assert_eq!(number(&expected, "missing_chunks"), count(&missing));
    assert_eq!(
        number(&expected, "missing_bytes"),
        number(&copied, "received_bytes")
    );
    pair.here.assert_content("second", &second);

    // Nothing: the same again, and the same content under another name.
    for more in [&[][..], &["--name", "renamed"]] {
        let copied = pair.copy("second", more);
        assert_eq!(number(&copied, "received_chunks"), 0, "{more:?}");
        assert_eq!(copied["state"], "completed");
    }
    assert_eq!(number(&estimate("second"), "missing_bytes"), 0);
    assert_eq!(here.names(), ["first", "renamed", "second"]);
    here.verify("renamed");

    let listed = here.json(["copy", "list"]);
    let listed = listed["copies"].as_array().unwrap();
    assert_eq!(listed.len(), 4);
    assert_eq!(listed[0]["name"], "renamed", "the newest first");
    assert_eq!(
        here.json(["copy", "show", &text(&listed[3], "id")]),
        listed[3]
    );
    pair.there
        .varved
        .log()
        .contains("panicked")
        .then(|| panic!("{}", pair.there.varved.log()));
}

#[test]
fn copies_at_one_time_fetch_each_chunk_once() {
    let pair = Pair::new();
    let base = pair.image("base", 24, 511);
    let mut all = chunks(&base);
    pair.there.snapctl().import(&base, "s0");
    let names: Vec<_> = (0..6).map(|number| format!("s{number}")).collect();
    for (name, seed) in names[1..].iter().zip(512..) {
        let image = pair.changed(&base, name, 12, seed);
        pair.there.snapctl().import(&image, name);
        all.extend(chunks(&image));
    }
    let here = pair.here.snapctl();
    let endpoint = pair.there.varved.tcp_endpoint();
    let several = names.iter().map(String::as_str);
    let told = here.json(
        ["copy", "--from", &endpoint, "--wait"]
            .into_iter()
            .chain(several),
    );
    assert_eq!(told["copies"].as_array().unwrap().len(), names.len());
    let listed = here.json(["copy", "list"]);
    let received = listed["copies"].as_array().unwrap().iter();
    let received: u64 = received.map(|copy| number(copy, "received_chunks")).sum();
    assert_eq!(received, count(&all));
    for name in &names {
        let (original, copied) = (pair.there.snapctl().show(name), here.show(name));
        assert_eq!(original["root"], copied["root"]);
    }
    assert_eq!(here.verify_all(), names);
}

#[test]
fn volumes_snapshots_holes_and_odd_sizes_are_copied() {
    let pair = Pair::new();
    let there = pair.there.snapctl();
    // All holes, a size that is no multiple of a block, several levels of the tree.
    let file = |name: &str, size_bytes: u64, parts: &[(u64, &[u8])]| {
        let path = pair.there.scratch.file(name, []);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        for (offset, bytes) in parts {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, *offset).unwrap();
        }
        path
    };
    let far = (1 << 40) - 4096;
    let images = [
        ("holes", file("holes", 1 << 30, &[])),
        (
            "odd",
            file(
                "odd",
                8 * MIB + 517,
                &[(8 * MIB, &[7; 517]), (4096, &[9; 9000])],
            ),
        ),
        (
            "large",
            file(
                "large",
                1 << 40,
                &[(0, &[1; 4096]), (3 << 32, &[2; 70_000]), (far, &[3; 4096])],
            ),
        ),
    ];
    for (name, image) in &images {
        there.import(image, name);
        let copied = pair.copy(name, &[]);
        assert_eq!(copied["root"], there.show(name)["root"], "{name}");
        pair.here.snapctl().verify(name);
    }
    pair.here.assert_content("odd", &images[1].1);
}

#[test]
fn what_cannot_be_copied_is_told_and_leaves_nothing() {
    let pair = Pair::new();
    let (there, here) = (pair.there.snapctl(), pair.here.snapctl());
    let image = pair.image("image", 8, 521);
    let other = pair.image("other", 8, 522);
    there.import(&image, "image");
    here.import(&other, "taken");
    let endpoint = pair.there.varved.tcp_endpoint();
    let refused = |arguments: &[&str], code, says: &str| {
        let all = ["copy"].iter().chain(arguments).copied();
        let said = here.run(all).fails(code);
        assert!(said.contains(says), "{arguments:?}: {said}");
    };
    refused(
        &["none", "--from", &endpoint, "--wait"],
        exit::NOT_FOUND,
        "\"none\" not found",
    );
    refused(
        &["estimate", "none", "--from", &endpoint],
        exit::NOT_FOUND,
        "\"none\" not found",
    );
    refused(
        &["image", "--from", &endpoint, "--name", "taken", "--wait"],
        exit::ALREADY_EXISTS,
        "taken",
    );
    refused(
        &["image", "--from", &endpoint, "--name", "a b"],
        exit::USAGE,
        "a b",
    );
    refused(
        &["image", "--from", "http://192.0.2.1:7433"],
        exit::USAGE,
        "plain HTTP",
    );
    refused(&["image", "--from", "ftp://x"], exit::USAGE, "unix:PATH");
    refused(
        &["image", "--from", "eu"],
        exit::NOT_FOUND,
        "no remote \"eu\"",
    );
    refused(
        &["a", "b", "--from", &endpoint, "--name", "c"],
        exit::USAGE,
        "--name is for one",
    );
    refused(&["show", "copy-1"], exit::NOT_FOUND, "copy-1");
    refused(&["cancel", "copy-1"], exit::NOT_FOUND, "copy-1");
    assert_eq!(here.names(), ["taken"]);
    // A copy over the unix socket.
    let unix = here.json([
        "copy",
        "image",
        "--from",
        &pair.there.varved.endpoint(),
        "--wait",
    ]);
    assert_eq!(unix["state"], "completed");
}
