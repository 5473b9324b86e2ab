//! Clients of a later Debian, which speak extended headers.

use std::{fs, path::PathBuf};

use serde_json::Value;
use varve_tests::{
    daemon::Options,
    files,
    lab::Lab,
    process::{Finished, command, run, run_with_input},
    programs::{newer_root, repository, skip_because, tool},
    scratch::Scratch,
};

const MIB: u64 = 1 << 20;

/// A program of the later Debian, and a directory to exchange files with it.
struct Newer {
    root: PathBuf,
    /// Seen there as `/mnt`.
    shared: Scratch,
}

impl Newer {
    fn new() -> Option<Self> {
        let Some(root) = newer_root() else {
            skip_because("there is no later Debian; scripts/make-newer makes it");
            return None;
        };
        let shared = Scratch::new();
        Some(Self { root, shared })
    }

    fn run(&self, variables: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Finished {
        // In a mount namespace of its own: other tests use the same root.
        let script = r#"mount --bind "$1" "$2/mnt" && shift && root=$1 && shift && exec chroot "$root" "$@""#;
        let mut command = command(tool("unshare"), ["--mount", "sh", "-c", script, "sh"]);
        command.arg(self.shared.path()).arg(&self.root);
        command.args(arguments).envs(variables.iter().copied());
        run_with_input(command, input)
    }
}

#[test]
fn lengths_of_64_bits_are_understood() {
    let Some(newer) = Newer::new() else { return };
    let lab = Lab::with(Options::tcp);
    let snapctl = lab.snapctl();
    snapctl.import(&lab.image("image", 24 * MIB, 981), "image");
    snapctl
        .run([
            "volume", "create", "disk", "--from", "image", "--size", "6G",
        ])
        .ok();
    snapctl.run(["volume", "attach", "disk"]).ok();
    let uri = format!("nbd://{}/volume/disk", lab.varved.nbd_address());
    let script = fs::read(repository().join("tests/python/nbd_extended.py")).unwrap();
    let variables = [("URI", uri.as_str()), ("BEFORE", "image")];
    let finished = newer
        .run(&variables, &["nbdsh", "-c", "-"], &script)
        .success();
    assert!(
        finished.text().ends_with("all is as it should be\n"),
        "{finished:?}"
    );
}

#[test]
fn later_tools_read_and_write_what_ours_do() {
    let Some(newer) = Newer::new() else { return };
    let lab = Lab::with(Options::tcp);
    let snapctl = lab.snapctl();
    let image = lab.image("image", 48 * MIB + 4096, 982);
    snapctl.import(&image, "image");
    let uri = lab.varved.nbd_tcp_uri("image");
    let told = newer.run(&[], &["nbdinfo", "--json", &uri], b"").success();
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["extended"], true);
    assert_eq!(told["exports"][0]["export-size"], 48 * MIB + 4096);

    // Clients of both generations get the same map.
    let map = ["map", "--output", "json", "-f", "raw", &uri];
    let ours = run(command(tool("qemu-img"), map)).success();
    let newer_map: Vec<_> = ["qemu-img"].into_iter().chain(map).collect();
    let theirs = newer.run(&[], &newer_map, b"").success();
    let holes = |map: &Finished| -> Vec<(u64, u64)> {
        let extents: Vec<Value> = serde_json::from_slice(&map.stdout).unwrap();
        let holes = extents.iter().filter(|extent| extent["data"] == false);
        holes
            .map(|hole| {
                let number = |name: &str| hole[name].as_u64().unwrap();
                (number("start"), number("length"))
            })
            .collect()
    };
    assert!(!holes(&ours).is_empty());
    assert_eq!(holes(&ours), holes(&theirs));

    let copy = newer.shared.join("copy.raw");
    newer
        .run(&[], &["nbdcopy", &uri, "/mnt/copy.raw"], b"")
        .ok();
    files::assert_same(&image, &copy);
    fs::remove_file(&copy).unwrap();

    // Into a volume, by QEMU, and out of it by libnbd.
    snapctl
        .run(["volume", "create", "disk", "--size", "64M"])
        .ok();
    snapctl.run(["volume", "attach", "disk"]).ok();
    let volume = format!("nbd://{}/volume/disk", lab.varved.nbd_address());
    let convert = [
        "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &uri, &volume,
    ];
    newer.run(&[], &convert, b"").ok();
    newer
        .run(&[], &["nbdcopy", &volume, "/mnt/copy.raw"], b"")
        .ok();
    let mut whole = fs::read(&image).unwrap();
    whole.resize(usize::try_from(64 * MIB).unwrap(), 0);
    assert!(
        fs::read(&copy).unwrap() == whole,
        "the volume has the image's bytes"
    );
}
