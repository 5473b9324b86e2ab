//! The files of one volume's journal: where batches go, where their blocks are, and which of them are durable.
//!
//! Batches are written through the page cache, one behind the other, and what was written counts as done: a process that is
//! killed loses nothing then. They are durable after a [`sync`](Journal::sync). Reads of what was just written come from the
//! page cache.
//!
//! Files have their full length from the start, so that a full disk shows when a file is made, and not in the
//! middle of it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::{batch::Batch, map::Slot};
use crate::{
    Error, Result,
    format::{
        StoreId,
        journal::{Descriptor, FileHeader, JOURNAL_BLOCK_BYTES, Nonce, data_crc},
        names,
        volume::VolumeId,
    },
    io::{AlignedBuf, Completion, Disk, File, OpenMode},
    limits::{
        BATCH_BYTES_MAX, JOURNAL_BYTES_LIMIT, JOURNAL_FILE_BYTES_MAX, JOURNAL_FILE_BYTES_MIN,
    },
};

const BLOCK: u64 = JOURNAL_BLOCK_BYTES as u64;
/// Slots of a file, whatever its length.
const FILE_SLOTS: u64 = JOURNAL_FILE_BYTES_MAX / BLOCK;
/// Files whose slots can be told apart.
pub(super) const FILES_MAX: u64 = 1 << 17;

/// Whose journal it is, and where.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) data_dir: PathBuf,
    pub(super) store: StoreId,
    pub(super) volume: VolumeId,
    /// What the journal may take on disk.
    pub(super) bytes_max: u64,
}

impl Owner {
    pub(super) fn dir(&self) -> PathBuf {
        names::volume(&self.data_dir, self.volume)
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        names::journal_file(&self.data_dir, self.volume, number)
    }

    pub(super) fn remove(&self, number: u64) -> Result<()> {
        let path = self.path(number);
        self.disk
            .remove(&path)
            .map_err(|source| Error::io("remove", &path, source))
    }

    /// The length of its files: a small journal has small ones.
    fn file_bytes(&self) -> u64 {
        let part = self.bytes_max / 128 / BLOCK * BLOCK;
        part.clamp(JOURNAL_FILE_BYTES_MIN, JOURNAL_FILE_BYTES_MAX)
    }
}

/// A journal, open.
#[derive(Debug)]
pub(super) struct Journal {
    owner: Owner,
    state: Mutex<State>,
    /// Whose turn it is to sync.
    syncing: AsyncMutex<()>,
}

/// What a journal that was read holds, to go on from there.
#[derive(Debug)]
pub(super) struct Found {
    /// The number of the first file of the epoch that goes on: there is one, or will be.
    pub(super) epoch_first: u64,
    /// The files and their lengths, all of them durable.
    pub(super) files: BTreeMap<u64, (File, u64)>,
    pub(super) last_sequence: u64,
}

#[derive(Debug)]
struct State {
    /// Slots of new batches are counted from this file on.
    epoch_first: u64,
    files: BTreeMap<u64, JournalFile>,
    next_number: u64,
    /// Where the next batch goes in the last file; `None` if that is not added to.
    position_bytes: Option<u64>,
    next_sequence: u64,
    /// Batches up to this are in the kernel.
    written_sequence: u64,
    synced_sequence: u64,
    /// Files made, and how many of their names are durable.
    names: u64,
    names_synced: u64,
}

#[derive(Debug)]
struct JournalFile {
    file: File,
    nonce: Nonce,
    len_bytes: u64,
    /// Of the last batch that was begun in it since the start, or 0.
    last_sequence: u64,
    unsynced: bool,
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) sequence: u64,
    /// Where its first data block is.
    pub(super) first_slot: Slot,
    pub(super) completion: Completion<AlignedBuf>,
    number: u64,
    offset_bytes: u64,
}

impl Journal {
    pub(super) fn new(owner: Owner, found: Found) -> Self {
        let files: BTreeMap<_, _> = found
            .files
            .into_iter()
            .map(|(number, (file, len_bytes))| {
                // It is not added to any more, so its nonce is not asked for.
                let file = JournalFile {
                    file,
                    nonce: Nonce::default(),
                    len_bytes,
                    last_sequence: 0,
                    unsynced: false,
                };
                (number, file)
            })
            .collect();
        Self {
            owner,
            state: Mutex::new(State {
                epoch_first: found.epoch_first,
                next_number: files
                    .last_key_value()
                    .map_or(found.epoch_first, |(number, _)| {
                        found.epoch_first.max(number + 1)
                    }),
                files,
                position_bytes: None,
                next_sequence: found.last_sequence + 1,
                written_sequence: found.last_sequence,
                synced_sequence: found.last_sequence,
                names: 0,
                names_synced: 0,
            }),
            syncing: AsyncMutex::new(()),
        }
    }

