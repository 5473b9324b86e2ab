//! Pending snapshots: their content is complete in the end, even if the daemon ends meanwhile.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use varve_store::{
    failpoints::{Failpoint, VARIABLE},
    format::names,
};
use varve_tests::{
    daemon::{Options, Varved},
    lab::Lab,
    loop_fs::LoopFs,
    nbd::{errno, go_data, option, option_reply},
    random::Random,
    snapctl::{exit, number, text},
};

use super::{MIB, all_completed, completed, make, peer, snapshot, tool_run, uri, volume};

/// Fills a disk with random data, a mebibyte at a time. Returns its content.
fn fill(lab: &Lab, disk: &str, mib: u64, seed: u64) -> Vec<u8> {
    let mut model = vec![0; usize::try_from(mib * MIB).unwrap()];
    Random::seeded(seed).fill(&mut model);
    let mut peer = peer(&lab.varved, disk);
    for (offset, bytes) in (0..).step_by(1 << 20).zip(model.chunks(1 << 20)) {
        assert_eq!(peer.write(offset, bytes).unwrap(), 0);
    }
    model
}

fn states(lab: &Lab) -> Vec<(String, String)> {
    let list = lab.snapctl().json(["snapshot", "list"]);
    let snapshots = list["snapshots"].as_array().unwrap().iter();
    snapshots
        .map(|snapshot| (text(snapshot, "name"), text(snapshot, "state")))
        .collect()
}

#[test]
fn a_snapshot_is_pending_first_and_shows_how_far_it_is() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 96M");
    let model = fill(&lab, "disk", 96, 301);
    let snapctl = lab.snapctl();
    let made = snapctl.json([
        "snapshot",
        "create",
        "disk",
        "--name",
        "s",
        "--tag",
        "tier=gold",
    ]);
    assert_eq!(made["state"], "pending");
    assert_eq!(made["root"], Value::Null);
    assert_eq!(made["volume_name"], "disk");
    assert_eq!(made["tags"], json!({ "tier": "gold" }));
    let disk = snapctl.json(["volume", "show", "disk"]);
    assert_eq!(made["volume_id"], disk["id"]);
    let pending = &disk["status"]["pending"][0];
    assert_eq!(pending["id"], made["id"], "it takes longer than to ask");
    assert!(number(&disk["status"], "journal_bytes") >= 96 * MIB);
    assert!(number(&disk["status"], "journal_bytes_max") > 96 * MIB);
    assert!(number(&disk["status"], "map_bytes") > 0);
    // Calls that need its content are refused, with the reason.
    for (arguments, code) in [
        ("snapshot verify s", exit::CONFLICT),
        ("snapshot diff s s", exit::CONFLICT),
        ("export s -", exit::CONFLICT),
        ("volume create x --from s", exit::CONFLICT),
        ("volume clone snapshot/s --name x", exit::CONFLICT),
    ] {
        let said = snapctl.run(arguments.split(' ')).fails(code);
        assert!(said.contains("\"s\" is pending"), "{arguments}: {said}");
    }
    let said = tool_run("nbdinfo", &[&lab.varved.nbd_uri("s")]).fails(1);
    assert!(said.contains("snapshot/s"), "{said}");
    let mut asking = varve_tests::nbd::Peer::unix(&lab.varved.nbd_socket()).unwrap();
    asking.greet().unwrap();
    let replies = asking.ask(option::GO, &go_data("snapshot/s")).unwrap();
    let (kind, said) = replies.last().unwrap();
    assert_eq!(*kind, option_reply::ERR_UNKNOWN);
    let said = String::from_utf8_lossy(said);
    assert!(said.contains("\"s\" is pending"), "{said}");
    let mut seen = Vec::new();
    loop {
        let shown = snapctl.show("s");
        if shown["state"] != "pending" {
            break;
        }
        let progress = &shown["progress"];
        seen.push((
            number(progress, "done_bytes"),
            number(progress, "total_bytes"),
        ));
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.iter().all(|(done, total)| done <= total), "{seen:?}");
    assert_eq!(states(&lab), [("s".to_owned(), "completed".to_owned())]);
    lab.assert_content("s", &lab.scratch.file("model", &model));
    let shown = snapctl.show("s");
    assert_eq!(shown["created_at"], made["created_at"]);
    assert_eq!(
        (&shown["progress"], &shown["failure"]),
        (&Value::Null, &Value::Null)
    );
    let disk = snapctl.json(["volume", "show", "disk"]);
    assert_eq!(disk["parent"], shown["id"]);
    assert_eq!(disk["status"]["pending"], json!([]));
    assert_eq!(number(&disk["status"], "journal_bytes"), 0);
}

