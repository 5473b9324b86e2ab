//! The audit log, and secrets that nothing tells.

use std::{fs, path::Path};

use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::wait_for,
    snapctl::{exit, number, text},
};

use super::{account, admin, token, with_token};

#[test]
fn each_change_and_each_refusal_has_a_line() {
    let mut lab = Lab::with(Options::tcp);
    let id = account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    with_token(&lab, &web, "volume create data --size 1M").ok();
    with_token(&lab, &web, "gc run").fails(super::DENIED);
    with_token(&lab, &web, "volume delete absent").fails(exit::NOT_FOUND);
    // What changes nothing has no line.
    with_token(&lab, &web, "volume list").ok();
    let events = || {
        let all = lab.snapctl().json(["audit"]);
        let events = all["events"].as_array().unwrap().clone();
        let of = |action: &str| {
            let found = events.iter().find(|event| text(event, "action") == action);
            found.cloned()
        };
        let refused = (of("RunGc")?, of("DeleteVolume")?);
        Some((
            of("CreateVolume")?,
            refused,
            of("CreateToken")?,
            of("ListVolumes"),
        ))
    };
    // Refusals are written within a second.
    let (made, (denied, missing), token, listed) = wait_for("the refusals", events);
    assert_eq!(listed, None);
    assert_eq!(
        (text(&made, "account"), text(&made, "result")),
        (id.clone(), "ok".into())
    );
    assert!(text(&made, "identity").starts_with("tok-"), "{made}");
    assert!(text(&made, "from").starts_with("tcp:127.0.0.1:"), "{made}");
    let volume = lab.snapctl().json(["volume", "list", "--owner", "web"]);
    let volume = text(&volume["volumes"][0], "id");
    assert_eq!(made["changed"], serde_json::json!([volume]));
    assert_eq!(text(&denied, "result"), "PermissionDenied");
    assert_eq!(text(&missing, "result"), "NotFound");
    assert!(text(&missing, "resources").contains("absent"), "{missing}");
    assert_eq!(text(&token, "account"), "000000000000");

    let by_account = lab.snapctl().json(["audit", "--account", "web"]);
    let by_account = by_account["events"].as_array().unwrap();
    assert!(by_account.iter().all(|event| text(event, "account") == id));
    assert!(by_account.len() >= 3);

    // Numbers go on after a kill, and what was answered has its line.
    let last = |lab: &Lab| {
        let all = lab.snapctl().json(["audit", "-n", "1"]);
        number(&all["events"][0], "number")
    };
    admin(&lab, "account disable web");
    let before = last(&lab);
    lab.varved.kill();
    lab.restart_with(Options::tcp);
    assert_eq!(last(&lab), before);
    admin(&lab, "account enable web");
    assert_eq!(last(&lab), before + 1);
}

/// All files below a directory.
pub(super) fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn a_secret_is_in_no_file_and_no_log() {
    let mut lab = Lab::with(|options| options.tcp().env("VARVE_LOG", "debug"));
    account(&lab, "web");
    let web = token(&lab, "web.token", "web");
    with_token(&lab, &web, "volume list").ok();
    let secret = fs::read_to_string(&web).unwrap();
    let (head, digits) = secret.trim().rsplit_once('_').unwrap();
    let forged = lab
        .scratch
        .file("forged.token", format!("{head}_{}", "0".repeat(64)));
    fs::set_permissions(&forged, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    with_token(&lab, &forged, "volume list").fails(super::DENIED);
    lab.varved.stop();
    let log = lab.varved.log();
    assert!(log.contains("a token is refused") && !log.contains(digits));
    let bytes: Vec<u8> = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let all = files(&lab.data_dir());
    assert!(
        all.iter().any(|file| file.ends_with("audit/audit.jsonl")),
        "{all:?}"
    );
    for file in all {
        let content = fs::read(&file).unwrap();
        let has = |wanted: &[u8]| content.windows(wanted.len()).any(|it| it == wanted);
        assert!(
            !has(digits.as_bytes()) && !has(&bytes),
            "{}",
            file.display()
        );
    }
}
