//! The state of a writer: its packs, its buffers, and the writes under way.

use std::{
    collections::VecDeque,
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    Error, Result,
    format::{
        Location, PackId, PackKind, PackPhase, PackState,
        pack::{
            FooterEntry, PACK_ALIGN, PACK_HEADER_BYTES, PACK_RECORDS_MAX, PAYLOAD_BYTES_MAX,
            PackHeader, PackNonce, RECORD_HEADER_BYTES, encode_padding, padding_bytes,
        },
    },
    io::{AlignedBuf, BufferPool, Completion, Disk, File},
    limits::{PACK_BUFFER_BYTES, PACK_BUFFERS},
    pack::{EncodedRecord, PackStage},
};

/// Buffers that a record may need beside the current one: padding may run over into one, and a new
/// pack with the record begins in the next.
const BUFFERS_NEEDED: usize = 2;

const _: () = assert!(
    PACK_BUFFERS > BUFFERS_NEEDED,
    "one is current, or nothing is ever written"
);
const _: () = assert!((PACK_BUFFER_BYTES as u64).is_multiple_of(PACK_ALIGN));
const _: () = assert!(
    PACK_BUFFER_BYTES >= PACK_HEADER_BYTES + RECORD_HEADER_BYTES + PAYLOAD_BYTES_MAX as usize
);

/// The reason why nothing is appended.
#[derive(Debug, Clone)]
pub(super) enum Halted {
    /// A write found the disk full. Lasts until the records that are not durable are dropped.
    Full { verb: &'static str, path: PathBuf },
    /// Lasts for good.
    Poisoned { reason: String },
}

/// A pack that is not sealed.
#[derive(Clone)]
pub(super) struct OpenPack {
    pub(super) id: PackId,
    /// The header's nonce. `None` in version 1, to which nothing is added.
    pub(super) nonce: Option<PackNonce>,
    pub(super) file: File,
    /// Its records, for the footer.
    pub(super) entries: Vec<FooterEntry>,
    /// The place of the next record.
    pub(super) end_bytes: u64,
    /// The end of the writes that were begun; later bytes are in the buffer.
    pub(super) begun_bytes: u64,
    /// The durable length, and number of records. If 0, not even its name is durable.
    pub(super) durable_bytes: u64,
    pub(super) durable_records: usize,
    /// True if nothing more is added.
    pub(super) is_full: bool,
}

struct Write {
    pack: PackId,
    completion: Completion<AlignedBuf>,
}

pub(super) struct State {
    generation: u64,
    /// Records appended, over all generations.
    appended: u64,
    halted: Option<Halted>,
    /// Packs without a footer. Records are added to the last; those before are full.
    packs: VecDeque<OpenPack>,
    /// Bytes of the last pack for which no write was begun.
    buffer: Option<AlignedBuf>,
    pool: BufferPool,
    /// Writes under way, in the order in which they were begun.
    writes: VecDeque<Write>,
    writes_begun: u64,
    writes_completed: u64,
}

/// The target of a flush.
#[derive(Debug)]
pub(super) struct Goal {
    pub(super) generation: u64,
    /// Records appended before it.
    pub(super) appended: u64,
    /// Writes begun before it.
    pub(super) writes: u64,
    /// Packs with bytes that are not durable.
    pub(super) targets: Vec<Target>,
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) pack: PackId,
    pub(super) file: File,
    end_bytes: u64,
    records: usize,
    /// True if its name is not durable.
    pub(super) is_new: bool,
}

impl Goal {
    pub(super) fn packs(&self) -> Vec<PackState> {
        self.targets
            .iter()
            .map(|target| PackState {
                pack: target.pack,
                indexed_bytes: target.end_bytes,
                phase: PackPhase::Open,
            })
            .collect()
    }
}

