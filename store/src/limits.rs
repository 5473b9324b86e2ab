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
//! | readahead | is part of the chunks kept; if these are less, [`READ_AHEADS_MAX`] x [`READ_AHEAD_BYTES_MAX`] |
//! | reads under way | [`READ_BYTES_IN_FLIGHT`], and as much again decoded |
//! | batches of changes on their way to journals | twice [`JOURNAL_QUEUE_BYTES`]; waiting changes are in the memory of their writers |
//! | journals that are read | [`JOURNAL_SCANS`] x ([`JOURNAL_SCAN_READS`] + 2) x [`JOURNAL_SCAN_WINDOW_BYTES`], and a batch each |
//! | segments of volumes being cut again | [`CHECKPOINT_SEGMENTS_IN_FLIGHT`] x 8 MiB |
//! | records of chunks that are not indexed yet | twice [`INDEX_GROUP_RECORDS`] x 300 |
//! | trees of volumes being made anew | [`CHECKPOINTS_MAX`] x ([`CHECKPOINT_NODES_MAX`] + 6 nodes of 8.25 KiB) |
//! | maps of journals | [`MAPS_BYTES_MAX`] + [`VOLUMES_MAX`] x [`MAP_BYTES_LEAST`], beside all else |
//! | taking stock of all content ([`GC_BYTES_MAX`]), counting what accounts store ([`STORED_COUNT_BYTES`]) | is part of the chunks kept |
//! | the catalog log being read, or written anew | [`LOG_BUFFERS_BYTES`] |
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
/// Accounts.
pub const ACCOUNTS_MAX: usize = 1000;
/// Tokens of an account.
pub const ACCOUNT_TOKENS_MAX: usize = 100;
/// Tokens of all accounts.
pub const TOKENS_MAX: usize = 10_000;
/// Access keys of an account.
pub const ACCOUNT_ACCESS_KEYS_MAX: usize = 2;
/// Characters of a token's description.
pub const DESCRIPTION_CHARS_MAX: usize = 255;
/// Identities of an account: users, groups and certificates that act for it.
pub const IDENTITIES_MAX: usize = 64;
/// Images of a store.
pub const IMAGES_MAX: u64 = 1_000_000;
/// Devices of an image.
pub const IMAGE_DEVICES_MAX: usize = 27;
/// Characters of an image's name, at least and at most.
pub const IMAGE_NAME_CHARS: std::ops::RangeInclusive<usize> = 3..=128;
/// Characters of a device's name.
pub const DEVICE_NAME_CHARS_MAX: usize = 64;
/// Numbers of ephemeral devices are below this.
pub const EPHEMERAL_DEVICES_MAX: u32 = 24;
/// How long an image stays protected after its protection with a cooldown was ended.
pub const PROTECTION_COOLDOWN: Duration = Duration::from_hours(24);
/// How far ahead the deprecation of an image may be.
pub const DEPRECATION_MAX: Duration = Duration::from_hours(10 * 365 * 24);
/// How long after its registration an image that is shared with everybody is deprecated at the
/// latest.
pub const PUBLIC_DEPRECATION_MAX: Duration = Duration::from_hours(2 * 365 * 24);
/// Accounts that a snapshot or an image is shared with by name.
pub const SHARED_ACCOUNTS_MAX: usize = 1000;
/// Bytes of the subject of a certificate in an identity.
pub const SUBJECT_BYTES_MAX: usize = 512;
/// Remotes: other daemons that have names.
pub const REMOTES_MAX: usize = 256;
/// Packed bytes of a group of chunks that is indexed together. After a crash, an interrupted upload
/// must send as much again.
pub const INDEX_GROUP_BYTES: u64 = 32 << 20;
/// Chunks and tree nodes of such a group, at most: each takes some 300 bytes of memory, and its
/// packed bytes may be fewer. A group of chunks of the usual 14 KiB has 2400. While one group is
/// being indexed, the next may grow as large; then senders wait.
pub const INDEX_GROUP_RECORDS: usize = 1 << 13;

