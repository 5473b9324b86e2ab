//! Accounts, tokens, and what belongs to whom, on a real disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use super::{block_on, cut, new_snapshot, repairs::closed, volume_data::new_volume};
use crate::{
    AccessKeyId, AccessKeyRecord, AccountId, AccountRecord, AccountState, BlockPublicAccess, Error,
    Identity, ListPlace, ListQuery, NewSnapshot, NewSnapshots, NewVolume, Options, Scopes,
    SealedSecret, SecretHash, Sharing, SnapshotRecord, Store, TokenId, TokenRecord, VolumeRecord,
    format::names,
    limits,
    meta::{SnapshotKey, VolumeKey},
    rebuild,
};

fn id(number: u64) -> AccountId {
    AccountId::from_number(number).unwrap()
}

pub(super) fn account(number: u64, name: &str) -> AccountRecord {
    AccountRecord {
        id: id(number),
        name: name.to_owned(),
        created_at_ns: number,
        ..AccountRecord::administrator()
    }
}

fn token(number: u8, account: AccountId) -> TokenRecord {
    TokenRecord {
        id: TokenId::from_low_bits([number; 9]),
        account,
        scopes: Scopes::ALL,
        hash: SecretHash::from_bytes([number; 32]),
        description: String::new(),
        created_at_ns: 1,
        expires_at_ns: None,
        last_used_at_ns: None,
        is_expired: false,
    }
}

fn access_key(number: u8, account: AccountId) -> AccessKeyRecord {
    AccessKeyRecord {
        id: AccessKeyId::from_low_bits([number; 16]),
        account,
        created_at_ns: 1,
        secret: SealedSecret {
            nonce: [number; 24],
            ciphertext: [number; 40],
            tag: [number; 16],
        },
    }
}

fn volume_of(owner: u64, name: &str) -> NewVolume {
    NewVolume {
        owner: id(owner),
        ..new_volume(name, 1 << 20)
    }
}

async fn volumes_of(store: &Store, owner: Option<u64>) -> Vec<String> {
    let query = ListQuery {
        owner: owner.map(id),
        limit: 100,
        ..ListQuery::default()
    };
    let found = store.list_volumes(query).await.unwrap();
    let shown = |it: &VolumeRecord| format!("{}/{}", it.owner.number(), it.label());
    found.iter().map(shown).collect()
}

#[test]
fn accounts_are_made_changed_and_deleted_and_survive_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let all = store.accounts().await.unwrap();
        assert_eq!(all, [AccountRecord::administrator()]);
        let web = store.create_account(account(7, "web")).await.unwrap();
        let db = store.create_account(account(8, "db")).await.unwrap();
        let change = |record: &mut AccountRecord| {
            record.state = AccountState::ReadOnly;
            record.alias = "www".to_owned();
            record.identities = BTreeSet::from([Identity::User(1000)]);
            // What does not change.
            (record.id, record.created_at_ns) = (id(9), 9);
            Ok(())
        };
        let changed = store.update_account(web.id, change).await.unwrap();
        assert_eq!((changed.id, changed.created_at_ns), (id(7), 7));
        assert_eq!(changed.state, AccountState::ReadOnly);
        let mapped = |record: &mut AccountRecord| {
            record
                .identities
                .insert(Identity::Certificate("CN=a".to_owned()));
            Ok(())
        };
        let administrator = AccountId::ADMINISTRATOR;
        let admin = store.update_account(administrator, mapped).await.unwrap();
        store.create_token(token(1, web.id)).await.unwrap();
        store.create_token(token(2, db.id)).await.unwrap();
        for (number, account) in [(1, web.id), (2, db.id), (3, administrator)] {
            let key = access_key(number, account);
            store.create_access_key(key).await.unwrap();
        }
        store.create_volume(volume_of(7, "data")).await.unwrap();
        closed(store).await;

        fs::remove_dir_all(names::index(dir.path())).unwrap();
        rebuild(Options::new(dir.path())).await.unwrap();
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        assert_eq!(
            store.accounts().await.unwrap(),
            [admin, db.clone(), changed]
        );
        assert_eq!(volumes_of(&store, Some(7)).await, ["7/data"]);

        let refused = store.delete_account(web.id).await.unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(refused, Error::OwnsRecords { what: "volume", .. }),
            "{text}"
        );
        assert!(text.contains("\"web\"") && text.contains(" vol-"), "{text}");
        let key = VolumeKey::of(web.id, "data");
        store.delete_volume(&key).await.unwrap();
        store.delete_account(web.id).await.unwrap();
        assert_eq!(store.tokens().await.unwrap(), [token(2, db.id)]);
        let keys = [access_key(2, db.id), access_key(3, administrator)];
        assert_eq!(store.access_keys().await.unwrap(), keys);
        let gone = store.delete_account(web.id).await.unwrap_err();
        assert!(
            matches!(
                gone,
                Error::NotFound {
                    what: "account",
                    ..
                }
            ),
            "{gone}"
        );
        let never = store.delete_account(administrator).await.unwrap_err();
        assert!(matches!(never, Error::Invalid(_)), "{never}");
        closed(store).await;
    });
}

