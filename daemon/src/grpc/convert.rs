//! Every conversion between the protocol and the store, and every check of what a field may hold.
//!
//! What must hold: whatever a client sends is turned into the store's types or into a [`Failure`] that names the field
//! and the value. What the store checks itself (names, tags, extents) is not checked twice.

use bytes::Bytes;
use prost_types::Timestamp;
use varve_content::{
    ChunkId, Codec, RootId,
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunker::MAX_CHUNK_BLOCKS,
    printable::is_printable,
    tree::{DiffKind, Leaf, LeafEntry},
};
use varve_proto::v1;
use varve_store::{
    DiffExtent, IncomingChunk, Lineage, NewClone, NewSnapshots, NewVolume, Segment, SnapshotOrigin,
    SnapshotProgress, SnapshotRecord, SnapshotState, Store, StoredChunk, VerifiedChunk, Violation,
    VolumeRecord, VolumeStatus,
    format::{IdKind, RecordId},
};

use super::failure::Failure;
use crate::limits;

#[expect(clippy::cast_possible_truncation, reason = "4096")]
const BLOCK: u32 = BLOCK_BYTES as u32;
/// The longest plain chunk.
const CHUNK_BYTES_MAX: u32 = MAX_CHUNK_BLOCKS * BLOCK;

/// A snapshot, and how far it has come if it is pending.
pub(super) fn snapshot(store: &Store, record: SnapshotRecord) -> v1::Snapshot {
    let progress = match record.state {
        SnapshotState::Pending => store.snapshot_progress(record.id).unwrap_or_default(),
        SnapshotState::Completed(_) | SnapshotState::Failed { .. } => SnapshotProgress::default(),
    };
    snapshot_with(progress, record)
}

/// One that is complete.
pub(super) fn completed_snapshot(record: SnapshotRecord) -> v1::Snapshot {
    snapshot_with(SnapshotProgress::default(), record)
}

fn snapshot_with(progress: SnapshotProgress, record: SnapshotRecord) -> v1::Snapshot {
    let content = record.content().copied();
    let (state, failure) = match record.state {
        SnapshotState::Completed(_) => (v1::SnapshotState::Completed, String::new()),
        SnapshotState::Pending => {
            let waits_for = progress.waits_for.clone();
            (v1::SnapshotState::Pending, waits_for.unwrap_or_default())
        }
        SnapshotState::Failed { reason } => (v1::SnapshotState::Failed, reason),
    };
    let (volume_id, volume_name) = record
        .origin
        .map(|origin| (origin.volume.to_string(), origin.name))
        .unwrap_or_default();
    let bytes = |segments: u64| segments * SEGMENT_BYTES as u64;
    v1::Snapshot {
        id: record.id.to_string(),
        name: record.name,
        state: state.into(),
        size_bytes: record.size_bytes,
        data_bytes: content.map_or(0, |content| content.data_bytes),
        root: content.map_or_else(Bytes::new, |content| {
            Bytes::copy_from_slice(content.root.as_bytes())
        }),
        created_at: Some(timestamp(record.created_at_ns)),
        tags: record.tags,
        new_bytes: content.map_or(0, |content| content.new_bytes),
        stored_bytes: content.map_or(0, |content| content.stored_bytes),
        volume_id,
        volume_name,
        parent: record.parent.map(|id| id.to_string()).unwrap_or_default(),
        progress: (state == v1::SnapshotState::Pending).then(|| v1::SnapshotProgress {
            done_bytes: bytes(progress.segments_done),
            total_bytes: bytes(progress.segments_total),
        }),
        failure,
    }
}

pub(super) fn volume_status(status: VolumeStatus, pending: Vec<v1::Snapshot>) -> v1::VolumeStatus {
    v1::VolumeStatus {
        journal_bytes: status.journal_bytes,
        journal_bytes_max: status.journal_bytes_max,
        map_bytes: status.map_bytes,
        found: status.found.map(|found| v1::JournalFound {
            batches: found.batches,
            blocks: found.blocks,
            files: found.files,
            torn: found.torn.unwrap_or_default(),
        }),
        pending,
    }
}

