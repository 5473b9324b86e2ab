//! Every bound of the daemon in one place. The bounds of the store are in [`varve_store::limits`],
//! of NBD in [`varve_nbd::limits`], of connections in [`net`](crate::net::limits).
//!
//! Memory of gRPC beside the store (bytes):
//!
//! | what | bound |
//! | --- | --- |
//! | chunks received and not yet taken by the store | [`UPLOAD_BYTES_IN_FLIGHT`] |
//! | requests being received, decoded and worked on | [`REQUEST_BYTES`], and [`REQUEST_BYTES_FREE`] a call |
//! | long answers | [`ANSWER_BYTES`] |
//! | segments read for downloads | ([`READ_STREAMS_MAX`] + [`READ_AHEAD_SEGMENTS_SHARED`]) x one segment (8 MiB) |
//! | what connections may send ahead | [`WINDOW_BYTES`], and [`WINDOW_BYTES_MIN`] each |
//! | what a client has not taken yet | [`ITEMS_QUEUED`] messages a stream |

use std::time::Duration;

use varve_content::{ChunkId, block::SEGMENT_BYTES};

/// Length of any incoming message in bytes: the default limit of gRPC implementations.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Payload bytes of one `PutChunksRequest`. The rest of the message is for the other fields of
/// chunks, some 52 bytes each.
pub const UPLOAD_MESSAGE_BYTES: u32 = 3 << 20;
/// Ids in one `FindMissingRequest`.
pub const FIND_IDS_MAX: u32 = 8192;
/// Length of requests without content in bytes, with tags and names.
pub const SMALL_MESSAGE_BYTES_MAX: usize = 256 << 10;

/// `PutChunks` streams served at one time, from their first message on; others wait. Their memory
/// is bounded in bytes.
pub const UPLOAD_STREAMS_MAX: usize = 64;
/// Payload that was received and that the store has not taken yet, over all uploads.
pub const UPLOAD_BYTES_IN_FLIGHT: u32 = 16 << 20;
/// Approximate plain bytes of a group of chunks that goes to the store together. A group is one job
/// of one of its threads, so a message becomes several jobs.
pub const PUT_GROUP_BYTES: usize = 1 << 20;
/// Groups of one stream that the store works on at one time.
pub const PUT_GROUPS_IN_FLIGHT: usize = 6;

/// `Download` and `ReadSnapshot` streams served at one time. Others wait, and take over the places
/// of streams whose clients do not read.
pub const READ_STREAMS_MAX: usize = 16;
/// Segments that one download reads at one time, at most.
pub const READ_AHEAD_SEGMENTS: usize = 4;
/// Segments read ahead beyond one for each download, over all downloads.
pub const READ_AHEAD_SEGMENTS_SHARED: usize = 4;
/// Payload of one message of a download or a read, about.
pub const READ_MESSAGE_BYTES: usize = 1 << 20;
/// Pieces of [`READ_MESSAGE_BYTES`] that one `ReadSnapshot` reads at one time.
pub const READ_PIECES_IN_FLIGHT: usize = 4;
/// `DiffSnapshots` and `VerifySnapshot` streams served at one time; others wait.
pub const CHECK_STREAMS_MAX: usize = 16;
/// Bytes of a snapshot in which holes are looked up at one time.
pub const EXTENTS_WINDOW_BYTES: u64 = 1 << 30;
/// Items of one stream that wait to be taken.
pub const ITEMS_QUEUED: usize = 2;
/// Extents in one message of a diff.
pub const DIFF_EXTENTS_PER_MESSAGE: usize = 1024;
/// Violations in one message of a verification.
pub const VIOLATIONS_PER_MESSAGE: usize = 256;
/// How often a verification reports its progress.
pub const VERIFY_PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Snapshots or volumes in a page unless the request says otherwise.
pub const PAGE_DEFAULT: usize = 100;
/// Accounts that a listing of images is limited to.
pub const LIST_OWNERS_MAX: usize = 100;
/// Filters of a listing.
pub const LIST_FILTERS_MAX: usize = 50;
/// Values of a filter.
pub const FILTER_VALUES_MAX: usize = 200;
/// Characters of such a value.
pub const FILTER_VALUE_CHARS_MAX: usize = 255;
/// Characters of all values of a listing that match more than one text.
pub const FILTER_WILD_CHARS_MAX: usize = 2048;
/// Length at which a page ends early. With all tags at their longest, a full page would take 76 MB,
/// and gRPC clients accept messages of 4 MiB by default.
pub const PAGE_BYTES: usize = 2 << 20;
/// Accounts in one `ShareSnapshotRequest`.
pub const SHARE_ACCOUNTS_MAX: usize = 100;
/// Snapshots in one `DeleteSnapshotsRequest`.
pub const DELETE_SNAPSHOTS_MAX: usize = varve_client::DELETE_SNAPSHOTS_MAX;
/// Length of a snapshot's or volume's name or id in a request. A longer one cannot exist: names
/// have at most [`varve_store::limits::NAME_CHARS_MAX`] characters, all ASCII.
pub const KEY_BYTES_MAX: usize = 1024;
/// Resources of one operation that the log names: all volumes of a group of snapshots, and the
/// group.
pub const RESOURCES_LOGGED_MAX: usize = varve_store::limits::INSTANT_VOLUMES_MAX + 1;
/// Characters of a request's text that an error or the log repeats.
pub const QUOTED_CHARS_MAX: usize = 80;

