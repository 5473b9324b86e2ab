//! Stores of earlier versions: they open with all their content, and continue as stores of this
//! version.

use std::{env, ffi::OsStr, fs, path::Path};

use varve_store::format::{
    PackKind, names,
    pack::{PackHeader, TRAILER_BYTES, Trailer},
};
use varve_tests::{
    data_dir, image,
    lab::Lab,
    nbd::Peer,
    process::{command, run, wait_for},
    programs::{self, repository, tool},
    snapctl::number,
};

use super::long_log::{header, lengthen_log};

const BLOCK: usize = 4096;

/// A lab with a store of that name in place of its own, and a stopped daemon.
pub(super) fn lab_with(store: &str) -> Lab {
    let mut lab = Lab::new();
    lab.varved.stop();
    let data_dir = lab.data_dir();
    fs::remove_dir_all(&data_dir).unwrap();
    let archive = repository().join("tests/stores").join(store);
    let mut unpack = command(tool("tar"), ["--no-same-owner", "--strip-components=1"]);
    fs::create_dir(&data_dir).unwrap();
    unpack.arg("-C").arg(&data_dir).arg("-xzf").arg(archive);
    run(unpack).ok();
    lab
}

/// The content of the snapshot `image`: 64 blocks that differ, with a hole of ten.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> = (0..64u8)
        .flat_map(|block| [block.wrapping_mul(37).wrapping_add(1); BLOCK])
        .collect();
    image[20 * BLOCK..30 * BLOCK].fill(0);
    image
}

/// The same with the flushed writes to both volumes, which are in their journals.
fn written(mut image: Vec<u8>) -> Vec<u8> {
    image[BLOCK..2 * BLOCK].fill(7);
    image[3 * BLOCK..4 * BLOCK].fill(9);
    image
}

fn assert_volumes(lab: &Lab) {
    for (name, expected) in [
        ("blank", written(vec![0; 1 << 20])),
        ("from-image", written(image())),
    ] {
        lab.snapctl().run(["volume", "attach", name]).ok();
        let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
        let export = format!("volume/{name}");
        assert_eq!(peer.open(&export).unwrap(), expected.len() as u64);
        let len = u32::try_from(expected.len()).unwrap();
        assert!(
            peer.read_bytes(0, len).unwrap().unwrap() == expected,
            "{name}"
        );
        drop(peer);
        lab.snapctl().run(["volume", "detach", name]).ok();
    }
}

/// The records of every store that [`make_a_store`] made; [`assert_volumes`] reads their content.
fn assert_records(lab: &Lab) {
    let snapctl = lab.snapctl();
    assert_eq!(snapctl.names(), ["cut", "image"]);
    let (image, cut) = (snapctl.show("image"), snapctl.show("cut"));
    assert_eq!(image["tags"]["os"], "debian");
    assert_eq!(cut["parent"], image["id"]);
    let volume = snapctl.json(["volume", "show", "from-image"]);
    assert_eq!(cut["volume_id"], volume["id"]);
    assert_eq!(volume["tags"]["tier"], "gold");
    assert_eq!(volume["parent"], cut["id"]);
    let by_tag = snapctl.json(["snapshot", "list", "--tag", "os=debian"]);
    assert_eq!(by_tag["snapshots"][0]["id"], image["id"]);
    let remotes = snapctl.json(["remote", "list"]);
    assert_eq!(remotes["remotes"][0]["name"], "eu");
}

/// The content of a snapshot of `from-image` between its two writes.
fn cut() -> Vec<u8> {
    let mut cut = image();
    cut[BLOCK..2 * BLOCK].fill(7);
    cut
}

/// The stores that all later versions must open, by the commits that made them.
const KEPT: [&str; 2] = ["310654a", "777ba71"];

#[test]
fn stores_of_earlier_commits_open_and_go_on() {
    for commit in KEPT {
        println!("a store made by {commit}");
        opens_and_goes_on(&mut lab_with(&format!("made-by-{commit}.tar.gz")));
    }
}

/// With `VARVE_KEEP_STORE` it also packs the store to that file, for later versions to open.
#[test]
fn a_store_that_is_made_now_opens_and_goes_on() {
    let mut lab = make_a_store();
    if let Some(archive) = env::var_os("VARVE_KEEP_STORE") {
        pack(&lab, &archive);
    }
    opens_and_goes_on(&mut lab);
}

/// The kept store of this kind, by the commit that made it.
const KEPT_COLLECTED: &str = "38e7818";

#[test]
fn a_collected_store_of_an_earlier_commit_opens_and_is_collected() {
    let archive = format!("collected-by-{KEPT_COLLECTED}.tar.gz");
    opens_and_is_collected(&mut lab_with(&archive));
}

/// With `VARVE_KEEP_STORE` it also packs the store to that file.
#[test]
fn a_collected_store_that_is_made_now_opens_and_is_collected() {
    let mut lab = make_a_collected_store();
    if let Some(archive) = env::var_os("VARVE_KEEP_STORE") {
        pack(&lab, &archive);
    }
    opens_and_is_collected(&mut lab);
}

fn opens_and_is_collected(lab: &mut Lab) {
    let log = names::catalog_log(&lab.data_dir());
    let checkpoint = header(&log).checkpoint.unwrap();
    opens_and_goes_on(lab);
    let report = lab.snapctl().json(["gc", "run"]);
    assert!(number(&report, "packs_removed") > 0, "{report}");
    assert_eq!(lab.snapctl().verify_all(), ["cut", "image"]);
    assert_eq!(header(&log).checkpoint, Some(checkpoint));
    lab.varved.stop();
    opens_and_goes_on(lab);
}

