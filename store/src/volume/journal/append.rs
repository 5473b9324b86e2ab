//! Appending a batch, and undoing a failed one.
//!
//! A small batch is copied to the page cache on the spot, which gives the fastest answer. A large
//! one uses direct IO, which takes a fraction of the processor time. Reads go through the page
//! cache. The two do not conflict: a block is read only after it was written, and is never written
//! again.
//!
//! A file has its full length from the start, so a full disk shows when a file is created, and not
//! in the middle of it. A file may be a [recycled one](super::recycle): new numbers and random
//! bytes distinguish its batches from the old content.

use std::{sync::Arc, time::Instant};

use super::{
    batch::Batch,
    dir::sync_error,
    encode,
    files::{Reservation, Writers},
    journal::{Journal, JournalFile, Tail, room_for},
    slot::{EPOCH_FILES_MAX, Slot, slot_of},
};
use crate::{
    Error, Result,
    error::JournalLimit,
    format::journal::{
        Descriptor, FileHeader, JOURNAL_BLOCK_BYTES, Nonce, data_crc, first_sequence_of,
    },
    io::{Completion, is_shortage, offload},
    limits::{
        BATCH_BYTES_MAX, EPOCH_FREE_BYTES_MIN, JOURNAL_COPIED_BYTES_MAX, JOURNAL_COPY_BYTES,
        JOURNAL_FILE_BYTES_MIN,
    },
};

const BLOCK: u64 = JOURNAL_BLOCK_BYTES as u64;
const _: () = assert!(BATCH_BYTES_MAX + BLOCK <= JOURNAL_FILE_BYTES_MIN);

/// Descriptors of a file that is added to: through the page cache, and past it.
const WRITER_DESCRIPTORS: usize = 2;

/// A batch in flight.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) place: BatchPlace,
    /// The place of its first data block.
    pub(crate) first_slot: Slot,
    pub(crate) completion: Completion<()>,
}

/// The batch and its place.
#[derive(Debug, Copy, Clone)]
pub(crate) struct BatchPlace {
    sequence: u64,
    pub(super) number: u64,
    offset_bytes: u64,
    end_bytes: u64,
}

/// A file to be made.
#[derive(Debug)]
struct NewFile {
    number: u64,
    len_bytes: u64,
    /// True if it is the first of its epoch.
    begins_epoch: bool,
}

