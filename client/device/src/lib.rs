//! Exports as block devices of this machine, `/dev/nbdN`, through the kernel's NBD client.
//!
//! This library connects, completes the handshake, and hands the sockets to the kernel, which then
//! speaks to the daemon by itself. When a connection is lost, because the daemon was stopped for
//! example, the kernel keeps the requests and announces the loss. The process that
//! [stays](Mapping::stay) connects again and hands the kernel the new socket. After a timeout, the
//! kernel sends requests that were under way on the old connection again.
//!
//! ```text
//! Mapping::attach ── handshake ──> daemon
//!       │                            ▲
//!       └── netlink: sockets ──> kernel ── requests ──┘
//! Mapping::stay   <── netlink: a connection is dead; a socket of a new one ──>
//! ```
//!
//! - `handshake`: the client's side of the NBD handshake.
//! - `netlink`: the kernel's interface for this, the generic netlink family `nbd`.
//! - `sysfs`: the existing devices and their exports.
//! - `mapping`: attaching, staying, taking over, detaching.
//!
//! The kernel itself records the export of a device as long as the device is attached: no file can
//! contradict it.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![warn(missing_docs)]

mod error;
mod handshake;
mod mapping;
mod netlink;
mod sysfs;

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use varve_nbd::{ServerUri, UriError};

pub use self::{
    error::{Error, ErrorKind, Result},
    mapping::{Ended, Event, Mapping, Unmapped, unmap},
    sysfs::{Mapped, mapped},
};

/// The NBD address of a daemon.
///
/// Written as `nbd+unix:///?socket=PATH` or `nbd://HOST:PORT`. The kernel's client does not support
/// TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NbdAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port: `host:port`.
    Tcp(String),
}

/// The reason why an address with TLS is refused.
const NO_TLS: &str = "the kernel's NBD client does not support TLS";

impl From<NbdAddress> for ServerUri {
    fn from(address: NbdAddress) -> Self {
        match address {
            NbdAddress::Unix(path) => Self::Unix(path),
            NbdAddress::Tcp(address) => Self::Tcp(address),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ServerUri::from(self.clone()).fmt(f)
    }
}

impl NbdAddress {
    /// The address in the NBD URI of an export, as the daemon returns it when a volume is attached:
    /// `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST:PORT/EXPORT`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for anything else.
    pub fn of_export(uri: &str) -> Result<Self> {
        Self::read(uri, ServerUri::of_export)
    }

    fn read(text: &str, parse: impl FnOnce(&str) -> Result<ServerUri, UriError>) -> Result<Self> {
        let why = match parse(text) {
            Ok(ServerUri::Unix(path)) => return Ok(Self::Unix(path)),
            Ok(ServerUri::Tcp(address)) => return Ok(Self::Tcp(address)),
            // `nbds+unix` and incomplete addresses, too.
            _ if text.starts_with("nbds") => NO_TLS.to_owned(),
            Ok(ServerUri::Tls(_)) => NO_TLS.to_owned(),
            Err(error) => error.to_string(),
        };
        let what = format!("read the NBD address {text:?}");
        Err(Error::new(ErrorKind::Invalid, what, why))
    }
}

impl FromStr for NbdAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::read(text, str::parse)
    }
}

/// Options of attaching an export.
#[derive(Clone, Debug)]
pub struct MapOptions {
    /// Number of connections: 1 to 64. Each has a queue of its own in the kernel.
    pub connections: u32,
    /// The device's sector size in bytes: a power of two from 512 to 4096.
    pub block_size_bytes: u32,
    /// The time that the kernel waits for the answer to a request before it sends the request again
    /// on another connection. Requests that were under way when the daemon was killed wait as long.
    pub timeout: Duration,
    /// The time that the kernel keeps requests without a connection before it fails them.
    pub dead_timeout: Duration,
    /// Makes the device read-only, even if the export is writable.
    pub read_only: bool,
    /// The number of the device. `None`: any free one.
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
    fn addresses_are_uris_of_servers_and_found_in_those_of_exports() {
        for (uri, address) in [
            (
                "nbd+unix:///volume/db?socket=/a%20dir/it%27s,1",
                "nbd+unix:///?socket=/a%20dir/it%27s%2C1",
            ),
            ("nbd://[::1]:10809/volume/web/db", "nbd://[::1]:10809"),
        ] {
            let found = NbdAddress::of_export(uri).unwrap();
            assert_eq!(found.to_string(), address);
            assert_eq!(address.parse::<NbdAddress>().unwrap(), found);
        }
        for wrong in ["nbd+unix:///volume/db", "nbds://host/volume/db"] {
            assert!(NbdAddress::of_export(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("nbd+unix:///?socket=relative", "absolute"),
            ("nbd://", "no host"),
            ("nbd://host/volume/a", "separately"),
            ("nbds://host", "TLS"),
            ("/run/varve/nbd.sock", "nbd+unix:///?socket=PATH"),
            ("", "nbd+unix:///?socket=PATH"),
        ] {
            let error = text.parse::<NbdAddress>().unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
