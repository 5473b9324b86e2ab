//! Sockets and connections below the protocols: admission, and kernel buffers.
//!
//! | file | content |
//! | --- | --- |
//! | [`peer`] | the peer at the other end, and the group that shares limits with it |
//! | [`handshakes`] | unknown peers: bounded for each listener, the oldest gives way |
//! | [`places`] | connections after the handshake: bounded, with a reserve and shares |
//! | [`seats`] | the same, of connections that give way when they do nothing |
//! | [`buffers`] | kernel buffers that grow for fast peers, within a total |
//! | [`seldom`] | log lines that a peer can cause, at most one a second |
//! | [`sockets`] | listening sockets, made here or by a service manager |
//! | [`tls`] | TLS files, for serving clients and for connecting to other daemons |
//! | [`limits`] | every bound of these |
//!
//! Invariants: a listener never stops accepting because of existing connections. A peer that cannot
//! stay gets an error, or its connection is closed at once, with a log line. TCP peers never take
//! the reserve of unix sockets.

pub mod buffers;
pub mod handshakes;
pub mod limits;
pub mod peer;
pub mod places;
pub mod seats;
pub mod seldom;
pub mod sockets;
pub mod tls;
