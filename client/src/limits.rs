//! Every bound of the client in one place, and their sums.
//!
//! Units are bytes unless a name says otherwise. Memory of an upload, beside the program itself:
//!
//! | what | bound |
//! | --- | --- |
//! | segments read, being hashed, asked about and sent | [`SEGMENT_BUFFERS`] x [`JOB_BYTES`] |
//! | chunks compressed for the way over TCP | [`COMPRESSED_JOBS_MAX`] x [`JOB_BYTES`] |
//!
//! Bytes that wait in HTTP/2 are slices of these buffers.
//!
//! and a download:
//!
//! | what | bound |
//! | --- | --- |
//! | what the daemon sends ahead | [`HTTP2_STREAM_WINDOW_BYTES`] |
//! | messages taken, whose chunks are being decoded, checked and written | ([`DECODERS_MAX`] + 1) x [`CONTENT_MESSAGE_BYTES_MAX`] |
//! | segments put together for a sink that takes bytes in order | ([`DECODERS_MAX`] + 2) x one segment |
//!
//! and an archive:
//!
//! | what | bound |
//! | --- | --- |
//! | leaves with their chunks | ([`ARCHIVE_GROUPS`] + 3) x one segment |
//! | ids of the chunks that it has, while their table grows | 57 bytes x [`ARCHIVE_CHUNKS_MAX`] |
//!
//! and a read of a snapshot, or an upload on a base:
//!
//! | what | bound |
//! | --- | --- |
//! | chunks of a read, packed and plain | 2 x ([`READ_GROUPS`] + 1) x one segment |
//! | segments of an upload, packed, plain and cut again | 3 x [`BASED_SEGMENTS`] x one segment |
//!
//! Verifying an archive without a base takes some 40 to 100 bytes for each of its chunks; this is
//! not bounded.

use std::time::Duration;

use varve_content::block::{SEGMENT_BLOCKS, SEGMENT_BYTES};

/// Nodes in one request for nodes, at most.
pub const FETCH_NODES_MAX: usize = 32;
/// Snapshots in one request to delete snapshots, at most.
pub const DELETE_SNAPSHOTS_MAX: usize = 1000;
/// Chunks in one request for chunks, at most.
pub const FETCH_CHUNKS_MAX: usize = 4096;

/// Snapshots and volumes in one question about what they take, or what their deletion gives back.
pub const USAGE_RECORDS_MAX: usize = 64 << 10;
/// A hold of a snapshot on which nothing arrives for this long is lost. The daemon sends something
/// every 15 seconds.
pub const HOLD_SILENCE: Duration = Duration::from_secs(60);

/// Data of one job of an upload: whole segments that are read, cut, asked about and sent together.
pub(crate) const JOB_BYTES: usize = SEGMENT_BYTES;
/// Buffers of [`JOB_BYTES`] that an upload reads into, at most; a reader waits while all are in
/// use. Over a network they also cover the time that bytes are on their way.
pub(crate) const SEGMENT_BUFFERS: usize = 12;
/// Buffers beyond one a reader for an upload to a daemon on this machine: few, because fresh memory
/// costs a page fault for every 4 KiB.
pub(crate) const LOCAL_SPARE_BUFFERS: usize = 1;
/// Jobs that were read and not yet accepted by the daemon. More than buffers: a job whose chunks
/// are all known to the daemon gives its buffer back and only waits for its turn.
pub(crate) const JOBS_IN_FLIGHT: usize = 16;
/// Threads that read, cut and hash: as many as cores, up to this.
pub(crate) const READERS_MAX: usize = 8;
/// Jobs whose chunks are held in compressed form at one time.
pub(crate) const COMPRESSED_JOBS_MAX: usize = 6;
/// Streams that carry chunks at one time. One of them sends; the others wait for their answers.
pub(crate) const PUT_STREAMS: usize = 4;
/// Payload of one message of chunks, unless the daemon asks for less.
pub(crate) const MESSAGE_PAYLOAD_BYTES: usize = 1 << 20;
/// Entries of leaves that are put with one call, and up to a job's beyond them: some 200 KiB.
pub(crate) const LEAF_ENTRIES_PER_MESSAGE: usize = 4 << 10;
/// Chunks for which a daemon remembers, at least, that an account has sent them, until their leaves
/// come.
const PROVED_CHUNKS: usize = 57_344;
/// Entries of a leaf: each chunk of the least size, a block, has a hole behind it.
const LEAF_ENTRIES_MAX: usize = SEGMENT_BLOCKS as usize / 2;
/// Calls that put leaves, under way at one time.
pub(crate) const LEAF_CALLS_MAX: usize = 4;

/// Groups of an archive, a leaf and its chunks each, that are under way at one time: fetched and
/// checked, or sent.
pub(crate) const ARCHIVE_GROUPS: usize = 6;
/// Batches of leaves that are fetched ahead of those.
pub(crate) const ARCHIVE_LEAF_FETCHES: usize = 4;
/// Leaves of an archive's base that are passed over together.
pub(crate) const ARCHIVE_KEPT_LEAVES: usize = 4096;
/// Chunk ids that are remembered while an archive is written, at 32 bytes each and the overhead of
/// a hash table. An archive of more chunks has some of them twice.
pub(crate) const ARCHIVE_CHUNKS_MAX: usize = 7 << 18;

