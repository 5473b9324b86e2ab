//! Every bound of the NBD server, and the relations between them.

use std::time::Duration;

/// The longest read or write payload of one request; announced as the maximum block size.
///
/// The protocol asks servers to accept any length up to this, and QEMU and libnbd never send more.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// Announced: every byte can be addressed.
pub const MIN_BLOCK_BYTES: u32 = 1;
/// Announced: the store's block, so that aligned requests never cut one.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Strings on the wire: names, descriptions, error messages.
pub const MAX_STRING_BYTES: usize = 4096;
/// Data of one handshake option. Room for an export name and some hundred context queries.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Options of one handshake. `qemu-nbd --list` sends two for every export there is.
pub const MAX_OPTIONS: u32 = 1 << 16;
/// Queries in one `LIST_META_CONTEXT` or `SET_META_CONTEXT`.
pub const MAX_META_QUERIES: usize = 128;
/// Snapshots that a connection can choose as references for changes.
pub const MAX_REFERENCES: u32 = 16;
/// Ancestors of an export that a listing of contexts names.
pub const MAX_LISTED_REFERENCES: usize = 64;
/// Exports that are listed in one go; a listing of any length is held a page at a time.
pub const LIST_PAGE_EXPORTS: usize = 256;

/// Requests of one connection that were accepted and whose reply is not fully written.
pub const MAX_REQUESTS_IN_FLIGHT: usize = 128;
/// The same in bytes, as [`charge_bytes`] counts them.
pub const MAX_CONNECTION_BYTES: u32 = 64 << 20;
/// The same for ordinary requests of all connections together.
pub const ORDINARY_LANE_BYTES: u32 = 128 << 20;
/// The same for larger ones, in a lane of their own: three of the largest that there are over TCP,
/// and one over unix sockets, at one time.
pub const LARGE_LANE_BYTES: u32 = 136 << 20;
/// The largest charge of an ordinary request, in bytes: a mebibyte of payload, which few clients
/// exceed.
pub const MAX_ORDINARY_BYTES: u32 = charge_bytes(1 << 20);
/// Bytes that each connection has for itself: a request of up to 16 KiB, or a few small ones, is
/// served whatever others hold.
pub const RESERVE_BYTES: u32 = own_bytes(16 << 10);
/// Bytes that a request takes while it is carried out, beside its payload.
const REQUEST_BYTES: u32 = 2 << 10;
/// One part in this many of either lane is reserved for unix sockets.
const UNIX_RESERVE_PART: u32 = 4;
/// Number of connections in the queue for more memory that are examined whenever bytes are
/// returned: the time for that must not grow with the length of the queue.
pub const MORE_LOOKED_AT: usize = 32;
/// The charge of a request besides its payload, in bytes. Slices of cached chunks keep whole chunks
/// alive: at either end of a read, that can be most of a chunk of 256 KiB. The payload of a short
/// write is a slice of the read-ahead buffer, and keeps that alive.
pub const PINNED_BYTES: u32 = 256 << 10;
/// The longest reply that is copied when the client does not take it at once. Without the copy, a
/// client that takes no replies would pin [`PINNED_BYTES`] for each byte.
pub const DETACHED_BYTES_MAX: usize = 64 << 10;
/// Replies waiting for the socket above which no further request is started: the peer is slower
/// than the store, and working ahead would only hold memory.
pub const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Extents in one reply to `BLOCK_STATUS`. The client asks again from where the reply ends.
pub const MAX_EXTENTS: u32 = 8192;
/// Bytes that one of them takes until it is sent.
pub const EXTENT_BYTES: u32 = 16;
/// Bytes of the export that one look-up of extents covers: at worst every second block is a hole,
/// so this bounds the extents in memory while a reply is assembled.
pub const EXTENT_WINDOW_BYTES: u64 = 64 << 20;
/// Look-ups for one reply: with extended headers a client can ask for all of a large volume at
/// once. The client asks again from where the reply ends.
pub const MAX_EXTENT_WINDOWS: usize = 4096;

/// Bytes read from the socket at once: more than [`MAX_REQUESTS_IN_FLIGHT`] request headers, and
/// little enough that thousands of idle connections cost very little.
pub const INBOX_BYTES: usize = 8 << 10;
/// The same for a connection that sends more than that at once, for as long as it does: 15 writes
/// of 4 KiB.
pub const READ_AHEAD_BYTES: usize = 64 << 10;
/// Number of connections that may have such a buffer at one time; it is not charged to their
/// requests. Others read in small pieces.
pub const READ_AHEAD_CONNECTIONS_MAX: usize = 512;
/// After a payload of this length, the server does not read ahead: the next payload would have to
/// be copied out of the buffer, which costs more than a system call.
pub const DIRECT_READ_BYTES: usize = 32 << 10;
/// Bytes of waiting replies that trigger a write to the socket; idle time triggers one, too. So
/// there are few system calls, yet the peer can take the first reply while the next is made.
pub const FLUSH_BYTES: usize = 256 << 10;
/// Slices in one vectored write; Linux takes up to 1024, but the array is on the stack.
pub const MAX_WRITE_SLICES: usize = 64;
/// Failed requests of one connection that are logged as warnings; a client that keeps asking for
/// a damaged block must not fill the log.
pub const MAX_LOGGED_FAILURES: u32 = 16;

