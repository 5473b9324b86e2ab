//! The files of one volume's journal: where batches go, where their blocks are, and which of them are durable.
//!
//! Batches are written one behind the other: a process that is killed loses none of those that the kernel has. They are
//! durable after a [`sync`](Journal::sync). Small ones are copied to the page cache on the spot, which is the quickest answer
//! there is; large ones go past it, which takes a fraction of the processor's time. Reads go through the page cache. The two do not
//! get in each other's way: a block is read only after it was written, and is never written again.
//!
//! Files have their full length from the start, so that a full disk shows when a file is made, and not in the
//! middle of it. Those that are no longer needed are [kept](super::recycle) and written again under a new name: what was in them
//! is told from what is written by their numbers and their random bytes, which are new.

mod epoch;
mod fill;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf, sync::Weak, time::Instant};

use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    batch::Batch,
    dir::Owner,
    encode,
    files::{JournalId, MakesDurable, Writers},
};
use crate::{
    Error, Result,
    format::journal::{
        Descriptor, FileHeader, JOURNAL_BLOCK_BYTES, Nonce, data_crc, first_sequence_of,
    },
    io::{Completion, File, is_shortage},
    limits::{
        BATCH_BYTES_MAX, EPOCH_FREE_BYTES_MIN, FREE_BYTES_MIN, JOURNAL_BYTES_LIMIT,
        JOURNAL_COPIED_BYTES_MAX, JOURNAL_COPY_BYTES, JOURNAL_FILE_BYTES_MAX,
        JOURNAL_FILE_BYTES_MIN, JOURNAL_FILES_UNSYNCED, JOURNAL_READ_AROUND_BYTES,
    },
    volume::map::{SLOTS_MAX, Slot},
};

const BLOCK: u64 = JOURNAL_BLOCK_BYTES as u64;
/// Slots of a file, whatever its length.
const FILE_SLOTS: u64 = JOURNAL_FILE_BYTES_MAX / BLOCK;
/// Files whose slots can be told apart.
pub(crate) const FILES_MAX: u64 = 1 << 17;

/// A journal, open.
#[derive(Debug)]
pub(crate) struct Journal {
    owner: Owner,
    /// By which its open files are known.
    id: JournalId,
    state: Mutex<State>,
    /// Whose turn it is to sync.
    syncing: AsyncMutex<()>,
}

/// What a journal that was read holds, to go on from there.
#[derive(Debug)]
pub(crate) struct Found {
    /// The number of the first file of the epoch that goes on: there is one, or will be.
    pub(crate) epoch_first: u64,
    /// The files' lengths; all of them are durable.
    pub(crate) files: BTreeMap<u64, u64>,
    pub(crate) last_sequence: u64,
}

#[derive(Debug)]
struct State {
    /// Slots of new batches are counted from this file on.
    epoch_first: u64,
    files: BTreeMap<u64, JournalFile>,
    next_number: u64,
    /// Where the next batch goes; `None` if the last file is not added to.
    tail: Option<Tail>,
    /// Of the last batch that was begun.
    last_sequence: u64,
    /// When it was, or when the journal was opened.
    begun_at: Instant,
    /// Batches up to this are in the kernel.
    written_sequence: u64,
    synced_sequence: u64,
    /// Files made, and how many of their names are durable.
    names: u64,
    names_synced: u64,
    /// Bytes that were copied to the page cache and not synced since.
    copied_bytes: u64,
    /// Set once: why nothing is written or made durable any more.
    failed: Option<String>,
}

/// The file that is added to.
#[derive(Debug, Clone)]
struct Tail {
    number: u64,
    nonce: Nonce,
    len_bytes: u64,
    position_bytes: u64,
}

#[derive(Debug)]
struct JournalFile {
    len_bytes: u64,
    /// Up to where batches are in the kernel.
    written_bytes: u64,
    /// Of the last batch that was begun in it since the start, or 0.
    last_sequence: u64,
    unsynced: bool,
}

