//! Every bound of the daemon in one place. The store's are in [`varve_store::limits`], NBD's in [`varve_nbd::limits`].
//!
//! What gRPC may take beside the store (bytes):
//!
//! | what | bound |
//! | --- | --- |
//! | chunks received and not yet taken by the store | [`UPLOAD_BYTES_IN_FLIGHT`] |
//! | requests being received, decoded and worked on | [`REQUEST_BYTES`], and [`REQUEST_BYTES_FREE`] a call |
//! | long answers | [`ANSWER_BYTES`] |
//! | segments read for downloads | ([`READ_STREAMS_MAX`] + [`READ_AHEAD_SEGMENTS_SHARED`]) x one segment (8 MiB) |
//! | what connections may send ahead | [`WINDOW_BYTES`], and [`WINDOW_BYTES_MIN`] each |
//! | what a client has not taken yet | [`MESSAGES_QUEUED`] messages a stream |

use std::time::Duration;

use varve_content::{ChunkId, block::SEGMENT_BYTES};

/// Any message that comes in: what gRPC implementations take by default.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Payload of one `PutChunksRequest`. The rest of the message is for what surrounds payloads: some 52 bytes each.
pub const UPLOAD_MESSAGE_BYTES: u32 = 3 << 20;
/// Ids of one `FindMissingRequest`.
pub const FIND_IDS_MAX: u32 = 8192;
/// Requests other than those that carry content are small; headers of tags and names included.
pub const SMALL_MESSAGE_BYTES_MAX: usize = 256 << 10;

/// `PutChunks` streams that are served at one time, from their first message on; others wait. What they hold is counted in bytes.
pub const UPLOAD_STREAMS_MAX: usize = 64;
/// Payload that was received and that the store has not taken yet, over all uploads.
pub const UPLOAD_BYTES_IN_FLIGHT: u32 = 16 << 20;
/// Chunks are given to the store in groups of about this many plain bytes. Each is one job of one of its threads, so a
/// message becomes several.
pub const PUT_GROUP_BYTES: usize = 1 << 20;
/// Groups of one stream that the store works on at one time.
pub const PUT_GROUPS_IN_FLIGHT: usize = 6;

/// `Download` and `ReadSnapshot` streams that are served at one time; others wait, and take the places of those whose answers nobody takes.
pub const READ_STREAMS_MAX: usize = 16;
/// Segments that one download reads at one time, at most.
pub const READ_AHEAD_SEGMENTS: usize = 4;
/// Segments read ahead beyond one for each download, over all downloads.
pub const READ_AHEAD_SEGMENTS_SHARED: usize = 4;
/// Payload of one message of a download or a read, about.
pub const READ_MESSAGE_BYTES: usize = 1 << 20;
/// Pieces of [`READ_MESSAGE_BYTES`] that one `ReadSnapshot` reads at one time.
pub const READ_PIECES_IN_FLIGHT: usize = 4;
/// `DiffSnapshots` and `VerifySnapshot` streams that are served at one time; others wait.
pub const CHECK_STREAMS_MAX: usize = 16;
/// How much of a snapshot is asked for its holes at one time.
pub const EXTENTS_WINDOW_BYTES: u64 = 1 << 30;
/// Messages of one stream that wait for the connection.
pub const MESSAGES_QUEUED: usize = 2;
/// Extents in one message of a diff.
pub const DIFF_EXTENTS_PER_MESSAGE: usize = 1024;
/// Violations in one message of a verification.
pub const VIOLATIONS_PER_MESSAGE: usize = 256;
/// How often a verification tells how far it is.
pub const VERIFY_PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Snapshots or volumes in a page unless the request says otherwise.
pub const PAGE_DEFAULT: usize = 100;
/// A page ends early when its snapshots or volumes take this much: with all tags at their longest a full one would take 76 MB, and
/// gRPC clients take messages of 4 MiB unless told otherwise.
pub const PAGE_BYTES: usize = 2 << 20;
/// A snapshot's or volume's name or id in a request. Longer ones name nothing; a name has [`varve_store::limits::NAME_CHARS_MAX`]
/// characters, all ASCII.
pub const KEY_BYTES_MAX: usize = 1024;
/// Characters of a request's text that an error repeats.
pub const QUOTED_CHARS_MAX: usize = 80;

