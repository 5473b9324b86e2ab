//! Every bound of the store in one place, and how they add up.
//!
//! The memory that a store may take, beside the program itself (in bytes unless a name says
//! otherwise):
//!
//! | what | bound |
//! | --- | --- |
//! | plain chunks and tree nodes kept for reads | [`CHUNK_CACHE_BYTES`] + [`NODE_CACHE_BYTES`] |
//! | plain chunks on their way in | [`INGEST_PLAIN_BYTES`] |
//! | packed bytes on their way to disk | [`PACK_BUFFERS`] x [`PACK_BUFFER_BYTES`] |
//! | what is brought ahead of readers | is among the chunks kept; where these are less, [`READ_AHEADS_MAX`] x [`READ_AHEAD_BYTES_MAX`] |
//! | reads under way | [`READ_BYTES_IN_FLIGHT`], and as much again decoded |
//! | batches of changes on their way to journals | twice [`JOURNAL_QUEUE_BYTES`]; what waits is with its writers |
//! | journals that are read | [`JOURNAL_SCANS`] x ([`JOURNAL_SCAN_READS`] + 2) x [`JOURNAL_SCAN_WINDOW_BYTES`], and a batch each |
//! | segments of volumes being cut again | [`CHECKPOINT_SEGMENTS_IN_FLIGHT`] x 8 MiB |
//! | what is kept in mind of chunks that are not indexed | twice [`INDEX_GROUP_RECORDS`] x 300 |
//! | trees of volumes being made anew | [`CHECKPOINTS_MAX`] x ([`CHECKPOINT_NODES_MAX`] + 6 nodes of 8.25 KiB) |
//! | maps of journals | [`MAPS_BYTES_MAX`] + [`VOLUMES_MAX`] x [`MAP_BYTES_LEAST`], beside all else |
//! | RocksDB | [`ROCKS_CACHE_BYTES`] + [`ROCKS_WRITE_BUFFER_BYTES`] |

use std::time::Duration;

/// Plain chunks and decoded tree nodes kept for reads, by default; a setting.
pub const CHUNK_CACHE_BYTES: u64 = 128 << 20;
/// The largest additional cache, mostly for nodes: an eighth as much, and no more than this.
pub const NODE_CACHE_BYTES: u64 = 16 << 20;

/// See [`NODE_CACHE_BYTES`].
pub(crate) const fn node_cache_bytes(chunk_cache_bytes: u64) -> u64 {
    let part = chunk_cache_bytes / 8;
    if part < NODE_CACHE_BYTES {
        part
    } else {
        NODE_CACHE_BYTES
    }
}

/// Plain bytes of chunks that were accepted and are not yet in a pack buffer, over all uploads.
pub const INGEST_PLAIN_BYTES: usize = 32 << 20;
/// Uploads open at one time.
pub const UPLOADS_MAX: usize = 64;
/// Other daemons that have names.
pub const REMOTES_MAX: usize = 256;
/// Chunks are indexed in groups this large, of packed bytes: what a crash makes an interrupted
/// upload send again.
pub const INDEX_GROUP_BYTES: u64 = 32 << 20;
/// And no larger than this, in chunks and tree nodes: what is kept in mind of each takes some 300
/// bytes, and one may pack to fewer. Of chunks of the usual 14 KiB a group has 2400. While one is
/// being indexed the next may grow as large; then senders wait.
pub const INDEX_GROUP_RECORDS: usize = 1 << 13;

/// One write to a pack.
pub const PACK_BUFFER_BYTES: usize = 1 << 20;
/// Writes under way or waiting for their turn, per pack writer (one for chunks, one for nodes).
pub const PACK_BUFFERS: usize = 16;
/// A pack is sealed when it has grown to this.
pub const PACK_BYTES_MAX: u64 = 256 << 20;
/// At a clean stop one that has grown to this part of that is, too: what is not sealed is scanned
/// at the start, and 64 MiB are in a fraction of a second.
pub const PACK_CLOSED_PART: u64 = 4;
/// Pack files kept open for reads.
pub const PACKS_OPEN_MAX: usize = 256;
/// Pack files kept open for reads past the page cache, which verifications do: one goes from pack
/// to pack.
pub const PACKS_OPEN_DIRECT_MAX: usize = 16;

