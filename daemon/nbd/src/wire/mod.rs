//! The encoding of every NBD message. Pure: no IO, no state, no policy.
//!
//! Layouts and numbers are those of `doc/proto.md` in <https://github.com/NetworkBlockDevice/nbd>.
//! All numbers are big-endian. The `decode_*` functions take exactly one message and return a
//! [`WireError`] for anything else. They never panic, and allocate no more than a small multiple of
//! their input. The `encode_*` functions cannot fail.
//!
//! A server needs the messages of both phases. A client that hands its socket to the kernel after
//! the handshake needs those of the handshake only: they are there in both directions.

#![deny(clippy::indexing_slicing, clippy::panic)]

mod client;
mod fields;
mod handshake;
mod reply;
mod request;

#[cfg(test)]
mod tests;

use crate::limits;

pub use client::{
    ExportDetails, GREETING_BYTES, OPTION_REPLY_HEADER_BYTES, OptionReplyHeader, ServerFlags,
    decode_export_info, decode_greeting, decode_option_reply_header, encode_client_flags,
    encode_info_request, encode_option,
};
pub use handshake::{
    CLIENT_FLAGS_BYTES, ClientFlags, Greeting, InfoKind, InfoRequest, MetaQuery,
    OPTION_HEADER_BYTES, OptionCode, OptionHeader, OptionReplyCode, TransmissionFlags,
    decode_client_flags, decode_export_name, decode_info_request, decode_meta_query,
    decode_option_header, encode_block_size_info, encode_export_info, encode_export_name_reply,
    encode_greeting, encode_listed_export, encode_meta_context, encode_option_reply,
    encode_text_info,
};
pub use reply::{
    Answered, ChunkKind, ErrorCode, Head, MAX_HEAD_BYTES, StatusFlags, encode_block_status,
    encode_done, encode_error, encode_offset_data_header, encode_offset_hole, encode_simple_reply,
};
pub use request::{
    Command, CommandFlags, Framing, MAX_REQUEST_HEADER_BYTES, REQUEST_BYTES, Request, StatusQuery,
    decode_request, decode_status_query,
};

// The memory of a message is within the charge of its request.
const _: () = assert!(size_of::<(u64, StatusFlags)>() <= limits::EXTENT_BYTES as usize);
const _: () =
    assert!(limits::INBOX_BYTES >= limits::MAX_REQUESTS_IN_FLIGHT * MAX_REQUEST_HEADER_BYTES);

/// The reason why bytes are not the expected message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    /// The message ends too early.
    #[error("{message}: ends before its {field}")]
    Truncated {
        /// The message, in words.
        message: &'static str,
        /// The field that is missing.
        field: &'static str,
    },
    /// There are extra bytes behind the message.
    #[error("{message}: {extra_bytes} bytes too many")]
    Trailing {
        /// The message, in words.
        message: &'static str,
        /// Bytes behind the message.
        extra_bytes: usize,
    },
    /// The message begins with the wrong magic number.
    #[error("{message}: starts with {found:#x}, not {wanted:#x}")]
    Magic {
        /// The message, in words.
        message: &'static str,
        /// The number that it begins with.
        found: u64,
        /// The number that it must begin with.
        wanted: u64,
    },
    /// The client sets flags that the protocol does not have.
    #[error("client flags: unknown bits in {flags:#x}")]
    ClientFlags {
        /// All flags that it sent.
        flags: u32,
    },
    /// A string is longer than [`MAX_STRING_BYTES`](crate::limits::MAX_STRING_BYTES).
    #[error("{message}: {field} of {length_bytes} bytes is too long")]
    StringTooLong {
        /// The message, in words.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its length in bytes.
        length_bytes: usize,
    },
    /// A string is not text.
    #[error("{message}: {field} is not UTF-8 without NUL")]
    NotText {
        /// The message, in words.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// More queries than [`MAX_META_QUERIES`](crate::limits::MAX_META_QUERIES).
    #[error("{message}: {count} queries are too many")]
    TooManyQueries {
        /// The message, in words.
        message: &'static str,
        /// The number of queries.
        count: u32,
    },
}
