//! Snapshots that are deleted at the source while they are copied, and garbage that is collected
//! there.

use serde_json::Value;
use varve_store::failpoints::{Failpoint, VARIABLE};
use varve_tests::{
    image,
    link::Link,
    process::wait_for,
    snapctl::{exit, number, text},
};

use super::{MIB, Pair};

/// More than a pack: a collection could remove it.
const IMAGE_BYTES: u64 = 300 * MIB;

/// Deletes a snapshot at the source, and collects garbage there.
fn delete(pair: &Pair, snapshot: &str) -> Value {
    let there = pair.there.snapctl();
    there.run(["snapshot", "delete", snapshot]).ok();
    there.json(["gc", "run"])
}

fn begin(pair: &Pair, link: &Link, snapshot: &str) -> String {
    let endpoint = link.endpoint();
    let arguments = ["copy", "create", snapshot, "--from", &endpoint];
    text(&pair.here.snapctl().json(arguments), "id")
}

fn ended(pair: &Pair, id: &str) -> Value {
    wait_for("a copy to end", || {
        let shown = pair.here.snapctl().json(["copy", "show", id]);
        let is_over = matches!(text(&shown, "state").as_str(), "completed" | "failed");
        is_over.then_some(shown)
    })
}

#[test]
fn the_source_keeps_what_it_gives() {
    let pair = Pair::new();
    let image = image::make_random(&pair.there.scratch, "image", IMAGE_BYTES, 581);
    pair.there.snapctl().import(&image, "image");
    let link = Link::to(&pair.there.varved);
    link.stall_after(IMAGE_BYTES / 3);
    let id = begin(&pair, &link, "image");
    wait_for("the copy to be under way", || {
        link.is_stalled().then_some(())
    });
    let report = delete(&pair, "image");
    assert_eq!(number(&report, "packs_removed"), 0, "{report}");
    link.stall(false);
    let copied = ended(&pair, &id);
    assert_eq!(copied["state"], "completed", "{copied}");
    pair.here.snapctl().verify("image");
    pair.here.assert_content("image", &image);
    // It was kept for the copy only, whose connections end with it.
    let there = pair.there.snapctl();
    wait_for("the space to come back", || {
        let report = there.json(["gc", "run"]);
        (number(&report, "packs_removed") > 0).then_some(())
    });
}

/// At each step, the copy is complete, or it fails and says why, and leaves nothing.
#[test]
fn a_deletion_at_any_step_is_told_or_makes_no_difference() {
    let pair = Pair::new();
    for (step, bytes) in [0, 100, 400, 1000, 4000, 30_000, MIB]
        .into_iter()
        .enumerate()
    {
        let name = format!("image-{step}");
        let image = pair.image(&name, 16, 590 + step as u64);
        pair.there.snapctl().import(&image, &name);
        let link = Link::to(&pair.there.varved);
        link.stall_after(bytes);
        let id = begin(&pair, &link, &name);
        wait_for("the copy to be under way", || {
            link.is_stalled().then_some(())
        });
        delete(&pair, &name);
        link.stall(false);
        let copied = ended(&pair, &id);
        if copied["state"] == "completed" {
            pair.here.snapctl().verify(&name);
            pair.here.assert_content(&name, &image);
        } else {
            let why = text(&copied, "last_error");
            assert!(
                why.contains("not found") || why.contains("was deleted"),
                "{why}"
            );
            assert_eq!(copied["last_error_kind"], "not_found", "{copied}");
            assert!(!pair.here.snapctl().names().contains(&name));
            assert!(bytes < MIB, "it was held by then: {copied}");
        }
    }
}

#[test]
fn a_copy_that_loses_its_source_and_the_snapshot_says_so() {
    let pair = Pair::new();
    let image = pair.image("image", 48, 601);
    pair.there.snapctl().import(&image, "image");
    let link = Link::to(&pair.there.varved);
    link.stall_after(MIB);
    let id = begin(&pair, &link, "image");
    wait_for("the copy to be under way", || {
        link.is_stalled().then_some(())
    });
    delete(&pair, "image");
    link.cut();
    link.stall(false);
    let copied = ended(&pair, &id);
    assert_eq!(copied["state"], "failed", "{copied}");
    let why = text(&copied, "last_error");
    assert!(why.contains("image was deleted at http://"), "{why}");
    let endpoint = link.endpoint();
    let arguments = ["copy", "create", "image", "--from", &endpoint, "--wait"];
    pair.here.snapctl().run(arguments).fails(exit::NOT_FOUND);
}

#[test]
fn another_snapshot_of_that_name_is_not_taken_for_it() {
    let pair = Pair::new();
    let image = pair.image("image", 48, 611);
    pair.there.snapctl().import(&image, "image");
    let link = Link::to(&pair.there.varved);
    link.stall_after(MIB);
    let id = begin(&pair, &link, "image");
    wait_for("the copy to be under way", || {
        link.is_stalled().then_some(())
    });
    delete(&pair, "image");
    let other = pair.changed(&image, "other", 10, 612);
    pair.there.snapctl().import(&other, "image");
    link.cut();
    link.stall(false);
    let copied = ended(&pair, &id);
    assert_eq!(copied["state"], "failed", "{copied}");
    let why = text(&copied, "last_error");
    assert!(why.contains("another one has its name"), "{why}");
}

/// The daemon ends between the snapshot of a copy and the record that says that it is complete.
#[test]
fn a_copy_that_has_made_its_snapshot_is_complete_whatever_becomes_of_the_source() {
    let mut pair = Pair::new();
    let image = pair.image("image", 8, 621);
    pair.there.snapctl().import(&image, "image");
    pair.here.varved.stop();
    // The catalog changes for the begun copy, for what was found, and for the snapshot.
    let armed = format!("{}:3", Failpoint::CatalogApplied.name());
    pair.here
        .restart_with(|options| options.env(VARIABLE, &armed));
    let endpoint = pair.there.varved.tcp_endpoint();
    let arguments = ["copy", "create", "image", "--from", &endpoint, "--wait"];
    pair.here.snapctl().run(arguments).fails(exit::UNREACHABLE);
    pair.here.varved.wait();
    delete(&pair, "image");
    pair.here.restart();
    let copies = pair.here.snapctl().json(["copy", "list"]);
    let copied = ended(&pair, &text(&copies["copies"][0], "id"));
    assert_eq!(copied["state"], "completed", "{copied}");
    assert_eq!(pair.here.snapctl().verify_all(), ["image"]);
    pair.here.assert_content("image", &image);
}
