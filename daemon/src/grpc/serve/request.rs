//! Receiving a request.
//!
//! Invariants: no byte of a message that is longer than a few KiB is taken before there is room for
//! all of it, over all connections. Flow control bounds the bytes that wait. A message is passed on
//! only when its decoded size is known and has room. A method that takes one message keeps its room
//! until it has answered, and gets no second message.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use h2::RecvStream;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};
use tonic::Status;

use super::{methods::Method, scan::Scan};
use crate::{
    grpc::failure::Failure,
    limits,
    resources::shares::{Busy, GaveWay, Hold, Holder, Shares},
};

/// Bytes of the prefix of a message: a compression flag, and the length of the message.
const PREFIX_BYTES: usize = 5;

/// The room of the last received message. The call holds it as well: the message outlives the
/// stream on which it arrived.
pub(super) type Room = Arc<Mutex<Option<Hold>>>;

/// The place of a stream of requests, once it has one. The place moves as the request arrives.
#[derive(Debug, Clone, Default)]
pub(in crate::grpc) struct Arrives(Arc<Mutex<Option<Arc<Hold>>>>);

impl Arrives {
    /// From now on, moves this place with every byte that arrives. The place is excused while there
    /// is no room for more.
    pub(in crate::grpc) fn moves(&self, hold: &Arc<Hold>) {
        *self.0.lock() = Some(Arc::clone(hold));
    }

    fn with(&self, tell: impl FnOnce(&Hold)) {
        if let Some(hold) = &*self.0.lock() {
            tell(hold);
        }
    }
}

/// The body of a request.
pub(super) struct RequestBody {
    stream: RecvStream,
    method: Method,
    holder: Holder,
    room_of_all: Shares,
    room: Room,
    arrives: Arrives,
    /// Bytes that have arrived and are not taken yet.
    arrived: Bytes,
    at: At,
    /// Deadline of the message that is arriving; none between messages.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Bytes received before they were needed. They are copied into one piece, because a slice of
    /// any length keeps a whole frame alive.
    received: BytesMut,
}

/// The position in a request.
enum At {
    /// Before or in the prefix of a message.
    Prefix {
        bytes: [u8; PREFIX_BYTES],
        have: usize,
    },
    /// Before a message for which there is no room yet.
    Waiting {
        prefix: [u8; PREFIX_BYTES],
        length: usize,
        room: BoxFuture<'static, Result<Hold, Busy>>,
    },
    /// In a message.
    Message {
        left: usize,
        scan: Scan,
        /// Bytes of room that the message has.
        room_bytes: u64,
        gives_way: Option<BoxFuture<'static, GaveWay>>,
    },
    /// After the only message that is allowed.
    End,
    /// The request is over: nothing more is passed on.
    Over,
}

const START: At = At::Prefix {
    bytes: [0; PREFIX_BYTES],
    have: 0,
};

impl RequestBody {
    pub(super) fn new(
        stream: RecvStream,
        method: Method,
        holder: Holder,
        room_of_all: Shares,
        room: Room,
        arrives: Arrives,
    ) -> Self {
        Self {
            stream,
            method,
            holder,
            room_of_all,
            room,
            arrives,
            arrived: Bytes::new(),
            at: START,
            deadline: Some(Box::pin(sleep(limits::REQUEST_WITHIN))),
            received: BytesMut::new(),
        }
    }

    /// Receives all of it, to be passed on when it is asked for.
    pub(super) async fn receive(&mut self) -> Result<(), Status> {
        while let Some(part) = poll_fn(|context| self.poll_receive(context)).await {
            self.received.extend_from_slice(&part?);
        }
        Ok(())
    }

