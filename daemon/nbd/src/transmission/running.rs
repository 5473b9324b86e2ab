//! Requests that are being carried out.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{FuturesUnordered, StreamExt};

use super::outbox::Reply;
use crate::budget::Charge;

/// Requests under way, in no order.
pub(super) struct Requests<F> {
    /// One more future, which never completes. If all futures of a `FuturesUnordered` are polled in
    /// a row and none is done, it wakes its own task, to be fair to others; and Tokio wakes another
    /// thread for a task that is woken while it runs. So each batch of writes moved the connection
    /// between threads, which took a third of the throughput. With this future, not all are ever
    /// polled.
    all: FuturesUnordered<Running<F>>,
}

/// A request, and what it was charged.
struct Running<F> {
    /// `None`: the future that never completes.
    future: Option<Pin<Box<F>>>,
    charge: Charge,
}

impl<F: Future<Output = Reply>> Requests<F> {
    pub(super) fn new() -> Self {
        let never = Running {
            future: None,
            charge: Charge::NONE,
        };
        Self {
            all: FuturesUnordered::from_iter([never]),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.len() <= 1
    }

    /// Starts a request. A request that is answered at once is never among those under way, and
    /// wakes nobody.
    pub(super) fn start(
        &mut self,
        future: F,
        charge: Charge,
        cx: &mut Context<'_>,
    ) -> Poll<(Reply, Charge)> {
        let mut request = Running {
            future: Some(Box::pin(future)),
            charge,
        };
        let outcome = Pin::new(&mut request).poll(cx);
        if outcome.is_pending() {
            self.all.push(request);
        }
        outcome
    }

    /// A request that has been answered, and what it was charged.
    pub(super) fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<(Reply, Charge)> {
        match self.all.poll_next_unpin(cx) {
            Poll::Ready(Some(finished)) => Poll::Ready(finished),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<F: Future<Output = Reply>> Future for Running<F> {
    type Output = (Reply, Charge);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let charge = self.charge;
        match &mut self.future {
            Some(future) => future.as_mut().poll(cx).map(|reply| (reply, charge)),
            None => Poll::Pending,
        }
    }
}
