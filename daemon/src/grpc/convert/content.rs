//! Content as messages: uploads, downloads, ranges, chunks, leaves and nodes.

use bytes::Bytes;
use varve_content::{
    ChunkId, Codec, NodeId, RootId,
    tree::{DiffKind, Leaf, LeafEntry, MAX_HEIGHT, NodePlace},
};
use varve_proto::v1::{self, download_response, read_snapshot_response};
use varve_store::{
    AccountId, DiffExtent, ExportedNode, IncomingChunk, Lineage, NewSnapshot, NodeKey, Segment,
    SnapshotOrigin, StoredChunk, VerifiedChunk, Violation,
    format::{IdKind, RecordId},
};

use super::{unix_ns, wrong_id_length};
use crate::{
    limits,
    service::{
        ChunkMessage, ChunkRequest, DownloadPart, Error, NewUpload, NodeRequest, RangeContent,
        RangePart, Result, SentChunk, VerifyState,
    },
};

pub(in crate::grpc) fn new_upload(request: v1::BeginUploadRequest) -> Result<NewUpload> {
    let Some(chunker) = request.chunker else {
        return Err(Error::field("chunker", "it is required"));
    };
    Ok(NewUpload {
        snapshot: NewSnapshot {
            // The service knows the caller's.
            owner: AccountId::ADMINISTRATOR,
            lineage: request.lineage.map(lineage).transpose()?,
            name: request.name,
            size_bytes: request.size_bytes,
            tags: request.tags,
            chunker_version: chunker.version,
        },
        base: request.base,
        keep_packed: request.keep_packed,
    })
}

fn record_id<K: IdKind>(field: &'static str, text: &str) -> Result<RecordId<K>> {
    if text.len() > limits::QUOTED_CHARS_MAX {
        return Err(Error::field(
            field,
            format!("{} bytes are not an id", text.len()),
        ));
    }
    let id = text.parse::<RecordId<K>>();
    id.map_err(|error| Error::field(field, error.to_string()))
}

/// The lineage of a snapshot of another store.
fn lineage(lineage: v1::SnapshotLineage) -> Result<Lineage> {
    let origin = match (&*lineage.volume_id, &*lineage.volume_name) {
        ("", "") => None,
        (id, name) => Some(SnapshotOrigin {
            volume: record_id("lineage.volume_id", id)?,
            name: name.to_owned(),
        }),
    };
    let parent = match &*lineage.parent {
        "" => None,
        id => Some(record_id("lineage.parent", id)?),
    };
    Ok(Lineage {
        created_at_ns: unix_ns("lineage.created_at", lineage.created_at)?,
        origin,
        parent,
    })
}

pub(in crate::grpc) fn chunk_ids(ids: &[u8]) -> Result<Vec<ChunkId>> {
    let (ids, rest) = ids.as_chunks::<{ ChunkId::BYTES }>();
    if !rest.is_empty() {
        return Err(Error::field(
            "ids",
            format!(
                "{} bytes are not a multiple of {}",
                ids.len() * ChunkId::BYTES + rest.len(),
                ChunkId::BYTES
            ),
        ));
    }
    Ok(ids.iter().copied().map(ChunkId::from_bytes).collect())
}

pub(in crate::grpc) fn root(bytes: &[u8]) -> Result<RootId> {
    RootId::try_from(bytes).map_err(|_| wrong_id_length("root", bytes))
}

/// A message of a stream of chunks. Each chunk is decoded when it is its turn.
pub(in crate::grpc) fn chunk_message(
    request: v1::PutChunksRequest,
) -> ChunkMessage<impl ExactSizeIterator<Item = Result<IncomingChunk>>> {
    let payloads = request.chunks.iter().map(|chunk| chunk.payload.len());
    ChunkMessage {
        payload_bytes: payloads.sum::<usize>() as u64,
        upload: request.upload_id,
        chunks: request.chunks.into_iter().map(incoming_chunk),
    }
}

