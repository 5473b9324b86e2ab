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
//! After `STARTTLS` the handshake begins again inside of TLS, and all that was said before is
//! forgotten.
//!
//! - [`wire`]: every message as bytes; pure, no IO. The only file that knows a magic number.
//! - [`limits`]: what one connection, and all of them together, may hold.
//! - [`export`]: the seam to the store: what a directory of exports and one export must offer.
//! - [`ExportName`]: what exports are called. [`ServerUri`]: where they are, as URIs.
//! - `handshake`: fixed newstyle option haggling; ends in an opened export and the agreed terms.
//! - `transmission`: requests in, replies out, many at a time and in any order.
//! - `inbox`, `budget`: what a connection has received, and what memory it holds.
//!
//! The last three are there with the feature `server`. Listeners, TLS and the exports themselves
//! are the user's: this crate knows nothing of the daemon or of its store.
//!
//! Nothing here panics on what a peer sends, and nothing a peer does can make a connection hold
//! more than [`limits`] allows. A peer that breaks the protocol loses its own connection only.

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
pub use names::ExportName;
pub use uri::{ServerUri, UriError};