/// Where a data block is.
#[derive(Debug)]
pub(crate) struct BlockPlace {
    pub(crate) file: File,
    pub(crate) offset_bytes: u64,
    /// What of the file was written.
    pub(crate) written_bytes: u64,
}

impl BlockPlace {
    /// What of the file to bring into the page cache when a place in it is read: where that begins, and how much it is.
    pub(crate) fn around(&self, offset_bytes: u64) -> (u64, usize) {
        let start = offset_bytes / JOURNAL_READ_AROUND_BYTES * JOURNAL_READ_AROUND_BYTES;
        let end = (start + JOURNAL_READ_AROUND_BYTES).min(self.written_bytes);
        (
            start,
            usize::try_from(end.saturating_sub(start)).unwrap_or(0),
        )
    }
}

/// A batch on its way.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) place: BatchPlace,
    /// Where its first data block is.
    pub(crate) first_slot: Slot,
    pub(crate) completion: Completion<()>,
}

/// Which batch, and where.
#[derive(Debug, Copy, Clone)]
pub(crate) struct BatchPlace {
    sequence: u64,
    number: u64,
    offset_bytes: u64,
    end_bytes: u64,
}

impl Journal {
    pub(crate) fn new(owner: Owner, found: Found) -> Self {
        let files: BTreeMap<_, _> = found
            .files
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
        let bytes = files.values().map(|file| file.len_bytes).sum();
        owner.space.add_live(bytes);
        Self {
            id: owner.space.files.new_journal(),
            owner,
            state: Mutex::new(State {
                epoch_first: found.epoch_first,
                next_number: files
                    .last_key_value()
                    .map_or(found.epoch_first, |(number, _)| {
                        found.epoch_first.max(number + 1)
                    }),
                files,
                tail: None,
                last_sequence: found.last_sequence,
                begun_at: Instant::now(),
                written_sequence: found.last_sequence,
                synced_sequence: found.last_sequence,
                names: 0,
                names_synced: 0,
                copied_bytes: 0,
                failed: None,
            }),
            syncing: AsyncMutex::new(()),
        }
    }

    /// Begins to write a batch behind all others. Only one may do so at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] when the disk or the journal has no room for another file. Nothing was begun then.
    pub(crate) fn begin(&self, batch: &Batch) -> Result<Begun> {
        let bytes = batch.bytes();
        let has_room = |tail: &Tail| tail.position_bytes + bytes <= tail.len_bytes;
        let tail = self.state.lock().tail.clone().filter(has_room);
        let tail = match tail {
            Some(tail) => tail,
            None => self.new_file()?,
        };
        let files = &self.owner.space.files;
        let writers = match files.get_to_write(self.id, tail.number) {
            Some(writers) => writers,
            None => self.open_to_write(tail.number)?,
        };
        let (last_sequence, synced_sequence) = {
            let state = self.state.lock();
            (state.last_sequence, state.synced_sequence)
        };
        let is_first = tail.position_bytes == 0;
        let first_sequence = first_sequence_of(tail.number);
        let header = is_first.then_some(FileHeader {
            store: self.owner.store,
            volume: self.owner.volume,
            number: tail.number,
            first_sequence,
            previous_sequence: last_sequence,
            nonce: tail.nonce,
        });
        let sequence = if is_first {
            first_sequence
        } else {
            last_sequence + 1
        };
        let descriptor = Descriptor {
            file_number: tail.number,
            sequence,
            synced_sequence,
            nonce: tail.nonce,
            entries: batch.entries().to_vec(),
            data_crcs: batch.blocks().map(data_crc).collect(),
        };
        let header_blocks = u64::from(header.is_some());
        let first_block = tail.position_bytes / BLOCK + header_blocks + 1;
        let batch_bytes = header_blocks * BLOCK + bytes;
        let end_bytes = tail.position_bytes + batch_bytes;

        let first_slot = {
            let mut state = self.state.lock();
            state.last_sequence = sequence;
            state.begun_at = Instant::now();
            if let Some(file) = state.files.get_mut(&tail.number) {
                file.last_sequence = sequence;
                file.unsynced = true;
                files.unsynced(self.id, tail.number);
            }
            if let Some(tail) = &mut state.tail {
                tail.position_bytes = end_bytes;
            }
            slot(tail.number - state.epoch_first, first_block)
        };
        let (disk, position_bytes) = (&self.owner.disk, tail.position_bytes);
        let completion = if self.may_copy(batch_bytes) {
            let parts = encode::as_it_is(header.as_ref(), &descriptor, batch);
            match disk.write_at_once(&writers.cached, position_bytes, &parts) {
                // Where it may wait, from the beginning: nobody was told of a part that was written.
                Err(error) if is_shortage(&error) => {
                    disk.write_parts(&writers.cached, position_bytes, parts)
                }
                written => Completion::known(written),
            }
        } else {
            let parts = encode::aligned(header.as_ref(), &descriptor, batch);
            disk.write_parts(&writers.direct, position_bytes, parts)
        };
        Ok(Begun {
            place: BatchPlace {
                sequence,
                number: tail.number,
                offset_bytes: tail.position_bytes,
                end_bytes,
            },
            first_slot,
            completion,
        })
    }

