//! `snapctl account` and `snapctl whoami` as a user runs them.

use std::{fs, os::unix::fs::MetadataExt, process::Stdio};

use serde_json::{Value, json};
use varve_fake_daemon::{FakeDaemon, Manners};
use varve_proto::v1;

use crate::commands::{disk, finished, parse, run, snapctl, succeed};

const HOSTILE: &str = "x\u{1b}]0;title\u{7}\nforged  000000000009\u{202e}";

fn words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}

fn in_json(daemon: &FakeDaemon, command: &str) -> Value {
    let arguments = [&words(command)[..], &["--output=json"]].concat();
    parse(&succeed(daemon, &arguments))
}

#[test]
fn accounts_are_made_changed_and_deleted() {
    let daemon = FakeDaemon::start(Manners::default());
    let text = |command: &str| succeed(&daemon, &words(command));
    assert_eq!(
        text("account create web --alias shop --identity uid:1000 --identity cert:CN=web,O=Shop"),
        "Name      web\nId        000000000001\nAlias     shop\nState     active\n\
         Created   2023-11-14T22:13:20Z\nIdentity  uid:1000\nIdentity  cert:CN=web,O=Shop\n"
    );
    text("account create db --id 123456789012");
    assert_eq!(
        text("account list"),
        "NAME   ID            STATE   ALIAS\n\
         admin  000000000000  active\n\
         web    000000000001  active  shop\n\
         db     123456789012  active\n"
    );
    let wide = text("account ls -o wide");
    assert!(wide.contains("uid:1000; cert:CN=web,O=Shop"), "{wide}");
    let set = "account set web --name www --alias= --read-only --add-identity gid:7 \
               --remove-identity uid:1000";
    let account = json!({
        "id": "000000000001",
        "name": "www",
        "alias": null,
        "state": "read_only",
        "created_at": "2023-11-14T22:13:20Z",
        "identities": ["cert:CN=web,O=Shop", "gid:7"],
        "public_access_block": "off",
            "public_images": false,
        "quotas": {},
    });
    assert_eq!(in_json(&daemon, set), account);
    assert_eq!(in_json(&daemon, "account show www"), account);
    assert_eq!(in_json(&daemon, "account list")["accounts"][1], account);
    for (command, says, state) in [
        (
            "account disable www",
            "disabled www (000000000001)\n",
            "disabled",
        ),
        (
            "account enable www",
            "enabled www (000000000001)\n",
            "active",
        ),
    ] {
        assert_eq!(text(command), says);
        assert_eq!(in_json(&daemon, "account show www")["state"], state);
        assert_eq!(in_json(&daemon, command)["state"], state);
    }
    assert_eq!(
        text(
            "account set www --quota snapshots=9 --quota volumes=none --quota \
             attached-volumes=3 --block-public-access new-sharing"
        ),
        "Name      www\nId        000000000001\nState     active\n\
         Created   2023-11-14T22:13:20Z\nIdentity  cert:CN=web,O=Shop\nIdentity  gid:7\n\
         Quota     3 of 9 snapshots\nQuota     3 of 3 attached volumes\n\
         Blocked   new sharing with everybody\n"
    );
    let limited = in_json(&daemon, "account show www");
    assert_eq!(limited["public_access_block"], "new_sharing");
    assert_eq!(
        limited["quotas"],
        json!({
            "snapshots": { "limit": 9, "used": 3 },
            "attached_volumes": { "limit": 3, "used": 3 },
        })
    );
    // A limit below what is there may be a slip.
    let low = ["account", "set", "www", "--quota", "snapshots=2"];
    let (code, _, said) = run(&daemon, &low);
    assert_eq!(code, 0);
    assert!(
        said.contains("3 snapshots are there, and the quota is 2"),
        "{said}"
    );
    let open = "account set www --quota snapshots=none --quota attached-volumes=none \
                --block-public-access off";
    assert_eq!(in_json(&daemon, open)["quotas"], json!({}));
    text("account set www --read-only");
    text("account set www --active");
    assert_eq!(in_json(&daemon, "account show www")["state"], "active");
    assert_eq!(text("account delete www"), "deleted www (000000000001)\n");
    assert_eq!(in_json(&daemon, "account rm db")["name"], "db");

    for (command, code, says) in [
        (
            "account show www",
            3,
            "get account www: account \"www\" does not exist",
        ),
        ("account create admin", 4, "exists already"),
        ("account create a/b", 2, "no slash"),
        ("account set www", 2, "--add-identity"),
        ("account set www --quota snapshots", 2, "snapshots=NUMBER"),
        (
            "account set www --quota snapshots=-1",
            2,
            "snapshots=NUMBER",
        ),
        (
            "account set www --quota disks=1",
            2,
            "there are quotas of volumes, snapshots, attached-volumes",
        ),
        (
            "account set www --read-only --active",
            2,
            "cannot be used with",
        ),
        (
            "account give admin web",
            2,
            "give web: write image/NAME, snapshot/NAME or volume/NAME",
        ),
        (
            "account token create --scope everything",
            2,
            "[possible values: read",
        ),
        ("account token create --expires 0s", 2, "at least 1 s"),
        ("account token create --expires 90", 2, "as in 30d"),
        ("account token revoke tok-1", 3, "does not exist"),
    ] {
        let (found, stdout, stderr) = run(&daemon, &words(command));
        assert_eq!((found, stdout.as_str()), (code, ""), "{command}: {stderr}");
        assert!(stderr.contains(says), "{command}: {stderr}");
    }
}