pub(super) fn volume(record: VolumeRecord) -> v1::Volume {
    v1::Volume {
        id: record.id.to_string(),
        name: record.name,
        size_bytes: record.size_bytes,
        base: record
            .base
            .map_or_else(Bytes::new, |root| Bytes::copy_from_slice(root.as_bytes())),
        parent: record.parent.map(|id| id.to_string()).unwrap_or_default(),
        created_at: Some(timestamp(record.created_at_ns)),
        tags: record.tags,
        attached_at: record.attached_at_ns.map(timestamp),
        attachments: record.attachments,
        status: None,
    }
}

pub(super) fn new_clone(request: v1::CloneVolumeRequest) -> Result<NewClone, Failure> {
    Ok(NewClone {
        source: check_key("snapshot or volume", "source", &request.source)?.to_owned(),
        name: request.name,
        size_bytes: (request.size_bytes != 0).then_some(request.size_bytes),
        tags: request.tags,
    })
}

pub(super) fn new_snapshots(request: v1::CreateSnapshotsRequest) -> Result<NewSnapshots, Failure> {
    for volume in &request.volumes {
        volume_key(volume)?;
    }
    Ok(NewSnapshots {
        volumes: request.volumes,
        name: request.name,
        tags: request.tags,
    })
}

pub(super) fn new_volume(request: v1::CreateVolumeRequest) -> Result<NewVolume, Failure> {
    let from = match request.from_snapshot.as_str() {
        "" => None,
        key => Some(snapshot_key("from_snapshot", key)?.to_owned()),
    };
    Ok(NewVolume {
        name: request.name,
        size_bytes: (request.size_bytes != 0).then_some(request.size_bytes),
        from,
        tags: request.tags,
    })
}

/// The NBD export of a volume.
pub(super) fn volume_export(name: &str) -> String {
    format!("volume/{name}")
}

/// The URI of an export, from one without an export name. What names are made of may all stand in a URI's path.
pub(super) fn export_uri(base: &str, export: &str) -> String {
    let (server, query) = match base.split_once('?') {
        Some((server, query)) => (server, format!("?{query}")),
        None => (base, String::new()),
    };
    let server = server.strip_suffix('/').unwrap_or(server);
    format!("{server}/{export}{query}")
}

/// A time in nanoseconds since 1970.
pub(super) fn timestamp(unix_ns: u64) -> Timestamp {
    const NANOS: u64 = 1_000_000_000;
    let nanos = (unix_ns % NANOS) as i32;
    Timestamp {
        seconds: (unix_ns / NANOS).cast_signed(),
        nanos,
    }
}

/// A time since 1970, in nanoseconds.
fn unix_ns(field: &'static str, time: Option<Timestamp>) -> Result<u64, Failure> {
    let wrong = || Failure::field(field, "no time between 1970 and 2554");
    let time = time.ok_or_else(wrong)?;
    let seconds = u64::try_from(time.seconds).map_err(|_| wrong())?;
    let nanos = u64::try_from(time.nanos).map_err(|_| wrong())?;
    if nanos >= 1_000_000_000 {
        return Err(wrong());
    }
    let whole = seconds.checked_mul(1_000_000_000);
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .ok_or_else(wrong)
}

/// That an endpoint or a path is no longer than one can be.
pub(super) fn check_remote_text(field: &'static str, text: &str) -> Result<(), Failure> {
    if text.len() > limits::REMOTE_TEXT_BYTES_MAX {
        return Err(Failure::TooMuch {
            field,
            unit: "bytes",
            found: text.len() as u64,
            most: limits::REMOTE_TEXT_BYTES_MAX as u64,
        });
    }
    if let Some(char) = text.chars().find(|char| !is_printable(*char)) {
        let why = format!(
            "it has the character U+{:04X}, which does not show as itself and is not allowed",
            u32::from(char)
        );
        return Err(Failure::field(field, why));
    }
    Ok(())
}

