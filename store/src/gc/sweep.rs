//! The sweep: condemned packs are emptied, and their files removed.
//!
//! | step | what | a crash after it leaves |
//! | --- | --- | --- |
//! | 1 | live records are appended to packs of survivors | their copies, which nothing points to |
//! | 2 | these packs are synced | the same |
//! | 3 | one synced change of the index: rows of live records move, those of dead ones go, the packs are emptied | files of emptied packs, which the next start removes |
//! | 4 | the files are removed | states of packs without a file, which the next start forgets |
//! | 5 | the states of the packs go | nothing |
//!
//! The footer of a pack lists its records. If the footer is damaged, the whole index is searched
//! for rows that point into the pack. A file without the header of the pack may be another one,
//! with other content: it stays.
//!
//! Rows are moved and removed by comparing: a row that points elsewhere by now stays. Stored bytes
//! are carried as they are: their checksums and their names are checked, and nothing is unpacked. A
//! live record that cannot be read keeps its pack where it is, whether its bytes are others than
//! were written or the disk gives none. The run goes on with other packs: it would end each run.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, ErrorKind},
    ops::ControlFlow,
    sync::Arc,
};

use super::{look::look, pace::Pace};
use crate::{
    Damage, Error, Result,
    engine::{Engine, Moving, Priority},
    failpoints::{Failpoint, reach},
    format::{Location, Name, PackId, PackKind, PackPhase, PackState},
    meta::Batch,
    pack::{
        Appended, EncodedRecord, PackReader, PackScanner, PackWriter, PlacedRecord, ReadError,
        plan_spans,
    },
};

/// Names looked up at a time.
const NAMES_AT_A_TIME: usize = 4096;
/// Rows that one batch changes, at most.
const BATCH_ROWS: usize = 8192;
/// Copied bytes, and emptied packs, after which rows are moved.
const GROUP_BYTES: u64 = 32 << 20;
const GROUP_PACKS: usize = 64;

/// Empties packs.
pub(crate) struct Sweep {
    engine: Arc<Engine>,
    packs: PackReader,
    chunks: Survivors,
    nodes: Survivors,
    group: Group,
    /// Held until no more rows are moved.
    _moving: Moving,
    /// Removed packs whose states are still in the index.
    removed: Vec<PackId>,
    /// The packs of survivors.
    written: BTreeSet<PackId>,
    pub(crate) report: Swept,
}

/// The outcome of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Packs that were removed.
    pub(crate) packs: u64,
    /// The bytes of their files.
    pub(crate) removed_bytes: u64,
    /// Bytes of live records that were copied to other packs.
    pub(crate) copied_bytes: u64,
    /// Bytes of the files of these packs, once they are sealed.
    pub(crate) written_bytes: u64,
    /// Damage that keeps a pack where it is.
    pub(crate) kept: Vec<Damage>,
}

/// Live records of one kind, on their way to another pack.
struct Survivors {
    kind: PackKind,
    /// Made when the first is copied.
    writer: Option<PackWriter>,
    appended: Option<Appended>,
}

/// Packs whose rows are changed together.
#[derive(Default)]
struct Group {
    packs: Vec<Emptied>,
    copied_bytes: u64,
    /// The packs that live records come from.
    moves: HashMap<Name, PackId>,
    /// Dead records with a row.
    removes: Vec<(Name, PackId)>,
}

struct Emptied {
    pack: PackId,
    file_bytes: u64,
}

/// The records of one pack that have a row.
#[derive(Default)]
struct Rows {
    live: Vec<(Name, Location)>,
    dead: Vec<Name>,
}

impl Survivors {
    const fn new(kind: PackKind) -> Self {
        Self {
            kind,
            writer: None,
            appended: None,
        }
    }

    async fn append(&mut self, engine: &Engine, records: Vec<EncodedRecord>) -> Result<()> {
        let writer = match &self.writer {
            Some(writer) => writer,
            None => {
                let stage = Arc::clone(&engine.stage);
                let (writer, _) = PackWriter::resume(stage, self.kind, Vec::new()).await?;
                self.writer.insert(writer)
            }
        };
        let appended = writer.append(records).await?;
        match &mut self.appended {
            Some(all) => all.join(appended),
            None => self.appended = Some(appended),
        }
        Ok(())
    }
}

