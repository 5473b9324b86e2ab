//! How to open a store.

use std::{path::PathBuf, thread};

use varve_content::codec::Compression;

use crate::{io::IoEngine, limits};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory, which may not exist yet.
    pub data_dir: PathBuf,
    /// Compression of new chunks, also in an existing store. `None`: unchanged.
    pub compression: Option<Compression>,
    /// Bytes of plain chunks and tree nodes kept for reads.
    pub chunk_cache_bytes: u64,
    /// Limit of each volume's journal on disk, between [`limits::JOURNAL_BYTES_LEAST`] and
    /// [`limits::JOURNAL_BYTES_LIMIT`].
    pub journal_bytes_max: u64,
    /// How files are read and written.
    pub io_engine: IoEngine,
    /// Threads for hashing and compression; 0: one per core.
    pub cpu_threads: usize,
    /// Length in bytes at which a pack is sealed.
    pub pack_bytes_max: u64,
    /// Packs kept open for reads.
    pub packs_open_max: usize,
    /// Descriptors of journal files, of all volumes.
    pub journal_files_open_max: usize,
}

impl Options {
    /// Everything by default.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            compression: None,
            chunk_cache_bytes: limits::CHUNK_CACHE_BYTES,
            journal_bytes_max: limits::JOURNAL_BYTES_MAX,
            io_engine: IoEngine::Auto,
            cpu_threads: 0,
            pack_bytes_max: limits::PACK_BYTES_MAX,
            packs_open_max: limits::PACKS_OPEN_MAX,
            journal_files_open_max: limits::JOURNAL_FILES_OPEN_MAX,
        }
    }

    pub(crate) fn threads(&self) -> usize {
        match self.cpu_threads {
            0 => thread::available_parallelism().map_or(2, usize::from),
            threads => threads,
        }
    }
}
