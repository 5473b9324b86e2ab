//! The catalog log of a store, kept short.

use super::Store;
use crate::{Error, limits};

impl Store {
    /// Replaces the catalog log by a checkpoint and the changes since whenever it has grown, for as
    /// long as it is polled and the store writes. A checkpoint that fails is logged, and tried
    /// again.
    pub async fn checkpoint_catalog_log(&self) {
        let (least_bytes, ratio) = (limits::LOG_CHECKPOINT_BYTES, limits::LOG_CHECKPOINT_RATIO);
        loop {
            match self.engine.checkpoint_log(least_bytes, ratio).await {
                Ok(Some(made)) => tracing::info!(
                    old_bytes = made.old_bytes,
                    new_bytes = made.new_bytes,
                    base_sequence = made.base_sequence,
                    "the catalog log begins with a new checkpoint"
                ),
                Ok(None) => {}
                Err(Error::Closing | Error::Poisoned { .. }) => return,
                Err(error) => tracing::warn!(%error, "the catalog log stays as long as it is"),
            }
            tokio::time::sleep(limits::LOG_CHECKPOINT_INTERVAL).await;
        }
    }
}