impl Journal {
    /// Begins to write a batch behind all others. Only one caller at a time may do so.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] when the disk has no room for another file, [`Error::JournalFull`] when the
    /// journal is at its limit, [`Error::Shortage`] when the system cannot open or make a file for
    /// now. Nothing was begun then, and the batch may be tried again.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        batch: &Batch,
        descriptors: Reservation,
    ) -> Result<Begun> {
        let tail = self.tail_for(batch);
        let (tail, writers) = match tail {
            Some(tail) => {
                let writers = self.writers(tail.number, descriptors)?;
                (tail, writers)
            }
            None => {
                let journal = Arc::clone(self);
                offload(move || journal.new_file(descriptors)).await??
            }
        };
        Ok(self.begin_in(tail, &writers, batch))
    }

    /// The last file, if it has room for a batch.
    fn tail_for(&self, batch: &Batch) -> Option<Tail> {
        let tail = self.state.lock().tail.clone();
        tail.filter(|tail| tail.position_bytes + batch.bytes() <= tail.len_bytes)
    }

    fn begin_in(&self, tail: Tail, writers: &Writers, batch: &Batch) -> Begun {
        let (last_sequence, synced_sequence) = {
            let state = self.state.lock();
            (state.last_sequence, state.synced_sequence)
        };
        let is_first = tail.position_bytes == 0;
        let first_sequence = first_sequence_of(tail.number);
        let header = is_first.then_some(FileHeader {
            store: self.dir.store,
            volume: self.dir.volume,
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
        let batch_bytes = header_blocks * BLOCK + batch.bytes();
        let end_bytes = tail.position_bytes + batch_bytes;

        let first_slot = {
            let mut state = self.state.lock();
            state.last_sequence = sequence;
            state.begun_at = Instant::now();
            if let Some(file) = state.files.get_mut(&tail.number) {
                file.last_sequence = sequence;
                file.unsynced = true;
                self.open_files().unsynced(self.id, tail.number);
            }
            if let Some(tail) = &mut state.tail {
                tail.position_bytes = end_bytes;
            }
            slot_of(tail.number - state.epoch_first, first_block)
        };
        let (disk, position_bytes) = (&self.dir.disk, tail.position_bytes);
        let completion = if self.may_copy(batch_bytes) {
            let parts = encode::to_cache(header.as_ref(), &descriptor, batch);
            match disk.write_at_once(&writers.cached, position_bytes, &parts) {
                // It is written again from the beginning, where it may wait: no writer has an
                // answer for the part that was written.
                Err(error) if is_shortage(&error) => {
                    disk.write_parts(&writers.cached, position_bytes, parts)
                }
                written => Completion::known(written),
            }
        } else {
            let parts = encode::past_cache(header.as_ref(), &descriptor, batch);
            disk.write_parts(&writers.direct, position_bytes, parts)
        };
        Begun {
            place: BatchPlace {
                sequence,
                number: tail.number,
                offset_bytes: tail.position_bytes,
                end_bytes,
            },
            first_slot,
            completion,
        }
    }

    /// Claims room for so many bytes in the page cache. Returns false when so many are unsynced
    /// there that the kernel may block a writer until it has written some.
    fn may_copy(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let copied_bytes = state.copied_bytes + bytes;
        let may = bytes <= JOURNAL_COPY_BYTES && copied_bytes <= JOURNAL_COPIED_BYTES_MAX;
        if may {
            state.copied_bytes = copied_bytes;
        }
        may
    }

    /// Sets descriptors aside for the file that a batch goes to, if that is not open; `None` if
    /// there are too few.
    pub(crate) fn reserve_for(&self, batch: &Batch) -> Option<Reservation> {
        let open = self.open_files();
        match self.tail_for(batch) {
            Some(tail) if open.is_open_to_write(self.id, tail.number) => Some(Reservation::none()),
            _ => open.reserve(WRITER_DESCRIPTORS),
        }
    }

    /// Waits until descriptors for another file are available, unless waiting becomes useless.
    pub(crate) async fn wait_for_descriptors(&self, is_of_no_use: impl Fn() -> bool) {
        let open = self.open_files();
        open.wait_for_room(WRITER_DESCRIPTORS, is_of_no_use).await;
    }

    /// The last file, to be added to. Opens it again if it was closed for others.
    fn writers(&self, number: u64, descriptors: Reservation) -> Result<Writers> {
        if let Some(writers) = self.open_files().get_to_write(self.id, number) {
            return Ok(writers);
        }
        let opened = self.dir.open_to_write(&self.dir.file_path(number))?;
        Ok(self.keep_open(number, opened, descriptors))
    }

    fn keep_open(&self, number: u64, opened: Writers, descriptors: Reservation) -> Writers {
        let Writers { cached, direct } = opened;
        let kept = Some(direct.clone());
        let cached = self
            .open_files()
            .insert(self.id, number, cached, kept, descriptors);
        Writers { cached, direct }
    }

    /// Creates the next file. May take long. Reads and syncs continue meanwhile.
    pub(super) fn new_file(&self, descriptors: Reservation) -> Result<(Tail, Writers)> {
        let new = self.plan_file()?;
        let len_bytes = self.fit_to_disk(&new)?;
        let path = self.dir.file_path(new.number);
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(|error| {
            Error::io("get random bytes for", &path, std::io::Error::other(error))
        })?;
        let spare = self.dir.pool.take(self.dir.volume, len_bytes);
        let reused = spare.and_then(|spare| self.dir.reuse_file(&spare, &path));
        let opened = match reused {
            Some(opened) => opened?,
            None => self.dir.allocate_file(&path, len_bytes)?,
        };
        let writers = self.keep_open(new.number, opened, descriptors);
        let mut state = self.state.lock();
        self.end_tail(&mut state);
        state.next_number = new.number + 1;
        state.names += 1;
        let file = JournalFile {
            len_bytes,
            written_bytes: 0,
            last_sequence: 0,
            unsynced: false,
        };
        self.dir.pool.add_live(len_bytes);
        let tail = Tail {
            number: new.number,
            nonce,
            len_bytes,
            position_bytes: 0,
        };
        state.files.insert(new.number, file);
        state.tail = Some(tail.clone());
        Ok((tail, writers))
    }

    /// The next file, if the journal may grow by one.
    fn plan_file(&self) -> Result<NewFile> {
        let state = self.state.lock();
        state.check()?;
        let len_bytes = self.dir.next_file_bytes(state.len_bytes());
        // Files that were cut off at a restart are short, so their number is bounded, too.
        let is_full = state.len_bytes() + len_bytes > self.dir.bytes_max
            || state.next_number - state.epoch_first >= EPOCH_FILES_MAX;
        if is_full {
            return Err(Error::JournalFull {
                path: self.dir.path(),
                limit: JournalLimit::Bytes(self.dir.bytes_max),
            });
        }
        let last = state.files.last_key_value().map(|(number, _)| *number);
        Ok(NewFile {
            number: state.next_number,
            len_bytes,
            begins_epoch: last.is_none_or(|last| last < state.epoch_first),
        })
    }

    /// The bytes of the disk's free space that a new file may take: the planned length, or less.
    fn fit_to_disk(&self, new: &NewFile) -> Result<u64> {
        let mut len_bytes = new.len_bytes;
        let mut free_bytes = self.dir.free_bytes()?;
        // All journals leave as much free as they take, so that the store can take them in,
        // whatever their content.
        let journals_bytes = self.dir.pool.live_bytes();
        let left_bytes = |file_bytes| room_for(journals_bytes + file_bytes);
        if free_bytes < left_bytes(len_bytes) + len_bytes {
            self.dir.pool.remove_spares();
            free_bytes = self.dir.free_bytes()?;
        }
        while free_bytes < left_bytes(len_bytes) + len_bytes && len_bytes > JOURNAL_FILE_BYTES_MIN {
            len_bytes = JOURNAL_FILE_BYTES_MIN.max(len_bytes / 4 / BLOCK * BLOCK);
        }
        // A snapshot begins a file, which must not fail a guest's writes.
        let left_bytes = if new.begins_epoch {
            EPOCH_FREE_BYTES_MIN
        } else {
            left_bytes(len_bytes)
        };
        if free_bytes < left_bytes + len_bytes {
            return Err(Error::Full {
                verb: "create",
                path: self.dir.file_path(new.number),
            });
        }
        Ok(len_bytes)
    }

    /// Marks a batch, and all before it, as being in the kernel.
    pub(crate) fn written(&self, batch: BatchPlace) {
        let mut state = self.state.lock();
        debug_assert!(batch.sequence > state.written_sequence);
        state.written_sequence = batch.sequence;
        if let Some(file) = state.files.get_mut(&batch.number) {
            file.written_bytes = batch.end_bytes;
        }
    }

    /// Takes back a batch that could not be written, and all batches begun behind it, durably: the
    /// next batch must not be followed by the bytes behind the failed one. No batch may be in
    /// flight.
    ///
    /// # Errors
    ///
    /// After an error nothing is written any more.
    pub(crate) async fn roll_back(&self, batch: BatchPlace) -> Result<()> {
        let _syncing = self.syncing.lock().await;
        let rolled_back = self.cut_back(batch).await;
        if let Err(error) = &rolled_back {
            self.state.lock().failed = Some(error.to_string());
        }
        rolled_back
    }

    async fn cut_back(&self, batch: BatchPlace) -> Result<()> {
        // A file without any batch left goes as a whole: no other file may follow one without a
        // header.
        let first_gone = batch.number + u64::from(batch.offset_bytes > 0);
        {
            let mut state = self.state.lock();
            debug_assert!(batch.sequence > state.written_sequence);
            state.check()?;
            self.end_tail(&mut state);
            state.last_sequence = state.written_sequence;
        }
        // From the last on, so that a crash in between leaves no gap.
        loop {
            let number = match self.state.lock().files.last_key_value() {
                Some((number, _)) if *number >= first_gone => *number,
                _ => break,
            };
            self.dir.remove_file(number).await?;
            drop(self.open_files().remove(self.id, number));
            let mut state = self.state.lock();
            let removed = state.files.remove(&number);
            self.forget(removed.iter());
            state.next_number = number;
            state.names += 1;
        }
        if batch.offset_bytes > 0 {
            self.cut_file(batch.number, batch.offset_bytes).await?;
        }
        self.sync_names().await
    }

    /// Cuts a file off, durably.
    async fn cut_file(&self, number: u64, len_bytes: u64) -> Result<()> {
        let file = self.unsynced_file(number)?;
        self.dir.cut_file_off(&file, len_bytes).await?;
        let synced = self.dir.disk.sync_data(&file).await;
        synced.map_err(|source| sync_error(file.path().to_owned(), source))?;
        if let Some(file) = self.state.lock().files.get_mut(&number) {
            self.dir.pool.subtract_live(file.len_bytes - len_bytes);
            file.len_bytes = len_bytes;
            file.unsynced = false;
            self.open_files().synced(self.id, number);
        }
        Ok(())
    }
}
