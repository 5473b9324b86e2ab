#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod limits;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::*;
use crate::export::Access;
use crate::testing::{Client, MemoryExport, MemoryExports, info_data, meta_data};

const UNSUPPORTED: u32 = 1 << 31 | 1;
const POLICY: u32 = 1 << 31 | 2;
const INVALID: u32 = 1 << 31 | 3;
const UNKNOWN: u32 = 1 << 31 | 6;
const TOO_BIG: u32 = 1 << 31 | 9;

type Outcome = Result<Negotiated<Arc<MemoryExport>, OwnedSemaphorePermit>, HandshakeError>;

/// A server with exports `snapshot/a` (four blocks) and `snapshot/b`, and a client that has not
/// read the greeting yet.
fn start() -> (Client<DuplexStream>, JoinHandle<Outcome>) {
    start_with(Duration::from_secs(60), 2)
}

/// A server with one export, and snapshots before it.
fn start_after(snapshots: &[String]) -> (Client<DuplexStream>, JoinHandle<Outcome>) {
    let mut export = MemoryExport::new("snapshot/last", &[1, 0, 0, 2]);
    let ancestors = snapshots.iter().map(|name| (name.clone(), Vec::new()));
    export.ancestors = ancestors.collect();
    start_from(vec![export], Duration::from_secs(60))
}

fn start_with(limit: Duration, count: usize) -> (Client<DuplexStream>, JoinHandle<Outcome>) {
    let mut names: Vec<_> = ["snapshot/a", "snapshot/b"].map(String::from).into();
    names.extend((2..count).map(|i| format!("snapshot/c{i:06}")));
    let exports = names.iter();
    let exports = exports.map(|name| MemoryExport::new(name, &[1, 0, 0, 2]));
    start_from(exports.collect(), limit)
}

fn start_from(
    exports: Vec<MemoryExport>,
    limit: Duration,
) -> (Client<DuplexStream>, JoinHandle<Outcome>) {
    start_secure(exports, limit, Security::Plain)
}

fn start_secure(
    exports: Vec<MemoryExport>,
    limit: Duration,
    security: Security,
) -> (Client<DuplexStream>, JoinHandle<Outcome>) {
    let (client, server) = tokio::io::duplex(1 << 20);
    let exports = MemoryExports(exports.into_iter().map(Arc::new).collect());
    let outcome = spawn(server, exports, limit, security, 10);
    (Client(client), outcome)
}

fn spawn<X>(
    server: DuplexStream,
    exports: X,
    limit: Duration,
    security: Security,
    places: usize,
) -> JoinHandle<Outcome>
where
    X: Exports<Export = Arc<MemoryExport>>,
{
    let places = Arc::new(Semaphore::new(places));
    spawn_with(server, exports, limit, security, places)
}

/// The same with places that others may take, too.
fn spawn_with<X>(
    mut server: DuplexStream,
    exports: X,
    limit: Duration,
    security: Security,
    places: Arc<Semaphore>,
) -> JoinHandle<Outcome>
where
    X: Exports<Export = Arc<MemoryExport>>,
{
    tokio::spawn(async move {
        let mut inbox = Inbox::new();
        let desk = Desk {
            exports: &exports,
            deadline: &Deadline::new(limit),
            admit: &move || {
                let place = Arc::clone(&places).try_acquire_owned();
                place.map_err(|_| NoPlace("there is no place".to_owned()))
            },
        };
        negotiate(&mut server, &mut inbox, &desk, security).await
    })
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap()
}

async fn terms(outcome: JoinHandle<Outcome>) -> (String, Terms) {
    match outcome.await.unwrap().unwrap() {
        Negotiated::Export { export, terms, .. } => (export.info.name.clone(), terms),
        Negotiated::Aborted | Negotiated::StartTls(_) => panic!("no export was opened"),
    }
}