/// Bytes of requests that are being received or worked on, over all connections, with what they become when they are decoded. A message gets its
/// room before it is taken in.
pub const REQUEST_BYTES: u64 = 48 << 20;
/// Of these, what only peers on this machine get.
pub const REQUEST_BYTES_LOCAL: u64 = 16 << 20;
/// A message up to this has room without that: as many as calls, and a page of memory each.
pub const REQUEST_BYTES_FREE: usize = 4 << 10;
/// Fields of a message, those of lists in it included, and what one becomes when it is decoded: an empty chunk takes two bytes on the wire.
pub const REQUEST_FIELDS_MAX: u64 = 128 << 10;
/// See [`REQUEST_FIELDS_MAX`]; chunks are 72 bytes, and a list that grows is there twice.
pub const REQUEST_FIELD_BYTES: u64 = 96;
/// `FindMissing`: its ids, and the name of the upload.
pub const FIND_MESSAGE_BYTES_MAX: usize = FIND_IDS_MAX as usize * ChunkId::BYTES + 1024;
/// How long a request may take to arrive, beside what its length takes.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// The slowest link on which a request arrives in time.
pub const REQUEST_BYTES_PER_SECOND: u64 = 32 << 10;
/// A request that is so far behind this pace gives way to one that waits for room.
pub const REQUEST_YIELDS_AFTER: Duration = Duration::from_secs(3);

/// Bytes of answers that are made or on their way, over all connections, of the methods whose answers are long.
pub const ANSWER_BYTES: u64 = 48 << 20;
/// Of these, what only peers on this machine get.
pub const ANSWER_BYTES_LOCAL: u64 = 16 << 20;
/// A message of an answer up to this needs no room: there are as many as calls.
pub const ANSWER_BYTES_FREE: usize = 4 << 10;
/// The longest answer: a page of a listing, or nodes.
pub const ANSWER_BYTES_MAX: usize = 3 << 20;
/// What a peer has to take of an answer in a second not to give way to others that wait for room, or for its place.
pub const ANSWER_BYTES_PER_SECOND: u64 = 32 << 10;
/// An answer that is so far behind that pace gives way to those that wait.
pub const ANSWER_YIELDS_AFTER: Duration = Duration::from_secs(10);
/// How long a peer may take nothing of an answer, if nobody waits: so long for nothing that is held, half as long for the first mebibyte, a third for two.
pub const ANSWER_STALL: Duration = Duration::from_mins(10);
/// Parts in which an answer is handed to its connection. What was handed over is held until it has gone out.
pub const ANSWER_PIECE_BYTES: usize = 256 << 10;

/// Calls that are served at one time, beside one that each connection always has; further ones are refused.
pub const CALLS_MAX: u64 = 1024;
/// Of these, those that only peers on this machine get.
pub const CALLS_LOCAL: u64 = 256;
/// How long a call may take, with its request and its answer.
pub const CALL_WITHIN: Duration = Duration::from_mins(5);
/// The same for one that waits for the disk, for guests or for another daemon.
pub const LONG_CALL_WITHIN: Duration = Duration::from_hours(1);
/// Longer than anybody waits.
pub const FOREVER: Duration = Duration::from_hours(1 << 20);
/// How long a call waits for room or a place before it is refused.
pub const BUSY_WITHIN: Duration = Duration::from_secs(30);
/// After what time a peer that was refused had better try again.
pub const BUSY_PUSHBACK: Duration = Duration::from_secs(1);
/// Those that may wait for room, or for places of one kind.
pub const WAITING_MAX: usize = 256;
/// A holder of a place that is so far behind gives it to those that wait.
pub const PLACE_YIELDS_AFTER: Duration = Duration::from_secs(15);
/// How long a call waits for a place among those that make long answers: others may need theirs for hours, and are at work.
pub const PLACE_WITHIN: Duration = Duration::from_hours(1);

