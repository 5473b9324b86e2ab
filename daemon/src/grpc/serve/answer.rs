//! Sending an answer.
//!
//! Invariants: the connection gets only what the peer's windows allow, and an answer holds its room
//! until the last byte has gone to the socket. A peer that takes nothing loses its answer, with a
//! status that says so, the sooner the more memory the answer holds.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use h2::{SendStream, server::SendResponse};
use http::{HeaderMap, Response};
use http_body::Body as _;
use tokio::{sync::Notify, time::Instant};
use tonic::{Status, body::Body};

use crate::{
    grpc::failure::Failure,
    limits,
    resources::shares::{Hold, Holder, Shares},
};

/// The place of an answer that is a stream: it moves as messages go out.
#[derive(Debug, Clone)]
pub(in crate::grpc) struct Place(pub(in crate::grpc) Arc<Hold>);

/// The caller has gone away.
#[derive(Debug)]
pub(super) struct Gone;

impl From<h2::Error> for Gone {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// Answers with a status and nothing else.
pub(super) fn refuse(respond: &mut SendResponse<Bytes>, status: Status) -> Result<(), Gone> {
    respond.send_response(status.into_http(), true)?;
    Ok(())
}

/// An answer under way.
pub(super) struct Answer {
    stream: SendStream<Bytes>,
    place: Option<Place>,
    all: Shares,
    holder: Holder,
    on_way: Arc<OnWay>,
    pace: Pace,
}

/// Bytes that were handed to the connection and have not reached the socket.
#[derive(Debug, Default)]
struct OnWay {
    messages: AtomicUsize,
    less: Notify,
}

/// Bytes that count as on their way until this is dropped.
struct Tracked {
    bytes: Bytes,
    on_way: Arc<OnWay>,
}

impl Tracked {
    fn new(bytes: Bytes, on_way: &Arc<OnWay>) -> Self {
        on_way.messages.fetch_add(1, Ordering::Relaxed);
        Self {
            bytes,
            on_way: Arc::clone(on_way),
        }
    }
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.on_way.messages.fetch_sub(1, Ordering::Release);
        self.on_way.less.notify_one();
    }
}

/// The rate at which a peer takes an answer.
#[derive(Debug)]
struct Pace {
    /// The time up to which the peer has kept pace: bytes that it takes move it on.
    taken: Instant,
}

impl Pace {
    fn took(&mut self, bytes: usize) {
        let time = bytes as u64 * 1_000_000 / limits::ANSWER_BYTES_PER_SECOND;
        let now = Instant::now();
        self.taken = (self.taken + Duration::from_micros(time)).min(now);
    }
}

/// Time that a peer may take nothing of an answer that holds `held_bytes`.
fn stall(held_bytes: usize) -> Duration {
    let mebibytes = u32::try_from(held_bytes >> 20).unwrap_or(u32::MAX);
    limits::ANSWER_STALL / mebibytes.saturating_add(1)
}

/// The reason why a wait for the peer ended.
enum Wait<T> {
    Done(T),
    /// The wait ends the answer with this status.
    Ended(Status),
}

impl Answer {
    /// Sends a whole answer, and returns when it has gone out. A long answer without room takes it
    /// from `all`.
    pub(super) async fn send(
        respond: &mut SendResponse<Bytes>,
        response: Response<Body>,
        room: Option<Hold>,
        (all, holder): (&Shares, Holder),
        deadline: impl Future<Output = Status>,
    ) -> Result<(), Gone> {
        let (parts, mut body) = response.into_parts();
        let place = parts.extensions.get::<Place>().cloned();
        let place = place.or(room.map(|room| Place(Arc::new(room))));
        let head = Response::from_parts(parts, ());
        if body.is_end_stream() {
            respond.send_response(head, true)?;
            return Ok(());
        }
        let mut answer = Self {
            stream: respond.send_response(head, false)?,
            place,
            all: all.clone(),
            holder,
            on_way: Arc::default(),
            pace: Pace {
                taken: Instant::now(),
            },
        };
        // Fused, because it is polled again after it has passed.
        let mut deadline = pin!(deadline.fuse());
        let ended = tokio::select! {
            biased;
            sent = answer.send_all(&mut body) => sent?,
            status = &mut deadline => Some(status),
        };
        // Ends the producer of the answer.
        drop(body);
        if let Some(status) = ended {
            answer.stream.send_trailers(trailers(status))?;
        }
        let has_gone_out = tokio::select! {
            biased;
            gone_out = answer.gone_out() => gone_out?,
            _ = &mut deadline => false,
        };
        if !has_gone_out {
            // Reset the stream: the connection keeps nothing for a peer that takes nothing.
            answer.stream.send_reset(h2::Reason::CANCEL);
        }
        Ok(())
    }