async fn error(outcome: JoinHandle<Outcome>) -> HandshakeError {
    outcome.await.unwrap().expect_err("the handshake fails")
}

#[tokio::test]
async fn list_names_all_exports_and_abort_ends() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    let replies = client.haggle(3, b"").await;
    let lines: Vec<_> = replies
        .iter()
        .map(|(kind, data)| (*kind, &data[..]))
        .collect();
    assert_eq!(
        lines,
        [
            (2, &b"\0\0\0\x0asnapshot/awhat snapshot/a is"[..]),
            (2, b"\0\0\0\x0asnapshot/bwhat snapshot/b is"),
            (1, b""),
        ]
    );
    assert_eq!(client.haggle(2, b"ignored").await, [(1, vec![])]);
    let outcome = outcome.await.unwrap().unwrap();
    assert!(matches!(outcome, Negotiated::Aborted));
}

#[tokio::test]
async fn list_of_many_exports_is_complete() {
    let count = 3 * LIST_PAGE_EXPORTS + 5;
    let (mut client, _outcome) = start_with(Duration::from_secs(60), count);
    client.greet(3).await;
    assert_eq!(client.haggle(3, b"").await.len(), count + 1);
}

#[tokio::test]
async fn go_tells_what_was_asked_and_ends_in_the_export() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    let replies = client
        .haggle(7, &info_data("snapshot/a", &[3, 1, 2, 77]))
        .await;
    let items: Vec<_> = replies
        .iter()
        .map(|(kind, data)| (*kind, &data[..]))
        .collect();
    assert_eq!(
        items,
        [
            // 16 KiB; read-only, multi-conn and cache, but no DF without structured replies.
            (3, &b"\0\0\0\0\0\0\0\0\x40\0\x05\x03"[..]),
            (3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0"),
            (3, b"\0\x01snapshot/a"),
            (3, b"\0\x02what snapshot/a is"),
            (1, b""),
        ]
    );
    assert_eq!(
        terms(outcome).await,
        ("snapshot/a".to_owned(), Terms::default())
    );
}

#[tokio::test]
async fn info_does_not_end_the_handshake() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    assert_eq!(client.haggle(8, b"").await, [(1, vec![])]);
    for name in ["snapshot/a", "snapshot/b"] {
        let replies = client.haggle(6, &info_data(name, &[])).await;
        assert_eq!(replies[0].1, b"\0\0\0\0\0\0\0\0\x40\0\x05\x83");
        assert_eq!(replies[1], (1, vec![]));
    }
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    let (name, terms) = terms(outcome).await;
    assert_eq!(name, "snapshot/a");
    assert_eq!(terms.framing, Framing::Structured);
}

#[tokio::test]
async fn writable_exports_say_what_can_be_done_with_them() {
    // Flush, FUA, trim, write zeroes and cache; multi-conn and DF only where they hold.
    for (flush_covers_all, structured, flags) in [
        (true, true, 0x0ded_u16),
        (true, false, 0x0d6d),
        (false, true, 0x0ced),
        (false, false, 0x0c6d),
    ] {
        let mut export = MemoryExport::writable("volume/a", &[0]);
        export.info.access = Access::Writable { flush_covers_all };
        let (mut client, outcome) = start_from(vec![export], Duration::from_secs(60));
        client.greet(3).await;
        if structured {
            client.haggle(8, b"").await;
        }
        let replies = client.haggle(6, &info_data("volume/a", &[3])).await;
        assert_eq!(replies[0].1[10..], flags.to_be_bytes());
        assert_eq!(
            replies[1].1, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0",
            "blocks are those of any export"
        );
        client.option(1, b"volume/a").await;
        let reply = client.receive(10).await;
        assert_eq!(reply[8..], flags.to_be_bytes());
        assert_eq!(terms(outcome).await.0, "volume/a");
    }
}

