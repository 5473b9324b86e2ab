//! The one task that writes a volume's journal.
//!
//! Writers put changes in the [queue](super::queue) and wait. The task takes the waiting changes,
//! up to a batch, and writes them while the next batch gathers. Once a batch is in the kernel, its
//! blocks enter the map and its writers get their answers, in the order of the batches. So the
//! acknowledged writes are always a prefix of the journal, without a gap.
//!
//! A change in the queue is written even if its writer has gone away.
//!
//! A batch that cannot begin for lack of space waits for a checkpoint. Meanwhile the task returns
//! all shared resources, and ends the epoch if a cut waits: the checkpoint that frees space may
//! need it.

use std::{collections::VecDeque, io, sync::Arc, thread};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    journal::{Batch, Begun, Reservation},
    queue::{Ended, Op},
    throttle::Throttle,
    volume::VolumeState,
};
use crate::{
    Error, Result,
    engine::PoisonOnPanic,
    error::JournalLimit,
    failpoints::{Failpoint, reach},
    limits::{JOURNAL_WRITES_IN_FLIGHT, MAPS_BYTES_MAX},
};

/// A batch in flight, and the changes that it completes.
struct InFlight {
    begun: Begun,
    batch: Batch,
    complete: Vec<Op>,
    /// Its part of the bytes that all volumes share.
    _budget: OwnedSemaphorePermit,
}

/// Refuses the callers that wait for a panicked task.
struct AbandonOnPanic(Arc<VolumeState>);

impl Drop for AbandonOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.queue.abandon();
        }
    }
}

/// Writes changes, until the queue is closed and empty.
pub(super) async fn run(volume: Arc<VolumeState>) {
    let _poison = PoisonOnPanic::new(&volume.engine.commit);
    let _abandon = AbandonOnPanic(Arc::clone(&volume));
    let mut in_flight: VecDeque<InFlight> = VecDeque::with_capacity(JOURNAL_WRITES_IN_FLIGHT);
    let mut throttle = Throttle::default();
    loop {
        // Asked once a turn: if it were released between two looks, the task would wait for a wake
        // that was before.
        let mut is_held = throttle.is_on();
        while volume.queue.may_begin(in_flight.len())
            && !is_held
            && let Some((batch, complete)) = volume.queue.next_batch()
        {
            let begun = volume.begin_or_wait(&batch, &mut in_flight).await;
            match begun {
                Ok((begun, budget)) => in_flight.push_back(InFlight {
                    begun,
                    batch,
                    complete,
                    _budget: budget,
                }),
                // Nothing has begun, and batches in flight continue.
                Err(error) => volume.refuse(complete, &error),
            }
            volume.sync_if_much();
            volume.checkpoint_if_large();
            if volume.checkpoints.is_under_way() {
                let bytes = in_flight.back().map_or(0, |last| last.batch.bytes());
                throttle.passed(bytes, volume.journal.fill_permille());
                is_held = throttle.is_on();
            }
        }
        let may_begin = volume.queue.may_begin(in_flight.len());
        let may_follow = in_flight.len() < JOURNAL_WRITES_IN_FLIGHT;
        let Some(oldest) = in_flight.front_mut() else {
            if let Some(reply) = volume.queue.take_end() {
                volume.end_epoch(reply);
                continue;
            }
            if volume.queue.is_finished() {
                return;
            }
            if is_held {
                tokio::select! {
                    () = throttle.released() => {}
                    () = volume.queue.wake.notified() => {}
                }
            } else {
                volume.queue.wake.notified().await;
            }
            continue;
        };
        let outcome = tokio::select! {
            biased;
            outcome = &mut oldest.begun.completion => outcome,
            () = volume.queue.wake.notified(), if may_follow => continue,
            () = throttle.released(), if may_begin && is_held => continue,
        };
        if let Some(oldest) = in_flight.pop_front() {
            // The error was reported to the affected callers.
            let _ = volume.end_batch(oldest, outcome, &mut in_flight).await;
        }
    }
}

