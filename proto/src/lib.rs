//! The gRPC protocol of Varve, generated from `varve/v1/*.proto`.
//!
//! The `.proto` files are the documentation. Only the module tree, the servers' codec and
//! `Debug` of messages with secrets are written by hand.

mod requests;
mod secrets;

pub use requests::{RequestCodec, RequestDecoder};

/// Version 1 of the protocol.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::large_enum_variant,
    clippy::large_futures,
    clippy::doc_markdown,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("varve.v1");
    include!(concat!(env!("OUT_DIR"), "/servers/varve.v1.rs"));
}

/// The compiled descriptors of the protocol, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