#[tokio::test]
async fn export_name_sends_zeroes_unless_spared() {
    for (flags, length) in [(3, 10), (1, 134), (0, 134)] {
        let (mut client, outcome) = start();
        client.greet(flags).await;
        client.option(1, b"snapshot/b").await;
        let reply = client.receive(length).await;
        assert_eq!(reply[..10], *b"\0\0\0\0\0\0\x40\0\x05\x03");
        assert!(reply[10..].iter().all(|&byte| byte == 0));
        assert_eq!(terms(outcome).await.0, "snapshot/b");
        assert!(client.is_closed().await, "nothing follows");
    }
}

#[tokio::test]
async fn export_name_of_nothing_closes() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    client.option(1, b"snapshot/z").await;
    let error = error(outcome).await;
    assert!(error.to_string().contains("snapshot/z"), "{error}");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn unknown_exports_are_refused_with_a_message_and_haggling_goes_on() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    for name in ["", "snapshot/z", "a"] {
        for option in [6, 7] {
            let replies = client.haggle(option, &info_data(name, &[])).await;
            assert_eq!(replies.len(), 1);
            assert_eq!(replies[0].0, UNKNOWN);
            assert!(text(&replies[0].1).contains(&format!("{name:?}")));
        }
    }
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(terms(outcome).await.0, "snapshot/a");
}

#[tokio::test]
async fn unknown_options_are_unsupported_and_their_data_skipped() {
    let (mut client, _outcome) = start();
    client.greet(3).await;
    // STARTTLS where there is none, and some unknown options.
    for option in [5, 12, 0, 4, 0xffff_ffff] {
        let data = vec![0x55; 60_000];
        assert_eq!(client.haggle(option, &data).await[0].0, UNSUPPORTED);
    }
    assert_eq!(client.haggle(8, b"").await, [(1, vec![])]);
}

#[tokio::test]
async fn malformed_options_are_invalid_and_haggling_goes_on() {
    let (mut client, _outcome) = start();
    client.greet(3).await;
    let long = info_data(&"n".repeat(4097), &[]);
    for (option, data, code) in [
        (3, &b"x"[..], INVALID),
        (8, b"x", INVALID),
        (7, b"", INVALID),
        (7, b"\0\0\0\x09abc\0\0", INVALID),
        (7, b"\0\0\0\x01a\0\x02\0\x01", INVALID),
        (7, b"\0\0\0\x02a\xff\0\0", INVALID),
        (6, &long, TOO_BIG),
    ] {
        let replies = client.haggle(option, data).await;
        assert_eq!(replies[0].0, code, "{}", text(&replies[0].1));
        assert!(!replies[0].1.is_empty());
    }
    assert_eq!(client.haggle(8, b"").await, [(1, vec![])]);
    for (data, code) in [
        (&b"\0\0\0\x01a"[..], INVALID),
        (b"\0\0\0\x01a\xff\0\0\0", TOO_BIG),
    ] {
        assert_eq!(client.haggle(10, data).await[0].0, code);
    }
}