#[test]
fn ids_names_aliases_and_identities_belong_to_one_account() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let first = AccountRecord {
            alias: "www".to_owned(),
            identities: BTreeSet::from([Identity::User(1000), Identity::Group(7)]),
            ..account(7, "web")
        };
        store.create_account(first).await.unwrap();
        let with = |change: fn(&mut AccountRecord)| {
            let mut record = account(8, "db");
            change(&mut record);
            record
        };
        for taken in [
            with(|it| it.id = id(7)),
            with(|it| it.id = AccountId::ADMINISTRATOR),
            with(|it| it.name = "web".to_owned()),
            with(|it| it.name = "www".to_owned()),
            with(|it| it.name = "admin".to_owned()),
            with(|it| it.alias = "web".to_owned()),
            with(|it| it.alias = "db".to_owned()),
            with(|it| it.identities.extend([Identity::Group(7)])),
        ] {
            let error = store.create_account(taken.clone()).await.unwrap_err();
            assert!(
                matches!(error, Error::AlreadyExists { .. }),
                "{taken:?}: {error}"
            );
        }
        for invalid in [
            with(|it| it.name = String::new()),
            with(|it| it.name = "a/b".to_owned()),
            with(|it| it.name = "uid:1".to_owned()),
            with(|it| it.name = "123456789012".to_owned()),
            with(|it| it.name = "self".to_owned()),
            with(|it| it.alias = "all".to_owned()),
            with(|it| it.name = "a\n".to_owned()),
            with(|it| {
                let subject = format!("CN={}", "x".repeat(limits::SUBJECT_BYTES_MAX));
                it.identities.insert(Identity::Certificate(subject));
            }),
            with(|it| {
                it.identities
                    .insert(Identity::Certificate("CN=\u{1b}".to_owned()));
            }),
        ] {
            let error = store.create_account(invalid.clone()).await.unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{invalid:?}: {error}");
        }
        // A group does not become a user, and a change is checked as a new account is.
        store.create_account(account(8, "db")).await.unwrap();
        let take = |record: &mut AccountRecord| {
            record.identities.insert(Identity::User(1000));
            Ok(())
        };
        let error = store.update_account(id(8), take).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::AlreadyExists {
                    what: "identity",
                    ..
                }
            ),
            "{error}"
        );
        closed(store).await;
    });
}