#[test]
fn a_token_is_shown_once_and_alone() {
    let daemon = FakeDaemon::start(Manners::default());
    succeed(&daemon, &["account", "create", "web"]);
    let create = "account token create web --scope read --scope volumes --expires 90d --description \
                  nightly";
    let (code, stdout, stderr) = run(&daemon, &words(create));
    assert_eq!(code, 0, "{stderr}");
    let secret = stdout.strip_suffix('\n').unwrap();
    assert!(
        daemon.state().accounts.secrets.contains_key(secret),
        "{stdout}"
    );
    assert_eq!(
        stderr,
        "snapctl: token tok-00000000000000001 of account 000000000001 allows read volumes and \
         expires at 2024-02-12T22:13:20Z; it is not shown again\n"
    );
    let asked = daemon.state().accounts.asked_token.clone().unwrap();
    assert_eq!(asked.lifetime_seconds, 90 * 24 * 3600);

    let token = json!({
        "id": "tok-00000000000000001",
        "account": "000000000001",
        "scopes": ["read", "volumes"],
        "description": "nightly",
        "created_at": "2023-11-14T22:13:20Z",
        "expires_at": "2024-02-12T22:13:20Z",
        "last_used_at": null,
    });
    let list = succeed(&daemon, &words("account token list web"));
    assert_eq!(
        list,
        "ID                     SCOPES        EXPIRES               DESCRIPTION\n\
         tok-00000000000000001  read volumes  2024-02-12T22:13:20Z  nightly\n"
    );
    assert_eq!(
        in_json(&daemon, "account token list web"),
        json!({ "tokens": [token] })
    );
    // The caller's own account.
    assert_eq!(
        succeed(&daemon, &words("account token list")),
        "no tokens\n"
    );
    let created = in_json(&daemon, "account token create");
    assert_eq!(created["token"]["scopes"], json!([]));
    assert_eq!(created["token"]["expires_at"], Value::Null);
    let other = created["secret"].as_str().unwrap().to_owned();
    assert!(daemon.state().accounts.secrets.contains_key(&other));
    assert_eq!(
        in_json(&daemon, "account token revoke tok-00000000000000001"),
        token
    );
    assert_eq!(
        succeed(
            &daemon,
            &words("account token revoke tok-00000000000000002")
        ),
        "revoked tok-00000000000000002 of account 000000000000\n"
    );
    // A secret in place of an id is not repeated.
    let (code, _, stderr) = run(&daemon, &["account", "token", "revoke", &other]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("tok-...") && !stderr.contains(&other),
        "{stderr}"
    );
}

