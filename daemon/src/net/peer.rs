//! The peer at the other end of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tokio::net::UnixStream;

/// The other end, for the log.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Unix {
        process: Option<i32>,
        user: u32,
        group: u32,
    },
    UnknownUnix,
    /// A stream that did not come from a listener.
    Given,
    Tcp(SocketAddr),
}

/// The group of a peer: all peers with one key share one part.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PeerKey {
    /// Users of a unix socket. They are of this machine, and are distinguished only in their
    /// handshakes.
    Local { user: Option<u32> },
    /// A host; with IPv6 a network of 64 bits, in which a host has any number of addresses.
    Remote(IpAddr),
}

impl Peer {
    #[must_use]
    pub fn of_unix(stream: &UnixStream) -> Self {
        match stream.peer_cred() {
            Ok(credentials) => Self::Unix {
                process: credentials.pid(),
                user: credentials.uid(),
                group: credentials.gid(),
            },
            Err(_) => Self::UnknownUnix,
        }
    }

    #[must_use]
    pub fn key(&self) -> PeerKey {
        match self {
            Self::Unix { user, .. } => PeerKey::Local { user: Some(*user) },
            Self::UnknownUnix | Self::Given => PeerKey::Local { user: None },
            Self::Tcp(address) => PeerKey::Remote(network(address.ip().to_canonical())),
        }
    }

    /// Returns true if others can read what is said in clear: the address is not loopback.
    #[must_use]
    pub fn is_on_a_network(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Self::Unix { .. } | Self::UnknownUnix | Self::Given => false,
        }
    }

    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix {
                process: Some(process),
                user,
                ..
            } => write!(f, "unix:pid={process},uid={user}"),
            Self::Unix {
                process: None,
                user,
                ..
            } => write!(f, "unix:uid={user}"),
            Self::UnknownUnix => write!(f, "unix"),
            Self::Given => write!(f, "given"),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_host_is_one_peer_whatever_its_port_and_its_way_to_write_itself() {
        let key = |address: &str| Peer::Tcp(address.parse().unwrap()).key();
        assert_eq!(key("192.0.2.1:1"), key("192.0.2.1:2"));
        assert_eq!(key("192.0.2.1:1"), key("[::ffff:192.0.2.1]:1"));
        assert_ne!(key("192.0.2.1:1"), key("192.0.2.2:1"));
        assert_eq!(key("[2001:db8::1]:1"), key("[2001:db8::ffff:0:1]:1"));
        assert_ne!(key("[2001:db8::1]:1"), key("[2001:db8:0:1::1]:1"));
    }
}
