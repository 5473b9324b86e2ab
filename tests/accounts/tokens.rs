//! Bearers of tokens, over TCP.

use std::{fs, time::Duration};

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, client::Grpc, metadata::MetadataValue, transport::Endpoint};
use varve_tests::{
    daemon::Options,
    lab::Lab,
    process::wait_for,
    snapctl::{Snapctl, exit, text},
};

use super::{account, admin, table::Raw, token, with_token};

fn lab() -> Lab {
    Lab::with(Options::tcp)
}

#[test]
fn a_token_acts_for_its_account_until_it_is_revoked() {
    let lab = lab();
    account(&lab, "web");
    let web = token(&lab, "web.token", "web --description ci");
    with_token(&lab, &web, "volume create data --size 1M").ok();
    let me = with_token(&lab, &web, "whoami").success().text();
    assert!(me.contains("web (") && me.contains("tok-"), "{me}");
    // Without it the caller is nobody.
    let tcp = Snapctl::new(lab.varved.tcp_endpoint());
    tcp.run(["volume", "list"]).fails(super::DENIED);

    let list = lab.snapctl().json(["account", "token", "list", "web"]);
    let listed = &list["tokens"][0];
    assert_eq!(text(listed, "description"), "ci");
    assert!(listed["last_used_at"].is_string(), "{list}");
    let secret = fs::read_to_string(&web).unwrap();
    assert!(
        !list
            .to_string()
            .contains(secret.trim().rsplit('_').next().unwrap())
    );

    // A forged one, of the right form and the right id.
    let forged = lab.scratch.join("forged.token");
    fs::copy(&web, &forged).unwrap();
    let (head, _) = secret.trim().rsplit_once('_').unwrap();
    fs::write(&forged, format!("{head}_{}", "5a".repeat(32))).unwrap();
    let said = with_token(&lab, &forged, "volume list").fails(super::DENIED);
    assert!(said.contains("not valid"), "{said}");

    let id = text(listed, "id");
    admin(&lab, &format!("account token revoke {id}"));
    let said = with_token(&lab, &web, "volume list").fails(super::DENIED);
    assert!(said.contains("not valid"), "{said}");
    admin(&lab, "volume list --owner web");
}

#[test]
fn scopes_limit_a_token_and_accounts_make_their_own() {
    let lab = lab();
    account(&lab, "web");
    account(&lab, "db");
    let all = token(&lab, "all.token", "web");
    // An account makes tokens for itself, and for nobody else.
    let read = lab.scratch.join("read.token");
    let create = format!(
        "account token create --scope read --output-file {}",
        read.display()
    );
    with_token(&lab, &all, &create).ok();
    with_token(&lab, &all, "account token create db").fails(exit::NOT_FOUND);
    with_token(&lab, &all, "volume create data --size 1M").ok();
    with_token(&lab, &read, "volume show data").ok();
    let said = with_token(&lab, &read, "volume delete data").fails(super::DENIED);
    assert!(said.contains("scope"), "{said}");
    let said = with_token(&lab, &read, "account token create").fails(super::DENIED);
    assert!(said.contains("scope"), "{said}");

    let images = token(&lab, "images.token", "web --scope images");
    with_token(&lab, &images, "snapshot create data --name s --wait").ok();
    with_token(&lab, &images, "volume delete data").fails(super::DENIED);
    // The administrator's tokens have scopes, too.
    let watcher = token(&lab, "watcher.token", "admin --scope read");
    with_token(&lab, &watcher, "status").ok();
    with_token(&lab, &watcher, "gc run").fails(super::DENIED);
}

#[test]
fn tokens_survive_a_restart_and_expire() {
    let mut lab = lab();
    account(&lab, "web");
    let lasting = token(&lab, "lasting.token", "web");
    let short = token(&lab, "short.token", "web --expires 3s");
    with_token(&lab, &short, "volume list").ok();
    lab.varved.stop();
    lab.restart_with(Options::tcp);
    with_token(&lab, &lasting, "volume list").ok();
    std::thread::sleep(Duration::from_secs(4));
    let said = with_token(&lab, &short, "volume list").fails(super::DENIED);
    assert!(said.contains("expired"), "{said}");

    // Without the key of the hashes no token is valid, and the daemon says why.
    lab.varved.stop();
    let key = lab.data_dir().join("auth.key");
    fs::rename(&key, lab.scratch.join("kept.key")).unwrap();
    lab.restart_with(Options::tcp);
    with_token(&lab, &lasting, "volume list").fails(super::DENIED);
    assert!(
        lab.varved.log().contains("auth.key"),
        "{}",
        lab.varved.log()
    );
}