    /// The next part of the request; an error if it does not come in time.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let polled = match self.poll_on(context) {
            Poll::Ready(passed) => Poll::Ready(passed),
            Poll::Pending => match &mut self.deadline {
                Some(deadline) => deadline.as_mut().poll(context).map(|()| {
                    Some(Err(Status::deadline_exceeded(
                        "the request did not arrive in time",
                    )))
                }),
                None => Poll::Pending,
            },
        };
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            self.at = At::Over;
        }
        polled
    }

    /// Waits for more data if everything that has arrived was taken. Returns true if there is more.
    fn poll_arrived(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Status>> {
        while self.arrived.is_empty() {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(bytes)) => self.arrived = bytes,
                // The peer has reset the stream, or the connection is lost.
                Some(Err(error)) => return Poll::Ready(Err(Status::cancelled(error.to_string()))),
                None => return Poll::Ready(Ok(false)),
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Takes up to `most` of the bytes that have arrived, and lets the peer send as many again.
    fn take(&mut self, most: usize) -> Bytes {
        let taken = self.arrived.split_to(most.min(self.arrived.len()));
        // This fails for a stream that is over.
        let _ = self.stream.flow_control().release_capacity(taken.len());
        taken
    }

    fn poll_on(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match &mut self.at {
                At::Over => return Poll::Ready(None),
                At::Prefix { have, .. } => {
                    let have = *have;
                    if !ready!(self.poll_arrived(context))? {
                        self.at = At::Over;
                        if have > 0 {
                            return Poll::Ready(Some(Err(cut_short())));
                        }
                        return Poll::Ready(None);
                    }
                    let mut taken = self.take(PREFIX_BYTES - have);
                    let At::Prefix { bytes, have } = &mut self.at else {
                        continue;
                    };
                    let end = *have + taken.len();
                    if let Some(place) = bytes.get_mut(*have..end) {
                        taken.copy_to_slice(place);
                    }
                    *have = end;
                    if end == PREFIX_BYTES {
                        let prefix = *bytes;
                        self.begin(prefix)?;
                    }
                }
                At::Waiting {
                    prefix,
                    length,
                    room,
                } => {
                    let room = ready!(room.as_mut().poll(context)).map_err(Failure::from);
                    let room = room.map_err(|failure| Status::from(&failure))?;
                    let (prefix, length) = (*prefix, *length);
                    return Poll::Ready(Some(Ok(self.enter(prefix, length, Some(room)))));
                }
                At::Message { left: 0, .. } => {
                    if self.method.takes_many {
                        // The method bounds the wait for its next message.
                        self.deadline = None;
                        self.at = START;
                    } else {
                        self.at = At::End;
                    }
                }
                At::End => {
                    // A second message would take over the room of the first, which stays in memory
                    // until it is answered.
                    if ready!(self.poll_arrived(context))? {
                        return Poll::Ready(Some(Err(one_too_many())));
                    }
                    self.at = At::Over;
                }
                At::Message { gives_way, .. } => {
                    if let Some(gives_way) = gives_way
                        && let Poll::Ready(gave_way) = gives_way.as_mut().poll(context)
                    {
                        let status = Status::from(&Failure::from(gave_way));
                        return Poll::Ready(Some(Err(status)));
                    }
                    if !ready!(self.poll_arrived(context))? {
                        return Poll::Ready(Some(Err(cut_short())));
                    }
                    return Poll::Ready(Some(self.pass_on()));
                }
            }
        }
    }

    /// Begins to receive the message of a prefix: waits for room.
    fn begin(&mut self, prefix: [u8; PREFIX_BYTES]) -> Result<(), Status> {
        let [_, length @ ..] = prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let most = self.method.request_bytes;
        if length > most {
            return Err(Status::out_of_range(format!(
                "a message of {length} bytes is too large: the method takes at most {most}"
            )));
        }
        // The method that asks for this message has the one before, and accounts for it.
        *self.room.lock() = None;
        let (room_of_all, holder) = (self.room_of_all.clone(), self.holder);
        let bytes = self.method.held_per_byte * length as u64;
        // From here the request waits for room, not for the peer. That wait has a limit of its own.
        self.deadline = None;
        self.arrives.with(|hold| hold.settle(true));
        self.at = At::Waiting {
            prefix,
            length,
            room: if length <= limits::REQUEST_BYTES_FREE {
                // Take no bytes of the sum: large requests must not block small ones.
                Box::pin(async move { room_of_all.take(holder, 0, Duration::ZERO).await })
            } else {
                Box::pin(async move { room_of_all.take(holder, bytes, limits::BUSY_WITHIN).await })
            },
        };
        Ok(())
    }

    /// Begins to pass on a message that has room. Returns its prefix.
    fn enter(&mut self, prefix: [u8; PREFIX_BYTES], length: usize, room: Option<Hold>) -> Bytes {
        let within = limits::REQUEST_WITHIN
            + Duration::from_secs(length as u64 / limits::REQUEST_BYTES_PER_SECOND);
        self.deadline = Some(Box::pin(sleep(within)));
        self.arrives.with(|hold| hold.settle(false));
        let gives_way = room.as_ref().map(|room| Box::pin(room.gives_way()) as _);
        *self.room.lock() = room;
        self.at = At::Message {
            left: length,
            scan: Scan::new(length as u64, self.method.lists_in),
            room_bytes: self.method.held_per_byte * length as u64,
            gives_way,
        };
        Bytes::copy_from_slice(&prefix)
    }

    /// The next part of a message, if there is room for its decoded size so far.
    fn pass_on(&mut self) -> Result<Bytes, Status> {
        let At::Message { left, .. } = &self.at else {
            return Ok(Bytes::new());
        };
        let taken = self.take(*left);
        self.arrives.with(|hold| hold.moved(taken.len() as u64));
        let At::Message {
            left,
            scan,
            room_bytes,
            ..
        } = &mut self.at
        else {
            return Ok(taken);
        };
        scan.pass(&taken).map_err(|error| malformed(&error))?;
        *left -= taken.len();
        let fields = scan.fields();
        if fields > limits::REQUEST_FIELDS_MAX {
            return Err(Status::out_of_range(format!(
                "a message of more than {} fields",
                limits::REQUEST_FIELDS_MAX
            )));
        }
        let is_whole = *left == 0;
        if is_whole {
            scan.end().map_err(|error| malformed(&error))?;
        }
        if let Some(room) = &*self.room.lock() {
            let decoded = fields * limits::REQUEST_FIELD_BYTES;
            let free = limits::REQUEST_BYTES_FREE as u64;
            if decoded > (*room_bytes).max(free) {
                let more = decoded - *room_bytes;
                let grown = room.grow(more).map_err(Failure::from);
                grown.map_err(|failure| Status::from(&failure))?;
                *room_bytes = decoded;
            }
            room.moved(taken.len() as u64);
            if is_whole {
                // From here on the daemon decides about the call.
                room.settle(true);
            }
        }
        Ok(taken)
    }
}

fn one_too_many() -> Status {
    Status::invalid_argument("the method takes one message, and more follow")
}

fn cut_short() -> Status {
    Status::invalid_argument("the request ends within a message")
}

fn malformed(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(format!(
        "the request is not a message of the protocol: {error}"
    ))
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.received.is_empty() {
            let received = std::mem::take(&mut self.received).freeze();
            return Poll::Ready(Some(Ok(Frame::data(received))));
        }
        let part = ready!(self.poll_receive(context));
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        // An empty request lacks its message: the decoder says so.
        false
    }
}
