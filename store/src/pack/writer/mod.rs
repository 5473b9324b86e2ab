//! Appends records to packs.
//!
//! Appending copies a record into a buffer under a short lock and returns; full buffers are written
//! while the next one fills, and when all are under way, the caller waits. There is no background
//! task: a caller that needs a buffer, or flushes, handles the completions of all writes.
//!
//! The next pack begins as soon as one is full. The flush that makes its last records durable
//! writes its footer after that: so a footer proves that the whole pack is durable.
//!
//! Every future here may be dropped at any point. Records of a dropped append may be in the pack;
//! nothing refers to them, and they do no harm.

mod receipt;
mod resume;
mod state;

use std::{fmt, future::poll_fn, sync::Arc, task::Poll};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

pub use self::receipt::{Appended, Flushed, Lost};
use self::state::{Goal, Halted, OpenPack, State};
use super::{EncodedRecord, PackStage, PlacedRecord};
use crate::{
    Error, Result,
    format::{PackId, PackKind, PackPhase, PackState, pack::encode_footer},
    io::AlignedBuf,
    limits::PACK_CLOSED_PART,
};

/// Appends records of one kind.
pub struct PackWriter {
    stage: Arc<dyn PackStage>,
    kind: PackKind,
    state: Mutex<State>,
    /// The turn to wait for the oldest write.
    reaping: AsyncMutex<()>,
    /// The turn to flush, or to undo the effects of a full disk.
    flushing: AsyncMutex<()>,
}

/// The turn to flush.
type FlushTurn<'a> = MutexGuard<'a, ()>;

impl PackWriter {
    fn new(stage: Arc<dyn PackStage>, kind: PackKind, packs: Vec<OpenPack>) -> Self {
        Self {
            stage,
            kind,
            state: Mutex::new(State::new(packs)),
            reaping: AsyncMutex::new(()),
            flushing: AsyncMutex::new(()),
        }
    }

    /// The least number of the next pack of any kind.
    pub(crate) fn next_number(&self) -> u64 {
        self.stage.next_number()
    }

    /// The lowest number of its packs that have no footer.
    pub(crate) fn lowest_unsealed(&self) -> Option<u64> {
        self.state.lock().lowest_unsealed()
    }

    /// Appends records, in this order. They are not durable yet: the receipt of a flush that begins
    /// after this has returned gives their locations.
    ///
    /// Waits while all buffers are being written.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::Dropped`]: none of them will be durable, nor any others that were
    /// appended since the last flush. [`Error::Poisoned`]: a write or a sync has failed, now or
    /// before. Anything else: no pack could be created for them, and earlier records are not
    /// affected; the writer waits for the end of a shortage until the store closes.
    ///
    /// # Panics
    ///
    /// If a record is of another kind than the writer.
    pub async fn append(&self, records: Vec<EncodedRecord>) -> Result<Appended> {
        let appended = self.try_append(records).await;
        if matches!(appended, Err(Error::Full { .. } | Error::Dropped)) {
            let turn = self.flushing.lock().await;
            self.drop_unsynced(&turn).await?;
        }
        appended
    }