#[test]
fn several_volumes_at_one_instant_are_named_by_volume() {
    let lab = Lab::new();
    for disk in ["web", "db"] {
        make(&lab.varved, disk, "--size 8M");
    }
    let snapctl = lab.snapctl();
    let create = [
        "snapshot", "create", "web", "db", "--name", "nightly", "--wait",
    ];
    let made = snapctl.json(create);
    let made = made["snapshots"].as_array().unwrap();
    let mut all: Vec<_> = made.iter().map(|snapshot| text(snapshot, "name")).collect();
    all.sort();
    assert_eq!(all, ["nightly-db", "nightly-web"]);
    assert_eq!(made[0]["created_at"], made[1]["created_at"]);
    assert_eq!(made[0]["state"], "completed");
    for (arguments, code, why) in [
        ("web db --name nightly", exit::ALREADY_EXISTS, "nightly-"),
        ("web web --name x", exit::USAGE, "twice"),
        ("web none --name x", exit::NOT_FOUND, "\"none\""),
    ] {
        let arguments = ["snapshot", "create"]
            .into_iter()
            .chain(arguments.split(' '));
        let said = snapctl.run(arguments).fails(code);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(states(&lab).len(), 2);
}

#[test]
fn deleting_a_pending_snapshot_cancels_it() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 64M");
    let model = fill(&lab, "disk", 64, 302);
    let snapctl = lab.snapctl();
    snapctl
        .run(["snapshot", "create", "disk", "--name", "s"])
        .ok();
    volume(&lab.varved, "detach disk");
    let said = snapctl
        .run(["volume", "delete", "disk"])
        .fails(exit::CONFLICT);
    assert!(said.contains("1 pending snapshots"), "{said}");
    snapctl.run(["snapshot", "delete", "s"]).ok();
    assert_eq!(states(&lab), []);
    volume(&lab.varved, "attach disk");
    snapshot(&lab.varved, "disk", "s");
    lab.assert_content("s", &lab.scratch.file("model", &model));
    volume(&lab.varved, "detach disk");
    volume(&lab.varved, "delete disk");
    let left: Vec<_> = fs::read_dir(names::volumes(&lab.data_dir()))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn pending_snapshots_go_on_after_kills() {
    let mut lab = Lab::new();
    make(&lab.varved, "disk", "--size 48M");
    let mut models = Vec::new();
    for round in 0..4u64 {
        models.push(fill(&lab, "disk", 16 + 8 * round, 310 + round));
        let name = format!("s{round}");
        let made = lab
            .snapctl()
            .json(["snapshot", "create", "disk", "--name", &name]);
        assert_eq!(made["state"], "pending");
        thread::sleep(Duration::from_millis(20 * round));
        lab.varved.kill();
        lab.restart();
    }
    // No client uses the volume: the snapshots complete by themselves.
    all_completed(&lab.varved);
    let mut whole = vec![0; 48 << 20];
    for (round, model) in models.iter().enumerate() {
        whole[..model.len()].copy_from_slice(model);
        let name = format!("s{round}");
        lab.snapctl().verify(&name);
        lab.assert_content(&name, &lab.scratch.file("model", &whole));
    }
    let parents = (1..4).map(|round| lab.snapctl().show(&format!("s{round}"))["parent"].clone());
    let ids = (0..3).map(|round| lab.snapctl().show(&format!("s{round}"))["id"].clone());
    assert_eq!(parents.collect::<Vec<_>>(), ids.collect::<Vec<_>>());
    let disk = lab.snapctl().json(["volume", "show", "disk"]);
    assert_eq!(number(&disk["status"], "journal_bytes"), 0);
}

/// The daemon ends at any point of an instant, or of the work after it: an acknowledged snapshot is
/// completed in the end.
#[test]
fn a_crash_at_a_point_leaves_what_was_promised_or_nothing() {
    for (point, count, promised) in [
        (Failpoint::EpochsEnded, 1, false),
        (Failpoint::InstantDurable, 1, false),
        (Failpoint::BeforeCatalogLog, 1, false),
        (Failpoint::CatalogApplied, 1, false),
        (Failpoint::ChunksAppended, 1, true),
        (Failpoint::PacksSynced, 1, true),
        (Failpoint::GroupIndexed, 1, true),
        (Failpoint::BeforeCatalogLog, 2, true),
        (Failpoint::CatalogLogWritten, 2, true),
        (Failpoint::CatalogLogSynced, 2, true),
        (Failpoint::CatalogApplied, 2, true),
    ] {
        let mut lab = Lab::new();
        for disk in ["a", "b"] {
            make(&lab.varved, disk, "--size 4M");
        }
        lab.varved.stop();
        let armed = format!("{}:{count}", point.name());
        lab.restart_with(|options| options.env(VARIABLE, &armed));
        let models = [fill(&lab, "a", 2, 321), fill(&lab, "b", 1, 322)];
        let create = ["snapshot", "create", "a", "b", "--name", "s"];
        let answered = lab.snapctl().run(create).status.success();
        assert!(answered || !promised, "{armed}");
        lab.varved.wait();
        assert!(lab.varved.log().contains("failpoint"), "{armed}");
        lab.restart();
        all_completed(&lab.varved);
        let there = states(&lab);
        assert!(there.is_empty() || there.len() == 2, "{armed}: {there:?}");
        assert!(!promised || there.len() == 2, "{armed}: {there:?}");
        for ((name, _), model) in there.iter().zip(&models) {
            let mut model = model.clone();
            model.resize(4 << 20, 0);
            lab.assert_content(name, &lab.scratch.file("model", &model));
        }
        // It continues from there.
        for disk in ["a", "b"] {
            snapshot(&lab.varved, disk, &format!("after-{disk}"));
        }
    }
}

/// Waits until a pending snapshot is shown to lack space.
fn waits_for_room(varved: &Varved, snapshot: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let shown = varved.snapctl().show(snapshot);
        assert_eq!(shown["state"], "pending", "{shown}");
        if shown["failure"]
            .as_str()
            .is_some_and(|why| why.contains("no space left"))
        {
            return;
        }
        assert!(Instant::now() < deadline, "no reason is shown: {shown}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_snapshot_waits_while_the_disk_is_full() {
    let Some(disk) = LoopFs::mount(500 * MIB) else {
        return;
    };
    let mut varved = Options::new(disk.path().join("data")).start();
    make(&varved, "disk", "--size 160M");
    let mut client = peer(&varved, "disk");
    let mut random = Random::seeded(331);
    let mut bytes = vec![0; 1 << 20];
    for place in 0..120 {
        random.fill(&mut bytes);
        assert_eq!(client.write(place * MIB, &bytes).unwrap(), 0);
    }
    // Less is left than chunks may take, and than a full journal file takes.
    let other = disk.path().join("other");
    let free = number(&varved.snapctl().json(["status"]), "free_bytes");
    fs::write(
        &other,
        vec![0xab; usize::try_from(free - 60 * MIB).unwrap()],
    )
    .unwrap();
    let snapctl = varved.snapctl();
    let create = ["snapshot", "create", "disk", "--name", "s"];
    snapctl.run(create).ok();
    waits_for_room(&varved, "s");
    let said = snapctl
        .run(["snapshot", "verify", "s"])
        .fails(exit::CONFLICT);
    assert!(said.contains("\"s\" is pending"), "{said}");
    // The guest continues, in a journal file of its own, though there is no space for a full one.
    assert_eq!(client.write(0, &[7; 4096]).unwrap(), 0);
    varved.kill();
    varved = Options::new(disk.path().join("data")).start();
    let snapctl = varved.snapctl();
    waits_for_room(&varved, "s");
    fs::remove_file(&other).unwrap();
    completed(&varved, "s");
    snapctl.verify("s");
    let mut client = peer(&varved, "disk");
    assert_eq!(client.read_bytes(119 * MIB, 1 << 20).unwrap(), Ok(bytes));
    assert_eq!(client.read_bytes(0, 4096).unwrap(), Ok(vec![7; 4096]));
    varved.stop();
}

#[test]
fn a_volume_grows_while_it_is_attached() {
    let lab = Lab::new();
    make(&lab.varved, "disk", "--size 4608");
    let mut before = peer(&lab.varved, "disk");
    assert_eq!(before.write(4096, &[1; 512]).unwrap(), 0);
    snapshot(&lab.varved, "disk", "small");
    let resized = lab.snapctl().json(["volume", "resize", "disk", "10M"]);
    assert_eq!(number(&resized, "size_bytes"), 10 * MIB);
    // A client sees it when it connects again.
    assert_eq!(before.write(4096, &[2; 512]).unwrap(), 0);
    assert_eq!(before.write(8192, &[2; 512]).unwrap(), errno::ENOSPC);
    let size = tool_run("nbdinfo", &["--size", &uri(&lab.varved, "disk")]).success();
    assert_eq!(size.text().trim(), (10 * MIB).to_string());
    let mut after = peer(&lab.varved, "disk");
    assert_eq!(after.write(10 * MIB - 512, &[3; 512]).unwrap(), 0);
    let mut model = vec![0; 10 << 20];
    model[4096..4608].fill(2);
    model[(10 << 20) - 512..].fill(3);
    snapshot(&lab.varved, "disk", "large");
    lab.assert_content("large", &lab.scratch.file("model", &model));
    assert_eq!(number(&lab.snapctl().show("small"), "size_bytes"), 4608);
    for (size, why) in [
        ("4M", "only grow"),
        ("10485761", "multiple of 512"),
        ("17T", "at most"),
    ] {
        let said = lab
            .snapctl()
            .run(["volume", "resize", "disk", size])
            .fails(exit::USAGE);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn clones_begin_as_their_sources_and_go_their_own_way() {
    let lab = Lab::new();
    let image = lab.image("image", 20 * MIB, 341);
    lab.snapctl().import(&image, "base");
    let snapctl = lab.snapctl();
    let clone = snapctl.json(["volume", "clone", "base", "--name", "disk", "--tag", "a=b"]);
    let base = snapctl.show("base");
    assert_eq!(
        (&clone["base"], &clone["parent"]),
        (&base["root"], &base["id"])
    );
    assert_eq!(clone["tags"], json!({ "a": "b" }));
    volume(&lab.varved, "attach disk");
    let mut peer = peer(&lab.varved, "disk");
    assert_eq!(peer.write(5 * MIB, &[7; 9000]).unwrap(), 0);
    let clone = snapctl.json(["volume", "clone", "disk", "--name", "copy", "--size", "24M"]);
    assert_eq!(clone["parent"], base["id"]);
    assert_eq!(peer.write(5 * MIB, &[8; 9000]).unwrap(), 0);
    volume(&lab.varved, "attach copy");
    snapshot(&lab.varved, "copy", "of-copy");
    let mut model = fs::read(&image).unwrap();
    model.resize(24 << 20, 0);
    model[5 << 20..][..9000].fill(7);
    lab.assert_content("of-copy", &lab.scratch.file("model", &model));
    for (arguments, code, why) in [
        ("disk --name copy", exit::ALREADY_EXISTS, "already exists"),
        (
            "none --name x",
            exit::NOT_FOUND,
            "snapshot or volume \"none\"",
        ),
        ("disk --name x --size 1M", exit::USAGE, "volume \"disk\""),
    ] {
        let arguments = ["volume", "clone"].into_iter().chain(arguments.split(' '));
        let said = snapctl.run(arguments).fails(code);
        assert!(said.contains(why), "{said}");
    }
    // A name that both have must be qualified.
    completed(&lab.varved, "of-copy");
    volume(&lab.varved, "create base --size 1M");
    let said = snapctl
        .run(["volume", "clone", "base", "--name", "x"])
        .fails(exit::USAGE);
    assert!(said.contains("snapshot/base or volume/base"), "{said}");
    volume(&lab.varved, "clone snapshot/base --name x");
    assert_eq!(snapctl.json(["volume", "show", "x"])["base"], base["root"]);
}
