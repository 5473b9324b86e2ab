//! Kinds of errors: they tell the caller what to do.
//!
//! Each face of the daemon has one match from these kinds to its protocol. The names and numbers
//! are those of gRPC's status codes: the log shows the names, and records of copies keep the
//! numbers.

use std::fmt;

use varve_store::Error;

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ErrorKind {
    /// The caller has gone away before the end.
    Cancelled = 1,
    /// The request is invalid in any state of the store.
    InvalidArgument = 3,
    /// The caller took too long.
    DeadlineExceeded = 4,
    /// Nothing has this name or id.
    NotFound = 5,
    /// The name is taken.
    AlreadyExists = 6,
    /// The caller may not do this, or another daemon denies this one permission.
    PermissionDenied = 7,
    /// The disk is full, or the limit on work under way is reached.
    ResourceExhausted = 8,
    /// The state of the store does not allow the request.
    FailedPrecondition = 9,
    /// More than one message may carry.
    OutOfRange = 11,
    /// The system failed, or the daemon has a defect.
    Internal = 13,
    /// The same request may succeed later.
    Unavailable = 14,
    /// Bytes on disk are damaged.
    DataLoss = 15,
    /// The caller is nobody that the daemon knows.
    Unauthenticated = 16,
}

impl ErrorKind {
    /// The name, as the log shows it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "Cancelled",
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::OutOfRange => "OutOfRange",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
            Self::Unauthenticated => "Unauthenticated",
        }
    }

    /// The number that records keep.
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    /// Returns true if an operator should see the error: the cause is the daemon, the disk or a
    /// limit, not the request.
    pub(crate) const fn is_alarming(self) -> bool {
        match self {
            Self::ResourceExhausted | Self::Internal | Self::Unavailable | Self::DataLoss => true,
            Self::Cancelled
            | Self::InvalidArgument
            | Self::DeadlineExceeded
            | Self::NotFound
            | Self::AlreadyExists
            | Self::PermissionDenied
            | Self::FailedPrecondition
            | Self::Unauthenticated
            | Self::OutOfRange => false,
        }
    }
}

/// An error whose kind is known.
pub(crate) trait Classified: fmt::Display {
    /// The kind of this error.
    fn kind(&self) -> ErrorKind;

    /// Returns true if an operator should see the error: see [`ErrorKind::is_alarming`].
    fn is_alarming(&self) -> bool {
        self.kind().is_alarming()
    }
}

impl Classified for Error {
    /// Exhaustive on purpose: each new error of the store needs a decision here.
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::Invalid(_) | Self::NotCanonical { .. } | Self::Tree(_) => {
                ErrorKind::InvalidArgument
            }
            Self::Damaged(_) => ErrorKind::DataLoss,
            Self::Full { .. }
            | Self::Reserved { .. }
            | Self::Dropped
            | Self::JournalFull { .. }
            | Self::Quota { .. } => ErrorKind::ResourceExhausted,
            // A limit on work under way passes by itself. Only a full disk needs an operator.
            Self::Limit(_) | Self::Shortage { .. } | Self::Poisoned { .. } | Self::Closing => {
                ErrorKind::Unavailable
            }
            Self::Attached { .. }
            | Self::Collecting
            | Self::NotCompleted { .. }
            | Self::HasPending { .. }
            | Self::OwnsRecords { .. }
            | Self::PublicAccessBlocked { .. }
            | Self::Needed { .. }
            | Self::ImageUnavailable { .. }
            | Self::Protected { .. }
            | Self::TooMany { .. }
            | Self::InUse(_)
            | Self::Incompatible { .. } => ErrorKind::FailedPrecondition,
            Self::Io { .. } | Self::System { .. } | Self::Index { .. } | Self::Internal(_) => {
                ErrorKind::Internal
            }
        }
    }

    fn is_alarming(&self) -> bool {
        // An account that has used up its quota is none of the operator's business.
        !matches!(self, Self::Quota { .. }) && self.kind().is_alarming()
    }
}