/// One write to a pack.
pub const PACK_BUFFER_BYTES: usize = 1 << 20;
/// Writes under way or waiting for their turn, per pack writer (one for chunks, one for nodes).
pub const PACK_BUFFERS: usize = 16;
/// Length at which a pack is sealed.
pub const PACK_BYTES_MAX: u64 = 256 << 20;
/// At a clean stop, a pack that has grown to this part of that length is sealed, too. A start scans
/// unsealed packs; 64 MiB take a fraction of a second.
pub const PACK_CLOSED_PART: u64 = 4;
/// Pack files kept open for reads.
pub const PACKS_OPEN_MAX: usize = 256;
/// Pack files kept open for direct reads, which verification uses: it goes from pack to pack.
pub const PACKS_OPEN_DIRECT_MAX: usize = 16;

/// Descriptors of journal files of all volumes: two for the file that is appended to, which is
/// written with direct IO and through the page cache, and one for each other file. The least
/// recently used ones are closed for others.
#[expect(clippy::cast_possible_truncation, reason = "9216")]
pub const JOURNAL_FILES_OPEN_MAX: usize = journal_descriptors(VOLUMES_MAX) as usize;
/// The same for `volumes` volumes: enough that none of them has to wait, and a thousand files that
/// are read or not durable yet.
#[must_use]
pub const fn journal_descriptors(volumes: u64) -> u64 {
    2 * volumes + 1024
}
/// Unsynced files of one journal, which have to stay open. Beyond this number, the store syncs them
/// by itself.
pub const JOURNAL_FILES_UNSYNCED: usize = 4;
/// RocksDB's open tables.
pub const ROCKS_FILES_OPEN_MAX: u64 = 128;
/// Descriptors that a store needs beside those of journals and of packs for reads: packs open for
/// direct reads; the tables of RocksDB, and 64 for its logs, manifest and compactions; 64 for packs
/// being written, the catalog log, the ring, directories being synced, files in use by reads after
/// they were closed for others, and locks.
pub const STORE_DESCRIPTORS: u64 = PACKS_OPEN_DIRECT_MAX as u64 + ROCKS_FILES_OPEN_MAX + 64 + 64;

/// Bytes of reads from packs under way at one time.
pub const READ_BYTES_IN_FLIGHT: usize = 32 << 20;
/// The largest single read from a pack: neighbouring records are read together up to this.
pub const READ_SPAN_BYTES: usize = 1 << 20;
/// Plain bytes that one worker unpacks of such a read in one job: few enough that all workers have
/// work.
pub const DECODE_JOB_BYTES: usize = 128 << 10;
/// The readahead of a sequential reader: at first, and at most. Concurrent reads share
/// [`READ_BYTES_IN_FLIGHT`].
pub const READ_AHEAD_BYTES_MIN: u64 = 512 << 10;
/// See [`READ_AHEAD_BYTES_MIN`]. At most [`READ_AHEADS_MAX`] readers have a readahead at a time;
/// others read without.
pub const READ_AHEAD_BYTES_MAX: u64 = 8 << 20;
/// Readers with a readahead under way at one time.
pub const READ_AHEADS_MAX: usize = 4;
/// Neighbouring records are read together when no more than this lies between them.
pub const READ_GAP_BYTES: u64 = 16 << 10;