    /// Whether so many bytes may be copied to the page cache on the spot: not when there are so many already that the kernel may let
    /// a writer wait until it has written some.
    fn may_copy(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let copied_bytes = state.copied_bytes + bytes;
        let may = bytes <= JOURNAL_COPY_BYTES && copied_bytes <= JOURNAL_COPIED_BYTES_MAX;
        if may {
            state.copied_bytes = copied_bytes;
        }
        may
    }

    /// Whether enough was copied to the page cache to have it written, or so many files are not durable that they had better not all
    /// stay open.
    pub(crate) fn wants_sync(&self) -> bool {
        let state = self.state.lock();
        let last = || state.files.values().rev().take(JOURNAL_FILES_UNSYNCED);
        state.copied_bytes >= JOURNAL_COPIED_BYTES_MAX / 2
            || (last().len() == JOURNAL_FILES_UNSYNCED && last().all(|file| file.unsynced))
    }

    /// Whether the file that a batch goes to is open, or can be opened.
    pub(crate) fn has_room_for(&self, batch: &Batch) -> bool {
        let files = &self.owner.space.files;
        let tail = self.state.lock().tail.clone();
        let is_open = tail.is_some_and(|tail| {
            tail.position_bytes + batch.bytes() <= tail.len_bytes
                && files.is_open_to_write(self.id, tail.number)
        });
        is_open || files.has_room(2)
    }

    /// Waits until another file can be opened to be added to, as long as that is of use.
    pub(crate) async fn room(&self, is_of_no_use: impl Fn() -> bool) {
        self.owner.space.files.room(2, is_of_no_use).await;
    }

    /// Opens the last file again, to add to it.
    fn open_to_write(&self, number: u64) -> Result<Writers> {
        let (direct, cached) = self.owner.opened_to_write(&self.owner.path(number))?;
        let files = &self.owner.space.files;
        let cached = files.insert(self.id, number, cached, Some(direct.clone()));
        Ok(Writers { cached, direct })
    }

    /// Opens a file to read it, if it is not open.
    fn open(&self, number: u64) -> Result<File> {
        let files = &self.owner.space.files;
        if let Some(file) = files.get(self.id, number) {
            return Ok(file);
        }
        let file = self.owner.opened(&self.owner.path(number))?;
        Ok(files.insert(self.id, number, file, None))
    }

