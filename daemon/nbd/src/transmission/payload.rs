//! A payload that did not arrive together with its request's header.

use std::io;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncRead;

use super::execute::Question;
use crate::budget::Charge;
use crate::inbox::{Inbox, poll_read};
use crate::wire::Request;

/// A request that is charged for and waits for the rest of its payload, which is read from the
/// socket straight to where it stays.
pub(super) struct Incoming {
    pub(super) request: Request,
    pub(super) question: Question,
    pub(super) charge: Charge,
    length_bytes: usize,
    payload: BytesMut,
}

impl Incoming {
    /// Begins with what is in the inbox behind the request's header, which is less than all.
    pub(super) fn new(
        request: Request,
        question: Question,
        length_bytes: usize,
        charge: Charge,
        inbox: &mut Inbox,
    ) -> Self {
        Self {
            request,
            question,
            charge,
            length_bytes,
            payload: inbox.take_start(length_bytes),
        }
    }

    fn missing_bytes(&self) -> usize {
        self.length_bytes - self.payload.len()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing_bytes() == 0
    }

    /// Reads more of it, and nothing behind it; zero bytes is the end of the stream.
    pub(super) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let missing_bytes = self.missing_bytes();
        poll_read(stream, &mut (&mut self.payload).limit(missing_bytes), cx)
    }

    pub(super) fn into_payload(self) -> Bytes {
        assert!(
            self.is_complete(),
            "no request starts with half its payload"
        );
        self.payload.freeze()
    }
}
