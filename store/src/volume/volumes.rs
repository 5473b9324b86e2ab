//! The volumes of a store: the open ones, and the parts that all share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{ClosedJournals, FilePool, MapMemory, OpenVolumes, PendingSnapshots};
use crate::{
    engine::{Engine, SpaceReserve},
    limits,
};

/// The volumes of a store.
#[derive(Debug)]
pub(crate) struct Volumes {
    pub(super) engine: Arc<Engine>,
    pub(super) open: OpenVolumes,
    pub(super) pending_snapshots: PendingSnapshots,
    pub(super) closed: ClosedJournals,
    /// Bytes of batches that may be in flight to journals.
    pub(crate) journal_write_budget: Arc<Semaphore>,
    pub(super) journal_files: Arc<FilePool>,
    /// Journals that may be read at a time, to open their volumes.
    pub(crate) journal_scan_permits: Semaphore,
    /// The memory of the journals' maps.
    pub(crate) map_memory: Arc<MapMemory>,
    /// Volumes that may be checkpointed side by side.
    pub(crate) checkpoint_permits: Semaphore,
    /// Segments of theirs that may be cut again at a time.
    pub(crate) checkpoint_segment_permits: Arc<Semaphore>,
}

impl Volumes {
    /// The volumes of a store, none of them open. Their spare files count as a reserve of its free
    /// space.
    pub(crate) fn new(engine: Arc<Engine>) -> Arc<Self> {
        let journal_files = Arc::new(FilePool::new(
            Arc::clone(&engine.disk),
            engine.options.journal_files_open_max,
        ));
        engine
            .space
            .register(Arc::<FilePool>::clone(&journal_files));
        Arc::new(Self {
            engine,
            open: OpenVolumes::default(),
            pending_snapshots: PendingSnapshots::default(),
            closed: ClosedJournals::default(),
            journal_write_budget: Arc::new(Semaphore::new(limits::JOURNAL_QUEUE_BYTES)),
            journal_files,
            journal_scan_permits: Semaphore::new(limits::JOURNAL_SCANS),
            map_memory: Arc::default(),
            checkpoint_permits: Semaphore::new(limits::CHECKPOINTS_MAX),
            checkpoint_segment_permits: Arc::new(Semaphore::new(
                limits::CHECKPOINT_SEGMENTS_IN_FLIGHT,
            )),
        })
    }
}

impl SpaceReserve for FilePool {
    fn give_up(&self) {
        self.remove_spares();
    }
}
