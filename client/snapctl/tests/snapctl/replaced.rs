//! Files that an export replaces, and targets that are not files.

use std::{
    fs::{self, File, Permissions},
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
    process::Command,
};

use varve_client::{ErrorKind, Existing, NewFile};
use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, finished, run, snapctl, succeed};

fn daemon() -> (FakeDaemon, Vec<u8>) {
    let daemon = FakeDaemon::start(Manners::default());
    let plain = disk(&daemon);
    succeed(&daemon, &["import", "disk.img", "--name", "a"]);
    (daemon, plain)
}

/// Ways to write a file.
const WAYS: [&[&str]; 2] = [
    &["export", "a", "out", "--force"],
    &["export", "a", "out", "--force", "--format", "qcow2"],
];

#[test]
fn a_link_stays_and_the_file_that_it_leads_to_is_replaced() {
    let (daemon, plain) = daemon();
    fs::create_dir(daemon.path("elsewhere")).unwrap();
    symlink("elsewhere/middle", daemon.path("out")).unwrap();
    symlink("target", daemon.path("elsewhere/middle")).unwrap();
    let target = daemon.path("elsewhere/target");
    for way in WAYS {
        fs::write(&target, "old").unwrap();
        assert_eq!(run(&daemon, way).0, 0, "{way:?}");
        for link in ["out", "elsewhere/middle"] {
            assert!(daemon.path(link).is_symlink(), "{way:?}");
        }
        assert!(fs::metadata(&target).unwrap().len() > 1000, "{way:?}");
    }
    // A link to a missing file: the file is made there, with or without `--force`.
    fs::remove_file(&target).unwrap();
    succeed(&daemon, &["export", "a", "out"]);
    assert!(fs::read(&target).unwrap() == plain);
    assert_eq!(run(&daemon, &["export", "a", "out"]).0, 4);
    // A circle of links is found before any call to the daemon.
    symlink("circle", daemon.path("circle")).unwrap();
    let (code, _, stderr) = run(&daemon, &["export", "none", "circle", "--force"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("snapctl: write circle: "), "{stderr}");
    let left = fs::read_dir(daemon.path("elsewhere")).unwrap().count();
    assert_eq!(left, 2);
}

#[test]
fn who_makes_a_link_where_everybody_may_does_not_say_where_the_file_goes() {
    if !is_root() {
        // Only root can make a link that belongs to another user.
        return;
    }
    let (daemon, plain) = daemon();
    let shared = daemon.path("shared");
    fs::create_dir(&shared).unwrap();
    symlink("../target", shared.join("out")).unwrap();
    let export = ["export", "a", "shared/out"];
    // Such directories have the sticky bit, and their owner is trusted.
    for (mode, link, directory, is_followed) in [
        (0o1777, 12345, 0, false),
        (0o1777, 0, 0, true),
        (0o1777, 12345, 12345, true),
        (0o1755, 12345, 0, true),
        (0o777, 12345, 0, true),
    ] {
        lchown(shared.join("out"), Some(link), None).unwrap();
        chown(&shared, Some(directory), None).unwrap();
        fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
        let (code, _, stderr) = run(&daemon, &export);
        let about = format!("{mode:o} {link} {directory}: {stderr}");
        if is_followed {
            assert_eq!(code, 0, "{about}");
            assert!(fs::read(daemon.path("target")).unwrap() == plain);
            fs::remove_file(daemon.path("target")).unwrap();
        } else {
            assert_eq!(code, 1, "{about}");
            assert!(stderr.contains("a symbolic link of user 12345"), "{about}");
            assert!(!daemon.path("target").exists(), "{about}");
        }
    }
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode() {
    let (daemon, _) = daemon();
    let out = daemon.path("out");
    for way in WAYS {
        for mode in [0o600, 0o640, 0o604] {
            fs::write(&out, "old").unwrap();
            fs::set_permissions(&out, Permissions::from_mode(mode)).unwrap();
            assert_eq!(run(&daemon, way).0, 0, "{way:?}");
            let found = fs::metadata(&out).unwrap();
            assert_eq!(found.mode() & 0o7777, mode, "{way:?}");
            assert!(found.len() > 1000, "{way:?}");
        }
    }
    // A new file has the mode of any new file.
    fs::remove_file(&out).unwrap();
    fs::write(daemon.path("new"), "").unwrap();
    succeed(&daemon, &["export", "a", "out"]);
    let mode = |name| fs::metadata(daemon.path(name)).unwrap().mode();
    assert_eq!(mode("out"), mode("new"));
}

/// An access list: the owner may read and write, user 12345 read, and the group and others nothing.
fn access_list() -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (kind, may, id) in [
        (1_u16, 6_u16, NOBODY),
        (2, 4, 12345),
        (4, 0, NOBODY),
        // The most that entries other than the owner and the others may do; the mode shows it in
        // place of the group.
        (0x10, 4, NOBODY),
        (0x20, 0, NOBODY),
    ] {
        list.extend(kind.to_le_bytes());
        list.extend(may.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

#[test]
fn a_file_that_is_replaced_keeps_who_else_may_read_it() {
    use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
    const NAME: &str = "system.posix_acl_access";

    let (daemon, _) = daemon();
    let out = daemon.path("out");
    for way in WAYS {
        let old = File::create(&out).unwrap();
        if fsetxattr(&old, NAME, &access_list(), XattrFlags::empty()).is_err() {
            // The file system has no access lists.
            return;
        }
        assert_eq!(run(&daemon, way).0, 0, "{way:?}");
        let new = File::open(&out).unwrap();
        assert!(new.metadata().unwrap().len() > 1000, "{way:?}");
        let mut found = vec![0; 1000];
        let len = fgetxattr(&new, NAME, &mut found[..]).unwrap();
        assert_eq!(found[..len], access_list(), "{way:?}");
        assert_eq!(new.metadata().unwrap().mode() & 0o777, 0o640);
        fs::remove_file(&out).unwrap();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_file_that_is_replaced_keeps_its_owner() {
    if !is_root() {
        // Only root can give files away.
        return;
    }
    let (daemon, _) = daemon();
    let out = daemon.path("out");
    for way in WAYS {
        fs::write(&out, "old").unwrap();
        chown(&out, Some(12345), Some(23456)).unwrap();
        fs::set_permissions(&out, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(run(&daemon, way).0, 0, "{way:?}");
        let found = fs::metadata(&out).unwrap();
        assert_eq!((found.uid(), found.gid()), (12345, 23456), "{way:?}");
        assert_eq!(found.mode() & 0o7777, 0o600, "{way:?}");
        assert!(found.len() > 1000, "{way:?}");
    }
}

#[test]
fn an_owner_that_cannot_be_kept_is_said_before_anything_is_written() {
    if !is_root() {
        return;
    }
    let (daemon, _) = daemon();
    fs::set_permissions(daemon.path(""), Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(daemon.path("grpc.sock"), Permissions::from_mode(0o666)).unwrap();
    let program = daemon.path("snapctl");
    fs::copy(env!("CARGO_BIN_EXE_snapctl"), &program).unwrap();
    fs::write(daemon.path("out"), "roots").unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["export", "a", "out", "--force"])
        .env("VARVE_ENDPOINT", daemon.endpoint.to_string())
        .current_dir(daemon.path(""))
        .output();
    let (code, _, stderr) = finished(output.unwrap());
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.starts_with("snapctl: write out: it belongs to user 0 and group 0"),
        "{stderr}"
    );
    assert_eq!(fs::read(daemon.path("out")).unwrap(), b"roots");
}

#[test]
fn what_takes_bytes_in_order_is_written_to() {
    let (daemon, plain) = daemon();
    // Standard output by its name, a pipe.
    for path in ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"] {
        for more in [&[][..], &["--force"]] {
            let mut all = vec!["export", "a", path];
            all.extend(more);
            let output = snapctl(&daemon, &all).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            assert!(output.stdout == plain, "{path}");
        }
    }
    // And a file.
    let file = File::create(daemon.path("redirected")).unwrap();
    let inode = file.metadata().unwrap().ino();
    let status = snapctl(&daemon, &["export", "a", "/dev/stdout", "--force"])
        .stdout(file)
        .status();
    assert!(status.unwrap().success());
    assert!(fs::read(daemon.path("redirected")).unwrap() == plain);
    let found = fs::metadata(daemon.path("redirected")).unwrap().ino();
    assert_eq!(found, inode, "the file is written to, not replaced");
    // A pipe with a name.
    let made = Command::new("mkfifo").arg(daemon.path("fifo")).status();
    assert!(made.unwrap().success());
    let path = daemon.path("fifo");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut fifo = File::open(path).unwrap();
        fifo.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert!(succeed(&daemon, &["export", "a", "fifo"]).contains("fifo"));
    assert!(reader.join().unwrap() == plain);
    // A device.
    succeed(&daemon, &["export", "a", "/dev/null", "--force"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let (code, _, stderr) = run(&daemon, &["export", "a", "/dev/null", "--format", "qcow2"]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("qcow2 cannot be written to a pipe"),
        "{stderr}"
    );
}

#[test]
fn what_takes_the_place_of_a_file_meanwhile_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    fs::write(&path, "old").unwrap();
    let new = NewFile::create(&path, Existing::Replace).unwrap();
    fs::remove_file(&path).unwrap();
    symlink("elsewhere", &path).unwrap();
    let error = new.publish().unwrap_err();
    assert!(error.to_string().contains("took its place"), "{error}");
    assert!(path.is_symlink());

    // The file goes to the original directory, not to another one that has its name now.
    let one = dir.path().join("one");
    fs::create_dir(&one).unwrap();
    let new = NewFile::create(one.join("out"), Existing::Keep).unwrap();
    fs::rename(&one, dir.path().join("two")).unwrap();
    fs::create_dir(&one).unwrap();
    new.publish().unwrap();
    assert!(dir.path().join("two/out").is_file());
    assert_eq!(fs::read_dir(&one).unwrap().count(), 0);
}

#[test]
fn a_name_as_long_as_can_be_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n".repeat(255));
    fs::write(&path, "old").unwrap();
    let new = NewFile::create(&path, Existing::Replace).unwrap();
    new.publish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let error = NewFile::create(dir.path(), Existing::Replace).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::File);
}