/// Descriptors of journal files of all volumes: two for the file that is appended to, which is
/// written with direct IO and through the page cache, and one for each other file. The least
/// recently used ones are closed for others.
#[expect(clippy::cast_possible_truncation, reason = "9216")]
pub const JOURNAL_FILES_OPEN_MAX: usize = journal_descriptors(VOLUMES_MAX) as usize;
/// The same for so many volumes: what none of them has to wait for, and a thousand files that are
/// read or not durable yet.
#[must_use]
pub const fn journal_descriptors(volumes: u64) -> u64 {
    2 * volumes + 1024
}
/// Files of one journal that are not durable, and so stay open, before they are made so without
/// being asked.
pub const JOURNAL_FILES_UNSYNCED: usize = 4;
/// RocksDB's open tables.
pub const ROCKS_FILES_OPEN_MAX: u64 = 128;
/// Descriptors that a store needs beside journals and packs that are read: packs that are verified,
/// past the page cache; RocksDB: its tables, and 64 for logs, manifest and what a compaction reads
/// and writes. 64 for packs being written, the catalog log, the ring, directories being synced,
/// files that are being read and were closed for others, locks.
pub const STORE_DESCRIPTORS: u64 = PACKS_OPEN_DIRECT_MAX as u64 + ROCKS_FILES_OPEN_MAX + 64 + 64;

/// Bytes of reads from packs under way at one time.
pub const READ_BYTES_IN_FLIGHT: usize = 32 << 20;
/// The largest single read from a pack: neighbouring records are read together up to this.
pub const READ_SPAN_BYTES: usize = 1 << 20;
/// Plain bytes that one worker unpacks of such a read before the next may begin: little enough that
/// all have something to do.
pub const DECODE_JOB_BYTES: usize = 128 << 10;
/// The readahead of a sequential reader: at first, and at most. Concurrent reads share
/// [`READ_BYTES_IN_FLIGHT`].
pub const READ_AHEAD_BYTES_MIN: u64 = 512 << 10;
/// See [`READ_AHEAD_BYTES_MIN`]. As many as [`READ_AHEADS_MAX`] readers have that much brought at a
/// time; others read without.
pub const READ_AHEAD_BYTES_MAX: u64 = 8 << 20;
/// Readers that something is brought for at a time, of all that there are.
pub const READ_AHEADS_MAX: usize = 4;
/// Neighbouring records are read together when no more than this lies between them.
pub const READ_GAP_BYTES: u64 = 16 << 10;

/// RocksDB's block cache, index and filter blocks included.
pub const ROCKS_CACHE_BYTES: usize = 32 << 20;
/// RocksDB's write buffers, all together.
pub const ROCKS_WRITE_BUFFER_BYTES: usize = 32 << 20;

/// Pauses between tries to read the index where the system is short of something, a second and a
/// half in all.
pub const INDEX_READ_PAUSES: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Jobs that may wait for the store's threads, of each class.
pub const WORKER_QUEUE: usize = 256;
/// Threads of those that hold a lock of the commit path: there are two such locks, so that neither
/// waits for the other.
pub const COMMIT_THREADS: usize = 2;

/// Requests that may wait for the disk at one time.
pub const DISK_QUEUE_DEPTH: u32 = 128;
/// Threads that sync files, beside io_uring.
pub const DISK_SYNC_THREADS: usize = 4;
/// Threads that read and write where io_uring is refused: a disk takes that many requests at a
/// time.
pub const DISK_THREADS: usize = 16;

