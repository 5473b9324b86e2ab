//! Records with an owner, with a description and without a name: version 3 of a snapshot's and of a
//! copy's, version 4 of a volume's; and the records of accounts, tokens and access keys.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::format::{
    AccessKeyRecord, AccountRecord, TokenRecord,
    record::{
        access_key::{AccessKeyId, SealedSecret},
        account::{AccountState, BlockPublicAccess, Identity, Quota},
        token::{Scopes, SecretHash, TokenId},
    },
};

#[test]
fn snapshot_record_of_an_account_is_pinned() {
    let bytes = snapshot_of_nobody().encode();
    assert_bytes(
        &bytes,
        &[
            "03",
            "01",
            "04",
            "00123456789abcdef0",
            "0000000001000000",
            "0000601e00000000",
            &"5a".repeat(32),
            "15cdb2c77e681618",
            "0000001e00000000",
            "0000a00a00000000",
            &"00".repeat(9),
            &"00".repeat(9),
            "00000000",
            "00000000",
            "00000000",
            "02000000",
            "010000006b0100000076",
            "020000006f730c000000d0b4d0b5d0b1d0b8d0b0d0bd",
            "141a99be1c000000",
            "040000006ec3a965",
        ],
    );
    assert_eq!(SnapshotRecord::decode(&bytes), Ok(snapshot_of_nobody()));
    for len in 0..bytes.len() {
        assert!(SnapshotRecord::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn volume_record_of_an_account_is_pinned() {
    let bytes = volume_of_nobody().encode();
    assert_bytes(
        &bytes,
        &[
            "04",
            "0f",
            "00fedcba9876543210",
            "0000000001000000",
            "15cdb2c77e681618",
            "0300000000000000",
            "151700f77e681618",
            "0500000000000000",
            &"5a".repeat(32),
            "00123456789abcdef0",
            "00000000",
            "01000000",
            "010000006b0100000076",
            "00000000",
            "0000000000000000",
            "141a99be1c000000",
            "040000006ec3a965",
        ],
    );
    assert_eq!(VolumeRecord::decode(&bytes), Ok(volume_of_nobody()));
    for len in 0..bytes.len() {
        assert!(VolumeRecord::decode(&bytes[..len]).is_err());
    }
}

fn account() -> AccountRecord {
    AccountRecord {
        id: snapshot_of_nobody().owner,
        name: "web".to_owned(),
        alias: "w".to_owned(),
        state: AccountState::ReadOnly,
        created_at_ns: 7,
        identities: BTreeSet::from([
            Identity::User(1000),
            Identity::Group(7),
            Identity::Certificate("CN=abc".to_owned()),
        ]),
        block_public_access: BlockPublicAccess::Off,
        quotas: BTreeMap::new(),
        allows_public_images: false,
    }
}

fn account_with_limits() -> AccountRecord {
    AccountRecord {
        block_public_access: BlockPublicAccess::NewSharing,
        quotas: BTreeMap::from([(Quota::Volumes, 0), (Quota::RequestsPerSecond, 0x1234)]),
        ..account()
    }
}

#[test]
fn account_record_is_pinned() {
    let bytes = account().encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            "02",
            "141a99be1c000000",
            "0700000000000000",
            "03000000776562",
            "0100000077",
            "03000000",
            "010400000031303030",
            "020100000037",
            "0306000000434e3d616263",
        ],
    );
    assert_eq!(AccountRecord::decode(&bytes), Ok(account()));
    for len in 0..bytes.len() {
        assert!(AccountRecord::decode(&bytes[..len]).is_err());
    }
    let changed = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        AccountRecord::decode(&bytes).unwrap_err().to_string()
    };
    for (at, byte, why) in [
        (0, 4, "version of an account's record"),
        (1, 0, "state of an account"),
        (1, 4, "state of an account"),
        (9, 1, "id of an account"),
        (34, 4, "identity of an account"),
        (39, b'x', "uid:NUMBER"),
        // "0000" is not how a number is written.
        (39, b'0', "uid:NUMBER"),
        // A user behind a group.
        (34, 2, "behind"),
    ] {
        let error = changed(at, byte);
        assert!(error.contains(why), "byte {at}: {error}");
    }
    let deleted = Change::delete::<AccountRecord>(&account().id);
    assert_eq!(deleted.as_deleted::<AccountRecord>(), Some(account().id));
}

