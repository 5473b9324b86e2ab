#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

use std::collections::HashSet;

use bytes::Buf;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::*;
use crate::nbd::handshake::MetaContext;
use crate::nbd::limits::MAX_SERVER_BYTES;
use crate::nbd::testing::{Client, MemoryExport, Received, request_bytes};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;

const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const STATUS: u16 = 5;
const ERROR: u16 = 1 << 15 | 1;
const ERROR_OFFSET: u16 = 1 << 15 | 2;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const EOVERFLOW: u32 = 75;
const ESHUTDOWN: u32 = 108;

type Outcome = Result<End, TransmissionError>;

struct Fixture {
    client: Client<DuplexStream>,
    export: Arc<MemoryExport>,
    stop: CancellationToken,
    budget: Arc<Budget>,
    outcome: JoinHandle<Outcome>,
}

fn structured() -> Terms {
    Terms {
        structured_replies: true,
        contexts: vec![MetaContext::BaseAllocation],
    }
}

fn serve(export: MemoryExport, terms: Terms) -> Fixture {
    serve_with(export, terms, Budget::new(), 1 << 20)
}

/// `pipe_bytes`: how much the client may leave unread before the server's writes wait.
fn serve_with(
    export: MemoryExport,
    terms: Terms,
    budget: Arc<Budget>,
    pipe_bytes: usize,
) -> Fixture {
    let (client, mut server) = tokio::io::duplex(pipe_bytes);
    let export = Arc::new(export);
    let stop = CancellationToken::new();
    let patience = Patience {
        stop: Duration::from_millis(100),
        stall: Duration::from_millis(50),
    };
    let outcome = tokio::spawn({
        let (export, stop, budget) = (Arc::clone(&export), stop.clone(), Arc::clone(&budget));
        async move {
            let inbox = Inbox::new();
            transmit(&mut server, inbox, &export, &terms, budget, patience, &stop).await
        }
    });
    Fixture {
        client: Client(client),
        export,
        stop,
        budget,
        outcome,
    }
}

/// Six blocks: data, hole, hole, data, data, hole. All holes are too short to be told apart.
fn small() -> MemoryExport {
    MemoryExport::new("snapshot/small", &[1, 0, 0, 2, 3, 0])
}

/// 64 KiB of data, 64 KiB of hole, 64 KiB of data.
fn sparse() -> MemoryExport {
    MemoryExport::new("snapshot/sparse", &[[7; 16], [0; 16], [9; 16]].concat())
}

fn done(cookie: u64) -> Received {
    Received::Chunk {
        done: true,
        kind: 0,
        cookie,
        payload: Vec::new(),
    }
}

/// A chunk of data or hole as (done, kind, offset, rest of the payload).
fn content(received: Received, wanted_cookie: u64) -> (bool, u16, u64, Vec<u8>) {
    let Received::Chunk {
        done,
        kind,
        cookie,
        payload,
    } = received
    else {
        panic!("not a chunk: {received:?}");
    };
    assert_eq!(cookie, wanted_cookie);
    let mut payload = payload.as_slice();
    (done, kind, payload.get_u64(), payload.to_vec())
}

