//! varved: serves a Varve store over gRPC and NBD.
//!
//! - [`config`]: arguments, environment, file; [`limits`]: every bound.
//! - [`server`]: starts everything, and stops it cleanly.
//! - [`grpc`] and [`nbd`] with `exports`: the protocols; both are faces of `service`.
//! - `service`: the operations, independent of the protocol; [`auth`]: callers, and the one door.
//! - `copies`: snapshots from other daemons. `scheduler`: work that begins by itself.
//! - [`net`]: sockets and connections; [`resources`]: scarce resources; [`tasks`]: the only place
//!   that starts tasks.
//! - [`telemetry`]: the log; `error`: the kinds of failures.
//!
//! Invariants: only the store decides about durability. All resources and operations of clients at
//! one time are bounded.

// Output goes through functions that can fail and escape: `println` panics if it cannot write.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod auth;
pub mod config;
mod copies;
mod error;
mod exports;
pub mod grpc;
pub mod limits;
pub mod nbd;
pub mod net;
pub mod resources;
mod scheduler;
pub mod server;
mod service;
pub mod tasks;
pub mod telemetry;
