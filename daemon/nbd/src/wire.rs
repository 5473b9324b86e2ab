//! Every NBD message as bytes, and nothing else: no IO, no state, no policy.
//!
//! Layouts and numbers are those of `doc/proto.md` in
//! <https://github.com/NetworkBlockDevice/nbd>. All numbers are big-endian. The `decode_*` functions
//! take exactly one message and answer with a [`WireError`] for anything that is not one; they never
//! panic and allocate no more than a small multiple of what they are given. The `encode_*` functions
//! cannot fail.
//!
//! A server needs the messages of both phases. A client that hands its socket to the kernel after the
//! handshake needs those of the handshake only: they are there in both directions.

#![deny(clippy::indexing_slicing, clippy::panic)]

mod client;
mod fields;
mod handshake;
mod reply;
mod request;

#[cfg(test)]
mod tests;

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

/// Why bytes are not the message they were taken for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    #[error("{message}: ends before its {field}")]
    Truncated {
        message: &'static str,
        field: &'static str,
    },
    #[error("{message}: {extra_bytes} bytes too many")]
    Trailing {
        message: &'static str,
        extra_bytes: usize,
    },
    #[error("{message}: starts with {found:#x}, not {wanted:#x}")]
    Magic {
        message: &'static str,
        found: u64,
        wanted: u64,
    },
    #[error("client flags: unknown bits in {flags:#x}")]
    ClientFlags { flags: u32 },
    #[error("{message}: {field} of {length_bytes} bytes is too long")]
    StringTooLong {
        message: &'static str,
        field: &'static str,
        length_bytes: usize,
    },
    #[error("{message}: {field} is not UTF-8 without NUL")]
    NotText {
        message: &'static str,
        field: &'static str,
    },
    #[error("{message}: {count} queries are too many")]
    TooManyQueries { message: &'static str, count: u32 },
}