fn record_id<K: IdKind>(field: &'static str, text: &str) -> Result<RecordId<K>, Failure> {
    if text.len() > limits::QUOTED_CHARS_MAX {
        return Err(Failure::field(
            field,
            format!("{} bytes are no id", text.len()),
        ));
    }
    let id = text.parse::<RecordId<K>>();
    id.map_err(|error| Failure::field(field, error.to_string()))
}

/// Where a snapshot of another store comes from.
pub(super) fn lineage(lineage: v1::SnapshotLineage) -> Result<Lineage, Failure> {
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

/// The name or id of a snapshot in a request; the store knows which it is.
pub(super) fn snapshot_key<'a>(field: &'static str, key: &'a str) -> Result<&'a str, Failure> {
    check_key("snapshot", field, key)
}

/// The same of a volume.
pub(super) fn volume_key(key: &str) -> Result<&str, Failure> {
    check_key("volume", "volume", key)
}

fn check_key<'a>(what: &str, field: &'static str, key: &'a str) -> Result<&'a str, Failure> {
    match key {
        "" => Err(Failure::field(
            field,
            format!("it is empty, a {what}'s name or id is asked for"),
        )),
        // Any longer one names nothing, and need not be repeated in an error.
        _ if key.len() > limits::KEY_BYTES_MAX => Err(Failure::field(
            field,
            format!(
                "{} bytes, a name or id has at most {}",
                key.len(),
                limits::KEY_BYTES_MAX
            ),
        )),
        _ => Ok(key),
    }
}

pub(super) fn chunk_ids(ids: &[u8]) -> Result<Vec<ChunkId>, Failure> {
    let (ids, rest) = ids.as_chunks::<{ ChunkId::BYTES }>();
    if !rest.is_empty() {
        return Err(Failure::field(
            "ids",
            format!(
                "{} bytes are not a multiple of {}",
                ids.len() * ChunkId::BYTES + rest.len(),
                ChunkId::BYTES
            ),
        ));
    }
    if ids.len() > limits::FIND_IDS_MAX as usize {
        return Err(Failure::TooMuch {
            field: "ids",
            unit: "ids",
            found: ids.len() as u64,
            most: limits::FIND_IDS_MAX.into(),
        });
    }
    Ok(ids.iter().copied().map(ChunkId::from_bytes).collect())
}

pub(super) fn root(bytes: &[u8]) -> Result<RootId, Failure> {
    RootId::try_from(bytes).map_err(|_| wrong_id_length("root", bytes))
}

pub(super) fn incoming_chunk(chunk: v1::Chunk) -> Result<IncomingChunk, Failure> {
    let id =
        ChunkId::try_from(&chunk.id[..]).map_err(|_| wrong_id_length("chunks.id", &chunk.id))?;
    let codec = match v1::Codec::try_from(chunk.codec) {
        Ok(v1::Codec::Raw) => Codec::Raw,
        Ok(v1::Codec::Lz4) => Codec::Lz4,
        Ok(v1::Codec::Zstd) => Codec::Zstd,
        Err(_) => {
            return Err(Failure::field(
                "chunks.codec",
                format!("{} of chunk {id} is none of RAW, LZ4 and ZSTD", chunk.codec),
            ));
        }
    };
    if !chunk.plain_bytes.is_multiple_of(BLOCK)
        || !(BLOCK..=CHUNK_BYTES_MAX).contains(&chunk.plain_bytes)
    {
        return Err(Failure::field(
            "chunks.plain_bytes",
            format!(
                "{} of chunk {id} is not a multiple of {BLOCK} from {BLOCK} to {CHUNK_BYTES_MAX}",
                chunk.plain_bytes
            ),
        ));
    }
    Ok(IncomingChunk {
        id,
        codec,
        plain_bytes: chunk.plain_bytes,
        payload: chunk.payload,
    })
}

/// A leaf and its segment.
pub(super) fn incoming_leaf(leaf: &v1::Leaf) -> Result<(u32, Leaf), Failure> {
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
        Failure::field(
            "leaves",
            format!("the leaf of segment {}: {error}", leaf.segment),
        )
    })?;
    Ok((leaf.segment, built))
}