/// gRPC connections open at one time, over all listeners, if there are descriptors for so many. For a further one an idle one is
/// ended; if there is none, the further one is.
pub const CONNECTIONS_MAX: usize = 4096;
/// Requests under way on one connection.
pub const CONNECTION_STREAMS_MAX: u32 = 64;
/// What may be under way to the daemon on any connection: what HTTP/2 begins with, and what it can be at the least.
pub const WINDOW_BYTES_MIN: u32 = 65_535;
/// What may be under way beyond that, over all connections. Each gets an eighth of what is left when it is made: the first ones have windows for a
/// gigabyte a second and a few milliseconds, and thousands do not add up.
pub const WINDOW_BYTES: u32 = 48 << 20;
/// One of so many parts of what is left.
pub const WINDOW_PART: u32 = 8;
/// HTTP/2 frames received, at most. The protocol's default of 16 KiB costs 64 headers, and as many small reads, for each mebibyte; a frame is
/// held until it is whole, so connections with small windows have that.
pub const FRAME_BYTES_MAX: u32 = 256 << 10;
/// What of an answer waits in a connection for its socket, for each stream.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Headers of a request.
pub const HEADER_BYTES_MAX: u32 = 8 << 10;
/// How long a peer may take to say that it speaks HTTP/2.
pub const HTTP2_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that is silent is asked for a sign of life, and dropped without one.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long the sign may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may take to show that it speaks HTTP/2, a TLS handshake included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An upload that has not come further for so long is dropped, by default; a setting.
pub const UPLOAD_IDLE: Duration = Duration::from_mins(10);
/// When all places for uploads are taken, one that has not come further for so long gives way: clients that were killed must not
/// keep others out until their uploads expire.
pub const UPLOAD_YIELDS_AFTER: Duration = Duration::from_secs(30);
/// Of the places for uploads, those that only peers on this machine get.
pub const UPLOADS_LOCAL: usize = varve_store::limits::UPLOADS_MAX / 4;
/// NBD connections open at one time, by default; a setting.
pub const NBD_CONNECTIONS_MAX: usize = varve_nbd::limits::DEFAULT_MAX_CONNECTIONS;

/// `FetchChunks` streams that are served at one time; others wait.
pub const COPY_STREAMS_MAX: usize = 16;
/// Nodes of one `FetchNodesRequest`: leaves of 2048 entries, the longest there are, take 84 KiB.
pub const FETCH_NODES_MAX: usize = varve_client::FETCH_NODES_MAX;
/// Chunks of one `FetchChunksRequest`.
pub const FETCH_CHUNKS_MAX: usize = varve_client::FETCH_CHUNKS_MAX;
/// Connections of a copy to its source: one fills a link of 1 Gbit/s and 150 ms only if both systems allow windows of 19 MB.
pub const COPY_CONNECTIONS: usize = 4;
/// Parts of the tree, of [`FETCH_NODES_MAX`] leaves each, that a copy works on at one time.
pub const COPY_BATCHES_IN_FLIGHT: usize = 4;
/// Payload of one fetch of a copy, about: small enough that several fill a link evenly, and a limit on the rate is kept.
pub const COPY_FETCH_BYTES: u64 = 2 << 20;
/// What that may be once unpacked.
pub const COPY_FETCH_PLAIN_BYTES: u64 = 8 << 20;
/// Fetches that are under way at one time, of all copies: with [`COPY_FETCH_BYTES`], half of them are more than what is on its way over a link of
/// 1 Gbit/s and 150 ms.
pub const COPY_FETCHES_IN_FLIGHT: usize = 24;
/// Of these, of one copy: another one always finds places, whatever becomes of this one's.
pub const COPY_FETCHES_OF_ONE: usize = COPY_FETCHES_IN_FLIGHT / 2;
/// How long a copy waits for chunks that another one is fetching, before it fetches them itself.
pub const COPY_CLAIM_WAIT: Duration = Duration::from_secs(30);
/// Estimates that are under way at one time; others wait a while, and take the place of one whose source is silent.
pub const COPY_ESTIMATES_MAX: usize = 2;
/// Distinct missing chunks that an estimate tells apart, at 8 bytes and what a hash table adds.
pub const ESTIMATE_CHUNKS_MAX: usize = 8 << 20;
/// What has arrived is made durable each time it is so much.
pub const COPY_FLUSH_BYTES: u64 = 64 << 20;
/// Copies that run at one time; others wait for their turn, and take that of one whose source is silent.
pub const COPIES_RUNNING_MAX: usize = 4;
/// Copies that are under way, those that wait included.
pub const COPIES_MAX: usize = 1024;
/// How far back a snapshot before the wanted one is looked for that is here, by asking the source for each.
pub const COPY_ANCESTORS_MAX: usize = 16;
/// Leaves of that one which are passed over together.
pub const COPY_KEPT_LEAVES: usize = 4096;
/// Bytes of a remote's endpoint, and of each path to its files.
pub const REMOTE_TEXT_BYTES_MAX: usize = 1024;
/// Bytes of a file of certificates.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;
/// Copies that have ended and are still shown.
pub const COPIES_ENDED_MAX: usize = 256;
/// A copy or an estimate whose source has said nothing for so long gives way to those that wait. A copy is tried again.
pub const COPY_YIELDS_AFTER: Duration = Duration::from_secs(20);
/// How long a source may say nothing if nobody waits, with a message of a mebibyte under way on each of [`COPY_FETCHES_IN_FLIGHT`] streams: what 1 Mbit/s
/// needs for them.
pub const COPY_SILENCE: Duration = Duration::from_mins(5);
/// Pause before a copy is tried again; each one after is twice as long, up to the second.
pub const COPY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// A copy to which nothing has arrived for so long, however often it was tried, has failed: the source is gone, or is another one.
pub const COPY_FRUITLESS_MAX: Duration = Duration::from_hours(24);
/// So often in a row, with nothing that could be used in between, a source may send what does not match its id. A bit that a link has flipped is
/// not there the next time; a source that lies or is damaged says the same again.
pub const COPY_MISMATCHES_MAX: u32 = 4;
/// The counters of a copy that goes on are written down each time so much has arrived: a source that cannot be reached adds nothing to the log,
/// and one that breaks off adds a record for what is thousands of times as much.
pub const COPY_RECORD_BYTES: u64 = COPY_FLUSH_BYTES;

