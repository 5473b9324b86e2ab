//! Cancelling a long call, until its result is about to become visible.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, ErrorKind, Result},
    limits::OUTCOME_WITHIN,
};

/// Cancels long calls. Clones share one state, so one of them can cancel several calls.
#[derive(Clone, Debug, Default)]
pub struct Cancel(CancellationToken);

impl Cancel {
    /// A token that has not been cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the calls that have this token, now and later. This cannot be undone.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Returns true if [`cancel`](Self::cancel) was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Completes when [`cancel`](Self::cancel) is called.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }
}

/// The outcome of an upload that was cancelled.
pub(crate) const NOTHING_VISIBLE: &str = "it was cancelled; nothing is visible";

/// A flag that is set while the result of some work is about to become visible.
#[derive(Debug, Default)]
pub(crate) struct Completing(AtomicBool);

impl Completing {
    /// From here on the work is not dropped, because its outcome would be unknown.
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Does work that changes nothing, unless it is cancelled first: then `outcome` describes the
/// state.
pub(crate) async fn unless_cancelled<T>(
    what: &str,
    outcome: &str,
    cancel: &Cancel,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let never = Completing::default();
    until_completing(what, outcome, &never, cancel, work).await
}

/// Does work unless it is cancelled before its result is about to become visible: then `outcome`
/// describes the state.
pub(crate) async fn until_completing<T>(
    what: &str,
    outcome: &str,
    completing: &Completing,
    cancel: &Cancel,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = cancel.cancelled() => {}
    }
    if !completing.has_begun() {
        return Err(Error::new(ErrorKind::Cancelled, what, outcome));
    }
    match timeout(OUTCOME_WITHIN, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::new(
            ErrorKind::Cancelled,
            what,
            "it was cancelled during its last step, and may have succeeded",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    /// Cancels work after a second.
    async fn cancelled(begins: bool, takes: Duration) -> Result<u32> {
        let completing = Completing::default();
        let work = async {
            if begins {
                completing.begin();
            }
            sleep(takes).await;
            Ok(7)
        };
        let cancel = Cancel::new();
        let working = until_completing("x", "nothing is there", &completing, &cancel, work);
        let cancelling = async {
            sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        };
        tokio::join!(working, cancelling).0
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_completed_is_waited_for_and_all_else_is_dropped() {
        let error = cancelled(false, Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.to_string(), "x: nothing is there");
        assert_eq!(cancelled(true, Duration::from_secs(2)).await.unwrap(), 7);
        let error = cancelled(true, 2 * OUTCOME_WITHIN).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(error.to_string().contains("may have succeeded"), "{error}");
        let cancel = Cancel::new();
        let never = unless_cancelled("x", "", &cancel, async { Ok(1) });
        assert_eq!(never.await.unwrap(), 1);
    }
}
