//! Writing an archive of a snapshot.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::{self, BufWriter, Write},
    mem,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use tokio::task;
use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunk_id::ChunkId,
    chunker::CHUNKER_VERSION,
    tree::{CompareError, ComparedLeaves, Leaf, LeafComparison, NodeId, Root, TreeBuilder},
};
use varve_proto::v1::{self, archive_record::Record};

use super::{ArchiveFacts, BATCH_PAYLOAD_BYTES, LENGTH_BYTES, MAGIC, Seen};
use crate::{
    cancel::unless_cancelled,
    connect::Client,
    content::{Content, Nodes, check_end, walk_error},
    control::Control,
    convert::chunk_message,
    error::{Error, ErrorKind, Result},
    limits::{ARCHIVE_GROUPS, ARCHIVE_KEPT_LEAVES, ARCHIVE_LEAF_FETCHES, FETCH_NODES_MAX},
    progress::Progress,
    replication::ChunkRequest,
    snapshots::Snapshot,
    unpack::Unpacker,
    upload::leaf_message,
};

/// Bytes written at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// An export of an archive: see [`Client::export_archive`].
#[must_use = "an archive is not written until this is run"]
pub struct ArchiveExport<'a> {
    client: &'a Client,
    snapshot: String,
    since: Option<String>,
    control: Control,
}

/// The outcome of writing an archive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ArchiveExportReport {
    /// The contents of the archive.
    pub archive: ArchiveFacts,
    /// Time from the first call until everything was written.
    pub elapsed: Duration,
}

impl Client {
    /// Prepares the export of the snapshot with this name or id as an archive.
    pub fn export_archive(&self, snapshot: impl Into<String>) -> ArchiveExport<'_> {
        ArchiveExport {
            client: self,
            snapshot: snapshot.into(),
            since: None,
            control: Control::default(),
        }
    }
}

impl ArchiveExport<'_> {
    /// Writes only the difference to the snapshot with this name or id. A store must have that
    /// snapshot to import the archive.
    pub fn since(mut self, base: impl Into<String>) -> Self {
        self.since = Some(base.into());
        self
    }

    /// Sets the control of the export. Its progress counts bytes of data in the written leaves,
    /// without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Writes the archive to `to`. Errors call it `name`. The client checks every chunk against its
    /// id before it writes it. The output is an archive only if this succeeds; it is not synced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such snapshot, [`ErrorKind::Conflict`] if it is not
    /// completed, [`ErrorKind::Damaged`] for content that does not match its id,
    /// [`ErrorKind::File`] or [`ErrorKind::OutOfSpace`] if it cannot be written,
    /// [`ErrorKind::Cancelled`]; errors of the connection.
    pub async fn run(
        self,
        to: impl Write + Send + 'static,
        name: &str,
    ) -> Result<ArchiveExportReport> {
        let what = format!("archive {} in {name}", self.snapshot);
        let export = Export {
            client: self.client,
            what: &what,
            progress: &self.control.progress,
        };
        let exporting = Box::pin(export.run(&self.snapshot, self.since.as_deref(), to));
        let cancel = &self.control.cancel;
        unless_cancelled(&what, "it was cancelled", cancel, exporting).await
    }
}

impl fmt::Debug for ArchiveExport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveExport")
            .field("snapshot", &self.snapshot)
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

/// An archive that is being written.
struct Export<'a> {
    client: &'a Client,
    /// Verb and object, for errors.
    what: &'a str,
    progress: &'a Progress,
}

/// A leaf as it is written to the archive.
enum Planned {
    Known(u32, NodeId),
    Given {
        segment: u32,
        id: NodeId,
        leaf: Leaf,
        /// Positions of its chunks that are new, and their ids.
        new: Vec<(u32, ChunkId)>,
    },
}