    /// Makes the next file. Reads go on meanwhile.
    fn new_file(&self) -> Result<Tail> {
        let (number, mut file_bytes, begins_epoch, is_full) = {
            let state = self.state.lock();
            state.check()?;
            let file_bytes = self.owner.next_file_bytes(state.len_bytes());
            let last = state.files.last_key_value().map(|(number, _)| *number);
            // Files that were cut off at a restart are short: they are bounded by number, too.
            let is_full = state.len_bytes() + file_bytes > self.owner.bytes_max
                || state.next_number - state.epoch_first >= FILES_MAX;
            let begins_epoch = last.is_none_or(|last| last < state.epoch_first);
            (state.next_number, file_bytes, begins_epoch, is_full)
        };
        if is_full {
            return Err(Error::Full {
                verb: "add to the journal, which has grown to its limit; its files are in",
                path: self.owner.dir(),
            });
        }
        let path = self.owner.path(number);
        let mut free_bytes = self.owner.free_bytes()?;
        // All journals leave as much as they take, so that they can be taken into the store, whatever is in them. But a snapshot, which
        // begins a file, must not be what fails a guest's writes.
        let journals_bytes = self.owner.space.live_bytes();
        let left_bytes = |file_bytes| room_for(journals_bytes + file_bytes);
        if free_bytes < left_bytes(file_bytes) + file_bytes {
            self.owner.space.give_up();
            free_bytes = self.owner.free_bytes()?;
        }
        while free_bytes < left_bytes(file_bytes) + file_bytes
            && file_bytes > JOURNAL_FILE_BYTES_MIN
        {
            file_bytes = JOURNAL_FILE_BYTES_MIN.max(file_bytes / 4 / BLOCK * BLOCK);
        }
        let left_bytes = if begins_epoch {
            EPOCH_FREE_BYTES_MIN
        } else {
            left_bytes(file_bytes)
        };
        if free_bytes < left_bytes + file_bytes {
            return Err(Error::Full {
                verb: "create",
                path,
            });
        }
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(|error| {
            Error::io("get random bytes for", &path, std::io::Error::other(error))
        })?;
        let spare = self.owner.space.take(self.owner.volume, file_bytes);
        let written_before = spare.and_then(|spare| self.owner.written_before(&spare, &path));
        let (direct, cached) = match written_before {
            Some(opened) => opened?,
            None => self.owner.allocated(&path, file_bytes)?,
        };
        let files = &self.owner.space.files;
        files.insert(self.id, number, cached, Some(direct));
        let mut state = self.state.lock();
        if let Some(tail) = &state.tail {
            files.ended(self.id, tail.number);
        }
        state.next_number = number + 1;
        state.names += 1;
        let file = JournalFile {
            len_bytes: file_bytes,
            written_bytes: 0,
            last_sequence: 0,
            unsynced: false,
        };
        self.owner.space.add_live(file_bytes);
        let tail = Tail {
            number,
            nonce,
            len_bytes: file_bytes,
            position_bytes: 0,
        };
        state.files.insert(number, file);
        state.tail = Some(tail.clone());
        Ok(tail)
    }

    /// Takes note that a batch, and all before it, is in the kernel.
    pub(crate) fn written(&self, batch: BatchPlace) {
        let mut state = self.state.lock();
        debug_assert!(batch.sequence > state.written_sequence);
        state.written_sequence = batch.sequence;
        if let Some(file) = state.files.get_mut(&batch.number) {
            file.written_bytes = batch.end_bytes;
        }
    }

    /// Goes back to before a batch that could not be written, durably: what is written next must not be followed by what was
    /// begun behind it. Nothing may be on its way.
    ///
    /// After an error nothing is written any more.
    pub(crate) async fn roll_back(&self, batch: BatchPlace) -> Result<()> {
        let _lock = self.syncing.lock().await;
        let rolled_back = self.cut_back(batch).await;
        if let Err(error) = &rolled_back {
            self.state.lock().failed = Some(error.to_string());
        }
        rolled_back
    }

