//! Going on after a write that failed because the system was short of something.

use std::fs;

use rustix::fs::statvfs;

use super::{Database, Known, RocksMeta, failed_at, is_disk_full, shortage};
use crate::{Error, Result, meta::Batch};

/// Free space that opening takes, beside what the log holds: a manifest, an options file, the next log.
const OPEN_BYTES: u64 = 1 << 20;
/// Descriptors that are there before the database is opened again. It needs no more than it had: these are for what others take in
/// between.
const OPEN_DESCRIPTORS: usize = 16;

/// What is known of the last batch.
#[derive(Debug, Default)]
pub(super) struct Applying {
    /// It may be in the database, or not.
    interrupted: Option<Interrupted>,
    /// It is, though its caller was told that it failed.
    came_back: Option<Batch>,
}

#[derive(Debug)]
struct Interrupted {
    batch: Batch,
    before: Known,
    after: Known,
    /// Told again until it is over.
    error: Error,
}

impl Applying {
    /// Whether a batch was written that looked as if it had failed, and is applied once more.
    pub(super) fn came_back(&mut self, batch: &Batch) -> bool {
        let same = self.came_back.as_ref() == Some(batch);
        if same || !batch.catalog.is_empty() {
            self.came_back = None;
        }
        same
    }
}

impl RocksMeta {
    /// Draws the consequence of a write that failed.
    pub(super) fn interrupted(
        &self,
        applying: &mut Applying,
        batch: Batch,
        before: Known,
        after: Known,
        error: rocksdb::Error,
    ) -> Error {
        let failed = || failed_at(&self.path, "write the index in", error.clone());
        let passes = is_disk_full(&error) || shortage(&error).is_some();
        // What a failed sync was to make durable is in doubt, whatever the reason.
        if passes && !error.as_ref().to_ascii_lowercase().contains("sync") {
            tracing::warn!(%error, "the index cannot be written for now");
            applying.interrupted = Some(Interrupted {
                batch,
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

    /// Opens the database again if a write has failed, for until then all others would.
    pub(super) fn go_on(&self, applying: &mut Applying) -> Result<()> {
        let Some(interrupted) = &applying.interrupted else {
            return Ok(());
        };
        self.check_enough(&interrupted.error)?;
        let known = {
            let mut database = self.database.write();
            // It has a lock on its directory: it is closed first.
            *database = None;
            let (opened, known) = Database::open(&self.path, self.store)?;
            *database = Some(opened);
            known
        };
        let Some(interrupted) = applying.interrupted.take() else {
            return Ok(());
        };
        // A batch may look the same before and after: one that puts records in another place, say. Then nothing tells whether it is
        // there, and it is applied once more, as if it were not.
        let is_there = known == interrupted.after && known != interrupted.before;
        if is_there {
            applying.came_back = Some(interrupted.batch);
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

    /// Opens it for those who read, if it was closed and could not be opened again.
    pub(super) fn open_if_closed(&self) -> Result<()> {
        let mut database = self.database.write();
        if database.is_none() {
            let (opened, _) = Database::open(&self.path, self.store)?;
            *database = Some(opened);
        }
        Ok(())
    }

    /// That opening can succeed: reads go on until then, and would not while it is closed.
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

    /// What opening may write out: the logs.
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
