//! A store: its parts put together, opened and closed.

use std::{path::PathBuf, sync::Arc, thread};

use parking_lot::RwLock;
use tokio::sync::Semaphore;
use varve_content::{ChunkId, chunker::CHUNKER_VERSION, codec::Compression};

use crate::{
    Damage, Error, Place, Result,
    commit::{Commit, Generation, node_keys},
    format::{StoreId, pack::Payload, store_file::FORMAT_VERSION},
    ingest::{Ingest, NewSnapshot},
    io::{Disk, IoEngine},
    limits,
    meta::{Meta, Named as _},
    pack::{EncodedRecord, LostPlaces, PackReader},
    read::ReadCache,
    recovery::{self, RecoveryReport},
    volume::{FilePool, MapMemory, OpenVolumes, PendingSnapshots},
    workers::{Priority, Workers},
};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it is, or is to be made.
    pub data_dir: PathBuf,
    /// How a new store packs chunks; one that exists may be given another for what is written from now on. `None`: as it was.
    pub compression: Option<Compression>,
    /// Bytes of plain chunks and tree nodes kept for reads.
    pub chunk_cache_bytes: u64,
    /// What each volume's journal may take on disk, between [`limits::JOURNAL_BYTES_LEAST`] and [`limits::JOURNAL_BYTES_LIMIT`].
    pub journal_bytes_max: u64,
    /// How files are read and written.
    pub io_engine: IoEngine,
    /// Threads for hashing and compression; 0: one per core.
    pub cpu_threads: usize,
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

/// What a store is, and holds.
#[derive(Debug, Clone)]
pub struct StoreStatus {
    /// Made when the store was, and kept.
    pub store_id: String,
    /// Of the files in the data directory.
    pub format_version: u32,
    /// How content is cut.
    pub chunker_version: u32,
    /// Number of snapshots, pending and failed ones included.
    pub snapshots: u64,
    /// Sum of their sizes; 2^64 - 1 where it is more.
    pub logical_bytes: u64,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Their plain bytes.
    pub chunk_bytes: u64,
    /// Bytes that chunks and tree nodes take in packs.
    pub stored_bytes: u64,
    /// Number of packs.
    pub packs: u64,
    /// "io_uring" or "blocking".
    pub io_engine: &'static str,
    /// What new chunks are packed with.
    pub compression: Compression,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Why nothing is written any more, if so.
    pub read_only_reason: Option<String>,
}

/// A store. A handle that is cheap to clone; all of them are the same store.
#[derive(Debug, Clone)]
pub struct Store(Arc<Engine>);

/// What the parts of an open store have in common.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) store_id: StoreId,
    pub(crate) compression: Compression,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) meta: Arc<dyn Meta>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) packs: PackReader,
    /// What was found to be gone from packs, or damaged: it does not count as being in the store.
    pub(crate) lost: RwLock<LostPlaces>,
    pub(crate) commit: Arc<Commit>,
    pub(crate) cache: ReadCache,
    /// Bytes of chunks that may be on their way in.
    pub(crate) ingest_budget: Arc<Semaphore>,
    /// Bytes of reads that may be under way.
    pub(crate) read_budget: Semaphore,
    /// Readers that something may be brought for at a time.
    pub(crate) readahead_permits: Semaphore,
    pub(crate) volumes: OpenVolumes,
    pub(crate) pending_snapshots: PendingSnapshots,
    /// Bytes of batches that may be on their way to journals.
    pub(crate) journal_write_budget: Arc<Semaphore>,
    pub(crate) journal_files: Arc<FilePool>,
    /// Journals that may be read at a time, to open their volumes.
    pub(crate) journal_scan_permits: Semaphore,
    /// What the maps of journals take.
    pub(crate) map_memory: Arc<MapMemory>,
    /// Volumes that may be taken into the store side by side.
    pub(crate) checkpoint_permits: Semaphore,
    /// Segments of theirs that may be cut again at one time.
    pub(crate) checkpoint_segment_permits: Arc<Semaphore>,
    /// Leaves that open uploads may put.
    pub(crate) leaf_permits: Arc<Semaphore>,
}

impl Store {
    /// Opens a store, or makes one in a directory that is empty or absent, and recovers what the last process
    /// left behind.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] while another process has it open; [`Error::Incompatible`] when it is of another
    /// version, is not a store, or its index is missing (see [`crate::rebuild`]); [`Error::Damaged`] when the catalog
    /// log is.
    pub async fn open(options: Options) -> Result<(Self, RecoveryReport)> {
        let (engine, report) = recovery::open(options).await?;
        Ok((Self::of(engine), report))
    }

    /// The store with these parts.
    pub(crate) fn of(engine: Engine) -> Self {
        Self(Arc::new(engine))
    }

    /// Another handle of the store whose parts these are.
    pub(crate) fn from_engine(engine: Arc<Engine>) -> Self {
        Self(engine)
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0
    }

    /// Begins an upload.
    pub async fn begin_ingest(&self, new: NewSnapshot) -> Result<Ingest> {
        let ingest = Ingest::begin(Arc::clone(&self.0), new)?;
        let name = ingest.new_snapshot().name.clone();
        let taken = self
            .0
            .meta(Priority::Read, move |meta| meta.snapshot_by_name(&name))
            .await?;
        if let Some(taken) = taken {
            return Err(taken.name_taken_error());
        }
        Ok(ingest)
    }

