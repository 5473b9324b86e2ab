//! Serving of connections and their calls: HTTP/2, with bounds on all resources that a peer can
//! take.
//!
//! ```text
//! connection ──> call ──> request: messages, each with room before it is taken in
//!                  │  ──> scan: how large a message becomes when it is decoded
//!                  │  ──> methods: what a call may take
//!                  └──> service ──> answer: as fast as the peer takes it, or ended
//! ```
//!
//! Invariants: calls, the bytes of requests, the bytes of long answers and the windows of
//! connections are bounded over all connections. A part of each is for peers on this machine only.
//! Each connection always has one call, and a small request always has room, so that large ones do
//! not block the calls that manage the daemon. A call has a deadline unless it is a stream; a
//! stream runs for as long as its peer continues.

mod answer;
mod heard;
mod methods;
mod request;
mod scan;
#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::{HeaderMap, Request, header::AUTHORIZATION};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, codegen::Service as _, service::Routes};
use tracing::debug;

pub(super) use self::{answer::Place, request::Arrives};
use self::{
    answer::{Answer, Gone, refuse},
    heard::{Heard, HeardAt, Life},
    methods::Method,
    request::RequestBody,
};
use super::failure::Failure;
use crate::{
    auth::{Caller, Door, Face, Failures, TokenError},
    limits,
    net::{peer::Peer, seats::Seat, tls::Shown},
    resources::shares::{Hold, Holder, Rules, Shares},
    service::Error,
    tasks::Tasks,
};

/// The state that all connections share.
#[derive(Debug, Clone)]
pub struct Serving(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    routes: Routes,
    tasks: Tasks,
    door: Door,
    /// Wrong tokens by source.
    failures: Failures,
    calls: Shares,
    requests: Shares,
    answers: Shares,
    windows: Arc<AtomicU32>,
}

/// One connection's part of the shared receive windows.
#[derive(Debug)]
struct Window {
    bytes: u32,
    free: Arc<AtomicU32>,
}