/// Memory for taking stock of all content, by a garbage collection or an estimate of space. The
/// cache of reads does without it meanwhile.
pub const GC_BYTES_MAX: u64 = 64 << 20;
/// The part of it that does not depend on the number of names: waiting leaves, reads under way, the
/// names of a shard, counts of packs.
pub const GC_BYTES_FIXED: u64 = 10 << 20;
/// Names of one perfect hash. Building it takes some 24 bytes for each.
pub const GC_SHARD_NAMES: usize = 256 << 10;
/// Leaves that wait to be read in the order of their places.
pub const GC_LEAVES_WAITING: usize = 32 << 10;
/// Reads of neighbouring leaves under way, of [`READ_SPAN_BYTES`] at most.
pub const GC_READS_IN_FLIGHT: usize = 2;
/// Packs that are condemned at one time, and bytes of records copied from them, without those of
/// the last one.
pub const GC_CONDEMNED_PACKS: usize = 64;
/// See [`GC_CONDEMNED_PACKS`].
pub const GC_CONDEMNED_BYTES: u64 = 512 << 20;
/// Time that an estimate of space may take while a collection runs.
pub const GC_ESTIMATE_TIME: Duration = Duration::from_secs(5);
/// Memory for counting what accounts store. The cache of reads does without it meanwhile, also
/// while a collection runs.
pub const STORED_COUNT_BYTES: u64 = 28 << 20;
/// Chunks that a count tells apart; of more it takes a sample. They take 9 bytes each in a table of
/// a power of two, of which seven eighths are used.
pub const STORED_COUNT_CHUNKS: usize = (1 << 19) / 8 * 7;
/// Leaves that a count remembers, in such a table. Those of more are read again below each inner
/// node that names them.
pub const STORED_COUNT_LEAVES: usize = (1 << 19) / 8 * 7;
/// Inner nodes and roots that a count remembers, in such a table.
pub const STORED_COUNT_INNERS: usize = (1 << 18) / 8 * 7;
/// Counts at one time: one of a large account, and one of the others.
pub const STORED_COUNTS: u64 = 2;
/// Time after which an account counts as a large one.
pub const STORED_COUNT_LARGE: Duration = Duration::from_secs(10);
/// How long after the end of a count the next one of the same account may begin, and how many times
/// as long as the last one took: when the account may have reached its quota, when it has uploaded
/// something, and otherwise.
pub const STORED_COUNT_URGENT: (Duration, u32) = (Duration::from_secs(1), 4);
/// See [`STORED_COUNT_URGENT`]: when the account has used up its quota.
pub const STORED_COUNT_USED_UP: (Duration, u32) = (Duration::from_secs(2), 4);
/// See [`STORED_COUNT_URGENT`].
pub const STORED_COUNT_UPLOADED: (Duration, u32) = (Duration::from_secs(5), 20);
/// See [`STORED_COUNT_URGENT`].
pub const STORED_COUNT_IDLE: (Duration, u32) = (Duration::from_secs(30), 20);
/// Pause between two looks at what is due to be counted.
pub const STORED_COUNT_LOOK: Duration = Duration::from_secs(1);
/// Reasons in the report of a collection: holders of packs, and damage.
pub const GC_REASONS_MAX: usize = 16;
/// Length of such a reason, and of the reason of a failure; a longer one is cut.
pub const GC_REASON_BYTES_MAX: usize = 4 << 10;

/// RocksDB's block cache, index and filter blocks included.
pub const ROCKS_CACHE_BYTES: usize = 32 << 20;
/// RocksDB's write buffers, all together.
pub const ROCKS_WRITE_BUFFER_BYTES: usize = 32 << 20;

/// Pauses between attempts to read the index in a shortage, a second and a half in all.
pub const INDEX_READ_PAUSES: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Jobs that may wait for the store's threads, of each class.
pub const WORKER_QUEUE: usize = 256;
/// Threads for holders of a lock of the commit path. There are two such locks, so that neither
/// waits for the other.
pub const COMMIT_THREADS: usize = 2;

/// Requests that may wait for the disk at one time.
pub const DISK_QUEUE_DEPTH: u32 = 128;
/// Threads that sync files, beside io_uring.
pub const DISK_SYNC_THREADS: usize = 4;
/// Threads that read and write if the kernel refuses io_uring: a disk takes that many requests at a
/// time.
pub const DISK_THREADS: usize = 16;