/// Extents as (length, status), all with context 1.
fn extents(received: Received) -> Vec<(u32, u32)> {
    let Received::Chunk {
        done: true,
        kind: STATUS,
        payload,
        ..
    } = received
    else {
        panic!("not a status chunk: {received:?}");
    };
    let mut payload = payload.as_slice();
    assert_eq!(payload.get_u32(), 1);
    let mut extents = Vec::new();
    while payload.has_remaining() {
        extents.push((payload.get_u32(), payload.get_u32()));
    }
    extents
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn simple_replies_carry_all_bytes() {
    let mut test = serve(sparse(), Terms::default());
    test.client.request(READ, 0, 11, 1, 3 * 65536 - 2).await;
    assert_eq!(
        test.client.message().await,
        Received::Simple {
            error: 0,
            cookie: 11
        }
    );
    let data = test.client.receive(3 * 65536 - 2).await;
    assert_eq!(data, test.export.data[1..3 * 65536 - 1]);
    for (command, flags, error) in [(READ, DF, EINVAL), (BLOCK_STATUS, 0, EINVAL), (TRIM, 0, EPERM)] {
        test.client.request(command, flags, 12, 0, 1).await;
        assert_eq!(
            test.client.message().await,
            Received::Simple { error, cookie: 12 }
        );
    }
    test.client.request(CACHE, 0, 13, 0, 100).await;
    assert_eq!(
        test.client.message().await,
        Received::Simple {
            error: 0,
            cookie: 13
        }
    );
    test.client.request(DISCONNECT, 0, 0, 0, 0).await;
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
}

#[tokio::test]
async fn structured_replies_tell_holes_that_are_worth_it() {
    let mut test = serve(sparse(), structured());
    test.client.request(READ, 0, 1, 4096, 3 * 65536 - 8192).await;
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (false, OFFSET_DATA, 4096, vec![7; 65536 - 4096]));
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (false, OFFSET_HOLE, 65536, vec![0, 1, 0, 0]));
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (true, OFFSET_DATA, 131_072, vec![9; 65536 - 4096]));
    // A read that is nothing but hole, however short.
    test.client.request(READ, 0, 2, 65536, 1).await;
    let chunk = content(test.client.message().await, 2);
    assert_eq!(chunk, (true, OFFSET_HOLE, 65536, vec![0, 0, 0, 1]));
    // The same, but it must be data.
    test.client.request(READ, DF, 3, 65536, 2).await;
    let chunk = content(test.client.message().await, 3);
    assert_eq!(chunk, (true, OFFSET_DATA, 65536, vec![0, 0]));
}

#[tokio::test]
async fn short_holes_and_unfragmented_reads_are_one_chunk() {
    let mut test = serve(small(), structured());
    test.client.request(READ, 0, 1, 0, 6 * 4096).await;
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (true, OFFSET_DATA, 0, test.export.data.to_vec()));

    let mut test = serve(sparse(), structured());
    test.client.request(READ, DF, 1, 0, 3 * 65536).await;
    let chunk = content(test.client.message().await, 1);
    assert_eq!(chunk, (true, OFFSET_DATA, 0, test.export.data.to_vec()));
}

#[tokio::test]
async fn empty_requests_are_done_at_once() {
    let mut test = serve(small(), structured());
    for (command, offset) in [(READ, 0), (READ, 6 * 4096), (CACHE, 5)] {
        test.client.request(command, 0, 9, offset, 0).await;
        assert_eq!(test.client.message().await, done(9));
    }
    assert_eq!(test.export.started(), 0);
}

#[tokio::test]
async fn cache_prefetches() {
    let mut test = serve(small(), structured());
    test.client.request(CACHE, 0, 9, 4096, 8192).await;
    assert_eq!(test.client.message().await, done(9));
    assert_eq!(test.export.prefetched.load(std::sync::atomic::Ordering::SeqCst), 8192);
}

#[tokio::test]
async fn requests_that_cannot_be_right_are_told_so_and_the_connection_goes_on() {
    let mut test = serve(small(), structured());
    let size = 6 * 4096;
    for (command, flags, offset, length, error) in [
        // Out of range.
        (READ, 0, size, 1, EINVAL),
        (READ, 0, size - 1, 2, EINVAL),
        (READ, 0, u64::MAX, 2, EINVAL),
        (CACHE, 0, size, 1, EINVAL),
        (BLOCK_STATUS, 0, size - 1, 2, EINVAL),
        (BLOCK_STATUS, 0, 0, 0, EINVAL),
        // Flags that do not belong there.
        (READ, FUA, 0, 1, EINVAL),
        (READ, REQ_ONE, 0, 1, EINVAL),
        (READ, 0x8000, 0, 1, EINVAL),
        (CACHE, DF, 0, 1, EINVAL),
        (BLOCK_STATUS, DF, 0, 1, EINVAL),
        // Commands that are unknown, or not for a read-only export.
        (8, 0, 0, 1, EINVAL),
        (0xffff, 0xffff, u64::MAX, u32::MAX, EINVAL),
        (FLUSH, 0, 0, 0, EINVAL),
        (TRIM, 0, 0, 4096, EPERM),
        (WRITE_ZEROES, 0, 0, 4096, EPERM),
        (WRITE_ZEROES, FUA, 0, u32::MAX, EPERM),
    ] {
        test.client.request(command, flags, 77, offset, length).await;
        let (kind, cookie, code, message) = test.client.error().await;
        let what = format!("command {command} flags {flags} at {offset}+{length}: {message}");
        assert_eq!((kind, cookie, code), (ERROR, 77, error), "{what}");
        assert!(!message.is_empty());
    }
    test.client.request(READ, 0, 78, 0, 1).await;
    assert_eq!(content(test.client.message().await, 78).3, [1]);
}

