//! Recovery from a write that failed because the system was short of a resource.

use std::{fs, sync::atomic::Ordering};

use rustix::fs::statvfs;

use super::{Database, Known, RocksMeta, failed_at, is_disk_full, shortage};
use crate::{
    Error, Result,
    meta::{Batch, Outcome},
};

/// Free space for opening, beside the log's content: a manifest, an options file, the next log.
const OPEN_BYTES: u64 = 1 << 20;
/// Descriptors that must be free before the database is opened again. It needs no more than it had:
/// these are for others that take some in between.
const OPEN_DESCRIPTORS: usize = 16;

/// The state of the last batch.
#[derive(Debug, Default)]
pub(super) struct Applying {
    /// A batch that may be in the database, or not.
    interrupted: Option<Interrupted>,
    /// A batch that is in it, though its caller was told that it failed.
    came_back: Option<(Batch, Outcome)>,
}

#[derive(Debug)]
struct Interrupted {
    batch: Batch,
    outcome: Outcome,
    before: Known,
    after: Known,
    /// Returned again until recovery succeeds.
    error: Error,
}

impl Applying {
    /// The outcome of a batch that was written though it seemed to fail, and is applied once more.
    pub(super) fn came_back(&mut self, batch: &Batch) -> Option<Outcome> {
        let (written, outcome) = self.came_back.take()?;
        if written == *batch {
            return Some(outcome);
        }
        if batch.catalog.is_empty() {
            self.came_back = Some((written, outcome));
        }
        None
    }
}

impl RocksMeta {
    /// Handles a write that failed.
    pub(super) fn interrupted(
        &self,
        applying: &mut Applying,
        (batch, outcome): (Batch, Outcome),
        before: Known,
        after: Known,
        error: rocksdb::Error,
    ) -> Error {
        let failed = || failed_at(&self.path, "write the index in", error.clone());
        let passes = is_disk_full(&error) || shortage(&error).is_some();
        // The data of a failed sync is in doubt, whatever the reason.
        if passes && !error.as_ref().to_ascii_lowercase().contains("sync") {
            tracing::warn!(%error, "the index cannot be written for now");
            applying.interrupted = Some(Interrupted {
                batch,
                outcome,
                before,
                after,
                error: failed(),
            });
            return failed();
        }
        self.fail(format!(
            "the index in {} cannot be written: {error}",
            self.path.display()
        ));
        failed()
    }

    /// Ends all writing. The first reason stays.
    fn fail(&self, reason: String) {
        // Set here and nowhere else, under the lock of `apply`.
        let _ = self.failed.set(reason);
    }

    /// Opens the database again if a write has failed, because all others would fail until then.
    pub(super) fn go_on(&self, applying: &mut Applying) -> Result<()> {
        let Some(interrupted) = &applying.interrupted else {
            return Ok(());
        };
        self.check_enough(&interrupted.error)?;
        let known = {
            self.reopening.store(true, Ordering::Relaxed);
            let mut database = self.database.write();
            self.reopening.store(false, Ordering::Relaxed);
            // Closed first, because it locks its directory.
            *database = None;
            let (opened, known) = Database::open(&self.path, self.store, self.kinds)?;
            *database = Some(opened);
            known
        };
        let Some(interrupted) = applying.interrupted.take() else {
            return Ok(());
        };
        // A batch may look the same before and after, for example if it moves records. Then nothing
        // shows whether it is there, and it is applied once more, as if it were not.
        let is_there = known == interrupted.after && known != interrupted.before;
        if is_there {
            applying.came_back = Some((interrupted.batch, interrupted.outcome));
        } else if known != interrupted.before {
            let reason = format!(
                "the index in {} holds {known:?} after it was opened again, neither {:?} nor {:?}",
                self.path.display(),
                interrupted.before,
                interrupted.after
            );
            self.fail(reason.clone());
            return Err(Error::Poisoned { reason });
        }
        *self.known.write() = known;
        tracing::info!("the index is written again");
        Ok(())
    }

    /// Opens it for readers, if it was closed and could not be opened again.
    pub(super) fn open_if_closed(&self) -> Result<()> {
        let mut database = self.database.write();
        if database.is_none() {
            let (opened, _) = Database::open(&self.path, self.store, self.kinds)?;
            *database = Some(opened);
        }
        Ok(())
    }

    /// Checks that opening can succeed: reads go on until then, and stop while it is closed.
    #[expect(
        clippy::disallowed_methods,
        reason = "RocksDB does its own file access, and this looks at what it will find"
    )]
    fn check_enough(&self, error: &Error) -> Result<()> {
        let full = || Error::Full {
            verb: "write the index in",
            path: self.path.clone(),
        };
        if matches!(error, Error::Full { .. }) {
            let stat = statvfs(&self.path).map_err(|source| {
                Error::io("ask for the free space of", &self.path, source.into())
            })?;
            let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            if free_bytes < self.log_bytes()? + OPEN_BYTES {
                return Err(full());
            }
        }
        let descriptors: std::io::Result<Vec<_>> = (0..OPEN_DESCRIPTORS)
            .map(|_| fs::File::open("/dev/null"))
            .collect();
        descriptors
            .map(drop)
            .map_err(|source| Error::io("write the index in", &self.path, source))
    }

    /// The bytes that opening may write out: the logs.
    #[expect(
        clippy::disallowed_methods,
        reason = "RocksDB does its own file access, and this looks at its files"
    )]
    fn log_bytes(&self) -> Result<u64> {
        let failed = |source| Error::io("list", &self.path, source);
        let mut bytes = 0;
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "log")
            {
                bytes += entry.metadata().map_err(failed)?.len();
            }
        }
        Ok(bytes)
    }
}