/// A call has the rights of the moment when its message has arrived, not when it was opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_opened_before_has_no_rights_after_a_revocation() {
    let lab = lab();
    account(&lab, "web");
    let secret = fs::read_to_string(token(&lab, "web.token", "web")).unwrap();
    let list = lab.snapctl().json(["account", "token", "list", "web"]);
    let id = text(&list["tokens"][0], "id");
    let channel = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
    let mut grpc = Grpc::new(channel.connect().await.unwrap());
    grpc.ready().await.unwrap();
    let (message, messages) = tokio::sync::mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(messages));
    let bearer = MetadataValue::try_from(format!("Bearer {}", secret.trim())).unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let path = "/varve.v1.AccountService/CreateToken".parse().unwrap();
    let call = async move {
        match grpc.streaming(request, path, Raw).await {
            Err(status) => status.code(),
            Ok(answer) => match answer.into_inner().message().await {
                Err(status) => status.code(),
                Ok(_) => Code::Ok,
            },
        }
    };
    let revoke = async move {
        tokio::task::spawn_blocking(move || {
            // The daemon has taken the token by then.
            let used = || {
                let list = lab.snapctl().json(["account", "token", "list", "web"]);
                list["tokens"][0]["last_used_at"].as_str().map(drop)
            };
            wait_for("the token to be used", used);
            admin(&lab, &format!("account token revoke {id}"));
            message.blocking_send(Vec::new()).unwrap();
            lab
        })
        .await
        .unwrap()
    };
    let (code, _lab) = tokio::join!(call, revoke);
    assert_eq!(code, Code::Unauthenticated);
}

#[test]
fn a_store_whose_key_is_missing_does_not_open_to_all() {
    let mut lab = lab();
    let bearer = token(&lab, "admin", "admin");
    with_token(&lab, &bearer, "volume list").ok();
    let (key, away) = (
        lab.data_dir().join("auth.key"),
        lab.scratch.join("away.key"),
    );
    for is_link in [false, true] {
        lab.varved.stop();
        if is_link {
            std::os::unix::fs::symlink(lab.scratch.join("not-mounted/auth.key"), &key).unwrap();
        } else {
            fs::rename(&key, &away).unwrap();
        }
        lab.restart_with(Options::tcp);
        let tcp = Snapctl::new(lab.varved.tcp_endpoint());
        tcp.run(["volume", "list"]).fails(super::DENIED);
        with_token(&lab, &bearer, "volume list").fails(super::DENIED);
        admin(&lab, "volume list");
        let log = lab.varved.log();
        assert!(log.contains("only known callers are let in"), "{log}");
    }
    lab.varved.stop();
    fs::remove_file(&key).unwrap();
    fs::rename(&away, &key).unwrap();
    lab.restart_with(Options::tcp);
    with_token(&lab, &bearer, "volume list").ok();
}

#[test]
fn a_token_that_is_sent_as_a_name_is_in_no_log() {
    let lab = lab();
    account(&lab, "web");
    let bearer = token(&lab, "web", "web");
    let secret = fs::read_to_string(&bearer).unwrap();
    let secret = secret.trim();
    for command in ["volume delete", "snapshot delete", "volume detach"] {
        let said = with_token(&lab, &bearer, &format!("{command} {secret}"));
        said.fails(exit::NOT_FOUND);
    }
    let digits = secret.rsplit('_').next().unwrap();
    // Refusals of a second are written together.
    let events = wait_for("the refusals", || {
        let events = admin(&lab, "audit -o json").text();
        events.contains("DeleteVolume").then_some(events)
    });
    assert!(
        events.contains("_...") && !events.contains(digits),
        "{events}"
    );
    assert!(!lab.varved.log().contains(digits));
}