    async fn cut_back(&self, batch: BatchPlace) -> Result<()> {
        // A file of which nothing is left goes as a whole: without its header there must be none behind it.
        let first_gone = batch.number + u64::from(batch.offset_bytes > 0);
        {
            let mut state = self.state.lock();
            debug_assert!(batch.sequence > state.written_sequence);
            state.check()?;
            self.end_tail(&mut state);
            state.last_sequence = state.written_sequence;
        }
        let files = &self.owner.space.files;
        // From the last on, so that a crash in between leaves no gap.
        loop {
            let number = match self.state.lock().files.last_key_value() {
                Some((number, _)) if *number >= first_gone => *number,
                _ => break,
            };
            self.owner.remove_patiently(number).await?;
            drop(files.remove(self.id, number));
            let mut state = self.state.lock();
            let removed = state.files.remove(&number);
            self.forget(removed.iter());
            state.next_number = number;
            state.names += 1;
        }
        let disk = &self.owner.disk;
        if batch.offset_bytes > 0 {
            let file = self.written_file(batch.number)?;
            let path = file.path().to_owned();
            let cut = || disk.set_len(&file, batch.offset_bytes);
            let cut = disk.patience().until_possible(cut).await;
            cut.map_err(|source| Error::io("cut off", &path, source))?;
            let synced = disk.sync_data(&file).await;
            synced.map_err(|source| unsynced(path, source))?;
            if let Some(file) = self.state.lock().files.get_mut(&batch.number) {
                let cut_bytes = file.len_bytes - batch.offset_bytes;
                self.owner.space.subtract_live(cut_bytes);
                file.len_bytes = batch.offset_bytes;
                file.unsynced = false;
                files.synced(self.id, batch.number);
            }
        }
        self.sync_names().await
    }

    /// A file that was written and not synced: it is open.
    fn written_file(&self, number: u64) -> Result<File> {
        let file = self.owner.space.files.get(self.id, number);
        file.ok_or_else(|| {
            let closed = std::io::Error::other("it was closed before it was durable");
            unsynced(self.owner.path(number), closed)
        })
    }

    /// Adds nothing to the last file any more.
    fn end_tail(&self, state: &mut State) {
        if let Some(tail) = state.tail.take() {
            self.owner.space.files.ended(self.id, tail.number);
        }
    }

    /// Makes all durable that was [written](Self::written) before. Of several callers one does the work of those that wait.
    ///
    /// Must run to its end: an error that nobody sees would be forgotten by the kernel. After one nothing is made durable any
    /// more, for whoever asks again would be told by the kernel that all is well.
    pub(crate) async fn sync(&self) -> Result<()> {
        let _lock = self.syncing.lock().await;
        let synced = self.sync_files().await;
        match &synced {
            // What was not done can be done later: no sync has failed.
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
            let unsynced = state.files.iter().filter(|(_, file)| file.unsynced);
            let files: Result<Vec<_>> = unsynced
                .map(|(number, _)| Ok((*number, self.written_file(*number)?)))
                .collect();
            (state.written_sequence, files?, state.copied_bytes)
        };
        let syncs = files.iter().map(async |(_, file)| {
            let synced = self.owner.disk.sync_data(file).await;
            synced.map_err(|source| unsynced(file.path().to_owned(), source))
        });
        try_join_all(syncs).await?;
        self.sync_names().await?;
        let mut state = self.state.lock();
        state.synced_sequence = upto;
        state.copied_bytes -= copied_bytes;
        for (number, _) in files {
            if let Some(file) = state.files.get_mut(&number)
                && file.last_sequence <= upto
            {
                file.unsynced = false;
                self.owner.space.files.synced(self.id, number);
            }
        }
        Ok(())
    }

    /// Makes durable which files there are, if that has changed.
    async fn sync_names(&self) -> Result<()> {
        let names = {
            let state = self.state.lock();
            if state.names == state.names_synced {
                return Ok(());
            }
            state.names
        };
        self.owner.sync_dir().await?;
        self.state.lock().names_synced = names;
        Ok(())
    }