#[test]
fn things_belong_to_accounts_that_exist_and_can_be_given_away() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let nobody = store.create_volume(volume_of(7, "data")).await.unwrap_err();
        assert!(
            matches!(
                nobody,
                Error::NotFound {
                    what: "account",
                    ..
                }
            ),
            "{nobody}"
        );
        let upload = crate::NewSnapshot {
            owner: id(7),
            ..new_snapshot("s", 4096)
        };
        let ingest = store.begin_ingest(upload).await.unwrap();
        let empty = varve_content::tree::TreeBuilder::new(4096).unwrap();
        let (root, _) = empty.finish();
        let nobody = ingest.commit(root.id()).await.unwrap_err();
        drop(ingest);
        assert!(
            matches!(
                nobody,
                Error::NotFound {
                    what: "account",
                    ..
                }
            ),
            "{nobody}"
        );

        store.create_account(account(7, "web")).await.unwrap();
        store.create_account(account(8, "db")).await.unwrap();
        for owner in [0, 7, 8] {
            store.create_volume(volume_of(owner, "data")).await.unwrap();
        }
        store.create_volume(volume_of(7, "more")).await.unwrap();
        let all = ["0/data", "7/data", "7/more", "8/data"];
        assert_eq!(volumes_of(&store, None).await, all);
        let key = VolumeKey::of(id(7), "data");
        let taken = store.give_volume(&key, id(8)).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        let nobody = store.give_volume(&key, id(9)).await.unwrap_err();
        assert!(
            matches!(
                nobody,
                Error::NotFound {
                    what: "account",
                    ..
                }
            ),
            "{nobody}"
        );

        let more = VolumeKey::of(id(7), "more");
        store.attach_volume(&more, false).await.unwrap();
        let attached = store.give_volume(&more, id(8)).await.unwrap_err();
        assert!(matches!(attached, Error::Attached { .. }), "{attached}");
        store.detach_volume(&more).await.unwrap();
        let given = store.give_volume(&more, id(8)).await.unwrap();
        assert_eq!(given.owner, id(8));
        assert_eq!(volumes_of(&store, Some(7)).await, ["7/data"]);
        assert_eq!(volumes_of(&store, Some(8)).await, ["8/data", "8/more"]);

        // A key that an account's caller has made is none of the record that was given away.
        let old = VolumeKey::Owned {
            owner: id(7),
            id: given.id,
        };
        for refused in [
            store.attach_volume(&old, false).await.map(drop),
            store.resize_volume(&old, 2 << 20).await.map(drop),
            store.delete_volume(&old).await.map(drop),
            store
                .tag_volume(&old, Default::default(), vec![])
                .await
                .map(drop),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
        }

        // A snapshot belongs to the account that takes it, and its name is one of that account.
        let taken = |owner, volume| NewSnapshots {
            owner: id(owner),
            volumes: vec![VolumeKey::of(id(volume), "data")],
            name: "monday".to_owned(),
            tags: Default::default(),
        };
        let mut made = Vec::new();
        for owner in [7, 8] {
            let pending = store.snapshot_volumes(taken(owner, owner)).await.unwrap();
            made.push(store.completed_snapshot(pending[0].id).await.unwrap());
        }
        assert_eq!([made[0].owner, made[1].owner], [id(7), id(8)]);
        let again = store.snapshot_volumes(taken(7, 8)).await.unwrap_err();
        assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
        let key = SnapshotKey::of(id(7), "monday");
        store.give_snapshot(&key, id(8)).await.unwrap_err();
        let given = store
            .give_snapshot(&key, AccountId::ADMINISTRATOR)
            .await
            .unwrap();
        assert_eq!(store.snapshot(&"monday".into()).await.unwrap(), given);
        closed(store).await;
    });
}

#[test]
fn tokens_are_bounded_and_their_texts_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        store.create_account(account(7, "web")).await.unwrap();
        let nobody = store.create_token(token(0, id(8))).await.unwrap_err();
        assert!(
            matches!(
                nobody,
                Error::NotFound {
                    what: "account",
                    ..
                }
            ),
            "{nobody}"
        );
        for description in ["x".repeat(256), "a\nb".to_owned()] {
            let described = TokenRecord {
                description,
                ..token(0, id(7))
            };
            let error = store.create_token(described).await.unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error}");
        }
        for number in 0..u8::try_from(limits::ACCOUNT_TOKENS_MAX).unwrap() {
            store.create_token(token(number, id(7))).await.unwrap();
        }
        let error = store.create_token(token(200, id(7))).await.unwrap_err();
        assert!(matches!(error, Error::TooMany { .. }), "{error}");
        // The administrator has some, too, without a record.
        let own = token(200, AccountId::ADMINISTRATOR);
        store.create_token(own).await.unwrap();
        let expired = |record: TokenRecord| TokenRecord {
            is_expired: true,
            ..record
        };
        let first = token(0, id(7));
        store.update_tokens(vec![first.id], expired).await.unwrap();
        let tokens = store.tokens().await.unwrap();
        assert_eq!(tokens.iter().filter(|token| token.is_expired).count(), 1);
        store.delete_token(first.id).await.unwrap();
        let gone = store.delete_token(first.id).await.unwrap_err();
        assert!(
            matches!(gone, Error::NotFound { what: "token", .. }),
            "{gone}"
        );
        closed(store).await;
    });
}

