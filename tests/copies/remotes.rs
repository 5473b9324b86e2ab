//! Named daemons, and the lineage of a copied snapshot.

use std::fs;

use serde_json::json;
use varve_tests::{
    identity::Identity,
    lab::Lab,
    process::{command, run},
    programs,
    scratch::Scratch,
    snapctl::{exit, text},
};

use super::{MIB, Pair};

#[test]
fn a_remote_is_named_once_and_copied_from_by_name() {
    let identities = Scratch::new();
    let identity = Identity::make(&identities);
    let there = Lab::with(|options| identity.serve_known(options));
    let image = there.image("image", 12 * MIB, 601);
    there.snapctl().import(&image, "image");
    let endpoint = there.varved.tcp_endpoint().replace("http://", "https://");

    let mut here = Lab::new();
    let snapctl = here.snapctl();
    let files = [&identity.authority, &identity.cert, &identity.key];
    let files = files.map(|path| path.to_str().unwrap().to_owned());
    let add = |name: &str| {
        let [ca, cert, key] = &files;
        let arguments = ["remote", "add", name, &endpoint, "--ca", ca];
        let identity = ["--cert", cert, "--key", key];
        snapctl.run(arguments.iter().chain(&identity))
    };
    add("eu").ok();
    // A second time, with a name that could be an endpoint, with missing files, with one file of a
    // pair.
    let said = add("eu").fails(exit::ALREADY_EXISTS);
    assert!(said.contains("remote") && said.contains("eu"), "{said}");
    let said = add("eu:1").fails(exit::USAGE);
    assert!(
        said.contains("':' is not") || said.contains("colon"),
        "{said}"
    );
    let absent = identities.join("absent.pem");
    let said = snapctl
        .run([
            "remote",
            "add",
            "x",
            &endpoint,
            "--ca",
            absent.to_str().unwrap(),
        ])
        .fails(exit::FAILURE);
    assert!(said.contains("absent.pem"), "{said}");
    snapctl
        .run(["remote", "add", "x", &endpoint, "--cert", &files[1]])
        .fails(exit::USAGE);
    let garbage = identities.file("garbage.pem", "no certificate");
    let showing = ["--cert", garbage.to_str().unwrap(), "--key", &files[2]];
    let said = snapctl
        .run(["remote", "add", "x", &endpoint].iter().chain(&showing))
        .fails(exit::USAGE);
    assert!(said.contains("cannot be used"), "{said}");
    let said = snapctl
        .run(["remote", "add", "x", "http://192.0.2.1:7433"])
        .fails(exit::USAGE);
    assert!(said.contains("plain HTTP"), "{said}");

    let listed = snapctl.json(["remote", "list"]);
    let mut expected = json!({
        "name": "eu", "endpoint": endpoint, "allow_plaintext": false,
        "tls_ca": files[0], "tls_cert": files[1], "tls_key": files[2], "token_file": null,
        "owner": "000000000000",
    });
    expected["created_at"] = listed["remotes"][0]["created_at"].clone();
    assert_eq!(listed, json!({ "remotes": [expected] }));

    let from = ["--from", "eu"];
    let estimate = snapctl.json(["copy", "estimate", "image"].iter().chain(&from));
    assert_eq!(estimate["root"], there.snapctl().show("image")["root"]);
    let copied = snapctl.json(["copy", "image", "--wait"].iter().chain(&from));
    assert_eq!(
        (&copied["state"], &copied["endpoint"]),
        (&json!("completed"), &json!("eu"))
    );
    here.assert_content("image", &image);

    // It survives a restart and a rebuild. Its files are read when they are needed.
    here.varved.stop();
    fs::remove_dir_all(here.data_dir().join("index")).unwrap();
    let directory = here.data_dir();
    run(command(
        programs::varved(),
        ["rebuild", "--data-dir", directory.to_str().unwrap()],
    ))
    .ok();
    here.restart();
    let snapctl = here.snapctl();
    assert_eq!(snapctl.json(["remote", "list"]), listed);
    fs::rename(&identity.key, identities.join("away")).unwrap();
    let said = snapctl
        .run(["copy", "estimate", "image", "--from", "eu"])
        .fails(exit::CONFLICT);
    assert!(said.contains("key.pem"), "{said}");
    fs::rename(identities.join("away"), &identity.key).unwrap();
    snapctl
        .run(["copy", "estimate", "image", "--from", "eu"])
        .ok();

    snapctl.run(["remote", "remove", "eu"]).ok();
    snapctl
        .run(["remote", "remove", "eu"])
        .fails(exit::NOT_FOUND);
    assert_eq!(snapctl.json(["remote", "list"]), json!({ "remotes": [] }));
    let said = snapctl
        .run(["copy", "image", "--from", "eu"])
        .fails(exit::NOT_FOUND);
    assert!(said.contains("no remote \"eu\""), "{said}");
}

#[test]
fn a_remote_that_is_copied_from_is_not_removed() {
    let pair = Pair::new();
    let image = pair.image("image", 24, 611);
    pair.there.snapctl().import(&image, "image");
    let here = pair.here.snapctl();
    let endpoint = pair.there.varved.tcp_endpoint();
    here.run(["remote", "add", "us", &endpoint]).ok();
    let begun = here.json(["copy", "image", "--from", "us", "--limit", "64K"]);
    let id = text(&begun, "id");
    let said = here.run(["remote", "remove", "us"]).fails(exit::CONFLICT);
    assert!(said.contains(&id), "{said}");
    here.run(["copy", "cancel", &id]).ok();
    here.run(["remote", "remove", "us"]).ok();
}

#[test]
fn a_copied_snapshot_tells_its_volume_its_time_and_the_one_before_it() {
    let pair = Pair::new();
    let (there, here) = (pair.there.snapctl(), pair.here.snapctl());
    let image = pair.image("image", 12, 621);
    there.import(&image, "image");
    there
        .run(["volume", "create", "disk", "--from", "image"])
        .ok();
    for name in ["one", "two"] {
        there
            .run(["snapshot", "create", "disk", "--name", name, "--wait"])
            .ok();
    }
    // The second snapshot first: its parent is not here.
    let lineage = [
        "created_at",
        "volume_id",
        "volume_name",
        "size_bytes",
        "root",
    ];
    for (snapshot, parent_here) in [("two", None), ("one", None), ("image", None)] {
        pair.copy(snapshot, &[]);
        let (original, copied) = (there.show(snapshot), here.show(snapshot));
        for field in lineage {
            assert_eq!(copied[field], original[field], "{snapshot}: {field}");
        }
        assert_eq!(
            copied["parent"],
            parent_here.unwrap_or(original["parent"].clone())
        );
        assert_ne!(copied["id"], original["id"]);
    }
    // Now the parent is here, and has an id of its own.
    pair.copy("two", &["--name", "again"]);
    assert_eq!(here.show("again")["parent"], here.show("one")["id"]);
}
