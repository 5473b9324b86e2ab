//! What relays to a daemon have in common: they listen, and connect to it whoever connects to them.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// Listens on a port of its own, and passes each connection on with one to `target`, until `pass` says no. Where it listens.
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
            // A daemon that is gone refuses: its clients are to see that.
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