/// Pauses before a retry after a shortage (descriptors, memory): the first one and the longest.
/// Each pause is twice as long as the one before.
pub const SHORTAGE_PAUSES: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(1));
/// Interval of log lines about a lasting shortage.
pub const SHORTAGE_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Bytes of the largest volume: the leaves of one upload stay below [`UPLOAD_LEAVES_MAX`].
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Leaves that all open uploads together may have put and not committed; 36 bytes each.
pub const UPLOAD_LEAVES_MAX: usize = (2 << 20) + PROVED_LEAVES;
/// Chunks that the sender of an upload has proved to have, in each of two generations: as many as a
/// hash table of 2^16 places holds.
pub const PROVED_CHUNKS: usize = (1 << 16) / 8 * 7;
/// Leaves whose room the fingerprints of an upload take: two tables of 2^16 places, 9 bytes each.
pub const PROVED_LEAVES: usize = 2 * 9 * (1 << 16) / 36;
/// Bytes of all journal files of one volume, by default; a setting.
pub const JOURNAL_BYTES_MAX: u64 = 8 << 30;
/// The smallest and the largest value of that setting.
pub const JOURNAL_BYTES_LEAST: u64 = 16 << 20;
/// See [`JOURNAL_BYTES_LEAST`].
pub const JOURNAL_BYTES_LIMIT: u64 = 256 << 30;
/// Bytes of the smallest and the largest journal file. A new file is as long as all files before it
/// together, between these two, and at most a 128th of the journal's limit.
pub const JOURNAL_FILE_BYTES_MIN: u64 = 4 << 20;
/// See [`JOURNAL_FILE_BYTES_MIN`].
pub const JOURNAL_FILE_BYTES_MAX: u64 = 64 << 20;
/// Recycled journal files: at most this part of a volume's limit,
pub const SPARE_PART_OF_JOURNAL: u64 = 4;
/// for all volumes no more than this part of the free space on the file system,
pub const SPARE_PART_OF_FREE: u64 = 16;
/// and no more than this.
pub const SPARE_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the largest batch of a journal: 2 MiB of data, and their descriptor.
pub const BATCH_BYTES_MAX: u64 = (2 << 20) + 4096;
/// Bytes of batches of all volumes that are on their way to the disk and exist as a copy then.
/// Batches that wait for their turn, or for room in a journal, do not count: otherwise a few
/// volumes with full journals would stop all others.
pub const JOURNAL_QUEUE_BYTES: usize = 16 << 20;
/// Bytes of changes of one volume that wait or are on their way. The memory belongs to their
/// writers, which bound it over all volumes.
pub const VOLUME_QUEUE_BYTES: usize = JOURNAL_QUEUE_BYTES / 2;
/// Bytes that a change without data counts in that queue.
pub const JOURNAL_CHANGE_BYTES: u32 = 4096;
/// Bytes of the largest batch that is copied to the page cache on the spot; larger batches use
/// direct IO.
pub const JOURNAL_COPY_BYTES: u64 = 256 << 10;
/// Unsynced bytes that a volume may have in the page cache. From half of that on, the store syncs
/// them by itself.
pub const JOURNAL_COPIED_BYTES_MAX: u64 = 16 << 20;
/// Bytes read into the page cache around a block that is read from a journal.
pub const JOURNAL_READ_AROUND_BYTES: u64 = 64 << 10;
/// Bytes of one read of a journal when its volume is opened,
pub const JOURNAL_SCAN_WINDOW_BYTES: usize = 512 << 10;
/// and the number of such reads under way, beside those with the current batch.
pub const JOURNAL_SCAN_READS: usize = 6;
/// Journals that are read at one time, however many volumes are opened at once: one keeps the disk
/// busy, and a second one lets a short journal pass.
pub const JOURNAL_SCANS: usize = 2;
/// Journals that are closed at one time when the store is.
pub const JOURNAL_CLOSES: usize = 64;
/// Bytes from which on aligned data is written to journals in place. Smaller data is copied first,
/// which costs less than another part of the system call.
pub const JOURNAL_LARGE_BYTES: usize = 32 << 10;
/// Batches of one volume that are on their way to the disk, of 2 MiB at most.
pub const JOURNAL_WRITES_IN_FLIGHT: usize = 4;
/// Waiting bytes that begin another batch before the last one is done; fewer bytes wait for more to
/// come.
pub const JOURNAL_WAITING_BYTES: usize = 512 << 10;

/// Time after which an idle journal is checkpointed,
pub const JOURNAL_IDLE: Duration = Duration::from_secs(30);
/// and the size in bytes from which on this happens while its volume is open: less can be read in a
/// fraction of a second.
pub const JOURNAL_IDLE_BYTES: u64 = 64 << 20;

/// Fill of a journal, in thousandths of its limit, from which on writers are slowed while it is
/// being checkpointed.
pub const THROTTLE_FROM_PERMILLE: u64 = 750;
/// Rates of slowed writers: with a full journal, and at the fill above.
pub const THROTTLE_BYTES_PER_SECOND: (u64, u64) = (16 << 20, 1 << 30);

