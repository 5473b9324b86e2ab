//! Reading an archive. The reader checks the order of the records, and that the leaves give the
//! root in the head.
//!
//! The chunks that it returns are in the right places. They are checked against their ids when they
//! are unpacked.

use std::{
    collections::HashSet,
    io::{self, BufReader, Read},
};

use prost::Message;
use varve_content::{
    block::{BLOCK_BYTES, MAX_VOLUME_BYTES, segment_blocks},
    chunk_id::ChunkId,
    chunker::CHUNKER_VERSION,
    tree::{Leaf, NodeId, TreeBuilder},
};
use varve_proto::v1::{self, archive_record::Record};

use super::{ArchiveFacts, LENGTH_BYTES, MAGIC, RECORD_BYTES_MAX};
use crate::{
    convert,
    error::{Error, ErrorKind, Result},
    snapshots::{Snapshot, SnapshotState},
};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// A segment's leaf, and the chunks of it that come with it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) segment: u32,
    pub(super) leaf: GroupLeaf,
    pub(super) chunks: Vec<(ChunkId, v1::Chunk)>,
    /// Its offset in the file.
    pub(super) offset_bytes: u64,
}

#[derive(Debug)]
pub(super) enum GroupLeaf {
    Given(Leaf),
    /// A leaf of the base.
    Known(NodeId),
}

/// An archive that is being read.
pub(super) struct Reader<R> {
    from: BufReader<R>,
    name: String,
    digest: blake3::Hasher,
    /// Offset of the next record.
    offset_bytes: u64,
    facts: ArchiveFacts,
    tree: TreeBuilder,
    /// The record after those that were returned.
    next: Option<(u64, Record)>,
    has_ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the head. Errors call the file `name`.
    pub(super) fn open(from: R, name: &str) -> Result<Self> {
        let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
        let mut magic = [0; MAGIC.len()];
        let read = from.read_exact(&mut magic);
        let is_archive = match read {
            Ok(()) => magic == MAGIC,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(Error::file(format!("read {name}"), error)),
        };
        if !is_archive {
            let why =
                "it does not begin like an archive; `snapctl export --archive` writes archives";
            return Err(Error::new(ErrorKind::File, format!("read {name}"), why));
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&magic);
        let mut offset_bytes = MAGIC.len() as u64;
        let (record, bytes) = record(&mut from, name, offset_bytes)?;
        digest.update(&bytes);
        let damaged = |why: String| damaged(name, offset_bytes, why);
        let Record::Head(head) = record else {
            return Err(damaged("the first record is not a head".to_owned()));
        };
        let version = head.chunker.map_or(0, |chunker| chunker.version);
        if version != CHUNKER_VERSION {
            let why = format!(
                "it was cut with chunker version {version}, this program knows {CHUNKER_VERSION}"
            );
            return Err(Error::new(ErrorKind::File, format!("read {name}"), why));
        }
        let told = |snapshot| {
            let told = Snapshot::from_proto("its head", snapshot);
            told.map_err(|error| damaged(format!("its head is invalid: {}", error.why())))
        };
        let snapshot = told(head.snapshot)?;
        let base = match head.base {
            Some(base) => Some(told(Some(base))?),
            None => None,
        };
        for snapshot in [Some(&snapshot), base.as_ref()].into_iter().flatten() {
            if snapshot.state != SnapshotState::Completed || snapshot.root.is_none() {
                return Err(damaged(format!("{} is not completed", snapshot.name)));
            }
            if snapshot.size_bytes == 0 || snapshot.size_bytes > MAX_VOLUME_BYTES {
                return Err(damaged(format!(
                    "a snapshot of {} bytes",
                    snapshot.size_bytes
                )));
            }
        }
        let tree =
            TreeBuilder::new(snapshot.size_bytes).map_err(|error| damaged(error.to_string()))?;
        offset_bytes += bytes.len() as u64;
        Ok(Self {
            from,
            name: name.to_owned(),
            digest,
            offset_bytes,
            facts: ArchiveFacts {
                snapshot,
                base,
                chunks: 0,
                payload_bytes: 0,
                archive_bytes: 0,
            },
            tree,
            next: None,
            has_ended: false,
        })
    }

