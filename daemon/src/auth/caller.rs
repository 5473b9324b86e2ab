//! Who asks.

use std::fmt;

use crate::{net::peer::Peer, resources::shares::Holder};

/// What a caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// gRPC.
    Grpc,
    /// NBD.
    Nbd,
}

impl fmt::Display for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grpc => "grpc",
            Self::Nbd => "nbd",
        })
    }
}

/// Who asks for an operation: one connection, and who is at its other end.
///
/// It is made in one place of each face, where a connection is served, and given to every
/// operation. Nothing is done for a caller that nobody knows.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    face: Face,
    peer: Peer,
    connection: u64,
}

impl Caller {
    /// The caller at the other end of a connection. `connection` is its number among those of its
    /// face, counted from 1.
    #[must_use]
    pub const fn new(face: Face, peer: Peer, connection: u64) -> Self {
        Self {
            face,
            peer,
            connection,
        }
    }

    /// For whom places and bytes are held: a connection's operations share what one caller gets.
    pub(crate) fn holder(&self) -> Holder {
        Holder {
            number: self.connection,
            is_local: !self.peer.is_remote(),
        }
    }
}

/// For the log: `grpc:7:unix:pid=4711,uid=0`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.face, self.connection, self.peer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_caller_is_shown_by_its_face_its_number_and_its_peer() {
        let peer = Peer::Unix {
            process: Some(4711),
            user: 0,
        };
        let local = Caller::new(Face::Grpc, peer, 7);
        assert_eq!(local.to_string(), "grpc:7:unix:pid=4711,uid=0");
        assert!(local.holder().is_local);
        let remote = Caller::new(Face::Nbd, Peer::Tcp("192.0.2.1:4".parse().unwrap()), 8);
        assert_eq!(remote.to_string(), "nbd:8:tcp:192.0.2.1:4");
        assert_eq!(
            (remote.holder().is_local, remote.holder().number),
            (false, 8)
        );
    }
}
