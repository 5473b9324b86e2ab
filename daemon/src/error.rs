//! Kinds of errors: they tell the caller what to do.
//!
//! Each face of the daemon has one match from these kinds to what its protocol says. The names and
//! numbers are those of gRPC's status codes: the log shows the names, and records of copies keep
//! the numbers.

use std::fmt;

use varve_store::Error;

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ErrorKind {
    /// The caller has gone before the end.
    Cancelled = 1,
    /// The request cannot be right, whatever the store holds.
    InvalidArgument = 3,
    /// The caller took too long.
    DeadlineExceeded = 4,
    /// There is nothing of that name or id.
    NotFound = 5,
    /// The name is taken.
    AlreadyExists = 6,
    /// Another daemon does not let this one do that.
    PermissionDenied = 7,
    /// The disk is full, or as much is under way as is allowed.
    ResourceExhausted = 8,
    /// Something else has to be done first.
    FailedPrecondition = 9,
    /// More at one time than is taken.
    OutOfRange = 11,
    /// The system failed, or the daemon has a defect.
    Internal = 13,
    /// Later it may work.
    Unavailable = 14,
    /// Bytes on disk are not what was written.
    DataLoss = 15,
}

impl ErrorKind {
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
            | Self::OutOfRange => false,
        }
    }
}

/// An error whose kind is known.
pub(crate) trait Classified: fmt::Display {
    /// The kind of this error.
    fn kind(&self) -> ErrorKind;
}

impl Classified for Error {
    /// Exhaustive on purpose: a new error of the store has to be thought about here.
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
            | Self::JournalFull { .. } => ErrorKind::ResourceExhausted,
            // A limit on what is under way: later there is room again. Only a full disk needs
            // somebody to act.
            Self::Limit(_) | Self::Shortage { .. } | Self::Poisoned { .. } | Self::Closing => {
                ErrorKind::Unavailable
            }
            Self::Attached { .. }
            | Self::Collecting
            | Self::NotCompleted { .. }
            | Self::HasPending { .. }
            | Self::TooMany { .. }
            | Self::InUse(_)
            | Self::Incompatible { .. } => ErrorKind::FailedPrecondition,
            Self::Io { .. } | Self::System { .. } | Self::Index { .. } | Self::Internal(_) => {
                ErrorKind::Internal
            }
        }
    }
}
