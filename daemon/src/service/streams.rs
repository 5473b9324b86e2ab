//! Answers that are streams: a task makes the items, and the caller's face takes them.
//!
//! Invariants: no more than [`ITEMS_QUEUED`] items wait to be taken, the work ends when nobody
//! takes them any more, and the stream ends well only if the work did. A stream that is cut short
//! by a defect or by the end of the daemon ends with an error, never as if it were complete.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::sync::mpsc;

use super::error::{Error, Result};
use crate::{
    auth::{Attempt, Caller},
    limits::{self, ITEMS_QUEUED},
    resources::shares::{Hold, Rules, Shares},
    tasks::Tasks,
};

/// Starts the task that makes the items of a stream. The task takes over `attempt`, which ends with
/// the work; `tell` logs its success. The stream holds the place until its end, and gives it up if
/// its items do not go out while others wait for a place: see [`Items::place`].
pub(super) fn spawn<T, R, W>(
    tasks: &Tasks,
    attempt: Attempt,
    place: Option<Hold>,
    work: impl FnOnce(Outlet<T>) -> W,
    tell: impl FnOnce(&Attempt, &R) + Send + 'static,
) -> Items<T>
where
    T: Send + 'static,
    R: Send + 'static,
    W: Future<Output = Result<R>> + Send + 'static,
{
    let (sender, queue) = mpsc::channel(ITEMS_QUEUED);
    let name = attempt.name();
    let work = attempt
        .of_task()
        .carry_out(work(Outlet(sender.clone())), tell);
    // The task ends when nobody takes its items, or with the daemon; then its sender closes the
    // channel.
    drop(tasks.spawn(name, async move {
        let end = match work.await {
            Ok(_) => Queued::End,
            Err(error) => Queued::Failed(error),
        };
        // A caller that has gone away needs no end.
        let _ = sender.send(end).await;
    }));
    Items {
        queue: Some(queue),
        place: place.map(Arc::new),
    }
}

/// Places for `total` streams of one kind.
pub(super) fn places(what: &'static str, total: usize) -> Shares {
    let total = total as u64;
    Shares::new(Rules {
        what,
        total,
        local: total / 4,
        of_one: total,
        of_account: total,
        waiting: limits::WAITING_MAX,
        yields_after: limits::PLACE_YIELDS_AFTER,
        pace: limits::ANSWER_BYTES_PER_SECOND,
    })
}

/// Takes a place as soon as one is free. The stream need not move until it has items to send.
pub(super) async fn place(places: &Shares, caller: &Caller) -> Result<Hold> {
    let place = places.take(caller.holder(), 1, limits::PLACE_WITHIN);
    let place = place.await?;
    place.settle(true);
    Ok(place)
}

enum Queued<T> {
    Item(T),
    End,
    Failed(Error),
}

/// The sending end of a stream.
pub(super) struct Outlet<T>(mpsc::Sender<Queued<T>>);

impl<T> Outlet<T> {
    /// Waits until nobody takes items any more.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends one item; waits while the queue is full.
    pub(super) async fn send(&self, item: T) -> Result<()> {
        self.0
            .send(Queued::Item(item))
            .await
            .map_err(|_| Error::CallerGone)
    }
}

/// A stream of items that a task makes.
pub(crate) struct Items<T> {
    queue: Option<mpsc::Receiver<Queued<T>>>,
    place: Option<Arc<Hold>>,
}

impl<T> Items<T> {
    /// The place of the stream among its kind. A face reports to it the bytes that have gone out to
    /// the caller.
    pub(crate) fn place(&self) -> Option<Arc<Hold>> {
        self.place.clone()
    }
}

impl<T> Stream for Items<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(queue) = &mut self.queue else {
            return Poll::Ready(None);
        };
        let last = match std::task::ready!(queue.poll_recv(context)) {
            Some(Queued::Item(item)) => return Poll::Ready(Some(Ok(item))),
            Some(Queued::End) => None,
            Some(Queued::Failed(error)) => Some(Err(error)),
            // The sender was dropped without an end: the task panicked or was ended.
            None => Some(Err(Error::CutShort)),
        };
        self.queue = None;
        Poll::Ready(last)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::time::Duration;

    use futures::StreamExt;

    use super::*;

    use crate::{
        auth::{Action, Door, Face},
        error::{Classified as _, ErrorKind},
        net::peer::Peer,
    };

    fn stream<W>(tasks: &Tasks, action: Action, work: impl FnOnce(Outlet<u32>) -> W) -> Items<u32>
    where
        W: Future<Output = Result<()>> + Send + 'static,
    {
        let caller = Caller::new(Face::Grpc, Peer::Given);
        let attempt = Attempt::begin(&Door::alone(), &caller, action, &[]).unwrap();
        spawn(tasks, attempt, None, work, |attempt, ()| attempt.served())
    }

    async fn collect(items: Items<u32>) -> Vec<Result<u32, ErrorKind>> {
        items
            .map(|item| item.map_err(|error| error.kind()))
            .collect()
            .await
    }

    #[tokio::test]
    async fn messages_arrive_in_order_and_the_stream_ends() {
        let tasks = Tasks::new();
        let answers = stream(&tasks, Action::Download, |items| async move {
            for number in 0..10 {
                items.send(number).await?;
            }
            Ok(())
        });
        assert_eq!(collect(answers).await, (0..10).map(Ok).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_failure_is_the_last_thing_heard() {
        let tasks = Tasks::new();
        let answers = stream(&tasks, Action::Download, |items| async move {
            items.send(1).await?;
            Err(Error::field("name", "no"))
        });
        assert_eq!(
            collect(answers).await,
            [Ok(1), Err(ErrorKind::InvalidArgument)]
        );
    }

    #[tokio::test]
    async fn a_panic_and_a_stop_do_not_look_like_an_end() {
        let tasks = Tasks::new();
        let broken = stream(&tasks, Action::Download, |items| async move {
            items.send(1).await?;
            panic!("on purpose")
        });
        assert_eq!(collect(broken).await, [Ok(1), Err(ErrorKind::Unavailable)]);

        let endless = stream(&tasks, Action::Download, |items| async move {
            items.send(1).await?;
            std::future::pending().await
        });
        tasks.stop(Duration::from_millis(10)).await;
        assert_eq!(collect(endless).await, [Ok(1), Err(ErrorKind::Unavailable)]);
    }

    #[tokio::test]
    async fn work_ends_when_nobody_listens_and_never_runs_far_ahead() {
        let tasks = Tasks::new();
        let (sent, mut seen) = mpsc::channel(1000);
        let mut answers = stream(&tasks, Action::Download, move |items| async move {
            for number in 0.. {
                items.send(number).await?;
                sent.try_send(number).unwrap();
            }
            Ok(())
        });
        assert_eq!(answers.next().await.unwrap().unwrap(), 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut ahead = 0;
        while seen.try_recv().is_ok() {
            ahead += 1;
        }
        assert!(ahead <= ITEMS_QUEUED + 1, "{ahead} messages");
        drop(answers);
        while seen.recv().await.is_some() {}
    }
}