impl Export<'_> {
    async fn run(
        &self,
        snapshot: &str,
        since: Option<&str>,
        to: impl Write + Send + 'static,
    ) -> Result<ArchiveExportReport> {
        let started = Instant::now();
        let content = Content::find(self.client, self.what, snapshot).await?;
        let base = match since {
            Some(since) => Some(Content::find(self.client, self.what, since).await?),
            None => None,
        };
        let of = content.origin(base.as_ref());
        let mut seen = Seen::new();
        let mut total_bytes = content.snapshot.data_bytes;
        if let Some(base) = &base {
            let leaves = self.see(&of, base, &content, &mut seen).await?;
            total_bytes = total_bytes.min(leaves * SEGMENT_BYTES as u64);
        }
        self.progress.set_total(total_bytes);
        let base_root = base.as_ref().map(|base| base.root);
        let base = base.map(|base| base.snapshot);
        let head = v1::ArchiveHead {
            snapshot: Some(content.snapshot.to_proto()),
            base: base.as_ref().map(Snapshot::to_proto),
            chunker: Some(v1::ChunkerParameters {
                version: CHUNKER_VERSION,
            }),
        };
        let mut writer = self
            .blocking(move || {
                let mut writer = Writer::new(to)?;
                writer.record(Record::Head(head))?;
                Ok(writer)
            })
            .await?;
        let built = TreeBuilder::new(content.root.size_bytes);
        let mut built = built.map_err(|error| Error::protocol(self.what, error.to_string()))?;
        {
            let nodes = [(); 2].map(|()| Nodes::of_whole(self.client, of.clone()));
            let mut groups = std::pin::pin!(
                self.leaves(&nodes, &content.root, base_root.as_ref())
                    .map_ok(|leaves| self.planned(&of, leaves))
                    .try_buffered(ARCHIVE_LEAF_FETCHES)
                    .map_ok(|leaves| stream::iter(leaves.into_iter().map(Ok)))
                    .try_flatten()
                    // One record after another, in the order of the archive.
                    .map_ok(|planned| choose(planned, &mut seen))
                    .map_ok(|planned| self.fetch(&of, planned, content.root.size_bytes))
                    .try_buffered(ARCHIVE_GROUPS)
            );
            while let Some(group) = groups.try_next().await? {
                let pushed = built.push(group.segment, group.id);
                pushed.map_err(|error| Error::protocol(self.what, error.to_string()))?;
                drop(built.take_finished());
                writer = self
                    .blocking(move || {
                        for record in group.records {
                            writer.record(record)?;
                        }
                        Ok(writer)
                    })
                    .await?;
                self.progress.add_done(group.data_bytes);
            }
        }
        let (built, _) = built.finish();
        if built != content.root {
            let why = format!(
                "the archive written has root {}, not {}",
                built.id(),
                content.root.id()
            );
            return Err(Error::internal(self.what, why));
        }
        let written = self.blocking(move || writer.finish()).await?;
        Ok(ArchiveExportReport {
            archive: ArchiveFacts {
                snapshot: content.snapshot,
                base,
                chunks: written.chunks,
                payload_bytes: written.payload_bytes,
                archive_bytes: written.bytes,
            },
            elapsed: started.elapsed(),
        })
    }

    /// The leaves of a snapshot beside those of its base, in ascending order.
    fn leaves<'a>(
        &'a self,
        [nodes, base_nodes]: &'a [Nodes; 2],
        root: &Root,
        base: Option<&Root>,
    ) -> impl Stream<Item = Result<ComparedLeaves>> + 'a {
        let walk = LeafComparison::new(root, base);
        stream::try_unfold(walk, move |mut walk| async move {
            let next = walk.next(nodes, base_nodes, FETCH_NODES_MAX, ARCHIVE_KEPT_LEAVES);
            match next.await {
                Ok(leaves) => Ok(leaves.map(|leaves| (leaves, walk))),
                Err(CompareError::Tree(error) | CompareError::Base(error)) => {
                    Err(walk_error(self.what, error))
                }
            }
        })
    }

    /// Collects the chunks of the base: first where the two differ, because chunks are most likely
    /// to repeat there, and then the rest, as far as there is room. Returns the number of leaves
    /// that the base does not have.
    async fn see(
        &self,
        of: &[String],
        base: &Content,
        content: &Content,
        seen: &mut Seen,
    ) -> Result<u64> {
        let mut wanted = 0;
        for differing in [true, false] {
            let nodes = [(); 2].map(|()| Nodes::of_whole(self.client, of.to_vec()));
            let leaves = self
                .leaves(&nodes, &content.root, Some(&base.root))
                .map_ok(|leaves| {
                    if differing {
                        wanted += leaves.wanted.len() as u64;
                        return leaves.dropped;
                    }
                    leaves.kept
                })
                .map_ok(|leaves| async move {
                    let mut fetched = Vec::new();
                    for leaves in leaves.chunks(FETCH_NODES_MAX) {
                        let leaves = self.client.fetch_leaves(of, leaves).await?;
                        let entries = leaves.iter().flat_map(|leaf| leaf.leaf.entries());
                        fetched.extend(entries.map(|entry| entry.chunk));
                    }
                    Ok(fetched)
                })
                .try_buffered(ARCHIVE_LEAF_FETCHES);
            let mut leaves = std::pin::pin!(leaves);
            while let Some(ids) = leaves.try_next().await? {
                for id in ids {
                    seen.is_new(id);
                }
                // Walk through all differences to count them.
                if seen.is_full() && !differing {
                    break;
                }
            }
        }
        Ok(wanted)
    }

    /// Leaves as they are written to the archive, in order; those that the base has are not
    /// fetched.
    async fn planned(&self, of: &[String], leaves: ComparedLeaves) -> Result<Vec<Planned>> {
        let known = leaves.kept.into_iter();
        let mut planned: Vec<_> = known
            .map(|(segment, id)| Planned::Known(segment, id))
            .collect();
        if !leaves.wanted.is_empty() {
            let fetched = self.client.fetch_leaves(of, &leaves.wanted).await?;
            let fetched = leaves.wanted.into_iter().zip(fetched);
            planned.extend(fetched.map(|((segment, id), fetched)| Planned::Given {
                segment,
                id,
                leaf: fetched.leaf,
                new: Vec::new(),
            }));
        }
        planned.sort_unstable_by_key(Planned::segment);
        Ok(planned)
    }

    /// The records of a leaf, with its new chunks, all of them checked.
    async fn fetch(&self, of: &[String], planned: Planned, size_bytes: u64) -> Result<Group> {
        let (segment, id, leaf, new) = match planned {
            Planned::Known(segment, id) => {
                let known = v1::KnownLeaf {
                    segment,
                    leaf_id: Bytes::copy_from_slice(id.as_bytes()),
                };
                return Ok(Group {
                    segment,
                    id,
                    records: vec![Record::KnownLeaf(known)],
                    data_bytes: 0,
                });
            }
            Planned::Given {
                segment,
                id,
                leaf,
                new,
            } => (segment, id, leaf, new),
        };
        // No store could import it.
        check_end(self.what, size_bytes, segment, id, &leaf)?;
        let mut lens = HashMap::new();
        for entry in leaf.entries() {
            let len = entry.blocks as usize * BLOCK_BYTES;
            if lens
                .insert(entry.chunk, len)
                .is_some_and(|other| other != len)
            {
                let why = format!("chunk {} of segment {segment} has two lengths", entry.chunk);
                return Err(Error::new(ErrorKind::Damaged, self.what, why));
            }
        }
        let data_bytes = u64::from(leaf.data_blocks()) * BLOCK_BYTES as u64;
        let mut group = Group {
            segment,
            id,
            records: vec![Record::Leaf(leaf_message(segment, &leaf))],
            data_bytes,
        };
        if new.is_empty() {
            return Ok(group);
        }
        let wanted = ChunkRequest {
            leaf: id,
            segment,
            entries: new,
        };
        let fetching = self.client.fetch_all_chunks(self.what, of, vec![wanted]);
        let chunks = fetching.await?;
        let what = self.what.to_owned();
        let checked = task::spawn_blocking(move || {
            let mut unpacker = Unpacker::default();
            let checked = chunks.into_iter().map(|chunk| {
                // The leaf gives the length, and was checked.
                let len = lens.get(&chunk.id).copied().unwrap_or_default();
                let unpacked = unpacker.unpack(chunk.id, chunk.codec, len, &chunk.payload);
                unpacked.map_err(|why| {
                    let why = format!("chunk {} of segment {segment}: {why}", chunk.id);
                    Error::new(ErrorKind::Damaged, &what, why)
                })?;
                Ok(chunk_message(chunk.id, chunk.codec, len, chunk.payload))
            });
            checked.collect::<Result<Vec<_>>>()
        });
        let broke =
            |error| Error::internal(self.what, "a checking thread broke").with_source(error);
        let chunks = checked.await.map_err(broke)??;
        let mut batch = v1::ChunkBatch::default();
        let mut payload_bytes = 0;
        for chunk in chunks {
            if payload_bytes + chunk.payload.len() > BATCH_PAYLOAD_BYTES && payload_bytes > 0 {
                group.records.push(Record::Chunks(mem::take(&mut batch)));
                payload_bytes = 0;
            }
            payload_bytes += chunk.payload.len();
            batch.chunks.push(chunk);
        }
        group.records.push(Record::Chunks(batch));
        Ok(group)
    }

    /// Does something on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let broke = |error| Error::internal(self.what, "a writing thread broke").with_source(error);
        let done = task::spawn_blocking(work).await.map_err(broke)?;
        done.map_err(|error| Error::file(self.what, error))
    }
}