impl Window {
    fn of(free: &Arc<AtomicU32>) -> Self {
        let part = |free: u32| free / limits::WINDOW_PART;
        let taken = free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
            free.checked_sub(part(free))
        });
        Self {
            bytes: taken.map_or(0, part),
            free: Arc::clone(free),
        }
    }

    fn connection(&self) -> u32 {
        limits::WINDOW_BYTES_MIN + self.bytes
    }

    /// Less than the window of the connection, so that a stream that waits for room leaves a part
    /// of it.
    fn stream(&self) -> u32 {
        self.connection() / 2
    }

    fn frame(&self) -> u32 {
        (self.bytes / 4).clamp(16 << 10, limits::FRAME_BYTES_MAX)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.free.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Serving {
    /// Serves these routes.
    #[must_use]
    pub(crate) fn new(routes: Routes, tasks: Tasks, door: Door) -> Self {
        let bytes = |what, total, local, yields_after, pace| {
            Shares::new(Rules {
                what,
                total,
                local,
                of_one: total,
                // Connections of their own would give an account all of it.
                of_account: total / 4,
                waiting: limits::WAITING_MAX,
                yields_after,
                pace,
            })
        };
        Self(Arc::new(Shared {
            routes: routes.prepare(),
            tasks,
            door,
            failures: Failures::default(),
            calls: bytes(
                "calls",
                limits::CALLS_MAX,
                limits::CALLS_LOCAL,
                Duration::MAX,
                1,
            ),
            requests: bytes(
                "bytes of requests",
                limits::REQUEST_BYTES,
                limits::REQUEST_BYTES_LOCAL,
                limits::REQUEST_YIELDS_AFTER,
                limits::REQUEST_BYTES_PER_SECOND,
            ),
            answers: bytes(
                "bytes of answers",
                limits::ANSWER_BYTES,
                limits::ANSWER_BYTES_LOCAL,
                limits::ANSWER_YIELDS_AFTER,
                limits::ANSWER_BYTES_PER_SECOND,
            ),
            windows: Arc::new(AtomicU32::new(limits::WINDOW_BYTES)),
        }))
    }

    /// The receive window of a new connection.
    fn window(&self) -> Window {
        Window::of(&self.0.windows)
    }

    /// Serves one connection until it ends.
    ///
    /// While calls are under way on it, it keeps its seat.
    pub async fn serve<S>(
        &self,
        socket: S,
        seat: Option<Arc<Seat>>,
        (peer, tls): (Peer, Option<Shown>),
        stop: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let window = self.window();
        let is_tls = tls.is_some();
        let caller = Caller::new(Face::Grpc, peer);
        let connected = Connected {
            shared: Arc::clone(&self.0),
            is_tls,
            caller: match tls {
                Some(shown) => caller.over_tls(shown.subject),
                None => caller,
            },
            own: Arc::new(Semaphore::new(1)),
            seat,
            stop: stop.clone(),
            calls: Arc::default(),
        };
        let mut builder = Builder::new();
        builder
            .initial_window_size(window.stream())
            .initial_connection_window_size(window.connection())
            .max_frame_size(window.frame())
            .max_concurrent_streams(limits::CONNECTION_STREAMS_MAX)
            .max_header_list_size(limits::HEADER_BYTES_MAX)
            .max_send_buffer_size(limits::SEND_BUFFER_BYTES);
        let (socket, heard) = Heard::of(socket);
        let handshake = timeout(limits::HTTP2_HANDSHAKE_TIMEOUT, builder.handshake(socket));
        let connection = match stop.run_until_cancelled(handshake).await {
            Some(Ok(Ok(connection))) => connection,
            Some(Ok(Err(error))) => return debug!(%error, "a connection that is not HTTP/2"),
            Some(Err(_)) => return debug!("a connection on which nothing was said"),
            None => return,
        };
        connected.serve(connection, &heard, stop).await;
        drop(window);
    }
}

/// A connection that is served.
struct Connected {
    shared: Arc<Shared>,
    caller: Caller,
    /// The connection is encrypted.
    is_tls: bool,
    /// The one call that the connection has for itself.
    own: Arc<Semaphore>,
    seat: Option<Arc<Seat>>,
    stop: CancellationToken,
    /// Cloned once for each call that is under way.
    calls: Arc<()>,
}

impl Connected {
    async fn serve<S>(
        &self,
        mut connection: Connection<S, Bytes>,
        heard: &HeardAt,
        stop: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut life = Life::of(connection.ping_pong());
        let mut stopping = false;
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => self.start(request, respond),
                    Some(Err(error)) => return debug!(%error, "a connection has broken"),
                    None => return,
                },
                () = life.ended(heard) => return debug!("a connection gives no sign of life"),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.graceful_shutdown();
                }
                () = self.idle(), if stopping => {
                    return debug!("a connection is ended that its peer does not end");
                }
            }
        }
    }

    /// Returns when there has been no call for a while. The future may be dropped and called again.
    async fn idle(&self) {
        let mut is_idle = false;
        loop {
            tokio::time::sleep(limits::STOP_IDLE_GRACE / 2).await;
            let was_idle = mem::replace(&mut is_idle, Arc::strong_count(&self.calls) == 1);
            if was_idle && is_idle {
                return;
            }
        }
    }

    fn start(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (shared, caller) = (Arc::clone(&self.shared), self.caller.clone());
        let is_tls = self.is_tls;
        let busy = self.seat.as_ref().map(|seat| seat.begin());
        if let Some(None) = busy {
            // Another connection has this one's seat, and this one is about to be closed. It would
            // never answer a call that began now, so tell the peer that the call was not processed.
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        let own = Arc::clone(&self.own).try_acquire_owned().ok();
        let (stop, under_way) = (self.stop.clone(), Arc::clone(&self.calls));
        drop(self.shared.tasks.spawn("gRPC call", async move {
            // Before it has a place: the answer to a wrong token waits.
            let headers = request.headers();
            let caller = tokio::select! {
                acting = acting(&shared, caller, is_tls, headers) => acting,
                _ = poll_fn(|context| respond.poll_reset(context)) => return,
                () = stop.cancelled() => Err(Error::Stopping),
            };
            let caller = match caller {
                Ok(caller) => caller,
                Err(error) => {
                    let status = Status::from(Failure::from(error));
                    return drop(refuse(&mut respond, status));
                }
            };
            let holder = caller.clone().resolved(&shared.door.directory).holder();
            let place = match &own {
                Some(_) => None,
                None => match shared.calls.take(holder, 1, Duration::ZERO).await {
                    Ok(place) => Some(place),
                    Err(busy) => {
                        let status = Status::from(&Failure::from(busy));
                        return drop(refuse(&mut respond, status));
                    }
                },
            };
            // A caller that has gone away needs no answer.
            let _ = call(&shared, (caller, holder), request, &mut respond, &stop).await;
            drop((own, place, busy, under_way));
        }));
    }
}

