//! Copies by accounts: from remotes of their own only, and with nothing of this store but what is
//! theirs.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;
use varve_content::ChunkId;
use varve_tests::{
    daemon::Options,
    image,
    lab::Lab,
    process::{command, run, wait_for},
    programs::tool,
    random::Random,
    rpc::Content,
    snapctl::{exit, number, text},
};

use super::{account, admin, token, with_token};

const MIB: u64 = 1 << 20;

/// The number of distinct chunks of an image.
fn chunks(image: &Path) -> u64 {
    let content = Content::of(&std::fs::read(image).unwrap());
    let ids = content.chunks.iter().map(|chunk| chunk.id.as_ref());
    let ids: BTreeSet<_> = ids.map(|id| ChunkId::try_from(id).unwrap()).collect();
    ids.len() as u64
}

/// A store with the accounts `web` and `db`, whose remotes called `site` are another store.
fn pair() -> (Lab, Lab) {
    let there = Lab::with(Options::tcp);
    let here = Lab::with(Options::tcp);
    for name in ["web", "db"] {
        account(&here, name);
        let endpoint = there.varved.tcp_endpoint();
        admin(
            &here,
            &format!("remote create site {endpoint} --account {name}"),
        );
    }
    (there, here)
}

fn json(lab: &Lab, token: &Path, arguments: &str) -> Value {
    let said = with_token(lab, token, &format!("{arguments} --output json"));
    serde_json::from_str(&said.success().text()).unwrap()
}

/// Verifies the snapshots of all accounts.
fn verify_all(lab: &Lab) {
    let all = lab.snapctl().json(["snapshot", "list", "--owner", "all"]);
    for snapshot in all["snapshots"].as_array().unwrap() {
        lab.snapctl().verify(&text(snapshot, "id"));
    }
}

#[test]
fn an_account_sees_and_uses_what_belongs_to_it() {
    let (there, here) = pair();
    let image = there.image("image", 12 * MIB, 911);
    there.snapctl().import(&image, "image");
    let endpoint = there.varved.tcp_endpoint();
    let web = token(&here, "web.token", "web --scope copy");
    let db = token(&here, "db.token", "db");
    let with_file = format!(
        "remote create mine {endpoint} --remote-token-file {}",
        web.display()
    );
    admin(&here, &with_file);

    // Names are unique per account, and files are the administrator's.
    let owners = |remotes: &Value| -> Vec<_> {
        let all = remotes["remotes"].as_array().unwrap().iter();
        all.map(|it| (text(it, "name"), text(it, "owner")))
            .collect()
    };
    let all = owners(&here.snapctl().json(["remote", "list"]));
    assert_eq!(all.len(), 3, "{all:?}");
    assert_eq!(all[0], ("mine".to_owned(), "000000000000".to_owned()));
    let own = json(&here, &web, "remote list");
    assert_eq!(owners(&own).len(), 1, "{own}");
    assert_eq!(own["remotes"][0]["token_file"], Value::Null);
    let said = here
        .snapctl()
        .run(["remote", "create", "site", &endpoint, "--account", "web"]);
    said.fails(exit::ALREADY_EXISTS);
    let said = here
        .snapctl()
        .run(["remote", "create", "x", &endpoint, "--account", "none"]);
    said.fails(exit::NOT_FOUND);
    with_token(&here, &web, &format!("remote create x {endpoint}")).fails(super::DENIED);
    with_token(&here, &web, "remote delete site").fails(super::DENIED);

    // Copies come from remotes of the account only.
    let copy = |token: &Path, from: &str, name: &str| {
        let arguments = format!("copy image --from {from} --name {name} --wait");
        with_token(&here, token, &arguments)
    };
    let said = copy(&web, &endpoint, "x").fails(exit::USAGE);
    assert!(said.contains("remotes that belong to it"), "{said}");
    let estimate = format!("copy estimate image --from {endpoint}");
    with_token(&here, &web, &estimate).fails(exit::USAGE);
    for other in ["mine", "none"] {
        let said = copy(&web, other, "x").fails(exit::NOT_FOUND);
        assert!(said.contains("no remote"), "{said}");
    }
    here.snapctl()
        .run(["copy", "image", "--from", "site"])
        .fails(exit::NOT_FOUND);
    copy(&web, "site", "monday").ok();
    let shown = json(&here, &web, "snapshot show monday");
    assert_eq!(shown["root"], there.snapctl().show("image")["root"]);
    assert_eq!(number(&shown, "new_bytes"), 0);
    with_token(&here, &db, "snapshot show monday").fails(exit::NOT_FOUND);

    // Nobody else sees a copy, but the administrator.
    let listed = json(&here, &web, "copy list");
    let id = text(&listed["copies"][0], "id");
    for call in ["show", "cancel"] {
        let absent = "copy-00000000000000000";
        let others = with_token(&here, &db, &format!("copy {call} {id}")).fails(exit::NOT_FOUND);
        let none = with_token(&here, &db, &format!("copy {call} {absent}")).fails(exit::NOT_FOUND);
        assert_eq!(others.replace(&id, "ID"), none.replace(absent, "ID"));
    }
    with_token(&here, &db, &format!("copy limit {id} 1M")).fails(exit::NOT_FOUND);
    assert_eq!(
        json(&here, &db, "copy list")["copies"],
        serde_json::json!([])
    );
    let shown = here.snapctl().json(["copy", "show", &id]);
    assert_eq!(shown["owner"], listed["copies"][0]["owner"]);

    // Scopes, and an account that only reads.
    let reading = token(&here, "read.token", "web --scope read");
    with_token(&here, &reading, "copy list").fails(super::DENIED);
    admin(&here, "account set web --read-only");
    with_token(&here, &web, "copy list").ok();
    copy(&web, "site", "tuesday").fails(super::DENIED);

    // An account with a remote owns something.
    let said = here
        .snapctl()
        .run(["account", "delete", "db"])
        .fails(exit::CONFLICT);
    assert!(said.contains("remote"), "{said}");
    admin(&here, "remote delete site --account db");
    admin(&here, "account delete db");
}

