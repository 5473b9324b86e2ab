//! Data directories in a wrong state: refused with the reason, or repaired.

use std::fs;

use varve_store::format::{PackKind, names};
use varve_tests::{
    daemon::Options,
    data_dir, files,
    lab::Lab,
    loop_fs::LoopFs,
    process::{command, run},
    programs::{self, tool},
    scratch::Scratch,
    snapctl::exit,
};

const MIB: u64 = 1 << 20;

/// Some snapshots with tags, and a stopped daemon. Returns the listing that must come back.
fn stopped_lab() -> (Lab, serde_json::Value) {
    let mut lab = Lab::new();
    for (number, seed) in (0..4).zip(101..) {
        let file = lab.image(&format!("image-{number}"), 14 * MIB, seed);
        let tag = format!("number={number}");
        lab.snapctl().import_with(
            &file,
            &format!("snapshot-{number}"),
            ["--tag", &tag, "--tag", "all=yes"],
        );
    }
    // A record that was changed, and one that was deleted.
    lab.snapctl()
        .run(["snapshot", "tag", "snapshot-1", "all=no"])
        .ok();
    lab.snapctl().run(["snapshot", "delete", "snapshot-3"]).ok();
    let list = lab.snapctl().json(["snapshot", "list"]);
    lab.varved.stop();
    (lab, list)
}

fn assert_all_there(lab: &Lab, list: &serde_json::Value) {
    assert_eq!(lab.snapctl().json(["snapshot", "list"]), *list);
    for name in lab.snapctl().verify_all() {
        let number = name.strip_prefix("snapshot-").unwrap();
        lab.assert_content(&name, &lab.scratch.join(format!("image-{number}")));
    }
}

fn rebuild(lab: &Lab) -> varve_tests::process::Finished {
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(lab.data_dir());
    run(rebuild)
}

#[test]
fn an_index_that_was_deleted_is_rebuilt_with_names_and_tags() {
    let (mut lab, list) = stopped_lab();
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(
        said.contains("varved rebuild"),
        "the refusal does not say what helps: {said}"
    );
    rebuild(&lab).ok();
    lab.restart();
    assert_all_there(&lab, &list);
    // Nothing has to be sent again, and the store works.
    let again = lab
        .snapctl()
        .import(&lab.scratch.join("image-3"), "snapshot-3");
    assert_eq!(again.new_bytes(), 0);
    let more = lab.image("more", 10 * MIB, 105);
    lab.snapctl().import(&more, "more");
    lab.varved.stop();
    lab.restart();
    lab.assert_content("more", &more);
}

#[test]
fn an_index_that_is_there_is_rebuilt_to_the_same() {
    let (mut lab, list) = stopped_lab();
    rebuild(&lab).ok();
    // A second rebuild.
    rebuild(&lab).ok();
    lab.restart();
    assert_all_there(&lab, &list);
}

#[test]
fn an_index_of_garbage_is_refused_with_a_hint_and_rebuilt() {
    let (mut lab, list) = stopped_lab();
    let index = names::index(&lab.data_dir());
    for entry in fs::read_dir(&index).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(&path, "no index").unwrap();
        }
    }
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(said.contains("index") && said.contains("rebuild"), "{said}");
    rebuild(&lab).ok();
    lab.restart();
    assert_all_there(&lab, &list);
}

#[test]
fn a_rebuild_says_what_is_damaged_and_brings_back_the_rest() {
    let (mut lab, list) = stopped_lab();
    let records = data_dir::records(&lab.data_dir(), PackKind::Chunks);
    let broken = &records[records.len() / 2];
    data_dir::flip_byte(&broken.path, broken.offset_bytes + 8);
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    let finished = rebuild(&lab);
    assert_eq!(finished.status.code(), Some(6));
    let said = finished.text() + &finished.stderr;
    assert!(
        said.contains(&broken.pack.to_string()) && said.contains(&broken.offset_bytes.to_string()),
        "{said}"
    );
    lab.restart();
    assert_eq!(lab.snapctl().json(["snapshot", "list"]), list);
    let damaged: Vec<_> = lab
        .snapctl()
        .names()
        .into_iter()
        .filter(|name| {
            !lab.snapctl()
                .run(["snapshot", "verify", name])
                .status
                .success()
        })
        .collect();
    assert!(damaged.len() <= 1, "one chunk is broken: {damaged:?}");
}

