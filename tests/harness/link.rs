//! A link between two daemons that is long, narrow, cut or bad: a TCP relay to one of them.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    daemon::Varved,
    relay::{listen, wake},
};

/// Bytes in flight that a link holds for each connection and direction. A sender that is further
/// ahead waits.
const HELD_BYTES: usize = 64 << 20;

/// A TCP relay. Its connections break on drop.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Delay of bytes, each way.
    delay: Duration,
    /// Bound for both directions and all connections together; 0: no limit.
    bytes_per_second: u64,
    narrow: Mutex<Option<Instant>>,
    closed: AtomicBool,
    /// Bytes from the daemon that were passed on.
    answered: AtomicU64,
    /// Cuts the connections, once, when this many bytes have come from the daemon; `u64::MAX`:
    /// never.
    cut_at: AtomicU64,
    /// Flips one bit of this byte from the daemon, once; `u64::MAX`: never.
    corrupt_at: AtomicU64,
    /// Reorders the bytes that arrive together with this byte from the daemon, once; `u64::MAX`:
    /// never.
    reorder_at: AtomicU64,
    /// Delays parts by up to this many milliseconds more, each connection in its own rhythm.
    uneven_ms: AtomicU64,
    /// Stalls, once, when this many bytes have come from the daemon; `u64::MAX`: never.
    stall_at: AtomicU64,
    /// Passes nothing on.
    stalled: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// A link to a daemon that listens on TCP.
    #[must_use]
    pub fn to(varved: &Varved) -> Self {
        Self::with(varved.grpc_address(), Duration::ZERO, 0)
    }

    /// The same, with a delay each way and a bound on the bytes per second; 0: no bound.
    #[must_use]
    pub fn with(target: SocketAddr, delay: Duration, bytes_per_second: u64) -> Self {
        let state = Arc::new(State {
            delay,
            bytes_per_second,
            narrow: Mutex::new(None),
            closed: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            corrupt_at: AtomicU64::new(u64::MAX),
            reorder_at: AtomicU64::new(u64::MAX),
            uneven_ms: AtomicU64::new(0),
            stall_at: AtomicU64::new(u64::MAX),
            stalled: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let (passing, asked) = (Arc::clone(&state), Arc::clone(&state));
        let address = listen(
            target,
            move |client, daemon| relay(&passing, client, daemon),
            move || asked.closed.load(Ordering::Relaxed),
        );
        Self { address, state }
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The daemon's endpoint through the link.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes from the daemon so far.
    #[must_use]
    pub fn answered_bytes(&self) -> u64 {
        self.state.answered.load(Ordering::Relaxed)
    }

    /// Cuts all connections after this many more bytes from the daemon.
    pub fn cut_after(&self, bytes: u64) {
        let at = self.answered_bytes() + bytes;
        self.state.cut_at.store(at, Ordering::Relaxed);
    }

    /// Flips a bit of a byte from the daemon, this many bytes from now.
    pub fn corrupt_after(&self, bytes: u64) {
        let at = self.answered_bytes() + bytes;
        self.state.corrupt_at.store(at, Ordering::Relaxed);
    }

    /// Reorders bytes from the daemon, this many bytes from now.
    pub fn reorder_after(&self, bytes: u64) {
        let at = self.answered_bytes() + bytes;
        self.state.reorder_at.store(at, Ordering::Relaxed);
    }

    /// Delays parts by up to this many milliseconds more, so that connections overtake each other.
    pub fn be_uneven(&self, milliseconds: u64) {
        self.state.uneven_ms.store(milliseconds, Ordering::Relaxed);
    }

    /// Stalls when this many more bytes have come from the daemon.
    pub fn stall_after(&self, bytes: u64) {
        let at = self.answered_bytes() + bytes;
        self.state.stall_at.store(at, Ordering::Relaxed);
    }

    /// Returns true if it has stalled.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.state.stalled.load(Ordering::Relaxed)
    }

    /// Stalls, or continues.
    pub fn stall(&self, stalled: bool) {
        self.state.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Cuts all connections, now.
    pub fn cut(&self) {
        self.state.cut();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        self.state.cut();
        wake(self.address);
    }
}

impl State {
    fn cut(&self) {
        for connection in locked(&self.connections).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Waits for the time that this many bytes take on the link.
    fn narrow(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let passed = {
            let mut free_at = locked(&self.narrow);
            let from = free_at.map_or_else(Instant::now, |at| at.max(Instant::now()));
            let nanos = bytes as u64 * 1_000_000_000 / self.bytes_per_second;
            let passed = from + Duration::from_nanos(nanos);
            *free_at = Some(passed);
            passed
        };
        thread::sleep(passed.saturating_duration_since(Instant::now()));
    }

    /// Handles bytes from the daemon. Returns whether they pass.
    fn answer(&self, bytes: &mut [u8]) -> bool {
        let before = self
            .answered
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let after = before + bytes.len() as u64;
        let at = self.corrupt_at.load(Ordering::Relaxed);
        if (before..after).contains(&at) {
            self.corrupt_at.store(u64::MAX, Ordering::Relaxed);
            let at = usize::try_from(at - before).unwrap_or(0);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x10;
            }
        }
        let at = self.reorder_at.load(Ordering::Relaxed);
        if (before..after).contains(&at) {
            self.reorder_at.store(u64::MAX, Ordering::Relaxed);
            bytes.rotate_left(bytes.len() / 2);
        }
        if after >= self.stall_at.load(Ordering::Relaxed) {
            self.stall_at.store(u64::MAX, Ordering::Relaxed);
            self.stalled.store(true, Ordering::Relaxed);
        }
        let cut_at = self.cut_at.load(Ordering::Relaxed);
        if after >= cut_at {
            self.cut_at.store(u64::MAX, Ordering::Relaxed);
            self.cut();
            return false;
        }
        true
    }
}

/// Bytes in flight in one direction.
#[derive(Debug, Default)]
struct Held {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    parts: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    ended: bool,
}

/// Relays both directions, each on two threads: one receives bytes, the other passes them on in
/// time.
fn relay(state: &Arc<State>, client: TcpStream, daemon: TcpStream) {
    for stream in [&client, &daemon] {
        let _ = stream.set_nodelay(true);
        if let Ok(stream) = stream.try_clone() {
            locked(&state.connections).push(stream);
        }
    }
    for (from, to, is_answer) in [(&client, &daemon, false), (&daemon, &client, true)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        let held = Arc::new(Held::default());
        let (of_reader, taken) = (Arc::clone(state), Arc::clone(&held));
        thread::spawn(move || {
            take_in(&of_reader, from, &taken, is_answer);
            locked(&taken.queue).ended = true;
            taken.changed.notify_all();
        });
        let state = Arc::clone(state);
        thread::spawn(move || pass_on(&state, to, &held));
    }
}

fn take_in(state: &State, mut from: TcpStream, held: &Held, is_answer: bool) {
    let mut buffer = vec![0; 64 << 10];
    let mut rhythm = from.peer_addr().map_or(0, |peer| u64::from(peer.port()));
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..count];
        if is_answer && !state.answer(bytes) {
            return;
        }
        state.narrow(count);
        rhythm = rhythm
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let most = state.uneven_ms.load(Ordering::Relaxed);
        let more = Duration::from_millis((rhythm >> 33).checked_rem(most).unwrap_or(0));
        let mut queue = locked(&held.queue);
        while queue.bytes > HELD_BYTES && !queue.ended {
            queue = held.changed.wait(queue).expect("no thread panics with it");
        }
        queue.bytes += count;
        queue
            .parts
            .push_back((Instant::now() + state.delay + more, bytes.to_vec()));
        held.changed.notify_all();
    }
}

fn pass_on(state: &State, mut to: TcpStream, held: &Held) {
    loop {
        let (due, bytes) = {
            let mut queue = locked(&held.queue);
            loop {
                if let Some(part) = queue.parts.pop_front() {
                    queue.bytes -= part.1.len();
                    held.changed.notify_all();
                    break part;
                }
                if queue.ended {
                    let _ = to.shutdown(Shutdown::Both);
                    return;
                }
                queue = held.changed.wait(queue).expect("no thread panics with it");
            }
        };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        while state.stalled.load(Ordering::Relaxed) && !state.closed.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&bytes).is_err() {
            locked(&held.queue).ended = true;
            held.changed.notify_all();
            return;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with it")
}