#[tokio::test]
async fn reads_over_the_maximum_are_refused() {
    let export = MemoryExport::new("snapshot/big", &vec![0; 9000]);
    let mut test = serve(export, structured());
    let too_long = MAX_REQUEST_BYTES + 1;
    for (command, flags, error) in [(READ, 0, EINVAL), (READ, DF, EOVERFLOW), (CACHE, 0, EINVAL)] {
        test.client.request(command, flags, 1, 0, too_long).await;
        assert_eq!(test.client.error().await.2, error);
    }
    test.client.request(READ, 0, 2, 0, MAX_REQUEST_BYTES).await;
    let (done, kind, ..) = content(test.client.message().await, 2);
    assert!(done && kind == OFFSET_HOLE);
    test.client.request(BLOCK_STATUS, 0, 3, 0, too_long).await;
    assert_eq!(extents(test.client.message().await), [(too_long, 3)]);
}

#[tokio::test]
async fn writes_are_refused_with_their_payload_read_past() {
    let mut test = serve(small(), structured());
    // Longer than any buffer on the way, and full of what looks like requests.
    let payload = request_bytes(READ, 0, 666, 0, 1).repeat(10_000);
    let length = u32::try_from(payload.len()).unwrap();
    test.client.request(WRITE, FUA, 5, 0, length).await;
    test.client.send(&payload).await;
    test.client.request(READ, 0, 6, 0, 1).await;
    let (kind, cookie, error, message) = test.client.error().await;
    assert_eq!((kind, cookie, error), (ERROR, 5, EPERM));
    assert!(message.contains("read-only"));
    assert_eq!(content(test.client.message().await, 6).3, [1]);
    test.client.request(WRITE, 0, 7, 0, 0).await;
    assert_eq!(test.client.error().await.2, EPERM);
}

#[tokio::test]
async fn a_payload_that_nobody_would_send_ends_the_connection() {
    let mut test = serve(small(), structured());
    test.client.request(WRITE, 0, 5, 0, MAX_REQUEST_BYTES + 1).await;
    let error = test.outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, TransmissionError::PayloadTooLong { .. }));
}

#[tokio::test]
async fn block_status_merges_and_limits() {
    let mut test = serve(small(), structured());
    for (flags, offset, length, wanted) in [
        (0, 0, 6 * 4096, &[(4096, 0), (8192, 3), (8192, 0), (4096, 3)][..]),
        (0, 100, 5000, &[(3996, 0), (1004, 3)]),
        (REQ_ONE, 0, 6 * 4096, &[(4096, 0)]),
        (REQ_ONE, 4096, 100, &[(100, 3)]),
    ] {
        test.client.request(BLOCK_STATUS, flags, 1, offset, length).await;
        assert_eq!(extents(test.client.message().await), wanted);
    }
}

#[tokio::test]
async fn block_status_goes_on_over_windows_and_stops_at_the_limit() {
    use crate::nbd::limits::{EXTENT_WINDOW_BYTES, MAX_EXTENTS};
    let window_blocks = usize::try_from(EXTENT_WINDOW_BYTES).unwrap() / 4096;
    let hole = MemoryExport::new("snapshot/hole", &vec![0; 2 * window_blocks + 1]);
    let length = u32::try_from(hole.info.size_bytes).unwrap();
    let mut test = serve(hole, structured());
    test.client.request(BLOCK_STATUS, 0, 1, 0, length).await;
    assert_eq!(extents(test.client.message().await), [(length, 3)]);

    let striped = MemoryExport::new("snapshot/striped", &[1, 0].repeat(MAX_EXTENTS));
    let length = u32::try_from(striped.info.size_bytes).unwrap();
    let mut test = serve(striped, structured());
    test.client.request(BLOCK_STATUS, 0, 1, 0, length).await;
    let extents = extents(test.client.message().await);
    assert_eq!(extents.len(), MAX_EXTENTS);
    assert!(extents.iter().all(|&(length, _)| length == 4096));
}

