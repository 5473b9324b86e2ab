//! The NBD protocol: exports as block devices, for QEMU, the kernel's client and libnbd's tools.
//!
//! The protocol is `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>; section names in
//! this module's comments are that document's.
//!
//! A connection is one task from accept to close, and passes through two phases:
//!
//! ```text
//! listener ─accept─> handshake ──GO──> transmission ──> close
//!                        │                  │
//!                    Exports::open     Export::read, write, flush and so on
//! ```
//!
//! After `STARTTLS`, the handshake begins again inside TLS, and the terms from before are dropped.
//!
//! - [`wire`]: every message as bytes; pure, no IO. The only file that knows a magic number.
//! - [`limits`]: the bounds of one connection, and of all together.
//! - [`export`]: the interface to the store: a directory of exports, and one export.
//! - [`ExportName`]: the names of exports, and the tickets in them. [`ServerUri`]: their addresses,
//!   as URIs.
//! - `handshake`: fixed newstyle option haggling; ends in an opened export and the agreed terms.
//! - `transmission`: requests in, replies out, many at a time and in any order.
//! - `inbox`, `budget`: the received bytes of a connection, and its memory.
//!
//! The last three need the feature `server`. The user of this crate provides listeners, TLS and the
//! exports themselves: the crate knows nothing of the daemon or its store.
//!
//! No input of a peer causes a panic, or makes a connection hold more than [`limits`] allows. A
//! peer that breaks the protocol loses only its own connection.

#![warn(missing_docs)]

#[cfg(feature = "server")]
pub mod budget;
pub mod export;
#[cfg(feature = "server")]
pub mod handshake;
#[cfg(feature = "server")]
pub mod inbox;
pub mod limits;
mod names;
#[cfg(feature = "server")]
pub mod transmission;
mod uri;
pub mod wire;

#[cfg(any(all(test, feature = "server"), feature = "testing"))]
pub mod testing;

pub use export::{Access, ChangedExtent, Export, ExportError, ExportInfo, Exports, Extent, Piece};
pub use names::{ExportName, TICKET_PREFIX, split_ticket, without_tickets};
pub use uri::{ServerUri, UriError};
