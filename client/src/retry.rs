//! Repeats calls while the daemon is unavailable.
//!
//! Only for idempotent calls: calls that read, and calls that set something to a value. This module
//! does not repeat an interrupted upload; the daemon keeps the chunks that have arrived.

use std::{error::Error as _, future::Future};

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    activity::Unanswered,
    error::pushback,
    limits::{ATTEMPTS, BUSY_PATIENCE, BUSY_PAUSES, FIRST_PAUSE},
};

/// Runs `call` until it succeeds, fails for good, or has been tried [`ATTEMPTS`] times.
pub(crate) async fn idempotent<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match while_busy(&mut call).await {
            Err(status) if passes(&status) => {
                tracing::debug!(%status, ?pause, "the daemon is unavailable; trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer,
        }
    }
    while_busy(call).await
}

/// Returns true if waiting may help: the daemon said so, or the connection broke under the call.
fn passes(status: &Status) -> bool {
    if Unanswered::is_behind(status) {
        return false;
    }
    status.code() == Code::Unavailable || status.source().is_some()
}

/// Runs `call` until the daemon no longer refuses it for work under way, or has done so for
/// [`BUSY_PATIENCE`]. For any call: a call refused in this way has done nothing, or can be
/// repeated.
pub(crate) async fn while_busy<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let begun = Instant::now();
    loop {
        match call().await {
            Err(status) if begun.elapsed() < BUSY_PATIENCE => match pushback(&status) {
                Some(pause) => {
                    tracing::debug!(%status, ?pause, "the daemon is busy; trying again");
                    tokio::time::sleep(pause.clamp(BUSY_PAUSES.0, BUSY_PAUSES.1)).await;
                }
                None => return Err(status),
            },
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::{cell::Cell, time::Duration};

    use super::*;

    #[tokio::test]
    async fn an_unavailable_daemon_is_asked_again_a_bounded_number_of_times() {
        let asked = Cell::new(0);
        let answer: Result<(), _> = idempotent(|| async {
            asked.set(asked.get() + 1);
            Err(Status::unavailable("starting"))
        })
        .await;
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
        assert_eq!(asked.get(), ATTEMPTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_daemon_is_asked_again_when_it_says_and_not_for_ever() {
        let busy = |milliseconds: &str| {
            let mut status = Status::resource_exhausted("the limit of things is reached");
            let pause = milliseconds.parse().unwrap();
            status
                .metadata_mut()
                .insert("grpc-retry-pushback-ms", pause);
            status
        };
        let begun = Instant::now();
        let asked = Cell::new(0);
        let answer = while_busy(|| async {
            asked.set(asked.get() + 1);
            match asked.get() {
                1..4 => Err(busy("2000")),
                _ => Ok(asked.get()),
            }
        });
        assert_eq!(answer.await.unwrap(), 4);
        assert_eq!(begun.elapsed(), Duration::from_secs(6));
        let answer: Result<(), _> = while_busy(|| async { Err(busy("0")) }).await;
        assert_eq!(answer.unwrap_err().code(), Code::ResourceExhausted);
        assert!(begun.elapsed() >= BUSY_PATIENCE);
        // A full disk has the same code, and stays full.
        let full = Status::resource_exhausted("no space left");
        let answer: Result<(), _> = while_busy(|| async { Err(full.clone()) }).await;
        assert_eq!(answer.unwrap_err().message(), "no space left");
    }

    #[tokio::test]
    async fn who_is_turned_away_after_the_handshake_does_not_knock_again() {
        let asked = Cell::new(0);
        let answer: Result<(), _> = idempotent(|| async {
            asked.set(asked.get() + 1);
            let closed = std::io::Error::other("connection closed");
            Err(Status::from_error(Box::new(Unanswered(closed.into()))))
        })
        .await;
        let error = crate::Error::rpc("get status", answer.unwrap_err());
        assert_eq!(asked.get(), 1);
        assert_eq!(error.kind(), crate::ErrorKind::Unreachable);
        assert_eq!(
            error.why(),
            "lost the connection to the daemon right after the TLS handshake: connection closed"
        );
    }

    #[tokio::test]
    async fn other_failures_are_final_and_success_ends_it() {
        let asked = Cell::new(0);
        let answer: Result<(), _> = idempotent(|| async {
            asked.set(asked.get() + 1);
            Err(Status::not_found("no"))
        })
        .await;
        assert_eq!(answer.unwrap_err().code(), Code::NotFound);
        assert_eq!(asked.get(), 1);

        let asked = Cell::new(0);
        let answer = idempotent(|| async {
            asked.set(asked.get() + 1);
            if asked.get() < 3 {
                Err(Status::unavailable("starting"))
            } else {
                Ok(asked.get())
            }
        })
        .await;
        assert_eq!(answer.unwrap(), 3);
    }
}