fn incoming_chunk(chunk: v1::Chunk) -> Result<IncomingChunk> {
    let id =
        ChunkId::try_from(&chunk.id[..]).map_err(|_| wrong_id_length("chunks.id", &chunk.id))?;
    let codec = match v1::Codec::try_from(chunk.codec) {
        Ok(v1::Codec::Raw) => Codec::Raw,
        Ok(v1::Codec::Lz4) => Codec::Lz4,
        Ok(v1::Codec::Zstd) => Codec::Zstd,
        Err(_) => {
            return Err(Error::field(
                "chunks.codec",
                format!("{} of chunk {id} is not RAW, LZ4 or ZSTD", chunk.codec),
            ));
        }
    };
    Ok(IncomingChunk {
        id,
        codec,
        plain_bytes: chunk.plain_bytes,
        payload: chunk.payload,
    })
}

/// A leaf and its segment.
pub(in crate::grpc) fn incoming_leaf(leaf: &v1::Leaf) -> Result<(u32, Leaf)> {
    let mut entries = Vec::with_capacity(leaf.entries.len());
    for entry in &leaf.entries {
        entries.push(LeafEntry {
            start_block: entry.start_block,
            blocks: entry.blocks,
            chunk: ChunkId::try_from(&entry.chunk_id[..])
                .map_err(|_| wrong_id_length("leaves.entries.chunk_id", &entry.chunk_id))?,
        });
    }
    let built = Leaf::new(entries).map_err(|error| {
        Error::field(
            "leaves",
            format!("the leaf of segment {}: {error}", leaf.segment),
        )
    })?;
    Ok((leaf.segment, built))
}

fn leaf(segment: &Segment) -> v1::Leaf {
    let entry = |entry: &LeafEntry| v1::LeafEntry {
        start_block: entry.start_block,
        blocks: entry.blocks,
        chunk_id: Bytes::copy_from_slice(entry.chunk.as_bytes()),
    };
    v1::Leaf {
        segment: segment.index(),
        entries: segment.leaf().entries().iter().map(entry).collect(),
    }
}

pub(in crate::grpc) fn stored_chunk(chunk: StoredChunk) -> v1::Chunk {
    let codec = match chunk.codec {
        Codec::Raw => v1::Codec::Raw,
        Codec::Lz4 => v1::Codec::Lz4,
        Codec::Zstd => v1::Codec::Zstd,
    };
    v1::Chunk {
        id: Bytes::copy_from_slice(chunk.id.as_bytes()),
        codec: codec.into(),
        plain_bytes: chunk.plain_bytes,
        payload: chunk.payload,
    }
}

fn plain_chunk(chunk: &VerifiedChunk) -> v1::Chunk {
    v1::Chunk {
        id: Bytes::copy_from_slice(chunk.id().as_bytes()),
        codec: v1::Codec::Raw.into(),
        // The chunker makes no chunks of nearly 4 GiB.
        plain_bytes: u32::try_from(chunk.plain().len()).unwrap_or(u32::MAX),
        payload: chunk.plain().clone(),
    }
}

pub(in crate::grpc) fn diff_extent(extent: DiffExtent) -> v1::DiffExtent {
    let kind = match extent.kind {
        DiffKind::Changed => v1::DiffKind::Changed,
        DiffKind::Added => v1::DiffKind::Added,
        DiffKind::Removed => v1::DiffKind::Removed,
    };
    v1::DiffExtent {
        offset_bytes: extent.offset_bytes,
        length_bytes: extent.length_bytes,
        kind: kind.into(),
    }
}

fn violation(violation: Violation) -> v1::Violation {
    v1::Violation {
        message: violation.to_string(),
        offset_bytes: violation.offset_bytes,
    }
}

pub(in crate::grpc) fn verify_state(state: VerifyState) -> v1::VerifySnapshotResponse {
    v1::VerifySnapshotResponse {
        checked: state.checked,
        checked_bytes: state.checked_bytes,
        total_bytes: state.total_bytes,
        violations: state.violations.into_iter().map(violation).collect(),
        done: state.done,
    }
}

