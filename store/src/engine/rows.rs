//! Rows of the index: the new ones that are made, and those that the collector moves and removes.
//! All of this happens while nobody else makes rows.

use std::sync::Arc;

use super::{Commit, Floors, HeldPack};
use crate::{
    Error, Result,
    format::{LastRun, PackId, PackPhase},
    meta::{Batch, Meta},
    pack::{PackWriter, PlacedRecord},
};

impl Commit {
    /// Returns the lowest packs that a row made from now on may point into.
    pub(crate) fn floors(&self) -> Floors {
        // In this order: a record that is on its way to a row is appended now, or in a pack without
        // a footer, or in a later pack, which has a higher number.
        let next = self.chunks.next_number();
        let unsealed = |writer: &PackWriter| writer.lowest_unsealed().unwrap_or(next);
        let unsealed = Floors {
            chunks: next.min(unsealed(&self.chunks)),
            nodes: next.min(unsealed(&self.nodes)),
        };
        unsealed.lower(self.unindexed.floors())
    }

    /// Puts the rows of new records. An existing row stays, because others may rely on its pack;
    /// the new record is then a second copy without a row. But a row is replaced if it points to a
    /// lost record, or into a condemned pack, because whoever asked for the record was told that
    /// the store has not got it.
    pub(super) async fn put_rows(
        &self,
        records: impl Iterator<Item = &PlacedRecord> + Clone,
        batch: &mut Batch,
    ) -> Result<()> {
        for pack in self.reliance.condemned() {
            batch.pack_is_gone(pack);
        }
        for record in records.clone() {
            batch.put_unless_kept(record.name, record.location);
        }
        if self.lost.read().is_empty() {
            return Ok(());
        }
        let names: Vec<_> = records.clone().map(|record| record.name).collect();
        let rows = self.ask(move |meta| meta.lookup(&names)).await?;
        let lost = self.lost.read();
        for (record, row) in records.zip(rows) {
            if row.is_some_and(|row| lost.hold(&row)) {
                batch.put(record.name, record.location);
            }
        }
        Ok(())
    }

    /// Condemns those packs that no guard holds, and returns the others. No row is made meanwhile:
    /// a later copy replaces any row that points into a condemned pack.
    pub(crate) async fn condemn(self: &Arc<Self>, packs: Vec<PackId>) -> Result<Vec<HeldPack>> {
        self.to_the_end(|commit| async move {
            let _flushing = commit.flushing.lock().await;
            Ok(commit.reliance.condemn(packs))
        })
        .await
    }

    /// Keeps the outcome of a garbage collection.
    ///
    /// # Errors
    ///
    /// Errors of a write. None of them stops the store.
    pub(crate) async fn note_run(&self, run: LastRun) -> Result<()> {
        self.writable()?;
        let mut batch = Batch::default();
        batch.last_run(run);
        self.apply(batch, false).await
    }

    /// Seals those packs that are still open: later records go into others. Returns the packs that
    /// are sealed now, and whose records all have rows.
    ///
    /// # Errors
    ///
    /// Errors of a flush.
    pub(crate) async fn seal(self: &Arc<Self>, packs: Vec<PackId>) -> Result<Vec<PackId>> {
        self.to_the_end(|commit| async move {
            let flushing = commit.flushing.lock().await;
            commit.takes_changes()?;
            for writer in [&commit.chunks, &commit.nodes] {
                packs.iter().for_each(|pack| writer.end_pack(*pack));
            }
            commit.flush_locked(&flushing, false).await?;
            // Records appended meanwhile are made durable, too, and wait for their rows.
            let mut states = Vec::new();
            for writer in [&commit.chunks, &commit.nodes] {
                match commit.written(writer.flush().await) {
                    Ok(flushed) => states.extend_from_slice(flushed.packs()),
                    Err(error) => {
                        commit.unindexed.hold(states);
                        return Err(error);
                    }
                }
            }
            let told = commit.unindexed.tell(states, &[]);
            let mut batch = Batch::default();
            batch.packs(&told);
            let applied = commit.apply(batch, true).await;
            if applied.is_err() {
                commit.unindexed.hold(told);
            }
            commit.relocated(applied)?;
            // Looked up, because either flush, or an earlier one, may have sealed them.
            let sealed = move |meta: &dyn Meta| {
                let states = packs.into_iter().map(|pack| meta.pack_state(pack));
                let states = states.collect::<Result<Vec<_>>>()?.into_iter().flatten();
                let sealed = states.filter(|state| state.phase == PackPhase::Sealed);
                Ok(sealed.map(|state| state.pack).collect())
            };
            commit.ask(sealed).await
        })
        .await
    }

    /// Moves and removes rows, in this order of batches. The last one makes all of them durable. No
    /// row is made meanwhile.
    ///
    /// # Errors
    ///
    /// After [`Error::Full`] and [`Error::Shortage`] it is unknown which batches were applied; they
    /// may be applied again. Uploads under way lose nothing by that. Any other error stops the
    /// store.
    pub(crate) async fn relocate(self: &Arc<Self>, batches: Vec<Batch>) -> Result<()> {
        self.to_the_end(|commit| async move {
            let _flushing = commit.flushing.lock().await;
            commit.writable()?;
            let last = batches.len().saturating_sub(1);
            for (position, batch) in batches.into_iter().enumerate() {
                commit.relocated(commit.apply(batch, position == last).await)?;
            }
            Ok(())
        })
        .await
    }

    /// Handles the outcome of an index change that makes no rows for new records: a full disk takes
    /// nothing from uploads.
    fn relocated(&self, result: Result<()>) -> Result<()> {
        result.inspect_err(|error| {
            if !matches!(error, Error::Full { .. } | Error::Shortage { .. }) {
                self.poison(error);
            }
        })
    }
}