#[test]
fn account_record_with_limits_is_pinned() {
    let plain = account().encode();
    let bytes = account_with_limits().encode();
    assert_eq!((plain[0], bytes[0]), (1, 2));
    assert_eq!(plain[1..], bytes[1..plain.len()]);
    assert_bytes(
        &bytes[plain.len()..],
        &["02", "02000000", "010000000000000000", "053412000000000000"],
    );
    assert_eq!(AccountRecord::decode(&bytes), Ok(account_with_limits()));
    for len in 0..bytes.len() {
        assert!(AccountRecord::decode(&bytes[..len]).is_err());
    }
    let end = plain.len();
    for (at, byte, why) in [
        (end, 0, "public access of an account"),
        (end, 4, "public access of an account"),
        (end + 5, 0, "quota of an account"),
        (end + 14, 8, "quota of an account"),
        (end + 14, 1, "a quota behind volumes"),
    ] {
        let mut wrong = bytes.clone();
        wrong[at] = byte;
        let error = AccountRecord::decode(&wrong).unwrap_err().to_string();
        assert!(error.contains(why), "byte {at}: {error}");
    }
    // One that may share images with everybody has a version of its own.
    let public = AccountRecord {
        allows_public_images: true,
        ..account_with_limits()
    };
    let mut bytes = public.encode();
    assert_eq!(AccountRecord::decode(&bytes), Ok(public));
    assert_eq!(bytes[0], 3);
    bytes[0] = 2;
    assert_eq!(AccountRecord::decode(&bytes), Ok(account_with_limits()));
    // Without limits it is written in version 1.
    let none = [&[2], &plain[1..], &[1, 0, 0, 0, 0]].concat();
    let error = AccountRecord::decode(&none).unwrap_err().to_string();
    assert!(error.contains("the first that can express"), "{error}");
    for quota in Quota::ALL {
        let one = AccountRecord {
            quotas: BTreeMap::from([(quota, u64::MAX)]),
            ..account()
        };
        assert_eq!(AccountRecord::decode(&one.encode()), Ok(one));
    }
}

fn token() -> TokenRecord {
    TokenRecord {
        id: TokenId::from_low_bits([7; 9]),
        account: snapshot_of_nobody().owner,
        scopes: Scopes::READ.and(Scopes::IMAGES),
        hash: SecretHash::from_bytes([0x5a; 32]),
        description: "ci".to_owned(),
        created_at_ns: 1,
        expires_at_ns: Some(2),
        last_used_at_ns: None,
        is_expired: true,
    }
}

#[test]
fn token_record_is_pinned() {
    let bytes = token().encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            "01",
            "05",
            "070707070707070707",
            "141a99be1c000000",
            "0100000000000000",
            "0200000000000000",
            "0000000000000000",
            &"5a".repeat(32),
            "020000006369",
        ],
    );
    assert_eq!(TokenRecord::decode(&bytes), Ok(token()));
    for len in 0..bytes.len() {
        assert!(TokenRecord::decode(&bytes[..len]).is_err());
    }
    for (at, byte, why) in [
        (0, 2, "version of a token's record"),
        (1, 2, "flags of a token's record"),
        (2, 16, "scopes of a token"),
        (3, 0xff, "id of a token"),
    ] {
        let mut wrong = bytes.clone();
        wrong[at] = byte;
        let error = TokenRecord::decode(&wrong).unwrap_err().to_string();
        assert!(error.contains(why), "byte {at}: {error}");
    }
    assert!(!format!("{:?}", token()).contains("90, 90"), "no hash");
}

fn access_key() -> AccessKeyRecord {
    AccessKeyRecord {
        id: AccessKeyId::from_low_bits([
            16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
        ]),
        account: snapshot_of_nobody().owner,
        created_at_ns: 1,
        secret: SealedSecret {
            nonce: [0x5a; 24],
            ciphertext: [0x5b; 40],
            tag: [0x5c; 16],
        },
    }
}

#[test]
fn access_key_record_is_pinned() {
    let bytes = access_key().encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            // QRSTUVWXYZ234567
            "5152535455565758595a323334353637",
            "141a99be1c000000",
            "0100000000000000",
            &"5a".repeat(24),
            &"5b".repeat(40),
            &"5c".repeat(16),
        ],
    );
    assert_eq!(AccessKeyRecord::decode(&bytes), Ok(access_key()));
    for len in 0..bytes.len() {
        assert!(AccessKeyRecord::decode(&bytes[..len]).is_err());
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(AccessKeyRecord::decode(&longer).is_err());
    for (at, byte, why) in [
        (0, 2, "version of an access key's record"),
        (1, b'a', "id of an access key"),
        (16, b'8', "id of an access key"),
        (24, 0xff, "id of an account"),
    ] {
        let mut wrong = bytes.clone();
        wrong[at] = byte;
        let error = AccessKeyRecord::decode(&wrong).unwrap_err().to_string();
        assert!(error.contains(why), "byte {at}: {error}");
    }
    assert!(!format!("{:?}", access_key()).contains("91, 91"), "sealed");
    let deleted = Change::delete::<AccessKeyRecord>(&access_key().id);
    let id = deleted.as_deleted::<AccessKeyRecord>();
    assert_eq!(id, Some(access_key().id));
}

