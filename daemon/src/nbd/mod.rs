//! The NBD server: [`varve_nbd`] on this daemon's sockets, with TLS and places.
//!
//! - [`server`]: listeners, admission (by [`net`](crate::net)), clean shutdown.

pub mod server;

pub use server::{Server, ServerOptions, Tls};
