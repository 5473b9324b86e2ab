//! Errors. Their kinds tell the caller what to do.

use std::{error::Error as StdError, fmt, io, time::Duration};

use tonic::{Code, Status};

use crate::activity::Unanswered;

/// The kind of an error: it tells the caller what to do.
///
/// Any call can fail with an error *of the connection*: [`Unreachable`](Self::Unreachable),
/// [`Unavailable`](Self::Unavailable), [`Denied`](Self::Denied),
/// [`Unauthenticated`](Self::Unauthenticated), [`Internal`](Self::Internal). The documentation of
/// each call lists the other kinds.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such snapshot or volume: check the name or id.
    NotFound,
    /// The name is taken: choose another, or delete the record that has it.
    AlreadyExists,
    /// The request is wrong: correct it. A retry does not help.
    Invalid,
    /// The state of a volume or snapshot does not allow the call; a volume is attached, for
    /// example. Change the state first.
    Conflict,
    /// The daemon cannot be reached, or the connection was lost: retry when the daemon runs.
    Unreachable,
    /// The daemon's disk is full, or the disk of a local file, or a quota of the account is used
    /// up. Free space or delete something, then retry.
    OutOfSpace,
    /// Content does not match its id: verify the store, and restore the damaged part.
    Damaged,
    /// The daemon answers, but cannot serve the call now: it has stopped writing, is stopping, or
    /// has reached a limit. Retry later, or see its log.
    Unavailable,
    /// The daemon knows the caller, who may not do this: it is for the administrator, or the
    /// account is read-only or disabled, or the token has not the scope.
    Denied,
    /// The daemon does not know the caller: give a token that is valid, connect as a user or with a
    /// certificate that is an identity of an account, or have the administrator add one.
    Unauthenticated,
    /// A local file cannot be read or written, or changed under the reader: the message names it.
    File,
    /// The caller has cancelled the call.
    Cancelled,
    /// The daemon or the client broke the protocol: a bug, or incompatible versions.
    Internal,
}

impl ErrorKind {
    /// The kind that a status code of gRPC stands for. The one place where codes have a meaning.
    pub(crate) const fn from_code(code: Code) -> Self {
        match code {
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::InvalidArgument => Self::Invalid,
            Code::FailedPrecondition => Self::Conflict,
            Code::ResourceExhausted => Self::OutOfSpace,
            Code::DataLoss => Self::Damaged,
            Code::Unavailable | Code::DeadlineExceeded => Self::Unavailable,
            Code::PermissionDenied => Self::Denied,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::Cancelled | Code::Aborted => Self::Cancelled,
            Code::Ok | Code::Unknown | Code::OutOfRange | Code::Unimplemented | Code::Internal => {
                Self::Internal
            }
        }
    }

    /// The kind as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Unreachable => "unreachable",
            Self::OutOfSpace => "out_of_space",
            Self::Damaged => "damaged",
            Self::Unavailable => "unavailable",
            Self::Denied => "denied",
            Self::Unauthenticated => "unauthenticated",
            Self::File => "file",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error: the operation that failed, and the reason.
///
/// Displayed as `<what>: <why>`, with the daemon's message unchanged.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    why: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// When to try again, if the daemon has as much under way as it allows. A full disk has the same
/// status code, but no such time.
pub(crate) fn pushback(status: &Status) -> Option<Duration> {
    let milliseconds = status.metadata().get("grpc-retry-pushback-ms")?;
    let milliseconds = milliseconds.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(milliseconds))
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an error of `kind`: the operation `what` (verb and object: `import disk.img`) failed
    /// because of `why`.
    pub fn new(kind: ErrorKind, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            why: why.into(),
            source: None,
        }
    }

    /// Creates an error of a local file in the operation `what`.
    pub fn file(what: impl Into<String>, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfSpace,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::File,
        };
        Self {
            kind,
            what: what.into(),
            why: plain_io(&error),
            source: Some(Box::new(error)),
        }
    }

    /// Converts the status of an answer.
    pub(crate) fn rpc(what: impl Into<String>, status: Status) -> Self {
        // A status with a source was made on this side, by a transport that failed. Its code means
        // nothing: the remedy is the same for all of them.
        let lost = status.source().is_some();
        let kind = match status.code() {
            _ if lost => ErrorKind::Unreachable,
            Code::ResourceExhausted if pushback(&status).is_some() => ErrorKind::Unavailable,
            code => ErrorKind::from_code(code),
        };
        let why = if Unanswered::is_behind(&status) {
            format!(
                "lost the connection to the daemon right after the TLS handshake: {}",
                innermost(&status)
            )
        } else if lost {
            format!("lost the connection to the daemon: {}", innermost(&status))
        } else if status.message().is_empty() {
            format!("the daemon answered {:?}", status.code())
        } else {
            status.message().to_owned()
        };
        Self {
            kind,
            what: what.into(),
            why,
            source: Some(Box::new(status)),
        }
    }

    /// The daemon broke the protocol.
    pub(crate) fn protocol(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            ErrorKind::Internal,
            what,
            format!("the daemon broke the protocol: {}", why.into()),
        )
    }

    /// A bug on this side.
    pub(crate) fn internal(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, what, why)
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, which tells the caller what to do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The reason.
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
        self.source.as_deref().map(|source| source as _)
    }
}

/// An error of the system without Rust's "(os error 2)".
fn plain_io(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// The first cause of an error: the layers above it only say that a transport failed.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<io::Error>() {
        Some(io) => plain_io(io),
        None => last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_message_of_the_daemon_is_passed_on_with_what_was_done() {
        let error = Error::rpc(
            "delete snapshot web-1",
            Status::not_found("snapshot \"web-1\" does not exist"),
        );
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(
            error.to_string(),
            "delete snapshot web-1: snapshot \"web-1\" does not exist"
        );
    }

    #[test]
    fn a_code_without_a_message_still_says_something() {
        let error = Error::rpc("get status", Status::internal(""));
        assert_eq!(
            error.to_string(),
            "get status: the daemon answered Internal"
        );
    }

    #[test]
    fn a_transport_that_failed_is_a_daemon_that_cannot_be_reached() {
        let broken = io::Error::from_raw_os_error(32);
        let error = Error::rpc("put chunks", Status::from_error(Box::new(broken)));
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert_eq!(
            error.why(),
            "lost the connection to the daemon: Broken pipe"
        );
    }

    #[test]
    fn a_caller_whom_the_daemon_does_not_know_differs_from_one_who_may_not() {
        for (status, kind) in [
            (Status::unauthenticated("who?"), ErrorKind::Unauthenticated),
            (Status::permission_denied("no"), ErrorKind::Denied),
        ] {
            assert_eq!(Error::rpc("list volumes", status).kind(), kind);
        }
        assert_eq!(ErrorKind::Unauthenticated.as_str(), "unauthenticated");
    }

    #[test]
    fn a_daemon_that_has_stopped_writing_is_not_an_unreachable_one() {
        let error = Error::rpc(
            "import a",
            Status::unavailable("the store is read-only: fdatasync failed"),
        );
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