    /// The contents of the archive; the counts are right once all is read.
    pub(super) fn facts(&self) -> &ArchiveFacts {
        &self.facts
    }

    /// The next leaf; `None` when all have come, and the archive has proved to be whole.
    pub(super) fn next(&mut self) -> Result<Option<Group>> {
        if self.has_ended {
            return Ok(None);
        }
        let (offset_bytes, record) = match self.next.take() {
            Some(record) => record,
            None => self.record()?,
        };
        match record {
            Record::Leaf(message) => self.given(offset_bytes, message).map(Some),
            Record::KnownLeaf(known) => self.known(offset_bytes, &known).map(Some),
            Record::End(end) => {
                self.end(offset_bytes, &end)?;
                Ok(None)
            }
            Record::Head(_) => Err(self.damaged(offset_bytes, "a second head")),
            Record::Chunks(_) => Err(self.damaged(offset_bytes, "chunks that belong to no leaf")),
        }
    }

    fn known(&mut self, offset_bytes: u64, known: &v1::KnownLeaf) -> Result<Group> {
        if self.facts.base.is_none() {
            return Err(self.damaged(
                offset_bytes,
                "a leaf of the base, but the archive has no \
                                                   base",
            ));
        }
        let id = NodeId::try_from(&known.leaf_id[..])
            .map_err(|error| self.damaged(offset_bytes, error.to_string()))?;
        self.push(offset_bytes, known.segment, id)?;
        Ok(Group {
            segment: known.segment,
            leaf: GroupLeaf::Known(id),
            chunks: Vec::new(),
            offset_bytes,
        })
    }

    fn given(&mut self, offset_bytes: u64, message: v1::Leaf) -> Result<Group> {
        let segment = message.segment;
        let wrong = |why: String| format!("the leaf of segment {segment}: {why}");
        let leaf =
            convert::leaf(message.entries).map_err(|why| self.damaged(offset_bytes, wrong(why)))?;
        // Check that the segment exists before comparing the leaf's end with the volume's.
        self.push(offset_bytes, segment, leaf.id())?;
        let blocks = segment_blocks(self.facts.snapshot.size_bytes, segment);
        if leaf.end_block() > blocks {
            let why = format!("it ends at block {} of {blocks}", leaf.end_block());
            return Err(self.damaged(offset_bytes, wrong(why)));
        }
        let chunks = self.chunks_of(&leaf)?;
        Ok(Group {
            segment,
            leaf: GroupLeaf::Given(leaf),
            chunks,
            offset_bytes,
        })
    }

    fn push(&mut self, offset_bytes: u64, segment: u32, leaf: NodeId) -> Result<()> {
        let pushed = self.tree.push(segment, leaf);
        pushed.map_err(|error| self.damaged(offset_bytes, error.to_string()))?;
        drop(self.tree.take_finished());
        Ok(())
    }

    /// The chunks that follow a leaf.
    fn chunks_of(&mut self, leaf: &Leaf) -> Result<Vec<(ChunkId, v1::Chunk)>> {
        let mut known = HashSet::new();
        let entries = leaf.entries().iter();
        let mut firsts = entries.filter(|entry| known.insert(entry.chunk));
        let mut chunks = Vec::new();
        loop {
            let (offset_bytes, record) = self.record()?;
            let Record::Chunks(batch) = record else {
                self.next = Some((offset_bytes, record));
                return Ok(chunks);
            };
            // A leaf is finite, and so are the batches that follow it.
            if batch.chunks.is_empty() {
                return Err(self.damaged(offset_bytes, "a batch without chunks"));
            }
            for chunk in batch.chunks {
                // Chunks come in the order of their places, so the entries of a leaf bound their
                // number.
                let place = firsts.find(|entry| entry.chunk.as_bytes()[..] == chunk.id[..]);
                let Some(place) = place else {
                    let why = "a chunk that is not in its leaf, or out of order";
                    return Err(self.damaged(offset_bytes, why));
                };
                let plain_bytes = place.blocks as usize * BLOCK_BYTES;
                if chunk.plain_bytes as usize != plain_bytes || chunk.payload.len() > plain_bytes {
                    let why = format!(
                        "chunk {} of {} bytes, packed {}, where {plain_bytes} belong",
                        place.chunk,
                        chunk.plain_bytes,
                        chunk.payload.len()
                    );
                    return Err(self.damaged(offset_bytes, why));
                }
                self.facts.chunks += 1;
                self.facts.payload_bytes += chunk.payload.len() as u64;
                chunks.push((place.chunk, chunk));
            }
        }
    }

