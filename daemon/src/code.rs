//! The status codes of gRPC, for what the store says.

use tonic::Code;
use varve_store::Error;

/// The gRPC code of each error of the store. Exhaustive on purpose: a new error has to be thought about here.
pub(crate) fn store_code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::Invalid(_) | Error::NotCanonical { .. } | Error::Tree(_) => Code::InvalidArgument,
        Error::Damaged(_) => Code::DataLoss,
        Error::Full { .. } | Error::Reserved { .. } | Error::Dropped => Code::ResourceExhausted,
        // A limit on what is under way: later there is room again. Only a full disk needs somebody to act.
        Error::Limit(_) | Error::Shortage { .. } | Error::Poisoned { .. } | Error::Closing => {
            Code::Unavailable
        }
        Error::Attached { .. }
        | Error::NotCompleted { .. }
        | Error::HasPending { .. }
        | Error::TooMany { .. }
        | Error::InUse(_)
        | Error::Incompatible { .. } => Code::FailedPrecondition,
        Error::Io { .. } | Error::System { .. } | Error::Index { .. } | Error::Internal(_) => {
            Code::Internal
        }
    }
}
