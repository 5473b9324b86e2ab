//! Tells the service manager how the daemon is, in systemd's protocol: datagrams to the socket that `NOTIFY_SOCKET` names.
//! Nothing happens without it.

use std::{ffi::OsString, io, os::unix::ffi::OsStrExt};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tracing::warn;

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Requests are served.
    Ready,
    /// The daemon ends.
    Stopping,
}

/// Tells the service manager, if there is one.
pub fn tell(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        warn!(?socket, %error, "cannot tell the service manager");
    }
}

fn send(socket: &OsString, state: State) -> io::Result<()> {
    let message: &[u8] = match state {
        State::Ready => b"READY=1\n",
        State::Stopping => b"STOPPING=1\n",
    };
    // A leading @ stands for the zero byte of an abstract address.
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(socket.as_os_str())?,
    };
    let datagrams = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::sendto(&datagrams, message, SendFlags::NOSIGNAL, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_service_manager_hears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut heard = [0; 64];
        for (state, expected) in [
            (State::Ready, "READY=1\n"),
            (State::Stopping, "STOPPING=1\n"),
        ] {
            send(&path.clone().into_os_string(), state).unwrap();
            let length = manager.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], expected.as_bytes());
        }
        assert!(send(&dir.path().join("absent").into_os_string(), State::Ready).is_err());
    }
}
