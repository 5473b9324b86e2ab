//! The common part of relays to a daemon: they listen, and connect each client to the daemon.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// Listens on a port of its own, connects each client to `target`, and gives both streams to
/// `pass`, until `is_closed` returns true. Returns the address.
pub(crate) fn listen(
    target: SocketAddr,
    pass: impl Fn(TcpStream, TcpStream) + Send + 'static,
    is_closed: impl Fn() -> bool + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a port");
    let address = listener
        .local_addr()
        .expect("ask for the port that was bound");
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            if is_closed() {
                return;
            }
            // If the daemon is gone it refuses, and its clients see that.
            if let Ok(daemon) = TcpStream::connect(target) {
                pass(client, daemon);
            }
        }
    });
    address
}

/// Wakes a listener, which then sees that it is closed.
pub(crate) fn wake(address: SocketAddr) {
    let _ = TcpStream::connect(address);
}
