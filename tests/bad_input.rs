//! Mistakes in the input of `snapctl`: a clear error with the name of the thing, an exit code, and
//! nothing left behind.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
};

use rustix::process::Signal;
use varve_tests::{
    daemon::Options,
    image,
    lab::Lab,
    loop_fs::LoopFs,
    process::{command, run, run_given},
    programs::{self, tool},
    rpc::Rpc,
    snapctl::{Snapctl, exit, import_arguments},
    valve::Valve,
};

const MIB: u64 = 1 << 20;

/// Asserts that an import fails, names the file, and leaves nothing.
fn assert_refused(lab: &Lab, file: &Path, more: &[&str]) -> String {
    let arguments = import_arguments(file, "refused")
        .into_iter()
        .chain(more.iter().map(Into::into));
    let said = lab.snapctl().run(arguments).fails(exit::FAILURE);
    assert!(
        said.contains(file.to_str().unwrap()),
        "the message does not name {}: {said}",
        file.display()
    );
    assert_no_panic(&said);
    assert!(
        lab.snapctl().names().is_empty(),
        "an import that failed is visible"
    );
    said
}

fn assert_no_panic(said: &str) {
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_file_that_is_missing_empty_or_no_file_is_refused() {
    let lab = Lab::new();
    let missing = assert_refused(&lab, &lab.scratch.join("missing"), &[]);
    assert!(missing.contains("No such file"), "{missing}");
    let empty = assert_refused(&lab, &lab.scratch.file("empty", ""), &[]);
    assert!(
        empty.contains("empty") || empty.contains("0 bytes"),
        "{empty}"
    );
    let dir = lab.scratch.join("directory");
    fs::create_dir(&dir).unwrap();
    let said = assert_refused(&lab, &dir, &[]);
    assert!(said.contains("directory"), "{said}");
    // A file that opens and cannot be read.
    assert_refused(&lab, Path::new("/proc/self/mem"), &[]);
    for format in ["raw", "qcow2", "vmdk"] {
        assert_refused(&lab, &lab.scratch.join("missing"), &["--format", format]);
        assert_refused(&lab, &lab.scratch.join("empty"), &["--format", format]);
        assert_refused(&lab, &dir, &["--format", format]);
    }
    let text = lab.scratch.file("text", "this is no disk image\n");
    for format in ["qcow2", "vmdk"] {
        assert_refused(&lab, &text, &["--format", format]);
    }
}

#[test]
fn an_empty_standard_input_is_refused() {
    let lab = Lab::new();
    let said = lab
        .snapctl()
        .run(import_arguments(Path::new("-"), "refused"))
        .fails(exit::FAILURE);
    assert!(
        said.contains("standard input") || said.contains("stdin"),
        "{said}"
    );
    assert!(lab.snapctl().names().is_empty());
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    let lab = Lab::with(|options| {
        options
            .env("VARVE_SOCKET_MODE", "0666")
            .env("VARVE_SOCKET_OPEN_TO_ALL", "true")
    });
    let file = lab.scratch.file("secret", [1; 8192]);
    fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    let import = if rustix::process::geteuid().is_root() {
        // Root can read everything, so another user runs it, who can reach everything but the file.
        for path in [lab.scratch.path(), &lab.data_dir()] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let snapctl = lab.scratch.join("snapctl");
        fs::copy(programs::snapctl(), &snapctl).unwrap();
        let mut import = command(
            tool("setpriv"),
            ["--reuid=65534", "--regid=65534", "--clear-groups"],
        );
        import
            .arg(snapctl)
            .args(import_arguments(&file, "refused"))
            .env("VARVE_ENDPOINT", lab.varved.endpoint());
        import
    } else {
        lab.snapctl().command(import_arguments(&file, "refused"))
    };
    let said = run(import).fails(exit::FAILURE);
    assert!(
        said.contains("secret") && said.contains("ermission denied"),
        "{said}"
    );
    assert!(lab.snapctl().names().is_empty());
}

#[test]
fn a_truncated_qcow2_is_refused() {
    let lab = Lab::new();
    let raw = image::make_random(&lab.scratch, "raw", 8 * MIB, 51);
    for (name, options) in [
        ("plain", &["-O", "qcow2"][..]),
        ("packed", &["-O", "qcow2", "-c"]),
    ] {
        let whole = lab.scratch.join(name);
        let all = ["convert", "-f", "raw"]
            .iter()
            .chain(options)
            .map(Path::new)
            .chain([raw.as_path(), &whole]);
        run(command(tool("qemu-img"), all)).ok();
        let bytes = fs::read(&whole).unwrap();
        // Truncated in the header, in the tables, in the data, and just before the end.
        for len in [
            1,
            40,
            100,
            4096,
            70_000,
            200_000,
            bytes.len() / 2,
            bytes.len() - 65_536,
        ] {
            let cut = lab.scratch.file(&format!("{name}-{len}"), &bytes[..len]);
            assert_refused(&lab, &cut, &["--format", "qcow2"]);
        }
        // It is recognised by its first bytes, and not taken for a raw disk.
        let cut = lab
            .scratch
            .file(&format!("{name}-auto"), &bytes[..bytes.len() / 2]);
        assert_refused(&lab, &cut, &[]);
    }
}

#[test]
fn a_truncated_vmdk_is_refused() {
    let lab = Lab::new();
    let raw = image::make_random(&lab.scratch, "raw", 8 * MIB, 52);
    let whole = lab.scratch.join("whole");
    let all = [
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
    ];
    run(command(
        tool("qemu-img"),
        all.map(Path::new)
            .into_iter()
            .chain([raw.as_path(), &whole]),
    ))
    .ok();
    let bytes = fs::read(&whole).unwrap();
    for len in [1, 100, 512, 70_000, bytes.len() / 2] {
        let cut = lab.scratch.file(&format!("cut-{len}"), &bytes[..len]);
        assert_refused(&lab, &cut, &["--format", "vmdk"]);
    }
}

#[test]
fn an_image_with_a_base_is_followed_only_when_told_so() {
    let lab = Lab::new();
    let (base, overlay) = (
        lab.scratch.join("base.qcow2"),
        lab.scratch.join("overlay.qcow2"),
    );
    run(command(
        tool("qemu-img"),
        ["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "8M"],
    ))
    .ok();
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        base.to_str().unwrap(),
        overlay.to_str().unwrap(),
    ];
    run(command(tool("qemu-img"), create)).ok();
    // A guest decides the first bytes of its disk, so a guessed format is not followed to other
    // files.
    let said = assert_refused(&lab, &overlay, &[]);
    assert!(said.contains(base.to_str().unwrap()), "{said}");
    lab.snapctl()
        .import_with(&overlay, "followed", ["--format", "qcow2"]);
    lab.snapctl().run(["snapshot", "delete", "followed"]).ok();
    fs::remove_file(&base).unwrap();
    assert_refused(&lab, &overlay, &[]);
    assert_refused(&lab, &overlay, &["--format", "qcow2"]);
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_is_refused() {
    let lab = Lab::with(Options::tcp);
    let rpc = Rpc::connect(&lab.varved).await;
    let file = image::make_random(&lab.scratch, "shrinking", 512 * MIB, 53);
    let valve = Valve::before(&lab.varved, 16 << 20);
    let import = Snapctl::new(valve.endpoint()).start(import_arguments(&file, "refused"));
    rpc.wait_for_status("an upload to begin", |status| status.uploads == 1)
        .await;
    // The reader can be no further ahead than its memory allows, which is less than half of the
    // file.
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(MIB)
        .unwrap();
    valve.open();
    let said = import.wait().fails(exit::FAILURE);
    assert!(said.contains("shrinking"), "{said}");
    assert!(lab.snapctl().names().is_empty());
}

#[test]
fn a_name_that_is_taken_is_refused_and_what_has_it_stays() {
    let lab = Lab::new();
    let (first, second) = (
        lab.image("first", 5 * MIB, 54),
        lab.image("second", 5 * MIB, 55),
    );
    let id = lab.snapctl().import(&first, "name").id();
    let said = lab
        .snapctl()
        .run(import_arguments(&second, "name"))
        .fails(exit::ALREADY_EXISTS);
    assert!(said.contains("name") && said.contains(&id), "{said}");
    lab.assert_content("name", &first);
}

#[test]
fn of_two_imports_with_one_name_one_succeeds() {
    let lab = Lab::new();
    let files = [
        lab.image("first", 40 * MIB, 56),
        lab.image("second", 40 * MIB, 57),
    ];
    let running = [0, 1].map(|number| {
        lab.snapctl()
            .start(import_arguments(&files[number], "name"))
    });
    let finished = running.map(|import| import.wait());
    let winners: Vec<_> = (0..2)
        .filter(|number| finished[*number].status.success())
        .collect();
    assert_eq!(winners.len(), 1, "{finished:?}");
    let [loser] = finished
        .into_iter()
        .filter(|one| !one.status.success())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    loser.fails(exit::ALREADY_EXISTS);
    lab.assert_content("name", &files[winners[0]]);
}

#[test]
fn names_and_tags_that_cannot_be_are_refused() {
    let lab = Lab::new();
    let file = lab.image("image", MIB, 58);
    let long = "x".repeat(129);
    for name in [
        "",
        " ",
        "a b",
        ".hidden",
        "/slash",
        "new\nline",
        "größe",
        "snap-0123456789abcdef0",
        &long,
    ] {
        let finished = lab.snapctl().run(import_arguments(&file, name));
        assert!(
            finished.status.code() == Some(exit::USAGE),
            "{name:?}: {finished:?}"
        );
        assert!(!finished.stderr.trim().is_empty(), "{name:?}");
    }
    let (long_key, long_value) = (
        format!("{}=x", "k".repeat(128)),
        format!("k={}", "v".repeat(256)),
    );
    for tag in ["no-value", "=value", &long_key, &long_value] {
        let arguments = import_arguments(&file, "name")
            .into_iter()
            .chain(["--tag".into(), tag.into()]);
        let finished = lab.snapctl().run(arguments);
        assert!(
            finished.status.code() == Some(exit::USAGE),
            "{tag:?}: {finished:?}"
        );
    }
    assert!(lab.snapctl().names().is_empty());
    // The longest possible name.
    let name = "x".repeat(128);
    lab.snapctl().import_with(
        &file,
        &name,
        ["--tag", &format!("{}={}", "k".repeat(127), "v".repeat(255))],
    );
    assert_eq!(lab.snapctl().names(), [name]);
}

#[test]
fn a_daemon_that_cannot_be_reached_is_named() {
    let lab = Lab::new();
    let nobody = lab.scratch.join("nobody.sock");
    let closed_port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let file = lab.image("image", MIB, 59);
    for endpoint in [
        format!("unix:{}", nobody.display()),
        format!("http://{closed_port}"),
    ] {
        for arguments in [vec!["status".into()], import_arguments(&file, "name")] {
            let said = Snapctl::new(&endpoint)
                .run(arguments)
                .fails(exit::UNREACHABLE);
            assert!(
                said.contains(endpoint.rsplit('/').next().unwrap()),
                "{said}"
            );
        }
    }
    for endpoint in [
        "ftp://example.com:1",
        "unix:",
        "http://no-port",
        "",
        "/a/path",
    ] {
        let said = Snapctl::new(lab.varved.endpoint())
            .run(["--endpoint", endpoint, "status"])
            .fails(exit::USAGE);
        assert!(said.contains("endpoint"), "{said}");
    }
}

#[tokio::test]
async fn a_daemon_that_goes_away_in_the_middle_is_reported() {
    let mut lab = Lab::with(Options::tcp);
    let rpc = Rpc::connect(&lab.varved).await;
    let file = image::make_random(&lab.scratch, "image", 64 * MIB, 65);
    let valve = Valve::before(&lab.varved, 16 << 20);
    let import = Snapctl::new(valve.endpoint()).start(import_arguments(&file, "name"));
    rpc.wait_for_status("an upload to begin", |status| status.uploads == 1)
        .await;
    lab.varved.kill();
    valve.open();
    import.wait().fails(exit::UNREACHABLE);
}

#[tokio::test]
async fn an_import_that_is_interrupted_by_the_user_says_so() {
    let lab = Lab::with(Options::tcp);
    let rpc = Rpc::connect(&lab.varved).await;
    let file = image::make_random(&lab.scratch, "image", 256 * MIB, 66);
    for signal in [Signal::INT, Signal::TERM] {
        let valve = Valve::before(&lab.varved, 16 << 20);
        let mut import = Snapctl::new(valve.endpoint()).start(import_arguments(&file, "name"));
        rpc.wait_for_status("an upload to begin", |status| status.uploads == 1)
            .await;
        import.signal(signal);
        // It tells the daemon that it gives up.
        valve.open();
        import.wait().fails(exit::INTERRUPTED);
        assert!(lab.snapctl().names().is_empty());
        rpc.wait_for_status("the upload to be given up", |status| status.uploads == 0)
            .await;
    }
}

#[test]
fn an_export_that_cannot_be_written_is_refused() {
    let lab = Lab::new();
    let file = lab.image("image", 20 * MIB, 60);
    lab.snapctl().import(&file, "image");
    let dir = lab.scratch.join("directory");
    fs::create_dir(&dir).unwrap();
    let nowhere = lab.scratch.join("absent/out");
    for target in [
        dir.to_str().unwrap(),
        nowhere.to_str().unwrap(),
        "/proc/out",
    ] {
        let said = lab
            .snapctl()
            .run(["export", "image", target])
            .fails(exit::FAILURE);
        assert!(said.contains(target), "{said}");
        assert_no_panic(&said);
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut export = lab.snapctl().command(["export", "image", "-"]);
    let child = export
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(exit::OUT_OF_SPACE), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("No space"), "{said}");
    assert_no_panic(&said);
}

#[test]
fn output_that_nobody_reads_any_more_is_no_crash() {
    let lab = Lab::new();
    let file = lab.image("image", 20 * MIB, 63);
    lab.snapctl().import(&file, "image");
    for arguments in [
        &["export", "image", "-"][..],
        &["snapshot", "list"],
        &["status"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lab.snapctl().command(arguments);
        command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(exit::OUTPUT_CLOSED),
            "{arguments:?}: {output:?}"
        );
        assert_no_panic(&String::from_utf8(output.stderr).unwrap());
    }
}

#[test]
fn an_export_does_not_overwrite_a_file_unless_told_to() {
    let lab = Lab::new();
    let file = lab.image("image", 5 * MIB, 64);
    lab.snapctl().import(&file, "image");
    let precious = lab.scratch.file("precious", "do not lose");
    for format in ["raw", "qcow2"] {
        let export = [
            "export",
            "image",
            precious.to_str().unwrap(),
            "--format",
            format,
        ];
        let said = lab.snapctl().run(export).fails(exit::ALREADY_EXISTS);
        assert!(said.contains("precious"), "{said}");
        assert_eq!(fs::read(&precious).unwrap(), b"do not lose");
    }
    lab.snapctl()
        .run(["export", "image", precious.to_str().unwrap(), "--force"])
        .ok();
    varve_tests::files::assert_same(&file, &precious);
}

#[test]
fn an_export_to_a_disk_that_becomes_full_leaves_no_file() {
    let Some(disk) = LoopFs::mount(24 * MIB) else {
        return;
    };
    let lab = Lab::new();
    let file = image::make_random(&lab.scratch, "image", 60 * MIB, 61);
    lab.snapctl().import(&file, "image");
    for format in ["raw", "qcow2"] {
        let out = disk.path().join(format!("out.{format}"));
        let finished =
            lab.snapctl()
                .run(["export", "image", out.to_str().unwrap(), "--format", format]);
        assert!(
            matches!(
                finished.status.code(),
                Some(exit::OUT_OF_SPACE | exit::FAILURE)
            ),
            "{finished:?}"
        );
        let error = finished.stderr.lines().last().unwrap_or_default();
        assert!(
            error.contains(&format!("out.{format}")) && error.contains("No space"),
            "{finished:?}"
        );
        assert!(!out.exists(), "half an export is left");
    }
}

#[test]
fn a_format_that_standard_output_cannot_take_is_refused() {
    let lab = Lab::new();
    let file = lab.image("image", MIB, 62);
    lab.snapctl().import(&file, "image");
    let finished = run_given({
        let mut command = lab
            .snapctl()
            .command(["export", "image", "-", "--format", "qcow2"]);
        command.stdin(Stdio::null());
        command
    });
    assert!(
        !finished.status.success() && finished.stdout.is_empty(),
        "{finished:?}"
    );
}
