//! Errors that end a handshake and its connection.

use std::io;
use std::time::Duration;

use crate::export::ExportError;
use crate::limits::MAX_OPTIONS;
use crate::wire::WireError;

/// The reason why there is no slot for a connection, as the client gets it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct NoPlace(pub String);

/// An error that ends a handshake and its connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection is lost.
    #[error("talk to the client: {0}")]
    Io(#[from] io::Error),
    /// The client sent something that is not a message of the handshake.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client took too long.
    #[error("the handshake took {after:.1?}; the limit is {limit:?}")]
    TimedOut {
        /// The time that the handshake took.
        after: Duration,
        /// The time limit.
        limit: Duration,
    },
    /// The handshake was closed for a new connection.
    #[error("it was closed for a new connection: the limit of handshakes is reached")]
    Displaced,
    /// The data of an option are too long.
    #[error("option {option} has {data_bytes} bytes of data")]
    OptionTooBig {
        /// The option, as sent.
        option: u32,
        /// Length of its data.
        data_bytes: u32,
    },
    /// TLS is required, and `EXPORT_NAME` leaves no way to say so.
    #[error("the client wants an export without TLS")]
    NotSecure,
    /// Plaintext behind `STARTTLS` must not be mistaken for the content of the TLS connection.
    #[error("the client sent more in the clear after it asked for TLS")]
    BeforeTls,
    /// TLS cannot be begun.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The client sends options without end.
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
    /// A client that does not understand replies sends an option.
    #[error("option {option} without fixed newstyle")]
    NotFixedNewstyle {
        /// The option, as sent.
        option: u32,
    },
    /// The protocol has `GO` for that.
    #[error("EXPORT_NAME after extended headers were agreed on")]
    ExtendedExportName,
    /// `EXPORT_NAME` leaves no other way to refuse.
    #[error("refuse EXPORT_NAME: {0}")]
    Refused(ExportError),
    /// `EXPORT_NAME` leaves no other way to say that there is no place.
    #[error("refuse EXPORT_NAME: {0}")]
    NoPlace(NoPlace),
}
