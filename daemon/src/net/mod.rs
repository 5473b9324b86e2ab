//! Sockets and connections before any protocol is spoken on them: which may come in, and what the
//! kernel keeps for each.
//!
//! | file | content |
//! | --- | --- |
//! | [`peer`] | the peer at the other end, and the group that shares limits with it |
//! | [`handshakes`] | peers that are not known yet: bounded for each listener, the oldest gives way |
//! | [`places`] | connections that have got through: bounded, with a reserve and shares |
//! | [`seats`] | the same, of connections that give way when they do nothing |
//! | [`buffers`] | kernel buffers that grow for those who use them, within a sum |
//! | [`seldom`] | log lines that a peer can cause, at most one a second |
//! | [`sockets`] | listening sockets, made here or by a service manager |
//! | [`tls`] | files of TLS: how clients are served with them, and other daemons asked |
//! | [`limits`] | every bound of these |
//!
//! Invariants: a listener never stops accepting because of who has connected already. A peer that
//! cannot stay is told, or its connection is closed at once, and the log says so. A peer over TCP
//! never takes what unix sockets need.

pub mod buffers;
pub mod handshakes;
pub mod limits;
pub mod peer;
pub mod places;
pub mod seats;
pub mod seldom;
pub mod sockets;
pub mod tls;