#[test]
fn a_token_goes_to_a_new_file_of_its_owner() {
    let daemon = FakeDaemon::start(Manners::default());
    let create = "account token create --output-file token --quiet";
    assert_eq!(succeed(&daemon, &words(create)), "");
    let file = fs::metadata(daemon.path("token")).unwrap();
    assert_eq!(file.mode() & 0o777, 0o600);
    let token = fs::read_to_string(daemon.path("token")).unwrap();
    let secret = token.strip_suffix('\n').unwrap();
    assert!(daemon.state().accounts.secrets.contains_key(secret));
    let me = in_json(&daemon, "whoami --token-file token");
    assert_eq!(me["identity"], "tok-00000000000000001");

    // No token is made for which there is no place.
    let (code, _, stderr) = run(&daemon, &words(create));
    assert_eq!(code, 4, "{stderr}");
    assert_eq!(fs::read_to_string(daemon.path("token")).unwrap(), token);
    assert_eq!(daemon.state().accounts.tokens.len(), 1);
    // No file is left without a token.
    let (code, _, stderr) = run(
        &daemon,
        &words("account token create no --output-file other"),
    );
    assert_eq!(code, 3, "{stderr}");
    assert!(!daemon.path("other").exists());

    let json = in_json(&daemon, "account token create --output-file third");
    assert_eq!(json["secret"], Value::Null);
    // A token that nobody has got is revoked.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = snapctl(&daemon, &words("account token create"))
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let (code, _, stderr) = finished(output);
    assert_eq!(code, 7, "{stderr}");
    assert_eq!(daemon.state().accounts.tokens.len(), 2, "{stderr}");
}

#[test]
fn an_access_key_is_shown_once() {
    let daemon = FakeDaemon::start(Manners::default());
    succeed(&daemon, &["account", "create", "web"]);
    let secret = format!("{:/>40}", "5ec2e7");
    let (code, stdout, stderr) = run(&daemon, &words("account access-key create web"));
    assert_eq!(code, 0, "{stderr}");
    let credentials = format!(
        "[default]\naws_access_key_id = AKIA222222222222222A\naws_secret_access_key = {secret}\n"
    );
    assert_eq!(stdout, credentials);
    assert_eq!(
        stderr,
        "snapctl: access key AKIA222222222222222A of account 000000000001; its secret is not shown \
         again\n"
    );
    assert_eq!(
        in_json(&daemon, "account access-key create web"),
        json!({
            "access_key_id": "AKIA222222222222222B",
            "account": "000000000001",
            "created_at": "2023-11-14T22:13:20Z",
            "usable": true,
            "secret_access_key": secret,
        })
    );
    let third = words("account access-key create web");
    let (code, stdout, stderr) = run(&daemon, &third);
    assert_eq!((code, &*stdout), (8, ""), "{stderr}");

    let key = daemon.state().accounts.access_keys.pop_last();
    let (id, key) = key.unwrap();
    let key = v1::AccessKey {
        is_usable: false,
        ..key
    };
    daemon.state().accounts.access_keys.insert(id, key);
    assert_eq!(
        succeed(&daemon, &words("account access-key list web")),
        "ID                    USABLE  CREATED\n\
         AKIA222222222222222A  yes     2023-11-14T22:13:20Z\n\
         AKIA222222222222222B  no      2023-11-14T22:13:20Z\n"
    );
    let list = in_json(&daemon, "account access-key ls web");
    assert_eq!(list["access_keys"][1]["usable"], json!(false));
    assert!(!list.to_string().contains("5ec2e7"), "{list}");
    // The caller's own account.
    assert_eq!(
        succeed(&daemon, &words("account access-key list")),
        "no access keys\n"
    );
    assert_eq!(
        succeed(
            &daemon,
            &words("account access-key revoke AKIA222222222222222A")
        ),
        "revoked AKIA222222222222222A of account 000000000001\n"
    );
    // A secret in place of an id is not repeated.
    let (code, _, stderr) = run(&daemon, &["account", "access-key", "revoke", &secret]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("AKIA...") && !stderr.contains("5ec2e7"),
        "{stderr}"
    );

    let create = "account access-key create --output-file keys --quiet";
    assert_eq!(succeed(&daemon, &words(create)), "");
    let file = daemon.path("keys");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.ends_with(&format!("aws_secret_access_key = {secret}\n")));
    let before = daemon.state().accounts.access_keys.len();
    assert_eq!(run(&daemon, &words(create)).0, 4, "the file is there");
    assert_eq!(daemon.state().accounts.access_keys.len(), before);
    let json = in_json(&daemon, "account access-key create --output-file more");
    assert_eq!(json["secret_access_key"], Value::Null);
    // An access key that nobody has got is revoked.
    daemon.state().accounts.access_keys.clear();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = snapctl(&daemon, &words("account access-key create"))
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    let (code, _, stderr) = finished(output);
    assert_eq!(code, 7, "{stderr}");
    assert_eq!(daemon.state().accounts.access_keys.len(), 0, "{stderr}");
}

