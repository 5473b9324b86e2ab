//! Why a call fails, by what its caller does about it.

use tonic::{Code, Status};
use varve_store::Error;

use crate::{
    code::store_code,
    limits,
    shares::{Busy, GaveWay},
    tasks::TaskEnded,
};

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The store says no.
    #[error(transparent)]
    Store(#[from] Error),
    /// A field of the request cannot be right. Mend it.
    #[error("{field}: {problem}")]
    Field {
        /// As the protocol calls it.
        field: &'static str,
        /// With the value.
        problem: String,
    },
    /// More at one time than is taken. Send it in several messages.
    #[error("{field}: {found} {unit}, at most {most} are taken in one message")]
    TooMuch {
        /// As the protocol calls it.
        field: &'static str,
        /// "ids", "bytes of payload".
        unit: &'static str,
        /// How many came.
        found: u64,
        /// How many may come.
        most: u64,
    },
    /// As much is under way as is allowed.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// It did not go on, and others waited for its place.
    #[error(transparent)]
    GaveWay(#[from] GaveWay),
    /// A stream on which nothing came for so long that it was given up.
    #[error("nothing was received for {seconds} seconds")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// An answer that is not taken.
    #[error("nothing of the answer was taken for {seconds} seconds")]
    Untaken {
        /// How long.
        seconds: u64,
    },
    /// Another daemon, which a copy was to be made from, is at fault.
    #[error("{problem}")]
    Source {
        /// What the caller does about it.
        code: Code,
        /// In words.
        problem: String,
    },
    /// The work was done by a task, and it ended early.
    #[error(transparent)]
    Task(#[from] TaskEnded),
    /// What came could not be received: too long, garbled, or cut off. The text is the transport's.
    #[error("{}", .0.message())]
    Receive(Status),
    /// Nobody takes the answer any more.
    #[error("the client has gone")]
    ClientGone,
    /// No more calls are served.
    #[error("the daemon is stopping")]
    Stopping,
}

impl Failure {
    pub(super) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field {
            field,
            problem: problem.into(),
        }
    }

    /// What the caller is told.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Store(error) => store_code(error),
            Self::Field { .. } => Code::InvalidArgument,
            Self::TooMuch { .. } => Code::OutOfRange,
            Self::Silent { .. } => Code::DeadlineExceeded,
            Self::Busy(_) | Self::GaveWay(_) | Self::Untaken { .. } => Code::ResourceExhausted,
            Self::Task(TaskEnded::Panicked { .. }) => Code::Internal,
            Self::Receive(status) => status.code(),
            Self::Source { code, .. } => *code,
            Self::ClientGone => Code::Cancelled,
            Self::Task(TaskEnded::Stopped { .. }) | Self::Stopping => Code::Unavailable,
        }
    }
}

/// What tells "try again later" from a full disk, which has the same code. As gRPC's own clients read it: after so many milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

impl From<&Failure> for Status {
    fn from(failure: &Failure) -> Self {
        if let Failure::Receive(status) = failure {
            // With what it says of when to come again.
            return status.clone();
        }
        let mut status = Self::new(failure.code(), failure.to_string());
        if let Failure::Busy(_) | Failure::GaveWay(_) | Failure::Untaken { .. } = failure {
            let pushback = limits::BUSY_PUSHBACK.as_millis();
            if let Ok(pushback) = pushback.to_string().parse() {
                status.metadata_mut().insert(PUSHBACK, pushback);
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use varve_content::{ChunkId, chunker::check_canonical, tree::Leaf};
    use varve_store::{Damage, Place};

    use super::*;

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
                Error::Reserved {
                    path: path.clone(),
                    kept_bytes: 64 << 20,
                },
                Code::ResourceExhausted,
                "no space left on the file system of /data/packs/x but the 64 MiB",
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
            let status = Status::from(&Failure::from(error));
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{status}");
        }
    }

    #[test]
    fn every_other_failure_has_its_code() {
        let cases = [
            (
                Failure::field("name", "empty"),
                Code::InvalidArgument,
                "name: empty",
            ),
            (
                Failure::TooMuch {
                    field: "ids",
                    unit: "ids",
                    found: 9000,
                    most: 8192,
                },
                Code::OutOfRange,
                "9000 ids, at most 8192",
            ),
            (
                Failure::Silent { seconds: 600 },
                Code::DeadlineExceeded,
                "600",
            ),
            (
                Busy("uploads").into(),
                Code::ResourceExhausted,
                "as many uploads as allowed are under way",
            ),
            (
                TaskEnded::Panicked { name: "read" }.into(),
                Code::Internal,
                "\"read\"",
            ),
            (
                TaskEnded::Stopped { name: "read" }.into(),
                Code::Unavailable,
                "stopped",
            ),
            (
                Failure::Receive(Status::out_of_range("too large")),
                Code::OutOfRange,
                "too large",
            ),
            (Failure::ClientGone, Code::Cancelled, "gone"),
            (Failure::Stopping, Code::Unavailable, "stopping"),
        ];
        for (failure, code, text) in cases {
            let status = Status::from(&failure);
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{status}");
        }
    }
}