#[tokio::test]
async fn an_option_that_is_too_big_is_told_and_closes() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    client.send(b"IHAVEOPT\0\0\0\x07\x7f\xff\xff\xff").await;
    assert_eq!(client.replies(7).await[0].0, TOO_BIG);
    let error = error(outcome).await;
    assert!(matches!(
        error,
        HandshakeError::OptionTooBig { option: 7, .. }
    ));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn contexts_are_listed_by_wildcard_and_selected_by_name() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    let all = meta_data("snapshot/a", &[]);
    assert_eq!(client.haggle(9, &all).await[0].0, INVALID, "not structured");
    client.haggle(8, b"").await;

    let ack = (1, vec![]);
    let nothing = std::slice::from_ref(&ack);
    let listed = (4, b"\0\0\0\0base:allocation".to_vec());
    for queries in [&[][..], &["base:"], &["x:y", "base:allocation"]] {
        let replies = client.haggle(9, &meta_data("snapshot/a", queries)).await;
        assert_eq!(replies, [listed.clone(), ack.clone()], "{queries:?}");
    }
    for queries in [&["qemu:"][..], &["base:other", "no colon", ""]] {
        let replies = client.haggle(9, &meta_data("snapshot/a", queries)).await;
        assert_eq!(replies, nothing, "{queries:?}");
    }
    assert_eq!(client.haggle(9, &meta_data("no", &[])).await[0].0, UNKNOWN);

    for queries in [&[][..], &["base:"], &["x:y"]] {
        let replies = client.haggle(10, &meta_data("snapshot/a", queries)).await;
        assert_eq!(replies, nothing, "{queries:?}");
    }
    let replies = client
        .haggle(10, &meta_data("snapshot/a", &["base:allocation", "x:y"]))
        .await;
    let selected = (4, b"\0\0\0\x01base:allocation".to_vec());
    assert_eq!(replies, [selected, ack]);
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(
        terms(outcome).await.1.contexts,
        [MetaContext::BaseAllocation]
    );
}

#[tokio::test]
async fn changes_since_snapshots_are_listed_and_selected() {
    let (mut client, outcome) = start_after(&["monday", "sunday"].map(String::from));
    client.greet(3).await;
    client.haggle(8, b"").await;
    let ack = (1, vec![]);
    let listed = |name: &str| {
        (
            4,
            [&[0; 4], format!("qemu:dirty-bitmap:{name}").as_bytes()].concat(),
        )
    };
    let allocation = (4, b"\0\0\0\0base:allocation".to_vec());
    let [monday, sunday] = ["monday", "sunday"].map(listed);
    for (queries, expected) in [
        (&[][..], vec![allocation, monday.clone(), sunday.clone()]),
        (&["qemu:"], vec![monday.clone(), sunday.clone()]),
        (&["qemu:dirty-bitmap:"], vec![monday, sunday.clone()]),
        (
            &["qemu:dirty-bitmap:sunday", "qemu:dirty-bitmap:none"],
            vec![sunday],
        ),
        (&["qemu:dirty-bitmap", "qemu:allocation-depth"], vec![]),
    ] {
        let replies = client.haggle(9, &meta_data("snapshot/last", queries)).await;
        let (last, contexts) = replies.split_last().unwrap();
        assert_eq!((last, contexts), (&ack, &*expected), "{queries:?}");
    }
    // Missing ones are left out, and one that is named twice comes once.
    let queries =
        ["none", "sunday", "sunday", "monday"].map(|it| format!("qemu:dirty-bitmap:{it}"));
    let mut queries: Vec<_> = queries.iter().map(String::as_str).collect();
    queries.push("base:allocation");
    let replies = client
        .haggle(10, &meta_data("snapshot/last", &queries))
        .await;
    let selected = |id: u8, name: &str| (4, [&[0, 0, 0, id], name.as_bytes()].concat());
    assert_eq!(
        replies,
        [
            selected(1, "base:allocation"),
            selected(2, "qemu:dirty-bitmap:sunday"),
            selected(3, "qemu:dirty-bitmap:monday"),
            ack
        ]
    );
    client.haggle(7, &info_data("snapshot/last", &[])).await;
    let dirty = |reference, snapshot: &str| MetaContext::DirtySince {
        reference,
        snapshot: snapshot.to_owned(),
    };
    assert_eq!(
        terms(outcome).await.1.contexts,
        [
            MetaContext::BaseAllocation,
            dirty(0, "sunday"),
            dirty(1, "monday")
        ]
    );
}