#[test]
fn an_account_has_two_access_keys_at_most() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        store.create_account(account(7, "web")).await.unwrap();
        let refused = async |key| store.create_access_key(key).await.unwrap_err();
        let nobody = refused(access_key(0, id(8))).await;
        assert!(
            matches!(
                nobody,
                Error::NotFound {
                    what: "account",
                    ..
                }
            ),
            "{nobody}"
        );
        let (first, second) = (access_key(0, id(7)), access_key(1, id(7)));
        store.create_access_key(first.clone()).await.unwrap();
        // No other account's key takes its place.
        let taken = refused(access_key(0, AccountId::ADMINISTRATOR)).await;
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        store.create_access_key(second.clone()).await.unwrap();
        let third = refused(access_key(2, id(7))).await;
        assert!(matches!(third, Error::TooMany { most: 2, .. }), "{third}");
        let found = store.access_key(second.id).await.unwrap();
        assert_eq!(found.as_ref(), Some(&second));
        store.delete_access_key(first.id).await.unwrap();
        assert_eq!(store.access_key(first.id).await.unwrap(), None);
        let gone = store.delete_access_key(first.id).await.unwrap_err();
        assert!(
            matches!(
                gone,
                Error::NotFound {
                    what: "access key",
                    ..
                }
            ),
            "{gone}"
        );
        store.create_access_key(access_key(2, id(7))).await.unwrap();
        closed(store).await;
    });
}

#[test]
fn nobody_else_reads_what_a_store_keeps() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        let image = vec![7; 1 << 20];
        super::upload(&store, "a", &image).await.unwrap();
        let volume = store.create_volume(volume_of(0, "v")).await.unwrap();
        let open = store.open_volume(&VolumeKey::Id(volume.id)).await.unwrap();
        open.write(0, vec![1; 4096].into()).await.unwrap();
        drop(open);
        closed(store).await;
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&names::index(dir.path())), 0o700);
        let files = |dir: &std::path::Path| {
            let entries = fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            entries.filter(|path| path.is_file()).collect::<Vec<_>>()
        };
        let mut all = files(&names::packs(dir.path()));
        all.extend(files(&names::volume(dir.path(), volume.id)));
        all.push(names::catalog_log(dir.path()));
        assert!(all.len() >= 4, "{all:?}");
        for file in all {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    });
}

async fn seen_by(store: &Store, reader: u64, owner: Option<u64>) -> Vec<String> {
    let query = ListQuery {
        owner: owner.map(id),
        reader: Some(id(reader)),
        limit: 100,
        ..ListQuery::default()
    };
    let found = store.list_snapshots(query.clone()).await.unwrap();
    // Pages of one give the same.
    let mut one_by_one = Vec::new();
    loop {
        let query = ListQuery {
            after: one_by_one.last().map(ListPlace::of),
            limit: 1,
            ..query.clone()
        };
        match store.list_snapshots(query).await.unwrap().pop() {
            Some(next) => one_by_one.push(next),
            None => break,
        }
    }
    assert_eq!(found, one_by_one);
    let shown = |it: &SnapshotRecord| format!("{}/{}", it.owner.number(), it.label());
    found.iter().map(shown).collect()
}

fn with(accounts: &[u64], everybody: bool) -> Sharing {
    Sharing {
        accounts: accounts.iter().copied().map(id).collect(),
        everybody,
    }
}

