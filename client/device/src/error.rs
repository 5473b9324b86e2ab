//! Errors of devices. Their kinds tell the caller what to do.

use std::{error::Error as StdError, fmt, io};

/// The kind of an error: it tells the caller what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such export or device: check the name.
    NotFound,
    /// The request is wrong: correct it. A retry does not help.
    Invalid,
    /// A device is in use, or an export is attached already. Change that first.
    Conflict,
    /// The daemon cannot be reached, or the connection was lost: retry when the daemon runs.
    Unreachable,
    /// The kernel or the daemon cannot serve the call now; the message has the reason.
    Unavailable,
    /// Not permitted: only root may attach and detach devices.
    Denied,
    /// There is no space to write a file. Free space, then retry.
    OutOfSpace,
    /// A file of the system cannot be read or written: the message names it.
    File,
    /// The daemon or this library broke the NBD protocol: a bug, or incompatible versions.
    Internal,
}

/// An error: the operation that failed, and the reason.
///
/// Displayed as `<what>: <why>`, with the daemon's message unchanged.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    why: String,
    source: Option<io::Error>,
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`, met while doing `what` (verb and object), because of `why`.
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            why: why.into(),
            source: None,
        }
    }

    /// The system refused something.
    pub(crate) fn file(what: impl Into<String>, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfSpace,
            _ => ErrorKind::File,
        };
        // Without Rust's "(os error 2)".
        let mut why = error.to_string();
        if let Some(at) = why.find(" (os error ") {
            why.truncate(at);
        }
        Self {
            source: Some(error),
            ..Self::new(kind, what, why)
        }
    }

    /// The other side did what the protocol does not allow.
    pub(crate) fn protocol(what: impl Into<String>, why: impl fmt::Display) -> Self {
        let why = format!("the daemon broke the protocol: {why}");
        Self::new(ErrorKind::Internal, what, why)
    }

    /// The kind, which tells the caller what to do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The reason.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
