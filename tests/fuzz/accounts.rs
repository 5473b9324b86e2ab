//! Encodings of accounts, tokens, access keys and remotes.

use varve_store::format::{
    AccountId, CatalogRecord as _,
    keys::Holdings,
    record::{
        AccessKeyRecord, AccountRecord, RemoteRecord, TokenRecord,
        access_key::{AccessKeyId, SealedSecret},
        account::{AccountState, BlockPublicAccess, Quota},
        token::{Scopes, SecretHash, TokenId},
    },
};

use super::samples::{Samples, remote};

const IDENTITIES: [&str; 3] = ["uid:1000", "gid:7", "cert:CN=backup,O=Example"];

pub(super) fn account() -> AccountId {
    AccountId::from_number(123_456_789_012).unwrap_or_default()
}

fn account_record(identities: &[&str]) -> AccountRecord {
    AccountRecord {
        id: account(),
        name: "web".to_owned(),
        alias: "w".to_owned(),
        state: AccountState::ReadOnly,
        created_at_ns: 1_700_000_000_123_456_789,
        identities: identities.iter().flat_map(|it| it.parse()).collect(),
        ..AccountRecord::administrator()
    }
}

fn limited_account() -> AccountRecord {
    AccountRecord {
        block_public_access: BlockPublicAccess::AllSharing,
        quotas: [(Quota::Volumes, 10), (Quota::Uploads, 0)].into(),
        ..account_record(&[])
    }
}

fn public_account() -> AccountRecord {
    AccountRecord {
        allows_public_images: true,
        ..limited_account()
    }
}

fn token(scopes: Scopes, expires_at_ns: Option<u64>) -> TokenRecord {
    TokenRecord {
        id: TokenId::from_low_bits([7; 9]),
        account: account(),
        scopes,
        hash: SecretHash::from_bytes([0x5a; 32]),
        description: "ci".to_owned(),
        created_at_ns: 1,
        expires_at_ns,
        last_used_at_ns: Some(3),
        is_expired: expires_at_ns.is_some(),
    }
}

fn access_key() -> AccessKeyRecord {
    AccessKeyRecord {
        id: AccessKeyId::from_low_bits([7; 16]),
        account: account(),
        created_at_ns: 1,
        secret: SealedSecret {
            nonce: [0x5a; 24],
            ciphertext: [0x5b; 40],
            tag: [0x5c; 16],
        },
    }
}

fn holdings(images: u64) -> Vec<u8> {
    let holdings = Holdings {
        volumes: 3,
        snapshots: 1 << 20,
        attached_volumes: 1,
        images,
    };
    holdings.encode()
}

fn remote_of_account() -> RemoteRecord {
    RemoteRecord {
        owner: account(),
        token_file: "/etc/varve/eu.token".to_owned(),
        ..remote(true)
    }
}

/// The samples of a decoder, by file name.
pub(super) fn of(decoder: &str) -> Samples {
    match decoder {
        "account-record" => vec![
            ("plain", account_record(&[]).encode()),
            ("identities", account_record(&IDENTITIES).encode()),
            ("limits", limited_account().encode()),
            ("public-images", public_account().encode()),
        ],
        "index-holdings" => vec![("some", holdings(0)), ("images", holdings(7))],
        "token-record" => vec![
            ("plain", token(Scopes::ALL, None).encode()),
            (
                "expires",
                token(Scopes::READ.and(Scopes::COPY), Some(9)).encode(),
            ),
        ],
        "access-key-record" => vec![("plain", access_key().encode())],
        "access-key-id" => vec![("id", access_key().id.to_string().into_bytes())],
        "remote-record" => vec![
            ("plain", remote(false).encode()),
            ("files", remote(true).encode()),
            ("owned", remote_of_account().encode()),
        ],
        "account-identity" => vec![
            ("user", IDENTITIES[0].into()),
            ("group", IDENTITIES[1].into()),
            ("certificate", IDENTITIES[2].into()),
        ],
        other => panic!("no samples of {other}"),
    }
}