#[test]
fn snapshots_are_read_by_those_whom_they_are_shared_with_and_changed_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        for (number, name) in [(7, "web"), (8, "db"), (9, "ci")] {
            store.create_account(account(number, name)).await.unwrap();
        }
        let mut made = Vec::new();
        for (owner, name) in [(7, "a"), (7, "b"), (7, "c"), (8, "a"), (9, "z")] {
            let new = NewSnapshot {
                owner: id(owner),
                tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
                ..new_snapshot(name, 1 << 20)
            };
            let ingest = store.begin_ingest(new).await.unwrap();
            made.push(ingest.commit(cut(&[0; 1 << 20]).root).await.unwrap());
        }
        let key = |record: &SnapshotRecord| SnapshotKey::Id(record.id);
        let readable = |reader, record: &SnapshotRecord| SnapshotKey::Readable {
            reader: id(reader),
            id: record.id,
        };
        let [a, b, c, ..] = &made[..] else { panic!() };
        assert_eq!(seen_by(&store, 8, None).await, ["8/a"]);

        store
            .share_snapshot(&key(a), with(&[8], false))
            .await
            .unwrap();
        store
            .share_snapshot(&key(b), with(&[], true))
            .await
            .unwrap();
        // Whoever is named twice reads once.
        let b_key = key(b);
        let twice = store.share_snapshot(&b_key, with(&[8, 9], false));
        let twice = twice.await.unwrap();
        assert_eq!(twice.sharing, with(&[8, 9], true));
        assert_eq!(seen_by(&store, 8, None).await, ["7/a", "7/b", "8/a"]);
        assert_eq!(seen_by(&store, 9, None).await, ["7/b", "9/z"]);
        assert_eq!(seen_by(&store, 9, Some(7)).await, ["7/b"]);
        assert_eq!(seen_by(&store, 9, Some(8)).await, [""; 0]);
        assert_eq!(seen_by(&store, 7, None).await, ["7/a", "7/b", "7/c"]);
        // An account that does not exist sees what everybody does.
        assert_eq!(seen_by(&store, 1234, None).await, ["7/b"]);
        // Tags are not shared, nor a way to find out about them.
        let tagged = ListQuery {
            reader: Some(id(8)),
            tags: a.tags.clone(),
            limit: 100,
            ..ListQuery::default()
        };
        let tagged = store.list_snapshots(tagged).await.unwrap();
        assert_eq!(
            tagged.iter().map(|it| it.owner).collect::<Vec<_>>(),
            [id(8)]
        );

        for (reader, record, may) in [
            (7, a, true),
            (8, a, true),
            (9, a, false),
            (9, b, true),
            (1234, b, true),
            (8, c, false),
        ] {
            let key = readable(reader, record);
            let opened = store.open_snapshot(&key).await;
            assert_eq!(opened.is_ok(), may, "{key:?}");
            let volume = NewVolume {
                from: Some(key.clone()),
                size_bytes: None,
                ..volume_of(8, &format!("from-{reader}-{}", record.label()))
            };
            let volume = store.create_volume(volume).await;
            assert_eq!(volume.is_ok(), may, "{key:?}");
            if !may {
                let refused = opened.unwrap_err();
                assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
            }
            // No key for reading changes anything, even the owner's.
            let owned = SnapshotKey::Owned {
                owner: id(reader),
                id: record.id,
            };
            if reader != 7 {
                let refused = store.delete_snapshot(&owned).await.unwrap_err();
                assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
            }
        }

        // The owner's account blocks what everybody may read, and not what named accounts may.
        let block = |to| {
            move |record: &mut AccountRecord| {
                record.block_public_access = to;
                Ok(())
            }
        };
        let set = store.update_account(id(7), block(BlockPublicAccess::NewSharing));
        set.await.unwrap();
        assert_eq!(seen_by(&store, 1234, None).await, ["7/b"]);
        let refused = store.share_snapshot(&key(a), with(&[9], true)).await;
        assert!(
            matches!(refused, Err(Error::PublicAccessBlocked { account, .. }) if account == "web")
        );
        let set = store.update_account(id(7), block(BlockPublicAccess::AllSharing));
        set.await.unwrap();
        assert_eq!(seen_by(&store, 1234, None).await, [""; 0]);
        assert_eq!(seen_by(&store, 9, None).await, ["7/b", "9/z"]);
        store.open_snapshot(&readable(9, b)).await.unwrap();
        let refused = store.open_snapshot(&readable(1234, b)).await.unwrap_err();
        assert!(matches!(refused, Error::NotFound { .. }), "{refused}");
        let set = store.update_account(id(7), block(BlockPublicAccess::Off));
        set.await.unwrap();
        assert_eq!(seen_by(&store, 1234, None).await, ["7/b"]);

        store
            .unshare_snapshot(&key(b), with(&[9], true))
            .await
            .unwrap();
        assert_eq!(seen_by(&store, 9, None).await, ["9/z"]);
        assert_eq!(seen_by(&store, 8, None).await, ["7/a", "7/b", "8/a"]);
        // Whoever gets it has shared it with nobody.
        let given = store.give_snapshot(&key(b), id(9)).await.unwrap();
        assert!(given.sharing.is_empty());
        assert_eq!(seen_by(&store, 8, None).await, ["7/a", "8/a"]);
        let many: Vec<u64> = (1..=limits::SHARED_ACCOUNTS_MAX as u64 + 1).collect();
        let refused = store.share_snapshot(&key(c), with(&many, false)).await;
        assert!(matches!(refused, Err(Error::TooMany { .. })));
        store
            .share_snapshot(&key(c), with(&many[1..], false))
            .await
            .unwrap();
        closed(store).await;

        fs::remove_dir_all(names::index(dir.path())).unwrap();
        rebuild(Options::new(dir.path())).await.unwrap();
        let (store, _) = Store::open(Options::new(dir.path())).await.unwrap();
        assert_eq!(seen_by(&store, 8, None).await, ["7/a", "7/c", "8/a"]);
        assert_eq!(seen_by(&store, 9, None).await, ["7/c", "9/b", "9/z"]);
        closed(store).await;
    });
}