/// Bytes of requests that are being received or processed, over all connections, counted as
/// decoded. A message gets its room before its bytes are taken.
pub const REQUEST_BYTES: u64 = 48 << 20;
/// The part of [`REQUEST_BYTES`] that only peers on this machine get.
pub const REQUEST_BYTES_LOCAL: u64 = 16 << 20;
/// Length up to which a message needs no such room: a page of memory for each call.
pub const REQUEST_BYTES_FREE: usize = 4 << 10;
/// Fields of a message, with those of the lists in it. They count, because an empty chunk takes two
/// bytes on the wire and much more once decoded.
pub const REQUEST_FIELDS_MAX: u64 = 128 << 10;
/// Bytes of one of [`REQUEST_FIELDS_MAX`] after decoding: a chunk has 72 bytes, and a growing list
/// exists twice for a moment.
pub const REQUEST_FIELD_BYTES: u64 = 96;
/// Segments in one `FindMissingRequest`.
pub const FIND_SEGMENTS_MAX: usize = 64;
/// Length of a `FindMissingRequest`: its ids, the id of the upload, and the segments.
pub const FIND_MESSAGE_BYTES_MAX: usize = FIND_IDS_MAX as usize * ChunkId::BYTES + 1024;
/// Time for a request to arrive, in addition to the time for its length.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// The slowest link on which a request arrives in time.
pub const REQUEST_BYTES_PER_SECOND: u64 = 32 << 10;
/// A request that is so far behind this pace loses its room to a waiting one.
pub const REQUEST_YIELDS_AFTER: Duration = Duration::from_secs(3);

/// Bytes of long answers that are being made or sent, over all connections.
pub const ANSWER_BYTES: u64 = 48 << 20;
/// The part of [`ANSWER_BYTES`] that only peers on this machine get.
pub const ANSWER_BYTES_LOCAL: u64 = 16 << 20;
/// Length up to which a message of an answer needs no such room: there are as many as calls.
pub const ANSWER_BYTES_FREE: usize = 4 << 10;
/// Length of the longest answer: a page of a listing, or nodes.
pub const ANSWER_BYTES_MAX: usize = 3 << 20;
/// Bytes of an answer that a peer has to take per second to keep its memory or slot while others
/// wait.
pub const ANSWER_BYTES_PER_SECOND: u64 = 32 << 10;
/// An answer that is so far behind that pace loses its room to waiting ones.
pub const ANSWER_YIELDS_AFTER: Duration = Duration::from_secs(10);
/// Time that a peer may take nothing of an answer while no other call waits. It is the time of an
/// answer that holds no memory; the first mebibyte halves it, two leave a third.
pub const ANSWER_STALL: Duration = Duration::from_mins(10);
/// Length of the parts in which an answer is handed to its connection. A part is held until it has
/// gone out.
pub const ANSWER_PIECE_BYTES: usize = 256 << 10;

