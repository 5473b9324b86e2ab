//! Accounts, tokens and access keys, and the credentials of a connection.

use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use tonic::Status;
use varve_client::{
    ADMINISTRATOR, AccountState, AccountUpdate, Client, Connector, Endpoint, ErrorKind, NewAccount,
    NewToken, NewVolume, PublicAccessBlock, Quota, SnapshotFilter, TokenScope, TokenSecret,
    VolumeFilter,
};
use varve_fake_daemon::{FakeDaemon, Manners};
use varve_proto::v1;

fn account(name: &str) -> NewAccount {
    NewAccount {
        name: name.to_owned(),
        ..NewAccount::default()
    }
}

async fn with_token(daemon: &FakeDaemon, secret: &TokenSecret) -> Client {
    let connector = Connector::new(daemon.endpoint.clone()).token(secret.clone());
    connector.connect().await.unwrap()
}

#[tokio::test]
async fn an_account_is_made_changed_and_deleted() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let made = client
        .create_account(NewAccount {
            id: Some("123456789012".to_owned()),
            alias: Some("shop".to_owned()),
            identities: vec!["uid:1000".to_owned()],
            ..account("web")
        })
        .await
        .unwrap();
    assert_eq!(
        (&*made.id, made.state),
        ("123456789012", AccountState::Active)
    );
    let error = client.create_account(account("web")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    for key in ["123456789012", "web", "shop"] {
        assert_eq!(client.account(key).await.unwrap(), made);
    }
    let all = client.accounts().await.unwrap();
    assert_eq!(all[0].id, ADMINISTRATOR);
    assert_eq!((&*all[0].name, all[0].created_at), ("admin", None));
    assert_eq!(all[1], made);

    // The default changes nothing.
    let same = AccountUpdate::default();
    assert_eq!(client.update_account("web", same).await.unwrap(), made);
    let update = AccountUpdate {
        name: Some("www".to_owned()),
        alias: Some(String::new()),
        state: Some(AccountState::ReadOnly),
        add_identities: vec!["gid:7".to_owned()],
        remove_identities: vec!["uid:1000".to_owned()],
        public_access_block: Some(PublicAccessBlock::AllSharing),
        public_images: Some(true),
        quotas: vec![(Quota::Snapshots, Some(9)), (Quota::Volumes, None)],
    };
    let updated = client.update_account("web", update).await.unwrap();
    assert_eq!((&*updated.name, &updated.alias), ("www", &None));
    assert_eq!(updated.state, AccountState::ReadOnly);
    assert_eq!(updated.identities, ["gid:7"]);
    assert_eq!(updated.public_access_block, PublicAccessBlock::AllSharing);
    assert!(updated.public_images && !made.public_images);
    let [quota] = &*updated.quotas else {
        panic!("{:?}", updated.quotas);
    };
    let limit = (quota.quota, quota.limit, quota.used);
    assert_eq!(limit, (Quota::Snapshots, Some(9), Some(3)));
    let unknown = AccountUpdate {
        state: Some(AccountState::Unknown),
        ..AccountUpdate::default()
    };
    let error = client.update_account("www", unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(client.delete_account("www").await.unwrap(), updated);
    let error = client.account("www").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_token_acts_for_its_account() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let me = client.who_am_i().await.unwrap();
    assert!(me.is_administrator && me.scopes.is_empty());
    let web = client.create_account(account("web")).await.unwrap();
    let created = client
        .create_token(NewToken {
            account: Some("web".to_owned()),
            scopes: vec![TokenScope::Read, TokenScope::Copy],
            description: "nightly".to_owned(),
            lifetime: Some(Duration::from_secs(3600)),
        })
        .await
        .unwrap();
    let token = created.token.clone();
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    assert_eq!(token.created_at, made);
    assert_eq!(token.expires_at, Some(made + Duration::from_secs(3600)));
    let listed = client.tokens(Some("web")).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&token));
    assert_eq!(client.tokens(None).await.unwrap(), []);

    daemon.state().accounts.needs_token = true;
    let error = client.accounts().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    let nobody = client.who_am_i().await.unwrap();
    assert_eq!((nobody.account, nobody.is_administrator), (None, false));
    let bearer = with_token(&daemon, &created.secret).await;
    let me = bearer.who_am_i().await.unwrap();
    assert_eq!((me.account, &me.identity), (Some(web), &token.id));
    assert_eq!(me.scopes, [TokenScope::Read, TokenScope::Copy]);
    assert_eq!(bearer.revoke_token(&token.id).await.unwrap(), token);
    let error = bearer.status().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
}

