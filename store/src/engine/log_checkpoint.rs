//! The catalog log is replaced by one that begins with a checkpoint, once it has grown.
//!
//! | crash | what the next start finds |
//! | --- | --- |
//! | while the new log is written | the log, and an unfinished file beside it, which it removes |
//! | after the old log was given a second name | the same |
//! | after the rename, before the directory is synced | either log; both have all records |
//! | after that | the new log |
//!
//! Changes of the catalog wait only while the last records are copied, the new log is synced and
//! takes its place.
//!
//! A failed checkpoint leaves everything as it was, and is tried again. The store stops writing
//! only if it is unknown which of both logs has the name: records appended to the wrong one would
//! be lost.

use std::sync::Arc;

use super::{Commit, Engine};
use crate::{
    Error, Result,
    catalog_log::{Source, Switch, WINDOW_BYTES, abandon, begin_checkpoint},
    limits,
};

/// A checkpoint of the catalog log that was made.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct LogCheckpoint {
    /// Bytes of the log that was replaced.
    pub(crate) old_bytes: u64,
    /// Bytes of the new log.
    pub(crate) new_bytes: u64,
    /// Number of the last record that the checkpoint stands for.
    pub(crate) base_sequence: u64,
}

impl Engine {
    /// Replaces the catalog log by one that begins with a checkpoint, if it is longer than
    /// `least_bytes`, and than `ratio` times the checkpoint that it begins with. `None` if it is
    /// not.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is too little space, [`Error::Closing`], [`Error::Poisoned`], and
    /// those of reading and writing. The store goes on with the log as it was, unless
    /// [`Commit::poisoned`] says otherwise.
    pub(crate) async fn checkpoint_log(
        self: &Arc<Self>,
        least_bytes: u64,
        ratio: u64,
    ) -> Result<Option<LogCheckpoint>> {
        let engine = Arc::clone(self);
        // The future may be dropped between the rename and the steps that must follow it.
        let checkpoint = move |commit: Arc<Commit>| async move {
            let _only = commit.log_checkpoint.lock().await;
            let source = {
                let log = commit.catalog.lock().await;
                if !log.is_long(least_bytes, ratio) {
                    return Ok(None);
                }
                log.source()
            };
            engine.check_space(&source)?;
            let replaced = engine.replace_log(&source).await;
            if replaced.is_err() {
                abandon(&*engine.disk, &engine.options.data_dir);
            }
            replaced.map(Some)
        };
        self.commit.to_the_end(checkpoint).await
    }

    /// Checks that there is space for the new log beside the needs of index and log meanwhile. The
    /// new log is not longer than the old one, which has all of its records.
    fn check_space(&self, source: &Source) -> Result<()> {
        let needed_bytes = source.end().offset_bytes + limits::FREE_BYTES_MIN;
        if self.space.free_bytes()? < needed_bytes {
            return Err(Error::Full {
                verb: "write a checkpoint of the catalog log in",
                path: self.options.data_dir.clone(),
            });
        }
        Ok(())
    }

    async fn replace_log(&self, source: &Source) -> Result<LogCheckpoint> {
        let data_dir = &*self.options.data_dir;
        let commit = &self.commit;
        let id = (self.store_id, source.kinds(), source.generation() + 1);
        let meta = Arc::clone(&self.meta);
        let may_go_on = || commit.takes_changes();
        let mut begun = begin_checkpoint(&self.disk, data_dir, id, meta, may_go_on).await?;
        if !begun.missing.is_empty() {
            let log = commit.catalog.lock().await.source();
            log.note_deletions(&mut begun.missing).await?;
        }
        let mut new = begun.finish().await?;
        // The checkpoint has all records from before the view.
        let mut copied = source.end();
        let mut log = loop {
            new.sync().await?;
            let log = commit.catalog.lock().await;
            commit.takes_changes()?;
            let mut behind = log.since(copied);
            if behind.rest_bytes() <= WINDOW_BYTES as u64 {
                new.copy(&mut behind).await?;
                break log;
            }
            // Copying so much takes a while, during which changes go on.
            drop(log);
            new.copy(&mut behind).await?;
            copied = behind.position();
        };
        new.sync().await?;
        let old = log.source().end();
        new.check_end(old)?;
        let made = LogCheckpoint {
            old_bytes: old.offset_bytes,
            new_bytes: new.position().offset_bytes,
            base_sequence: new.base_sequence(),
        };
        match log.switch_to(new, data_dir).await {
            Ok(Switch::Made) => Ok(made),
            Ok(Switch::Refused(error)) => Err(error),
            Err(error) => {
                commit.poison(&error);
                Err(error)
            }
        }
    }
}
