//! Bounds on the memory of all uploads and reads at one time.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Engine;
use crate::{Error, Result, limits};

/// The budgets that uploads and reads share.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// Plain bytes of chunks on their way in.
    pub(crate) ingest: Arc<Semaphore>,
    /// Bytes of reads under way.
    pub(crate) reads: Semaphore,
    /// Readers that are being read ahead for.
    pub(crate) readaheads: Semaphore,
    /// Leaves that open uploads have stored.
    pub(crate) leaves: Arc<Semaphore>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            ingest: Arc::new(Semaphore::new(limits::INGEST_PLAIN_BYTES)),
            reads: Semaphore::new(limits::READ_BYTES_IN_FLIGHT),
            readaheads: Semaphore::new(limits::READ_AHEADS_MAX),
            leaves: Arc::new(Semaphore::new(limits::UPLOAD_LEAVES_MAX)),
        }
    }
}

impl Engine {
    /// Waits until `bytes` more of reads may be under way. A read that is larger than the whole
    /// budget waits for all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Closing`].
    pub(crate) async fn read_budget(&self, bytes: u32) -> Result<SemaphorePermit<'_>> {
        #[expect(clippy::cast_possible_truncation, reason = "a constant of 32 MiB")]
        const MOST: u32 = limits::READ_BYTES_IN_FLIGHT as u32;
        self.budgets
            .reads
            .acquire_many(bytes.min(MOST))
            .await
            .map_err(|_| Error::Closing)
    }
}
