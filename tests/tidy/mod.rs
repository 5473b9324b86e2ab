//! Rules of the repository's structure that a program can check.

mod documents;
mod layers;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use varve_store::failpoints::Failpoint;
use varve_tests::{
    process::{command, run},
    programs::repository,
};

/// Longer files are split by their tasks.
const LINES_MAX: usize = 700;

fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = command(cargo, arguments);
    command
        .args(["--offline", "--locked"])
        .current_dir(repository());
    command
}

/// Every file of the checkout that is in the repository, or would be.
fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![repository()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // Directories of git and cargo, and Python's leftovers.
            if matches!(name, ".git" | "target" | "__pycache__") {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn rust_files() -> Vec<PathBuf> {
    files()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The root files of crates: libraries, programs, tests, benches, build scripts.
fn crate_roots() -> Vec<PathBuf> {
    let metadata = run(cargo(["metadata", "--no-deps", "--format-version=1"])).success();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let targets = packages
        .iter()
        .flat_map(|package| package["targets"].as_array().unwrap());
    targets
        .map(|target| PathBuf::from(target["src_path"].as_str().unwrap()))
        .collect()
}

/// Names of the modules that a file declares and that are in files of their own.
fn modules(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let rest = line
                .strip_prefix("pub ")
                .or_else(|| line.strip_prefix("pub(crate) "))
                .unwrap_or(line);
            let rest = rest.strip_prefix("pub(super) ").unwrap_or(rest);
            rest.strip_prefix("mod ")?.strip_suffix(';')
        })
        .collect()
}

#[test]
fn every_rust_file_belongs_to_a_crate() {
    let roots = crate_roots();
    let mut reached: BTreeSet<PathBuf> = BTreeSet::new();
    let mut waiting: Vec<(PathBuf, bool)> = roots.into_iter().map(|root| (root, true)).collect();
    while let Some((file, is_root)) = waiting.pop() {
        let dir = file.parent().unwrap();
        let base = if is_root || file.ends_with("mod.rs") {
            dir.to_owned()
        } else {
            file.with_extension("")
        };
        for module in modules(&read(&file)) {
            let candidates = [
                base.join(format!("{module}.rs")),
                base.join(module).join("mod.rs"),
            ];
            let found = candidates.into_iter().find(|path| path.is_file());
            let found =
                found.unwrap_or_else(|| panic!("{}: module {module} has no file", shown(&file)));
            waiting.push((found, false));
        }
        reached.insert(file);
    }
    let orphans: Vec<_> = rust_files()
        .into_iter()
        .filter(|path| !reached.contains(path))
        .map(|path| shown(&path))
        .collect();
    assert!(orphans.is_empty(), "no crate has these files: {orphans:?}");
}

#[test]
fn files_are_of_a_size_that_can_be_read() {
    let long: Vec<_> = rust_files()
        .into_iter()
        .map(|path| (read(&path).lines().count(), shown(&path)))
        .filter(|(lines, _)| *lines >= LINES_MAX)
        .collect();
    assert!(long.is_empty(), "split these by their tasks: {long:?}");
}

#[test]
fn every_file_begins_by_saying_what_is_in_it() {
    let silent: Vec<_> = rust_files()
        .into_iter()
        // A test file stands beside the file that it tests, and is about the same.
        .filter(|path| !path.ends_with("tests.rs") && !shown(path).contains("/tests/"))
        .filter(|path| !read(path).starts_with("//! "))
        .map(|path| shown(&path))
        .collect();
    assert!(
        silent.is_empty(),
        "these do not begin with `//! `: {silent:?}"
    );
}

/// Formats and content do no IO: they use no files, clocks or sockets.
#[test]
fn formats_and_content_do_no_input_or_output() {
    for dir in [
        "store/src/format",
        "store/content/src",
        "daemon/nbd/src/wire",
    ] {
        let dir = repository().join(dir);
        let mut seen = 0;
        for path in rust_files()
            .into_iter()
            .filter(|path| path.starts_with(&dir))
        {
            let text = read(&path);
            for outside in [
                "std::fs",
                "std::net",
                "std::io",
                "std::env",
                "std::time",
                "std::thread",
                "tokio::",
                "rustix::",
            ] {
                assert!(!text.contains(outside), "{} uses {outside}", shown(&path));
            }
            seen += 1;
        }
        assert!(seen > 0, "{} has no files", dir.display());
    }
}

/// The packages that a package is linked with.
fn linked(package: &str) -> BTreeSet<String> {
    let tree = run(cargo([
        "tree",
        "--edges=normal",
        "--prefix=none",
        "--format={p}",
        "-p",
        package,
    ]))
    .success()
    .text();
    let names: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    assert!(names.contains(package), "{tree}");
    names
}

#[test]
fn crates_depend_on_what_they_should() {
    for (package, never) in [
        (
            "varve-content",
            &[
                "tokio",
                "tonic",
                "prost",
                "rocksdb",
                "io-uring",
                "varve-store",
                "varve-proto",
            ][..],
        ),
        (
            "varve-store",
            &[
                "tonic",
                "hyper",
                "h2",
                "varve-proto",
                "varve-daemon",
                "varve-client",
            ],
        ),
        ("varve-proto", &["rocksdb", "varve-store"]),
        (
            "varve-nbd",
            &[
                "tonic",
                "rustls",
                "rustix",
                "rocksdb",
                "varve-store",
                "varve-daemon",
            ],
        ),
        (
            "varve-client",
            &[
                "rocksdb",
                "librocksdb-sys",
                "io-uring",
                "varve-store",
                "varve-daemon",
                "varve-device",
                "snapctl",
                // Crates of the command line and of image formats.
                "clap",
                "indicatif",
                "comfy-table",
                "netlink-sys",
                "tar",
                "bzip2",
                "roxmltree",
                "sd-notify",
            ],
        ),
        (
            "varve-device",
            &["tonic", "prost", "varve-client", "varve-proto"],
        ),
    ] {
        let linked = linked(package);
        for name in never {
            assert!(!linked.contains(*name), "{package} depends on {name}");
        }
    }
}

#[test]
fn every_failpoint_is_reached_and_tested() {
    let store = repository().join("store/src");
    let code: Vec<_> = rust_files()
        .into_iter()
        .filter(|path| path.starts_with(&store) && !path.ends_with("failpoints.rs"))
        .map(|path| read(&path))
        .collect();
    let tests = read(&repository().join("tests/faults/crashes.rs"));
    for point in Failpoint::ALL {
        let reached = format!("reach(Failpoint::{point:?})");
        let places: usize = code.iter().map(|text| text.matches(&reached).count()).sum();
        assert_eq!(places, 1, "{reached} is in {places} places");
        assert!(
            tests.contains(&format!("Failpoint::{point:?}")),
            "no test names {point:?}"
        );
    }
}

/// A path of one machine has no meaning on another.
#[test]
fn no_file_names_somebodys_home() {
    let homes = [
        ["/ro", "ot/"].concat(),
        ["/ho", "me/"].concat(),
        ["/Us", "ers/"].concat(),
    ];
    for path in files() {
        // Binary files are skipped.
        let Ok(text) = String::from_utf8(fs::read(&path).unwrap()) else {
            continue;
        };
        for home in &homes {
            assert!(
                !text.contains(home),
                "{} holds a path below {home}",
                shown(&path)
            );
        }
    }
}

#[test]
fn programs_and_crates_have_the_names_that_are_written_down() {
    let metadata = run(cargo(["metadata", "--no-deps", "--format-version=1"])).success();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<_> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    let expected = [
        "snapctl",
        "varve-benches",
        "varve-client",
        "varve-content",
        "varve-daemon",
        "varve-device",
        "varve-fake-daemon",
        "varve-nbd",
        "varve-proto",
        "varve-store",
        "varve-tests",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    for package in packages {
        assert_eq!(package["license"], "Apache-2.0", "{}", package["name"]);
    }
}

/// Clippy reads one file for each crate, so the store's repeats the rules of the workspace.
#[test]
fn lints_of_the_workspace_hold_in_the_store() {
    let rules = |path: &str| -> BTreeSet<String> {
        let text = read(&repository().join(path));
        let lines = text.lines().filter(|line| line.contains("path = "));
        lines.map(str::to_owned).collect()
    };
    let (workspace, store) = (rules("clippy.toml"), rules("store/clippy.toml"));
    assert!(!workspace.is_empty());
    let missing: Vec<_> = workspace.difference(&store).collect();
    assert!(missing.is_empty(), "store/clippy.toml lacks {missing:?}");
}