impl Sweep {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self {
            packs: engine.packs.past_cache(),
            chunks: Survivors::new(PackKind::Chunks),
            nodes: Survivors::new(PackKind::Nodes),
            group: Group::default(),
            removed: Vec::new(),
            written: BTreeSet::new(),
            report: Swept::default(),
            _moving: engine.reliance.move_into(engine.stage.next_number()),
            engine,
        }
    }

    /// Empties a condemned pack; its file goes with its group. `is_live` returns true for every
    /// record in it that a root reaches.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::Shortage`], and errors of reading and of making a pack end the
    /// run, and the store goes on. After a failed write or sync the store writes nothing more.
    pub(crate) async fn empty(
        &mut self,
        pack: PackId,
        is_live: &(dyn Fn(&Name, &Location) -> bool + Sync),
        pace: &Pace,
    ) -> Result<()> {
        let done = self.try_empty(pack, is_live, pace).await;
        self.engine.commit.packed(done)
    }

    async fn try_empty(
        &mut self,
        pack: PackId,
        is_live: &(dyn Fn(&Name, &Location) -> bool + Sync),
        pace: &Pace,
    ) -> Result<()> {
        let store = Arc::clone(self.packs.store());
        let path = store.path(pack);
        let len_bytes = store.len_bytes(pack).await;
        let len_bytes = len_bytes.map_err(|source| Error::io("open", &path, source));
        let opened = match len_bytes {
            Ok(len_bytes) => PackScanner::open(&*store, pack)
                .await
                .map(|it| (len_bytes, it)),
            Err(error) => Err(error),
        };
        let (file_bytes, scanner) = match opened {
            Err(Error::Io { source, .. }) => {
                self.keep(unreadable(pack, 0, "pack", &source));
                return Ok(());
            }
            opened => opened?,
        };
        let listed = scanner.footer().map(|footer| {
            let entries = footer.iter();
            let listed = entries.map(|entry| (entry.name(), entry.offset_bytes));
            listed.collect::<Vec<_>>()
        });
        let is_its_own = scanner.has_header();
        drop(scanner);
        let names = match listed {
            Some(names) => names,
            None if is_its_own => indexed(&self.engine, pack).await?,
            None => {
                let why = "neither header nor footer is that of this pack, so it is not emptied";
                self.keep(Damage::in_pack(pack, 0, "header", why));
                return Ok(());
            }
        };
        let rows = self.rows(pack, names, is_live).await?;
        let (copied, damage) = self.copy(&rows.live, pace).await?;
        let moves = copied.into_iter().map(|name| (name, pack));
        self.group.moves.extend(moves);
        let is_emptied = damage.is_none();
        if let Some(damage) = damage {
            self.keep(damage);
        }
        if is_emptied {
            let removes = rows.dead.into_iter().map(|name| (name, pack));
            self.group.removes.extend(removes);
            self.group.packs.push(Emptied { pack, file_bytes });
        }
        let rows = self.group.moves.len() + self.group.removes.len();
        if self.group.copied_bytes >= GROUP_BYTES
            || self.group.packs.len() >= GROUP_PACKS
            || rows >= BATCH_ROWS
        {
            self.end_group().await?;
        }
        Ok(())
    }

    /// The rows that point into a pack.
    async fn rows(
        &self,
        pack: PackId,
        names: Vec<(Name, u64)>,
        is_live: &(dyn Fn(&Name, &Location) -> bool + Sync),
    ) -> Result<Rows> {
        let mut rows = Rows::default();
        for some in names.chunks(NAMES_AT_A_TIME) {
            let asked: Vec<_> = some.iter().map(|(name, _)| *name).collect();
            let ask = move |meta: &dyn crate::meta::Meta| meta.lookup(&asked);
            let places = self.engine.meta(Priority::Write, ask).await?;
            for ((name, offset_bytes), place) in some.iter().zip(places) {
                // A pack may have two copies of a record, and only one has the row.
                let Some(place) =
                    place.filter(|place| place.pack == pack && place.offset_bytes == *offset_bytes)
                else {
                    continue;
                };
                match is_live(name, &place) {
                    true => rows.live.push((*name, place)),
                    false => rows.dead.push(*name),
                }
            }
        }
        Ok(rows)
    }

    /// Copies live records, as they are stored. Returns the names of the copied records, and the
    /// damage of others. The copies get their rows also if the pack stays: the next run would make
    /// them again.
    async fn copy(
        &mut self,
        live: &[(Name, Location)],
        pace: &Pace,
    ) -> Result<(Vec<Name>, Option<Damage>)> {
        let places: Vec<_> = live.iter().map(|(_, place)| *place).collect();
        let mut copied = Vec::with_capacity(live.len());
        let mut damage = None;
        for span in plan_spans(&places) {
            pace.spend(2 * span.len_bytes as u64).await;
            let read = match self.packs.read_span(&span).await {
                Ok(read) => read,
                // A failing disk may take as long for each of the other spans.
                Err(ReadError::Other(Error::Io { source, .. })) => {
                    let unread = unreadable(span.pack, span.offset_bytes, "records", &source);
                    self.note(&mut damage, unread);
                    break;
                }
                Err(ReadError::Other(Error::Damaged(found))) => {
                    self.note(&mut damage, found);
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let mut records = Vec::with_capacity(span.members.len());
            let mut bytes = 0;
            for (name, place) in span.members.iter().filter_map(|at| live.get(*at)) {
                match read.record(place, *name) {
                    Ok(record) => {
                        records.push(EncodedRecord::stored(&record));
                        copied.push(*name);
                        bytes += place.payload.record_bytes();
                    }
                    Err(Error::Damaged(found)) => self.note(&mut damage, found),
                    Err(error) => return Err(error),
                }
            }
            if records.is_empty() {
                continue;
            }
            let survivors = match span.pack.kind {
                PackKind::Chunks => &mut self.chunks,
                PackKind::Nodes => &mut self.nodes,
            };
            survivors.append(&self.engine, records).await?;
            self.group.copied_bytes += bytes;
            self.report.copied_bytes += bytes;
        }
        Ok((copied, damage))
    }

    /// Notes damage that a pack has, and keeps the first.
    fn note(&self, first: &mut Option<Damage>, found: Damage) {
        self.engine.note_damage(&found);
        first.get_or_insert(found);
    }

    /// Does steps 2 to 4 for the packs that were emptied so far.
    pub(crate) async fn end_group(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        let done = self.try_end(group).await;
        self.engine.commit.packed(done)
    }

    async fn try_end(&mut self, group: Group) -> Result<()> {
        reach(Failpoint::GcSurvivorsAppended);
        let mut states: Vec<PackState> = Vec::new();
        let mut placed = Vec::new();
        for survivors in [&mut self.chunks, &mut self.nodes] {
            let (Some(writer), Some(appended)) = (&survivors.writer, survivors.appended.take())
            else {
                continue;
            };
            let flushed = writer.flush().await?;
            states.extend(flushed.packs());
            self.written
                .extend(flushed.packs().iter().map(|it| it.pack));
            placed.extend(flushed.settle(appended).map_err(Error::from)?);
        }
        if group.packs.is_empty() && states.is_empty() {
            return Ok(());
        }
        reach(Failpoint::GcSurvivorsSynced);
        let mut batches = row_changes(&group, placed);
        let mut last = batches.pop().unwrap_or_default();
        last.packs(&states);
        let emptied = group.packs.iter().map(|emptied| PackState {
            pack: emptied.pack,
            indexed_bytes: 0,
            phase: PackPhase::Emptied,
        });
        last.packs(&emptied.collect::<Vec<_>>());
        for pack in &self.removed {
            last.forget_pack(*pack);
        }
        batches.push(last);
        self.engine.commit.relocate(batches).await?;
        self.removed.clear();
        reach(Failpoint::GcMoved);
        self.remove(group.packs).await;
        Ok(())
    }

    /// Removes the files of emptied packs. A file that cannot be removed goes at the next start.
    async fn remove(&mut self, emptied: Vec<Emptied>) {
        let store = Arc::clone(self.packs.store());
        let mut gone = Vec::with_capacity(emptied.len());
        for Emptied { pack, file_bytes } in emptied {
            match store.delete(pack).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let path = store.path(pack);
                    tracing::warn!(path = %path.display(), %error, "an emptied pack was not removed");
                    let why = format!("it is emptied, and cannot be removed: {error}");
                    self.report.kept.push(Damage::in_pack(pack, 0, "pack", why));
                    continue;
                }
            }
            self.report.packs += 1;
            self.report.removed_bytes += file_bytes;
            self.engine.lost.write().forget(pack);
            gone.push(pack);
        }
        reach(Failpoint::GcUnlinked);
        // No row points there any more, whether or not the file is gone.
        self.engine.reliance.removed(&gone);
        match self.engine.stage.sync_names().await {
            Ok(()) => self.removed.extend(gone),
            Err(error) => tracing::warn!(%error, "the removal of emptied packs is not durable yet"),
        }
    }

    /// Ends the last group, seals the packs of survivors, and forgets the packs that are gone.
    pub(crate) async fn finish(mut self) -> Result<Swept> {
        self.end_group().await?;
        let done = self.try_finish().await;
        self.engine.commit.packed(done)?;
        for pack in self.written {
            self.report.written_bytes += file_bytes(&self.engine, pack).await?;
        }
        Ok(self.report)
    }

    async fn try_finish(&self) -> Result<()> {
        let mut last = Batch::default();
        for survivors in [&self.chunks, &self.nodes] {
            if let Some(writer) = &survivors.writer {
                last.packs(writer.finish().await?.packs());
            }
        }
        for pack in &self.removed {
            last.forget_pack(*pack);
        }
        if last.is_empty() {
            return Ok(());
        }
        self.engine.commit.relocate(vec![last]).await
    }

    fn keep(&mut self, damage: Damage) {
        tracing::error!(%damage, "a pack with damage stays as it is");
        self.report.kept.push(damage);
    }
}