#[test]
fn a_rebuild_beside_a_running_daemon_is_refused() {
    let lab = Lab::new();
    let file = lab.image("image", MIB, 106);
    lab.snapctl().import(&file, "image");
    let finished = rebuild(&lab);
    assert!(!finished.status.success(), "{finished:?}");
    let said = finished.text() + &finished.stderr;
    assert!(
        said.contains(lab.data_dir().to_str().unwrap()) && said.contains("in use"),
        "{said}"
    );
    lab.assert_content("image", &file);
}

#[test]
fn a_directory_that_another_daemon_has_open_is_refused() {
    let lab = Lab::new();
    let file = lab.image("image", MIB, 107);
    lab.snapctl().import(&file, "image");
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(
        said.contains(lab.data_dir().to_str().unwrap()) && said.contains("in use"),
        "{said}"
    );
    // The second daemon has not taken the sockets of the first.
    lab.assert_content("image", &file);
    varve_tests::nbd::Peer::unix(&lab.varved.nbd_socket())
        .unwrap()
        .open("snapshot/image")
        .unwrap();
}

#[test]
fn an_unknown_format_version_is_refused() {
    let (mut lab, list) = stopped_lab();
    let path = names::store_file(&lab.data_dir());
    let known = fs::read_to_string(&path).unwrap();
    let unknown = known.replace("format_version = 1\n", "format_version = 9\n");
    assert_ne!(unknown, known, "the version is in the file");
    for content in [unknown.as_str(), "", "garbage", &known[..known.len() / 2]] {
        fs::write(&path, content).unwrap();
        let said = Options::new(lab.data_dir()).start_refused();
        assert!(said.contains(path.to_str().unwrap()), "{content:?}: {said}");
    }
    fs::write(&path, &unknown).unwrap();
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(said.contains('9') && said.contains("version"), "{said}");
    fs::write(&path, &known).unwrap();
    lab.restart();
    assert_all_there(&lab, &list);
}

#[test]
fn a_pack_of_another_store_is_not_taken_for_ones_own() {
    let (mut lab, _) = stopped_lab();
    let mut other = Lab::new();
    let file = other.image("image", MIB, 108);
    other.snapctl().import(&file, "image");
    other.varved.stop();
    let (_, own) = data_dir::packs(&lab.data_dir(), PackKind::Chunks).remove(0);
    let (_, foreign) = data_dir::packs(&other.data_dir(), PackKind::Chunks).remove(0);
    fs::copy(foreign, own).unwrap();
    // The start may refuse it, or reads may report damage. It must not be read as a valid store.
    let mut varved = Options::new(lab.data_dir()).spawn();
    let refused = varve_tests::process::wait_for("varved to be ready or to end", || {
        varved
            .ended()
            .map(|_| true)
            .or_else(|| varved.is_ready().then_some(false))
    });
    if refused {
        assert!(varved.log().contains("chunk-"), "{}", varved.log());
    } else {
        for name in varved.snapctl().names() {
            let _ = varved.snapctl().verify_finds(&name);
        }
    }
    lab.varved = varved;
}

#[test]
fn a_torn_end_of_the_catalog_log_is_cut_off() {
    let (mut lab, list) = stopped_lab();
    let path = names::catalog_log(&lab.data_dir());
    let whole = fs::read(&path).unwrap();
    let last = &whole[whole.len() - 4096..];
    for torn in [
        &b"V"[..],
        &[0; 4096],
        &[0xff; 33],
        &last[..20],
        &last[..100],
        last,
    ] {
        let mut bytes = whole.clone();
        bytes.extend_from_slice(torn);
        fs::write(&path, &bytes).unwrap();
        lab.restart();
        assert_all_there(&lab, &list);
        lab.varved.stop();
    }
    // Records can follow the cut.
    lab.restart();
    lab.snapctl()
        .run(["snapshot", "tag", "snapshot-0", "after=torn"])
        .ok();
    let list = lab.snapctl().json(["snapshot", "list"]);
    lab.varved.stop();
    fs::remove_dir_all(names::index(&lab.data_dir())).unwrap();
    rebuild(&lab).ok();
    lab.restart();
    assert_all_there(&lab, &list);
}

