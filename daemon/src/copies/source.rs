//! The other daemon, and what can go wrong with a copy.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::try_join_all;
use tokio::time::timeout;
use varve_client::{Client, ErrorKind};

use super::remotes::Address;
use crate::{limits, tls};

/// Why a copy does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The other daemon says no, cannot be reached, or sends what it should not.
    #[error(transparent)]
    Source(#[from] varve_client::Error),
    /// This store says no.
    #[error(transparent)]
    Store(#[from] varve_store::Error),
    /// The snapshot is not there yet.
    #[error("snapshot {name} is {state} at {endpoint}")]
    NotCompleted {
        /// As the source calls it.
        name: String,
        /// In a word.
        state: &'static str,
        /// The source.
        endpoint: String,
    },
    /// The other daemon holds the connection and says nothing.
    #[error("the source has said nothing for {} seconds", limits::COPY_SILENCE.as_secs())]
    Silent,
    /// No other daemon has this name.
    #[error(
        "there is no remote {0:?}: write unix:PATH, http://HOST:PORT or https://HOST:PORT, or add it first"
    )]
    NoRemote(String),
    /// A file of TLS cannot be read.
    #[error(transparent)]
    Tls(#[from] tls::FileError),
    /// A snapshot before the wanted one cannot be gone by.
    #[error("a snapshot before: {0}")]
    Base(#[source] varve_store::Error),
    /// It cannot be copied.
    #[error("{0}")]
    Refused(String),
}

impl CopyError {
    /// Whether waiting may help.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Source(error) => matches!(
                error.kind(),
                ErrorKind::Unreachable | ErrorKind::Unavailable | ErrorKind::Cancelled
            ),
            Self::Store(error) => matches!(error, varve_store::Error::Limit(_)),
            Self::NotCompleted { state, .. } => *state == "pending",
            // Files are renewed while copies run.
            Self::Silent | Self::Tls(_) => true,
            Self::Base(_) | Self::NoRemote(_) | Self::Refused(_) => false,
        }
    }
}

/// What the other daemon answers, if it does in time: one that only holds the connection must not hold the copy, and its place among
/// others.
pub(super) async fn heard<T>(
    answer: impl Future<Output = Result<T, varve_client::Error>>,
) -> Result<T, CopyError> {
    match timeout(limits::COPY_SILENCE, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CopyError::Silent),
    }
}

/// Connections to the other daemon: one TCP connection does not fill a long link.
#[derive(Debug)]
pub(super) struct Connections {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl Connections {
    pub(super) async fn open(address: &Address) -> Result<Self, CopyError> {
        let clients = (0..limits::COPY_CONNECTIONS)
            .map(|_| Client::connect_with(&address.endpoint, &address.tls));
        Ok(Self {
            clients: try_join_all(clients).await?,
            next: AtomicUsize::new(0),
        })
    }

    /// One after the other.
    pub(super) fn client(&self) -> &Client {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        &self.clients[next]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_has_an_end_and_an_answer_is_passed_on() {
        let silent = heard(std::future::pending::<Result<(), _>>()).await;
        assert!(silent.is_err_and(|error| error.passes()));
        assert!(heard(async { Ok(7) }).await.is_ok_and(|answer| answer == 7));
    }
}
