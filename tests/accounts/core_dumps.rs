//! Secrets in memory: a daemon that crashes leaves no core dump, unless a setting permits it.

use std::{fs, os::unix::process::ExitStatusExt as _};

use rustix::process::{Pid, Signal, kill_process};
use varve_tests::{lab::Lab, programs, scratch::Scratch};

use super::{account, admin, token, with_token};

/// Uses a token and an access key of a daemon, and crashes it. Returns its key, and true if the
/// kernel has dumped its memory.
fn crashed(mut lab: Lab) -> (Vec<u8>, bool) {
    account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    with_token(&lab, &web, "volume list").ok();
    admin(&lab, "account access-key create web");
    let key = fs::read(lab.data_dir().join("auth.key")).unwrap();
    let id = Pid::from_raw(lab.varved.id().cast_signed()).unwrap();
    kill_process(id, Signal::ABORT).unwrap();
    let status = lab.varved.wait();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    (key, status.core_dumped())
}

#[test]
fn a_crash_leaves_no_core_dump() {
    let dir = Scratch::new();
    let lab = Lab::with(|options| options.tcp().core_dumps_in(dir.path()));
    let (_, is_dumped) = crashed(lab);
    assert!(!is_dumped, "whatever takes dumps on this machine");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The other test is worth something only if a dump would have had the secrets.
#[test]
fn a_core_dump_that_is_permitted_has_the_key() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.starts_with(['|', '/', '@']) {
        programs::skip_because("core dumps of this machine go to a place of their own");
        return;
    }
    let dir = Scratch::new();
    let lab = Lab::with(|options| {
        let options = options.tcp().core_dumps_in(dir.path());
        options.env("VARVE_CORE_DUMPS", "true")
    });
    let log = lab.varved.log();
    assert!(log.contains("core dumps are permitted"), "{log}");
    let (key, is_dumped) = crashed(lab);
    assert!(is_dumped);
    let mut files = fs::read_dir(dir.path()).unwrap();
    let dump = fs::read(files.next().unwrap().unwrap().path()).unwrap();
    let has_key = dump.windows(key.len()).any(|window| window == key);
    assert!(has_key, "{} bytes without the key", dump.len());
}
