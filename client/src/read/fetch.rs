//! Fetching chunks, and checking them against their ids.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use tokio::task;
use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunk_id::ChunkId,
    codec::Codec,
    tree::NodeId,
};

use super::{
    ContentExtent,
    plan::{PlannedExtent, SegmentPlan},
    walk::Reader,
};
use crate::{
    connect::Client,
    error::{Error, ErrorKind, Result},
    limits::FETCH_CHUNKS_MAX,
    replication::{ChunkRequest, FetchedChunk},
    unpack::Unpacker,
};

/// Requested chunks of a leaf: their positions, ids and lengths in blocks.
#[derive(Debug)]
pub(crate) struct LeafChunks {
    pub(crate) leaf: NodeId,
    pub(crate) segment: u32,
    pub(crate) chunks: Vec<(u32, ChunkId, u32)>,
}

/// Fetched chunks by their ids: plain, and verified.
#[derive(Debug, Default)]
pub(crate) struct PlainChunks(HashMap<ChunkId, Bytes>);

impl PlainChunks {
    /// The bytes of a chunk, if they have the length in blocks that a leaf claims. Of entries that
    /// claim several lengths of one chunk only one can be right, and that need not be the one by
    /// which it was fetched.
    pub(crate) fn chunk(&self, what: &str, id: ChunkId, blocks: u32) -> Result<&Bytes> {
        let plain = self.0.get(&id);
        let plain =
            plain.ok_or_else(|| Error::internal(what, format!("chunk {id} was not fetched")))?;
        let len = blocks as usize * BLOCK_BYTES;
        if plain.len() == len {
            return Ok(plain);
        }
        let why = format!("chunk {id} has {} bytes, a leaf says {len}", plain.len());
        Err(Error::new(ErrorKind::Damaged, what, why))
    }
}

/// Segments whose chunks are fetched with one call: at most a segment's bytes of them.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Each chunk once.
    wanted: Vec<LeafChunks>,
    extents: Vec<PlannedExtent>,
    chunks: usize,
    plain_bytes: usize,
}

/// Groups segments, in their order.
pub(super) fn grouped(segments: Vec<SegmentPlan>) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut group = Group::default();
    let mut seen = HashSet::new();
    for segment in segments {
        let of_chunks = segment.extents.iter().filter_map(|extent| match extent {
            PlannedExtent::Chunk { blocks, .. } => Some(*blocks as usize * BLOCK_BYTES),
            PlannedExtent::Hole(_) => None,
        });
        let (chunks, plain_bytes) =
            of_chunks.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
        if group.chunks + chunks > FETCH_CHUNKS_MAX
            || group.plain_bytes + plain_bytes > SEGMENT_BYTES
        {
            groups.push(std::mem::take(&mut group));
            seen.clear();
        }
        group.chunks += chunks;
        group.plain_bytes += plain_bytes;
        if let Some(leaf) = segment.leaf {
            let extents = segment.extents.iter();
            let chunks: Vec<_> = extents
                .filter_map(|extent| match *extent {
                    PlannedExtent::Chunk {
                        position,
                        chunk,
                        blocks,
                        ..
                    } => seen.insert(chunk).then_some((position, chunk, blocks)),
                    PlannedExtent::Hole(_) => None,
                })
                .collect();
            if !chunks.is_empty() {
                group.wanted.push(LeafChunks {
                    leaf,
                    segment: segment.number,
                    chunks,
                });
            }
        }
        group.extents.extend(segment.extents);
    }
    groups.push(group);
    groups.retain(|group| !group.extents.is_empty());
    groups
}

/// The extents of a group, as far as they are in the requested range.
pub(super) async fn fetch(reader: &Reader, group: Group) -> Result<Vec<ContentExtent>> {
    let plain = fetch_plain(&reader.client, &reader.what, &reader.of, group.wanted).await?;
    let range = &reader.range;
    let extents = group.extents.into_iter().map(|extent| match extent {
        PlannedExtent::Hole(bytes) => Ok(ContentExtent::hole(bytes)),
        PlannedExtent::Chunk {
            chunk,
            blocks,
            offset_bytes,
            ..
        } => {
            let plain = plain.chunk(&reader.what, chunk, blocks)?;
            let end_bytes = offset_bytes + plain.len() as u64;
            let bytes = offset_bytes.max(range.start)..end_bytes.min(range.end);
            let at = |offset: u64| usize::try_from(offset - offset_bytes).unwrap_or(plain.len());
            Ok(ContentExtent {
                offset_bytes: bytes.start,
                len_bytes: bytes.end - bytes.start,
                data: Some(plain.slice(at(bytes.start)..at(bytes.end))),
            })
        }
    });
    extents.collect()
}

/// Fetches chunks of some snapshots and unpacks them: at most [`FETCH_CHUNKS_MAX`] and a segment's
/// bytes. All match their requested ids.
pub(crate) async fn fetch_plain(
    client: &Client,
    what: &str,
    of: &[String],
    wanted: Vec<LeafChunks>,
) -> Result<PlainChunks> {
    if wanted.is_empty() {
        return Ok(PlainChunks::default());
    }
    let mut lens = HashMap::new();
    let mut requests = Vec::with_capacity(wanted.len());
    for LeafChunks {
        leaf,
        segment,
        chunks,
    } in wanted
    {
        let with_len = chunks.iter();
        lens.extend(with_len.map(|(_, id, blocks)| (*id, *blocks as usize * BLOCK_BYTES)));
        let entries = chunks.into_iter().map(|(position, id, _)| (position, id));
        requests.push(ChunkRequest {
            leaf,
            segment,
            entries: entries.collect(),
        });
    }
    let fetched = client.fetch_all_chunks(what, of, requests).await?;
    let owned = what.to_owned();
    let unpacked = task::spawn_blocking(move || unpack(&owned, fetched, &lens));
    let broke = |error| Error::internal(what, "an unpacking thread broke").with_source(error);
    unpacked.await.map_err(broke)?
}

/// Unpacks chunks. Their lengths, in bytes, must be those that their leaves claim.
fn unpack(
    what: &str,
    fetched: Vec<FetchedChunk>,
    lens: &HashMap<ChunkId, usize>,
) -> Result<PlainChunks> {
    let mut unpacker = Unpacker::default();
    let unpacked = fetched.into_iter().map(|chunk| {
        let len = lens.get(&chunk.id).copied().unwrap_or_default();
        let plain = unpacker
            .unpack(chunk.id, chunk.codec, len, &chunk.payload)
            .map_err(|why| {
                let why = format!("chunk {}: {why}", chunk.id);
                Error::new(ErrorKind::Damaged, what, why)
            })?;
        let plain = match chunk.codec {
            Codec::Raw => chunk.payload.clone(),
            Codec::Lz4 | Codec::Zstd => Bytes::copy_from_slice(plain),
        };
        Ok((chunk.id, plain))
    });
    unpacked.collect::<Result<_>>().map(PlainChunks)
}
