//! The NBD server: exports as block devices, for QEMU, the kernel's client and libnbd's tools.
//!
//! The protocol is `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>; section names in
//! this module's comments are that document's.
//!
//! A connection is one task from accept to close, and passes through two phases:
//!
//! ```text
//! server ──accept──> handshake ──GO──> transmission ──> close
//!                        │                  │
//!                    Exports::open     Export::read, write, flush and so on
//! ```
//!
//! After `STARTTLS` the handshake begins again inside of TLS, and all that was said before is forgotten.
//!
//! - [`wire`]: every message as bytes; pure, no IO. The only file that knows a magic number.
//! - [`limits`]: what one connection, and all of them together, may hold.
//! - [`export`]: the seam to the store: what a directory of exports and one export must offer.
//! - `handshake`: fixed newstyle option haggling; ends in an opened export and the agreed terms.
//! - `transmission`: requests in, replies out, many at a time and in any order.
//! - [`server`]: listeners, who comes in (by [`net`](crate::net)), clean shutdown.
//! - `inbox`, `budget`: what a connection has received, and what memory it holds.
//!
//! Nothing here panics on what a peer sends, and nothing a peer does can make a connection hold
//! more than [`limits`] allows. A peer that breaks the protocol loses its own connection only.

mod budget;
pub mod export;
mod handshake;
mod inbox;
pub mod limits;
pub mod server;
mod transmission;
pub mod wire;

#[cfg(test)]
mod testing;

pub use export::{Access, ChangedExtent, Export, ExportError, ExportInfo, Exports, Extent, Piece};
pub use server::{Server, ServerOptions, Tls};
