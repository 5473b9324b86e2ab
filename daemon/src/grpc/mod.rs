//! The gRPC services: what clients and other programs ask for snapshots, volumes and content with.
//!
//! ```text
//! connections ──> serve ──> routes ──> snapshots, volumes, content, status ──> calls ──> store
//!                                           │ convert, pages, page_token
//!                                           └ uploads
//! ```
//!
//! - `connections`: sockets, bounded in number.
//! - `serve`: HTTP/2 and calls, with a bound for all that peers can make the daemon hold.
//! - `snapshots`, `volumes`, `content`, `status`, `replication`, `copies`, `remotes`: one file for each service; methods are thin.
//! - `calls`: how a method runs: its errors are logged and become a status there, and nowhere else.
//! - `convert`: every conversion between protocol and store, and every check of what a field may hold.
//! - `failure`: why a call fails, and the one match from the store's errors to gRPC's codes.
//! - `uploads`: the table of open uploads.
//! - `health`: what the standard health service says.

mod connections;
pub(crate) mod content;
pub(crate) mod convert;
mod copies;
mod health;
mod remotes;
mod replication;
mod routes;
pub(crate) mod serve;
mod snapshots;
mod status;
mod volumes;

#[cfg(test)]
mod tests;

use crate::service::{
    error as failure, page_token, pages, streams as calls, uploads::table as uploads,
};
pub use connections::{Connection, Connections, Tls};
pub use health::Health;
pub use routes::{Context, RoutesError, routes};
pub use serve::Serving;
pub use status::Facts;
pub use uploads::Uploads;