    /// Begins to write a batch behind all others.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] when the disk or the journal has no room for another file. Nothing was begun then.
    pub(super) fn begin(&self, batch: &Batch) -> Result<Begun> {
        let mut state = self.state.lock();
        let bytes = batch.bytes();
        let number = match (state.files.last_key_value(), state.position_bytes) {
            (Some((number, file)), Some(position)) if position + bytes <= file.len_bytes => *number,
            _ => self.new_file(&mut state)?,
        };
        let offset_bytes = state.position_bytes.unwrap_or(0);
        let sequence = state.next_sequence;
        let synced_sequence = state.synced_sequence;
        let nonce = state
            .files
            .get(&number)
            .map_or_else(Nonce::default, |file| file.nonce);
        let mut buf = AlignedBuf::with_capacity(batch.bytes_with_header());
        if offset_bytes == 0 {
            let header = FileHeader {
                store: self.owner.store,
                volume: self.owner.volume,
                number,
                first_sequence: sequence,
                nonce,
            };
            buf.extend_from_slice(&header.encode());
        }
        let first_block = (offset_bytes + buf.len() as u64) / BLOCK + 1;
        let descriptor = Descriptor {
            file_number: number,
            sequence,
            synced_sequence,
            nonce,
            entries: batch.entries().to_vec(),
            data_crcs: batch.blocks().map(data_crc).collect(),
        };
        buf.extend_from_slice(&descriptor.encode());
        batch.data().for_each(|data| buf.extend_from_slice(data));

        let first_slot = slot(number - state.epoch_first, first_block);
        state.position_bytes = Some(offset_bytes + buf.len() as u64);
        state.next_sequence += 1;
        let Some(entry) = state.files.get_mut(&number) else {
            unreachable!("the file was found or made just above");
        };
        entry.last_sequence = sequence;
        entry.unsynced = true;
        Ok(Begun {
            sequence,
            first_slot,
            completion: self.owner.disk.write(&entry.file, offset_bytes, buf),
            number,
            offset_bytes,
        })
    }

    fn new_file(&self, state: &mut State) -> Result<u64> {
        let path = self.owner.path(state.next_number);
        let mut file_bytes = self.owner.file_bytes();
        // Files that were cut off at a restart are short: they are bounded by number, too.
        let is_full = state.len_bytes() + file_bytes > self.owner.bytes_max
            || state.next_number - state.epoch_first >= FILES_MAX;
        if is_full {
            return Err(Error::Full {
                verb: "add to the journal, which has grown to its limit; its files are in",
                path: self.owner.dir(),
            });
        }
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(|error| {
            Error::io("get random bytes for", &path, std::io::Error::other(error))
        })?;
        let disk = &self.owner.disk;
        let file = disk
            .open(&path, OpenMode::CreateNew)
            .map_err(|source| Error::io("create", &path, source))?;
        while let Err(source) = disk.allocate(&file, file_bytes) {
            let error = Error::io("allocate", &path, source);
            // Where there is no room for a whole file there may be some for a shorter one: a snapshot, which begins a file, must not
            // be what fails a guest's writes.
            let shorter = JOURNAL_FILE_BYTES_MIN.max(file_bytes / 4 / BLOCK * BLOCK);
            let may_fit = matches!(error, Error::Full { .. }) && shorter < file_bytes;
            // What was allocated of it goes first.
            if !may_fit || disk.set_len(&file, 0).is_err() {
                self.owner.remove(state.next_number)?;
                return Err(error);
            }
            file_bytes = shorter;
        }
        let number = state.next_number;
        state.next_number += 1;
        state.names += 1;
        state.position_bytes = Some(0);
        let file = JournalFile {
            file,
            nonce,
            len_bytes: file_bytes,
            last_sequence: 0,
            unsynced: true,
        };
        state.files.insert(number, file);
        Ok(number)
    }

    /// Takes note that a batch, and all before it, is in the kernel.
    pub(super) fn written(&self, begun: &Begun) {
        let mut state = self.state.lock();
        debug_assert_eq!(begun.sequence, state.written_sequence + 1);
        state.written_sequence = begun.sequence;
    }

    /// Goes back to before a batch that could not be written. Nothing may be on its way.
    pub(super) fn roll_back(&self, begun: &Begun) -> Result<()> {
        let mut state = self.state.lock();
        debug_assert_eq!(begun.sequence, state.written_sequence + 1);
        while let Some((number, _)) = state.files.last_key_value()
            && *number > begun.number
        {
            let number = *number;
            self.owner.remove(number)?;
            state.files.remove(&number);
            state.next_number = number;
        }
        state.position_bytes = Some(begun.offset_bytes);
        state.next_sequence = begun.sequence;
        Ok(())
    }

