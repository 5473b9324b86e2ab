//! Importing an archive as a snapshot.

use std::{
    collections::BTreeMap,
    fmt,
    io::Read,
    thread,
    time::{Duration, Instant},
};

use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use tokio::{sync::mpsc, task};
use varve_content::{
    block::BLOCK_BYTES,
    chunk_id::ChunkId,
    chunker::CHUNKER_VERSION,
    tree::{Leaf, NodeId},
};
use varve_proto::v1;

use super::{
    ArchiveFacts, check_chunks,
    read::{Group, GroupLeaf, Reader},
};
use crate::{
    cancel::{Completing, NOTHING_VISIBLE, unless_cancelled, until_completing},
    connect::Client,
    control::Control,
    convert::timestamp,
    error::{Error, ErrorKind, Result},
    limits::{ARCHIVE_GROUPS, FETCH_NODES_MAX},
    progress::Progress,
    snapshots::Snapshot,
    upload::{LeafBatch, Sent, Session},
};

/// The outcome of importing an archive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ArchiveImportReport {
    /// The snapshot that was made.
    pub snapshot: Snapshot,
    /// The contents of the archive.
    pub archive: ArchiveFacts,
    /// Chunks that the store lacked, and were sent.
    pub sent_chunks: u64,
    /// Payload of those chunks, in bytes.
    pub sent_bytes: u64,
    /// Time from the first byte to the commit.
    pub elapsed: Duration,
}

/// An import of an archive: see [`Client::import_archive`].
#[must_use = "an archive is not read until this is run"]
pub struct ArchiveImport<'a> {
    client: &'a Client,
    name: Option<String>,
    tags: BTreeMap<String, String>,
    control: Control,
}

impl Client {
    /// Prepares the import of an archive as a snapshot.
    ///
    /// Sends only chunks that the store lacks. Nothing is visible before the whole archive was read
    /// and verified. The daemon keeps chunks that have arrived: another import does not send them
    /// again.
    pub fn import_archive(&self) -> ArchiveImport<'_> {
        ArchiveImport {
            client: self,
            name: None,
            tags: BTreeMap::new(),
            control: Control::default(),
        }
    }
}

impl ArchiveImport<'_> {
    /// A name for the snapshot. The default is its name in the archive.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Tags for the snapshot, in addition to those that it has in the archive.
    pub fn tags(mut self, tags: BTreeMap<String, String>) -> Self {
        self.tags = tags;
        self
    }

    /// Sets the control of the import. Its progress counts bytes of data, without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Imports the archive from the reader `from`. Errors call it `file`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] if the archive is damaged, [`ErrorKind::File`] if it cannot be read,
    /// [`ErrorKind::NotFound`] if the store does not have its base, [`ErrorKind::AlreadyExists`] if
    /// the name is taken, [`ErrorKind::OutOfSpace`], [`ErrorKind::Cancelled`]; errors of the
    /// connection. Nothing is visible then.
    pub async fn run(
        self,
        from: impl Read + Send + 'static,
        file: &str,
    ) -> Result<ArchiveImportReport> {
        let Self {
            client,
            name,
            tags,
            control: Control { progress, cancel },
        } = self;
        let started = Instant::now();
        let what = format!("import {file}");
        let beginning = Box::pin(async {
            let mut parts = Parts::start(from, file.to_owned())?;
            let facts = parts.head().await?;
            let name = name.unwrap_or_else(|| facts.snapshot.name.clone());
            let what = format!("import {file} as {name}");
            let base_here = base_here(client, &facts, &what).await?;
            let base_of: Vec<_> = base_here.iter().map(|base| base.id.clone()).collect();
            let request = request(&facts.snapshot, name, tags, base_here);
            Ok((parts, facts, what, base_of, request))
        });
        let begun = unless_cancelled(&what, NOTHING_VISIBLE, &cancel, beginning);
        let (mut parts, facts, what, base_of, request) = begun.await?;
        progress.set_total(facts.snapshot.data_bytes);
        let begin = Session::begin_unless_cancelled(client, request, what.clone(), &cancel);
        let session = begin.await?;

        let completing = Completing::default();
        let importing = Box::pin(async {
            let sending = Sending {
                client,
                session: &session,
                file,
                facts: &facts,
                base_of,
            };
            let sent = sending.run(&mut parts, &progress).await?;
            let archive = parts.ended()?;
            let root = archive.snapshot.root;
            let root = root.ok_or_else(|| Error::internal(&what, "an archive without a root"))?;
            completing.begin();
            Ok(ArchiveImportReport {
                snapshot: session.commit(root).await?,
                archive,
                sent_chunks: sent.chunks,
                sent_bytes: sent.payload_bytes,
                elapsed: started.elapsed(),
            })
        });
        let imported = until_completing(&what, NOTHING_VISIBLE, &completing, &cancel, importing);
        let imported = imported.await;
        if let Err(error) = &imported
            && error.kind() != ErrorKind::Unreachable
        {
            session.abort().await;
        }
        imported
    }
}

