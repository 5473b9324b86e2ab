//! Checks that a download follows the protocol, and finds the places of each chunk.
//!
//! Pure: messages in, work out. Accepted chunks still have to be decoded and checked against their
//! ids.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use bytes::Bytes;
use varve_content::{
    block::{BLOCK_BYTES, MAX_VOLUME_BYTES, SEGMENT_BYTES, segment_blocks},
    chunk_id::ChunkId,
    codec::Codec,
    tree::TreeBuilder,
};
use varve_proto::v1;

use crate::{
    convert,
    error::{Error, ErrorKind, Result},
    snapshots::Snapshot,
};

/// A received chunk and its places.
#[derive(Debug)]
pub(crate) struct PlacedChunk {
    pub(crate) id: ChunkId,
    pub(crate) codec: Codec,
    pub(crate) plain_len: usize,
    pub(crate) payload: Bytes,
    /// Offsets in the volume, at least one.
    pub(crate) offsets: Vec<u64>,
}

/// Work to be done next.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) chunks: Vec<PlacedChunk>,
    /// Bytes of the volume that are holes.
    pub(crate) holes: Vec<Range<u64>>,
    /// After this work, everything before this offset is done.
    pub(crate) settled_bytes: Option<u64>,
}

impl Work {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.holes.is_empty() && self.settled_bytes.is_none()
    }
}

/// A download under way.
#[derive(Debug)]
pub(crate) struct Receiver {
    snapshot: Snapshot,
    what: String,
    tree: TreeBuilder,
    segment: Option<Segment>,
    /// Every byte of the volume before this is known to be data or a hole.
    covered_bytes: u64,
}

/// The segment of the last leaf.
#[derive(Debug)]
struct Segment {
    number: u32,
    /// Distinct chunks in the order of their first places.
    chunks: Vec<Expected>,
    /// Number of chunks that have come.
    received: usize,
}

#[derive(Debug)]
struct Expected {
    id: ChunkId,
    blocks: u32,
    start_blocks: Vec<u32>,
}

impl Receiver {
    /// Expects the content of `snapshot`.
    pub(crate) fn new(snapshot: Snapshot, what: String) -> Result<Self> {
        if snapshot.size_bytes == 0 || snapshot.size_bytes > MAX_VOLUME_BYTES {
            return Err(Error::protocol(
                what,
                format!("a snapshot of {} bytes", snapshot.size_bytes),
            ));
        }
        let tree = TreeBuilder::new(snapshot.size_bytes)
            .map_err(|error| Error::internal(&what, error.to_string()).with_source(error))?;
        Ok(Self {
            snapshot,
            what,
            tree,
            segment: None,
            covered_bytes: 0,
        })
    }

    /// Takes a leaf. The chunks of the one before must have come.
    pub(crate) fn leaf(&mut self, message: v1::Leaf) -> Result<Work> {
        self.check_complete()?;
        let number = message.segment;
        let leaf = convert::leaf(message.entries)
            .map_err(|why| self.broken(format!("the leaf of segment {number}: {why}")))?;
        let size_bytes = self.snapshot.size_bytes;
        let blocks = segment_blocks(size_bytes, number);
        if leaf.end_block() > blocks {
            return Err(self.broken(format!(
                "the leaf of segment {number} ends at block {} of {blocks}",
                leaf.end_block()
            )));
        }
        self.tree
            .push(number, leaf.id())
            .map_err(|error| self.broken(error.to_string()))?;
        drop(self.tree.take_finished());

        let mut work = Work::default();
        let mut chunks: Vec<Expected> = Vec::with_capacity(leaf.entries().len());
        let mut known: HashMap<ChunkId, usize> = HashMap::with_capacity(leaf.entries().len());
        for entry in leaf.entries() {
            let start = self.offset(number, entry.start_block);
            self.hole_up_to(start, &mut work);
            self.covered_bytes = self.offset(number, entry.end_block());
            match known.entry(entry.chunk) {
                Entry::Vacant(vacant) => {
                    vacant.insert(chunks.len());
                    chunks.push(Expected {
                        id: entry.chunk,
                        blocks: entry.blocks,
                        start_blocks: vec![entry.start_block],
                    });
                }
                Entry::Occupied(known) => match chunks.get_mut(*known.get()) {
                    Some(chunk) if chunk.blocks == entry.blocks => {
                        chunk.start_blocks.push(entry.start_block)
                    }
                    _ => return Err(self.broken(format!("chunk {} has two lengths", entry.chunk))),
                },
            }
        }
        self.segment = Some(Segment {
            number,
            chunks,
            received: 0,
        });
        Ok(work)
    }