pub(super) fn leaf(segment: &Segment) -> v1::Leaf {
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

pub(super) fn stored_chunk(chunk: StoredChunk) -> v1::Chunk {
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

pub(super) fn plain_chunk(chunk: &VerifiedChunk) -> v1::Chunk {
    v1::Chunk {
        id: Bytes::copy_from_slice(chunk.id().as_bytes()),
        codec: v1::Codec::Raw.into(),
        // At most CHUNK_BYTES_MAX: the store makes no longer ones.
        plain_bytes: u32::try_from(chunk.plain().len()).unwrap_or(u32::MAX),
        payload: chunk.plain().clone(),
    }
}

pub(super) fn diff_extent(extent: DiffExtent) -> v1::DiffExtent {
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

pub(super) fn violation(violation: Violation) -> v1::Violation {
    v1::Violation {
        message: violation.to_string(),
        offset_bytes: violation.offset_bytes,
    }
}

fn wrong_id_length(field: &'static str, bytes: &[u8]) -> Failure {
    Failure::field(
        field,
        format!("{} bytes, an id has {}", bytes.len(), ChunkId::BYTES),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use tonic::Code;

    use super::*;

    fn refused(failure: Failure, code: Code, texts: &[&str]) {
        assert_eq!(failure.code(), code, "{failure}");
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
            Code::InvalidArgument,
            &["chunks.id", "31 bytes"],
        );
        refused(
            change(|c| c.codec = 9),
            Code::InvalidArgument,
            &["chunks.codec", "9"],
        );
        for plain_bytes in [0, 4095, 262_144 + 4096, u32::MAX] {
            let mut chunk = chunk();
            chunk.plain_bytes = plain_bytes;
            let failure = incoming_chunk(chunk).unwrap_err();
            refused(
                failure,
                Code::InvalidArgument,
                &["chunks.plain_bytes", &plain_bytes.to_string()],
            );
        }
    }

    #[test]
    fn ids_are_counted() {
        assert_eq!(chunk_ids(&[]).unwrap(), []);
        assert_eq!(
            chunk_ids(&[1; 64]).unwrap(),
            [ChunkId::from_bytes([1; 32]); 2]
        );
        refused(
            chunk_ids(&[1; 65]).unwrap_err(),
            Code::InvalidArgument,
            &["ids", "65"],
        );
        let many = vec![0; 32 * (limits::FIND_IDS_MAX as usize + 1)];
        refused(
            chunk_ids(&many).unwrap_err(),
            Code::OutOfRange,
            &["8193", "8192"],
        );
        refused(
            root(&[1; 33]).unwrap_err(),
            Code::InvalidArgument,
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
            refused(failure, Code::InvalidArgument, &["leaves", "segment 5"]);
        }
        let mut short = entry(0, 4);
        short.chunk_id.truncate(8);
        let failure = incoming_leaf(&leaf(vec![short])).unwrap_err();
        refused(
            failure,
            Code::InvalidArgument,
            &["leaves.entries.chunk_id", "8 bytes"],
        );
    }

    #[test]
    fn keys_have_a_length() {
        assert_eq!(snapshot_key("snapshot", "web").unwrap(), "web");
        refused(
            volume_key("").unwrap_err(),
            Code::InvalidArgument,
            &["volume", "empty"],
        );
        refused(
            snapshot_key("base", "").unwrap_err(),
            Code::InvalidArgument,
            &["base", "empty"],
        );
        refused(
            snapshot_key("base", &"x".repeat(10_000)).unwrap_err(),
            Code::InvalidArgument,
            &["base", "10000 bytes"],
        );
    }

    #[test]
    fn exports_have_uris_on_each_server() {
        for (base, uri) in [
            (
                "nbd+unix:///?socket=/run/nbd.sock",
                "nbd+unix:///volume/web/a?socket=/run/nbd.sock",
            ),
            ("nbd://[::1]:10809", "nbd://[::1]:10809/volume/web/a"),
        ] {
            assert_eq!(export_uri(base, &volume_export("web/a")), uri);
        }
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        let time = timestamp(1_700_000_000_123_456_789);
        assert_eq!((time.seconds, time.nanos), (1_700_000_000, 123_456_789));
    }
}