/// The most threads for hashing and compression that a setting may ask for: more than any machine has cores.
pub const CPU_THREADS_MAX: usize = 1024;

/// A line of the log; a longer one is cut.
pub const LOG_LINE_BYTES_MAX: usize = 16 << 10;
/// Lines of the log that wait for whoever reads it, all together; further ones are lost, and counted.
pub const LOG_QUEUE_BYTES_MAX: usize = 1 << 20;

/// How often files of TLS are looked at for changes.
pub const TLS_FILES_INTERVAL: Duration = Duration::from_secs(10);

/// How often the store is asked whether it still writes, for the health service.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// How long running requests may go on when the daemon stops.
pub const STOP_GRACE: Duration = Duration::from_secs(5);
/// The same for NBD, which ends its connections in its own way; a little less, so that it gets to.
pub const NBD_STOP_GRACE: Duration = Duration::from_secs(4);
/// How long threads are waited for that read files when all is closed.
pub const RUNTIME_STOP_GRACE: Duration = Duration::from_secs(1);
/// How long a gRPC connection without a call is kept then, so that its peer learns that it ends and can end it.
pub const STOP_IDLE_GRACE: Duration = Duration::from_millis(500);

/// Descriptors that are neither connections, nor journals, nor packs that are read: what the store says that it needs, the
/// connections of copies and estimates to their sources, the handshakes that each of four listeners always has descriptors
/// for, and 64 for listeners, the runtime, standard streams and what a client library opens for a moment.
pub const DESCRIPTORS_FIXED: u64 = varve_store::limits::STORE_DESCRIPTORS
    + ((COPIES_RUNNING_MAX + COPY_ESTIMATES_MAX) * COPY_CONNECTIONS) as u64
    + 4 * crate::net::limits::HANDSHAKES_LEAST as u64
    + 64;
/// The fewest packs open for reads.
pub const PACK_DESCRIPTORS_LEAST: usize = 16;
/// The fewest descriptors for journals: with fewer than two for each volume that is being written, volumes take turns.
pub const JOURNAL_DESCRIPTORS_LEAST: usize = 64;
/// The fewest descriptors that a daemon starts with: few connections then, and everything works.
pub const DESCRIPTORS_LEAST: u64 =
    DESCRIPTORS_FIXED + (PACK_DESCRIPTORS_LEAST + 2 * JOURNAL_DESCRIPTORS_LEAST) as u64;

const _: () = assert!((UPLOAD_MESSAGE_BYTES as usize) < MESSAGE_BYTES_MAX);
const _: () = assert!(NBD_STOP_GRACE.as_nanos() < STOP_GRACE.as_nanos());
const _: () = assert!(3 * MESSAGE_BYTES_MAX as u64 <= REQUEST_BYTES - REQUEST_BYTES_LOCAL);
const _: () = assert!(PAGE_BYTES + SMALL_MESSAGE_BYTES_MAX <= ANSWER_BYTES_MAX);
// One full message can always be under way, or it would wait for ever.
const _: () = assert!(UPLOAD_MESSAGE_BYTES <= UPLOAD_BYTES_IN_FLIGHT);
const _: () = assert!(PUT_GROUP_BYTES + SEGMENT_BYTES <= varve_store::limits::INGEST_PLAIN_BYTES);
const _: () = assert!(PAGE_DEFAULT <= varve_store::limits::PAGE_MAX);
// What gRPC clients take by default.
const _: () = assert!(varve_store::limits::REMOTES_MAX * (5 * REMOTE_TEXT_BYTES_MAX) < 4 << 20);
const _: () = assert!(
    READ_MESSAGE_BYTES + SMALL_MESSAGE_BYTES_MAX < 4 << 20
        && PAGE_BYTES + SMALL_MESSAGE_BYTES_MAX < 4 << 20
);
