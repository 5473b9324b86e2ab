//! A store: its parts put together, opened and closed.

mod access_keys;
mod accounts;
mod catalog_log;
mod copies;
mod images;
mod nodes;
mod remotes;
mod sharing;
mod snapshots;
mod space;
mod stored;
mod volumes;

use std::sync::Arc;

use varve_content::{chunker::CHUNKER_VERSION, codec::Compression};

use crate::{
    Result,
    engine::{Engine, Options, Priority},
    format::{CatalogRecord as _, ImageRecord, keys::Holdings, store_file::FORMAT_VERSION},
    gc::Collector,
    ingest::{Ingest, NewSnapshot},
    meta::{Lookup as _, Meta, Records as _, SnapshotRecord, check_room},
    recovery::{self, RecoveryReport},
    volume::Volumes,
};

pub use self::{
    images::{Deregistered, Image, ImageChange, ImageState, NewDevice, NewImage, NewSource},
    nodes::{ExportedNode, NodeKey},
    snapshots::{check_snapshot_name, check_snapshot_tags},
};

/// The state of a store.
#[derive(Debug, Clone)]
pub struct StoreStatus {
    /// The store's id, which never changes.
    pub store_id: String,
    /// The format version of the files in the data directory.
    pub format_version: u32,
    /// The version of the cut rule.
    pub chunker_version: u32,
    /// Number of snapshots, pending and failed ones included.
    pub snapshots: u64,
    /// Sum of their sizes; 2^64 - 1 where it is more.
    pub logical_bytes: u64,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of images.
    pub images: u64,
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
    /// The packing of new chunks.
    pub compression: Compression,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// The reason why nothing is written any more, if so.
    pub read_only_reason: Option<String>,
}

/// A store. A handle that is cheap to clone; all of them are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    engine: Arc<Engine>,
    volumes: Arc<Volumes>,
    collector: Arc<Collector>,
}

impl Store {
    /// Opens a store, or makes one in a directory that is empty or absent, and recovers what the
    /// last process left behind.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`](crate::Error::InUse) while another process has it open;
    /// [`Error::Incompatible`](crate::Error::Incompatible) when it is of another version, is not a
    /// store, or its index is missing (see [`crate::rebuild`]);
    /// [`Error::Damaged`](crate::Error::Damaged) when the catalog log is.
    pub async fn open(options: Options) -> Result<(Self, RecoveryReport)> {
        let (engine, report) = recovery::open(options).await?;
        Ok((Self::of(engine).await, report))
    }

    /// The store with these parts.
    pub(crate) async fn of(engine: Engine) -> Self {
        let engine = Arc::new(engine);
        let volumes = Volumes::new(Arc::clone(&engine));
        let collector = Collector::new(Arc::clone(&engine)).await;
        let store = Self {
            engine,
            volumes,
            collector,
        };
        store.set_stored_quotas().await;
        store
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    #[cfg(test)]
    pub(crate) fn volumes(&self) -> &Arc<Volumes> {
        &self.volumes
    }

    /// Begins an upload.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) if it cannot be a snapshot,
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) for a name that is taken,
    /// [`Error::Quota`](crate::Error::Quota) if its owner may have no more snapshots, or store
    /// nothing more,
    /// [`Error::Poisoned`](crate::Error::Poisoned) once the store has stopped writing.
    pub async fn begin_ingest(&self, new: NewSnapshot) -> Result<Ingest> {
        let ledger = self.engine.ledgers.of(new.owner);
        ledger.check()?;
        let ingest = Ingest::begin(Arc::clone(&self.engine), new)?.charged(&ledger);
        let new = ingest.new_snapshot();
        let (owner, name) = (new.owner, new.name.clone());
        let more = Holdings {
            snapshots: 1,
            ..Holdings::default()
        };
        let check = move |meta: &dyn Meta| match meta.get_named::<SnapshotRecord>(owner, &name)? {
            Some(taken) => Err(taken.name_taken_error()),
            None => check_room(meta, owner, more),
        };
        self.engine.meta(Priority::Read, check).await?;
        Ok(ingest)
    }

    /// Returns the identity and totals of the store.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog, and of asking for the free space.
    pub async fn status(&self) -> Result<StoreStatus> {
        let engine = &self.engine;
        let totals = engine.meta(Priority::Manage, |meta| meta.totals()).await?;
        Ok(StoreStatus {
            store_id: engine.store_id.to_string(),
            format_version: FORMAT_VERSION,
            chunker_version: CHUNKER_VERSION,
            snapshots: totals.snapshots,
            logical_bytes: u64::try_from(totals.logical_bytes).unwrap_or(u64::MAX),
            volumes: totals.volumes,
            images: totals.others.of(ImageRecord::KIND),
            chunks: totals.chunks,
            chunk_bytes: totals.chunk_bytes,
            stored_bytes: totals.stored_bytes,
            packs: totals.packs,
            io_engine: engine.disk.name(),
            compression: engine.compression,
            free_bytes: engine.space.free_bytes()?,
            read_only_reason: engine.commit.poisoned(),
        })
    }

    /// Makes all arrived data durable, and refuses everything after.
    ///
    /// # Errors
    ///
    /// Errors of writing the pending data; the store is closed all the same.
    pub async fn close(&self) -> Result<()> {
        self.engine.disk.patience().end();
        self.collector.close().await;
        let volumes = self.volumes.close_all().await;
        self.engine.commit.close().await.and(volumes)
    }
}