/// Serves one call.
async fn call(
    shared: &Shared,
    (caller, holder): (Caller, Holder),
    mut request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    stop: &CancellationToken,
) -> Result<(), Gone> {
    let method = Method::of(request.uri().path());
    let within = [method.within, asked_timeout(request.headers())];
    let within = within.into_iter().flatten().min();
    let begun = Instant::now();
    let deadline = || async move {
        let late = async {
            match within.and_then(|within| begun.checked_add(within)) {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        // Ends before the task does, so that the caller gets a status.
        let stopped = async {
            stop.cancelled().await;
            tokio::time::sleep(limits::NBD_STOP_GRACE).await;
        };
        tokio::select! {
            () = late => Status::deadline_exceeded("the call exceeded its time limit"),
            () = stopped => Status::from(Failure::from(Error::Stopping)),
        }
    };
    request.extensions_mut().insert(caller);
    let arrives = Arrives::default();
    request.extensions_mut().insert(arrives.clone());
    let room = request::Room::default();
    let served = async {
        let mut request = request.map(|stream| {
            let all = shared.requests.clone();
            RequestBody::new(stream, method, holder, all, Arc::clone(&room), arrives)
        });
        let mut answer = None;
        if method.answer_bytes > 0 {
            // Receive first: a silent caller must not hold room that others wait for.
            request.body_mut().receive().await?;
            answer = Some(room_for_answer(shared, holder, method).await?);
        }
        match shared.routes.clone().call(request).await {
            Ok(response) => Ok((response, answer)),
            Err(never) => match never {},
        }
    };
    let outcome: Result<_, Status> = tokio::select! {
        biased;
        outcome = served => outcome,
        _ = poll_fn(|context| respond.poll_reset(context)) => return Err(Gone),
        status = deadline() => return refuse(respond, status),
    };
    // A stream of requests ends with its answer.
    *room.lock() = None;
    match outcome {
        Ok((response, answer)) => {
            let all = (&shared.answers, holder);
            Answer::send(respond, response, answer, all, deadline()).await
        }
        Err(status) => refuse(respond, status),
    }
}

/// The caller as it acts in a call: with the token of the call, if it has one.
async fn acting(
    shared: &Shared,
    caller: Caller,
    is_tls: bool,
    headers: &HeaderMap,
) -> Result<Caller, Error> {
    let directory = &shared.door.directory;
    let mut tokens = headers.get_all(AUTHORIZATION).iter();
    let Some(header) = tokens.next() else {
        return Ok(caller);
    };
    // Another scheme, or a second header, is a wrong token, too.
    let text = header.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let text = text.filter(|_| tokens.next().is_none());
    let checked = directory.check_token(caller.peer(), is_tls, text.unwrap_or_default());
    match checked {
        Ok(token) => Ok(caller.with_token(token)),
        Err(error) => {
            let delay = match error {
                TokenError::Invalid => shared.failures.count(caller.peer().key()),
                TokenError::Expired | TokenError::Plaintext => Duration::ZERO,
            };
            debug!(%caller, %error, ?delay, "a token is refused");
            shared.door.refuse_token(&caller, &error);
            tokio::time::sleep(delay).await;
            Err(error.into())
        }
    }
}

/// Takes the room for an answer before the answer is made: all of it is in memory before it is
/// sent.
async fn room_for_answer(shared: &Shared, holder: Holder, method: Method) -> Result<Hold, Status> {
    let room = shared
        .answers
        .take(holder, method.answer_bytes, limits::BUSY_WITHIN);
    let room = room.await.map_err(Failure::from);
    let room = room.map_err(|failure| Status::from(&failure))?;
    room.settle(true);
    Ok(room)
}

/// The time that the caller waits for the answer.
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = asked.split_at_checked(asked.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}
