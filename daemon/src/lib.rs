//! varved: serves a Varve store over gRPC and NBD.
//!
//! - [`config`]: arguments, environment, file; [`limits`]: every bound.
//! - [`server`]: starts everything, and stops it cleanly.
//! - [`grpc`] and [`nbd`] with `exports`: what is spoken; both are faces of `service`.
//! - `service`: what the daemon does, whatever is spoken; [`auth`]: who asks, and the one door.
//! - `copies`: snapshots from other daemons.
//! - [`net`]: sockets, and who may connect; [`resources`]: what there is only so much of;
//!   [`tasks`]: the only place that starts tasks.
//! - [`telemetry`]: the log; `error`: what kind of failure an error is.
//!
//! Invariants: nothing here decides what is durable or true, the store does. Everything a client
//! can make the daemon hold or do at one time is bounded.

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
pub mod server;
mod service;
pub mod tasks;
pub mod telemetry;