/// Batches of leaves that a read of a snapshot fetches ahead.
pub(crate) const READ_LEAF_FETCHES: usize = 3;
/// Groups of chunks of a read, of at most one segment's bytes each, that are under way at one time:
/// enough to cover the time that they are on their way.
pub(crate) const READ_GROUPS: usize = 4;
/// Segments whose chunks a daemon takes in one question for what is missing.
pub(crate) const FIND_SEGMENTS_MAX: usize = 64;
/// Segments that an upload on a base cuts again at one time.
pub(crate) const BASED_SEGMENTS: usize = 4;

/// Time limit for the outcome of work that was cancelled as it was about to become visible.
pub(crate) const OUTCOME_WITHIN: Duration = Duration::from_secs(30);
/// Time for which calls are repeated that the daemon refuses because too much is under way.
pub(crate) const BUSY_PATIENCE: Duration = Duration::from_secs(120);
/// Least and longest pause before such a call is repeated, even if the daemon asks for another.
pub(crate) const BUSY_PAUSES: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));
/// Pause between two questions whether snapshots are complete.
pub(crate) const SNAPSHOT_POLL: Duration = Duration::from_millis(100);

/// Pause between two questions after a copy: this part of the time that it took so far, between
/// these bounds.
pub(crate) const COPY_POLL_PART: u32 = 20;
pub(crate) const COPY_POLL: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(200));

/// Threads that decode, check and write: as many as cores, up to this. Each has one message in
/// hand, and one more message waits.
pub(crate) const DECODERS_MAX: usize = 8;
/// Largest message of a download that is accepted. A daemon sends a mebibyte of payload at a time,
/// with the ids and lengths of the chunks.
pub(crate) const CONTENT_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes that a peer may send on one stream before they are taken.
pub(crate) const HTTP2_STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes that a peer may send on all streams of a connection before they are taken.
pub(crate) const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// The same for a unix socket, which needs no bytes in flight: waiting bytes only take memory, and
/// fresh memory costs time. A stream that is not taken leaves room for others.
pub(crate) const LOCAL_STREAM_WINDOW_BYTES: u32 = 4 << 20;
pub(crate) const LOCAL_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes that may wait in a unix socket on their way to the daemon, for fewer, larger turns between
/// the two processes. The system cuts this down to what it allows.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 1 << 20;
/// Largest HTTP/2 frame accepted: larger than the default of 16 KiB, for fewer system calls.
pub(crate) const HTTP2_FRAME_BYTES: u32 = 64 << 10;
/// Largest message accepted beside those of a download; the largest is a page of a listing.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Snapshots asked for in one page: as many as always fit into a message.
pub(crate) const LIST_PAGE: u32 = 200;
/// A snapshot as it is sent, with all the tags it may have: 50, of 127 + 255 characters of up to 4
/// bytes.
const SNAPSHOT_BYTES_MAX: usize = 50 * (127 + 255) * 4 + 2048;

/// Time limit for making a connection.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The client pings a connection with calls under way on which nothing has come for this long.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Time limit for the answer to the ping.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit for telling the daemon that an upload is aborted.
pub(crate) const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The most tries of a call that can be repeated.
pub(crate) const ATTEMPTS: u32 = 5;
/// Pause before the second try; each one after is twice as long.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Bytes of memory for the pipelines: the client promises 256 MiB in all.
const PIPELINE_MEMORY_MAX: usize = 192 << 20;

const _: () =
    assert!(SEGMENT_BUFFERS * JOB_BYTES + COMPRESSED_JOBS_MAX * JOB_BYTES <= PIPELINE_MEMORY_MAX);
const _: () = assert!(
    HTTP2_STREAM_WINDOW_BYTES as usize
        + (DECODERS_MAX + 1) * CONTENT_MESSAGE_BYTES_MAX
        + (DECODERS_MAX + 2) * SEGMENT_BYTES
        <= PIPELINE_MEMORY_MAX
);
// Of the chunks that are sent and whose leaves are not put yet, the daemon forgets none.
const _: () = assert!(
    (JOBS_IN_FLIGHT + LEAF_CALLS_MAX + 1) * LEAF_ENTRIES_MAX
        + (LEAF_CALLS_MAX + 1) * LEAF_ENTRIES_PER_MESSAGE
        <= PROVED_CHUNKS
);
// A job has room for any segment, and every reader can have a buffer.
const _: () =
    assert!(JOB_BYTES == SEGMENT_BYTES && SEGMENT_BUFFERS >= READERS_MAX + LOCAL_SPARE_BUFFERS);
const _: () =
    assert!((ARCHIVE_GROUPS + 3) * SEGMENT_BYTES + 57 * ARCHIVE_CHUNKS_MAX <= PIPELINE_MEMORY_MAX);
const _: () = assert!(2 * (READ_GROUPS + 1) * SEGMENT_BYTES <= PIPELINE_MEMORY_MAX);
const _: () = assert!(3 * BASED_SEGMENTS * SEGMENT_BYTES <= PIPELINE_MEMORY_MAX);
// Entries of 48 bytes as they are sent: leaves of the base come by so many at one time.
const _: () =
    assert!((LEAF_ENTRIES_PER_MESSAGE + FETCH_NODES_MAX * SEGMENT_BLOCKS as usize) * 48 <= 4 << 20);
const _: () = assert!(LIST_PAGE as usize * SNAPSHOT_BYTES_MAX <= MESSAGE_BYTES_MAX);

/// Threads for work that keeps a core busy: one a core, between 2 and `most`.
pub(crate) fn worker_threads(most: usize) -> usize {
    std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .clamp(2, most)
}
