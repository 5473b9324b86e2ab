//! Connections to the source of a copy, and the errors of copies.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::try_join_all;
use tokio::time::timeout;
use varve_client::{Client, ErrorKind};
use varve_store::Error;

use super::remotes::Address;
use crate::{
    error::{Classified, ErrorKind as Kind},
    limits,
    net::tls,
    resources::shares::{Busy, GaveWay, Hold},
};

/// Why a copy stops.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The other daemon refuses, cannot be reached, or sends an invalid answer.
    #[error(transparent)]
    Source(#[from] varve_client::Error),
    /// An error of this store.
    #[error(transparent)]
    Store(#[from] Error),
    /// The snapshot is not completed at the source.
    #[error("snapshot {name} is {state} at {endpoint}")]
    NotCompleted {
        /// As the source calls it.
        name: String,
        /// The state of the snapshot.
        state: &'static str,
        /// The source.
        endpoint: String,
    },
    /// The snapshot was there when the copy began.
    #[error("snapshot {name} was deleted at {endpoint}: its content may be gone")]
    Deleted {
        /// As the source called it.
        name: String,
        /// The source.
        endpoint: String,
    },
    /// The other daemon keeps the connection open and sends nothing.
    #[error("the source has said nothing for {} seconds", limits::COPY_SILENCE.as_secs())]
    Silent,
    /// No remote has this name.
    #[error(
        "there is no remote {0:?}: write unix:PATH, http://HOST:PORT or https://HOST:PORT, or create it first"
    )]
    NoRemote(String),
    /// A file of TLS cannot be read.
    #[error(transparent)]
    Tls(#[from] tls::FileError),
    /// The same for an account, which is not to know the files of its remote.
    #[error(
        "the files of remote {0:?} cannot be used: the log of the daemon tells its administrator why"
    )]
    Files(String),
    /// The file of the token cannot be used.
    #[error(transparent)]
    Token(varve_client::Error),
    /// The base of the copy cannot be used.
    #[error("a snapshot before: {0}")]
    Base(#[source] Error),
    /// The limit on work under way is reached.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The source made no progress, and other copies waited for its place.
    #[error("the source does not go on: {0}")]
    GaveWay(#[from] GaveWay),
    /// Data does not match its id, or is invalid: it was changed on its way, or by the source.
    #[error("{0}")]
    Mismatch(String),
    /// The snapshot cannot be copied.
    #[error("{0}")]
    Refused(String),
}

/// The remedy for a copy that has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Waiting, for as long as it takes.
    Time,
    /// Another attempt: a link that has flipped a bit does not flip it again.
    AnotherTry,
    /// None: the copy has failed.
    None,
}

impl Classified for CopyError {
    /// The kind for a caller that waits for the source, and for the record of a copy.
    fn kind(&self) -> Kind {
        match self {
            Self::Source(error) => match error.kind() {
                ErrorKind::NotFound => Kind::NotFound,
                ErrorKind::Damaged => Kind::DataLoss,
                ErrorKind::Invalid => Kind::InvalidArgument,
                ErrorKind::Denied => Kind::PermissionDenied,
                ErrorKind::Unauthenticated => Kind::Unauthenticated,
                _ => Kind::Unavailable,
            },
            Self::Store(error) | Self::Base(error) => error.kind(),
            Self::Silent | Self::Busy(_) | Self::GaveWay(_) => Kind::Unavailable,
            Self::NoRemote(_) | Self::Deleted { .. } => Kind::NotFound,
            Self::Mismatch(_) => Kind::DataLoss,
            Self::NotCompleted { .. }
            | Self::Tls(_)
            | Self::Files(_)
            | Self::Token(_)
            | Self::Refused(_) => Kind::FailedPrecondition,
        }
    }
}

impl CopyError {
    /// The remedy for this error.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Source(error) => match error.kind() {
                ErrorKind::Unreachable | ErrorKind::Unavailable | ErrorKind::Cancelled => {
                    Remedy::Time
                }
                // Wrong bytes, in the content or around it.
                ErrorKind::Damaged | ErrorKind::Internal => Remedy::AnotherTry,
                _ => Remedy::None,
            },
            // A poisoned store takes writes again after a restart, and copies continue then.
            Self::Store(
                Error::Limit(_) | Error::Shortage { .. } | Error::Poisoned { .. } | Error::Closing,
            ) => Remedy::Time,
            Self::NotCompleted {
                state: "pending", ..
            } => Remedy::Time,
            // Files are renewed while copies run.
            Self::Silent
            | Self::Tls(_)
            | Self::Files(_)
            | Self::Token(_)
            | Self::Busy(_)
            | Self::GaveWay(_) => Remedy::Time,
            Self::Mismatch(_) => Remedy::AnotherTry,
            Self::Store(_)
            | Self::NotCompleted { .. }
            | Self::Deleted { .. }
            | Self::Base(_)
            | Self::NoRemote(_)
            | Self::Refused(_) => Remedy::None,
        }
    }
}

/// Waits for an answer of the other daemon, with a limit: a daemon that only keeps the connection
/// open must not hold up the copy.
async fn heard<T>(
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
    /// The place of the copy or estimate, given up if the other daemon is silent and others wait.
    place: Arc<Hold>,
}

impl Connections {
    pub(super) async fn open(address: &Address, place: Arc<Hold>) -> Result<Self, CopyError> {
        let connector = address.connector();
        let clients = (0..limits::COPY_CONNECTIONS).map(|_| connector.connect());
        Ok(Self {
            clients: try_join_all(clients).await?,
            next: AtomicUsize::new(0),
            place,
        })
    }

    /// Waits for an answer of the other daemon, with a limit. The answer is a sign of life.
    pub(super) async fn heard<T>(
        &self,
        answer: impl Future<Output = Result<T, varve_client::Error>>,
    ) -> Result<T, CopyError> {
        let answer = heard(answer).await;
        self.place.is_alive();
        answer
    }

    /// The next client, in turn.
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
        assert!(silent.is_err_and(|error| error.remedy() == Remedy::Time));
        assert!(heard(async { Ok(7) }).await.is_ok_and(|answer| answer == 7));
    }
}
