//! An open journal: its files, its epochs, and the places of its blocks.
//!
//! Batches are [appended](super::append) one behind the other and made durable by a
//! [sync](super::sync). An epoch has the writes between two cuts. It begins with a file of its own,
//! so that whole files can be removed once an epoch is in the store.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    dir::JournalDir,
    files::{JournalId, MakesDurable, OpenFiles, Reservation},
    slot::{Slot, locate},
};
use crate::{
    Error, Result,
    format::journal::Nonce,
    io::{File, offload},
    limits::{FREE_BYTES_MIN, JOURNAL_READ_AROUND_BYTES},
};

/// A journal, open.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(super) dir: JournalDir,
    /// Identifies its open files.
    pub(super) id: JournalId,
    pub(super) state: Mutex<State>,
    /// Held by the caller that syncs.
    pub(super) syncing: AsyncMutex<()>,
    /// True if files that are no longer needed are kept to be written again.
    recycles: AtomicBool,
}

/// The place where a journal continues after it was read.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The number of the first file of the epoch that goes on: there is one, or will be.
    pub(crate) epoch_first: u64,
    /// The files' lengths, in bytes; all of them are durable.
    pub(crate) files: BTreeMap<u64, u64>,
    pub(crate) last_sequence: u64,
}

#[derive(Debug)]
pub(super) struct State {
    /// Slots of new batches are counted from this file on.
    pub(super) epoch_first: u64,
    pub(super) files: BTreeMap<u64, JournalFile>,
    pub(super) next_number: u64,
    /// The place of the next batch; `None` if the last file is not added to.
    pub(super) tail: Option<Tail>,
    /// The number of the last batch that was begun.
    pub(super) last_sequence: u64,
    /// When that batch was begun, or the journal was opened.
    pub(super) begun_at: Instant,
    /// Batches up to this one are in the kernel.
    pub(super) written_sequence: u64,
    pub(super) synced_sequence: u64,
    /// Number of changes of names in the directory, and which of them are durable.
    pub(super) names: u64,
    pub(super) names_synced: u64,
    /// Bytes that were copied to the page cache since the last sync began.
    pub(super) copied_bytes: u64,
    /// Set once: the reason why nothing is written or made durable any more.
    pub(super) failed: Option<String>,
}

/// The file that is added to.
#[derive(Debug, Clone)]
pub(super) struct Tail {
    pub(super) number: u64,
    pub(super) nonce: Nonce,
    pub(super) len_bytes: u64,
    pub(super) position_bytes: u64,
}

#[derive(Debug)]
pub(super) struct JournalFile {
    pub(super) len_bytes: u64,
    /// The end of the batches that are in the kernel.
    pub(super) written_bytes: u64,
    /// The number of the last batch begun in it since the start, or 0.
    pub(super) last_sequence: u64,
    pub(super) unsynced: bool,
}

/// The place of a data block.
#[derive(Debug)]
pub(crate) struct BlockPlace {
    pub(crate) file: File,
    pub(crate) offset_bytes: u64,
    /// The end of the written part of the file.
    written_bytes: u64,
}

impl BlockPlace {
    /// The range to bring into the page cache when bytes at an offset are read: where it
    /// begins, and its length in bytes.
    pub(crate) fn around(&self, offset_bytes: u64) -> (u64, usize) {
        let start = offset_bytes / JOURNAL_READ_AROUND_BYTES * JOURNAL_READ_AROUND_BYTES;
        let end = (start + JOURNAL_READ_AROUND_BYTES).min(self.written_bytes);
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        (start, len)
    }
}

impl Journal {
    pub(crate) fn new(dir: JournalDir, recovered: Recovered) -> Self {
        let Recovered {
            epoch_first,
            files,
            last_sequence,
        } = recovered;
        let files: BTreeMap<_, _> = files
            .into_iter()
            .map(|(number, len_bytes)| {
                let file = JournalFile {
                    len_bytes,
                    written_bytes: len_bytes,
                    last_sequence: 0,
                    unsynced: false,
                };
                (number, file)
            })
            .collect();
        dir.pool
            .add_live(files.values().map(|file| file.len_bytes).sum());
        let next_number = files
            .last_key_value()
            .map_or(epoch_first, |(number, _)| epoch_first.max(number + 1));
        Self {
            id: dir.pool.open.new_journal(),
            dir,
            state: Mutex::new(State {
                epoch_first,
                next_number,
                files,
                tail: None,
                last_sequence,
                begun_at: Instant::now(),
                written_sequence: last_sequence,
                synced_sequence: last_sequence,
                names: 0,
                names_synced: 0,
                copied_bytes: 0,
                failed: None,
            }),
            syncing: AsyncMutex::new(()),
            recycles: AtomicBool::new(true),
        }
    }