/// Calls served at one time, beside one that each connection always has; further ones are refused.
pub const CALLS_MAX: u64 = 1024;
/// The part of [`CALLS_MAX`] that only peers on this machine get.
pub const CALLS_LOCAL: u64 = 256;
/// Time limit of a call, with its request and its answer.
pub const CALL_WITHIN: Duration = Duration::from_mins(5);
/// The same for a call that waits for the disk, for guests or for another daemon.
pub const LONG_CALL_WITHIN: Duration = Duration::from_hours(1);
/// Time for the last lines of the audit log when the daemon stops.
pub const AUDIT_CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// The longest lifetime of a token that expires.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);
/// Longer than any wait.
pub const FOREVER: Duration = Duration::from_hours(1 << 20);
/// Time that a call waits for room or a place before it is refused.
pub const BUSY_WITHIN: Duration = Duration::from_secs(30);
/// When a peer that was refused should try again.
pub const BUSY_PUSHBACK: Duration = Duration::from_secs(1);
/// Calls that may wait for room, or for places of one kind.
pub const WAITING_MAX: usize = 256;
/// A holder of a place that is so far behind loses it to a waiting call.
pub const PLACE_YIELDS_AFTER: Duration = Duration::from_secs(15);
/// Time that a call waits for a place of a long stream: other streams may keep theirs for hours.
pub const PLACE_WITHIN: Duration = Duration::from_hours(1);

/// gRPC connections open at one time, over all listeners, if there are descriptors for so many. A
/// new connection beyond this ends an idle one; if none is idle, it is refused.
pub const CONNECTIONS_MAX: usize = 4096;
/// Requests under way on one connection.
pub const CONNECTION_STREAMS_MAX: u32 = 64;
/// The window of any connection, in bytes: what HTTP/2 begins with, and its least.
pub const WINDOW_BYTES_MIN: u32 = 65_535;
/// Windows beyond that, over all connections. A new connection gets an eighth of the rest: the
/// first ones have windows for a gigabyte per second and a few milliseconds, and thousands together
/// stay within the sum.
pub const WINDOW_BYTES: u32 = 48 << 20;
/// The part of the rest that a new connection gets.
pub const WINDOW_PART: u32 = 8;
/// Length of the HTTP/2 frames received. The protocol's default of 16 KiB costs 64 headers, and as
/// many small reads, for each mebibyte. A frame is held until it is whole, so connections with
/// small windows keep that default.
pub const FRAME_BYTES_MAX: u32 = 256 << 10;
/// Bytes of an answer that wait in a connection for its socket, for each stream.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Headers of a request.
pub const HEADER_BYTES_MAX: u32 = 8 << 10;
/// Time limit for a peer to prove that it speaks HTTP/2.
pub const HTTP2_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time of silence after which the daemon pings a peer.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// Time limit for the answer to the ping, after which the connection is dropped.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit for a connection to prove that it speaks HTTP/2, including a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An upload without progress for so long is dropped, by default; a setting.
pub const UPLOAD_IDLE: Duration = Duration::from_mins(10);
/// An upload without progress for so long loses its place when all are taken: killed clients must
/// not block others until their uploads expire.
pub const UPLOAD_YIELDS_AFTER: Duration = Duration::from_secs(30);
/// The part of the places for uploads that only peers on this machine get.
pub const UPLOADS_LOCAL: usize = varve_store::limits::UPLOADS_MAX / 4;
/// NBD connections open at one time, by default; a setting.
pub const NBD_CONNECTIONS_MAX: usize = varve_nbd::limits::DEFAULT_MAX_CONNECTIONS;

