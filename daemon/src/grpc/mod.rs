//! The gRPC services for clients and other programs: snapshots, volumes and content.
//!
//! ```text
//! connections ──> serve ──> routes ──> snapshots, volumes, content and so on ──> service
//!                                           └ calls, convert, failure
//! ```
//!
//! - `connections`: sockets, bounded in number.
//! - `serve`: HTTP/2 and calls, with bounds on all resources that peers can take. It makes the
//!   [`Caller`](crate::auth::Caller) of a connection.
//! - `snapshots`, `volumes`, `content`, `status`, `replication`, `copies`, `remotes`, `accounts`,
//!   `gc`: one file for each service. Methods decode, call the `service`, and encode.
//! - `calls`: the common part of all methods.
//! - `convert`: every conversion between messages and the service's types.
//! - `failure`: the one match from kinds of failures to gRPC's codes.
//! - `health`: the standard health service.

mod accounts;
mod calls;
mod connections;
mod content;
mod convert;
mod copies;
mod failure;
mod gc;
mod health;
mod images;
mod remotes;
mod replication;
mod routes;
mod serve;
mod snapshots;
mod status;
mod volumes;

#[cfg(test)]
mod tests;

pub use connections::{Connection, Connections, Tls};
pub use health::Health;
pub use routes::RoutesError;
pub(crate) use routes::routes;
pub use serve::Serving;
