//! How a command ends.

use std::{error::Error as _, fmt, io, process::ExitCode};

use serde_json::json;
use varve_client::{Error, ErrorKind};
use varve_content::printable::printable_json;

use crate::output::{self, Output};

/// The exit codes, for `--help`.
pub(crate) const HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such snapshot or volume, 4 exists already, 5 daemon not reachable, \
6 damage found, 7 no space left, 8 not possible in this state (as of a volume that is attached), 130 interrupted, 141 whoever read the output is gone.";

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library, or the daemon behind it, says why.
    Client(Error),
    /// Verification found damage, and has said so.
    Violations,
    /// A signal ended it.
    Interrupted,
    /// Whoever read the output wants no more of it: nothing to say, and nobody to say it to.
    OutputClosed,
}

impl Failure {
    /// Something on this machine that is not a file.
    pub(crate) fn local(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Client(Error::new(ErrorKind::File, what, why))
    }

    /// Standard output did not take what was written.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Client(Error::file("write to standard output", error))
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Client(error) => match error.kind() {
                ErrorKind::NotFound => 3,
                ErrorKind::AlreadyExists => 4,
                ErrorKind::Unreachable => 5,
                ErrorKind::Damaged => 6,
                ErrorKind::OutOfSpace => 7,
                ErrorKind::Conflict => 8,
                ErrorKind::Cancelled => 130,
                _ => 1,
            },
            Self::Violations => 6,
            Self::Interrupted => 130,
            // As if killed by SIGPIPE.
            Self::OutputClosed => 141,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let cause = error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>());
        if cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
            && error.kind() == ErrorKind::File
        {
            return Self::OutputClosed;
        }
        Self::Client(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(error) => error.fmt(f),
            Self::Violations => f.write_str("damage was found"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::OutputClosed => f.write_str("the output was closed"),
        }
    }
}

/// Says why a command failed, and gives its exit code.
pub(crate) fn report(failure: &Failure, output: Output) -> ExitCode {
    let kind = match failure {
        Failure::Client(error) => Some(error.kind()),
        Failure::Interrupted => Some(ErrorKind::Cancelled),
        Failure::Violations | Failure::OutputClosed => None,
    };
    if let Some(kind) = kind {
        match output {
            Output::Table => output::tell(format_args!("snapctl: {failure}")),
            Output::Json => output::tell(printable_json(
                &json!({ "error": { "kind": kind.as_str(), "message": failure.to_string() } })
                    .to_string(),
            )),
        }
    }
    ExitCode::from(failure.code())
}
