//! Ends of commands: exit codes and errors.

use std::{error::Error as _, fmt, io, process::ExitCode};

use serde_json::json;
use varve_client::{Error, ErrorKind};
use varve_content::printable::printable_json;

use crate::output::{self, Output};

/// The exit codes, for `--help`.
pub(crate) const HELP: &str = "\
Exit codes: 0 success, 1 failure, 2 wrong usage or an invalid value, 3 not found (a snapshot or \
volume, for example), 4 exists already, 5 daemon not reachable, \
6 damage found, 7 no space left or a quota used up, 8 not possible in this state (a volume is attached, for example), \
130 interrupted, 141 output closed by its reader.

With --output json, an error is JSON too, on standard error: {\"error\": {\"kind\": KIND, \
\"message\": TEXT}}. Nothing else is \
written there. KIND is one of: not_found, already_exists, invalid, conflict, unreachable, out_of_space, damaged, unavailable, denied, unauthenticated, file, \
cancelled, internal. (Damage that a verification finds is a result, on standard output.)";

/// The reason why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of the library or of the daemon.
    Client(Error),
    /// Verification found damage, and has reported it.
    Violations,
    /// A signal ended the command.
    Interrupted,
    /// The reader of the output has closed it. The command prints nothing then.
    OutputClosed,
}

impl Failure {
    /// Something on this machine that is not a file.
    pub(crate) fn local(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Client(Error::new(ErrorKind::File, what, why))
    }

    /// The command line is wrong in a way that shows only when the command runs.
    pub(crate) fn usage(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Client(Error::new(ErrorKind::Invalid, what, why))
    }

    /// A write to standard output failed.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Client(Error::file("write to standard output", error))
        }
    }

    /// Adds advice to the error.
    pub(crate) fn with_advice(self, advice: Option<String>) -> Self {
        match (self, advice) {
            (Self::Client(error), Some(advice)) => {
                let why = format!("{}: {advice}", error.why());
                Self::Client(Error::new(error.kind(), error.what(), why))
            }
            (other, _) => other,
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Client(error) => match error.kind() {
                ErrorKind::Invalid => 2,
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

impl From<varve_device::Error> for Failure {
    fn from(error: varve_device::Error) -> Self {
        use varve_device::ErrorKind as Device;
        let kind = match error.kind() {
            Device::NotFound => ErrorKind::NotFound,
            Device::Invalid => ErrorKind::Invalid,
            Device::Conflict => ErrorKind::Conflict,
            Device::Unreachable => ErrorKind::Unreachable,
            Device::Unavailable => ErrorKind::Unavailable,
            Device::Denied => ErrorKind::Denied,
            Device::OutOfSpace => ErrorKind::OutOfSpace,
            Device::File => ErrorKind::File,
            _ => ErrorKind::Internal,
        };
        Self::Client(Error::new(kind, error.what(), error.why()))
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

/// Prints the reason why a command failed, and returns its exit code.
pub(crate) fn report(failure: &Failure, output: Output) -> ExitCode {
    let kind = match failure {
        Failure::Client(error) => Some(error.kind()),
        Failure::Interrupted => Some(ErrorKind::Cancelled),
        Failure::Violations | Failure::OutputClosed => None,
    };
    if let Some(kind) = kind {
        match output {
            Output::Table | Output::Wide => output::tell(format_args!("snapctl: {failure}")),
            Output::Json => tell_json(kind, &failure.to_string()),
        }
    }
    ExitCode::from(failure.code())
}

/// Prints the reason why a command failed as JSON.
pub(crate) fn tell_json(kind: ErrorKind, message: &str) {
    let error = json!({ "error": { "kind": kind.as_str(), "message": message } });
    output::tell(printable_json(&error.to_string()));
}
