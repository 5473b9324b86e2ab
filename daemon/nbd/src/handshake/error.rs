//! What ends a handshake, and its connection.

use std::io;
use std::time::Duration;

use crate::export::ExportError;
use crate::limits::MAX_OPTIONS;
use crate::wire::WireError;

/// Why there is no place for a connection: what the client is told.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct NoPlace(pub String);

#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("talk to the client: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the handshake has taken {after:.1?}; the client may take {limit:?} for all of it")]
    TimedOut { after: Duration, limit: Duration },
    #[error("a newcomer takes its turn: as many handshakes as allowed are under way")]
    Displaced,
    #[error("option {option} has {data_bytes} bytes of data")]
    OptionTooBig { option: u32, data_bytes: u32 },
    #[error("the client wants an export without TLS")]
    NotSecure,
    #[error("the client sent more in the clear after it asked for TLS")]
    BeforeTls,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
    #[error("option {option} without fixed newstyle")]
    NotFixedNewstyle { option: u32 },
    /// The protocol has `GO` for that.
    #[error("EXPORT_NAME after extended headers were agreed on")]
    ExtendedExportName,
    /// `EXPORT_NAME` leaves no other way to refuse.
    #[error("refuse EXPORT_NAME: {0}")]
    Refused(ExportError),
    /// The same.
    #[error("refuse EXPORT_NAME: {0}")]
    NoPlace(NoPlace),
}