/// Content that others have in the store is fetched all the same: its ids are no right to it.
#[test]
fn a_copy_of_an_account_fetches_all_that_its_snapshots_do_not_have() {
    let (there, mut here) = pair();
    let image = there.image("image", 24 * MIB, 921);
    there.snapctl().import(&image, "image");
    // Others have it here: whole, and under the same name.
    let endpoint = there.varved.tcp_endpoint();
    admin(&here, &format!("remote create site {endpoint}"));
    let copied = here
        .snapctl()
        .json(["copy", "image", "--from", "site", "--wait"]);
    let stored = number(&copied, "received_bytes");
    let all = chunks(&image);
    assert_eq!(number(&copied, "received_chunks"), all);

    let web = token(&here, "web.token", "web");
    let expected = json(&here, &web, "copy estimate image --from site");
    assert_eq!(number(&expected, "missing_chunks"), all);
    assert_eq!(number(&expected, "missing_bytes"), stored);
    assert_eq!(number(&expected, "present_data_bytes"), 0);
    let copied = json(&here, &web, "copy image --from site --wait");
    assert_eq!(number(&copied, "received_bytes"), stored);
    assert_eq!(number(&copied, "received_chunks"), all);
    // Its own content is not fetched again: the same snapshot, nor what the next one shares with
    // it.
    let again = json(&here, &web, "copy image --from site --name again --wait");
    assert_eq!(number(&again, "received_chunks"), 0, "{again}");
    verify_all(&here);

    there
        .snapctl()
        .run(["volume", "create", "disk", "--from", "image"])
        .ok();
    for name in ["one", "two"] {
        there
            .snapctl()
            .run(["volume", "attach", "disk", "--force"])
            .ok();
        let (offset, byte) = match name {
            "one" => (9 * MIB, 3),
            _ => (17 * MIB, 5),
        };
        let part = there.scratch.file("part", vec![byte; 300_000]);
        let socket = there.varved.nbd_socket();
        let uri = format!("nbd+unix:///volume/disk?socket={}", socket.display());
        let written = format!("write -s {} {offset} 300032", part.display());
        let arguments = ["-f", "raw", "-c", &written, "-c", "flush", &uri];
        run(command(tool("qemu-io"), arguments)).ok();
        let create = ["snapshot", "create", "disk", "--name", name, "--wait"];
        there.snapctl().run(create).ok();
    }
    // Another account has both, which makes no difference.
    let db = token(&here, "db.token", "db");
    for name in ["one", "two"] {
        json(&here, &db, &format!("copy {name} --from site --wait"));
    }
    let one = json(&here, &web, "copy one --from site --wait");
    let expected = json(&here, &web, "copy estimate two --from site");
    let two = json(&here, &web, "copy two --from site --wait");
    let (one, two) = (
        number(&one, "received_chunks"),
        number(&two, "received_chunks"),
    );
    assert!(
        two > 0 && two < all / 4 && one <= all,
        "{two}, {one} of {all} chunks"
    );
    assert_eq!(number(&expected, "missing_chunks"), two);
    let file = there.scratch.join("two");
    there.snapctl().export("two", &file);
    let shown = json(&here, &web, "snapshot show two");
    here.assert_content(&text(&shown, "id"), &file);
    verify_all(&here);

    // A copy that is under way belongs to its account after a restart, too.
    let changed = image::copy(&there.scratch, &image, "changed");
    image::change(&changed, 200, &mut Random::seeded(922));
    there.snapctl().import(&changed, "changed");
    let begun = json(&here, &web, "copy changed --from site --limit 1M");
    let id = text(&begun, "id");
    here.varved.stop();
    here.restart_with(Options::tcp);
    with_token(&here, &db, &format!("copy show {id}")).fails(exit::NOT_FOUND);
    json(&here, &web, &format!("copy limit {id} none"));
    wait_for("the copy to end", || {
        let shown = json(&here, &web, &format!("copy show {id}"));
        (shown["state"] == "completed").then_some(())
    });
    let shown = json(&here, &web, "snapshot show changed");
    here.assert_content(&text(&shown, "id"), &changed);
    assert!(
        !here.varved.log().contains("panicked"),
        "{}",
        here.varved.log()
    );
}
