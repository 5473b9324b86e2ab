//! Tokens and profiles of `snapctl`: where they come from, and where they go.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use tonic::Status;
use varve_fake_daemon::{FakeDaemon, Manners};

use crate::commands::{disk, finished, parse, run, snapctl, succeed};

const SECRET: &str = "varve_5ec2e75ec2e75ec2e7";

/// A file with a token.
fn token(daemon: &FakeDaemon, name: &str, secret: &str) {
    let path = daemon.path(name);
    fs::write(&path, format!("{secret}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A daemon that knows one token.
fn daemon() -> FakeDaemon {
    let daemon = FakeDaemon::start(Manners::default());
    allow(&daemon);
    token(&daemon, "token", SECRET);
    daemon
}

fn allow(daemon: &FakeDaemon) {
    let accounts = &mut daemon.state().accounts;
    let id = "tok-00000000000000001".to_owned();
    accounts.secrets.insert(SECRET.to_owned(), id);
    accounts.needs_token = true;
}

fn profiles(daemon: &FakeDaemon, text: &str) {
    fs::create_dir_all(daemon.path("config/varve")).unwrap();
    fs::write(daemon.path("config/varve/config.toml"), text).unwrap();
}

fn ended(command: &mut Command) -> (i32, String, String) {
    finished(command.output().unwrap())
}

/// The tokens of the calls so far.
fn shown(daemon: &FakeDaemon) -> Vec<Option<String>> {
    let seen = std::mem::take(&mut daemon.state().accounts.authorizations);
    let bearer = |header: String| header.strip_prefix("Bearer ").unwrap().to_owned();
    seen.into_iter().map(|header| header.map(bearer)).collect()
}

#[test]
fn a_token_goes_with_every_call() {
    let daemon = daemon();
    disk(&daemon);
    for command in [
        "import disk.img --name a",
        "export a out.img",
        "export --archive a out.varve",
        "snapshot list",
        "snapshot diff a a",
        "volume create v --size 1M",
        "copy create a --from unix:/x",
        "remote list",
        "gc status",
        "account list",
        "status",
    ] {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(["--token-file", "token"]);
        let (code, _, stderr) = run(&daemon, &arguments);
        assert_eq!(code, 0, "{command}: {stderr}");
        let shown = shown(&daemon);
        let all_have_it = shown.iter().all(|it| it.as_deref() == Some(SECRET));
        assert!(all_have_it && !shown.is_empty(), "{command}: {shown:?}");
    }
}

#[test]
fn callers_whom_the_daemon_does_not_know_are_told_what_to_do() {
    let daemon = daemon();
    let uid = rustix::process::getuid().as_raw();
    let (code, stdout, stderr) = run(&daemon, &["volume", "list"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(
        stderr,
        format!(
            "snapctl: list volumes: uid:1000 has no account: the daemon does not know you: give a \
             token (--token-file), or have its administrator add an identity (`snapctl account set \
             NAME --add-identity uid:{uid}`)\n"
        )
    );
    let (_, _, stderr) = run(&daemon, &["volume", "list", "-o", "json"]);
    assert_eq!(parse(&stderr)["error"]["kind"], "unauthenticated");
    token(&daemon, "old", "varve_hunter2");
    let (code, _, stderr) = run(&daemon, &["volume", "list", "--token-file", "old"]);
    assert_eq!(code, 1);
    assert_eq!(
        stderr,
        "snapctl: list volumes: the token is not valid: the daemon does not accept the token in \
         old, which may be revoked or expired\n"
    );
    let no = Status::permission_denied("account web may not do this");
    daemon.state().accounts.refusal = Some(no);
    let denied = ["gc", "status", "--token-file", "token"];
    let (code, _, stderr) = run(&daemon, &denied);
    assert_eq!(code, 1);
    assert!(
        stderr.ends_with(
            "account web may not do this: `snapctl whoami` shows your account, and what your \
             token allows\n"
        ),
        "{stderr}"
    );
    let (_, _, stderr) = run(&daemon, &[&denied[..], &["-o", "json"]].concat());
    assert_eq!(parse(&stderr)["error"]["kind"], "denied");
}

#[test]
fn a_token_file_that_others_can_read_is_refused_with_the_remedy() {
    let daemon = daemon();
    let status = ["status", "--token-file", "token"];
    for mode in [0o640, 0o604, 0o644] {
        let permissions = Permissions::from_mode(mode);
        fs::set_permissions(daemon.path("token"), permissions).unwrap();
        let (code, _, stderr) = run(&daemon, &status);
        assert_eq!(code, 2);
        assert_eq!(
            stderr,
            "snapctl: read the token in token: other users may have access to it: `chmod 600 \
             token` ends that\n"
        );
    }
    assert!(shown(&daemon).is_empty());
    fs::set_permissions(daemon.path("token"), Permissions::from_mode(0o600)).unwrap();
    succeed(&daemon, &status);
    for (content, says) in [
        ("hunter2\n", "it is not a token"),
        ("varve_hunter2\nvarve_hunter2\n", "more than one line"),
        (&"varve_hunter2".repeat(400), "more than 4096 bytes"),
    ] {
        fs::write(daemon.path("token"), content).unwrap();
        let (code, _, stderr) = run(&daemon, &status);
        assert_eq!(code, 2);
        assert!(
            stderr.contains(says) && !stderr.contains("hunter2"),
            "{stderr}"
        );
    }
    let (code, _, stderr) = run(&daemon, &["status", "--token-file", "none"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("No such file"), "{stderr}");
    let (code, _, stderr) = run(&daemon, &["status", "--token-file", "."]);
    assert_eq!(code, 2);
    assert!(stderr.contains("not a regular file"), "{stderr}");
    // The token itself in place of its file.
    let (code, _, stderr) = run(&daemon, &["status", "--token-file", SECRET]);
    assert_eq!(code, 2);
    assert!(!stderr.contains(SECRET), "{stderr}");
}

#[test]
fn a_token_is_in_no_log_and_no_error() {
    let daemon = daemon();
    for refusal in [None, Some(Status::unauthenticated("no"))] {
        daemon.state().accounts.refusal = refusal;
        let mut command = snapctl(&daemon, &["status", "--token-file", "token"]);
        let (_, stdout, stderr) = ended(command.env("VARVE_LOG", "trace"));
        assert!(stderr.len() > 1000, "{stderr}");
        for text in [stdout, stderr] {
            assert!(!text.contains("5ec2e7"), "{text}");
        }
    }
}

#[test]
fn a_token_does_not_cross_a_network_in_the_open() {
    let daemon = daemon();
    let to = |endpoint: &str| {
        let status = ["status", "--token-file", "token", "--endpoint"];
        run(&daemon, &[&status[..], &[endpoint]].concat())
    };
    // Nothing listens in this network of documentation (RFC 5737), so this would take long.
    let (code, _, stderr) = to("http://192.0.2.1:7420");
    assert_eq!(code, 2);
    assert_eq!(
        stderr,
        "snapctl: connect to http://192.0.2.1:7420: a token is not sent to another machine without \
         TLS, where others can read it: use https\n"
    );
    let local = FakeDaemon::start_tcp(Manners::default());
    allow(&local);
    let (code, _, stderr) = to(&local.endpoint.to_string());
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(shown(&local), [Some(SECRET.to_owned())]);
}

#[test]
fn an_option_wins_over_a_variable_and_that_over_the_profile() {
    let daemon = daemon();
    let other = FakeDaemon::start(Manners::default());
    for name in ["flag", "variable", "profile"] {
        let secret = format!("varve_{name}");
        token(&daemon, name, &secret);
        for daemon in [&daemon, &other] {
            let accounts = &mut daemon.state().accounts;
            accounts.secrets.insert(secret.clone(), "tok-1".to_owned());
        }
    }
    let path = |name: &str| daemon.path(name).display().to_string();
    let endpoint = daemon.endpoint.to_string();
    let text = format!(
        "[profile.a]\nendpoint = \"{endpoint}\"\ntoken_file = \"{0}\"\n\
         [profile.b]\nendpoint = \"unix:/nowhere\"\n[profile.c]\ntoken_file = \"{0}\"\n",
        path("profile")
    );
    profiles(&daemon, &text);
    let (flag, variable) = (path("flag"), path("variable"));
    let token_of = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = snapctl(&daemon, &[&["status"], arguments].concat());
        command.env_remove("VARVE_ENDPOINT");
        command.envs(variables.iter().copied());
        let (code, _, stderr) = ended(&mut command);
        assert_eq!(code, 0, "{arguments:?} {variables:?}: {stderr}");
        let mut all = [shown(&daemon), shown(&other)].concat();
        assert_eq!(all.len(), 1);
        all.remove(0)
            .map(|token| token["varve_".len()..].to_owned())
    };
    let some = |token: &str| Some(token.to_owned());
    let by_variable = ("VARVE_TOKEN_FILE", &*variable);
    let profile = ["--profile", "a"];
    assert_eq!(token_of(&profile, &[]), some("profile"));
    assert_eq!(token_of(&[], &[("VARVE_PROFILE", "a")]), some("profile"));
    // The option wins over the variable.
    assert_eq!(
        token_of(&profile, &[("VARVE_PROFILE", "b")]),
        some("profile")
    );
    assert_eq!(token_of(&profile, &[by_variable]), some("variable"));
    let with_flag = [&profile[..], &["--token-file", &flag]].concat();
    assert_eq!(token_of(&with_flag, &[by_variable]), some("flag"));
    // Endpoints, too; the profile's would fail.
    let to_other = other.endpoint.to_string();
    let variables = [("VARVE_ENDPOINT", &*endpoint), ("VARVE_PROFILE", "b")];
    other.state().accounts.needs_token = false;
    assert_eq!(token_of(&["--endpoint", &to_other], &variables), None);
    assert_eq!(token_of(&["--token-file", &flag], &variables), some("flag"));
    // A variable of another session may be in the way of a profile.
    let (code, _, stderr) = run(&daemon, &["whoami", "--profile", "b"]);
    assert_eq!(code, 2, "{stderr}");
    let says = format!("VARVE_ENDPOINT names another daemon, {endpoint}: unset it");
    assert!(stderr.contains(&says), "{stderr}");
    assert_eq!(shown(&daemon).len(), 0);
    // The token of a profile without an endpoint is for whatever endpoint is given.
    assert_eq!(
        token_of(&["--endpoint", &to_other, "--profile", "c"], &[]),
        some("profile")
    );
    // The token of one with an endpoint is for no other.
    let elsewhere = ["--endpoint", &to_other, "--profile", "a"];
    assert_eq!(token_of(&elsewhere, &[]), None);
    other.state().accounts.needs_token = true;
    let (code, _, stderr) = run(&daemon, &[&["status"], &elsewhere[..]].concat());
    assert_eq!(code, 1);
    assert!(
        stderr.ends_with(
            "the token of the profile is for the profile's endpoint only; --token-file sends it \
             elsewhere\n"
        ),
        "{stderr}"
    );
}

#[test]
fn the_default_profile_is_used_if_there_is_one() {
    let daemon = daemon();
    let endpoint = daemon.endpoint.to_string();
    let without_endpoint = |arguments: &[&str]| {
        let mut command = snapctl(&daemon, arguments);
        ended(command.env_remove("VARVE_ENDPOINT"))
    };
    assert_eq!(without_endpoint(&["status"]).0, 5);
    fs::create_dir(daemon.path("home")).unwrap();
    let token_file = daemon.path("home/token");
    fs::rename(daemon.path("token"), token_file).unwrap();
    let text = format!("[profile.default]\nendpoint = \"{endpoint}\"\ntoken_file = \"~/token\"\n");
    profiles(&daemon, &text);
    let mut command = snapctl(&daemon, &["status"]);
    command
        .env_remove("VARVE_ENDPOINT")
        .env("HOME", daemon.path("home"))
        .env("VARVE_PROFILE", "");
    let (code, _, stderr) = ended(&mut command);
    assert_eq!((code, stderr.as_str()), (0, ""));
    // Without XDG_CONFIG_HOME, it is in the user's directory.
    fs::create_dir(daemon.path("home/.config")).unwrap();
    fs::rename(
        daemon.path("config/varve"),
        daemon.path("home/.config/varve"),
    )
    .unwrap();
    assert_eq!(ended(&mut command).0, 5);
    let (code, _, stderr) = ended(command.env_remove("XDG_CONFIG_HOME"));
    assert_eq!((code, stderr.as_str()), (0, ""));
}

#[test]
fn a_wrong_profile_fails_only_commands_that_connect() {
    let daemon = daemon();
    let file = daemon.path("config/varve/config.toml");
    let file = file.display();
    for (text, arguments, says) in [
        (
            "[profile.default]\ntoken = \"varve_hunter2\"\n",
            &[][..],
            format!(
                "snapctl: read {file}: profile.default.token: unknown key; the keys are endpoint, \
                 token_file, tls_ca, tls_cert, tls_key\n"
            ),
        ),
        (
            "[profile.default]\nendpoint =\n",
            &[],
            format!("snapctl: read {file}: line 2 is not TOML: "),
        ),
        (
            "",
            &["--profile", "eu"],
            format!("snapctl: use profile eu: it is not in {file}\n"),
        ),
        (
            "[profile.default]\nendpoint = \"garbage\"\n",
            &[],
            "snapctl: endpoint \"garbage\": write unix:PATH".to_owned(),
        ),
    ] {
        profiles(&daemon, text);
        let mut command = snapctl(&daemon, &[&["status"], arguments].concat());
        let (code, _, stderr) = ended(command.env_remove("VARVE_ENDPOINT"));
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.starts_with(&says), "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
        for fine in [&["device", "list"][..], &["completions", "bash"]] {
            succeed(&daemon, &[fine, arguments].concat());
        }
    }
}