#[tokio::test]
async fn an_access_key_is_made_listed_and_revoked() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    client.create_account(account("web")).await.unwrap();
    let created = client.create_access_key(Some("web")).await.unwrap();
    let access_key = created.access_key.clone();
    assert_eq!(access_key.account, "000000000001");
    assert!(access_key.is_usable);
    let secret = created.secret.expose().to_owned();
    assert_eq!(secret.len(), 40);
    let listed = client.access_keys(Some("web")).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&access_key));
    assert_eq!(client.access_keys(None).await.unwrap(), []);
    client.create_access_key(Some("web")).await.unwrap();
    let third = client.create_access_key(Some("web")).await.unwrap_err();
    assert_eq!(third.kind(), ErrorKind::Conflict);
    assert!(!format!("{created:?}").contains("5ec2e7"));
    // A secret in place of an id is neither sent nor repeated.
    for wrong in [&*secret, "", "AKIA", "AKIA0000000000000000"] {
        let error = client.revoke_access_key(wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(!format!("{error} {error:?}").contains("5ec2e7"));
    }
    let revoked = client.revoke_access_key(&access_key.id).await.unwrap();
    assert_eq!(revoked, access_key);
    let gone = client.revoke_access_key(&access_key.id).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    // What a daemon sends goes into files that others read.
    for wrong in ["", "hunter2", &format!("hunter2\n{:/>32}", "x")] {
        daemon.state().accounts.next_secret = Some(wrong.to_owned());
        let error = client.create_access_key(None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        daemon.state().accounts.access_keys.clear();
    }
    client.create_access_key(None).await.unwrap();
    for key in daemon.state().accounts.access_keys.values_mut() {
        key.id = "AKIA\n".to_owned();
    }
    let error = client.access_keys(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn requests_that_would_mean_more_than_was_asked_for_are_not_sent() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    for new in [
        // 0 seconds stands for no end.
        NewToken {
            lifetime: Some(Duration::from_millis(900)),
            ..NewToken::default()
        },
        // No scopes stand for everything.
        NewToken {
            scopes: vec![TokenScope::Unknown],
            ..NewToken::default()
        },
    ] {
        let error = client.create_token(new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let error = client.revoke_token("varve_hunter2").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert!(daemon.state().accounts.authorizations.is_empty());
}

#[tokio::test]
async fn a_secret_is_in_no_debug_and_no_error() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    let created = client.create_token(NewToken::default()).await.unwrap();
    let secret = created.secret.expose().to_owned();
    let rest = &secret[secret.len() - 20..];
    let connector = Connector::new(daemon.endpoint.clone()).token(created.secret.clone());
    let bearer = connector.connect().await.unwrap();
    let denied = Status::permission_denied("no");
    daemon.state().accounts.refusal = Some(denied);
    let error = bearer.status().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    for text in [
        format!("{created:?}"),
        format!("{connector:?}"),
        format!("{bearer:?}"),
        format!("{error} {error:?}"),
    ] {
        assert!(!text.contains(rest), "{text}");
    }
    // A daemon that sends something else in its place.
    daemon.state().accounts.refusal = None;
    for wrong in ["hunter2", "", "varve_hunter2\r\nx: y"] {
        daemon.state().accounts.next_secret = Some(wrong.to_owned());
        let error = client.create_token(NewToken::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_token_is_sent_only_where_others_cannot_read_it() {
    let secret = TokenSecret::new("varve_hunter2").unwrap();
    for endpoint in ["http://192.0.2.1:7420", "http://example.com:7420"] {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        let connector = Connector::new(endpoint).token(secret.clone());
        let error = connector.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = format!("{error} {error:?}");
        assert!(
            text.contains("without TLS") && !text.contains("hunter2"),
            "{text}"
        );
    }
    let daemon = FakeDaemon::start_tcp(Manners::default());
    let id = "tok-1".to_owned();
    daemon
        .state()
        .accounts
        .secrets
        .insert("varve_hunter2".to_owned(), id);
    let client = with_token(&daemon, &secret).await;
    client.status().await.unwrap();
    let seen = daemon.state().accounts.authorizations.clone();
    assert_eq!(seen, [Some("Bearer varve_hunter2".to_owned())]);
}

#[tokio::test]
async fn snapshots_and_volumes_have_owners() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    client.create_account(account("web")).await.unwrap();
    for name in ["a", "b"] {
        daemon.plant(name, 1 << 20, &[]);
        let new = NewVolume {
            name: name.to_owned(),
            size_bytes: Some(1 << 20),
            ..NewVolume::default()
        };
        let volume = client.create_volume(new).await.unwrap();
        assert_eq!(volume.owner, ADMINISTRATOR);
    }
    let snapshot = client.give_snapshot("a", "web").await.unwrap();
    let volume = client.give_volume("a", "web").await.unwrap();
    assert_eq!(
        (&*snapshot.owner, &*volume.owner),
        ("000000000001", "000000000001")
    );
    let of_web = SnapshotFilter {
        owner: "web".to_owned(),
        ..SnapshotFilter::default()
    };
    let found: Vec<_> = client.snapshots(of_web).try_collect().await.unwrap();
    assert_eq!(found, [snapshot]);
    let of_web = VolumeFilter {
        owner: "web".to_owned(),
        ..VolumeFilter::default()
    };
    let found: Vec<_> = client.volumes(of_web).try_collect().await.unwrap();
    assert_eq!(found, [volume]);
    for error in [
        client.give_snapshot("a", "none").await.unwrap_err(),
        client.give_snapshot("none", "web").await.unwrap_err(),
        client.give_volume("none", "web").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_are_errors() {
    let daemon = FakeDaemon::start(Manners::default());
    let client = daemon.client().await;
    client.create_token(NewToken::default()).await.unwrap();
    let change = |change: fn(&mut v1::Token)| {
        let accounts = &mut daemon.state().accounts;
        change(accounts.tokens.values_mut().next().unwrap());
    };
    // An end that cannot be read is not taken for none.
    change(|token| {
        token.expires_at = Some(prost_types::Timestamp {
            seconds: -1,
            nanos: 0,
        });
    });
    let error = client.tokens(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    change(|token| token.expires_at = None);
    change(|token| token.scopes = vec![1, 77]);
    let tokens = client.tokens(None).await.unwrap();
    assert_eq!(tokens[0].scopes, [TokenScope::Read, TokenScope::Unknown]);
}
