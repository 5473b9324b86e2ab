//! Callers, and the one door that every operation passes through.
//!
//! - `caller`: the caller, made once for each connection, where it is accepted.
//! - `door`: operations, their targets, and the function that permits them.
//!
//! Every caller is the administrator today: a peer that may connect may do everything. Sockets and
//! TLS decide who may connect, see [`net`](crate::net).

mod caller;
mod door;

pub use caller::{Caller, Face};
pub(crate) use door::{Action, Attempt, Resource, done, pass};