#[test]
fn damage_in_the_middle_of_the_catalog_log_is_refused_and_mended_from_the_index() {
    let (mut lab, list) = stopped_lab();
    let path = names::catalog_log(&lab.data_dir());
    let whole = fs::read(&path).unwrap();
    // The first record begins after the header and contains the name of the first snapshot.
    let name = b"snapshot-0";
    let at = whole
        .windows(name.len())
        .position(|window| window == name)
        .expect("the name is in the log");
    data_dir::flip_byte(&path, at as u64);
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(
        said.contains("catalog.log") && said.contains("offset"),
        "{said}"
    );
    // The reported offset is that of the record, which begins before the name.
    let offsets: Vec<usize> = said
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    assert!(
        offsets
            .iter()
            .any(|offset| *offset <= at && at - offset < 4096 && *offset > 0),
        "{at}: {said}"
    );
    // Without an index, nothing has what the record had.
    let index = names::index(&lab.data_dir());
    let aside = lab.scratch.join("index-aside");
    let damaged = fs::read(&path).unwrap();
    fs::rename(&index, &aside).unwrap();
    let said = rebuild(&lab).fails(exit::FAILURE);
    assert!(said.contains("cannot be written anew"), "{said}");
    assert!(
        fs::read(&path).unwrap() == damaged,
        "a log that is refused is left alone"
    );
    // The index has all that the records left behind.
    fs::rename(&aside, &index).unwrap();
    let rebuilt = rebuild(&lab);
    assert_eq!(rebuilt.status.code(), Some(exit::DAMAGED), "{rebuilt:?}");
    assert!(rebuilt.text().contains("written anew"), "{rebuilt:?}");
    let kept = names::catalog_log_damaged(&lab.data_dir(), 0);
    assert!(fs::read(kept).unwrap() == damaged);
    lab.restart();
    assert_all_there(&lab, &list);
    lab.varved.stop();
    fs::remove_dir_all(&index).unwrap();
    rebuild(&lab).ok();
    lab.restart();
    assert_all_there(&lab, &list);
}

#[test]
fn a_catalog_log_that_is_gone_or_older_is_refused() {
    let (mut lab, list) = stopped_lab();
    let path = names::catalog_log(&lab.data_dir());
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(said.contains("catalog.log"), "{said}");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let said = Options::new(lab.data_dir()).start_refused();
    assert!(said.contains("catalog.log"), "{said}");
    fs::write(&path, &whole).unwrap();
    lab.restart();
    assert_all_there(&lab, &list);
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let (mut lab, list) = stopped_lab();
    let dir = lab.data_dir();
    let strangers = [
        dir.join("README"),
        dir.join("lost+found"),
        names::packs(&dir).join("notes.txt"),
        names::packs(&dir).join("chunk-zz.pack"),
        names::packs(&dir).join("chunk-0000000000000001.pack.orig"),
    ];
    for path in &strangers {
        fs::write(path, "not ours").unwrap();
    }
    lab.restart();
    assert_all_there(&lab, &list);
    lab.varved.stop();
    rebuild(&lab).ok();
    lab.restart();
    assert_all_there(&lab, &list);
    for path in &strangers {
        assert_eq!(fs::read(path).unwrap(), b"not ours", "{}", path.display());
    }
}

#[test]
fn a_directory_that_is_no_store_is_refused() {
    let scratch = Scratch::new();
    let full = scratch.join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("thesis.txt"), "do not lose").unwrap();
    let said = Options::new(&full).start_refused();
    assert!(
        said.contains("thesis.txt") || said.contains("not empty"),
        "{said}"
    );
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    let said = run({
        rebuild.arg(&full);
        rebuild
    })
    .fails(1);
    assert!(said.contains("thesis.txt"), "{said}");
    let left: Vec<_> = fs::read_dir(&full)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["thesis.txt"], "nothing is made in what is refused");
    let empty = scratch.join("empty");
    fs::create_dir(&empty).unwrap();
    let mut rebuild = command(programs::varved(), ["rebuild", "--data-dir"]);
    rebuild.arg(&empty);
    run(rebuild).fails(1);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);

    let file = scratch.file("file", "");
    let said = Options::new(&file).start_refused();
    assert!(said.contains(file.to_str().unwrap()), "{said}");

    let said = run(command(programs::varved(), ["--data-dir"])).fails(2);
    assert!(said.contains("--data-dir"), "{said}");
}