pub(in crate::grpc) fn download_part(part: DownloadPart) -> v1::DownloadResponse {
    use download_response::Part;

    let part = match part {
        DownloadPart::Snapshot(shown) => Part::Snapshot(super::snapshot(*shown)),
        DownloadPart::Leaf(segment) => Part::Leaf(leaf(&segment)),
        DownloadPart::Chunks(chunks) => Part::Chunks(v1::ChunkBatch {
            chunks: chunks.into_iter().map(sent_chunk).collect(),
        }),
    };
    v1::DownloadResponse { part: Some(part) }
}

fn sent_chunk(chunk: SentChunk) -> v1::Chunk {
    match chunk {
        SentChunk::Plain(chunk) => plain_chunk(&chunk),
        SentChunk::Stored(chunk) => stored_chunk(chunk),
    }
}

pub(in crate::grpc) fn range_part(part: RangePart) -> v1::ReadSnapshotResponse {
    use read_snapshot_response::Content;

    v1::ReadSnapshotResponse {
        offset_bytes: part.offset_bytes,
        content: Some(match part.content {
            RangeContent::Data(bytes) => Content::Data(bytes),
            RangeContent::Hole(bytes) => Content::HoleBytes(bytes),
        }),
    }
}

pub(in crate::grpc) fn node_request(node: &v1::NodeRef) -> Result<NodeRequest> {
    let id: [u8; NodeId::BYTES] = node.id[..]
        .try_into()
        .map_err(|_| wrong_id_length("nodes.id", &node.id))?;
    let key = match v1::NodeKind::try_from(node.kind) {
        Ok(v1::NodeKind::Root) => NodeKey::Root(RootId::from_bytes(id)),
        Ok(v1::NodeKind::Inner) => NodeKey::Inner(NodeId::from_bytes(id)),
        Ok(v1::NodeKind::Leaf) => NodeKey::Leaf(NodeId::from_bytes(id)),
        Ok(v1::NodeKind::Unspecified) | Err(_) => {
            return Err(Error::field(
                "nodes.kind",
                format!("{} is not a kind of node", node.kind),
            ));
        }
    };
    let level = u8::try_from(node.level).map_err(|_| {
        let problem = format!("{}, there is none above {MAX_HEIGHT}", node.level);
        Error::field("nodes.level", problem)
    })?;
    Ok(NodeRequest {
        key,
        at: NodePlace {
            level,
            first_segment: node.first_segment,
        },
    })
}

pub(in crate::grpc) fn node(node: ExportedNode) -> v1::Node {
    v1::Node {
        encoded: node.encoded,
        payload_bytes: node.payload_bytes,
    }
}

