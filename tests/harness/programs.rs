//! Paths of programs.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::process::{command, run};

/// The daemon.
#[must_use]
pub fn varved() -> PathBuf {
    built("varved")
}

/// The command line client.
#[must_use]
pub fn snapctl() -> PathBuf {
    built("snapctl")
}

/// One of the client library's example programs. Cargo builds them with the tests.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    built(&format!("examples/{name}"))
}

/// One of the programs under test: in `$VARVE_BIN_DIR`, or in cargo's directory for programs. A
/// test program is in a directory in it, and other programs are there themselves.
fn built(name: &str) -> PathBuf {
    let dir = env::var_os("VARVE_BIN_DIR").map_or_else(
        || {
            let this = env::current_exe().expect("know the path of this program");
            let dir = this.parent().expect("a program is in a directory");
            let above = dir.parent().filter(|_| dir.ends_with("deps"));
            above.unwrap_or(dir).to_owned()
        },
        PathBuf::from,
    );
    let program = dir.join(name);
    assert!(
        program.is_file(),
        "{} is not there. It is made by: cargo build --release --locked --bins --examples  (or VARVE_BIN_DIR says where it is)",
        program.display()
    );
    program
}

/// A program from the system's packages.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    // Administrators' programs are not in every user's PATH.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(more)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed. What the tests need is installed by: scripts/install-packages test"))
}

/// The root of a later Debian, with NBD clients of its own. `None` where it was not made.
#[must_use]
pub fn newer_root() -> Option<PathBuf> {
    let script = repository().join("scripts/make-newer");
    let told = run(command(script, ["--dir"])).success();
    let root = PathBuf::from(told.text().trim());
    root.is_dir().then_some(root)
}

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("tests/ is in the checkout")
        .to_owned()
}

/// Reports that a test is skipped, because the machine lacks something. On CI that is a failure.
pub fn skip_because(reason: &str) {
    assert!(
        env::var_os("CI").is_none_or(|ci| ci.is_empty()),
        "on CI nothing is skipped: {reason}"
    );
    println!("skipped: {reason}");
}