/// Pauses before what the system was short of something for (descriptors, memory) is tried again:
/// the first, each one after twice as long, and the longest.
pub const SHORTAGE_PAUSES: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(1));
/// How often the log says that a shortage still lasts.
pub const SHORTAGE_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The largest volume: what the leaves of one upload may take in memory stays under
/// [`UPLOAD_LEAVES_MAX`].
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Leaves that open uploads may have put and not committed, all together; 36 bytes each.
pub const UPLOAD_LEAVES_MAX: usize = 2 << 20;
/// All journal files of one volume, by default; a setting.
pub const JOURNAL_BYTES_MAX: u64 = 8 << 30;
/// The least and the most that it may be set to.
pub const JOURNAL_BYTES_LEAST: u64 = 16 << 20;
/// See [`JOURNAL_BYTES_LEAST`].
pub const JOURNAL_BYTES_LIMIT: u64 = 256 << 30;
/// A journal takes space in steps of a file, which is as long as all before it, from the first of
/// these up to a 128th of the journal's limit or the second.
pub const JOURNAL_FILE_BYTES_MIN: u64 = 4 << 20;
/// See [`JOURNAL_FILE_BYTES_MIN`].
pub const JOURNAL_FILE_BYTES_MAX: u64 = 64 << 20;
/// Journal files kept to be written again: of a volume this part of its limit,
pub const SPARE_PART_OF_JOURNAL: u64 = 4;
/// of all volumes no more than this part of what is free on the file system,
pub const SPARE_PART_OF_FREE: u64 = 16;
/// and no more than this.
pub const SPARE_BYTES_MAX: u64 = 4 << 30;
/// A batch of a journal: 2 MiB of data, and what describes them.
pub const BATCH_BYTES_MAX: u64 = (2 << 20) + 4096;
/// Bytes of batches of all volumes that are on their way to the disk and exist as a copy then.
/// Batches that wait for their turn, or for room in a journal, do not count: otherwise a few
/// volumes with full journals would stop all others.
pub const JOURNAL_QUEUE_BYTES: usize = 16 << 20;
/// Bytes of changes of one volume that wait or are on their way. Their writers have the memory, and
/// bound it over all volumes.
pub const VOLUME_QUEUE_BYTES: usize = JOURNAL_QUEUE_BYTES / 2;
/// Bytes that a change without data counts in that queue.
pub const JOURNAL_CHANGE_BYTES: u32 = 4096;
/// A batch of a journal that is copied to the page cache on the spot, at most; what is larger goes
/// past it.
pub const JOURNAL_COPY_BYTES: u64 = 256 << 10;
/// Unsynced bytes that a volume may have in the page cache. From half of that on, the store syncs
/// them by itself.
pub const JOURNAL_COPIED_BYTES_MAX: u64 = 16 << 20;
/// Bytes read into the page cache around a block that is read from a journal.
pub const JOURNAL_READ_AROUND_BYTES: u64 = 64 << 10;
/// A journal is read in pieces of this, to open its volume,
pub const JOURNAL_SCAN_WINDOW_BYTES: usize = 512 << 10;
/// so many of which are under way, beside those that the batch is in that is looked at.
pub const JOURNAL_SCAN_READS: usize = 6;
/// Journals that are read at a time, however many volumes are opened at once: the disk has enough
/// to do with one, and a second lets a short one pass.
pub const JOURNAL_SCANS: usize = 2;
/// Data of this size that is aligned is written to journals from where it is; smaller is copied
/// first, which costs less than the kernel asks for each place.
pub const JOURNAL_LARGE_BYTES: usize = 32 << 10;
/// Batches of one volume that are on their way to the disk, of 2 MiB at most.
pub const JOURNAL_WRITES_IN_FLIGHT: usize = 4;
/// Waiting bytes that begin another batch before the last one is done; fewer bytes wait for more to
/// come.
pub const JOURNAL_WAITING_BYTES: usize = 512 << 10;

/// A journal that nobody has added to for so long is taken into the store,
pub const JOURNAL_IDLE: Duration = Duration::from_secs(30);
/// while its volume is open only if it takes so much, which is what can be read in a fraction of a
/// second.
pub const JOURNAL_IDLE_BYTES: u64 = 64 << 20;

/// Writers are slowed from this fill of a journal on, in parts of a thousand of its limit, while it
/// is being taken into the store.
pub const THROTTLE_FROM_PERMILLE: u64 = 750;
/// To how much: of a journal that is full, and of one at the fill above.
pub const THROTTLE_BYTES_PER_SECOND: (u64, u64) = (16 << 20, 1 << 30);

/// Segments that are cut again at one time, of all volumes that are being taken into the store.
pub const CHECKPOINT_SEGMENTS_IN_FLIGHT: usize = 2;
/// Volumes that are taken into the store side by side; others wait for their turn.
pub const CHECKPOINTS_MAX: usize = 32;
/// Inner nodes that each of them has made and not stored yet. Beside these it holds one node of the
/// old tree and one of the new for each of three levels.
pub const CHECKPOINT_NODES_MAX: usize = 16;

/// Damaged records of a pack that are kept in mind one by one; with more of them all of it counts
/// as lost, and what is whole may be stored twice.
pub const LOST_RECORDS_MAX: usize = 1024;