#[tokio::test]
async fn more_references_than_a_connection_may_have_are_left_out() {
    let many: Vec<_> = (0..100).map(|n| format!("many-{n}")).collect();
    let (mut client, outcome) = start_after(&many);
    client.greet(3).await;
    client.haggle(8, b"").await;
    let queries = many.iter().map(|name| format!("qemu:dirty-bitmap:{name}"));
    let queries: Vec<_> = queries.collect();
    let queries: Vec<_> = queries.iter().map(String::as_str).collect();
    let replies = client
        .haggle(10, &meta_data("snapshot/last", &queries))
        .await;
    assert_eq!(replies.len(), 16 + 1);
    client.haggle(7, &info_data("snapshot/last", &[])).await;
    assert_eq!(terms(outcome).await.1.contexts.len(), 16);
}

#[tokio::test]
async fn contexts_count_only_for_the_export_they_were_selected_for() {
    for (again, go) in [(None, "snapshot/b"), (Some("no"), "snapshot/a")] {
        let (mut client, outcome) = start();
        client.greet(3).await;
        client.haggle(8, b"").await;
        let select = meta_data("snapshot/a", &["base:allocation"]);
        assert_eq!(client.haggle(10, &select).await.len(), 2);
        if let Some(again) = again {
            // A selection that fails also takes back the one before.
            client
                .haggle(10, &meta_data(again, &["base:allocation"]))
                .await;
        }
        client.haggle(7, &info_data(go, &[])).await;
        assert_eq!(terms(outcome).await.1.contexts, []);
    }
}

#[tokio::test]
async fn garbage_closes() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    client.send(b"GET / HTTP/1.1\r\n").await;
    let error = error(outcome).await;
    assert!(matches!(
        error,
        HandshakeError::Wire(WireError::Magic { .. })
    ));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn unknown_client_flags_close() {
    let (mut client, outcome) = start();
    client.greet(0x10).await;
    let error = error(outcome).await;
    assert!(matches!(
        error,
        HandshakeError::Wire(WireError::ClientFlags { flags: 0x10 })
    ));
}

#[tokio::test]
async fn without_fixed_newstyle_only_export_name_is_an_option() {
    let (mut client, outcome) = start();
    client.greet(0).await;
    client.option(3, b"").await;
    let error = error(outcome).await;
    assert!(matches!(
        error,
        HandshakeError::NotFixedNewstyle { option: 3 }
    ));
}

#[tokio::test]
async fn a_client_that_goes_away_at_any_byte_is_noticed() {
    let mut whole = 3_u32.to_be_bytes().to_vec();
    whole.extend_from_slice(b"IHAVEOPT\0\0\0\x07\0\0\0\x10");
    whole.extend_from_slice(&info_data("snapshot/a", &[]));
    for length in 0..whole.len() {
        let (mut client, outcome) = start();
        client.send(&whole[..length]).await;
        drop(client);
        let error = error(outcome).await;
        assert!(matches!(error, HandshakeError::Io(_)), "{length}: {error}");
    }
}