    /// Takes chunks of the last leaf.
    pub(crate) fn chunks(&mut self, batch: Vec<v1::Chunk>) -> Result<Work> {
        let mut work = Work::default();
        for chunk in batch {
            work.chunks.push(self.chunk(chunk)?);
        }
        if self.segment.as_ref().is_some_and(Segment::is_complete) {
            // Settled up to the end of the last chunk. Only the next leaf shows whether a hole or
            // the end of the volume follows.
            work.settled_bytes = Some(self.covered_bytes);
        }
        Ok(work)
    }

    fn chunk(&mut self, message: v1::Chunk) -> Result<PlacedChunk> {
        let id =
            ChunkId::try_from(&message.id[..]).map_err(|error| self.broken(error.to_string()))?;
        let Some((number, expected)) = self.segment.as_mut().and_then(Segment::next) else {
            return Err(self.broken(format!("chunk {id} belongs to no leaf")));
        };
        let Expected {
            id: expected_id,
            blocks,
            start_blocks,
        } = expected;
        let plain_len = *blocks as usize * BLOCK_BYTES;
        let (expected_id, start_blocks) = (*expected_id, std::mem::take(start_blocks));
        if id != expected_id {
            return Err(self.broken(format!("chunk {id} where {expected_id} belongs")));
        }
        if message.plain_bytes as usize != plain_len {
            return Err(self.broken(format!(
                "chunk {id} of {} bytes where {plain_len} belong",
                message.plain_bytes
            )));
        }
        let Some(codec) = convert::codec(&message) else {
            return Err(self.broken(format!("chunk {id} in unknown codec {}", message.codec)));
        };
        let offsets = start_blocks
            .into_iter()
            .map(|block| self.offset(number, block))
            .collect();
        Ok(PlacedChunk {
            id,
            codec,
            plain_len,
            payload: message.payload,
            offsets,
        })
    }

    /// Handles the end of the stream: all content must be there, and match the snapshot's root.
    pub(crate) fn finish(mut self) -> Result<(Snapshot, Work)> {
        self.check_complete()?;
        let mut work = Work::default();
        let size_bytes = self.snapshot.size_bytes;
        self.hole_up_to(size_bytes, &mut work);
        work.settled_bytes = Some(size_bytes);
        let (root, _) = self.tree.finish();
        if self.snapshot.root != Some(root.id()) {
            let recorded = self.snapshot.root.as_ref().map(ToString::to_string);
            let why = format!(
                "the received content has root {}, but the snapshot {} is recorded with root {}",
                root.id(),
                self.snapshot.id,
                recorded.as_deref().unwrap_or("none")
            );
            return Err(Error::new(ErrorKind::Damaged, self.what, why));
        }
        Ok((self.snapshot, work))
    }

    fn check_complete(&self) -> Result<()> {
        match &self.segment {
            Some(segment) if !segment.is_complete() => Err(self.broken(format!(
                "of {} chunks of segment {} it sent {}",
                segment.chunks.len(),
                segment.number,
                segment.received
            ))),
            _ => Ok(()),
        }
    }

    fn hole_up_to(&mut self, offset_bytes: u64, work: &mut Work) {
        if self.covered_bytes < offset_bytes {
            work.holes.push(self.covered_bytes..offset_bytes);
        }
    }

    /// Offset of a block of a segment; the volume may end within its last block.
    fn offset(&self, segment: u32, block: u32) -> u64 {
        let offset =
            u64::from(segment) * SEGMENT_BYTES as u64 + u64::from(block) * BLOCK_BYTES as u64;
        offset.min(self.snapshot.size_bytes)
    }

    fn broken(&self, why: String) -> Error {
        Error::protocol(&self.what, why)
    }
}

impl Segment {
    fn is_complete(&self) -> bool {
        self.received == self.chunks.len()
    }

    /// The chunk that comes next.
    fn next(&mut self) -> Option<(u32, &mut Expected)> {
        let next = self.chunks.get_mut(self.received)?;
        self.received += 1;
        Some((self.number, next))
    }
}