impl Planned {
    fn segment(&self) -> u32 {
        match self {
            Self::Known(segment, _) | Self::Given { segment, .. } => *segment,
        }
    }
}

/// A leaf with its records.
struct Group {
    segment: u32,
    id: NodeId,
    records: Vec<Record>,
    data_bytes: u64,
}

/// Finds which chunks of a leaf are new.
fn choose(planned: Planned, seen: &mut Seen) -> Planned {
    match planned {
        Planned::Given {
            segment, id, leaf, ..
        } => {
            // A set for this leaf, too: a full one does not show that a chunk repeats.
            let mut of_leaf = HashSet::new();
            let entries = leaf.entries().iter().zip(0u32..);
            let new = entries
                .filter(|(entry, _)| of_leaf.insert(entry.chunk) && seen.is_new(entry.chunk));
            let new = new
                .map(|(entry, position)| (position, entry.chunk))
                .collect();
            Planned::Given {
                segment,
                id,
                leaf,
                new,
            }
        }
        known => known,
    }
}

/// Counts of written chunks, bytes and leaves.
pub(super) struct Written {
    chunks: u64,
    payload_bytes: u64,
    bytes: u64,
}

/// Writes records, and keeps their digest.
pub(super) struct Writer<W: Write> {
    to: BufWriter<W>,
    digest: blake3::Hasher,
    written: Written,
    /// Reused for each record.
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> io::Result<Self> {
        let mut writer = Self {
            to: BufWriter::with_capacity(BUFFER_BYTES, to),
            digest: blake3::Hasher::new(),
            written: Written {
                chunks: 0,
                payload_bytes: 0,
                bytes: 0,
            },
            buffer: MAGIC.to_vec(),
        };
        writer.write()?;
        Ok(writer)
    }

    pub(super) fn record(&mut self, record: Record) -> io::Result<()> {
        if let Record::Chunks(batch) = &record {
            let payload = batch.chunks.iter().map(|chunk| chunk.payload.len() as u64);
            self.written.chunks += batch.chunks.len() as u64;
            self.written.payload_bytes += payload.sum::<u64>();
        }
        let record = v1::ArchiveRecord {
            record: Some(record),
        };
        let len = record.encoded_len();
        let len = u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.buffer.clear();
        self.buffer.reserve(LENGTH_BYTES + len as usize);
        self.buffer.extend_from_slice(&len.to_le_bytes());
        record.encode(&mut self.buffer).map_err(io::Error::other)?;
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.digest.update(&self.buffer);
        self.written.bytes += self.buffer.len() as u64;
        self.to.write_all(&self.buffer)
    }

    pub(super) fn finish(mut self) -> io::Result<Written> {
        let digest = self.digest.finalize();
        self.record(Record::End(v1::ArchiveEnd {
            chunks: self.written.chunks,
            digest: Bytes::copy_from_slice(digest.as_bytes()),
        }))?;
        self.to.flush()?;
        Ok(self.written)
    }
}