/// `Hold` streams open at one time: half of them of the administrator, half of accounts. Further
/// ones are refused.
pub const HOLDS_MAX: u64 = 256;
/// `Hold` streams of one connection. A copy has one, on a connection of its own.
pub const HOLDS_OF_CONNECTION_MAX: u64 = 8;
/// `Hold` streams of one account, over however many connections.
pub const HOLDS_OF_ACCOUNT_MAX: u64 = 32;
/// How often a `Hold` stream shows that it is alive.
pub const HOLD_INTERVAL: Duration = Duration::from_secs(15);
/// `FetchChunks` streams served at one time; others wait.
pub const COPY_STREAMS_MAX: usize = 16;
/// Nodes in one `FetchNodesRequest`: leaves of 2048 entries, the longest there are, take 84 KiB
/// each.
pub const FETCH_NODES_MAX: usize = varve_client::FETCH_NODES_MAX;
/// Snapshots that one `FetchNodesRequest` or `FetchChunksRequest` names: two that are compared.
pub const FETCH_SNAPSHOTS_MAX: usize = 2;
/// Chunks in one `FetchChunksRequest`.
pub const FETCH_CHUNKS_MAX: usize = varve_client::FETCH_CHUNKS_MAX;
/// Connections of a copy to its source. One connection fills a link of 1 Gbit/s and 150 ms only if
/// both systems allow windows of 19 MB.
pub const COPY_CONNECTIONS: usize = 4;
/// Parts of the tree, of [`FETCH_NODES_MAX`] leaves each, that a copy works on at one time.
pub const COPY_BATCHES_IN_FLIGHT: usize = 4;
/// Approximate payload bytes of one fetch of a copy: small enough that several fill a link evenly,
/// and that a limit on the rate holds.
pub const COPY_FETCH_BYTES: u64 = 2 << 20;
/// Length of the same once unpacked.
pub const COPY_FETCH_PLAIN_BYTES: u64 = 8 << 20;
/// Fetches under way at one time, of all copies. With [`COPY_FETCH_BYTES`], half of them exceed the
/// bytes in flight on a link of 1 Gbit/s and 150 ms.
pub const COPY_FETCHES_IN_FLIGHT: usize = 24;
/// Fetches under way of one copy: another one always finds places.
pub const COPY_FETCHES_OF_ONE: usize = COPY_FETCHES_IN_FLIGHT / 2;
/// Time that a copy waits for chunks that another copy fetches, before it fetches them itself.
pub const COPY_CLAIM_WAIT: Duration = Duration::from_secs(30);
/// Estimates under way at one time. Others wait for a while, and take the place of one whose source
/// is silent.
pub const COPY_ESTIMATES_MAX: usize = 2;
/// Distinct missing chunks that an estimate can distinguish, at 8 bytes each and the overhead of a
/// hash table.
pub const ESTIMATE_CHUNKS_MAX: usize = 8 << 20;
/// Received bytes after which a copy makes them durable.
pub const COPY_FLUSH_BYTES: u64 = 64 << 20;
/// Copies that run at one time: of the administrator, and as many of all other accounts. Others
/// wait, and take the turn of one whose source is silent.
pub const COPIES_RUNNING_MAX: usize = 4;
/// Copies under way, those that wait included.
pub const COPIES_MAX: usize = 1024;
/// The part of them that one account may have, unless it is the administrator's. One of them runs
/// at a time.
pub const COPIES_OF_ACCOUNT_MAX: usize = COPIES_MAX / 4;
/// Copies under way at one time of all accounts together, without the administrator's.
pub const COPIES_OF_ACCOUNTS_MAX: usize = COPIES_MAX / 4 * 3;
/// Ancestors of the wanted snapshot that a copy asks the source for, to find one that is here.
pub const COPY_ANCESTORS_MAX: usize = 16;
/// Leaves of that ancestor that are skipped together.
pub const COPY_KEPT_LEAVES: usize = 4096;
/// Length of a remote's endpoint, and of each path to its files.
pub const REMOTE_TEXT_BYTES_MAX: usize = 1024;
/// Copies that have ended and are still shown.
pub const COPIES_ENDED_MAX: usize = 256;
/// A copy or an estimate whose source is silent for so long loses its place to a waiting one. A
/// copy is retried.
pub const COPY_YIELDS_AFTER: Duration = Duration::from_secs(20);
/// Time that a source may be silent while no other copy waits: with a message of a mebibyte under
/// way on each of [`COPY_FETCHES_IN_FLIGHT`] streams, a link of 1 Mbit/s needs so long.
pub const COPY_SILENCE: Duration = Duration::from_mins(5);
/// Pauses before a copy is retried: the first one, and the longest. Each is twice as long as the
/// one before.
pub const COPY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// A copy that has received nothing for so long, after any number of attempts, has failed: the
/// source is gone, or is another one.
pub const COPY_FRUITLESS_MAX: Duration = Duration::from_hours(24);
/// Number of mismatches in a row after which a copy fails, with nothing usable in between. A bit
/// that a link has flipped is right the next time; a malicious or damaged source sends the same
/// again.
pub const COPY_MISMATCHES_MAX: u32 = 4;
/// Received bytes after which a copy's counters are recorded. An unreachable source adds nothing to
/// the catalog log, and an interrupted one adds a record only per thousands of times its length.
pub const COPY_RECORD_BYTES: u64 = COPY_FLUSH_BYTES;
/// Time until the completion of a copy is recorded again, if that has failed.
pub const COPY_RECORD_PAUSE: Duration = Duration::from_secs(1);

/// The most threads for hashing and compression that a setting may ask for: more than any machine
/// has cores.
pub const CPU_THREADS_MAX: usize = 1024;