#[tokio::test]
async fn options_that_arrive_together_are_answered_in_turn() {
    let (mut client, outcome) = start();
    let mut all = 3_u32.to_be_bytes().to_vec();
    all.extend_from_slice(b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    all.extend_from_slice(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    all.extend_from_slice(b"IHAVEOPT\0\0\0\x07\0\0\0\x10");
    all.extend_from_slice(&info_data("snapshot/a", &[]));
    client.send(&all).await;
    client.receive(18).await;
    assert_eq!(client.replies(8).await.len(), 1);
    assert_eq!(client.replies(3).await.len(), 3);
    assert_eq!(client.replies(7).await.len(), 2);
    assert_eq!(terms(outcome).await.1.framing, Framing::Structured);
}

const TLS_REQUIRED: u32 = 1 << 31 | 5;
const STARTTLS: u32 = 5;

fn start_with_tls(security: Security) -> (Client<DuplexStream>, JoinHandle<Outcome>) {
    let exports = vec![MemoryExport::new("snapshot/a", &[1])];
    start_secure(exports, Duration::from_secs(60), security)
}

#[tokio::test]
async fn nothing_is_told_before_tls_where_it_is_required() {
    let (mut client, outcome) = start_with_tls(Security::Required);
    client.greet(3).await;
    for (option, data) in [
        (3, vec![]),
        (6, info_data("snapshot/a", &[])),
        (7, info_data("snapshot/a", &[])),
        (8, vec![]),
        (99, vec![]),
    ] {
        let replies = client.haggle(option, &data).await;
        assert_eq!(replies[0].0, TLS_REQUIRED, "option {option}");
    }
    assert_eq!(client.haggle(STARTTLS, b"x").await[0].0, INVALID);
    assert_eq!(client.haggle(STARTTLS, b"").await, [(1, vec![])]);
    assert!(matches!(
        outcome.await.unwrap(),
        Ok(Negotiated::StartTls(_))
    ));

    let (mut client, outcome) = start_with_tls(Security::Required);
    client.greet(3).await;
    client.option(1, b"snapshot/a").await;
    assert!(matches!(error(outcome).await, HandshakeError::NotSecure));
    assert!(client.is_closed().await);

    let (mut client, outcome) = start_with_tls(Security::Required);
    client.greet(3).await;
    assert_eq!(
        client.haggle(2, b"").await,
        [(1, vec![])],
        "who gives up may"
    );
    assert!(matches!(outcome.await.unwrap(), Ok(Negotiated::Aborted)));
}

#[tokio::test]
async fn tls_is_begun_once_and_only_where_there_is_some() {
    for (security, code) in [(Security::Plain, UNSUPPORTED), (Security::Tls, INVALID)] {
        let (mut client, outcome) = start_with_tls(security);
        client.greet(3).await;
        assert_eq!(client.haggle(STARTTLS, b"").await[0].0, code);
        client.haggle(7, &info_data("snapshot/a", &[])).await;
        assert_eq!(terms(outcome).await.0, "snapshot/a");
    }
    let (mut client, outcome) = start_with_tls(Security::Offered);
    client.greet(3).await;
    client.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(terms(outcome).await.0, "snapshot/a");
}

/// Otherwise somebody between the two could put words into the client's mouth.
#[tokio::test]
async fn what_follows_in_the_clear_does_not_count_as_tls() {
    let (mut client, outcome) = start_with_tls(Security::Offered);
    client.greet(3).await;
    let mut bytes = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x08\0\0\0\0");
    client.send(&bytes).await;
    assert!(matches!(error(outcome).await, HandshakeError::BeforeTls));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn extended_headers_go_further_than_structured_replies() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    assert_eq!(client.haggle(11, b"x").await[0].0, INVALID);
    assert_eq!(client.haggle(8, b"").await, [(1, vec![])]);
    assert_eq!(client.haggle(11, b"").await, [(1, vec![])]);
    assert_eq!(client.haggle(8, b"").await[0].0, 1 << 31 | 10);
    // Contexts need no structured replies then, and BLOCK_STATUS may have a payload.
    let contexts = client
        .haggle(10, &meta_data("snapshot/a", &["base:allocation"]))
        .await;
    assert_eq!(contexts.len(), 2);
    let replies = client.haggle(7, &info_data("snapshot/a", &[])).await;
    assert_eq!(replies[0].1, b"\0\0\0\0\0\0\0\0\x40\0\x15\x83");
    let (_, terms) = terms(outcome).await;
    assert_eq!(terms.framing, Framing::Extended);
    assert_eq!(terms.contexts, [MetaContext::BaseAllocation]);
}

#[tokio::test]
async fn the_old_way_to_an_export_has_no_extended_headers() {
    let (mut client, outcome) = start();
    client.greet(3).await;
    assert_eq!(client.haggle(11, b"").await, [(1, vec![])]);
    client.option(1, b"snapshot/a").await;
    assert!(client.is_closed().await);
    assert!(matches!(
        outcome.await.unwrap(),
        Err(HandshakeError::ExtendedExportName)
    ));
}