    /// What the store is and holds.
    pub async fn status(&self) -> Result<StoreStatus> {
        let engine = &self.0;
        let totals = engine.meta(Priority::Manage, |meta| meta.totals()).await?;
        Ok(StoreStatus {
            store_id: engine.store_id.to_string(),
            format_version: FORMAT_VERSION,
            chunker_version: CHUNKER_VERSION,
            snapshots: totals.snapshots,
            logical_bytes: u64::try_from(totals.logical_bytes).unwrap_or(u64::MAX),
            volumes: totals.volumes,
            chunks: totals.chunks,
            chunk_bytes: totals.chunk_bytes,
            stored_bytes: totals.stored_bytes,
            packs: totals.packs,
            io_engine: engine.disk.name(),
            compression: engine.compression,
            free_bytes: engine.free_bytes()?,
            read_only_reason: engine.commit.poisoned(),
        })
    }

    /// Makes what arrived durable, and refuses everything after.
    pub async fn close(&self) -> Result<()> {
        self.0.disk.patience().end();
        let volumes = self.close_volumes().await;
        self.0.commit.close().await.and(volumes)
    }
}

impl Engine {
    fn free_bytes(&self) -> Result<u64> {
        let dir = &self.options.data_dir;
        self.disk
            .free_bytes(dir)
            .map_err(|source| Error::io("read the free space of", dir, source))
    }

    /// That there is room for more than index and catalog log need to go on: chunks must not take the last of it.
    pub(crate) fn check_free_space(&self) -> Result<()> {
        let is_short = || -> Result<bool> { Ok(self.free_bytes()? < limits::FREE_BYTES_MIN) };
        if !is_short()? {
            return Ok(());
        }
        self.journal_files.remove_spares();
        if is_short()? {
            return Err(Error::Full {
                verb: "write chunks; what is left is kept for the index",
                path: self.options.data_dir.clone(),
            });
        }
        Ok(())
    }

    /// Asks the index or catalog, on a thread that may block.
    pub(crate) async fn meta<T, F>(&self, priority: Priority, ask: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Meta) -> Result<T> + Send + 'static,
    {
        let meta = Arc::clone(&self.meta);
        self.workers.run(priority, move |_| ask(&*meta)).await?
    }

    /// Positions of the chunks that the store lacks, ascending.
    pub(crate) async fn missing_chunks(&self, ids: &[ChunkId]) -> Result<Vec<u32>> {
        let known = self.known_chunks(ids.to_vec()).await?;
        Ok((0u32..)
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(position, _)| position)
            .collect())
    }

    /// Takes note of damage that a read has found: from here on the record counts as not being in the store, so whoever sends it again repairs
    /// it. It is found again by the next read, or the next verification, after a restart.
    pub(crate) fn note_damage(&self, damage: &Damage) {
        if let Place::Pack { pack, offset_bytes } = damage.place
            && self.lost.write().add_record(pack, offset_bytes)
        {
            tracing::error!(%damage, "what is damaged counts as not being in the store: store it again to repair it");
        }
    }

    /// The same, of whatever was read.
    pub(crate) fn noting_damage<T>(&self, read: Result<T>) -> Result<T> {
        read.inspect_err(|error| {
            if let Error::Damaged(damage) = error {
                self.note_damage(damage);
            }
        })
    }

    /// How chunks are kept that the store has, in the index or on the way there.
    pub(crate) async fn known_chunks(&self, ids: Vec<ChunkId>) -> Result<Vec<Option<Payload>>> {
        // A chunk leaves the pending ones only after it has entered the index: asked in this order, none is missed.
        let mut known = self.commit.pending_chunks(&ids);
        let (positions, unknown): (Vec<_>, Vec<_>) = known
            .iter()
            .zip(ids)
            .enumerate()
            .filter(|(_, (known, _))| known.is_none())
            .map(|(at, (_, id))| (at, id))
            .unzip();
        if unknown.is_empty() {
            return Ok(known);
        }
        let indexed = self
            .meta(Priority::Write, move |meta| meta.chunks(&unknown))
            .await?;
        let lost = self.lost.read();
        for (position, place) in positions.into_iter().zip(indexed) {
            if let Some(slot) = known.get_mut(position) {
                *slot = place
                    .filter(|place| !lost.hold(place))
                    .map(|place| place.payload);
            }
        }
        Ok(known)
    }

    /// Appends those nodes that are not there yet. Returns the bytes they take.
    pub(crate) async fn append_new_nodes(
        &self,
        generation: Generation,
        records: Vec<EncodedRecord>,
    ) -> Result<u64> {
        let keys: Vec<_> = node_keys(&records).collect();
        let pending = self.commit.pending_nodes(&keys);
        let indexed = self
            .meta(Priority::Write, move |meta| meta.nodes(&keys))
            .await?;
        let new: Vec<_> = {
            let lost = self.lost.read();
            let known = pending.iter().zip(&indexed).map(|(pending, indexed)| {
                *pending || indexed.is_some_and(|place| !lost.hold(&place))
            });
            let records = records.into_iter().zip(known);
            let new = records.filter(|(_, known)| !known);
            new.map(|(record, _)| record).collect()
        };
        if new.is_empty() {
            return Ok(0);
        }
        self.commit.append_nodes(generation, new).await
    }
}