#[tokio::test]
async fn block_status_needs_a_context() {
    let terms = Terms {
        structured_replies: true,
        contexts: Vec::new(),
    };
    let mut test = serve(small(), terms);
    test.client.request(BLOCK_STATUS, 0, 1, 0, 4096).await;
    assert_eq!(test.client.error().await.2, EINVAL);
}

#[tokio::test]
async fn damage_is_an_error_with_offset_and_message_and_other_ranges_go_on() {
    let mut export = small();
    export.damaged_at = Some(3 * 4096);
    let mut test = serve(export, structured());
    test.client.request(READ, 0, 1, 0, 6 * 4096).await;
    let Received::Chunk { payload, .. } = test.client.message().await else {
        panic!("not a chunk");
    };
    assert_eq!(payload[payload.len() - 8..], (3 * 4096_u64).to_be_bytes());
    test.client.request(READ, 0, 2, 2 * 4096, 2 * 4096).await;
    let (kind, cookie, error, message) = test.client.error().await;
    assert_eq!((kind, cookie, error), (ERROR_OFFSET, 2, EIO));
    assert_eq!(message, "chunk c0ffee is damaged");
    test.client.request(READ, 0, 3, 0, 4096).await;
    assert_eq!(content(test.client.message().await, 3).3, [1; 4096]);

    let mut export = small();
    export.damaged_at = Some(0);
    let mut test = serve(export, Terms::default());
    test.client.request(READ, 0, 1, 0, 1).await;
    let error = Received::Simple {
        error: EIO,
        cookie: 1,
    };
    assert_eq!(test.client.message().await, error);
}

#[tokio::test]
async fn replies_overtake_those_that_take_longer() {
    let mut export = small();
    export.held_below = 4096;
    let mut test = serve(export, structured());
    test.client.request(READ, 0, 1, 0, 10).await;
    test.client.request(READ, 0, 2, 5, 10).await;
    test.client.request(READ, 0, 3, 3 * 4096, 10).await;
    test.client.request(DISCONNECT, 0, 0, 0, 0).await;
    assert_eq!(content(test.client.message().await, 3).3, [2; 10]);
    test.export.let_go();
    // A disconnect waits for what was asked before it.
    let mut cookies = HashSet::new();
    for _ in 0..2 {
        let Received::Chunk { cookie, .. } = test.client.message().await else {
            panic!("not a chunk");
        };
        cookies.insert(cookie);
    }
    assert_eq!(cookies, HashSet::from([1, 2]));
    assert!(test.client.is_closed().await);
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Disconnected);
}

#[tokio::test]
async fn no_more_requests_are_accepted_than_the_limit() {
    let mut export = small();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    for cookie in 0..1000 {
        test.client.request(READ, 0, cookie, 0, 16).await;
    }
    until(|| test.export.started() == MAX_REQUESTS_IN_FLIGHT).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(test.export.started(), MAX_REQUESTS_IN_FLIGHT);
    test.export.let_go();
    let mut cookies = HashSet::new();
    for _ in 0..1000 {
        let Received::Chunk { cookie, .. } = test.client.message().await else {
            panic!("not a chunk");
        };
        cookies.insert(cookie);
    }
    assert_eq!(cookies.len(), 1000);
}

#[tokio::test]
async fn a_client_that_takes_no_replies_is_not_worked_for() {
    let export = MemoryExport::new("snapshot/full", &[5; 256]);
    let test = serve_with(export, structured(), Budget::new(), 64 << 10);
    let Fixture {
        client,
        export,
        outcome,
        ..
    } = test;
    let (mut from_server, mut to_server) = tokio::io::split(client.0);
    let requests = request_bytes(READ, 0, 1, 0, 1 << 20).repeat(100);
    tokio::io::AsyncWriteExt::write_all(&mut to_server, &requests)
        .await
        .unwrap();
    let worked_ahead = MAX_QUEUED_BYTES / (1 << 20) + 1;
    until(|| export.started() >= worked_ahead).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(export.started(), worked_ahead, "4 MiB are ready, and one is on the way");
    // Nobody waits for the memory, so it may take its time.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut all = vec![0; 100 * ((1 << 20) + 28)];
    tokio::io::AsyncReadExt::read_exact(&mut from_server, &mut all)
        .await
        .unwrap();
    assert_eq!(export.started(), 100);
    drop((from_server, to_server));
    assert!(outcome.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_stalled_client_gives_way_to_one_that_waits_for_memory() {
    // Room for two requests of this size, not for three.
    let length = 4 << 20;
    let budget = Budget::with_bytes(2 * charge_bytes(length) + 1000);
    let export = || MemoryExport::new("snapshot/full", &[5; 1024]);
    let mut stalled = serve_with(export(), structured(), Arc::clone(&budget), 1000);
    for cookie in 0..2 {
        stalled.client.request(READ, 0, cookie, 0, length).await;
    }
    until(|| stalled.export.started() == 1).await;
    let mut waiting = serve_with(export(), structured(), Arc::clone(&budget), 64 << 20);
    for cookie in 0..2 {
        waiting.client.request(READ, 0, cookie, 0, length).await;
    }
    for cookie in 0..2 {
        let (done, ..) = content(waiting.client.message().await, cookie);
        assert!(done);
    }
    let error = stalled.outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, TransmissionError::Stalled));
}

