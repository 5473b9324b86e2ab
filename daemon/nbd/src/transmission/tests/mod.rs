//! Helpers for the tests of this phase: a connection whose other end the test holds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod commands;
mod extended;
mod flow;
mod random;
mod write_flow;
mod writes;

use bytes::Buf;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use std::sync::Arc;

use super::*;
use crate::budget::Budget;
use crate::handshake::MetaContext;
use crate::limits::{
    DETACHED_BYTES_MAX, LARGE_LANE_BYTES, MAX_ORDINARY_BYTES, ORDINARY_LANE_BYTES,
};
use crate::testing::{
    Change, Client, MemoryExport, Received, extended_request_bytes, request_bytes,
};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const STATUS: u16 = 5;
const ERROR: u16 = 1 << 15 | 1;
const ERROR_OFFSET: u16 = 1 << 15 | 2;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
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

/// Bytes of an unused budget.
const ALL_BYTES: u64 = ORDINARY_LANE_BYTES as u64 + LARGE_LANE_BYTES as u64;

/// A budget with room for one request of this payload, and a little more.
fn small_budget(payload_bytes: u32) -> Arc<Budget> {
    let bytes = charge_bytes(payload_bytes);
    Budget::with_lanes(if bytes <= MAX_ORDINARY_BYTES {
        [bytes + 1000, 0]
    } else {
        [0, bytes + 1000]
    })
}

fn structured() -> Terms {
    Terms {
        framing: Framing::Structured,
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
    serve_as(
        export,
        terms,
        Account::open(Arc::clone(&budget), false),
        budget,
        pipe_bytes,
    )
}

/// The same, as if it came over TCP.
fn serve_remote(export: MemoryExport, budget: Arc<Budget>, pipe_bytes: usize) -> Fixture {
    let account = Account::open(Arc::clone(&budget), true);
    serve_as(export, structured(), account, budget, pipe_bytes)
}

fn serve_as(
    export: MemoryExport,
    terms: Terms,
    account: Account,
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
        let (export, stop) = (Arc::clone(&export), stop.clone());
        async move {
            let inbox = Inbox::new();
            transmit(
                &mut server,
                inbox,
                &export,
                &terms,
                account,
                patience,
                &stop,
            )
            .await
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

/// The same as [`small`], but it can be written to.
fn writable() -> MemoryExport {
    MemoryExport::writable("volume/small", &[1, 0, 0, 2, 3, 0])
}

/// A write with its payload, as bytes on the wire.
fn write_bytes(flags: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = request_bytes(WRITE, flags, cookie, offset, length);
    bytes.extend_from_slice(payload);
    bytes
}

fn write(offset: u64, payload: &[u8], durable: bool) -> Change {
    Change::Write {
        offset,
        data: payload.to_vec().into(),
        durable,
    }
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

/// Long enough for the other side to have looked at all it was sent.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}