pub(in crate::grpc) fn chunk_request(leaf: v1::LeafChunks) -> Result<ChunkRequest> {
    let id = NodeId::try_from(&leaf.leaf_id[..])
        .map_err(|error| Error::field("leaves.leaf_id", error.to_string()))?;
    Ok(ChunkRequest {
        leaf: id,
        segment: leaf.segment,
        entries: leaf.entries,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;
    use crate::error::{Classified as _, ErrorKind};

    fn refused(failure: Error, kind: ErrorKind, texts: &[&str]) {
        assert_eq!(failure.kind(), kind, "{failure}");
        for text in texts {
            assert!(
                failure.to_string().contains(text),
                "{failure} does not say {text}"
            );
        }
    }

    fn chunk() -> v1::Chunk {
        v1::Chunk {
            id: Bytes::from_static(&[7; 32]),
            codec: v1::Codec::Zstd.into(),
            plain_bytes: 8192,
            payload: Bytes::from_static(b"packed"),
        }
    }

    #[test]
    fn a_chunk_is_taken_as_it_is() {
        let taken = incoming_chunk(chunk()).unwrap();
        assert_eq!(taken.id, ChunkId::from_bytes([7; 32]));
        assert_eq!(taken.codec, Codec::Zstd);
        assert_eq!(
            (taken.plain_bytes, &taken.payload[..]),
            (8192, &b"packed"[..])
        );
    }

    #[test]
    fn chunks_that_cannot_be_are_refused_with_field_and_value() {
        let change = |change: fn(&mut v1::Chunk)| {
            let mut chunk = chunk();
            change(&mut chunk);
            incoming_chunk(chunk).unwrap_err()
        };
        refused(
            change(|c| c.id.truncate(31)),
            ErrorKind::InvalidArgument,
            &["chunks.id", "31 bytes"],
        );
        refused(
            change(|c| c.codec = 9),
            ErrorKind::InvalidArgument,
            &["chunks.codec", "9"],
        );
    }

    #[test]
    fn ids_have_a_length() {
        assert_eq!(chunk_ids(&[]).unwrap(), []);
        assert_eq!(
            chunk_ids(&[1; 64]).unwrap(),
            [ChunkId::from_bytes([1; 32]); 2]
        );
        refused(
            chunk_ids(&[1; 65]).unwrap_err(),
            ErrorKind::InvalidArgument,
            &["ids", "65"],
        );
        refused(
            root(&[1; 33]).unwrap_err(),
            ErrorKind::InvalidArgument,
            &["root", "33"],
        );
    }

    #[test]
    fn leaves_that_cannot_be_are_refused_with_their_segment() {
        let entry = |start_block, blocks| v1::LeafEntry {
            start_block,
            blocks,
            chunk_id: Bytes::from_static(&[7; 32]),
        };
        let leaf = |entries| v1::Leaf {
            segment: 5,
            entries,
        };
        assert_eq!(
            incoming_leaf(&leaf(vec![entry(0, 4), entry(4, 64)]))
                .unwrap()
                .0,
            5
        );
        for entries in [
            vec![],
            vec![entry(0, 4), entry(3, 4)],
            vec![entry(8, 4), entry(0, 4)],
            vec![entry(0, 0)],
            vec![entry(0, 65)],
            vec![entry(2047, 2)],
            vec![entry(u32::MAX, 1)],
        ] {
            let failure = incoming_leaf(&leaf(entries)).unwrap_err();
            refused(
                failure,
                ErrorKind::InvalidArgument,
                &["leaves", "segment 5"],
            );
        }
        let mut short = entry(0, 4);
        short.chunk_id.truncate(8);
        let failure = incoming_leaf(&leaf(vec![short])).unwrap_err();
        refused(
            failure,
            ErrorKind::InvalidArgument,
            &["leaves.entries.chunk_id", "8 bytes"],
        );
    }

    #[test]
    fn what_is_no_node_is_refused() {
        let node = |kind, bytes| v1::NodeRef {
            kind,
            id: vec![1; bytes].into(),
            level: 0,
            first_segment: 7,
        };
        let leaf = node_request(&node(3, 32)).unwrap();
        assert_eq!(leaf.key, NodeKey::Leaf(NodeId::from_bytes([1; 32])));
        assert_eq!(leaf.at, NodePlace::of_leaf(7));
        let high = v1::NodeRef {
            level: 256,
            ..node(2, 32)
        };
        let error = node_request(&high).unwrap_err();
        refused(error, ErrorKind::InvalidArgument, &["nodes.level"]);
        for (kind, bytes) in [(0, 32), (4, 32), (3, 31), (1, 0)] {
            let invalid = ErrorKind::InvalidArgument;
            refused(
                node_request(&node(kind, bytes)).unwrap_err(),
                invalid,
                &["nodes."],
            );
        }
        let leaf = v1::LeafChunks {
            leaf_id: vec![1; 31].into(),
            entries: vec![0],
            segment: 0,
        };
        let error = chunk_request(leaf).unwrap_err();
        refused(error, ErrorKind::InvalidArgument, &["leaves.leaf_id"]);
    }
}