impl State {
    pub(super) fn new(packs: Vec<OpenPack>) -> Self {
        Self {
            generation: 0,
            appended: 0,
            halted: None,
            packs: packs.into(),
            buffer: None,
            pool: BufferPool::new(PACK_BUFFERS, PACK_BUFFER_BYTES),
            writes: VecDeque::with_capacity(PACK_BUFFERS),
            writes_begun: 0,
            writes_completed: 0,
        }
    }

    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) const fn appended(&self) -> u64 {
        self.appended
    }

    /// Number and length of the last pack without a footer.
    pub(super) fn end(&self) -> Option<(u64, u64)> {
        let last = self.packs.back();
        last.map(|pack| (pack.id.number, pack.end_bytes))
    }

    pub(super) const fn halted(&self) -> Option<&Halted> {
        self.halted.as_ref()
    }

    pub(super) const fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    /// Checks that records may be appended.
    pub(super) fn check(&self) -> Result<()> {
        self.check_not_poisoned()?;
        match &self.halted {
            Some(Halted::Full { verb, path }) => Err(Error::Full {
                verb,
                path: path.clone(),
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn check_not_poisoned(&self) -> Result<()> {
        match &self.halted {
            Some(Halted::Poisoned { reason }) => Err(Error::Poisoned {
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks that a generation may still append records.
    pub(super) fn check_generation(&self, generation: u64) -> Result<()> {
        self.check()?;
        if self.generation == generation {
            return Ok(());
        }
        Err(Error::Dropped)
    }

    /// Stops all appends. The first reason stays.
    pub(super) fn poison(&mut self, reason: &str) {
        if !matches!(self.halted, Some(Halted::Poisoned { .. })) {
            tracing::error!(reason, "packs are not written any more");
            self.halted = Some(Halted::Poisoned {
                reason: reason.to_owned(),
            });
        }
    }

    /// Returns true if there are buffers for any one record, or for padding.
    pub(super) fn has_room(&self) -> bool {
        self.pool.available() >= BUFFERS_NEEDED
    }

    /// Adds a record to the current pack, or to a new one. There must be [room](Self::has_room).
    pub(super) fn place(
        &mut self,
        stage: &dyn PackStage,
        kind: PackKind,
        record: &EncodedRecord,
    ) -> Result<Location> {
        debug_assert!(self.has_room());
        let payload = *record.payload();
        let record_bytes = record.record_bytes();
        let fits = self.packs.back().is_some_and(|pack| {
            let one_more = pack.end_bytes + record_bytes <= stage.pack_bytes_max();
            !pack.is_full
                && pack.entries.len() < PACK_RECORDS_MAX as usize
                && (one_more || pack.entries.is_empty())
        });
        if !fits {
            self.begin_pack(stage, kind)?;
        }
        let Some(pack) = self.packs.back_mut() else {
            unreachable!("a pack was begun");
        };
        let location = Location {
            pack: pack.id,
            offset_bytes: pack.end_bytes,
            payload,
        };
        pack.entries.push(FooterEntry {
            id: record.header().id,
            offset_bytes: pack.end_bytes,
            payload,
        });
        let header = record.header().encode(location.offset_bytes);
        let disk = stage.disk();
        self.put(disk, &header);
        self.put(disk, record.payload_bytes());
        let written = RECORD_HEADER_BYTES as u64 + u64::from(payload.stored_bytes);
        self.put_zeros(disk, record_bytes - written);
        self.appended += 1;
        Ok(location)
    }

    /// Ends the current pack, if there is one, and begins the next.
    fn begin_pack(&mut self, stage: &dyn PackStage, kind: PackKind) -> Result<()> {
        let id = stage.reserve(kind);
        let mut nonce = PackNonce::default();
        getrandom::fill(&mut nonce).map_err(|error| Error::Io {
            verb: "get random bytes for",
            path: stage.path(id),
            source: std::io::Error::other(error),
        })?;
        let file = stage.create(id)?;
        self.pad(stage.disk());
        if let Some(pack) = self.packs.back_mut() {
            pack.is_full = true;
        }
        self.packs.push_back(OpenPack {
            id,
            nonce: Some(nonce),
            file,
            entries: Vec::new(),
            end_bytes: 0,
            begun_bytes: 0,
            durable_bytes: 0,
            durable_records: 0,
            is_full: false,
        });
        let header = PackHeader {
            pack: id,
            store: stage.store_id(),
            created_unix_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            nonce: Some(nonce),
        };
        self.put(stage.disk(), &header.encode());
        Ok(())
    }

    /// Pads up to an offset where a write may end, and begins the write.
    fn pad(&mut self, disk: &Arc<dyn Disk>) {
        let Some(pack) = self.packs.back() else {
            return;
        };
        let padding = padding_bytes(pack.end_bytes);
        if padding > 0 {
            let header = encode_padding(pack.end_bytes);
            self.put(disk, &header);
            self.put_zeros(disk, u64::from(padding) - header.len() as u64);
        }
        self.begin_write(disk);
    }

    fn put(&mut self, disk: &Arc<dyn Disk>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let buffer = self.current_buffer();
            let (now, rest) = bytes.split_at(bytes.len().min(buffer.room()));
            buffer.extend_from_slice(now);
            self.added(disk, now.len());
            bytes = rest;
        }
    }

    fn put_zeros(&mut self, disk: &Arc<dyn Disk>, count: u64) {
        let mut count = usize::try_from(count).unwrap_or(usize::MAX);
        while count > 0 {
            let buffer = self.current_buffer();
            let now = count.min(buffer.room());
            buffer.extend_zeros(now);
            self.added(disk, now);
            count -= now;
        }
    }

    fn current_buffer(&mut self) -> &mut AlignedBuf {
        let pool = &mut self.pool;
        self.buffer.get_or_insert_with(|| match pool.take() {
            Some(buffer) => buffer,
            // `BUFFERS_NEEDED` were there, and by the sizes above no record takes more.
            None => unreachable!("room was checked"),
        })
    }

    fn added(&mut self, disk: &Arc<dyn Disk>, count: usize) {
        if let Some(pack) = self.packs.back_mut() {
            pack.end_bytes += count as u64;
        }
        if self
            .buffer
            .as_ref()
            .is_some_and(|buffer| buffer.room() == 0)
        {
            self.begin_write(disk);
        }
    }

    fn begin_write(&mut self, disk: &Arc<dyn Disk>) {
        let (Some(pack), Some(buffer)) = (self.packs.back_mut(), self.buffer.take()) else {
            return;
        };
        debug_assert!(!buffer.is_empty() && (buffer.len() as u64).is_multiple_of(PACK_ALIGN));
        debug_assert_eq!(pack.begun_bytes + buffer.len() as u64, pack.end_bytes);
        debug_assert!(
            pack.begun_bytes >= pack.durable_bytes,
            "durable bytes are not written again"
        );
        let offset_bytes = pack.begun_bytes;
        pack.begun_bytes = pack.end_bytes;
        self.writes.push_back(Write {
            pack: pack.id,
            completion: disk.write(&pack.file, offset_bytes, buffer),
        });
        self.writes_begun += 1;
    }

    /// Handles the completion of the oldest write, once it is there. False: none is under way.
    pub(super) fn poll_oldest(
        &mut self,
        stage: &dyn PackStage,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        let Some(write) = self.writes.front_mut() else {
            return Poll::Ready(false);
        };
        let Poll::Ready(result) = Pin::new(&mut write.completion).poll(context) else {
            return Poll::Pending;
        };
        let pack = write.pack;
        self.writes.pop_front();
        self.writes_completed += 1;
        match result {
            Ok(buffer) => self.pool.give_back(buffer),
            Err(source) => {
                self.pool.replace_lost();
                match Error::io("write", &stage.path(pack), source) {
                    Error::Full { verb, path } => {
                        // A poisoned writer stays poisoned.
                        self.halted.get_or_insert(Halted::Full { verb, path });
                    }
                    error => self.poison(&error.to_string()),
                }
            }
        }
        Poll::Ready(true)
    }

    pub(super) const fn has_completed(&self, writes: u64) -> bool {
        self.writes_completed >= writes
    }

    /// Returns true if no write is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Begins the write of everything appended so far. There must be [room](Self::has_room).
    pub(super) fn begin_flush(&mut self, disk: &Arc<dyn Disk>) -> Goal {
        self.pad(disk);
        let unsynced = self
            .packs
            .iter()
            .filter(|pack| pack.durable_bytes < pack.end_bytes);
        let targets = unsynced.map(|pack| Target {
            pack: pack.id,
            file: pack.file.clone(),
            end_bytes: pack.end_bytes,
            records: pack.entries.len(),
            is_new: pack.durable_bytes == 0,
        });
        Goal {
            generation: self.generation,
            appended: self.appended,
            writes: self.writes_begun,
            targets: targets.collect(),
        }
    }

    /// Notes that everything before the flush is durable.
    pub(super) fn end_flush(&mut self, goal: &Goal) {
        debug_assert_eq!(
            goal.generation, self.generation,
            "only the flush in turn ends a generation"
        );
        for target in &goal.targets {
            if let Some(pack) = self.packs.iter_mut().find(|pack| pack.id == target.pack) {
                pack.durable_bytes = target.end_bytes;
                pack.durable_records = target.records;
            }
        }
    }

    /// Ends the last pack, if it has at least `bytes`.
    pub(super) fn end_pack_from(&mut self, bytes: u64) {
        if let Some(pack) = self.packs.back_mut() {
            pack.is_full |= pack.end_bytes >= bytes;
        }
    }

    /// Ends a pack, if it is the last.
    pub(super) fn end_pack(&mut self, id: PackId) {
        if let Some(pack) = self.packs.back_mut() {
            pack.is_full |= pack.id == id;
        }
    }

    /// A pack that is full and durable, and has no footer.
    pub(super) fn to_seal(&self) -> Option<OpenPack> {
        self.packs
            .iter()
            .find(|pack| pack.is_full && pack.durable_bytes == pack.end_bytes)
            .cloned()
    }

    /// The lowest number of the packs without a footer.
    pub(super) fn lowest_unsealed(&self) -> Option<u64> {
        self.packs.iter().map(|pack| pack.id.number).min()
    }

    /// Notes that a pack has its footer now.
    pub(super) fn sealed(&mut self, id: PackId) {
        self.packs.retain(|pack| pack.id != id);
    }

    /// The parts that are not durable: packs to truncate, with their new lengths, and packs that
    /// are not durable at all.
    pub(super) fn unsynced(&self) -> (Vec<(OpenPack, u64)>, Vec<PackId>) {
        let unsynced = self
            .packs
            .iter()
            .filter(|pack| pack.durable_bytes < pack.end_bytes);
        let (begun, new): (Vec<_>, Vec<_>) = unsynced.partition(|pack| pack.durable_bytes > 0);
        (
            begun
                .into_iter()
                .map(|pack| (pack.clone(), pack.durable_bytes))
                .collect(),
            new.into_iter().map(|pack| pack.id).collect(),
        )
    }

    /// Notes that a pack without durable bytes is gone.
    pub(super) fn removed(&mut self, id: PackId) {
        self.packs.retain(|pack| pack.id != id);
    }

    /// Notes that the disk holds only durable data: appending continues from there, in a new
    /// generation.
    pub(super) fn go_back(&mut self) {
        debug_assert!(self.writes.is_empty());
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
        for pack in self
            .packs
            .iter_mut()
            .filter(|pack| pack.durable_bytes < pack.end_bytes)
        {
            // If it was full, everything behind it is gone.
            pack.is_full = false;
            pack.end_bytes = pack.durable_bytes;
            pack.begun_bytes = pack.durable_bytes;
            pack.entries.truncate(pack.durable_records);
        }
        self.generation += 1;
        self.halted = None;
    }

    pub(super) fn free_buffers(&mut self) {
        self.pool.shrink();
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("generation", &self.generation)
            .field("appended", &self.appended)
            .field("halted", &self.halted)
            .field("packs", &self.packs)
            .field("writes", &self.writes.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OpenPack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenPack")
            .field("id", &self.id)
            .field("records", &self.entries.len())
            .field("end_bytes", &self.end_bytes)
            .field("durable_bytes", &self.durable_bytes)
            .finish_non_exhaustive()
    }
}
