//! Making written batches durable.

use futures::future::try_join_all;

use super::{
    dir::sync_error,
    journal::{Journal, State},
};
use crate::{
    Error, Result,
    io::File,
    limits::{JOURNAL_COPIED_BYTES_MAX, JOURNAL_FILES_UNSYNCED},
};

impl Journal {
    /// Makes all batches durable that were [written](Self::written) before. Of several callers, one
    /// does the work for all that wait.
    ///
    /// Must run to its end: the kernel reports an error once, and forgets it even if nobody reads
    /// it.
    ///
    /// # Errors
    ///
    /// [`Error::Shortage`] when the store closes: nothing has failed then. After any other error
    /// the journal makes nothing durable any more, because the kernel would tell the next caller
    /// that all is well.
    pub(crate) async fn sync(&self) -> Result<()> {
        let _syncing = self.syncing.lock().await;
        let synced = self.sync_files().await;
        match &synced {
            // No sync has failed, so the next one can still do it.
            Ok(()) | Err(Error::Shortage { .. }) => {}
            Err(error) => self.state.lock().failed = Some(error.to_string()),
        }
        synced
    }

    async fn sync_files(&self) -> Result<()> {
        let (upto, files, copied_bytes) = {
            let state = self.state.lock();
            state.check()?;
            if state.synced_sequence == state.written_sequence {
                return Ok(());
            }
            (
                state.written_sequence,
                self.unsynced_files(&state)?,
                state.copied_bytes,
            )
        };
        let syncs = files.iter().map(async |(_, file)| {
            let synced = self.dir.disk.sync_data(file).await;
            synced.map_err(|source| sync_error(file.path().to_owned(), source))
        });
        try_join_all(syncs).await?;
        // A file's own sync says nothing about its name.
        self.sync_names().await?;
        let mut state = self.state.lock();
        state.synced_sequence = upto;
        state.copied_bytes -= copied_bytes;
        for (number, _) in files {
            // A file with a batch that was begun meanwhile stays unsynced.
            if let Some(file) = state.files.get_mut(&number)
                && file.last_sequence <= upto
            {
                file.unsynced = false;
                self.open_files().synced(self.id, number);
            }
        }
        Ok(())
    }

    fn unsynced_files(&self, state: &State) -> Result<Vec<(u64, File)>> {
        let unsynced = state.files.iter().filter(|(_, file)| file.unsynced);
        unsynced
            .map(|(number, _)| Ok((*number, self.unsynced_file(*number)?)))
            .collect()
    }

    /// A file with unsynced writes, which is open.
    pub(super) fn unsynced_file(&self, number: u64) -> Result<File> {
        self.open_files().get(self.id, number).ok_or_else(|| {
            let closed = std::io::Error::other("it was closed before it was durable");
            sync_error(self.dir.file_path(number), closed)
        })
    }

    /// Makes the set of files durable, if it has changed.
    pub(super) async fn sync_names(&self) -> Result<()> {
        let names = {
            let state = self.state.lock();
            if state.names == state.names_synced {
                return Ok(());
            }
            state.names
        };
        self.dir.sync().await?;
        self.state.lock().names_synced = names;
        Ok(())
    }

    /// Returns true if an automatic sync is due: so much was copied to the page cache that a later
    /// writer would wait for it, or so many files are unsynced that they had better not all stay
    /// open.
    pub(crate) fn wants_sync(&self) -> bool {
        let state = self.state.lock();
        let last = || state.files.values().rev().take(JOURNAL_FILES_UNSYNCED);
        state.copied_bytes >= JOURNAL_COPIED_BYTES_MAX / 2
            || (last().len() == JOURNAL_FILES_UNSYNCED && last().all(|file| file.unsynced))
    }
}
