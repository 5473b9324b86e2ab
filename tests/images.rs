//! Images as people use them: registered, listed, shared, deprecated and deregistered with
//! `snapctl`, and read over NBD.

use std::{fs, path::Path};

use serde_json::Value;
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{command, run},
    programs::tool,
    snapctl::{exit, text},
};

use crate::accounts::{account, admin, token, with_token};

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn image(lab: &Lab, line: &str) -> Value {
    lab.snapctl().json(["image"].into_iter().chain(words(line)))
}

fn names(listed: &Value) -> Vec<String> {
    let images = listed["images"].as_array().unwrap();
    images.iter().map(|it| text(it, "name")).collect()
}

fn export(uri: &str, file: &Path) {
    run(command(tool("nbdcopy"), [Path::new(uri), file])).ok();
}

#[test]
fn an_image_is_registered_read_and_deregistered() {
    let mut lab = Lab::new();
    let disk = lab.image("disk.img", 3 << 20, 311);
    let data = lab.image("data.img", 1 << 20, 312);
    lab.snapctl().import(&disk, "disk/1");
    lab.snapctl().import(&data, "data/1");
    let made = image(
        &lab,
        "register --name web-1 --boot-mode uefi --description first --tag os=debian \
         --block-device /dev/sda1=snapshot:disk/1,size=1G \
         --block-device /dev/sdb=snapshot:snapshot/data/1 \
         --block-device /dev/sdc=empty,size=2G,delete-on-termination=true \
         --block-device /dev/sdd=ephemeral0 --block-device /dev/sde=none",
    );
    let id = text(&made, "id");
    assert!(id.starts_with("ami-") && id.len() == 4 + 17, "{id}");
    assert_eq!(made["state"], "available");
    assert_eq!(made["boot_mode"], "uefi");
    assert_eq!(made["root_device"], "/dev/sda1");
    let devices = made["devices"].as_array().unwrap();
    let seen: Vec<_> = devices
        .iter()
        .map(|it| {
            (
                text(it, "source"),
                it["size_bytes"].clone(),
                it["delete_on_termination"].clone(),
            )
        })
        .collect();
    let device = |source: &str, size: Value, goes: bool| (source.to_owned(), size, goes.into());
    assert_eq!(
        seen,
        [
            device("snapshot", (1_u64 << 30).into(), true),
            device("snapshot", (1_u64 << 20).into(), false),
            device("empty", (2_u64 << 30).into(), true),
            device("ephemeral", Value::Null, false),
        ]
    );
    let said = lab
        .snapctl()
        .run(["image", "show", "web-1"])
        .success()
        .text();
    for line in [
        "debian",
        "/dev/sda1 snap-",
        "1.0 GiB, root, deleted with the instance",
        "uefi",
    ] {
        assert!(said.contains(line), "{said}");
    }

    // It is read over NBD, by its name and its id, and its other disk by that one's name.
    lab.varved.stop();
    lab.restart();
    let copy = lab.scratch.join("copy");
    let socket = lab.varved.nbd_socket();
    for (name, original) in [
        ("image/web-1".to_owned(), &disk),
        (format!("image/{id}"), &disk),
        (format!("image/{id}//dev/sdb"), &data),
    ] {
        export(
            &format!("nbd+unix:///{name}?socket={}", socket.display()),
            &copy,
        );
        assert!(
            fs::read(&copy).unwrap() == fs::read(original).unwrap(),
            "{name}"
        );
    }
    for name in [
        format!("image/{id}//dev/sdc"),
        format!("image/{id}/x"),
        "image/x".to_owned(),
    ] {
        let uri = format!("nbd+unix:///{name}?socket={}", socket.display());
        run(command(tool("nbdinfo"), ["--size", &*uri])).fails(1);
    }

    // Its snapshots stay as long as it does.
    let refused = lab
        .snapctl()
        .run(words("snapshot delete disk/1"))
        .fails(exit::CONFLICT);
    assert!(
        refused.contains(&id) && refused.contains("deregister the image first"),
        "{refused}"
    );
    let second = image(
        &lab,
        "register --name web-2 --block-device sda=snapshot:disk/1",
    );
    let taken = lab.snapctl().run(words(
        "image register --name web-2 --block-device sda=snapshot:disk/1",
    ));
    let taken = taken.fails(exit::ALREADY_EXISTS);
    assert!(taken.contains(&text(&second, "id")), "{taken}");
    image(&lab, "protect web-1");
    let refused = lab
        .snapctl()
        .run(words("image deregister web-1"))
        .fails(exit::CONFLICT);
    assert!(refused.contains("end its protection first"), "{refused}");
    image(&lab, "unprotect web-1");
    let gone = image(&lab, "deregister web-1 --delete-snapshots");
    let deleted = gone["deleted_snapshots"].as_array().unwrap();
    assert_eq!(
        deleted
            .iter()
            .map(|it| text(it, "name"))
            .collect::<Vec<_>>(),
        ["data/1"]
    );
    let kept = gone["kept_snapshots"].as_array().unwrap();
    assert!(
        kept.len() == 1 && text(&kept[0], "message").contains("web-2"),
        "{gone}"
    );
    lab.snapctl()
        .run(["image", "show", &id])
        .fails(exit::NOT_FOUND);
    let said = lab.snapctl().run(words("image deregister web-2")).success();
    assert!(
        said.stderr.contains("its snapshots stay: snap-"),
        "{}",
        said.stderr
    );
    assert_eq!(lab.snapctl().names(), ["disk/1"]);
}

