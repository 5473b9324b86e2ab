//! The last batches of closed journals, in the catalog.
//!
//! Nothing behind the last batch of a journal proves that the batch was durable. If it is damaged,
//! or its file is shorter or missing, it looks like an end torn by a loss of power, which is cut
//! off. So the record of a volume names the last batch once its journal is closed and durable.

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::Volumes;
use crate::{
    Result,
    format::{Change, catalog_log::LOG_RECORD_BYTES_MAX, journal::first_sequence_of},
    meta::{Lookup as _, Meta, VolumeId, VolumeRecord},
};

/// A closed journal, and the number of its last batch.
type Closed = (VolumeId, u64);

/// Closed journals that are to be recorded.
#[derive(Debug, Default)]
pub(super) struct ClosedJournals {
    waiting: Mutex<Vec<Closed>>,
    /// Held while some are being recorded.
    recording: AsyncMutex<()>,
}

impl Volumes {
    /// Records which batch of a volume's journal is the last. All of them are durable, and the
    /// volume is not open. Of several callers, one does the work for all that wait.
    pub(super) async fn record_closed(&self, volume: VolumeId, last_sequence: u64) {
        self.closed.waiting.lock().push((volume, last_sequence));
        let _recording = self.closed.recording.lock().await;
        loop {
            let mut closed = self.closed.waiting.lock().clone();
            if closed.is_empty() {
                return;
            }
            let plan = {
                let closed = closed.clone();
                move |meta: &dyn Meta| promised(meta, &closed)
            };
            // A store that does not write is examined at its next start anyway.
            let recorded = match self.engine.commit.writable() {
                Ok(()) => self.engine.commit.change((), plan).await,
                Err(_) => Ok(closed.len()),
            };
            let done = recorded.unwrap_or_else(|error| {
                let journals = closed.len();
                tracing::warn!(%error, journals, "the ends of closed journals are not recorded");
                journals
            });
            closed.truncate(done);
            self.closed.waiting.lock().drain(..closed.len());
        }
    }
}

/// The changes for as many of these journals as fit into one record of the catalog log, and their
/// number.
fn promised(meta: &dyn Meta, closed: &[Closed]) -> Result<(Vec<Change>, usize)> {
    let mut changes = Vec::new();
    let mut bytes = 0;
    for (position, (id, last_sequence)) in closed.iter().enumerate() {
        // It may have been deleted.
        let Some(mut volume) = VolumeRecord::by_id(meta, *id)? else {
            continue;
        };
        // Batches in the base need no witness.
        if *last_sequence < first_sequence_of(volume.journal_from)
            || *last_sequence <= volume.promised_sequence
        {
            continue;
        }
        volume.promised_sequence = *last_sequence;
        let change = Change::put(&volume);
        bytes += change.log_bytes();
        if bytes > LOG_RECORD_BYTES_MAX / 2 && !changes.is_empty() {
            return Ok((changes, position));
        }
        changes.push(change);
    }
    Ok((changes, closed.len()))
}
