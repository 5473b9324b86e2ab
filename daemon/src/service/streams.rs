//! How a call runs: the one place where failures are logged and become a status.
//!
//! What must hold for answers that are streams: no more than [`MESSAGES_QUEUED`] messages wait for the client, the work ends
//! when the client goes, and the stream ends well only if the work did. A stream cut short by a
//! defect or by the end of the daemon ends with an error, never as if it were complete.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::Stream;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, warn};

use crate::{
    grpc::serve::{Arrives, Place},
    limits::{self, MESSAGES_QUEUED},
    resources::shares::{Hold, Holder, Rules, Shares},
    service::error::Failure,
    tasks::Tasks,
};

/// Runs a call that has one answer.
pub(crate) async fn answer<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Response<T>, Status> {
    let started = Instant::now();
    match work.await {
        Ok(answer) => {
            debug!(
                call,
                seconds = started.elapsed().as_secs_f64(),
                "call served"
            );
            Ok(Response::new(answer))
        }
        Err(failure) => Err(report(call, started, &failure)),
    }
}

/// Runs a call whose answer is a stream: `work` sends the messages. Its place moves as they go out, and is given up if they do not while others
/// wait for it.
pub(crate) fn stream<T, W>(
    tasks: &Tasks,
    call: &'static str,
    place: Option<Hold>,
    work: impl FnOnce(Answers<T>) -> W,
) -> Response<AnswerStream<T>>
where
    T: Send + 'static,
    W: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (sender, messages) = mpsc::channel(MESSAGES_QUEUED);
    let work = work(Answers(sender.clone()));
    let started = Instant::now();
    // The task ends when its messages find no taker, or with the daemon; then its sender closes the channel.
    drop(tasks.spawn(call, async move {
        let end = match work.await {
            Ok(()) => {
                debug!(
                    call,
                    seconds = started.elapsed().as_secs_f64(),
                    "call served"
                );
                Message::End
            }
            Err(failure) => Message::Failed(report(call, started, &failure)),
        };
        // A client that has gone needs no end.
        let _ = sender.send(end).await;
    }));
    let mut response = Response::new(AnswerStream(Some(messages)));
    if let Some(place) = place {
        response.extensions_mut().insert(Place(Arc::new(place)));
    }
    response
}

/// Whom a call is for.
pub(crate) fn holder<T>(request: &Request<T>) -> Holder {
    let holder = request.extensions().get::<Holder>();
    holder.copied().unwrap_or(Holder::OWN)
}

/// What moves as the rest of a request arrives.
pub(crate) fn arrives<T>(request: &Request<T>) -> Arrives {
    let arrives = request.extensions().get::<Arrives>();
    arrives.cloned().unwrap_or_default()
}

/// Places for so many calls whose answers are streams.
pub(crate) fn places(what: &'static str, total: usize) -> Shares {
    let total = total as u64;
    Shares::new(Rules {
        what,
        total,
        local: total / 4,
        waiting: limits::WAITING_MAX,
        yields_after: limits::PLACE_YIELDS_AFTER,
        pace: limits::ANSWER_BYTES_PER_SECOND,
    })
}

/// A place, as soon as there is one. Whoever makes it does not have to move before there is something to send.
pub(crate) async fn place(places: &Shares, holder: Holder) -> Result<Hold, Failure> {
    let place = places.take(holder, 1, limits::PLACE_WITHIN).await?;
    place.settle(true);
    Ok(place)
}

/// Logs a failure: loud when the daemon or the disk is at fault, quiet when the client is.
fn report(call: &'static str, started: Instant, failure: &Failure) -> Status {
    let status = Status::from(failure);
    let seconds = started.elapsed().as_secs_f64();
    match status.code() {
        Code::Internal
        | Code::DataLoss
        | Code::Unavailable
        | Code::ResourceExhausted
        | Code::Unknown => {
            warn!(call, code = ?status.code(), error = status.message(), seconds, "call failed");
        }
        code => debug!(
            call,
            ?code,
            error = status.message(),
            seconds,
            "call refused"
        ),
    }
    status
}

enum Message<T> {
    Part(T),
    End,
    Failed(Status),
}

/// Where the messages of an answer go.
pub(crate) struct Answers<T>(mpsc::Sender<Message<T>>);

impl<T> Answers<T> {
    /// Sends one message; waits while the client is behind.
    pub(crate) async fn send(&self, message: T) -> Result<(), Failure> {
        self.0
            .send(Message::Part(message))
            .await
            .map_err(|_| Failure::ClientGone)
    }
}

/// The messages of an answer, as tonic takes them.
pub(crate) struct AnswerStream<T>(Option<mpsc::Receiver<Message<T>>>);

impl<T> Stream for AnswerStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(messages) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let item = match std::task::ready!(messages.poll_recv(context)) {
            Some(Message::Part(message)) => return Poll::Ready(Some(Ok(message))),
            Some(Message::End) => None,
            Some(Message::Failed(status)) => Some(Err(status)),
            // The sender went without a word: the task panicked or was ended.
            None => Some(Err(Status::unavailable(
                "the answer was cut short, see the daemon's log",
            ))),
        };
        self.0 = None;
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::time::Duration;

    use futures::StreamExt;

    use super::*;

    async fn collect(response: Response<AnswerStream<u32>>) -> Vec<Result<u32, Code>> {
        response
            .into_inner()
            .map(|item| item.map_err(|status| status.code()))
            .collect()
            .await
    }

    #[tokio::test]
    async fn messages_arrive_in_order_and_the_stream_ends() {
        let tasks = Tasks::new();
        let answers = stream(&tasks, "Count", None, |answers| async move {
            for number in 0..10 {
                answers.send(number).await?;
            }
            Ok(())
        });
        assert_eq!(collect(answers).await, (0..10).map(Ok).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_failure_is_the_last_thing_heard() {
        let tasks = Tasks::new();
        let answers = stream(&tasks, "Fail", None, |answers| async move {
            answers.send(1).await?;
            Err(Failure::field("name", "no"))
        });
        assert_eq!(collect(answers).await, [Ok(1), Err(Code::InvalidArgument)]);
    }

    #[tokio::test]
    async fn a_panic_and_a_stop_do_not_look_like_an_end() {
        let tasks = Tasks::new();
        let broken = stream(&tasks, "Broken", None, |answers| async move {
            answers.send(1).await?;
            panic!("on purpose")
        });
        assert_eq!(collect(broken).await, [Ok(1), Err(Code::Unavailable)]);

        let endless = stream(&tasks, "Endless", None, |answers| async move {
            answers.send(1).await?;
            std::future::pending().await
        });
        tasks.stop(Duration::from_millis(10)).await;
        assert_eq!(collect(endless).await, [Ok(1), Err(Code::Unavailable)]);
    }

    #[tokio::test]
    async fn work_ends_when_nobody_listens_and_never_runs_far_ahead() {
        let tasks = Tasks::new();
        let (sent, mut seen) = mpsc::channel(1000);
        let mut answers = stream(&tasks, "Endless", None, move |answers| async move {
            for number in 0.. {
                answers.send(number).await?;
                sent.try_send(number).unwrap();
            }
            Ok(())
        })
        .into_inner();
        assert_eq!(answers.next().await.unwrap().unwrap(), 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut ahead = 0;
        while seen.try_recv().is_ok() {
            ahead += 1;
        }
        assert!(ahead <= MESSAGES_QUEUED + 1, "{ahead} messages");
        drop(answers);
        while seen.recv().await.is_some() {}
    }
}
