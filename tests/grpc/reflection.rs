//! A third-party client: Python's grpcio, which knows the protocol only through the daemon's
//! reflection.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::{command, run, run_given},
    programs::{repository, tool},
};

/// The packages that the script imports.
const PACKAGES: [&str; 3] = ["grpcio", "grpcio-reflection", "protobuf"];

/// A Python with the packages: `$VARVE_PYTHON`, or a virtual environment in the user's cache, made
/// on first use.
fn python() -> PathBuf {
    if let Some(python) = env::var_os("VARVE_PYTHON") {
        return PathBuf::from(python);
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            Path::new(
                &env::var_os("HOME").expect("HOME is set, or XDG_CACHE_HOME, or VARVE_PYTHON"),
            )
            .join(".cache")
        });
    let venv = cache.join("varve/python");
    fs::create_dir_all(&venv).expect("make a directory in the user's cache");
    // Another process may be making it.
    let lock = File::create(venv.join("lock")).expect("make a lock file");
    lock.lock()
        .expect("lock the directory of the Python environment");
    let python = venv.join("bin/python");
    if !has_packages(&python) {
        run(command(
            tool("python3"),
            [Path::new("-m"), Path::new("venv"), &venv],
        ))
        .ok();
        let mut install = command(
            &python,
            [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ],
        );
        install.args(PACKAGES);
        let installed = run(install);
        assert!(
            installed.status.success(),
            "the packages {PACKAGES:?} could not be installed into {}; VARVE_PYTHON may name a Python that has them: {installed:?}",
            venv.display()
        );
    }
    python
}

fn has_packages(python: &Path) -> bool {
    python.is_file()
        && run(command(
            python,
            ["-c", "import grpc, grpc_reflection, google.protobuf"],
        ))
        .status
        .success()
}

#[test]
fn a_client_that_is_not_ours_reads_a_snapshot() {
    let lab = Lab::with(Options::tcp);
    let file = lab.image("image", (20 << 20) + 5, 151);
    lab.snapctl().import_with(&file, "image", ["--tag", "a=b"]);
    let address = lab.varved.tcp_endpoint().replace("http://", "");
    for target in [address, lab.varved.endpoint()] {
        let mut script = command(python(), [repository().join("tests/python/reflect.py")]);
        script.arg(&target).arg("image").arg(&file);
        script.stdin(std::process::Stdio::null());
        let said = run_given(script).success().text();
        assert!(said.ends_with("all is as it should be\n"), "{said}");
    }
}

#[test]
fn a_client_that_is_not_ours_shows_a_token() {
    let lab = Lab::with(Options::tcp);
    let snapctl = lab.snapctl();
    snapctl.run(["account", "create", "web"]).ok();
    let token = lab.scratch.join("token");
    let create = [
        "account",
        "token",
        "create",
        "web",
        "--scope",
        "images",
        "--output-file",
    ];
    snapctl
        .run(create.map(Path::new).into_iter().chain([&*token]))
        .ok();
    let file = lab.image("image", (20 << 20) + 5, 152);
    let made = snapctl.import_with(&file, "image", ["--tag", "a=b"]);
    let snapshot = format!("snapshot/{}", made.id());
    snapctl.run(["account", "give", "web", &snapshot]).ok();
    let target = lab.varved.tcp_endpoint().replace("http://", "");
    let mut script = command(python(), [repository().join("tests/python/reflect.py")]);
    script.arg(&target).arg("image").arg(&file).arg(&token);
    script.stdin(std::process::Stdio::null());
    let said = run_given(script).success().text();
    assert!(said.ends_with("all is as it should be\n"), "{said}");
    let log = lab.varved.log();
    let secret = fs::read_to_string(token).unwrap();
    assert!(!log.contains(secret.trim().rsplit('_').next().unwrap()));
}