    pub(super) fn open_files(&self) -> &Arc<OpenFiles> {
        &self.dir.pool.open
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &JournalDir {
        &self.dir
    }

    /// Sets the object that makes it durable when its files are to be closed for others.
    pub(crate) fn register(&self, owner: Weak<dyn MakesDurable>) {
        self.open_files().register(self.id, owner);
    }

    /// Number of the last batch. No batch may be in flight.
    pub(crate) fn last_sequence(&self) -> u64 {
        let state = self.state.lock();
        debug_assert_eq!(state.written_sequence, state.last_sequence);
        state.written_sequence
    }

    /// Ends the epoch: the next batch begins a file of its own, whose number is returned. No batch
    /// may be in flight.
    pub(crate) fn end_epoch(&self) -> u64 {
        let mut state = self.state.lock();
        debug_assert_eq!(state.written_sequence, state.last_sequence);
        // A file may have been made without a batch, because its first one could not be begun and
        // comes next. It has no header yet, so no other file may follow it: the new epoch begins
        // with it.
        let unbegun = state.tail.as_ref().filter(|tail| tail.position_bytes == 0);
        state.epoch_first = match unbegun {
            Some(tail) => tail.number,
            None => {
                self.end_tail(&mut state);
                state.next_number
            }
        };
        state.epoch_first
    }

    /// Adds nothing to the last file any more.
    pub(super) fn end_tail(&self, state: &mut State) {
        if let Some(tail) = state.tail.take() {
            self.open_files().ended(self.id, tail.number);
        }
    }

    /// The place of a slot that is counted from `first_file` on. Opens its file if necessary.
    ///
    /// # Errors
    ///
    /// [`Error::Shortage`] where the file cannot be opened for now.
    pub(crate) fn place(&self, first_file: u64, slot: Slot) -> Result<BlockPlace> {
        let (number, offset_bytes) = locate(first_file, slot);
        let written_bytes = {
            let state = self.state.lock();
            state.files.get(&number).map(|file| file.written_bytes)
        };
        let path = || self.dir.file_path(number);
        let Some(written_bytes) = written_bytes else {
            let gone = std::io::ErrorKind::NotFound.into();
            return Err(Error::io("read", &path(), gone));
        };
        let open = self.open_files();
        let file = match open.get(self.id, number) {
            Some(file) => file,
            None => {
                let file = self.dir.open_file(&path())?;
                open.insert(self.id, number, file, None, Reservation::none())
            }
        };
        Ok(BlockPlace {
            file,
            offset_bytes,
            written_bytes,
        })
    }

    /// Releases the files before `first_file`, durably. Their content is in the volume's base.
    ///
    /// # Errors
    ///
    /// The first file that could not be removed. The others are gone.
    pub(crate) async fn remove_before(self: &Arc<Self>, number: u64) -> Result<()> {
        let journal = Arc::clone(self);
        offload(move || journal.remove_before_here(number)).await?
    }

    fn remove_before_here(&self, number: u64) -> Result<()> {
        let old = {
            let mut state = self.state.lock();
            let live = state.files.split_off(&number);
            std::mem::replace(&mut state.files, live)
        };
        self.forget(old.values());
        let free_bytes = self.dir.free_bytes().unwrap_or(0);
        let volume_max = match self.recycles.load(Ordering::Acquire) {
            true => self.dir.spare_bytes_max(),
            false => 0,
        };
        let retire = |(number, JournalFile { len_bytes, .. })| {
            let open = self.open_files().remove(self.id, number);
            self.dir
                .retire_file(number, open, len_bytes, volume_max, free_bytes)
        };
        old.into_iter().map(retire).fold(Ok(()), Result::and)
    }

    /// Counts files as gone.
    pub(super) fn forget<'a>(&self, files: impl Iterator<Item = &'a JournalFile>) {
        let bytes = files.map(|file| file.len_bytes).sum();
        self.dir.pool.subtract_live(bytes);
    }

    /// Removes the spare files, and keeps none from now on. Used when the volume is closed.
    pub(crate) async fn stop_recycling(self: &Arc<Self>) {
        self.recycles.store(false, Ordering::Release);
        let journal = Arc::clone(self);
        let remove = move || journal.dir.pool.remove_spares_of(journal.dir.volume);
        // If this fails, they go when the journal is dropped, or when it is opened again.
        let _ = offload(remove).await;
    }
}

/// The fill of a journal, and the time of its last change.
impl Journal {
    /// Bytes that its files take.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.state.lock().len_bytes()
    }

    /// Returns true if it has grown to half of its limit, and is due for a checkpoint.
    pub(crate) fn is_large(&self) -> bool {
        self.len_bytes() >= self.dir.bytes_max / 2
    }

    /// Its fill, in thousandths of its limit.
    pub(crate) fn fill_permille(&self) -> u64 {
        self.len_bytes().saturating_mul(1000) / self.dir.bytes_max.max(1)
    }

    /// When the last batch was begun, or when the journal was opened.
    pub(crate) fn begun_at(&self) -> Instant {
        self.state.lock().begun_at
    }

    /// Returns true if a checkpoint would free something, and the disk has room for all that it
    /// might store. Removes spare files if there is none without.
    pub(crate) async fn can_be_emptied(self: &Arc<Self>) -> bool {
        let len_bytes = self.len_bytes();
        if len_bytes == 0 {
            return false;
        }
        let journal = Arc::clone(self);
        let look = move || {
            let dir = &journal.dir;
            let has_room = || dir.free_bytes().unwrap_or(0) >= room_for(len_bytes);
            has_room() || {
                dir.pool.remove_spares();
                has_room()
            }
        };
        offload(look).await.unwrap_or(false)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.forget(self.state.lock().files.values());
        self.open_files().remove_all(self.id);
        // Only after a panic: they go when the volume is closed.
        let pool = &self.dir.pool;
        if pool.spare_bytes(self.dir.volume, u64::MAX).is_some() {
            pool.remove_spares_of(self.dir.volume);
        }
    }
}

impl State {
    /// Fails once an error has left the state of the disk unknown.
    pub(super) fn check(&self) -> Result<()> {
        match &self.failed {
            Some(reason) => Err(Error::Poisoned {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.files.values().map(|file| file.len_bytes).sum()
    }
}

/// Free bytes that suffice to take this many bytes of a journal into the store, whatever their
/// content: the bytes that chunks leave free, and a little for their metadata.
pub(super) const fn room_for(journal_bytes: u64) -> u64 {
    FREE_BYTES_MIN + journal_bytes + journal_bytes / 16 + (4 << 20)
}