    async fn try_append(&self, records: Vec<EncodedRecord>) -> Result<Appended> {
        let generation = {
            let state = self.state.lock();
            state.check()?;
            state.generation()
        };
        let mut placed = Vec::with_capacity(records.len());
        let mut tries = self.stage.disk().patience().tries();
        loop {
            let begun = {
                let mut state = self.state.lock();
                state.check_generation(generation)?;
                let begun = self.place_some(&mut state, &records, &mut placed);
                if placed.len() == records.len() {
                    return Ok(Appended::new(generation, state.appended(), placed));
                }
                begun
            };
            match begun {
                Ok(()) => {
                    self.reap_until(|state| state.has_room() || state.is_halted())
                        .await;
                }
                // Nothing of the failed pack was begun.
                Err(error @ Error::Shortage { .. }) => {
                    if !tries.again(&error).await {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds those records that have no place yet, as long as there is room.
    fn place_some(
        &self,
        state: &mut State,
        records: &[EncodedRecord],
        placed: &mut Vec<PlacedRecord>,
    ) -> Result<()> {
        while state.has_room()
            && let Some(record) = records.get(placed.len())
        {
            assert_eq!(
                record.payload().kind.pack_kind(),
                self.kind,
                "a record for another writer"
            );
            let location = state.place(&*self.stage, self.kind, record)?;
            placed.push(PlacedRecord {
                name: record.name(),
                location,
            });
        }
        Ok(())
    }

    /// The earliest place of later appends: the number of a pack, and an offset in it in bytes.
    /// After a full disk has dropped records, appends may come before it.
    #[must_use]
    pub fn end(&self) -> (u64, u64) {
        // In this order: a pack that is begun later has a higher number.
        let next = self.stage.next_number();
        self.state.lock().end().unwrap_or((next, 0))
    }

    /// Makes all earlier appended records durable, and returns the receipt.
    ///
    /// Appends continue meanwhile. One of several callers does the work for all.
    ///
    /// # Errors
    ///
    /// Like [`append`](Self::append).
    pub async fn flush(&self) -> Result<Flushed> {
        let turn = self.flushing.lock().await;
        let flushed = self.try_flush(&turn).await;
        if matches!(flushed, Err(Error::Full { .. } | Error::Dropped)) {
            self.drop_unsynced(&turn).await?;
        }
        flushed
    }

    async fn try_flush(&self, turn: &FlushTurn<'_>) -> Result<Flushed> {
        let goal = loop {
            self.reap_until(|state| state.has_room() || state.is_halted())
                .await;
            let mut state = self.state.lock();
            state.check()?;
            // An append may have taken the room.
            if state.has_room() {
                break state.begin_flush(self.stage.disk());
            }
        };
        self.reap_until(|state| state.has_completed(goal.writes) || state.is_halted())
            .await;
        self.state.lock().check()?;
        self.sync(&goal).await?;
        let mut packs = goal.packs();
        self.state.lock().end_flush(&goal);
        self.seal_full(turn, &mut packs).await?;
        Ok(Flushed::new(&goal, packs))
    }

    /// Flushes, seals the last pack if it is large, and frees the buffers.
    ///
    /// The next start scans an unsealed pack from its beginning. A small pack stays unsealed all
    /// the same, and is continued, so that restarts do not leave many small packs.
    ///
    /// # Errors
    ///
    /// Like [`append`](Self::append).
    pub async fn close(&self) -> Result<Flushed> {
        self.close_from(self.stage.pack_bytes_max() / PACK_CLOSED_PART)
            .await
    }

    /// Flushes, seals the last pack, and frees the buffers: nobody will continue it.
    ///
    /// # Errors
    ///
    /// Like [`append`](Self::append).
    pub(crate) async fn finish(&self) -> Result<Flushed> {
        self.close_from(0).await
    }

    /// Ends a pack, if it is the last: the next flush seals it.
    pub(crate) fn end_pack(&self, pack: PackId) {
        self.state.lock().end_pack(pack);
    }

    /// Closes, and seals the last pack if it has at least `large_bytes`.
    async fn close_from(&self, large_bytes: u64) -> Result<Flushed> {
        let flushed = self.flush().await?;
        let mut packs = flushed.packs().to_vec();
        let turn = self.flushing.lock().await;
        self.state.lock().end_pack_from(large_bytes);
        self.seal_full(&turn, &mut packs).await?;
        self.state.lock().free_buffers();
        Ok(flushed.with_packs(packs))
    }

    /// Makes completed writes durable, and the names of new packs.
    async fn sync(&self, goal: &Goal) -> Result<()> {
        let syncs: Vec<_> = goal
            .targets
            .iter()
            .map(|target| (target, self.stage.disk().sync_data(&target.file)))
            .collect();
        for (target, sync) in syncs {
            let synced = sync.await;
            synced.map_err(|source| {
                self.poison(&format!("cannot sync pack {}: {source}", target.pack))
            })?;
        }
        if goal.targets.iter().any(|target| target.is_new) {
            self.sync_names().await?;
        }
        Ok(())
    }

    /// Makes the set of packs durable. If a shortage lasts until the store closes, the set is the
    /// old one.
    async fn sync_names(&self) -> Result<()> {
        let patience = self.stage.disk().patience();
        let synced = patience.until_possible_async(|| self.stage.sync_names());
        synced.await.map_err(
            |source| match Error::io("sync", &self.stage.dir(), source) {
                short @ Error::Shortage { .. } => short,
                error => self.poison(&error.to_string()),
            },
        )
    }

    /// Writes the footers of packs that are full and durable. A pack for whose footer there is no
    /// space waits for a later flush.
    async fn seal_full(&self, _turn: &FlushTurn<'_>, packs: &mut Vec<PackState>) -> Result<()> {
        loop {
            let Some(pack) = self.state.lock().to_seal() else {
                return Ok(());
            };
            match seal(&*self.stage, &pack).await {
                Ok(()) => {}
                Err(error @ Error::Full { .. }) => {
                    tracing::warn!(pack = %pack.id, %error, "the pack is not sealed yet");
                    return Ok(());
                }
                Err(error) => {
                    return Err(self.poison(&format!("cannot seal pack {}: {error}", pack.id)));
                }
            }
            self.state.lock().sealed(pack.id);
            packs.retain(|state| state.pack != pack.id);
            packs.push(PackState {
                pack: pack.id,
                indexed_bytes: pack.end_bytes,
                phase: PackPhase::Sealed,
            });
        }
    }

    /// After a write found the disk full: goes back to the durable state, so that writing can
    /// continue.
    ///
    /// Does nothing if that was done already.
    async fn drop_unsynced(&self, _turn: &FlushTurn<'_>) -> Result<()> {
        if !matches!(self.state.lock().halted(), Some(Halted::Full { .. })) {
            return Ok(());
        }
        self.reap_until(State::is_idle).await;
        let (cut, drop) = {
            let state = self.state.lock();
            state.check_not_poisoned()?;
            state.unsynced()
        };
        tracing::warn!(kind = ?self.kind, packs = cut.len() + drop.len(), "the disk is full, unsynced records are dropped");
        for (pack, end_bytes) in cut {
            let disk = self.stage.disk();
            let cut_off = async {
                let cut = || disk.set_len(&pack.file, end_bytes);
                disk.patience().until_possible(cut).await?;
                disk.sync_data(&pack.file).await
            };
            cut_off.await.map_err(|source| {
                self.poison(&format!("cannot cut off pack {}: {source}", pack.id))
            })?;
        }
        let any = !drop.is_empty();
        for pack in drop {
            let patience = self.stage.disk().patience();
            let removed = patience.until_possible(|| self.stage.remove(pack)).await;
            removed.map_err(|error| self.poison(&error.to_string()))?;
            // A removed pack is not removed again if this future is dropped at an await.
            self.state.lock().removed(pack);
        }
        if any {
            self.sync_names().await?;
        }
        self.state.lock().go_back();
        Ok(())
    }

    /// Stops all writing, and returns the error for it.
    fn poison(&self, reason: &str) -> Error {
        let mut state = self.state.lock();
        state.poison(reason);
        Error::Poisoned {
            reason: reason.to_owned(),
        }
    }

    /// Takes in completions, the oldest write first, until there is enough or nothing is under way.
    async fn reap_until(&self, enough: impl Fn(&State) -> bool) {
        let _turn = self.reaping.lock().await;
        poll_fn(|context| {
            let mut state = self.state.lock();
            loop {
                if enough(&state) {
                    return Poll::Ready(());
                }
                match state.poll_oldest(&*self.stage, context) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

/// Writes a pack's footer and makes it durable. All of the pack's records must be durable.
async fn seal(stage: &dyn PackStage, pack: &OpenPack) -> Result<()> {
    let path = stage.path(pack.id);
    let footer = encode_footer(pack.id, pack.nonce, pack.end_bytes, &pack.entries);
    let footer = AlignedBuf::from_slice(&footer);
    let written = stage.disk().write(&pack.file, pack.end_bytes, footer).await;
    written.map_err(|source| Error::io("write the footer of", &path, source))?;
    let synced = stage.disk().sync_data(&pack.file).await;
    // Never `Error::Full`: after a failed sync the state of the disk is unknown.
    synced.map_err(|source| Error::Io {
        verb: "sync",
        path,
        source,
    })
}

impl fmt::Debug for PackWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackWriter")
            .field("kind", &self.kind)
            .field("state", &*self.state.lock())
            .finish_non_exhaustive()
    }
}
