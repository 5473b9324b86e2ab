//! The table in `docs/permissions.md`, against a running daemon: every call that it has, as each
//! kind of caller.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use varve_tests::{daemon::Options, lab::Lab, programs::repository};

use super::{account, admin, token};

/// A codec of messages as their bytes.
#[derive(Debug, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use bytes::BufMut as _;

        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf as _;

        let bytes = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(bytes.to_vec()))
    }
}

/// Makes a call with an empty message. Returns its code, from the first message or the end.
async fn call(channel: &Channel, token: Option<&str>, path: &str) -> Code {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(Vec::new()));
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let path = path.parse().unwrap();
    match grpc.streaming(request, path, Raw).await {
        Err(status) => status.code(),
        Ok(answer) => match answer.into_inner().message().await {
            Err(status) => status.code(),
            Ok(_) => Code::Ok,
        },
    }
}

/// The calls of the protocol.
fn calls() -> BTreeSet<String> {
    let all = FileDescriptorSet::decode(varve_proto::DESCRIPTORS).unwrap();
    let mut calls = BTreeSet::new();
    for service in all.file.iter().flat_map(|file| &file.service) {
        let methods = service.method.iter();
        calls.extend(methods.map(|method| format!("{}/{}", service.name(), method.name())));
    }
    calls
}

/// The rows of the table: the cells behind each call.
fn rows(document: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    for line in document.lines().filter(|line| line.contains("Service/")) {
        let Some(line) = line.strip_prefix("| ") else {
            continue;
        };
        let mut cells = line.trim_end_matches(" |").split(" | ").map(str::to_owned);
        let call = cells.next().unwrap();
        let before = rows.insert(call, cells.collect());
        assert_eq!(before, None, "two rows: {line}");
    }
    rows
}

fn secret(file: &Path) -> String {
    fs::read_to_string(file).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_allowed_to_whom_the_table_says() {
    let document = fs::read_to_string(repository().join("docs/permissions.md")).unwrap();
    let rows = rows(&document);
    let listed: BTreeSet<_> = rows.keys().cloned().collect();
    assert_eq!(
        listed,
        calls(),
        "docs/permissions.md has a row for each call"
    );

    let lab = Lab::with(Options::tcp);
    account(&lab, "web");
    account(&lab, "reader");
    let of = |name: &str, arguments: &str| secret(&token(&lab, name, arguments));
    let tokens = [
        ("administrator", Some(of("admin", "admin"))),
        ("account", Some(of("web", "web"))),
        ("read-only account", Some(of("reader", "reader"))),
        ("nobody", None),
    ];
    admin(&lab, "account set reader --read-only");
    let scopes = ["read", "volumes", "images", "copy"];
    let scoped = scopes.map(|scope| (scope, of(scope, &format!("web --scope {scope}"))));
    let channel = Endpoint::new(lab.varved.tcp_endpoint()).unwrap();
    let channel = channel.connect().await.unwrap();
    for (name, cells) in &rows {
        let path = format!("/varve.v1.{name}");
        let (scope, columns) = cells.split_last().unwrap();
        assert_eq!(columns.len(), tokens.len(), "{name}");
        for ((kind, token), cell) in tokens.iter().zip(columns) {
            let code = call(&channel, token.as_deref(), &path).await;
            let denied = match token {
                Some(_) => Code::PermissionDenied,
                None => Code::Unauthenticated,
            };
            let is_denied = [Code::PermissionDenied, Code::Unauthenticated].contains(&code);
            match &**cell {
                "no" => assert_eq!(code, denied, "{name} as {kind}"),
                "all" | "own" | "own, shared" | "yes" => {
                    assert!(!is_denied, "{name} as {kind}: {code:?}")
                }
                other => panic!("{name}: {other:?} is no cell"),
            }
        }
        for (own, token) in &scoped {
            let code = call(&channel, Some(token), &path).await;
            let is_allowed = columns[1] != "no" && (["any", "read", *own].contains(&&**scope));
            let is_denied = code == Code::PermissionDenied;
            assert_eq!(is_denied, !is_allowed, "{name} with scope {own}: {code:?}");
        }
    }
    // A disabled account is known, and may do nothing else.
    admin(&lab, "account disable web");
    let web = tokens[1].1.as_deref();
    for name in rows.keys() {
        let code = call(&channel, web, &format!("/varve.v1.{name}")).await;
        let expected = match &**name {
            "AccountService/WhoAmI" => Code::Ok,
            _ => Code::PermissionDenied,
        };
        assert_eq!(code, expected, "{name}");
    }
}
