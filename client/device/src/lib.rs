//! Exports as block devices of this machine, `/dev/nbdN`, through the kernel's NBD client.
//!
//! The kernel gets sockets of connections that are past the handshake, and speaks to the daemon by itself from then on. When a
//! connection is lost, because the daemon was stopped say, it keeps the requests and announces the loss; whoever
//! [stays](Mapping::stay) makes a new connection and hands the kernel its socket. Requests that were under way on the old one are sent again when
//! the kernel's timeout for them is over.
//!
//! ```text
//! Mapping::attach ── handshake ──> daemon
//!       │                            ▲
//!       └── netlink: sockets ──> kernel ── requests ──┘
//! Mapping::stay   <── netlink: a connection is dead; a socket of a new one ──>
//! ```
//!
//! - `handshake`: the client's side of the NBD handshake.
//! - `netlink`: the kernel's interface for all this, generic netlink family `nbd`.
//! - `sysfs`: which devices there are, and what is at the other end of them.
//! - `mapping`: attaches, stays, takes over, detaches.
//!
//! What a device is, is kept by the kernel as long as the device is attached: no file can say something else.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![warn(missing_docs)]

mod error;
mod handshake;
mod mapping;
mod netlink;
mod sysfs;

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

pub use self::{
    error::{Error, ErrorKind, Result},
    mapping::{Ended, Event, Mapping, Unmapped, unmap},
    sysfs::{Mapped, mapped},
};

/// Where a daemon serves NBD.
///
/// Written as the daemon tells it: `nbd+unix:///?socket=PATH` or `nbd://HOST:PORT`. The kernel knows no TLS, so there is none of that.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NbdAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port: `host:port`.
    Tcp(String),
}

/// What may stand in a URI's query as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The port that the protocol has.
const NBD_PORT: u16 = 10809;

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => {
                let path = path.to_string_lossy();
                write!(
                    f,
                    "nbd+unix:///?socket={}",
                    utf8_percent_encode(&path, PLAIN)
                )
            }
            Self::Tcp(address) => write!(f, "nbd://{address}"),
        }
    }
}

impl FromStr for NbdAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| {
            let what = format!("read the NBD address {text:?}");
            Err(Error::new(ErrorKind::Invalid, what, why))
        };
        if let Some(path) = text.strip_prefix("nbd+unix:///?socket=") {
            return match percent_decode_str(path).decode_utf8() {
                Ok(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(&*path))),
                _ => refused("the socket's path has to be absolute"),
            };
        }
        if let Some(address) = text.strip_prefix("nbd://") {
            let address = address.trim_end_matches('/');
            let has_port = address
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            return match address {
                "" => refused("there is no host in it"),
                _ if address.contains('/') => refused("the export is told by itself"),
                _ if has_port => Ok(Self::Tcp(address.to_owned())),
                _ => Ok(Self::Tcp(format!("{address}:{NBD_PORT}"))),
            };
        }
        if text.starts_with("nbds") {
            return refused("the kernel's NBD client knows no TLS");
        }
        refused("it is nbd+unix:///?socket=PATH or nbd://HOST:PORT")
    }
}

/// How an export is attached.
#[derive(Clone, Debug)]
pub struct MapOptions {
    /// Connections, each of which has a queue of its own in the kernel.
    pub connections: u32,
    /// The sector size that the device has, in bytes: a power of two from 512 to 4096.
    pub block_size_bytes: u32,
    /// How long the kernel waits for the answer to a request, before it sends it again on another connection. Also how long requests wait
    /// that were under way when the daemon was killed.
    pub timeout: Duration,
    /// How long the kernel keeps requests while there is no connection, before it fails them.
    pub dead_timeout: Duration,
    /// Nothing is written, even if the export could be.
    pub read_only: bool,
    /// The device's number; none for any that is free.
    pub index: Option<u32>,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            block_size_bytes: 512,
            timeout: Duration::from_secs(8),
            dead_timeout: Duration::from_secs(600),
            read_only: false,
            index: None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for (text, address) in [
            (
                "nbd+unix:///?socket=/run/varve/nbd.sock",
                NbdAddress::Unix("/run/varve/nbd.sock".into()),
            ),
            (
                "nbd+unix:///?socket=/data%20dir/a%2Bb/nbd.sock",
                NbdAddress::Unix("/data dir/a+b/nbd.sock".into()),
            ),
            (
                "nbd://192.0.2.1:10810",
                NbdAddress::Tcp("192.0.2.1:10810".to_owned()),
            ),
            (
                "nbd://[::1]:10809",
                NbdAddress::Tcp("[::1]:10809".to_owned()),
            ),
        ] {
            assert_eq!(text.parse::<NbdAddress>().unwrap(), address);
            assert_eq!(address.to_string(), text);
        }
        let short: NbdAddress = "nbd://store.example/".parse().unwrap();
        assert_eq!(short, NbdAddress::Tcp("store.example:10809".to_owned()));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("nbd+unix:///?socket=relative", "absolute"),
            ("nbd://", "no host"),
            ("nbd://host/volume/a", "by itself"),
            ("nbds://host", "TLS"),
            ("/run/varve/nbd.sock", "nbd+unix:///?socket=PATH"),
            ("", "nbd+unix:///?socket=PATH"),
        ] {
            let error = text.parse::<NbdAddress>().unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