#[test]
fn lists_have_what_filters_say() {
    let lab = Lab::new();
    let disk = lab.image("disk.img", 1 << 20, 313);
    lab.snapctl().import(&disk, "disk");
    for (name, more) in [
        ("debian-11", "--tag os=debian --architecture arm64"),
        ("debian-12", "--tag os=debian --description twelve"),
        ("ubuntu-24", "--tag os=ubuntu --boot-mode uefi-preferred"),
        ("win", "--platform windows"),
    ] {
        image(
            &lab,
            &format!("register --name {name} --block-device xvda=snapshot:disk {more}"),
        );
    }
    let list = |line: &str| names(&image(&lab, &format!("list {line}")));
    let all = ["debian-11", "debian-12", "ubuntu-24", "win"];
    assert_eq!(list(""), all);
    for (filter, found) in [
        ("--filter name=debian-*", &all[..2]),
        ("--filter name=debian-1?,win", &[all[0], all[1], all[3]]),
        (
            "--filter tag:os=debian --filter architecture=x86_64",
            &all[1..2],
        ),
        ("--filter tag:os=ubuntu", &all[2..3]),
        ("--filter tag-key=os", &all[..3]),
        ("--filter platform=Linux/UNIX", &all[..3]),
        ("--filter boot-mode=uefi-preferred", &all[2..3]),
        ("--filter description=tw*", &all[1..2]),
        ("--filter state=available", &all),
        ("--filter state=pending", &[]),
        (
            "--filter block-device-mapping.device-name=xvda --limit 2",
            &all[..2],
        ),
        ("--filter block-device-mapping.volume-size=1", &all),
        ("--filter creation-date=20*Z", &all),
        ("--filter is-public=true", &[]),
        ("--owner self", &all),
        ("--owner 999999999999", &[]),
        ("--executable-by self", &[]),
    ] {
        assert_eq!(list(filter), found, "{filter}");
    }
    let refused = lab
        .snapctl()
        .run(words("image list --filter title=x"))
        .fails(exit::USAGE);
    assert!(
        refused.contains("there is no filter \"title\""),
        "{refused}"
    );

    // Pages, with filters that leave out most.
    let disabled = image(&lab, "disable debian-11");
    assert_eq!(disabled["state"], "disabled");
    assert_eq!(list(""), all[1..]);
    assert_eq!(list("--include-disabled --filter state=disabled"), all[..1]);
    let deprecated = image(&lab, "deprecate win --after 1d");
    assert!(deprecated["deprecated_at"].is_string());
    assert_eq!(
        image(&lab, "deprecate win --never")["deprecated_at"],
        Value::Null
    );
    let past = lab
        .snapctl()
        .run(words("image deprecate win --at 2020-01-01"));
    assert!(past.fails(exit::USAGE).contains("in the past"));
}