#[tokio::test]
async fn memory_comes_back_however_a_connection_ends() {
    let budget = Budget::new();
    for disconnect in [true, false] {
        let mut export = small();
        export.held_below = 1;
        let mut test = serve_with(export, structured(), Arc::clone(&budget), 1 << 20);
        test.client.request(READ, 0, 1, 0, 10).await;
        test.client.request(READ, 0, 2, 1, 10).await;
        test.client.message().await;
        assert!(test.budget.available_bytes() < MAX_SERVER_BYTES as usize);
        if disconnect {
            test.client.request(DISCONNECT, 0, 0, 0, 0).await;
            test.export.let_go();
        } else {
            test.client.send(b"no request at all, but long enough for one").await;
        }
        let _ = test.outcome.await.unwrap();
        assert_eq!(budget.available_bytes(), MAX_SERVER_BYTES as usize);
    }
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let mut test = serve(small(), structured());
    test.client.send(&[0x55; 28]).await;
    let error = test.outcome.await.unwrap().unwrap_err();
    assert!(matches!(error, TransmissionError::Wire(WireError::Magic { .. })));
    assert!(test.client.is_closed().await);
}

#[tokio::test]
async fn a_client_that_goes_away_at_any_byte_is_noticed() {
    let mut whole = request_bytes(READ, 0, 1, 0, 1);
    whole.extend_from_slice(&request_bytes(WRITE, 0, 2, 0, 10));
    whole.extend_from_slice(&[0; 10]);
    for length in 0..=whole.len() {
        let mut test = serve(small(), structured());
        test.client.send(&whole[..length]).await;
        drop(test.client);
        let whole_requests = [0, REQUEST_BYTES, whole.len()].contains(&length);
        match test.outcome.await.unwrap() {
            Ok(end) => assert!(end == End::Closed && whole_requests, "{length}"),
            Err(TransmissionError::TornRequest) => assert!(!whole_requests, "{length}"),
            // It went away before it took its replies.
            Err(error) => assert!(matches!(error, TransmissionError::Io(_)), "{length}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_stop_finishes_what_runs_and_refuses_the_rest() {
    let mut export = small();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    for cookie in 0..=MAX_REQUESTS_IN_FLIGHT as u64 {
        test.client.request(READ, 0, cookie, 0, 16).await;
    }
    until(|| test.export.started() == MAX_REQUESTS_IN_FLIGHT).await;
    test.stop.cancel();
    let last = MAX_REQUESTS_IN_FLIGHT as u64;
    let (_, cookie, error, _) = test.client.error().await;
    assert_eq!((cookie, error), (last, ESHUTDOWN));
    test.export.let_go();
    for _ in 0..MAX_REQUESTS_IN_FLIGHT {
        assert!(matches!(
            test.client.message().await,
            Received::Chunk {
                kind: OFFSET_DATA,
                ..
            }
        ));
    }
    assert!(test.client.is_closed().await);
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Stopped);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut export = small();
    export.held_below = u64::MAX;
    let mut test = serve(export, structured());
    test.client.request(READ, 0, 1, 0, 16).await;
    until(|| test.export.started() == 1).await;
    test.stop.cancel();
    assert_eq!(test.outcome.await.unwrap().unwrap(), End::Stopped);
}
