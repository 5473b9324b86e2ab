//! Temporary shortages of the system, and waiting for their end.
//!
//! No descriptor, no memory, a signal in between: such a call has done nothing, and can be
//! repeated. Its callers wait, as long as the store is open: a shortage must not be mistaken for a
//! lost disk.

use std::{fmt, io, time::Duration};

use rustix::io::Errno;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::limits::{SHORTAGE_LOG_INTERVAL, SHORTAGE_PAUSES};

/// Returns true if the system lacked a resource that the call needs: nothing was done, and the same
/// call can succeed later.
///
/// A failed sync is never one, whatever its reason: see [`Disk`](super::Disk).
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(errno) => matches!(
            errno,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR
        ),
        None => matches!(
            error.kind(),
            io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
        ),
    }
}

/// Errors among which are shortages.
pub(crate) trait MayBeShortage: fmt::Display + Sync {
    /// Returns true if this error is a shortage.
    fn is_shortage(&self) -> bool;
}

impl MayBeShortage for io::Error {
    fn is_shortage(&self) -> bool {
        is_shortage(self)
    }
}

/// Lets callers wait for the end of shortages, until the store closes.
#[derive(Debug, Default)]
pub struct Patience {
    closing: watch::Sender<bool>,
}

impl Patience {
    /// Begins to try an operation that may meet a shortage.
    pub(crate) fn tries(&self) -> Tries<'_> {
        Tries {
            patience: self,
            pause: SHORTAGE_PAUSES.0,
            since: None,
            logged: None,
        }
    }

    /// Runs `action` as soon as there is no shortage. The outcome is a shortage only when the store
    /// closes.
    pub(crate) async fn until_possible<T, E: MayBeShortage>(
        &self,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = self.tries();
        loop {
            let outcome = attempt();
            if tries.is_final(&outcome).await {
                return outcome;
            }
        }
    }

    /// The same for an attempt that is awaited, such as the sync of a directory.
    ///
    /// # Errors
    ///
    /// The error of the last attempt. It is a shortage only when the store closes.
    pub(crate) async fn until_possible_async<T, E: MayBeShortage, F>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut tries = self.tries();
        loop {
            let outcome = attempt().await;
            if tries.is_final(&outcome).await {
                return outcome;
            }
        }
    }

    /// Ends all waiting from now on: the store closes.
    pub(crate) fn end(&self) {
        self.closing.send_replace(true);
    }

    /// Returns true if waiting has ended.
    pub(crate) fn has_ended(&self) -> bool {
        *self.closing.borrow()
    }
}

/// The tries of one operation.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    patience: &'a Patience,
    pause: Duration,
    /// The time of the first failure.
    since: Option<Instant>,
    /// The time of the last log line.
    logged: Option<Instant>,
}

impl Tries<'_> {
    /// Waits before the next try. False: there is none, because the store closes.
    pub(crate) async fn again(&mut self, error: &(dyn fmt::Display + Sync)) -> bool {
        let mut closing = self.patience.closing.subscribe();
        if *closing.borrow_and_update() {
            return false;
        }
        let now = Instant::now();
        self.since.get_or_insert(now);
        if self
            .logged
            .is_none_or(|at| now.duration_since(at) >= SHORTAGE_LOG_INTERVAL)
        {
            self.logged = Some(now);
            tracing::warn!(%error, "the system is short of a resource: retrying");
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(SHORTAGE_PAUSES.1);
        tokio::select! {
            () = sleep(pause) => true,
            _ = closing.wait_for(|closing| *closing) => false,
        }
    }

    /// Returns true if a result is final: it is not a shortage, or waiting has ended. Otherwise
    /// waits until the next attempt may begin.
    async fn is_final<T, E: MayBeShortage>(&mut self, result: &Result<T, E>) -> bool {
        match result {
            Err(error) if error.is_shortage() => !self.again(error).await,
            _ => true,
        }
    }
}

impl Drop for Tries<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since {
            let milliseconds = since.elapsed().as_millis();
            tracing::info!(milliseconds, "the shortage is over, or waiting has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn shortages_are_told_from_errors_that_stay() {
        for (errno, is) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::AGAIN, true),
            (Errno::INTR, true),
            (Errno::NOSPC, false),
            (Errno::DQUOT, false),
            (Errno::IO, false),
            (Errno::ROFS, false),
            (Errno::ACCESS, false),
            (Errno::NOENT, false),
        ] {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(is_shortage(&error), is, "{errno:?}");
        }
    }

    #[test]
    fn an_attempt_that_is_awaited_is_made_until_there_is_no_shortage() {
        let patience = Patience::default();
        for (shortages, last) in [(0, Ok(7)), (2, Ok(7)), (1, Err(io::ErrorKind::NotFound))] {
            let mut attempts = 0;
            let outcome = block_on(patience.until_possible_async(|| {
                attempts += 1;
                let is_short = attempts <= shortages;
                async move {
                    match last {
                        _ if is_short => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
                        Ok(value) => Ok(value),
                        Err(kind) => Err(kind.into()),
                    }
                }
            }));
            assert_eq!(attempts, shortages + 1);
            assert_eq!(outcome.map_err(|error| error.kind()), last);
        }
    }

    #[test]
    fn waiting_ends_with_the_store() {
        let patience = Patience::default();
        block_on(async {
            let mut tries = patience.tries();
            assert!(tries.again(&"x").await);
            let (waited, ()) = tokio::join!(
                async {
                    let mut count = 0;
                    while tries.again(&"x").await {
                        count += 1;
                    }
                    count
                },
                async {
                    sleep(SHORTAGE_PAUSES.0).await;
                    patience.end();
                }
            );
            assert!(waited < 100, "{waited}");
            assert!(!patience.tries().again(&"x").await);
            let failed: io::Result<()> = Err(io::ErrorKind::OutOfMemory.into());
            assert!(patience.tries().is_final(&failed).await);
        });
    }
}
