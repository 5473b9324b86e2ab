//! Failures of calls, and the one match from kinds of failures to gRPC codes.

use std::time::Duration;

use tonic::{Code, Status};

use crate::{
    error::{Classified, ErrorKind},
    limits,
    resources::shares::{Busy, GaveWay},
    service::Error,
};

/// The reason why a call fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The operation fails.
    #[error(transparent)]
    Service(#[from] Error),
    /// The request could not be received: it is too long, malformed or incomplete. The text is the
    /// transport's.
    #[error("{}", .0.message())]
    Receive(Status),
    /// There was no room for the answer of an operation that was carried out.
    #[error(
        "the call was carried out, and there was no room for its answer of {bytes} bytes: look at \
         what it made"
    )]
    Unanswered {
        /// Length of the answer.
        bytes: usize,
    },
    /// The client does not take the answer.
    #[error("the client took nothing of the answer for {seconds} seconds")]
    Untaken {
        /// The time without progress.
        seconds: u64,
    },
}

impl From<Busy> for Failure {
    fn from(busy: Busy) -> Self {
        Error::from(busy).into()
    }
}

impl From<GaveWay> for Failure {
    fn from(gave_way: GaveWay) -> Self {
        Error::from(gave_way).into()
    }
}

impl Failure {
    /// When the same call can succeed, if it can.
    fn pushback(&self) -> Option<Duration> {
        match self {
            Self::Service(error) => error.pushback(),
            Self::Untaken { .. } => Some(limits::BUSY_PUSHBACK),
            Self::Unanswered { .. } | Self::Receive(_) => None,
        }
    }
}

impl Classified for Failure {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Service(error) => error.kind(),
            Self::Untaken { .. } => ErrorKind::ResourceExhausted,
            Self::Unanswered { .. } => ErrorKind::Unavailable,
            Self::Receive(status) => kind(status.code()),
        }
    }

    fn is_alarming(&self) -> bool {
        match self {
            Self::Service(error) => error.is_alarming(),
            other => other.kind().is_alarming(),
        }
    }
}

/// The gRPC code of each kind.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Internal => Code::Internal,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
    }
}

/// The kind that is nearest to a code of the transport.
fn kind(code: Code) -> ErrorKind {
    match code {
        Code::Cancelled => ErrorKind::Cancelled,
        Code::InvalidArgument | Code::Unimplemented => ErrorKind::InvalidArgument,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        Code::FailedPrecondition | Code::Aborted => ErrorKind::FailedPrecondition,
        Code::OutOfRange => ErrorKind::OutOfRange,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::DataLoss => ErrorKind::DataLoss,
        Code::Internal | Code::Unknown | Code::Ok => ErrorKind::Internal,
    }
}

/// The metadata that distinguishes "try again later" from a full disk, which has the same code:
/// gRPC clients retry after this many milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