/// The length of the file of a pack.
pub(super) async fn file_bytes(engine: &Engine, pack: PackId) -> Result<u64> {
    let store = engine.packs.store();
    let len_bytes = store.len_bytes(pack).await;
    len_bytes.map_err(|source| Error::io("read the length of", &store.path(pack), source))
}

/// The records of a pack that have a row, and their offsets. The index gets no further rows into a
/// condemned pack.
async fn indexed(engine: &Arc<Engine>, pack: PackId) -> Result<Vec<(Name, u64)>> {
    tracing::warn!(%pack, "the footer cannot be read: the index says what the pack has");
    look(engine, move |view, wanted| {
        let mut names = Vec::new();
        let mut row = |name, place: Location| {
            if place.pack == pack {
                names.push((name, place.offset_bytes));
            }
            ControlFlow::Continue(())
        };
        wanted.scan(view, pack.kind, &[0; 32], &mut row)?;
        Ok(names)
    })
    .await
}

/// The disk's refusal to read. Counts as damage of one pack, for it says nothing about others.
fn unreadable(pack: PackId, offset_bytes: u64, what: &str, source: &io::Error) -> Damage {
    Damage::in_pack(
        pack,
        offset_bytes,
        what,
        format!("it cannot be read: {source}"),
    )
}

/// The changes of rows, in batches.
fn row_changes(group: &Group, placed: Vec<PlacedRecord>) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    let mut count = |batch: &mut Batch| {
        if batch.len() >= BATCH_ROWS {
            batches.push(std::mem::take(batch));
        }
    };
    for record in placed {
        // Records of a pack that is kept after all are copies without a row.
        if let Some(from) = group.moves.get(&record.name) {
            batch.move_from(record.name, *from, record.location);
            count(&mut batch);
        }
    }
    for (name, from) in &group.removes {
        batch.remove_from(*name, *from);
        count(&mut batch);
    }
    batches.push(batch);
    batches
}
