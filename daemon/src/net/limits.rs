//! Every bound on connections, independent of the protocol.

use std::time::Duration;

/// Handshakes under way at one time, for each listener of a service with many places. A new one
/// beyond this ends the oldest of the peer with the most, so an honest one has the time that it
/// takes to open so many.
pub const HANDSHAKES_MAX: usize = 256;
/// The same, however few places there are.
pub const HANDSHAKES_LEAST: usize = 16;

/// Handshakes at one listener of a service with `places`. Each takes a descriptor, too, and a
/// service has few places where descriptors are short.
#[must_use]
pub const fn handshakes_max(places: usize) -> usize {
    let wanted = places / 4;
    if wanted < HANDSHAKES_LEAST {
        HANDSHAKES_LEAST
    } else if wanted > HANDSHAKES_MAX {
        HANDSHAKES_MAX
    } else {
        wanted
    }
}

/// One place of a service in this many is reserved for unix sockets.
const UNIX_RESERVE_PART: usize = 4;

/// Places that TCP may take of `places`. A service with one place gives it to anyone.
#[must_use]
pub const fn remote_places(places: usize) -> usize {
    places
        - if places > 1 {
            places.div_ceil(UNIX_RESERVE_PART)
        } else {
            0
        }
}

/// Steps of a socket's send buffer in bytes, for a peer that takes more and more. The kernel counts
/// twice as much, with its overhead. Every connection has the first step unconditionally: 128 MiB
/// for 4096. The last one holds a whole reply of a mebibyte.
pub const SEND_BUFFER_STEPS: [usize; 3] = [16 << 10, 256 << 10, 2 << 20];
/// Bytes that all buffers larger than the first step may take together, as the kernel counts.
pub const GROWN_BUFFER_BYTES: usize = 128 << 20;
/// A buffer grows if the step costs at most one part in so many of the free bytes: the first ones
/// get the largest steps, and many others get small ones.
pub const GROWTH_PART: usize = 8;
/// A buffer grows after the peer has taken this many times its size: a peer that takes nothing gets
/// no larger buffer.
pub const GROWTH_PROOF: u64 = 8;
/// A grown buffer shrinks if less than its size was used for so long.
pub const BUFFER_REST: Duration = Duration::from_secs(10);

/// Time of silence after which keepalive probes a TCP connection.
///
/// `TCP_USER_TIMEOUT` is not set: it would also end a connection whose peer is alive and takes
/// nothing, like a paused guest.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Interval between probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer after which the connection has ended.
pub const KEEPALIVE_PROBES: u32 = 6;

/// The shortest interval between log lines that peers can cause. The next line has the number of
/// lines left out.
pub const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed accept, for example for lack of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a file of certificates.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(remote_places(1) == 1 && remote_places(2) == 1 && remote_places(8) == 6);
