//! Access keys: their lives, their bounds, and what is told of them.

use std::{fs, path::Path};

use serde_json::Value;
use varve_tests::{
    daemon::Options,
    lab::Lab,
    snapctl::{exit, text},
};

use super::{account, admin, token, with_token};

fn lab() -> Lab {
    Lab::with(Options::tcp)
}

/// Makes an access key. Returns its id and its secret.
fn access_key(lab: &Lab, account: &str) -> (String, String) {
    let made = lab
        .snapctl()
        .json(["account", "access-key", "create", account]);
    assert_eq!(made["usable"], true);
    (
        text(&made, "access_key_id"),
        text(&made, "secret_access_key"),
    )
}

/// The access keys of an account.
fn listed(lab: &Lab, account: &str) -> Vec<Value> {
    let list = lab
        .snapctl()
        .json(["account", "access-key", "list", account]);
    list["access_keys"].as_array().unwrap().clone()
}

fn audited(lab: &Lab) -> String {
    fs::read_to_string(lab.data_dir().join("audit/audit.jsonl")).unwrap()
}

/// All bytes of the files below a directory.
fn contains(dir: &Path, needle: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            return contains(&path, needle);
        }
        let bytes = match kind.is_file() {
            true => fs::read(&path).unwrap(),
            false => Vec::new(),
        };
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn an_access_key_is_shown_once_and_told_of_without_its_secret() {
    let mut lab = lab();
    account(&lab, "web");
    let (id, secret) = access_key(&lab, "web");
    assert!(id.starts_with("AKIA") && id.len() == 20, "{id}");
    assert_eq!(secret.len(), 40);
    let (other, other_secret) = access_key(&lab, "web");
    assert!(other != id && other_secret != secret);
    let said = lab
        .snapctl()
        .run(["account", "access-key", "create", "web"]);
    let said = said.fails(exit::CONFLICT);
    assert!(said.contains("access keys of an account"), "{said}");
    let keys = listed(&lab, "web");
    assert_eq!(keys.len(), 2);
    assert_eq!(text(&keys[0], "access_key_id"), id);
    admin(&lab, &format!("account access-key revoke {other}"));
    lab.snapctl()
        .run(["account", "access-key", "revoke", &other])
        .fails(exit::NOT_FOUND);

    // After a restart the daemon still opens what it has.
    lab.varved.stop();
    let log = lab.varved.log();
    lab.restart();
    let keys = listed(&lab, "web");
    assert_eq!(keys.len(), 1);
    assert_eq!(
        (&keys[0]["usable"], text(&keys[0], "access_key_id")),
        (&Value::from(true), id.clone())
    );

    // Its secret is nowhere, and its id is in both logs.
    let audit = audited(&lab);
    for action in ["CreateAccessKey", "RevokeAccessKey"] {
        assert!(audit.contains(action), "{audit}");
    }
    assert!(audit.contains(&other) && log.contains(&other));
    assert!(!log.contains(&secret) && !log.contains(&other_secret));
    lab.varved.stop();
    for secret in [secret, other_secret] {
        assert!(!contains(&lab.data_dir(), secret.as_bytes()));
    }
    assert!(
        contains(&lab.data_dir(), b"RevokeAccessKey"),
        "files are read"
    );
}

#[test]
fn an_account_has_access_keys_of_its_own_and_sees_no_others() {
    let lab = lab();
    account(&lab, "web");
    account(&lab, "db");
    account(&lab, "reader");
    let web = token(&lab, "web.token", "web");
    let scoped = token(&lab, "scoped.token", "web --scope volumes");
    let reader = token(&lab, "reader.token", "reader");
    let (of_db, _) = access_key(&lab, "db");
    let (of_reader, _) = access_key(&lab, "reader");
    admin(&lab, "account set reader --read-only");

    let made = with_token(&lab, &web, "account access-key create -o json");
    let made: Value = serde_json::from_str(&made.success().text()).unwrap();
    let own = text(&made, "access_key_id");
    let list = with_token(&lab, &web, "account access-key list");
    let list = list.success().text();
    assert!(list.contains(&own) && !list.contains(&of_db), "{list}");
    // Those of others do not exist, as those that never were.
    for others in [
        "list db",
        "create db",
        "list nobody",
        &format!("revoke {of_db}"),
    ] {
        let command = format!("account access-key {others}");
        with_token(&lab, &web, &command).fails(exit::NOT_FOUND);
    }
    let revoke = format!("account access-key revoke {of_reader}");
    with_token(&lab, &reader, "account access-key list").ok();
    for (token, command) in [
        (&reader, "account access-key create"),
        (&reader, &*revoke),
        (&scoped, "account access-key create"),
    ] {
        with_token(&lab, token, command).fails(super::DENIED);
    }
    with_token(&lab, &web, &format!("account access-key revoke {own}")).ok();

    // They end with their account.
    admin(&lab, "account delete db");
    admin(&lab, &format!("account access-key revoke {of_reader}"));
    let said = lab
        .snapctl()
        .run(["account", "access-key", "revoke", &of_db]);
    said.fails(exit::NOT_FOUND);
}

#[test]
fn without_its_key_an_access_key_is_unusable_until_the_key_is_back() {
    let mut lab = lab();
    account(&lab, "web");
    let (id, _) = access_key(&lab, "web");
    let key = lab.data_dir().join("auth.key");
    let kept = lab.scratch.join("kept.key");
    let restart = |lab: &mut Lab, change: &dyn Fn()| {
        lab.varved.stop();
        change();
        lab.restart();
    };
    restart(&mut lab, &|| fs::rename(&key, &kept).unwrap());
    assert_eq!(listed(&lab, "web")[0]["usable"], false);
    let log = lab.varved.log();
    assert_eq!(
        log.matches("access keys cannot be used").count(),
        1,
        "{log}"
    );
    assert!(log.contains(&id), "{log}");
    // Another key would make it unusable for ever.
    let create = ["account", "access-key", "create", "web"];
    let said = lab.snapctl().run(create).fails(exit::CONFLICT);
    assert!(said.contains("auth.key is missing"), "{said}");

    // A key of another store.
    restart(&mut lab, &|| {
        fs::copy(&kept, &key).unwrap();
        fs::write(&key, [7; 32]).unwrap();
    });
    assert_eq!(listed(&lab, "web")[0]["usable"], false);
    assert!(lab.varved.log().contains("another auth.key"));

    // A link, so that a copy of the data directory has no key.
    restart(&mut lab, &|| {
        fs::remove_file(&key).unwrap();
        std::os::unix::fs::symlink(&kept, &key).unwrap();
    });
    assert_eq!(listed(&lab, "web")[0]["usable"], true);
    access_key(&lab, "web");

    // One that nobody can use can be revoked, and then there may be another key.
    restart(&mut lab, &|| fs::remove_file(&key).unwrap());
    for listed in listed(&lab, "web") {
        let id = text(&listed, "access_key_id");
        admin(&lab, &format!("account access-key revoke {id}"));
    }
    access_key(&lab, "web");
}