#[test]
fn an_access_key_id_is_its_text() {
    let id = access_key().id;
    assert_eq!(id.to_string(), "AKIAQRSTUVWXYZ234567");
    assert_eq!(id.to_string().parse(), Ok(id));
    let first = AccessKeyId::from_low_bits([32; 16]);
    assert_eq!(first.to_string(), "AKIAAAAAAAAAAAAAAAAA");
    for text in [
        "",
        "AKIA",
        "QRSTUVWXYZ234567",
        "AKIAQRSTUVWXYZ23456",
        "AKIAQRSTUVWXYZ2345678",
        "AKIAQRSTUVWXYZ234561",
        "AKIAqrstuvwxyz234567",
        "ASIAQRSTUVWXYZ234567",
    ] {
        let error = text.parse::<AccessKeyId>().unwrap_err().to_string();
        assert!(!error.contains("RST"), "it may be a secret: {error}");
    }
}

#[test]
fn copy_record_of_an_account_is_that_of_the_administrator_and_its_owner() {
    let owned = CopyRecord {
        owner: snapshot_of_nobody().owner,
        ..copy()
    };
    let (plain, bytes) = (copy().encode(), owned.encode());
    assert_eq!((plain[0], bytes[0]), (2, 3));
    assert_eq!(bytes[1..plain.len()], plain[1..]);
    assert_bytes(&bytes[plain.len()..], &["141a99be1c000000"]);
    assert_eq!(CopyRecord::decode(&bytes), Ok(owned));
    // The administrator's is written in the first version that can express it.
    let mut of_administrator = bytes;
    of_administrator[plain.len()..].fill(0);
    let error = CopyRecord::decode(&of_administrator).unwrap_err();
    assert!(error.to_string().contains("the first"), "{error}");
}

#[test]
fn scopes_allow_what_they_name_and_what_is_read_for_it() {
    let all = [Scopes::READ, Scopes::VOLUMES, Scopes::IMAGES, Scopes::COPY];
    for scope in all {
        assert!(Scopes::ALL.allow(scope) && !Scopes::ALL.has(scope));
        assert!(scope.allow(scope) && scope.has(scope) && scope.allow(Scopes::READ));
        assert!(!scope.allow(Scopes::ALL));
        for other in all
            .into_iter()
            .filter(|it| *it != scope && *it != Scopes::READ)
        {
            assert!(!scope.allow(other));
            assert!(scope.and(other).allow(other));
        }
    }
    assert!(Scopes::ALL.allow(Scopes::ALL));
}

#[test]
fn list_keys_are_in_the_order_of_owners_and_keep_the_administrators() {
    use crate::format::keys::{list_key, split_list_key};
    let account = |number| AccountId::from_number(number).unwrap();
    assert_eq!(list_key(AccountId::ADMINISTRATOR, "web"), b"web");
    assert_bytes(
        &list_key(account(7), "web"),
        &["ff", "0000000000000007", "776562"],
    );
    let owners = [0, 1, 7, 255, 256, 999_999_999_999].map(account);
    let keys = owners.map(|owner| ["", "a", "zz"].map(|label| list_key(owner, label)));
    assert!(keys.concat().is_sorted());
    for (owner, keys) in owners.into_iter().zip(keys) {
        for key in keys {
            assert_eq!(split_list_key(&key).unwrap().0, owner);
        }
    }
    for wrong in [&b"\xff"[..], &[0xff; 9], b"\xff\0\0\0\0\0\0\0\0web"] {
        assert!(split_list_key(wrong).is_err(), "{wrong:02x?}");
    }
}

/// The log's checksum notices every change. The record itself notices each that makes none of it,
/// or another encoding.
#[test]
fn a_changed_byte_is_refused_or_makes_another_record() {
    fn check<R: CatalogRecord>(record: &R) {
        let bytes = record.encode();
        let mut changed = bytes.clone();
        for at in 0..bytes.len() {
            for mask in [0x01, 0x80, 0xff] {
                changed[at] ^= mask;
                if let Ok(found) = R::decode(&changed) {
                    assert_ne!(found, *record, "byte {at} ^ {mask:#04x}");
                    assert_eq!(found.encode(), changed, "byte {at} ^ {mask:#04x}");
                }
                changed[at] ^= mask;
            }
        }
    }
    check(&snapshot());
    check(&snapshot_of_volume(SnapshotState::Pending));
    check(&snapshot_of_nobody());
    check(&volume());
    check(&volume_with_promise());
    check(&volume_of_nobody());
    check(&copy());
    check(&CopyRecord {
        owner: snapshot_of_nobody().owner,
        ..copy()
    });
    check(&remote());
    check(&account());
    check(&account_with_limits());
    check(&token());
    check(&access_key());
}