/// Length of a line of the log; a longer one is cut.
pub const LOG_LINE_BYTES_MAX: usize = 16 << 10;
/// Length of all lines of the log that wait to be read. Further lines are lost, and counted.
pub const LOG_QUEUE_BYTES_MAX: usize = 1 << 20;

/// How often the progress of a collection is reported.
pub const GC_PROGRESS_INTERVAL: Duration = VERIFY_PROGRESS_INTERVAL;
/// Snapshots and volumes of one question about what they take.
pub const USAGE_RECORDS_MAX: usize = varve_client::USAGE_RECORDS_MAX;
/// A collection may not be asked to be slower than this, in bytes a second: it would not end.
pub const GC_RATE_MIN: u64 = 64 << 10;
/// Packs that are named in the answer about what a collection would do.
pub const GC_PACKS_SHOWN_MAX: usize = 32 << 10;
/// Time from the start of the daemon to the first collection that begins by itself: a machine that
/// has just started has other work.
pub const GC_FIRST: Duration = Duration::from_mins(15);
/// How often the daemon looks if a collection is due.
pub const GC_LOOK: Duration = Duration::from_mins(1);
/// A file system with a smaller part of it free, in percent, is low on space.
pub const FREE_PERCENT_LOW: u128 = 15;
/// The time from one collection to the next while the file system is low on space, at most.
pub const GC_LOW_SPACE_INTERVAL: Duration = Duration::from_hours(1);

/// How often files of TLS are checked for changes.
pub const TLS_FILES_INTERVAL: Duration = Duration::from_secs(10);

/// How often the health service asks the store whether it still writes.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// Time for running requests to finish when the daemon stops.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// The same for NBD, a little less, so that it can end its connections in its own way.
pub const NBD_STOP_GRACE: Duration = Duration::from_secs(4);
/// Time that the exiting process waits for threads that read files.
pub const RUNTIME_STOP_GRACE: Duration = Duration::from_secs(1);
/// Time that a stopping daemon keeps a gRPC connection without a call, so that its peer can end it.
pub const STOP_IDLE_GRACE: Duration = Duration::from_millis(500);

const _: () = assert!((UPLOAD_MESSAGE_BYTES as usize) < MESSAGE_BYTES_MAX);
const _: () = assert!(NBD_STOP_GRACE.as_nanos() < STOP_GRACE.as_nanos());
const _: () = assert!(3 * MESSAGE_BYTES_MAX as u64 <= REQUEST_BYTES - REQUEST_BYTES_LOCAL);
const _: () = assert!(PAGE_BYTES + SMALL_MESSAGE_BYTES_MAX <= ANSWER_BYTES_MAX);
// One full message can always be under way, or it would wait for ever.
const _: () = assert!(UPLOAD_MESSAGE_BYTES <= UPLOAD_BYTES_IN_FLIGHT);
const _: () = assert!(PUT_GROUP_BYTES + SEGMENT_BYTES <= varve_store::limits::INGEST_PLAIN_BYTES);
const _: () = assert!(PAGE_DEFAULT <= varve_store::limits::PAGE_MAX);
// Names of the greatest length, each with a few bytes of its own.
const _: () = assert!(
    DELETE_SNAPSHOTS_MAX * (varve_store::limits::NAME_CHARS_MAX + 8) <= SMALL_MESSAGE_BYTES_MAX
);
// An answer has the deleted records and some 768 bytes more for each outcome, with the reason why a
// pending snapshot waits. It repeats the names of what does not exist.
const _: () = assert!(
    varve_store::limits::DELETED_RECORDS_BYTES_MAX
        + 768 * DELETE_SNAPSHOTS_MAX
        + 2 * SMALL_MESSAGE_BYTES_MAX
        <= ANSWER_BYTES_MAX
);
const _: () = assert!(3 * HOLD_INTERVAL.as_secs() < varve_client::HOLD_SILENCE.as_secs());
// The default of gRPC clients.
const _: () = assert!(varve_store::limits::REMOTES_MAX * (5 * REMOTE_TEXT_BYTES_MAX) < 4 << 20);
const _: () = assert!(
    READ_MESSAGE_BYTES + SMALL_MESSAGE_BYTES_MAX < 4 << 20
        && PAGE_BYTES + SMALL_MESSAGE_BYTES_MAX < 4 << 20
);