impl From<&Failure> for Status {
    fn from(failure: &Failure) -> Self {
        if let Failure::Receive(status) = failure {
            // Keep the metadata that says when to try again.
            return status.clone();
        }
        let mut status = Self::new(code(failure.kind()), failure.to_string());
        if let Some(pushback) = failure.pushback() {
            // Not sooner than that.
            let pushback = pushback.as_nanos().div_ceil(1_000_000);
            if let Ok(pushback) = pushback.to_string().parse() {
                status.metadata_mut().insert(PUSHBACK, pushback);
            }
        }
        status
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self::from(&failure)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use varve_content::{ChunkId, chunker::check_canonical, tree::Leaf};
    use varve_store::{Damage, Error, JournalLimit, Place, Quota};

    use super::{Error as ServiceError, *};
    use crate::tasks::TaskEnded;

    #[test]
    fn every_error_of_the_store_has_its_code_and_keeps_its_text() {
        let id = ChunkId::of(b"x");
        let path = std::path::PathBuf::from("/data/packs/x");
        let cases = [
            (
                Error::NotFound {
                    what: "snapshot",
                    name: "web".into(),
                },
                Code::NotFound,
                "\"web\"",
            ),
            (
                Error::AlreadyExists {
                    what: "snapshot",
                    name: "web".into(),
                    id: "snap-1".into(),
                },
                Code::AlreadyExists,
                "snap-1",
            ),
            (
                Error::Attached { name: "db".into() },
                Code::FailedPrecondition,
                "\"db\" is attached",
            ),
            (
                Error::NotCompleted {
                    name: "web".into(),
                    state: "failed",
                    why: "no space left".into(),
                },
                Code::FailedPrecondition,
                "\"web\" is failed: no space left",
            ),
            (
                Error::HasPending {
                    name: "db".into(),
                    count: 2,
                },
                Code::FailedPrecondition,
                "\"db\" has 2 pending snapshots",
            ),
            (
                Error::Invalid("0 bytes".into()),
                Code::InvalidArgument,
                "0 bytes",
            ),
            (
                Error::NotCanonical {
                    id,
                    source: check_canonical(&[0; 4096]).unwrap_err(),
                },
                Code::InvalidArgument,
                "is not cut as chunker version",
            ),
            (
                Error::Tree(Leaf::new(Vec::new()).unwrap_err()),
                Code::InvalidArgument,
                "tree node",
            ),
            (
                Error::Damaged(Damage {
                    place: Place::File {
                        path: path.clone(),
                        offset_bytes: 4096,
                    },
                    what: "chunk 1234".into(),
                    problem: "crc differs".into(),
                    snapshots: vec!["web".into()],
                }),
                Code::DataLoss,
                "4096: chunk 1234",
            ),
            (
                Error::Full {
                    verb: "write",
                    path: path.clone(),
                },
                Code::ResourceExhausted,
                "no space left",
            ),
            (
                Error::JournalFull {
                    path: path.clone(),
                    limit: JournalLimit::Bytes(1 << 20),
                },
                Code::ResourceExhausted,
                "limit of 1048576 bytes",
            ),
            (
                Error::Reserved {
                    path: path.clone(),
                    kept_bytes: 64 << 20,
                },
                Code::ResourceExhausted,
                "no space left on the file system of /data/packs/x except the 64 MiB",
            ),
            (
                Error::Dropped,
                Code::ResourceExhausted,
                "free space and upload again",
            ),
            (
                Error::System {
                    verb: "start a thread",
                    source: std::io::ErrorKind::WouldBlock.into(),
                },
                Code::Internal,
                "cannot start a thread",
            ),
            (
                Error::Internal("a record is elsewhere".into()),
                Code::Internal,
                "a record is elsewhere",
            ),
            (
                Error::Poisoned {
                    reason: "fdatasync: EIO".into(),
                },
                Code::Unavailable,
                "fdatasync: EIO",
            ),
            (
                Error::Limit("64 uploads".into()),
                Code::Unavailable,
                "64 uploads",
            ),
            (
                Error::Quota {
                    account: "web".into(),
                    quota: Quota::Snapshots,
                    limit: 10,
                    used: 8,
                    more: 3,
                },
                Code::ResourceExhausted,
                "quota of snapshots of account \"web\": limit 10, used 8, left 2, needed 3",
            ),
            (
                Error::TooMany {
                    what: "volumes",
                    most: 4096,
                },
                Code::FailedPrecondition,
                "4096 volumes",
            ),
            (
                Error::InUse(path.clone()),
                Code::FailedPrecondition,
                "in use",
            ),
            (
                Error::Incompatible {
                    path: path.clone(),
                    why: "format 9".into(),
                },
                Code::FailedPrecondition,
                "format 9",
            ),
            (
                Error::Shortage {
                    verb: "open",
                    path: path.clone(),
                    source: std::io::Error::other("too many open files"),
                },
                Code::Unavailable,
                "for now: too many open files",
            ),
            (
                Error::Io {
                    verb: "read",
                    path,
                    source: std::io::Error::other("EIO"),
                },
                Code::Internal,
                "cannot read /data/packs/x",
            ),
            (
                Error::Index {
                    verb: "look up",
                    message: "gone".into(),
                },
                Code::Internal,
                "gone",
            ),
            (Error::Closing, Code::Unavailable, "closing"),
        ];
        for (error, code, text) in cases {
            let status = Status::from(&Failure::Service(error.into()));
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{status}");
        }
    }

    #[test]
    fn every_other_failure_has_its_code() {
        let cases: [(Failure, Code, &str); 9] = [
            (
                ServiceError::field("name", "empty").into(),
                Code::InvalidArgument,
                "name: empty",
            ),
            (
                ServiceError::TooMuch {
                    field: "ids",
                    unit: "ids",
                    found: 9000,
                    most: 8192,
                }
                .into(),
                Code::OutOfRange,
                "9000 ids, at most 8192",
            ),
            (
                ServiceError::Silent { seconds: 600 }.into(),
                Code::DeadlineExceeded,
                "600",
            ),
            (
                Busy("uploads").into(),
                Code::ResourceExhausted,
                "the limit of uploads under way is reached",
            ),
            (
                ServiceError::from(TaskEnded::Panicked { name: "read" }).into(),
                Code::Internal,
                "\"read\"",
            ),
            (
                ServiceError::from(TaskEnded::Stopped { name: "read" }).into(),
                Code::Unavailable,
                "stopped",
            ),
            (
                Failure::Receive(Status::out_of_range("too large")),
                Code::OutOfRange,
                "too large",
            ),
            (ServiceError::CallerGone.into(), Code::Cancelled, "gone"),
            (ServiceError::Stopping.into(), Code::Unavailable, "stopping"),
        ];
        for (failure, code, text) in cases {
            let status = Status::from(&failure);
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{status}");
        }
    }

    #[test]
    fn numbers_of_kinds_are_those_of_codes() {
        for number in 0..17 {
            let kind = kind(Code::from_i32(number));
            assert_eq!(code(kind) as i32, i32::from(kind.number()));
        }
    }
}