impl fmt::Debug for ArchiveImport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveImport")
            .field("name", &self.name)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

/// The upload for an archive.
fn request(
    snapshot: &Snapshot,
    name: String,
    tags: BTreeMap<String, String>,
    base_here: Option<BaseHere>,
) -> v1::BeginUploadRequest {
    let parent = base_here.as_ref().filter(|base| base.is_parent);
    let parent = parent.map(|base| base.id.clone());
    let mut all_tags = snapshot.tags.clone();
    all_tags.extend(tags);
    v1::BeginUploadRequest {
        name,
        size_bytes: snapshot.size_bytes,
        chunker: Some(v1::ChunkerParameters {
            version: CHUNKER_VERSION,
        }),
        tags: all_tags,
        lineage: Some(lineage(snapshot, parent)),
        keep_packed: true,
        base: base_here.map(|base| base.id).unwrap_or_default(),
    }
}

/// The base of an archive in this store.
struct BaseHere {
    id: String,
    /// It is the snapshot before the archive's.
    is_parent: bool,
}

/// Checks that the store has the base of an archive. Returns the snapshot with its content, if it
/// has the name of the base.
async fn base_here(client: &Client, facts: &ArchiveFacts, what: &str) -> Result<Option<BaseHere>> {
    let Some(base) = &facts.base else {
        return Ok(None);
    };
    let root = base.root;
    let root = root.ok_or_else(|| Error::internal(what, "a base without a root"))?;
    match client.snapshot(&base.name).await {
        Ok(here) if here.root == base.root => {
            return Ok(Some(BaseHere {
                id: here.id,
                is_parent: facts.snapshot.parent.as_ref() == Some(&base.id),
            }));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The administrator finds content under any name. An account has to name its snapshot.
    match client.fetch_root(&[], root).await {
        Ok(_) => Ok(None),
        Err(error) if [ErrorKind::NotFound, ErrorKind::Invalid].contains(&error.kind()) => {
            let why = format!(
                "it is the difference of {} to {}, and the store has no snapshot with the content \
                 of that base (root {root}): import the base first",
                facts.snapshot.name, base.name
            );
            Err(Error::new(ErrorKind::NotFound, what, why))
        }
        Err(error) => Err(error),
    }
}

/// Leaves whose chunks the daemon has, with their segments, and the bytes sent for them.
type Accepted = (Vec<(u32, Leaf)>, Sent);

/// The leaves and chunks of an archive on their way to the daemon.
struct Sending<'a> {
    client: &'a Client,
    session: &'a Session,
    file: &'a str,
    facts: &'a ArchiveFacts,
    /// The base, for requests.
    base_of: Vec<String>,
}

impl Sending<'_> {
    /// Sends missing chunks.
    async fn run(&self, parts: &mut Parts, progress: &Progress) -> Result<Sent> {
        let mut total = Sent::default();
        let mut waiting = LeafBatch::default();
        let mut accepted = self.all_accepted(parts);
        while let Some((leaves, sent)) = accepted.try_next().await? {
            total.chunks += sent.chunks;
            total.payload_bytes += sent.payload_bytes;
            for (segment, leaf) in leaves {
                progress.add_done(u64::from(leaf.data_blocks()) * BLOCK_BYTES as u64);
                waiting.push(segment, &leaf);
            }
            if let Some(full) = waiting.take_full() {
                self.put(full).await?;
            }
        }
        drop(accepted);
        let rest = waiting.rest();
        if !rest.is_empty() {
            self.put(rest).await?;
        }
        Ok(total)
    }

    /// All leaves in order. Each is returned when the daemon has its chunks, and those of all
    /// leaves before it.
    fn all_accepted<'b>(&'b self, parts: &'b mut Parts) -> BoxStream<'b, Result<Accepted>> {
        stream::try_unfold(parts, |parts| async move {
            let leaves = parts.leaves().await?;
            Ok(leaves.map(|leaves| (leaves, parts)))
        })
        .map_ok(|leaves| self.send(leaves))
        .try_buffered(ARCHIVE_GROUPS)
        .boxed()
    }

    async fn put(&self, leaves: Vec<v1::Leaf>) -> Result<()> {
        let put = self.session.put_leaves(leaves).await;
        put.map_err(|error| match (&self.facts.base, error.kind()) {
            (Some(base), ErrorKind::Invalid) => {
                let why = format!(
                    "{}; {} is not complete in the store: copy or import it again",
                    error.why(),
                    base.name
                );
                Error::new(ErrorKind::Conflict, error.what(), why)
            }
            _ => error,
        })
    }

    /// Sends those chunks of some leaves that the daemon lacks.
    async fn send(&self, leaves: Leaves) -> Result<Accepted> {
        match leaves {
            Leaves::Given {
                segment,
                leaf,
                ids,
                chunks,
                offset_bytes,
            } => {
                let sent = match self.session.send_packed(&ids, chunks.clone()).await {
                    Err(error) if error.kind() == ErrorKind::Invalid => {
                        // The daemon names the chunk, but not its place in the file.
                        let file = self.file.to_owned();
                        let checked = task::spawn_blocking(move || {
                            check_chunks(&file, offset_bytes, &ids, &chunks)
                        });
                        let broke = |error| {
                            Error::internal(&self.session.what, "a checking thread broke")
                                .with_source(error)
                        };
                        checked.await.map_err(broke)??;
                        return Err(error);
                    }
                    sent => sent?,
                };
                Ok((vec![(segment, leaf)], sent))
            }
            Leaves::Known(known) => {
                let fetched = self.client.fetch_leaves(&self.base_of, &known).await?;
                let segments = known.into_iter().map(|(segment, _)| segment);
                let leaves = segments.zip(fetched.into_iter().map(|fetched| fetched.leaf));
                Ok((leaves.collect(), Sent::default()))
            }
        }
    }
}