    /// Lets go of the files before one: what is in them is in the base now, durably.
    pub(crate) fn remove_before(&self, number: u64) -> Result<()> {
        let old = {
            let mut state = self.state.lock();
            let live = state.files.split_off(&number);
            std::mem::replace(&mut state.files, live)
        };
        self.forget(old.values());
        let free_bytes = self.owner.free_bytes().unwrap_or(0);
        // All of them, even if one cannot be removed.
        let done = old
            .into_iter()
            .map(|(number, JournalFile { len_bytes, .. })| {
                let open = self.owner.space.files.remove(self.id, number);
                self.owner.done_with(number, open, len_bytes, free_bytes)
            });
        done.fold(Ok(()), Result::and)
    }

    /// Where a slot is that is counted from `first_file` on.
    pub(crate) fn place(&self, first_file: u64, slot: Slot) -> Result<BlockPlace> {
        let number = first_file + u64::from(slot) / FILE_SLOTS;
        let written_bytes = {
            let state = self.state.lock();
            state.files.get(&number).map(|file| file.written_bytes)
        };
        match written_bytes {
            Some(written_bytes) => Ok(BlockPlace {
                file: self.open(number)?,
                offset_bytes: u64::from(slot) % FILE_SLOTS * BLOCK,
                written_bytes,
            }),
            None => Err(Error::io(
                "read",
                &self.owner.path(number),
                std::io::ErrorKind::NotFound.into(),
            )),
        }
    }

    /// Who makes it durable when its files are to be closed for others.
    pub(crate) fn register(&self, who: Weak<dyn MakesDurable>) {
        self.owner.space.files.register(self.id, who);
    }

    /// Takes note that files are gone.
    fn forget<'a>(&self, files: impl Iterator<Item = &'a JournalFile>) {
        let bytes = files.map(|file| file.len_bytes).sum();
        self.owner.space.subtract_live(bytes);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let state = self.state.lock();
        self.forget(state.files.values());
        self.owner.space.files.remove_all(self.id);
        self.owner.space.give_up_of(self.owner.volume);
    }
}

impl State {
    /// That nothing has failed that leaves the state of the disk unknown.
    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(reason) => Err(Error::Poisoned {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    fn len_bytes(&self) -> u64 {
        self.files.values().map(|file| file.len_bytes).sum()
    }
}

/// Free space with which so much of a journal can be taken into the store, whatever is in it: what chunks leave, and a little for
/// what describes them.
const fn room_for(journal_bytes: u64) -> u64 {
    FREE_BYTES_MIN + journal_bytes + journal_bytes / 16 + (4 << 20)
}

/// Not [`Error::Full`], whatever it is: after a failed sync nobody knows what is on the disk. Except where it was not begun: see
/// [`Disk`](crate::io::Disk).
pub(crate) fn unsynced(path: PathBuf, source: std::io::Error) -> Error {
    if is_shortage(&source) {
        return Error::io("sync", &path, source);
    }
    Error::Io {
        verb: "sync",
        path,
        source,
    }
}

/// The slot of a block in a file, counted from the first one.
pub(crate) fn slot(file: u64, block: u64) -> Slot {
    debug_assert!(file < FILES_MAX && block < FILE_SLOTS);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`FILES_MAX` keeps it below `SLOTS_MAX`"
    )]
    let slot = (file * FILE_SLOTS + block) as u32;
    slot
}

const _: () = assert!(FILES_MAX * FILE_SLOTS < SLOTS_MAX as u64);
const _: () = assert!(JOURNAL_BYTES_LIMIT / JOURNAL_FILE_BYTES_MAX < FILES_MAX);
const _: () = assert!(JOURNAL_FILE_BYTES_MAX.is_multiple_of(BLOCK));
const _: () = assert!(BATCH_BYTES_MAX + BLOCK <= JOURNAL_FILE_BYTES_MIN);
