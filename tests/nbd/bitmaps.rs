//! Changes since a snapshot, over NBD, and backups that read only those.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use varve_tests::{
    files,
    lab::Lab,
    process::{command, run},
    programs::{repository, tool},
    random::Random,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 72 * MIB + 4096;

/// A volume with snapshots `one` and `two`, and changes after each.
struct Scene {
    lab: Lab,
    random: Random,
}

impl Scene {
    fn new(test: &str) -> Self {
        let lab = Lab::new();
        let snapctl = lab.snapctl();
        snapctl.import(&lab.image("image", SIZE, 961), "image");
        snapctl
            .run(["volume", "create", "disk", "--from", "image"])
            .ok();
        snapctl.run(["volume", "attach", "disk"]).ok();
        let random = Random::of_test(test);
        let mut scene = Self { lab, random };
        for name in ["one", "two"] {
            scene.snapshot(name);
            scene.change();
        }
        scene
    }

    fn snapshot(&self, name: &str) {
        let arguments = ["snapshot", "create", "disk", "--name", name, "--wait"];
        self.lab.snapctl().run(arguments).ok();
    }

    fn uri(&self, export: &str) -> String {
        let socket = self.lab.varved.nbd_socket();
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// Writes, zeroes and discards, a few of each.
    fn change(&mut self) {
        let mut arguments = vec!["-f".to_owned(), "raw".to_owned()];
        for number in 0..12 {
            let length = 4096 * (1 + self.random.within(0..40));
            let offset = self.random.within(0..SIZE - length) / 512 * 512;
            let what = match number % 4 {
                0 => "write -z".to_owned(),
                1 => "discard".to_owned(),
                _ => format!("write -P {}", 1 + self.random.within(0..255)),
            };
            arguments.extend(["-c".to_owned(), format!("{what} {offset} {length}")]);
        }
        arguments.push(self.uri("volume/disk"));
        run(command(tool("qemu-io"), arguments)).ok();
    }

    /// The whole content of an export.
    fn content(&self, export: &str) -> PathBuf {
        let file = self
            .lab
            .scratch
            .join(format!("{}.raw", export.replace('/', "-")));
        let _ = fs::remove_file(&file);
        run(command(
            tool("nbdcopy"),
            [Path::new(&self.uri(export)), &file],
        ))
        .ok();
        file
    }

    /// The changes that an export reports since a snapshot, as offsets and lengths.
    fn dirty(&self, export: &str, since: &str) -> Vec<(u64, u64)> {
        let map = format!("--map=qemu:dirty-bitmap:{since}");
        let map = run(command(
            tool("nbdinfo"),
            [&*map, "--json", &self.uri(export)],
        ))
        .success();
        let map: Value = serde_json::from_slice(&map.stdout).unwrap();
        let mut end = 0;
        let mut dirty = Vec::new();
        for extent in map.as_array().unwrap() {
            let number = |field: &str| extent[field].as_u64().unwrap();
            assert_eq!(number("offset"), end, "without gaps");
            end += number("length");
            if number("type") == 1 {
                dirty.push((number("offset"), number("length")));
            }
        }
        assert_eq!(end, SIZE);
        dirty
    }

    /// Asserts that the reported ranges cover all differences, and little more.
    fn check(&self, export: &str, since: &str) {
        let (before, after) = (
            self.content(&format!("snapshot/{since}")),
            self.content(export),
        );
        let dirty = self.dirty(export, since);
        let differing = files::differing_blocks(&before, &after);
        assert!(!differing.is_empty());
        for block in &differing {
            let offset = block * 4096;
            let is_told = dirty
                .iter()
                .any(|(start, length)| (*start..start + length).contains(&offset));
            assert!(
                is_told,
                "{export} since {since}: block {block} of {dirty:?}"
            );
        }
        let told: u64 = dirty.iter().map(|(_, length)| length).sum();
        // Chunks of up to 256 KiB for each change, on both sides of it.
        assert!(
            told < 24 * 2 * (512 << 10) + 4096 * differing.len() as u64,
            "{told} bytes"
        );
    }
}

#[test]
fn all_that_differs_is_told_of_snapshots_and_of_volumes_that_are_written_to() {
    let mut scene = Scene::new("all_that_differs_is_told");
    scene.check("snapshot/two", "one");
    scene.check("snapshot/two", "image");
    scene.check("volume/disk", "one");
    scene.check("volume/disk", "two");
    // In the other direction, and between unrelated snapshots.
    scene.check("snapshot/one", "two");
    let other = scene.lab.image("other", SIZE, 962);
    scene.lab.snapctl().import(&other, "other");
    let everything = scene.dirty("snapshot/two", "other");
    let told: u64 = everything.iter().map(|(_, length)| length).sum();
    assert!(told > 10 * MIB);
    assert_eq!(scene.dirty("snapshot/two", "two"), []);
    // A snapshot empties the journal, and nothing has changed since.
    scene.snapshot("three");
    assert_eq!(scene.dirty("volume/disk", "three"), []);
    scene.change();
    scene.check("volume/disk", "three");
}

#[test]
fn contexts_are_listed_and_what_there_is_not_is_refused() {
    let scene = Scene::new("contexts_are_listed");
    let listed = |export: &str| {
        let arguments = ["--json", &scene.uri(export)];
        let info = run(command(tool("nbdinfo"), arguments)).success();
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        let contexts = info["exports"][0]["contexts"].as_array().unwrap().clone();
        let contexts = contexts
            .iter()
            .map(|context| context.as_str().unwrap().to_owned());
        contexts.collect::<Vec<_>>()
    };
    let named = |names: &[&str]| {
        let dirty = names.iter().map(|name| format!("qemu:dirty-bitmap:{name}"));
        let mut all = vec!["base:allocation".to_owned()];
        all.extend(dirty);
        all
    };
    assert_eq!(listed("snapshot/two"), named(&["one", "image"]));
    assert_eq!(listed("snapshot/image"), named(&[]));
    assert_eq!(listed("volume/disk"), named(&["two", "one", "image"]));
    let none = run(command(
        tool("nbdinfo"),
        ["--map=qemu:dirty-bitmap:none", &scene.uri("snapshot/two")],
    ));
    assert!(!none.status.success());
}

#[test]
fn qemu_reads_the_map() {
    let scene = Scene::new("qemu_reads_the_map");
    let socket = scene.lab.varved.nbd_socket();
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=snapshot/two,x-dirty-bitmap=qemu:dirty-bitmap:one",
        socket.display()
    );
    let map = run(command(
        tool("qemu-img"),
        ["map", "--output", "json", "--image-opts", &options],
    ));
    let map: Value = serde_json::from_slice(&map.success().stdout).unwrap();
    // QEMU shows dirty extents as `"data": false`.
    let mut dirty: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().unwrap() {
        if extent["data"] == false {
            dirty.push((
                extent["start"].as_u64().unwrap(),
                extent["length"].as_u64().unwrap(),
            ));
        }
    }
    assert_eq!(dirty, scene.dirty("snapshot/two", "one"));
}

#[test]
fn a_backup_that_reads_only_what_changed_is_the_snapshot() {
    let scene = Scene::new("a_backup_that_reads_only_what_changed");
    let backup = scene.content("snapshot/one");
    let script = repository().join("tests/python/pull_backup.py");
    let pull = |since: &str, export: &str| -> u64 {
        let uri = scene.uri(export);
        let arguments = [
            script.to_str().unwrap(),
            &uri,
            since,
            backup.to_str().unwrap(),
        ];
        let pulled = run(command(Path::new("/usr/bin/python3"), arguments)).success();
        pulled.text().trim().parse().unwrap()
    };
    let read = pull("one", "snapshot/two");
    assert!(read > 0 && read < SIZE / 3, "{read}");
    files::assert_same(&backup, &scene.content("snapshot/two"));
    // Again, while the volume is being written to.
    scene.snapshot("three");
    pull("two", "snapshot/three");
    files::assert_same(&backup, &scene.content("snapshot/three"));
    scene.lab.snapctl().verify("three");
}
