//! varved: serves a Varve store over gRPC and NBD.
//!
//! - [`config`]: arguments, environment, file; [`limits`]: every bound.
//! - [`server`]: starts everything, and stops it cleanly.
//! - [`grpc`]: snapshots, content, status; [`nbd`]: snapshots as block devices, through
//!   [`exports`].
//! - [`sockets`]: listeners of both; [`net`]: who may connect; [`tasks`]: the only place that
//!   starts tasks; `shares`: places and bytes that several share.
//! - [`copies`]: snapshots from other daemons; [`tls`]: how these are asked.
//! - [`telemetry`]: the log; [`memory`]: how much there is; [`descriptors`]: how many open files, and who gets them.
//!
//! What must hold: nothing here decides what is durable or true, the store does. Everything a
//! client can make the daemon hold or do at one time is bounded.

// What is said goes through what can fail and escapes: `println` panics where nobody can be told.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod code;
pub mod config;
pub mod copies;
pub mod descriptors;
pub mod exports;
pub mod grpc;
pub mod limits;
pub mod memory;
pub mod nbd;
pub mod net;
pub mod server;
mod shares;
pub mod sockets;
pub mod tasks;
pub mod telemetry;
pub mod tls;
