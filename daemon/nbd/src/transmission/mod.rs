//! The transmission phase: one task that reads requests, runs many at a time and writes replies as
//! they finish, in any order.
//!
//! ```text
//! socket ──> inbox ────┬──> running ──> outbox ──> socket
//!       └──> payload ──┘   (futures)   (replies)
//! ```
//!
//! The task is a loop over four steps, none of which blocks, until none of them makes progress:
//! take finished requests, start new ones, write, read. A request is polled at once when it starts:
//! if it is answered from memory, its reply goes straight to the outbox, without any wake-up.
//!
//! Invariants: a request starts only if it can be charged (`budget`), and the memory of its reply
//! stays charged until it is written, piece by piece. So the server stops reading from a client
//! that does not take its replies, and does nothing else to it, unless others wait for the memory.
//! A write is charged before its payload is read from the socket, except for the part that came
//! with its header, and starts once the whole payload has arrived.
//!
//! Requests start in the order of arrival. The server does not parse the bytes behind a write
//! before its payload is complete.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::budget::{Account, Charge};
use super::export::Export;
use super::handshake::Terms;
use super::inbox::Inbox;
use super::limits::{
    FLUSH_BYTES, MAX_LOGGED_FAILURES, MAX_QUEUED_BYTES, MAX_REQUEST_BYTES, MAX_REQUESTS_IN_FLIGHT,
    charge_bytes, charge_extents, own_bytes,
};
use super::wire::{Command, ErrorCode, Framing, Request, WireError, decode_request};

mod execute;
mod outbox;
mod payload;
mod running;
mod stall;

#[cfg(test)]
mod tests;

use execute::{Question, Refusal, Rules, execute};
use outbox::{Body, Outbox, Reply};
use payload::Incoming;
use running::Requests;
use stall::Stall;

/// The end of the transmission phase, other than an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The client sent `DISC`, and has all its replies.
    Disconnected,
    /// The client closed the connection without `DISC`.
    Closed,
    /// The server stops.
    Stopped,
}

/// An error that ends the transmission phase and its connection.
#[derive(Debug, thiserror::Error)]
pub enum TransmissionError {
    /// The connection is lost.
    #[error("talk to the client: {0}")]
    Io(#[from] io::Error),
    /// The client sent something that is not a request.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A payload exceeds the limit of a request.
    #[error("a payload of {length_bytes} bytes exceeds {MAX_REQUEST_BYTES}")]
    PayloadTooLong {
        /// Its length.
        length_bytes: u64,
    },
    /// The connection ended in the middle of a request.
    #[error("the connection was closed in the middle of a request")]
    TornRequest,
    /// The client does not take its replies.
    #[error(
        "the client does not read its replies ({held_bytes} bytes), or reads them too slowly, \
         while other connections wait for memory"
    )]
    Stalled {
        /// Bytes that the server holds for the client.
        held_bytes: u64,
    },
    /// The client does not send the rest of a payload.
    #[error(
        "the client does not send the rest of a payload, or sends it too slowly, while other \
         connections wait for its {held_bytes} bytes of memory"
    )]
    PayloadStalled {
        /// Bytes that the server holds for the client.
        held_bytes: u64,
    },
}

/// Timeouts of the transmission phase.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time for requests in flight when the server stops.
    pub stop: Duration,
    /// Time that a client may stall while others wait for memory.
    pub stall: Duration,
}

/// Serves requests until either side ends the connection.
///
/// # Errors
///
/// The connection is lost, the client breaks the protocol, or it stalls while others wait for
/// memory.
pub async fn transmit<S, E>(
    stream: &mut S,
    inbox: Inbox,
    export: &E,
    terms: &Terms,
    account: Account,
    patience: Patience,
    stop: &CancellationToken,
) -> Result<End, TransmissionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Export,
{
    let rules = Rules::new(export.info(), terms);
    let mut session = Session {
        stream,
        inbox,
        framing: terms.framing,
        outbox: Outbox::new(terms.framing),
        running: Requests::new(),
        rules,
        execute: |request, checked, payload| execute(export, rules, request, checked, payload),
        account,
        in_flight: 0,
        input: Input::Requests,
        end: None,
        is_unflushed: false,
        reply_stall: Stall::new(patience.stall),
        payload_stall: Stall::new(patience.stall),
        export: &export.info().name,
        failures: 0,
    };
    tokio::select! {
        // In this order, so that a busy connection does not look at the token first.
        biased;
        end = poll_fn(|cx| session.poll(cx)) => return end,
        () = stop.cancelled() => {}
    }
    session.stop();
    match timeout(patience.stop, poll_fn(|cx| session.poll(cx))).await {
        Ok(end) => end,
        Err(_) => Ok(End::Stopped),
    }
}