/// Each record has one encoding: the first that can say what it says.
#[test]
fn each_of_the_three_needs_the_last_version() {
    let plain = snapshot();
    assert_eq!(plain.encode()[0], 1);
    assert_eq!(volume().encode()[0], 1);
    let versions = |named: bool, owned: bool, described: bool| {
        let all = snapshot_of_nobody();
        let owner = if owned {
            all.owner
        } else {
            AccountId::ADMINISTRATOR
        };
        let description = if described {
            all.description
        } else {
            String::new()
        };
        let snapshot = SnapshotRecord {
            name: plain.name.clone().filter(|_| named),
            owner,
            description: description.clone(),
            ..plain.clone()
        };
        let volume = VolumeRecord {
            name: plain.name.clone().filter(|_| named),
            owner,
            description,
            ..volume()
        };
        assert_eq!(
            SnapshotRecord::decode(&snapshot.encode()),
            Ok(snapshot.clone())
        );
        assert_eq!(VolumeRecord::decode(&volume.encode()), Ok(volume.clone()));
        (snapshot.encode()[0], volume.encode()[0])
    };
    assert_eq!(versions(true, false, false), (1, 1));
    assert_eq!(versions(false, false, false), (3, 4));
    assert_eq!(versions(true, true, false), (3, 4));
    assert_eq!(versions(true, false, true), (3, 4));
}

#[test]
fn records_of_accounts_that_are_none() {
    let snapshot_with = |at: usize, byte: u8| {
        let mut bytes = snapshot_of_nobody().encode();
        bytes[at] = byte;
        SnapshotRecord::decode(&bytes).unwrap_err().to_string()
    };
    let end = snapshot_of_nobody().encode().len();
    for (at, byte, why) in [
        (0, 2, "flags of a snapshot's record"),
        (0, 5, "version of a snapshot's record"),
        (2, 0x08, "flags of a snapshot's record"),
        // Of 13 digits.
        (end - 12, 0xff, "id of an account"),
    ] {
        let error = snapshot_with(at, byte);
        assert!(error.contains(why), "byte {at}: {error}");
    }
    // A name in a record without one.
    let mut named = SnapshotRecord {
        name: Some("web".to_owned()),
        ..snapshot_of_nobody()
    }
    .encode();
    named[2] |= 4;
    let error = SnapshotRecord::decode(&named).unwrap_err().to_string();
    assert!(error.contains("no name, as its flags say"), "{error}");

    let mut said_before = snapshot_of_nobody().encode();
    said_before[2] = 0;
    said_before[end - 16..end - 8].fill(0);
    said_before.truncate(end - 4);
    said_before[end - 8..].fill(0);
    let error = SnapshotRecord::decode(&said_before)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the first that can express"), "{error}");

    let mut volume = volume_of_nobody().encode();
    volume[0] = 3;
    let error = VolumeRecord::decode(&volume).unwrap_err().to_string();
    assert!(error.contains("flags of a volume's record"), "{error}");
}

#[test]
fn a_snapshot_that_is_shared_ends_with_those_who_may_read_it() {
    let shared = |everybody, accounts: &[u64]| SnapshotRecord {
        sharing: Sharing {
            everybody,
            accounts: accounts
                .iter()
                .map(|number| AccountId::from_number(*number).unwrap())
                .collect(),
        },
        ..snapshot_of_nobody()
    };
    let plain = snapshot_of_nobody().encode();
    for (record, tail) in [
        (shared(true, &[]), &b"\x01\0\0\0\0"[..]),
        (
            shared(false, &[7, 256]),
            b"\0\x02\0\0\0\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0",
        ),
    ] {
        let bytes = record.encode();
        assert_eq!(bytes[0], 4);
        assert_eq!(bytes[1..plain.len()], plain[1..]);
        assert_eq!(&bytes[plain.len()..], tail);
        for len in 0..bytes.len() {
            assert!(SnapshotRecord::decode(&bytes[..len]).is_err(), "{len}");
        }
        assert_eq!(SnapshotRecord::decode(&bytes), Ok(record));
    }
    let mut bytes = shared(false, &[7, 256]).encode();
    let end = bytes.len();
    bytes[end - 8..].copy_from_slice(&7u64.to_le_bytes());
    let error = SnapshotRecord::decode(&bytes).unwrap_err().to_string();
    assert!(error.contains("an account behind 000000000007"), "{error}");
    bytes[plain.len()] = 2;
    let error = SnapshotRecord::decode(&bytes).unwrap_err().to_string();
    assert!(error.contains("0 or 1 for everybody"), "{error}");
    // With nobody, the third version can express it.
    let mut nobody = [&plain[..], &[0; 5]].concat();
    nobody[0] = 4;
    let error = SnapshotRecord::decode(&nobody).unwrap_err().to_string();
    assert!(error.contains("the first that can express"), "{error}");
}
