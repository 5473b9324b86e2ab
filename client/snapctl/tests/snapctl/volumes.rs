//! `snapctl volume` as a user runs it.

use serde_json::json;
use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, parse, run, succeed};

#[test]
fn snapctl_answers_people_and_programs() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "base"]);
    let json = |arguments: &[&str]| {
        let arguments = [&["--output=json", "volume"], arguments].concat();
        parse(&succeed(&daemon, &arguments))
    };
    let text = |arguments: &[&str]| succeed(&daemon, &[&["volume"], arguments].concat());

    let mut volume = json!({
        "id": "vol-00000000000000001",
        "name": "web/db",
        "size_bytes": 10_u64 << 30,
        "base": null,
        "parent": null,
        "created_at": "2023-11-14T22:13:20Z",
        "tags": { "tier": "gold" },
        "attached_at": null,
        "attachments": 0,
        "owner": "000000000000",
    });
    let create = ["create", "web/db", "--size", "10G", "--tag", "tier=gold"];
    assert_eq!(json(&create), volume);
    let from = json(&["create", "--name", "clone", "--from", "base"]);
    assert_eq!(from["parent"], "snap-00000000000000001");
    assert_eq!(from["size_bytes"], 20 << 20);
    assert_eq!(from["base"].as_str().unwrap().len(), 64);
    assert_eq!(
        json(&["list", "--tag", "tier=gold"]),
        json!({ "volumes": [volume] })
    );
    assert_eq!(
        json(&["list", "--limit", "1"])["volumes"][0]["name"],
        "clone"
    );
    assert_eq!(
        text(&["list", "--name-prefix", "web", "-o", "wide"]),
        "NAME    ID                         SIZE  ATTACHED  CREATED               TAGS\n\
         web/db  vol-00000000000000001  10.0 GiB  -         2023-11-14T22:13:20Z  tier=gold\n"
    );

    assert_eq!(
        text(&["attach", "web/db"]),
        "Volume  web/db (vol-00000000000000001)\n\
         NBD     nbd+unix:///volume/web/db?socket=/data/nbd.sock\n\
         NBD     nbd://127.0.0.1:10809/volume/web/db\n\
         \n\
         snapctl device map volume/web/db\n\
         qemu-system-x86_64 -drive if=virtio,format=raw,discard=unmap,file.driver=nbd,file.server.type=unix,\
         file.server.path=/data/nbd.sock,file.export=volume/web/db,file.reconnect-delay=600\n"
    );
    for command in ["attach", "delete"] {
        let (code, _, stderr) = run(&daemon, &["volume", command, "web/db"]);
        assert_eq!(code, 8, "{stderr}");
        let takes = if command == "attach" {
            "; --force takes it over"
        } else {
            ""
        };
        assert_eq!(
            stderr,
            format!(
                "snapctl: {command} volume web/db: volume web/db is attached: \
                 `snapctl volume detach web/db` first{takes}\n"
            )
        );
    }
    volume["attached_at"] = json!("2023-11-14T22:13:20Z");
    volume["attachments"] = json!(2);
    assert_eq!(
        json(&["attach", "web/db", "--force"]),
        json!({
            "volume": volume,
            "export": "volume/web/db",
            "nbd_uris": [
                "nbd+unix:///volume/web/db?socket=/data/nbd.sock",
                "nbd://127.0.0.1:10809/volume/web/db",
            ],
        })
    );
    assert_eq!(
        text(&["show", "web/db"]),
        "Name         web/db\n\
         Id           vol-00000000000000001\n\
         Size         10.0 GiB\n\
         Base         -\n\
         Parent       -\n\
         Attached     since 2023-11-14T22:13:20Z\n\
         Attachments  2\n\
         Created      2023-11-14T22:13:20Z\n\
         Tag          tier=gold\n"
    );
    assert_eq!(
        text(&["detach", "web/db"]),
        "detached web/db (vol-00000000000000001)\n"
    );
    volume["attached_at"] = json!(null);
    volume["tags"] = json!({ "new": "" });
    let tag = ["tag", "web/db", "new=", "--remove", "tier"];
    assert_eq!(json(&tag), volume);
    assert_eq!(json(&["delete", "web/db"]), volume);
    let (code, _, stderr) = run(&daemon, &["volume", "show", "web/db"]);
    assert_eq!(code, 3, "{stderr}");
    let (code, _, stderr) = run(&daemon, &["volume", "create", "clone", "--size", "1M"]);
    assert_eq!(code, 4, "{stderr}");
}

#[test]
fn a_wrong_command_line_is_told_what_is_wrong() {
    let daemon = FakeDaemon::start(Manners::default());
    for (arguments, said) in [
        (&["create", "--size", "1G"][..], "<NAME"),
        (
            &["create", "a"],
            "snapctl: create volume a: give --size, or --from SNAPSHOT\n",
        ),
        (
            &["create", "a", "--name", "b", "--size", "1G"],
            "cannot be used",
        ),
        (&["create", "a", "--size", "1GB"], "K, M, G or T"),
        (&["create", "a", "--size", "0"], "more than 0"),
        (&["tag", "a"], "KEY=VALUE"),
        (&["attach"], "<VOLUME>"),
    ] {
        let (code, _, stderr) = run(&daemon, &[&["volume"], arguments].concat());
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}
