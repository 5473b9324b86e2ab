//! Why an operation fails: the one error type of the service.

use std::time::Duration;

use varve_store::Error as StoreError;

use crate::{
    auth::{
        Closed, CredentialError, Denied, TicketError, TokenError, TooFast,
        audit::{AuditError, ReadError},
        key::KeyError,
    },
    copies::CopyError,
    error::{Classified, ErrorKind},
    limits,
    resources::shares::{Busy, GaveWay},
    tasks::TaskEnded,
};

/// The result of an operation.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A field of the request is invalid.
    #[error("{field}: {problem}")]
    Field {
        /// As requests call it.
        field: &'static str,
        /// With the value.
        problem: String,
    },
    /// More than one message may carry. Send it in several messages.
    #[error("{field}: {found} {unit}, at most {most} are taken in one message")]
    TooMuch {
        /// As requests call it.
        field: &'static str,
        /// "ids", "bytes of payload".
        unit: &'static str,
        /// How many came.
        found: u64,
        /// How many may come.
        most: u64,
    },
    /// The policy denies the operation.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Changes wait until the audit log can be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The audit log cannot be read.
    #[error(transparent)]
    ReadAudit(#[from] ReadError),
    /// A token is not taken.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// An attach ticket is not taken, or not made.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// The key of tokens, access keys and tickets cannot be made or used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The account makes more requests than its quota allows.
    #[error(transparent)]
    TooFast(#[from] TooFast),
    /// The limit on work under way is reached.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The operation made no progress, and others waited for its place.
    #[error(transparent)]
    GaveWay(#[from] GaveWay),
    /// Nothing arrived on a stream for so long that it was given up.
    #[error("nothing was received for {seconds} seconds")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// A copy cannot be made, or its source is at fault.
    #[error(transparent)]
    Copy(Box<CopyError>),
    /// A volume is served only while it is attached.
    #[error("volume {name:?} is not attached")]
    NotAttached {
        /// Its name.
        name: String,
    },
    /// The requested attachment has ended, and there is another.
    #[error(
        "volume {name:?} was attached again since: this is attachment {current}, and not {wanted}"
    )]
    AttachedAgain {
        /// The volume's name.
        name: String,
        /// The number of the current attachment.
        current: u64,
        /// The requested number.
        wanted: u64,
    },
    /// The attachment ended while it was in use.
    #[error("the volume was detached, or attached elsewhere")]
    Detached,
    /// The task that did the work ended early.
    #[error(transparent)]
    Task(#[from] TaskEnded),
    /// The task that makes a stream ended without an outcome: a defect, or the daemon stops.
    #[error("the answer was cut short, see the daemon's log")]
    CutShort,
    /// The caller no longer receives the answer.
    #[error("the client has gone")]
    CallerGone,
    /// The daemon starts no more operations.
    #[error("the daemon is stopping")]
    Stopping,
}

impl Error {
    pub(crate) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field {
            field,
            problem: problem.into(),
        }
    }

    /// When to try again, if the same request succeeds once less is under way. A full disk has the
    /// same kind, but does not pass.
    pub(crate) const fn pushback(&self) -> Option<Duration> {
        match self {
            Self::Busy(_) | Self::GaveWay(_) => Some(limits::BUSY_PUSHBACK),
            Self::TooFast(too_fast) => Some(too_fast.wait),
            _ => None,
        }
    }
}

impl Classified for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Field { .. } => ErrorKind::InvalidArgument,
            Self::TooMuch { .. } => ErrorKind::OutOfRange,
            Self::Silent { .. } => ErrorKind::DeadlineExceeded,
            Self::Denied(denied) => denied.kind(),
            Self::Audit(_) => ErrorKind::Unavailable,
            Self::ReadAudit(_) => ErrorKind::Internal,
            Self::Token(_) | Self::Ticket(TicketError::Invalid | TicketError::Plaintext) => {
                ErrorKind::Unauthenticated
            }
            Self::Key(_) | Self::Ticket(TicketError::NoAccounts) => ErrorKind::FailedPrecondition,
            Self::TooFast(error) => error.kind(),
            Self::Busy(_) | Self::GaveWay(_) => ErrorKind::ResourceExhausted,
            Self::Copy(error) => error.kind(),
            Self::NotAttached { .. } | Self::AttachedAgain { .. } | Self::Detached => {
                ErrorKind::FailedPrecondition
            }
            Self::Task(TaskEnded::Panicked { .. }) => ErrorKind::Internal,
            Self::CallerGone => ErrorKind::Cancelled,
            Self::Task(TaskEnded::Stopped { .. }) | Self::CutShort | Self::Stopping => {
                ErrorKind::Unavailable
            }
        }
    }

    fn is_alarming(&self) -> bool {
        match self {
            Self::Store(error) => error.is_alarming(),
            Self::TooFast(error) => error.is_alarming(),
            other => other.kind().is_alarming(),
        }
    }
}

impl From<Closed> for Error {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Denied(denied) => denied.into(),
            Closed::Audit(error) => error.into(),
            Closed::TooFast(error) => error.into(),
        }
    }
}

impl From<CredentialError> for Error {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Ticket(error) => error.into(),
            CredentialError::Store(error) => error.into(),
            CredentialError::Key(error) => error.into(),
            error @ CredentialError::Seal { .. } => StoreError::Internal(error.to_string()).into(),
        }
    }
}

impl From<CopyError> for Error {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Store(error) => error.into(),
            CopyError::Busy(busy) => busy.into(),
            CopyError::GaveWay(gave_way) => gave_way.into(),
            other => Self::Copy(Box::new(other)),
        }
    }
}
