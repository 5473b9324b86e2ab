//! A relay to a daemon that passes a fixed number of bytes and then blocks, so that events in the
//! middle of a transfer happen there on a machine of any speed.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use crate::{
    daemon::Varved,
    process::wait_for,
    relay::{listen, wake},
};

/// A TCP relay. Its connections break on drop.
#[derive(Debug)]
pub struct Valve {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    allowed: Mutex<Allowed>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Allowed {
    /// This many more bytes towards the daemon.
    Bytes(usize),
    Everything,
    /// Nothing; connections end.
    Closed,
}

impl Valve {
    /// A relay to a daemon that listens on TCP. It passes the first `bytes` that clients send, all
    /// together.
    #[must_use]
    pub fn before(varved: &Varved, bytes: usize) -> Self {
        let target = varved.grpc_address();
        let state = Arc::new(State {
            allowed: Mutex::new(Allowed::Bytes(bytes)),
            changed: Condvar::new(),
        });
        let (passing, asked) = (Arc::clone(&state), Arc::clone(&state));
        let address = listen(
            target,
            move |client, daemon| relay(&passing, client, daemon),
            move || asked.is_closed(),
        );
        Self { address, state }
    }

    /// The daemon's endpoint through the relay.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until all allowed bytes have passed.
    pub fn wait_until_spent(&self) {
        wait_for("bytes to pass the valve", || {
            let allowed = self.state.allowed.lock().expect("no thread panics with it");
            matches!(*allowed, Allowed::Bytes(0)).then_some(())
        });
    }

    /// Passes everything from now on.
    pub fn open(&self) {
        self.state.set(Allowed::Everything);
    }
}

impl Drop for Valve {
    fn drop(&mut self) {
        self.state.set(Allowed::Closed);
        wake(self.address);
    }
}

impl State {
    fn set(&self, allowed: Allowed) {
        *self.allowed.lock().expect("no thread panics with it") = allowed;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        matches!(
            *self.allowed.lock().expect("no thread panics with it"),
            Allowed::Closed
        )
    }

    /// Waits until bytes may pass. Returns how many of `wanted`; 0 when the valve is closed.
    fn take(&self, wanted: usize) -> usize {
        let mut allowed = self.allowed.lock().expect("no thread panics with it");
        loop {
            match &mut *allowed {
                Allowed::Everything => return wanted,
                Allowed::Closed => return 0,
                Allowed::Bytes(0) => {
                    allowed = self
                        .changed
                        .wait(allowed)
                        .expect("no thread panics with it")
                }
                Allowed::Bytes(left) => {
                    let taken = wanted.min(*left);
                    *left -= taken;
                    return taken;
                }
            }
        }
    }
}

/// Relays both directions, each on a thread of its own. When one ends, the other ends.
fn relay(state: &Arc<State>, client: TcpStream, daemon: TcpStream) {
    let (Ok(client_again), Ok(daemon_again)) = (client.try_clone(), daemon.try_clone()) else {
        return;
    };
    let state = Arc::clone(state);
    thread::spawn(move || {
        let _ = pass(&client, &daemon, |wanted| state.take(wanted));
        let _ = (
            client.shutdown(Shutdown::Both),
            daemon.shutdown(Shutdown::Both),
        );
    });
    thread::spawn(move || {
        let _ = pass(&daemon_again, &client_again, |wanted| wanted);
        let _ = (
            client_again.shutdown(Shutdown::Both),
            daemon_again.shutdown(Shutdown::Both),
        );
    });
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, take: impl Fn(usize) -> usize) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        let mut rest = &buffer[..read];
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let (passed, held) = rest.split_at(take(rest.len()));
            if passed.is_empty() {
                return Ok(());
            }
            to.write_all(passed)?;
            rest = held;
        }
    }
}
