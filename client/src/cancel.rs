//! Work that can be given up until its result is about to become visible.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::time::timeout;

use crate::{
    error::{Error, ErrorKind, Result},
    limits::OUTCOME_WITHIN,
};

/// What is true of an upload that was given up.
pub(crate) const NOTHING: &str = "it was cancelled; nothing is visible";

/// Whether the result of some work is about to become visible.
#[derive(Debug, Default)]
pub(crate) struct Completing(AtomicBool);

impl Completing {
    /// From here on the work is not given up: whoever did would not know what became of it.
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Does work unless it is cancelled before its result is about to become visible. `nothing` says what is true then.
pub(crate) async fn unless_cancelled<T>(
    what: &str,
    nothing: &str,
    completing: &Completing,
    cancel: impl Future<Output = ()>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = cancel => {}
    }
    if !completing.has_begun() {
        return Err(Error::new(ErrorKind::Cancelled, what, nothing));
    }
    match timeout(OUTCOME_WITHIN, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::new(
            ErrorKind::Cancelled,
            what,
            "it was cancelled as it was being completed: whether it was is not known",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{future::pending, time::Duration};

    use tokio::time::sleep;

    use super::*;

    async fn cancelled(begins: bool, takes: Duration) -> Result<u32> {
        let completing = Completing::default();
        let work = async {
            if begins {
                completing.begin();
            }
            sleep(takes).await;
            Ok(7)
        };
        let cancel = sleep(Duration::from_secs(1));
        unless_cancelled("x", "nothing is there", &completing, cancel, work).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_completed_is_waited_for_and_all_else_is_given_up() {
        let error = cancelled(false, Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.to_string(), "x: nothing is there");
        assert_eq!(cancelled(true, Duration::from_secs(2)).await.unwrap(), 7);
        let error = cancelled(true, 2 * OUTCOME_WITHIN).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(error.to_string().contains("is not known"), "{error}");
        let completing = Completing::default();
        let never = unless_cancelled("x", "", &completing, pending(), async { Ok(1) });
        assert_eq!(never.await.unwrap(), 1);
    }
}