    /// Sends the body. Returns the status to end with, unless the body has sent one.
    async fn send_all(&mut self, body: &mut Body) -> Result<Option<Status>, Gone> {
        loop {
            if let Some(Place(hold)) = &self.place {
                // From here the answer waits for the daemon, not for the peer.
                hold.settle(true);
            }
            let frame = poll_fn(|context| {
                if self.stream.poll_reset(context).is_ready() {
                    return std::task::Poll::Ready(Err(Gone));
                }
                Pin::new(&mut *body).poll_frame(context).map(Ok)
            });
            let frame = match frame.await? {
                None => return Ok(Some(Status::internal("the answer has no end"))),
                Some(Err(status)) => return Ok(Some(status)),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    if let Some(status) = self.send_data(data).await? {
                        return Ok(Some(status));
                    }
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.stream.send_trailers(trailers)?;
                    return Ok(None);
                }
            }
        }
    }

    async fn send_data(&mut self, bytes: Bytes) -> Result<Option<Status>, Gone> {
        if self.place.is_none() && bytes.len() > limits::ANSWER_BYTES_FREE {
            let room = self
                .all
                .take(self.holder, bytes.len() as u64, limits::BUSY_WITHIN);
            match room.await {
                Ok(room) => self.place = Some(Place(Arc::new(room))),
                // The call has done its work, so nobody may be told to try it again.
                Err(_) => {
                    return Ok(Some(Status::from(&Failure::Unanswered {
                        bytes: bytes.len(),
                    })));
                }
            }
        }
        if let Some(Place(hold)) = &self.place {
            hold.settle(false);
        }
        self.pace.taken = Instant::now();
        let mut left = Bytes::from_owner(Tracked::new(bytes, &self.on_way));
        while !left.is_empty() {
            let wanted = left.len().min(limits::ANSWER_PIECE_BYTES);
            self.stream.reserve_capacity(wanted);
            let capacity = match self.capacity(left.len()).await? {
                Wait::Done(capacity) => capacity.min(wanted),
                Wait::Ended(status) => return Ok(Some(status)),
            };
            self.stream.send_data(left.split_to(capacity), false)?;
            self.pace.took(capacity);
            if let Some(Place(hold)) = &self.place {
                hold.moved(capacity as u64);
            }
        }
        Ok(None)
    }

    /// Bytes that the peer can take now.
    async fn capacity(&mut self, held_bytes: usize) -> Result<Wait<usize>, Gone> {
        let capacity = self.stream.capacity();
        if capacity > 0 {
            return Ok(Wait::Done(capacity));
        }
        let place = self.place.clone();
        let stall = stall(held_bytes);
        tokio::select! {
            biased;
            capacity = poll_fn(|context| self.stream.poll_capacity(context)) => {
                Ok(Wait::Done(capacity.ok_or(Gone)??))
            }
            status = ended(place, self.pace.taken + stall, stall) => Ok(Wait::Ended(status)),
        }
    }

    /// Waits until the last byte has gone out. Returns true if it has.
    async fn gone_out(&mut self) -> Result<bool, Gone> {
        if let Some(Place(hold)) = &self.place {
            hold.settle(false);
        }
        let stall = stall(limits::SEND_BUFFER_BYTES);
        let on_way = Arc::clone(&self.on_way);
        let nothing_left = async {
            while on_way.messages.load(Ordering::Acquire) > 0 {
                on_way.less.notified().await;
            }
        };
        tokio::select! {
            biased;
            () = nothing_left => Ok(true),
            _ = poll_fn(|context| self.stream.poll_reset(context)) => Err(Gone),
            _ = ended(self.place.clone(), Instant::now() + stall, stall) => Ok(false),
        }
    }
}

/// Waits until a peer has taken nothing for too long.
async fn ended(place: Option<Place>, until: Instant, stall: Duration) -> Status {
    let gives_way = async {
        match place {
            Some(Place(hold)) => hold.gives_way().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        gave_way = gives_way => Status::from(&Failure::from(gave_way)),
        () = tokio::time::sleep_until(until) => Status::from(&Failure::Untaken {
            seconds: stall.as_secs(),
        }),
    }
}

/// A status behind an answer that has begun.
pub(super) fn trailers(status: Status) -> HeaderMap {
    let mut trailers = status.into_http::<()>().into_parts().0.headers;
    trailers.remove(http::header::CONTENT_TYPE);
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_is_held_the_shorter_is_the_wait() {
        assert_eq!(stall(0), Duration::from_mins(10));
        assert_eq!(stall(1 << 20), Duration::from_mins(5));
        assert_eq!(stall(4 << 20), Duration::from_mins(2));
    }
}