    fn end(&mut self, offset_bytes: u64, end: &v1::ArchiveEnd) -> Result<()> {
        let mut nothing = [0];
        let behind = self.from.read(&mut nothing);
        match behind.map_err(|error| Error::file(format!("read {}", self.name), error))? {
            0 => {}
            _ => return Err(self.damaged(self.offset_bytes, "there are bytes behind its end")),
        }
        if end.chunks != self.facts.chunks {
            let why = format!("it has {} chunks of {}", self.facts.chunks, end.chunks);
            return Err(self.damaged(offset_bytes, why));
        }
        let fresh = TreeBuilder::new(self.facts.snapshot.size_bytes)
            .map_err(|error| self.damaged(offset_bytes, error.to_string()))?;
        let (root, _) = std::mem::replace(&mut self.tree, fresh).finish();
        let expected = self.facts.snapshot.root;
        if expected != Some(root.id()) {
            let expected = expected.map(|root| root.to_string()).unwrap_or_default();
            let why = format!(
                "its leaves have root {}, its head says {expected}",
                root.id()
            );
            return Err(self.damaged(offset_bytes, why));
        }
        self.facts.archive_bytes = self.offset_bytes;
        self.has_ended = true;
        Ok(())
    }

    /// The next record and its offset. An end is valid only if its digest matches everything before
    /// it.
    fn record(&mut self) -> Result<(u64, Record)> {
        let offset_bytes = self.offset_bytes;
        let (record, bytes) = record(&mut self.from, &self.name, offset_bytes)?;
        self.offset_bytes += bytes.len() as u64;
        if let Record::End(end) = &record {
            let found = self.digest.finalize();
            if end.digest[..] != found.as_bytes()[..] {
                let why = format!(
                    "the digest of the content, {found}, is not the one recorded at the \
                             end"
                );
                return Err(self.damaged(offset_bytes, why));
            }
        }
        self.digest.update(&bytes);
        Ok((offset_bytes, record))
    }

    fn damaged(&self, offset_bytes: u64, why: impl Into<String>) -> Error {
        damaged(&self.name, offset_bytes, why)
    }
}

pub(super) fn damaged(name: &str, offset_bytes: u64, why: impl Into<String>) -> Error {
    let why = format!("damaged at offset {offset_bytes}: {}", why.into());
    Error::new(ErrorKind::Damaged, format!("read {name}"), why)
}

/// The record at an offset, and its bytes with their length.
fn record(from: &mut impl Read, name: &str, offset_bytes: u64) -> Result<(Record, Vec<u8>)> {
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(name, offset_bytes, "it is truncated"),
        _ => Error::file(format!("read {name}"), error),
    };
    let mut bytes = vec![0; LENGTH_BYTES];
    from.read_exact(&mut bytes).map_err(cut)?;
    let len = bytes.first_chunk().copied().unwrap_or_default();
    let len = u32::from_le_bytes(len) as usize;
    if len > RECORD_BYTES_MAX {
        let why = format!("a record of {len} bytes, the longest has {RECORD_BYTES_MAX}");
        return Err(damaged(name, offset_bytes, why));
    }
    bytes.resize(LENGTH_BYTES + len, 0);
    let (_, message) = bytes.split_at_mut(LENGTH_BYTES);
    from.read_exact(message).map_err(cut)?;
    let decoded = v1::ArchiveRecord::decode(&*message);
    let decoded = decoded.map_err(|error| damaged(name, offset_bytes, error.to_string()))?;
    let Some(record) = decoded.record else {
        return Err(damaged(name, offset_bytes, "a record of unknown kind"));
    };
    Ok((record, bytes))
}