/// Connections, unless configured.
pub const DEFAULT_MAX_CONNECTIONS: usize = 4096;
/// Time limit for the client's whole handshake, TLS included.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Additional time for each export in a listing: `qemu-nbd --list` asks for each one after that.
pub const LISTED_EXPORT_TIME: Duration = Duration::from_millis(10);
/// Listings add at most this many times the timeout.
pub const LISTING_PART: u32 = 5;
/// Time limit of a handshake including the time in the store. A call to the store that is under way
/// is not interrupted.
pub const HANDSHAKE_CAP: Duration = Duration::from_mins(5);
/// Time for requests in flight to finish when the server stops.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a client may leave replies unread, or a payload half sent, while a connection that
/// holds nothing waits for memory. Without such a wait the time is unlimited: a paused guest is not
/// an error.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that holds more than this has less time: half of it for twice as much, but a third at
/// least.
pub const STALL_BYTES: u32 = 1 << 20;
/// In that time, it has to take or send one part in this many of the bytes that it held at the
/// beginning.
pub const STALL_PART: u64 = 3;

/// Bytes that a request is charged to its connection's reserve.
#[must_use]
pub const fn own_bytes(payload_bytes: u32) -> u32 {
    payload_bytes.saturating_add(REQUEST_BYTES)
}

/// Bytes of a lane that TCP connections may take.
#[must_use]
pub const fn remote_bytes(lane_bytes: u32) -> u32 {
    lane_bytes - lane_bytes / UNIX_RESERVE_PART
}

/// The charge in bytes of a request for extents in this many contexts.
#[must_use]
pub const fn charge_extents(contexts: u32) -> u32 {
    charge_bytes(contexts.saturating_mul(MAX_EXTENTS * EXTENT_BYTES))
}

/// The charge in bytes of a request with `payload_bytes` of payload, sent or returned, while it is
/// in flight.
#[must_use]
pub const fn charge_bytes(payload_bytes: u32) -> u32 {
    payload_bytes.saturating_add(PINNED_BYTES)
}

// A request of any size fits a connection and its lane, over TCP too, or it would wait for ever.
const _: () = assert!(charge_bytes(MAX_REQUEST_BYTES) <= MAX_CONNECTION_BYTES);
const _: () = assert!(charge_extents(MAX_REFERENCES + 1) <= MAX_CONNECTION_BYTES);
const _: () = assert!(charge_bytes(MAX_REQUEST_BYTES) <= remote_bytes(LARGE_LANE_BYTES));
const _: () =
    assert!(charge_bytes(MAX_REQUEST_BYTES) <= LARGE_LANE_BYTES - remote_bytes(LARGE_LANE_BYTES));
const _: () = assert!(
    MAX_ORDINARY_BYTES <= ORDINARY_LANE_BYTES - remote_bytes(ORDINARY_LANE_BYTES)
        && MAX_CONNECTION_BYTES <= ORDINARY_LANE_BYTES / 2
);
/// Bytes that all connections together can hold, as charged or bounded by their number.
pub const MAX_SERVER_BYTES: u64 = ORDINARY_LANE_BYTES as u64
    + LARGE_LANE_BYTES as u64
    + DEFAULT_MAX_CONNECTIONS as u64 * (RESERVE_BYTES as u64 + INBOX_BYTES as u64)
    + (READ_AHEAD_CONNECTIONS_MAX * READ_AHEAD_BYTES) as u64;
// Of the half a gibibyte that the daemon may take, with what the rest of it needs.
const _: () = assert!(MAX_SERVER_BYTES <= 400 << 20);
// The bound on small requests is their number, not their charge.
const _: () = assert!(
    MAX_REQUESTS_IN_FLIGHT as u64 * charge_bytes(PREFERRED_BLOCK_BYTES) as u64
        <= MAX_CONNECTION_BYTES as u64
);
// A request for extents is charged for no more than this.
const _: () = assert!(
    EXTENT_WINDOW_BYTES / PREFERRED_BLOCK_BYTES as u64 * size_of::<super::Extent>() as u64
        <= PINNED_BYTES as u64
);
const _: () = assert!(INBOX_BYTES < READ_AHEAD_BYTES && READ_AHEAD_BYTES <= PINNED_BYTES as usize);
const _: () = assert!(MAX_STRING_BYTES < MAX_OPTION_BYTES as usize);