/// Memory of the maps of all volumes' journals, which locate each block written since the last
/// snapshot: some 10 bytes for a single block, 4 where changes are dense, and next to nothing for
/// sequential writes. From three quarters of it on, the store checkpoints journals to free map
/// memory.
pub const MAPS_BYTES_MAX: u64 = 256 << 20;
/// Map memory that each volume may take even then. Before it takes more, its own journal is
/// checkpointed.
pub const MAP_BYTES_LEAST: u64 = 16 << 10;

/// Space on the file system that is reserved for the index and the catalog log: the store refuses
/// chunks below this. Chunks that were accepted before, and are on their way to disk, still use it.
pub const FREE_BYTES_MIN: u64 = 64 << 20;

/// Space that the first journal file behind a snapshot leaves free; it is a small file then.
pub const EPOCH_FREE_BYTES_MIN: u64 = FREE_BYTES_MIN / 4;

/// Volumes of a store: each attached one has a journal of its own, open files and memory.
pub const VOLUMES_MAX: u64 = 4096;

/// Snapshots of one volume that are not in the store yet: each keeps a map of its own and at least
/// one journal file.
pub const PENDING_SNAPSHOTS_MAX: usize = 16;
/// Volumes of which snapshots are made at one instant.
pub const INSTANT_VOLUMES_MAX: usize = 16;

/// Characters of a snapshot's or volume's name.
pub const NAME_CHARS_MAX: usize = 128;
/// Tags of a snapshot or volume.
pub const TAGS_MAX: usize = 50;
/// Characters of a tag's key.
pub const TAG_KEY_CHARS_MAX: usize = 127;
/// Characters of a tag's value.
pub const TAG_VALUE_CHARS_MAX: usize = 255;
/// Snapshots or volumes in one page of a listing.
pub const PAGE_MAX: usize = 1000;
/// The same where they are asked for: one more than a page, which tells whether there is another.
pub const LIST_MAX: usize = PAGE_MAX + 1;
/// Records that a listing looks at in one job: some 0.3 ms, which is what a guest's read may have
/// to wait for.
pub const LIST_SLICE_RECORDS: usize = 64;

/// Memory of the store in all, except the maps of journals ([`MAPS_BYTES_MAX`], and
/// [`MAP_BYTES_LEAST`] of each volume). The daemon's promise of 512 MiB leaves the rest to
/// connections and the program.
pub const STORE_MEMORY_MAX: u64 = 480 << 20;

const _: () = assert!(
    CHUNK_CACHE_BYTES
        + NODE_CACHE_BYTES
        + INGEST_PLAIN_BYTES as u64
        + 2 * (PACK_BUFFERS * PACK_BUFFER_BYTES) as u64
        + 2 * READ_BYTES_IN_FLIGHT as u64
        + 2 * JOURNAL_QUEUE_BYTES as u64
        + (JOURNAL_SCANS * (JOURNAL_SCAN_READS + 2) * JOURNAL_SCAN_WINDOW_BYTES) as u64
        + JOURNAL_SCANS as u64 * BATCH_BYTES_MAX
        + (CHECKPOINT_SEGMENTS_IN_FLIGHT * varve_content::block::SEGMENT_BYTES) as u64
        + (CHECKPOINTS_MAX * (CHECKPOINT_NODES_MAX + 6) * varve_content::tree::INNER_MAX_BYTES)
            as u64
        + 36 * UPLOAD_LEAVES_MAX as u64
        + 2 * 300 * INDEX_GROUP_RECORDS as u64
        + ROCKS_CACHE_BYTES as u64
        + ROCKS_WRITE_BUFFER_BYTES as u64
        <= STORE_MEMORY_MAX
);
const _: () = assert!(
    VOLUME_BYTES_MAX.div_ceil(varve_content::block::SEGMENT_BYTES as u64)
        <= UPLOAD_LEAVES_MAX as u64
);
const _: () = assert!(VOLUME_BYTES_MAX.is_multiple_of(crate::format::volume::SECTOR_BYTES));
const _: () = assert!(VOLUME_BYTES_MAX <= varve_content::block::MAX_VOLUME_BYTES);
const _: () = assert!(
    PACK_BUFFER_BYTES
        >= 2 * varve_content::block::BLOCK_BYTES
            * varve_content::chunker::MAX_CHUNK_BLOCKS as usize
);
