//! Every bound on connections, whatever is spoken on them.

use std::time::Duration;

/// Handshakes under way at one time, for each listener of a service with many places. The oldest of
/// the peer that has most gives way to a newcomer, so an honest one has as long as it takes to open
/// so many.
pub const HANDSHAKES_MAX: usize = 256;
/// The same, however few places there are.
pub const HANDSHAKES_LEAST: usize = 16;

/// Handshakes at one listener of a service with `places`: each takes a descriptor, too, and where
/// these are short there are few places.
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

/// Of the places of a service, one in so many is kept for unix sockets: TCP never takes it.
const UNIX_RESERVE_PART: usize = 4;

/// Places that TCP may take of `places`. A service with one place has it for anybody.
#[must_use]
pub const fn remote_places(places: usize) -> usize {
    places
        - if places > 1 {
            places.div_ceil(UNIX_RESERVE_PART)
        } else {
            0
        }
}

/// Send buffers that a socket has, one after the other, as it turns out that its peer takes so
/// much. The kernel counts twice as much for what it keeps around the bytes. All connections
/// together have the first without asking: 128 MiB for 4096. The last lets a reply of a mebibyte go
/// out in one go.
pub const SEND_BUFFER_STEPS: [usize; 3] = [16 << 10, 256 << 10, 2 << 20];
/// Bytes that all buffers larger than the first step may take together, as the kernel counts.
pub const GROWN_BUFFER_BYTES: usize = 128 << 20;
/// A buffer grows if it costs at most one part in so many of what is left: the first that ask get
/// the largest, and there are small steps for many others.
pub const GROWTH_PART: usize = 8;
/// A buffer grows after the peer has taken this many times its size: one that takes nothing gets
/// nothing.
pub const GROWTH_PROOF: u64 = 8;
/// A grown buffer of which less than its size was used for so long is given back.
pub const BUFFER_REST: Duration = Duration::from_secs(10);

/// A TCP connection on which nothing is heard for so long is asked for a sign of life.
///
/// `TCP_USER_TIMEOUT` is not set: it would also end a connection whose peer is there, but takes
/// nothing, like a guest that is paused.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How long until it is asked again.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer after which the connection has ended.
pub const KEEPALIVE_PROBES: u32 = 6;

/// How often a log line that peers can cause is written at most. The next one says how many were
/// left out.
pub const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// How long to leave a listener alone that cannot accept, for want of file descriptors, say.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a file of certificates.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(remote_places(1) == 1 && remote_places(2) == 1 && remote_places(8) == 6);