/// Segments that are cut again at one time, by all checkpoints together.
pub const CHECKPOINT_SEGMENTS_IN_FLIGHT: usize = 2;
/// Checkpoints that run at one time; others wait for their turn.
pub const CHECKPOINTS_MAX: usize = 32;
/// Inner nodes that each checkpoint has made and not stored yet. In addition, it holds one node of
/// the old tree and one of the new tree for each of three levels.
pub const CHECKPOINT_NODES_MAX: usize = 16;

/// Damaged records of a pack that are remembered one by one. If there are more, the whole pack
/// counts as lost, and its undamaged records may be stored twice.
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

/// Bytes of the catalog log beyond which it is replaced by one that begins with a checkpoint. A
/// start reads the whole log.
pub const LOG_CHECKPOINT_BYTES: u64 = 64 << 20;
/// The log must also be longer than this many times its checkpoint. So all checkpoints together
/// write less than a third of the bytes of the catalog's changes.
pub const LOG_CHECKPOINT_RATIO: u64 = 4;
/// Memory of the catalog log while it is read or written anew: windows of 1 MiB, their records
/// decoded and encoded again, and blocks of a checkpoint.
pub const LOG_BUFFERS_BYTES: usize = 5 << 20;
/// Interval at which the store looks whether the log needs a checkpoint.
pub const LOG_CHECKPOINT_INTERVAL: Duration = Duration::from_mins(1);

/// Volumes of a store: each attached one has a journal of its own, open files and memory.
pub const VOLUMES_MAX: u64 = 4096;

/// Snapshots of one volume that are not in the store yet: each keeps a map of its own and at least
/// one journal file.
pub const PENDING_SNAPSHOTS_MAX: usize = 16;
/// Volumes in one group of snapshots.
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
/// The same for queries: one more than a page, which shows if there is another page.
pub const LIST_MAX: usize = PAGE_MAX + 1;
/// Bytes of the records of snapshots that one change of the catalog deletes. The index holds the
/// keys and tags of all of them in memory meanwhile.
pub const DELETED_RECORDS_BYTES_MAX: usize = 1 << 20;
/// Records that a list examines in one job: some 0.3 ms, for which a read of a guest may have to
/// wait.
pub const LIST_SLICE_RECORDS: usize = 64;

/// Memory of the store in all, except the maps of journals ([`MAPS_BYTES_MAX`], and
/// [`MAP_BYTES_LEAST`] of each volume). The daemon's promise of 512 MiB leaves the rest to
/// connections and the program.
pub const STORE_MEMORY_MAX: u64 = 486 << 20;

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
        + LOG_BUFFERS_BYTES as u64
        + ROCKS_CACHE_BYTES as u64
        + ROCKS_WRITE_BUFFER_BYTES as u64
        <= STORE_MEMORY_MAX
);
const _: () = assert!(GC_BYTES_MAX < CHUNK_CACHE_BYTES && GC_BYTES_FIXED < GC_BYTES_MAX);
// The cache lends no more than three quarters of itself.
const _: () = assert!(GC_BYTES_MAX + STORED_COUNT_BYTES <= CHUNK_CACHE_BYTES / 4 * 3);
const _: () = {
    // The tables, and what the walk itself needs.
    let entries = STORED_COUNT_CHUNKS + STORED_COUNT_LEAVES + STORED_COUNT_INNERS;
    let tables = (entries * 9 / 7 * 8) as u64;
    assert!(STORED_COUNTS * (tables + (2 << 20)) <= STORED_COUNT_BYTES);
};
const _: () = assert!(24 * GC_SHARD_NAMES as u64 <= GC_BYTES_FIXED);
const _: () = assert!(
    VOLUME_BYTES_MAX.div_ceil(varve_content::block::SEGMENT_BYTES as u64) + PROVED_LEAVES as u64
        <= UPLOAD_LEAVES_MAX as u64
);
const _: () = assert!(VOLUME_BYTES_MAX.is_multiple_of(crate::format::volume::SECTOR_BYTES));
const _: () = assert!(VOLUME_BYTES_MAX <= varve_content::block::MAX_VOLUME_BYTES);
const _: () = assert!(
    PACK_BUFFER_BYTES
        >= 2 * varve_content::block::BLOCK_BYTES
            * varve_content::chunker::MAX_CHUNK_BLOCKS as usize
);