/// Starts a stopped store that [`make_a_store`] made, and checks all of its content: as it is, and
/// after index and catalog were made again from what this version and the earlier one wrote.
fn opens_and_goes_on(lab: &mut Lab) {
    let image = lab.scratch.file("expected", image());
    let cut = lab.scratch.file("expected-cut", cut());
    let check = |lab: &Lab| {
        assert_records(lab);
        lab.assert_content("image", &image);
        lab.assert_content("cut", &cut);
        assert_volumes(lab);
    };
    lab.restart();
    check(lab);
    lab.varved.stop();
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(lab.data_dir());
    run(rebuild).ok();
    lab.restart();
    check(lab);
    assert_eq!(lab.snapctl().verify_all(), ["cut", "image"]);
}

/// The content of the stores `tests/stores/made-by-*`, made by the programs under test.
fn make_a_store() -> Lab {
    let mut lab = Lab::new();
    let snapctl = lab.snapctl();
    let file = lab.scratch.file("image", image());
    snapctl.import(&file, "image");
    snapctl.run(["snapshot", "tag", "image", "os=debian"]).ok();
    snapctl
        .run(["volume", "create", "blank", "--size", "1M"])
        .ok();
    snapctl
        .run(["volume", "create", "from-image", "--from", "image"])
        .ok();
    snapctl
        .run(["volume", "tag", "from-image", "tier=gold"])
        .ok();
    snapctl
        .run(["remote", "add", "eu", "unix:/run/nowhere"])
        .ok();
    let peers = ["blank", "from-image"].map(|name| {
        snapctl.run(["volume", "attach", name]).ok();
        let mut peer = Peer::unix(&lab.varved.nbd_socket()).unwrap();
        peer.open(&format!("volume/{name}")).unwrap();
        peer
    });
    let first = |peer: &mut Peer| {
        assert_eq!(peer.write(BLOCK as u64, &[7; BLOCK]).unwrap(), 0);
        assert_eq!(peer.flush().unwrap(), 0);
    };
    let second = |peer: &mut Peer| {
        assert_eq!(peer.write(3 * BLOCK as u64, &[9; BLOCK]).unwrap(), 0);
        assert_eq!(peer.flush().unwrap(), 0);
    };
    let mut peers = peers;
    peers.iter_mut().for_each(first);
    let cut = [
        "snapshot",
        "create",
        "from-image",
        "--name",
        "cut",
        "--wait",
    ];
    snapctl.run(cut).ok();
    peers.iter_mut().for_each(second);
    drop(peers);
    for name in ["blank", "from-image"] {
        snapctl.run(["volume", "detach", name]).ok();
    }
    lab.varved.stop();
    lab
}

/// The same, with a log that begins with a checkpoint, in packs that a collection has written, and
/// with a pack of garbage.
fn make_a_collected_store() -> Lab {
    let mut lab = make_a_store();
    lengthen_log(&lab, "image");
    lab.restart();
    let log = names::catalog_log(&lab.data_dir());
    wait_for("the log to begin with a checkpoint", || {
        header(&log).checkpoint
    });
    let store_garbage = |name: &str, seed| {
        let garbage = image::make_random(&lab.scratch, name, 20 * BLOCK as u64, seed);
        lab.snapctl().import(&garbage, name);
        lab.snapctl().run(["snapshot", "delete", name]).ok();
    };
    store_garbage("collected", 1);
    let report = lab.snapctl().json(["gc", "run"]);
    assert!(number(&report, "copied_bytes") > 0, "{report}");
    store_garbage("garbage", 2);
    lab.varved.stop();
    fs::remove_file(names::catalog_log_old(&lab.data_dir())).unwrap();
    lab
}

/// Packs a store whose daemon has stopped, so that it can be kept.
pub(super) fn pack(lab: &Lab, archive: &OsStr) {
    let mut pack = command(
        tool("tar"),
        ["--sparse", "--exclude=LOCK", "--exclude=LOG*"],
    );
    pack.arg("-C").arg(lab.scratch.path());
    pack.arg("-czf").arg(archive).arg("data");
    run(pack).ok();
}

fn version_of(path: &Path) -> Option<[u8; 12]> {
    PackHeader::decode(&fs::read(path).unwrap()).unwrap().nonce
}

#[test]
fn packs_without_random_bytes_and_journals_without_owners() {
    let mut lab = lab_with("packs-1-without-owners.tar.gz");
    let expected = lab.scratch.file("expected", image());
    let old = data_dir::packs(&lab.data_dir(), PackKind::Chunks);
    assert_eq!((old.len(), version_of(&old[0].1)), (1, None));

    lab.restart();
    lab.assert_content("image", &expected);
    assert_volumes(&lab);
    let more = lab.image("more", 2 << 20, 301);
    lab.snapctl().import(&more, "more");
    lab.varved.stop();

    // Nothing is appended to a pack of the old version: it is sealed as one.
    let bytes = fs::read(&old[0].1).unwrap();
    let last = &bytes[bytes.len() - TRAILER_BYTES..];
    assert_eq!(
        Trailer::decode(last, bytes.len() as u64).unwrap().nonce,
        None
    );
    let packs = data_dir::packs(&lab.data_dir(), PackKind::Chunks);
    assert_eq!(packs.len(), 2);
    assert!(version_of(&packs[1].1).is_some());

    // The journals have owner records now, and the catalog can be made again from them.
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(lab.data_dir());
    run(rebuild).ok();
    let volumes = fs::read_dir(names::volumes(&lab.data_dir())).unwrap();
    let owners = volumes.filter(|dir| dir.as_ref().unwrap().path().join("owner").is_file());
    assert_eq!(owners.count(), 2);
    lab.restart();
    lab.assert_content("image", &expected);
    lab.assert_content("more", &more);
    lab.snapctl().verify("image");
    assert_volumes(&lab);
}