/// The meaning of the next bytes of the stream.
enum Input {
    Requests,
    /// The rest of a request's payload.
    Payload(Incoming),
    /// The payload of a request that is refused: read past it, then reply.
    Refused {
        left_bytes: usize,
        reply: Reply,
    },
    /// Nothing more is read.
    Ended,
}

/// A connection in the transmission phase. `X` starts a request, as a future `F`.
struct Session<'a, S, X, F> {
    stream: &'a mut S,
    inbox: Inbox,
    framing: Framing,
    outbox: Outbox,
    running: Requests<F>,
    rules: Rules<'a>,
    execute: X,
    account: Account,
    /// Requests accepted whose reply is not fully written: in `input`, `running` or `outbox`.
    in_flight: usize,
    input: Input,
    /// Set once there is no more input.
    end: Option<End>,
    /// True if bytes were written since the last flush of the stream.
    is_unflushed: bool,
    reply_stall: Stall,
    payload_stall: Stall,
    /// For the log.
    export: &'a str,
    failures: u32,
}

impl<S, X, F> Session<'_, S, X, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Fn(Request, Result<Question, Refusal>, Bytes) -> F,
    F: Future<Output = Reply>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, TransmissionError>> {
        loop {
            let mut progress = self.take_finished(cx);
            progress |= self.start_requests(cx)?;
            progress |= self.write(cx)?;
            self.flush(cx)?;
            progress |= self.read(cx)?;
            if let Some(end) = self.end
                && self.running.is_empty()
                && self.outbox.is_empty()
                && !self.is_unflushed
            {
                return Poll::Ready(Ok(end));
            }
            if !progress {
                self.check_stalls(cx)?;
                return Poll::Pending;
            }
        }
    }

    fn take_finished(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready((reply, charge)) = self.running.poll_finished(cx) {
            self.queue(reply, charge);
            progress = true;
        }
        progress
    }

    /// Starts what has arrived, until something must be written first.
    fn start_requests(&mut self, cx: &mut Context<'_>) -> Result<bool, TransmissionError> {
        let mut progress = false;
        let queued_bytes = self.outbox.queued_bytes();
        while self.outbox.queued_bytes() < queued_bytes + FLUSH_BYTES {
            if !self.start_next(cx)? {
                break;
            }
            progress = true;
        }
        Ok(progress)
    }

    /// Returns true if another request may be accepted at all.
    fn has_room(&self) -> bool {
        self.in_flight < MAX_REQUESTS_IN_FLIGHT && self.outbox.queued_bytes() < MAX_QUEUED_BYTES
    }

    fn start_next(&mut self, cx: &mut Context<'_>) -> Result<bool, TransmissionError> {
        match &mut self.input {
            Input::Ended => Ok(false),
            Input::Payload(incoming) => {
                if !incoming.is_complete() {
                    return Ok(false);
                }
                if let Input::Payload(incoming) =
                    std::mem::replace(&mut self.input, Input::Requests)
                {
                    let (request, question) = (incoming.request, incoming.question);
                    let charge = incoming.charge;
                    self.start(request, Ok(question), incoming.into_payload(), charge, cx);
                }
                Ok(true)
            }
            Input::Refused { left_bytes, .. } => {
                let count = self.inbox.unread().len().min(*left_bytes);
                self.inbox.consume(count);
                *left_bytes -= count;
                if *left_bytes == 0
                    && let Input::Refused { reply, .. } =
                        std::mem::replace(&mut self.input, Input::Requests)
                {
                    self.queue(reply, Charge::NONE);
                    return Ok(true);
                }
                Ok(count > 0)
            }
            Input::Requests => {
                let Some(request) = self.next_request()? else {
                    return Ok(false);
                };
                if !self.has_room() {
                    return Ok(false);
                }
                self.accept(request, cx)
            }
        }
    }

    /// The request whose header comes next, if all of that is there.
    fn next_request(&self) -> Result<Option<Request>, WireError> {
        let header = self.inbox.unread().get(..self.framing.request_bytes());
        header
            .map(|header| decode_request(header, self.framing))
            .transpose()
    }

    /// Takes a header off the inbox.
    fn consume_header(&mut self) {
        self.inbox.consume(self.framing.request_bytes());
    }

    /// Takes a request off the inbox, unless it has to wait for memory.
    fn accept(
        &mut self,
        request: Request,
        cx: &mut Context<'_>,
    ) -> Result<bool, TransmissionError> {
        let charge = match Command::from_u16(request.command) {
            Some(Command::Disconnect) => {
                self.input = Input::Ended;
                self.end = Some(End::Disconnected);
                return Ok(true);
            }
            _ if request.has_payload => return self.accept_payload(request, cx),
            Some(Command::Read | Command::Cache) => {
                match u32::try_from(request.length_bytes) {
                    Ok(length_bytes) if length_bytes <= MAX_REQUEST_BYTES => {
                        self.poll_charge(length_bytes, cx)
                    }
                    // Refused.
                    _ => self.poll_charge(0, cx),
                }
            }
            Some(Command::BlockStatus) => self.poll_charge_extents(cx),
            // All other requests hold little, or are refused.
            _ => self.poll_charge(0, cx),
        };
        let Poll::Ready(charge) = charge else {
            return Ok(false);
        };
        self.in_flight += 1;
        self.consume_header();
        let checked = self.rules.check(&request);
        self.start(request, checked, Bytes::new(), charge, cx);
        Ok(true)
    }

    /// Charges a request for a payload of this many bytes, sent or returned.
    fn poll_charge(&mut self, payload_bytes: u32, cx: &mut Context<'_>) -> Poll<Charge> {
        let (bytes, own_bytes) = (charge_bytes(payload_bytes), own_bytes(payload_bytes));
        self.account.poll_charge(bytes, own_bytes, cx)
    }

    /// Charges a request for extents.
    fn poll_charge_extents(&mut self, cx: &mut Context<'_>) -> Poll<Charge> {
        let bytes = charge_extents(self.rules.contexts());
        self.account.poll_charge(bytes, bytes, cx)
    }

    /// Takes the header of a request with a payload off the inbox, unless it has to wait for
    /// memory, and of the payload what is there.
    fn accept_payload(
        &mut self,
        request: Request,
        cx: &mut Context<'_>,
    ) -> Result<bool, TransmissionError> {
        let length_bytes = request.payload_bytes();
        let length_bytes = match u32::try_from(length_bytes) {
            Ok(length_bytes) if length_bytes <= MAX_REQUEST_BYTES => length_bytes,
            _ => return Err(TransmissionError::PayloadTooLong { length_bytes }),
        };
        let question = match self.rules.check(&request) {
            Ok(question) => question,
            Err(refusal) => {
                self.in_flight += 1;
                self.consume_header();
                self.input = Input::Refused {
                    left_bytes: length_bytes as usize,
                    reply: Reply::to(&request, refusal),
                };
                return Ok(true);
            }
        };
        let charge = match Command::from_u16(request.command) {
            Some(Command::BlockStatus) => self.poll_charge_extents(cx),
            _ => self.poll_charge(length_bytes, cx),
        };
        let Poll::Ready(charge) = charge else {
            return Ok(false);
        };
        self.in_flight += 1;
        self.consume_header();
        let length_bytes = length_bytes as usize;
        match self.inbox.take_slice(length_bytes) {
            Some(payload) => self.start(request, Ok(question), payload, charge, cx),
            None => {
                let inbox = &mut self.inbox;
                let incoming = Incoming::new(request, question, length_bytes, charge, inbox);
                self.input = Input::Payload(incoming);
            }
        }
        Ok(true)
    }

    /// Starts a request that was accepted.
    fn start(
        &mut self,
        request: Request,
        checked: Result<Question, Refusal>,
        mut payload: Bytes,
        charge: Charge,
        cx: &mut Context<'_>,
    ) {
        if charge.is_reserve() && !payload.is_empty() {
            payload = Bytes::copy_from_slice(&payload);
        }
        let future = (self.execute)(request, checked, payload);
        if let Poll::Ready((reply, charge)) = self.running.start(future, charge, cx) {
            self.queue(reply, charge);
        }
    }

    fn queue(&mut self, mut reply: Reply, charge: Charge) {
        if let Body::Error {
            code: code @ (ErrorCode::Io | ErrorCode::NoSpace),
            offset,
            message,
        } = &reply.body
        {
            self.failures = self.failures.saturating_add(1);
            let export = self.export;
            if self.failures <= MAX_LOGGED_FAILURES {
                warn!(export, offset, ?code, "answer with an error: {message}");
            } else {
                debug!(export, offset, ?code, "answer with an error: {message}");
            }
        }
        if charge.is_reserve() {
            reply.keep_own();
        }
        let freed = self.outbox.push(reply, charge);
        self.account.release(freed);
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, TransmissionError> {
        if self.outbox.is_empty() {
            return Ok(false);
        }
        let Poll::Ready(written) = self.outbox.poll_write(self.stream, cx)? else {
            // The duration is unknown.
            let freed = self.outbox.detach();
            self.account.release(freed);
            return Ok(false);
        };
        self.is_unflushed = true;
        self.in_flight -= written.replies;
        self.account.release(written.freed);
        self.reply_stall.note(written.bytes, self.outbox.is_empty());
        Ok(true)
    }

    /// Flushes what was written: TLS may hold some of it back.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<(), TransmissionError> {
        if self.is_unflushed && Pin::new(&mut *self.stream).poll_flush(cx)?.is_ready() {
            self.is_unflushed = false;
        }
        Ok(())
    }

    /// Reads more if the inbox has too little, and if more could be used.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, TransmissionError> {
        let has_room = self.has_room();
        let unread = self.inbox.unread().len();
        let filled = match &mut self.input {
            Input::Requests if unread < self.framing.request_bytes() && has_room => {
                if self.inbox.would_read_ahead() && !self.account.may_read_ahead() {
                    self.inbox.read_little();
                }
                self.inbox.poll_fill(self.stream, cx)?
            }
            Input::Refused { .. } if unread == 0 => self.inbox.poll_fill(self.stream, cx)?,
            Input::Payload(incoming) if !incoming.is_complete() => {
                let filled = incoming.poll_fill(self.stream, cx)?;
                if let Poll::Ready(count) = filled {
                    self.payload_stall.note(count, incoming.is_complete());
                }
                filled
            }
            _ => return Ok(false),
        };
        match filled {
            Poll::Pending => {
                if self.in_flight == 0 && self.inbox.unread().is_empty() {
                    self.inbox.rest();
                    self.account.stop_reading_ahead();
                }
                Ok(false)
            }
            Poll::Ready(0) if unread == 0 && matches!(self.input, Input::Requests) => {
                self.input = Input::Ended;
                self.end = Some(End::Closed);
                Ok(true)
            }
            Poll::Ready(0) => Err(TransmissionError::TornRequest),
            Poll::Ready(_) => Ok(true),
        }
    }

    /// An error if the client has stalled while others wait for its memory.
    fn check_stalls(&mut self, cx: &mut Context<'_>) -> Result<(), TransmissionError> {
        let contended = || self.account.is_contended();
        let held_bytes = self.outbox.shared_bytes();
        if self.reply_stall.poll(cx, held_bytes, contended) {
            return Err(TransmissionError::Stalled { held_bytes });
        }
        let held_bytes = match &self.input {
            Input::Payload(incoming) => incoming.charge.shared_bytes().into(),
            _ => 0,
        };
        if self.payload_stall.poll(cx, held_bytes, contended) {
            return Err(TransmissionError::PayloadStalled { held_bytes });
        }
        Ok(())
    }

    /// Takes no more requests. Requests that have arrived and were not started get no answer: the
    /// client sends them again to the next daemon. The protocol has an error for this, but QEMU and
    /// the kernel pass it on to the process that waits for the request, so that every restart would
    /// cause an I/O error in a guest.
    fn stop(&mut self) {
        let input = std::mem::replace(&mut self.input, Input::Ended);
        if let Input::Payload(incoming) = input {
            self.in_flight -= 1;
            self.account.release(incoming.charge);
        }
        self.end = Some(End::Stopped);
    }
}
