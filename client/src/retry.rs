//! Calls that can be repeated are, while the daemon is unavailable.
//!
//! Only for calls whose second run answers as the first would have: those that read, and those that set
//! something to a value. What an interrupted upload has sent is not repeated by this module but kept by the daemon.

use std::{error::Error as _, future::Future};

use tonic::{Code, Status};

use crate::{
    activity::Unanswered,
    error::is_busy,
    limits::{ATTEMPTS, FIRST_PAUSE},
};

/// Runs `call` until it succeeds, fails for good, or has been tried [`ATTEMPTS`] times.
pub(crate) async fn idempotent<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match call().await {
            Err(status) if passes(&status) => {
                tracing::debug!(%status, ?pause, "the daemon is unavailable; trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer,
        }
    }
    call().await
}

/// Whether waiting may help: the daemon said so, or the connection broke under the call.
fn passes(status: &Status) -> bool {
    if Unanswered::is_behind(status) {
        return false;
    }
    status.code() == Code::Unavailable || is_busy(status) || status.source().is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::cell::Cell;

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