#[test]
fn snapshots_and_volumes_are_given_away() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    for name in ["a", "b"] {
        succeed(&daemon, &["import", "disk.img", "--name", name]);
        succeed(&daemon, &["volume", "create", name, "--size", "1M"]);
    }
    succeed(&daemon, &["account", "create", "web"]);
    for noun in ["snapshot", "volume"] {
        let list = succeed(&daemon, &[noun, "list", "--owner", "all"]);
        assert!(list.contains(" b") || list.contains("\nb"), "{list}");
        assert!(!list.contains("OWNER"), "{list}");
    }
    assert_eq!(
        succeed(&daemon, &words("account give web snapshot/a volume/a")),
        "gave snapshot a (snap-00000000000000001) to web (000000000001)\n\
         gave volume a (vol-00000000000000001) to web (000000000001)\n"
    );
    for (noun, nouns) in [("snapshot", "snapshots"), ("volume", "volumes")] {
        let list = succeed(&daemon, &[noun, "list"]);
        assert!(
            list.contains("OWNER") && list.contains("000000000001"),
            "{list}"
        );
        let shown = succeed(&daemon, &[noun, "show", "a"]);
        assert!(shown.contains("Owner"), "{shown}");
        for (owner, names) in [
            ("self", &["b"][..]),
            ("web", &["a"]),
            ("000000000001", &["a"]),
            ("all", &["a", "b"]),
        ] {
            let list = in_json(&daemon, &format!("{noun} list --owner {owner}"));
            let found = list[nouns].as_array().unwrap().iter();
            let found: Vec<_> = found.map(|it| it["name"].as_str().unwrap()).collect();
            assert_eq!(found, names, "{noun} {owner}");
        }
        let list = ["list", "--owner", "none"];
        assert_eq!(run(&daemon, &[&[noun], &list[..]].concat()).0, 3);
    }
    let given = in_json(&daemon, "account give admin snapshot/a volume/a");
    assert_eq!(given["snapshots"][0]["owner"], "000000000000");
    assert_eq!(given["volumes"][0]["owner"], "000000000000");
    // The first one that cannot be given ends it.
    let (code, stdout, stderr) = run(
        &daemon,
        &words("account give web snapshot/b volume/none volume/b"),
    );
    assert_eq!(code, 3, "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert_eq!(daemon.state().volumes["b"].owner, "000000000000");
    succeed(&daemon, &["volume", "attach", "b"]);
    let (code, _, stderr) = run(&daemon, &words("account give web volume/b"));
    assert_eq!(code, 8, "{stderr}");
}

/// The administrator sees those of all accounts.
#[test]
fn a_cleanup_without_names_leaves_the_snapshots_of_others() {
    let daemon = FakeDaemon::start(Manners::default());
    disk(&daemon);
    for name in ["own", "other"] {
        succeed(
            &daemon,
            &["import", "disk.img", "--name", name, "--tag", "x=1"],
        );
    }
    succeed(&daemon, &["account", "create", "web"]);
    succeed(&daemon, &words("account give web snapshot/other"));
    let said = succeed(&daemon, &words("snapshot delete --tag x=1 --yes"));
    assert!(said.starts_with("deleted own ("), "{said}");
    let left = daemon.state().snapshots.keys().cloned().collect::<Vec<_>>();
    assert_eq!(left, ["other"]);
}