impl VolumeState {
    /// Begins to write a batch, unless the store writes nothing or the map has no room for it.
    async fn begin(&self, batch: &Batch, descriptors: Reservation) -> Result<Begun> {
        self.engine.commit.writable()?;
        let map_bytes = || self.layers.read().current.map.memory_bytes();
        if self.volumes.map_memory.is_full_for(map_bytes()) {
            return Err(Error::JournalFull {
                path: self.journal.dir().path(),
                limit: JournalLimit::MapBytes(MAPS_BYTES_MAX),
            });
        }
        self.journal.begin(batch, descriptors).await
    }

    /// Takes the bytes of a batch from the budget that all volumes share. No volume waits for it
    /// while holding a part of it: its batches in flight are ended first.
    async fn write_budget(
        &self,
        batch: &Batch,
        in_flight: &mut VecDeque<InFlight>,
    ) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(batch.bytes()).unwrap_or(u32::MAX);
        let budget = &self.volumes.journal_write_budget;
        loop {
            if let Ok(permit) = Arc::clone(budget).try_acquire_many_owned(bytes) {
                return Ok(permit);
            }
            let Some(mut oldest) = in_flight.pop_front() else {
                let permit = Arc::clone(budget).acquire_many_owned(bytes).await;
                return permit.map_err(|_| Error::Closing);
            };
            let outcome = (&mut oldest.begun.completion).await;
            // On an error, a change that this batch ends may have begun in one that was given up.
            self.end_batch(oldest, outcome, in_flight).await?;
        }
    }

    /// Begins to write a batch. Waits for a checkpoint where the journal has no room, for other
    /// volumes' files to be closed where descriptors are short, and for the system where that is
    /// short of something. While it waits it holds nothing that all volumes share.
    async fn begin_or_wait(
        self: &Arc<Self>,
        batch: &Batch,
        in_flight: &mut VecDeque<InFlight>,
    ) -> Result<(Begun, OwnedSemaphorePermit)> {
        let mut checkpoints = self.checkpoints.watch();
        let mut has_tried = false;
        let mut tries = self.engine.disk.patience().tries();
        loop {
            let budget = self.write_budget(batch, in_flight).await?;
            // Files that cannot be made durable any more stay open. Then the batch is not refused
            // for want of descriptors, but for what went wrong.
            let is_of_no_use = || {
                self.engine.disk.patience().has_ended() || self.engine.commit.writable().is_err()
            };
            let descriptors = match self.journal.reserve_for(batch) {
                Some(descriptors) => descriptors,
                None if is_of_no_use() => Reservation::none(),
                None => {
                    drop(budget);
                    self.end_batches(in_flight).await?;
                    self.journal.wait_for_descriptors(is_of_no_use).await;
                    continue;
                }
            };
            let under_way = checkpoints.borrow_and_update().goes_on();
            let error = match self.begin(batch, descriptors).await {
                Ok(begun) => return Ok((begun, budget)),
                Err(error) => error,
            };
            drop(budget);
            if let Error::Shortage { .. } = error {
                self.end_batches(in_flight).await?;
                if !tries.again(&error).await {
                    return Err(error);
                }
                continue;
            }
            if !error.is_full() {
                return Err(error);
            }
            // The checkpoint that was under way may have begun before the disk had room for it, so
            // one more is tried.
            if !under_way && (has_tried || !self.checkpoint_for_room().await) {
                return Err(error);
            }
            has_tried |= !under_way;
            self.end_batches(in_flight).await?;
            tokio::select! {
                _ = checkpoints.changed() => {}
                () = self.queue.wake.notified() => {}
            }
        }
    }

    /// Waits for all batches in flight, while another cannot be begun.
    ///
    /// # Errors
    ///
    /// A batch was given up. A change that the waiting one ends may have begun in it.
    async fn end_batches(&self, in_flight: &mut VecDeque<InFlight>) -> Result<()> {
        while let Some(mut oldest) = in_flight.pop_front() {
            let outcome = (&mut oldest.begun.completion).await;
            self.end_batch(oldest, outcome, in_flight).await?;
        }
        // The checkpoint that makes room may wait for the epoch to end. The waiting batch was not
        // acknowledged, so it may as well be in the next one.
        if let Some(reply) = self.queue.take_end() {
            self.end_epoch(reply);
        }
        Ok(())
    }

    /// Handles the completion of the oldest batch in flight.
    ///
    /// # Errors
    ///
    /// It was not written. Its writers have been told why.
    async fn end_batch(
        &self,
        oldest: InFlight,
        outcome: io::Result<()>,
        behind: &mut VecDeque<InFlight>,
    ) -> Result<()> {
        match outcome {
            Ok(()) => {
                self.settle(oldest);
                Ok(())
            }
            Err(source) => Err(self.give_up(oldest, behind, source).await),
        }
    }

    /// Puts the blocks of a batch that is in the kernel into the map, and tells its writers.
    fn settle(&self, done: InFlight) {
        reach(Failpoint::JournalWritten);
        self.journal.written(done.begun.place);
        self.layers
            .write()
            .current
            .apply(done.batch.entries(), done.begun.first_slot);
        for op in done.complete {
            // A writer that went away needs no answer.
            let _ = op.reply.send(Ok(()));
        }
    }

    /// Ends the epoch, unless it is empty, and replies where. No batch may be in flight.
    fn end_epoch(&self, reply: oneshot::Sender<Ended>) {
        let mut layers = self.layers.write();
        if !layers.current.map.is_empty() {
            layers.end_epoch(self.journal.end_epoch());
        }
        // The epoch has ended, even if its caller went away.
        let _ = reply.send(Ended {
            next_file: layers.current.first_file,
            last_sequence: self.journal.last_sequence(),
        });
    }

    /// Refuses changes, and the one that was begun and cannot be ended.
    fn refuse(&self, complete: Vec<Op>, error: &Error) {
        for op in complete.into_iter().chain(self.queue.take_begun()) {
            let _ = op.reply.send(Err(again(error)));
        }
    }

    /// Gives up a batch that could not be written, and those behind it, which would stand behind a
    /// gap.
    async fn give_up(
        &self,
        failed: InFlight,
        behind: &mut VecDeque<InFlight>,
        source: io::Error,
    ) -> Error {
        let error = Error::io("write", &self.journal.dir().path(), source);
        let mut writers = failed.complete;
        for later in behind.drain(..) {
            // It does not count, written or not.
            let _ = later.begun.completion.await;
            writers.extend(later.complete);
        }
        let error = match &error {
            Error::Full { .. } => match self.journal.roll_back(failed.begun.place).await {
                Ok(()) => error,
                Err(worse) => self.stop_writing(worse),
            },
            _ => self.stop_writing(error),
        };
        tracing::warn!(volume = %self.name, %error, "writes were refused");
        self.refuse(writers, &error);
        error
    }

    /// Stops all writes of the store: the state of the disk is unknown.
    pub(super) fn stop_writing(&self, error: Error) -> Error {
        self.engine.commit.poison(&error);
        error
    }
}

/// The same error for one more writer.
fn again(error: &Error) -> Error {
    match error {
        Error::Full { verb, path } => Error::Full {
            verb,
            path: path.clone(),
        },
        Error::JournalFull { path, limit } => Error::JournalFull {
            path: path.clone(),
            limit: *limit,
        },
        Error::Closing => Error::Closing,
        Error::Shortage { verb, path, source } => Error::Shortage {
            verb,
            path: path.clone(),
            source: io::Error::new(source.kind(), source.to_string()),
        },
        Error::Io { verb, path, source } => Error::Io {
            verb,
            path: path.clone(),
            source: io::Error::new(source.kind(), source.to_string()),
        },
        Error::Poisoned { reason } => Error::Poisoned {
            reason: reason.clone(),
        },
        other => Error::Poisoned {
            reason: other.to_string(),
        },
    }
}