fn lineage(snapshot: &Snapshot, base_here: Option<String>) -> v1::SnapshotLineage {
    let volume = snapshot.volume.as_ref();
    let volume = volume.map(|volume| (volume.id.clone(), volume.name.clone()));
    let (volume_id, volume_name) = volume.unwrap_or_default();
    v1::SnapshotLineage {
        created_at: Some(timestamp(snapshot.created_at)),
        volume_id,
        volume_name,
        parent: base_here
            .or_else(|| snapshot.parent.clone())
            .unwrap_or_default(),
    }
}

/// A leaf on its way.
#[derive(Debug)]
enum Leaves {
    /// A leaf of the archive, with the chunks that follow it there.
    Given {
        segment: u32,
        leaf: Leaf,
        ids: Vec<ChunkId>,
        chunks: Vec<v1::Chunk>,
        /// Its offset in the file.
        offset_bytes: u64,
    },
    /// Leaves of the base.
    Known(Vec<(u32, NodeId)>),
}

/// A message of the reading thread.
#[derive(Debug)]
enum Part {
    Head(ArchiveFacts),
    Leaves(Leaves),
    /// The archive was whole.
    End(ArchiveFacts),
}

/// An archive, read by a thread that blocks.
#[derive(Debug)]
struct Parts {
    what: String,
    parts: mpsc::Receiver<Result<Part>>,
    ended: Option<ArchiveFacts>,
}