#[test]
fn a_data_directory_is_made_with_its_parents() {
    let scratch = Scratch::new();
    let file = scratch.file("image", [7; 8192]);
    let varved = Options::new(scratch.join("a/b/data")).start();
    varved.snapctl().import(&file, "image");
    varved.snapctl().verify("image");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let Some(disk) = LoopFs::mount(192 * MIB) else {
        return;
    };
    let scratch = Scratch::new();
    let options = Options::new(disk.path().join("data"));
    let mut varved = options.start();
    let file = scratch.file("image", [7; 8192]);
    varved.snapctl().import(&file, "image");
    varved.stop();
    let remount = |how: &str| {
        run(command(
            tool("mount"),
            [
                "-o",
                &format!("remount,{how}"),
                disk.path().to_str().unwrap(),
            ],
        ))
        .ok();
    };
    remount("ro");
    let said = options.start_refused();
    assert!(said.contains("ead-only"), "{said}");
    remount("rw");
    let varved = options.start();
    varved.snapctl().verify("image");
}

#[test]
fn sockets_are_where_they_are_asked_for() {
    let scratch = Scratch::new();
    let (grpc, nbd) = (scratch.join("g.sock"), scratch.join("n.sock"));
    let mut varved = Options::new(scratch.join("data"))
        .argument("--grpc-unix")
        .argument(&grpc)
        .argument("--nbd-unix")
        .argument(&nbd)
        .start();
    assert!(!scratch.join("data/grpc.sock").exists() && !scratch.join("data/nbd.sock").exists());
    let snapctl = varve_tests::snapctl::Snapctl::new(format!("unix:{}", grpc.display()));
    let file = scratch.file("image", [7; 8192]);
    snapctl.import(&file, "image");
    assert_eq!(
        varve_tests::nbd::Peer::unix(&nbd)
            .unwrap()
            .open("snapshot/image")
            .unwrap(),
        8192
    );
    // A killed daemon leaves its sockets, and the next one replaces them.
    varved.kill();
    assert!(grpc.exists());
    drop(varved);
    let mut varved = Options::new(scratch.join("data"))
        .argument("--grpc-unix")
        .argument(&grpc)
        .start();
    assert_eq!(snapctl.names(), ["image"]);
    varved.stop();
    assert!(!grpc.exists(), "a daemon that stops takes its sockets away");
    // A file that is not a socket is not removed for one.
    fs::write(&grpc, "precious").unwrap();
    let said = Options::new(scratch.join("data"))
        .argument("--grpc-unix")
        .argument(&grpc)
        .start_refused();
    assert!(said.contains("g.sock"), "{said}");
    assert_eq!(files::read_range(&grpc, 0, 8), b"precious");
}

#[test]
fn a_configuration_that_cannot_be_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.join("data");
    for (number, content) in [
        "[store]\nunknown = 1\n",
        "not toml",
        "[grpc]\ntcp = \"no address\"\n",
    ]
    .iter()
    .enumerate()
    {
        let file = scratch.file(&format!("{number}.toml"), content);
        let said = Options::new(&data)
            .argument("--config")
            .argument(&file)
            .start_refused();
        assert!(said.contains(&format!("{number}.toml")), "{said}");
    }
    let said = Options::new(&data)
        .argument("--config")
        .argument(scratch.join("absent.toml"))
        .start_refused();
    assert!(said.contains("absent.toml"), "{said}");
    assert!(!data.exists(), "a daemon that cannot start makes no store");
    let file = scratch.file("good.toml", "[store]\ncompression = \"lz4\"\n");
    let varved = Options::new(&data)
        .argument("--config")
        .argument(&file)
        .start();
    assert_eq!(varved.snapctl().json(["status"])["compression"], "lz4");
}