    /// Makes all durable that was [written](Self::written) before. Of several callers one does the work of those that wait.
    ///
    /// Must run to its end: an error that nobody sees would be forgotten by the kernel.
    pub(super) async fn sync(&self) -> Result<()> {
        let _turn = self.syncing.lock().await;
        let (upto, files, names) = {
            let state = self.state.lock();
            if state.synced_sequence == state.written_sequence {
                return Ok(());
            }
            let unsynced = state.files.iter().filter(|(_, file)| file.unsynced);
            let files: Vec<_> = unsynced
                .map(|(number, file)| (*number, file.file.clone()))
                .collect();
            let names = (state.names_synced < state.names).then_some(state.names);
            (state.written_sequence, files, names)
        };
        let syncs = files.iter().map(async |(_, file)| {
            let synced = self.owner.disk.sync_data(file).await;
            synced.map_err(|source| unsynced(file.path().to_owned(), source))
        });
        try_join_all(syncs).await?;
        if names.is_some() {
            let dir = self.owner.dir();
            let synced = self.owner.disk.sync_dir(&dir).await;
            synced.map_err(|source| unsynced(dir, source))?;
        }
        let mut state = self.state.lock();
        state.synced_sequence = upto;
        for (number, _) in files {
            if let Some(file) = state.files.get_mut(&number)
                && file.last_sequence <= upto
            {
                file.unsynced = false;
            }
        }
        if let Some(names) = names {
            state.names_synced = names;
        }
        Ok(())
    }

    /// Lets what is written from now on begin in a file of its own, and returns its number. Nothing may be on its way.
    pub(super) fn end_epoch(&self) -> u64 {
        let mut state = self.state.lock();
        debug_assert_eq!(state.written_sequence + 1, state.next_sequence);
        state.position_bytes = None;
        state.epoch_first = state.next_number;
        state.epoch_first
    }

    /// Removes the files before one: what is in them is in the base now.
    pub(super) fn remove_before(&self, number: u64) -> Result<()> {
        let old = {
            let mut state = self.state.lock();
            let live = state.files.split_off(&number);
            std::mem::replace(&mut state.files, live)
        };
        old.keys().try_for_each(|number| self.owner.remove(*number))
    }

    /// Where a slot is that is counted from `first_file` on.
    pub(super) fn place(&self, first_file: u64, slot: Slot) -> Result<(File, u64)> {
        let state = self.state.lock();
        let number = first_file + u64::from(slot) / FILE_SLOTS;
        let offset_bytes = u64::from(slot) % FILE_SLOTS * BLOCK;
        match state.files.get(&number) {
            Some(file) => Ok((file.file.clone(), offset_bytes)),
            None => Err(Error::io(
                "read",
                &self.owner.path(number),
                std::io::ErrorKind::NotFound.into(),
            )),
        }
    }

    /// Where its files are.
    pub(super) fn dir(&self) -> PathBuf {
        self.owner.dir()
    }

    /// Whether it has grown to half of its limit, and had better be emptied.
    pub(super) fn is_large(&self) -> bool {
        self.state.lock().len_bytes() >= self.owner.bytes_max / 2
    }

    /// How many bytes its files take.
    pub(super) fn len_bytes(&self) -> u64 {
        self.state.lock().len_bytes()
    }
}

impl State {
    fn len_bytes(&self) -> u64 {
        self.files.values().map(|file| file.len_bytes).sum()
    }
}

/// Not [`Error::Full`], whatever it is: after a failed sync nobody knows what is on the disk.
fn unsynced(path: PathBuf, source: std::io::Error) -> Error {
    Error::Io {
        verb: "sync",
        path,
        source,
    }
}

/// The slot of a block in a file, counted from the first one.
pub(super) fn slot(file: u64, block: u64) -> Slot {
    debug_assert!(file < FILES_MAX && block < FILE_SLOTS);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`FILES_MAX` keeps it below `SLOTS_MAX`"
    )]
    let slot = (file * FILE_SLOTS + block) as u32;
    slot
}

const _: () = assert!(FILES_MAX * FILE_SLOTS < super::map::SLOTS_MAX as u64);
const _: () = assert!(JOURNAL_BYTES_LIMIT / JOURNAL_FILE_BYTES_MAX < FILES_MAX);
const _: () = assert!(JOURNAL_FILE_BYTES_MAX.is_multiple_of(BLOCK));
const _: () = assert!(BATCH_BYTES_MAX + BLOCK <= JOURNAL_FILE_BYTES_MIN);