impl Parts {
    /// Starts a thread of its own, which is not joined: its input may never arrive.
    fn start(from: impl Read + Send + 'static, name: String) -> Result<Self> {
        let (parts, receiver) = mpsc::channel(1);
        let what = format!("read {name}");
        let thread = thread::Builder::new()
            .name("archive".to_owned())
            .spawn(move || {
                let passed = |part| parts.blocking_send(part).is_ok();
                if let Err(error) = read(from, &name, |part| passed(Ok(part))) {
                    // The receiver may be gone: the import was cancelled.
                    let _ = passed(Err(error));
                }
            });
        drop(thread.map_err(|error| Error::file(&what, error))?);
        Ok(Self {
            what,
            parts: receiver,
            ended: None,
        })
    }

    async fn next(&mut self) -> Result<Part> {
        let next = self.parts.recv().await;
        next.unwrap_or_else(|| Err(Error::internal(&self.what, "the reading thread broke")))
    }

    async fn head(&mut self) -> Result<ArchiveFacts> {
        match self.next().await? {
            Part::Head(facts) => Ok(facts),
            Part::Leaves(_) | Part::End(_) => Err(self.disorder()),
        }
    }

    /// The next leaves; `None` when all have come and the archive has proved to be whole.
    async fn leaves(&mut self) -> Result<Option<Leaves>> {
        match self.next().await? {
            Part::Leaves(leaves) => Ok(Some(leaves)),
            Part::End(facts) => {
                self.ended = Some(facts);
                Ok(None)
            }
            Part::Head(_) => Err(self.disorder()),
        }
    }

    fn ended(&mut self) -> Result<ArchiveFacts> {
        self.ended.take().ok_or_else(|| self.disorder())
    }

    fn disorder(&self) -> Error {
        Error::internal(&self.what, "its parts are out of order")
    }
}

/// Reads an archive. `pass` takes its parts, and returns true if it wants more.
fn read(from: impl Read, name: &str, pass: impl Fn(Part) -> bool) -> Result<()> {
    let mut reader = Reader::open(from, name)?;
    if !pass(Part::Head(reader.facts().clone())) {
        return Ok(());
    }
    let mut known = Vec::new();
    loop {
        let group = reader.next()?;
        let adds_known = matches!(
            &group,
            Some(Group {
                leaf: GroupLeaf::Known(_),
                ..
            })
        );
        if !known.is_empty() && (!adds_known || known.len() == FETCH_NODES_MAX) {
            let all = std::mem::take(&mut known);
            if !pass(Part::Leaves(Leaves::Known(all))) {
                return Ok(());
            }
        }
        let Some(group) = group else {
            pass(Part::End(reader.facts().clone()));
            return Ok(());
        };
        match group.leaf {
            GroupLeaf::Known(id) => known.push((group.segment, id)),
            GroupLeaf::Given(leaf) => {
                let (ids, chunks) = group.chunks.into_iter().unzip();
                let given = Leaves::Given {
                    segment: group.segment,
                    leaf,
                    ids,
                    chunks,
                    offset_bytes: group.offset_bytes,
                };
                if !pass(Part::Leaves(given)) {
                    return Ok(());
                }
            }
        }
    }
}