#[test]
fn everybody_may_ask_who_they_are() {
    let daemon = FakeDaemon::start(Manners::default());
    assert_eq!(
        succeed(&daemon, &["whoami"]),
        "Account        admin (000000000000)\nState          active\nIdentity       uid:0\n\
         Administrator  yes\nScopes         all\n"
    );
    succeed(&daemon, &["account", "create", "web"]);
    let token = "account token create web --scope copy --output-file token --quiet";
    succeed(&daemon, &words(token));
    let me = in_json(&daemon, "whoami --token-file token");
    assert_eq!(me["account"]["name"], "web");
    assert_eq!(
        (&me["is_administrator"], &me["scopes"]),
        (&json!(false), &json!(["copy"]))
    );
    daemon.state().accounts.needs_token = true;
    assert_eq!(
        succeed(&daemon, &["whoami"]),
        "Account   none: the daemon does not know you\nIdentity  uid:1000\n"
    );
    assert_eq!(
        in_json(&daemon, "whoami"),
        json!({ "account": null, "identity": "uid:1000", "is_administrator": false, "scopes": [] })
    );
}

#[test]
fn names_of_a_hostile_daemon_do_nothing_to_the_terminal() {
    let daemon = FakeDaemon::start(Manners::default());
    succeed(&daemon, &["account", "create", "web"]);
    succeed(&daemon, &words("account token create web --quiet"));
    {
        let accounts = &mut daemon.state().accounts;
        let account = accounts.accounts.get_mut("000000000001").unwrap();
        account.alias = HOSTILE.to_owned();
        account.name = HOSTILE.to_owned();
        account.identities = vec![HOSTILE.to_owned()];
        let token = accounts.tokens.values_mut().next().unwrap();
        token.description = HOSTILE.to_owned();
        accounts.next_secret = Some("varve_hunter2\u{1b}[2J".to_owned());
    }
    for command in [
        "account list -o wide",
        "account list -o json",
        "account show 000000000001",
        "account disable 000000000001",
        "account token list 000000000001",
        "account token list 000000000001 -o json",
        // The secret is no token.
        "account token create 000000000001",
        "account delete 000000000001",
    ] {
        let (code, stdout, stderr) = run(&daemon, &words(command));
        assert_eq!(code != 0, command.contains("create"), "{command}: {stderr}");
        let shown = stdout + &stderr;
        assert!(
            !shown.contains(['\u{1b}', '\u{7}', '\u{202e}']),
            "{shown:?}"
        );
        assert!(
            !shown.lines().any(|line| line.starts_with("forged")),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn scopes_that_are_not_known_are_not_taken_for_everything() {
    let daemon = FakeDaemon::start(Manners::default());
    succeed(&daemon, &words("account token create --quiet"));
    let token = v1::Token {
        scopes: vec![77],
        ..daemon.state().accounts.tokens["tok-00000000000000001"].clone()
    };
    let id = token.id.clone();
    daemon.state().accounts.tokens.insert(id, token);
    let list = succeed(&daemon, &words("account token list"));
    assert!(list.contains("unknown"), "{list}");
}

#[test]
fn the_audit_log_is_shown_whole_or_its_end() {
    let daemon = FakeDaemon::start(Manners::default());
    let event = |number: u64, action: &str| v1::AuditEvent {
        number,
        // The beginning of 1970.
        time: Some(Default::default()),
        account: "000000000007".to_owned(),
        identity: "uid:1000".to_owned(),
        action: action.to_owned(),
        resources: HOSTILE.to_owned(),
        result: "PermissionDenied".to_owned(),
        count: number,
        ..v1::AuditEvent::default()
    };
    let events = (1..=5).map(|number| event(number, "DeleteVolume"));
    daemon.state().accounts.audit = events.collect();
    daemon.state().accounts.audit.push(v1::AuditEvent {
        time: None,
        ..event(6, "GetVolume")
    });
    let (code, _, stderr) = run(&daemon, &words("audit"));
    assert_ne!(code, 0, "an event without a time");
    assert!(stderr.contains("without a valid time"), "{stderr}");

    let all = in_json(&daemon, "audit --action DeleteVolume");
    let numbers: Vec<_> = all["events"].as_array().unwrap().iter().collect();
    let numbers: Vec<_> = numbers
        .iter()
        .map(|event| event["number"].as_u64())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5].map(Some));
    let last = succeed(&daemon, &words("audit --action DeleteVolume -n 1"));
    let line = last.lines().last().unwrap();
    assert_eq!(last.lines().count(), 2, "{last}");
    assert!(line.contains("PermissionDenied x 5"), "{last}");
    assert!(
        !last.contains('\u{1b}') && !last.contains('\u{202e}'),
        "{last:?}"
    );
}
