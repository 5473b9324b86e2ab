//! The settings of RocksDB, and their reasons.
//!
//! Chunks dominate: ten million of them are 0.6 GiB, looked up in random order, and most look-ups
//! of a first import are for absent chunks. So a filter answers for every level, and filters are
//! cut in blocks of 16 KiB that live in the one block cache: at 7 bits a chunk they take 9 MiB of
//! it for ten million.
//!
//! Measured with a million chunks, 4096 in one look-up, in time of one core: a million look-ups of
//! absent chunks a second, 0.2 million of present ones; 0.6 million puts a second.

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBRecoveryMode,
    DataBlockIndexType, InfoLogger, LogLevel, Options,
};

use crate::{
    format::{Kind, Kinds, keys},
    limits,
};

/// Threads for flush and compaction.
const BACKGROUND_JOBS: i32 = 2;
/// Room for ten million chunks in files of [`FILE_BYTES`], twice: no file is opened repeatedly.
#[expect(clippy::cast_possible_truncation, reason = "checked just below")]
const OPEN_FILES_MAX: i32 = limits::ROCKS_FILES_OPEN_MAX as i32;
const _: () = assert!(limits::ROCKS_FILES_OPEN_MAX < 1 << 16);
const FILE_BYTES: u64 = 16 << 20;
/// Level 1. As keys are hashes, each compaction into it reads all of it: so it is small, but larger
/// than all write buffers.
const LEVEL_1_BYTES: u64 = 64 << 20;
/// Each input file of a compaction has a buffer like this: 2 MiB, the default, would be most of our
/// memory.
const COMPACTION_READ_BYTES: usize = 256 << 10;
/// Log that is read again when a store is opened after a crash, and that rarely written families
/// may hold on to.
const WAL_BYTES_MAX: u64 = 8 << 20;
/// Two write buffers each: one fills while the other goes to disk, and writers wait when both are
/// full. So the memory is bounded.
const WRITE_BUFFERS: u8 = 2;

/// Write buffers of the index. `meta` has the totals, written with every batch.
const INDEX_WRITE_BUFFER_BYTES: [(&str, usize); 4] = [
    (keys::CHUNKS, 8 << 20),
    (keys::NODES, 4 << 20),
    (keys::PACKS, 512 << 10),
    (keys::META, 1 << 20),
];
/// Write buffers of the catalog, which its families share alike: each is rarely written.
const CATALOG_WRITE_BUFFER_BYTES: usize = 2560 << 10;

const _: () = {
    let mut sum = CATALOG_WRITE_BUFFER_BYTES;
    let mut at = 0;
    while at < INDEX_WRITE_BUFFER_BYTES.len() {
        sum += INDEX_WRITE_BUFFER_BYTES[at].1;
        at += 1;
    }
    assert!(WRITE_BUFFERS as usize * sum <= limits::ROCKS_WRITE_BUFFER_BYTES);
};

/// Write buffer by column family, of the index and of these kinds of records.
fn write_buffers(kinds: Kinds) -> Vec<(&'static str, usize)> {
    let catalog: Vec<_> = kinds.iter().flat_map(Kind::families).collect();
    let each_bytes = CATALOG_WRITE_BUFFER_BYTES / catalog.len().max(1);
    let catalog = catalog.into_iter().map(|family| (family, each_bytes));
    INDEX_WRITE_BUFFER_BYTES
        .into_iter()
        .chain(catalog)
        .collect()
}

/// Options of the database.
pub(super) fn database() -> Options {
    let mut options = Options::default();
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_db_write_buffer_size(limits::ROCKS_WRITE_BUFFER_BYTES);
    options.set_compaction_readahead_size(COMPACTION_READ_BYTES);
    // Files are written at an even pace, or the sync at their end would hold up all other syncs.
    options.set_bytes_per_sync(1 << 20);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);

    options.set_max_total_wal_size(WAL_BYTES_MAX);
    // Opening the store would take the default, 4 MiB, each time, also from a nearly full disk.
    options.set_manifest_preallocation_size(64 << 10);
    // Reading the log ends at the first record that is not whole. Behind the last sync this is the
    // work of a power cut, and nobody was told of the record; the stricter AbsoluteConsistency
    // would refuse to open such a store. Before the last sync it is damage. The records behind it
    // are lost here, but still in order: the index is then as it was some batches ago, knows so
    // (pack states and catalog sequence are part of each batch), and recovery adds the rest from
    // packs and catalog log. The laxer modes would skip batches in between, and nobody would know.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // A missing log file that was synced is noticed, and not taken for one that never existed.
    options.set_track_and_verify_wals_in_manifest(true);

    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, log));
    options
}

/// All column families with their options, and one cache for data, index and filter blocks of them
/// all.
pub(super) fn column_families(kinds: Kinds) -> impl Iterator<Item = ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(limits::ROCKS_CACHE_BYTES);
    write_buffers(kinds)
        .into_iter()
        .map(move |(name, write_buffer_bytes)| {
            let mut options = Options::default();
            options.set_write_buffer_size(write_buffer_bytes);
            options.set_max_write_buffer_number(WRITE_BUFFERS.into());
            options.set_target_file_size_base(FILE_BYTES);
            options.set_max_bytes_for_level_base(LEVEL_1_BYTES);
            // A filter for the write buffers too: most lookups end there.
            options.set_memtable_whole_key_filtering(true);
            options.set_memtable_prefix_bloom_ratio(0.02);
            options.set_block_based_table_factory(&table(&cache));
            ColumnFamilyDescriptor::new(name, options)
        })
}

fn table(cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(4 << 10);
    table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    // As good as a Bloom filter of 10 bits a key (1 % false), in 7.
    table.set_ribbon_filter(10.0);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    // Larger than data blocks: a lookup reads fewer of them, and 32 KiB gain nothing more.
    table.set_metadata_block_size(16 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_top_level_index_and_filter(true);
    table
}

fn log(level: LogLevel, message: &str) {
    let message = message.trim_end();
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "rocksdb", "{message}"),
        LogLevel::Warn => tracing::warn!(target: "rocksdb", "{message}"),
        // Headers list every option at each start, whatever level was asked for.
        _ => tracing::trace!(target: "rocksdb", "{message}"),
    }
}
