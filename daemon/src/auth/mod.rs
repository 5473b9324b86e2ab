//! Callers, and the one door that every operation passes through.
//!
//! - `caller`: who asks, made once for each connection, where it is accepted.
//! - `door`: what a caller wants to do, on what, and the function that lets it.
//!
//! Every caller is the administrator today: a peer that may connect may do everything. Sockets and
//! TLS decide who may connect, see [`net`](crate::net).

mod caller;
mod door;

pub use caller::{Caller, Face};
pub(crate) use door::{Action, Attempt, Resource, pass};