#[test]
fn others_see_what_is_shared_with_them_and_nothing_else() {
    let lab = Lab::with(Options::tcp);
    let [web_id, db_id] = ["web", "db"].map(|name| account(&lab, name));
    let [web, db] = ["web", "db"].map(|name| token(&lab, name, name));
    let as_of = |token: &Path, line: &str| -> Value {
        let made = with_token(&lab, token, &format!("{line} -o json")).success();
        serde_json::from_slice(&made.stdout).unwrap()
    };
    let disk = lab.scratch.join("disk.img");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let made = as_of(&web, &format!("import {} --name base", disk.display()));
    let snapshot = text(&made["snapshot"], "id");
    let register = "image register --name base --block-device sda=snapshot:base --tag k=secret";
    let id = text(&as_of(&web, register), "id");

    let absent = "ami-00000000000000000";
    let refused = |command: &str| {
        let said = |id: &str| {
            let said = with_token(&lab, &db, &command.replace("ID", id)).fails(exit::NOT_FOUND);
            said.replace(id, "ID")
        };
        assert_eq!(said(&id), said(absent), "{command}");
    };
    let changes = [
        "image set ID --description x",
        "image tag ID a=b",
        "image share ID all",
        "image unshare ID all",
        "image deprecate ID --never",
        "image disable ID",
        "image protect ID",
        "image deregister ID --delete-snapshots",
    ];
    refused("image show ID");
    changes.iter().for_each(|command| refused(command));

    as_of(&web, &format!("image share {id} {db_id}"));
    let seen = as_of(&db, &format!("image show {id}"));
    assert_eq!(seen["owner"], web_id);
    assert_eq!(seen["tags"], serde_json::json!({}));
    assert_eq!(seen["shared_accounts"], serde_json::json!([]));
    changes.iter().for_each(|command| refused(command));
    // Neither a name of another's nor a tag finds it, and its snapshot is not shared with it.
    with_token(&lab, &db, "image show base").fails(exit::NOT_FOUND);
    with_token(&lab, &db, &format!("snapshot show {snapshot}")).fails(exit::NOT_FOUND);
    let listed = |line: &str| names(&as_of(&db, format!("image list {line}").trim_end()));
    assert_eq!(listed(""), ["base"]);
    assert_eq!(listed("--executable-by self"), ["base"]);
    assert_eq!(listed(&format!("--owner {web_id}")), ["base"]);
    for none in [
        "--owner self",
        "--filter tag:k=secret",
        "--filter tag:k=s*",
        "--filter tag-key=k",
    ] {
        assert_eq!(listed(none), [""; 0], "{none}");
    }
    assert_eq!(
        names(&as_of(&web, &format!("image list --executable-by {db_id}"))),
        ["base"]
    );

    // With everybody, once the administrator allows it.
    let refused = with_token(&lab, &web, "image share base all").fails(exit::CONFLICT);
    assert!(refused.contains("blocks public access"), "{refused}");
    admin(&lab, "account set web --public-images true");
    let public = as_of(&web, "image share base all");
    assert!(public["deprecated_at"].is_string(), "in two years");
    as_of(&web, &format!("image unshare base {db_id}"));
    assert_eq!(listed("--executable-by all"), ["base"]);
    as_of(&web, "image disable base");
    assert_eq!(listed(""), [""; 0]);
    with_token(&lab, &db, &format!("image show {id}")).fails(exit::NOT_FOUND);

    // An id from elsewhere is the administrator's to give.
    let given = "image register --name other --block-device sda=snapshot:base --id ami-12345678";
    let refused = with_token(&lab, &web, given).fails(1);
    assert!(refused.contains("only the administrator"), "{refused}");
    admin(
        &lab,
        &given.replace("snapshot:base", &format!("snapshot:{snapshot}")),
    );
    admin(&lab, &format!("account give {web_id} image/ami-12345678"));
    assert_eq!(
        text(&as_of(&web, "image show ami-12345678"), "name"),
        "other"
    );
}
