//! Real encodings, from which the corpus is made.

use std::collections::BTreeMap;

use varve_content::{
    ChunkId, Codec, Compression, NodeId, RootId,
    chunker::CHUNKER_VERSION,
    codec::Encoder,
    tree::{InnerNode, Leaf, LeafEntry, Root},
};
use varve_store::format::{
    AccountId, CatalogRecord as _, CopyId, CopyOutcome, CopyRecord, GcReport, LastRun, Location,
    OwnerRecord, PackId, PackKind, PendingSnapshot, RemoteRecord, SnapshotContent, SnapshotId,
    SnapshotOrigin, SnapshotRecord, SnapshotState, StoreId, VolumeId, VolumeRecord,
    journal::{self, Descriptor, Entry, FileHeader},
    keys::{self, Identity, PackPhase, PackState, Totals},
    pack::{self, FooterEntry, PackHeader, PackNonce, Payload, RecordHeader, RecordKind},
    record::{Counter, Kind, Sharing},
    store_file::StoreFile,
};
use varve_tests::{nbd, random::Random};

use super::{accounts, images, logs};

pub(super) type Samples = Vec<(&'static str, Vec<u8>)>;

/// The samples of a decoder, by file name.
pub(super) fn of(decoder: &str) -> Samples {
    match decoder {
        "pack-header" => vec![
            ("chunks", pack_header(PackKind::Chunks, 1, PACK_NONCE)),
            ("nodes", pack_header(PackKind::Nodes, u64::MAX, PACK_NONCE)),
            ("version-1", pack_header(PackKind::Chunks, 1, None)),
        ],
        "pack-record-header" => record_headers(),
        "pack-record" => records(),
        "pack-footer" => vec![
            ("empty", footer(0, PACK_NONCE)),
            ("one", footer(1, PACK_NONCE)),
            ("full-block", footer(77, PACK_NONCE)),
            ("two-blocks", footer(100, PACK_NONCE)),
            ("version-1", footer(1, None)),
        ],
        "pack-id" => vec![
            ("chunks", CHUNKS.to_string().into_bytes()),
            (
                "nodes",
                PackId {
                    kind: PackKind::Nodes,
                    number: u64::MAX,
                }
                .to_string()
                .into_bytes(),
            ),
        ],
        "catalog-log-header" | "catalog-log" | "catalog-log-checkpoint" => logs::of(decoder),
        "journal-header" => vec![
            ("header", journal_header()),
            ("version-1", journal_header_of_version_1()),
        ],
        "journal-owner" => vec![("attached", owner(true)), ("detached", owner(false))],
        "journal-descriptor" => vec![
            ("one", descriptor(&[data(7, 1)])),
            ("zeros", descriptor(&[zeros(0, 4096), zeros(u32::MAX, 1)])),
            (
                "mixed",
                descriptor(&[data(2, 3), zeros(2, 1), data(90, 200)]),
            ),
            ("full", descriptor(&[data(1 << 20, 512)])),
            (
                "scattered",
                descriptor(&(0..250).map(|n| data(n * 99, 1)).collect::<Vec<_>>()),
            ),
        ],
        "snapshot-record" => vec![
            ("plain", snapshot(0).encode()),
            ("tags", snapshot(3).encode()),
            ("of-volume", snapshot_of_volume(snapshot(0).state).encode()),
            (
                "pending",
                snapshot_of_volume(SnapshotState::Pending).encode(),
            ),
            ("failed", snapshot_of_volume(failed()).encode()),
            ("of-account", snapshot_of_account().encode()),
            ("shared", shared_snapshot().encode()),
        ],
        "volume-record" => vec![
            ("fresh", volume(false).encode()),
            ("attached", volume(true).encode()),
            ("pending", volume_with_pending().encode()),
            ("promised", volume_with_promise().encode()),
            ("of-account", volume_of_account().encode()),
        ],
        "copy-record" => vec![
            ("begun", copy(CopyOutcome::UnderWay).encode()),
            ("completed", copy(CopyOutcome::Completed).encode()),
            ("failed", copy(CopyOutcome::Failed).encode()),
            ("failed-with-code", failed_with_code().encode()),
            (
                "of-account",
                CopyRecord {
                    owner: accounts::account(),
                    ..copy(CopyOutcome::Completed)
                }
                .encode(),
            ),
        ],
        "volume-id" => vec![("id", volume(false).id.to_string().into_bytes())],
        "snapshot-id" => vec![("id", snapshot_id().to_string().into_bytes())],
        "store-file" => [
            ("zstd", Compression::Zstd),
            ("lz4", Compression::Lz4),
            ("none", Compression::None),
        ]
        .map(|(name, compression)| (name, store_file(compression)))
        .into(),
        "index-location" => vec![
            ("chunk", location(RecordKind::Chunk).encode().to_vec()),
            ("leaf", location(RecordKind::Leaf).encode().to_vec()),
        ],
        "index-pack-state" => vec![
            ("open", pack_state(PackPhase::Open)),
            ("sealed", pack_state(PackPhase::Sealed)),
            ("emptied", pack_state(PackPhase::Emptied)),
        ],
        "index-totals" => vec![
            ("zero", Totals::default().encode().to_vec()),
            ("some", totals(0)),
            ("volumes", totals(8)),
            ("wide", wide_totals()),
            ("others", totals_with_others()),
        ],
        "index-last-run" => vec![
            ("ended", last_run(Ok(GcReport::default()))),
            ("stopped", last_run(Ok(stopped()))),
            ("failed", last_run(Err("the disk is full".to_owned()))),
        ],
        "index-identity" => vec![("identity", Identity { store: store() }.encode().to_vec())],
        "index-sequence" => vec![
            ("one", keys::encode_sequence(1).to_vec()),
            ("large", keys::encode_sequence(1 << 40).to_vec()),
        ],
        "index-named" => vec![("id", snapshot_id().as_bytes().to_vec())],
        "tree-leaf" => vec![
            ("one", leaf(1, 3).encode()),
            ("holes", leaf(20, 3).encode()),
            ("full", leaf(32, 64).encode()),
        ],
        "tree-inner" => vec![
            ("one", inner(1, 1).encode()),
            ("some", inner(2, 7).encode()),
            ("full", inner(1, 256).encode()),
        ],
        "tree-root" => vec![("empty", root(None)), ("some", root(Some(node_id(1))))],
        "chunk-codec" => chunk_codecs(),
        "nbd-client-flags" => vec![("both", vec![0, 0, 0, 3]), ("none", vec![0; 4])],
        "nbd-option" => vec![
            ("go", nbd::option_bytes(nbd::option::GO, 20)),
            ("list", nbd::option_bytes(nbd::option::LIST, 0)),
        ],
        "nbd-option-data" => option_data(),
        "nbd-export-name" => vec![
            ("snapshot", b"snapshot/web".to_vec()),
            ("volume", b"volume/vol-0123456789abcdef0@7".to_vec()),
            (
                "ticket",
                b"volume/vol-0123456789abcdef0@7:varve_ticket_0123456789abcdef".to_vec(),
            ),
        ],
        "nbd-request" => vec![
            (
                "read",
                nbd::request_bytes(nbd::request::READ, 1, 4096, 4096),
            ),
            (
                "write",
                nbd::request_bytes(nbd::request::WRITE, u64::MAX, 0, 1 << 20),
            ),
            (
                "status",
                nbd::request_bytes(nbd::request::BLOCK_STATUS, 2, 1 << 40, u32::MAX),
            ),
        ],
        "nbd-extended-request" => vec![
            (
                "trim",
                nbd::extended_request_bytes(nbd::request::TRIM, 1, 4096, 1 << 40),
            ),
            ("write", {
                let mut write =
                    nbd::extended_request_bytes(nbd::request::WRITE, u64::MAX, 0, 1 << 20);
                write[5] = nbd::FLAG_PAYLOAD_LEN;
                write
            }),
        ],
        "nbd-status-query" => vec![
            ("all", 4096_u64.to_be_bytes().to_vec()),
            (
                "two",
                [&(1_u64 << 40).to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 2]].concat(),
            ),
        ],
        other => images::of(other),
    }
}

const CHUNKS: PackId = PackId {
    kind: PackKind::Chunks,
    number: 7,
};

pub(super) fn store() -> StoreId {
    StoreId::from_bytes([0x51; StoreId::BYTES])
}

pub(super) fn snapshot_id() -> SnapshotId {
    SnapshotId::from_low_bits([1, 2, 3, 4, 5, 6, 7, 8, 9])
}

fn chunk_id(number: u8) -> ChunkId {
    ChunkId::of(&[number])
}

fn node_id(number: u8) -> NodeId {
    NodeId::from_bytes(*chunk_id(number).as_bytes())
}

fn store_file(compression: Compression) -> Vec<u8> {
    let file = StoreFile {
        store: store(),
        chunker_version: CHUNKER_VERSION,
        compression,
        created_unix_seconds: 1_700_000_000,
    };
    file.encode().into_bytes()
}

const PACK_NONCE: Option<PackNonce> = Some([0x9e; 12]);

fn pack_header(kind: PackKind, number: u64, nonce: Option<PackNonce>) -> Vec<u8> {
    let header = PackHeader {
        pack: PackId { kind, number },
        store: store(),
        created_unix_seconds: 1_700_000_000,
        nonce,
    };
    header.encode().to_vec()
}

fn payload(kind: RecordKind, stored_bytes: u32) -> Payload {
    let chunk = kind == RecordKind::Chunk;
    Payload {
        kind,
        codec: if chunk { Codec::Zstd } else { Codec::Raw },
        end_open: chunk,
        plain_bytes: if chunk { 8192 } else { stored_bytes },
        stored_bytes,
    }
}

fn record_headers() -> Samples {
    let header = |kind, offset: u64| {
        let record = RecordHeader::new(payload(kind, 100), *chunk_id(1).as_bytes(), &[1; 100]);
        [offset.to_le_bytes().as_slice(), &record.encode(offset)].concat()
    };
    let padding = |offset: u64| {
        [
            offset.to_le_bytes().as_slice(),
            &pack::encode_padding(offset),
        ]
        .concat()
    };
    vec![
        ("chunk", header(RecordKind::Chunk, 4096)),
        ("leaf", header(RecordKind::Leaf, 4096 + 168)),
        ("inner", header(RecordKind::Inner, 1 << 20)),
        ("root", header(RecordKind::Root, 1 << 27)),
        ("padding", padding(4096 + 168)),
        ("long-padding", padding(8192 - 8)),
    ]
}

fn records() -> Samples {
    let record = |kind, offset: u64, len: usize| {
        let stored = vec![len as u8; len];
        let header = RecordHeader::new(payload(kind, len as u32), *chunk_id(1).as_bytes(), &stored);
        let mut bytes = [
            offset.to_le_bytes().as_slice(),
            &header.encode(offset),
            &stored,
        ]
        .concat();
        bytes.resize(8 + header.payload.record_bytes() as usize, 0);
        bytes
    };
    let offset = 8192u64 - 200;
    let mut padding = [
        offset.to_le_bytes().as_slice(),
        &pack::encode_padding(offset),
    ]
    .concat();
    padding.resize(8 + pack::padding_bytes(offset) as usize, 0);
    vec![
        ("chunk", record(RecordKind::Chunk, 4096, 1001)),
        ("leaf", record(RecordKind::Leaf, 8192, 44)),
        ("padding", padding),
    ]
}

fn footer(entries: u8, nonce: Option<PackNonce>) -> Vec<u8> {
    let offset = 1u64 << 20;
    let entries: Vec<_> = (0..entries)
        .map(|number| FooterEntry {
            id: *chunk_id(number).as_bytes(),
            offset_bytes: 4096 + 1000 * u64::from(number),
            payload: payload(RecordKind::Chunk, 900),
        })
        .collect();
    let footer = pack::encode_footer(CHUNKS, nonce, offset, &entries);
    [
        (offset + footer.len() as u64).to_le_bytes().as_slice(),
        &footer,
    ]
    .concat()
}

/// A snapshot of a volume, which only the second version of the encoding can express.
pub(super) fn snapshot_of_volume(state: SnapshotState) -> SnapshotRecord {
    SnapshotRecord {
        state,
        origin: Some(SnapshotOrigin {
            volume: volume(false).id,
            name: "db".to_owned(),
        }),
        parent: Some(SnapshotId::from_low_bits([9; 9])),
        ..snapshot(1)
    }
}

fn failed() -> SnapshotState {
    SnapshotState::Failed {
        reason: "no space left".to_owned(),
    }
}

pub(super) fn volume_with_pending() -> VolumeRecord {
    let pending = |next_file| PendingSnapshot {
        snapshot: snapshot_id(),
        next_file,
    };
    VolumeRecord {
        pending: vec![pending(2), pending(7)],
        ..volume(true)
    }
}

fn volume_with_promise() -> VolumeRecord {
    VolumeRecord {
        promised_sequence: (6 << 32) + 41,
        ..volume_with_pending()
    }
}

/// A record that needs the third version of the encoding.
fn snapshot_of_account() -> SnapshotRecord {
    SnapshotRecord {
        name: None,
        owner: accounts::account(),
        description: "before the upgrade".to_owned(),
        ..snapshot_of_volume(SnapshotState::Pending)
    }
}

/// The same in its fourth version.
fn shared_snapshot() -> SnapshotRecord {
    let mut record = snapshot_of_account();
    record.sharing.everybody = true;
    record.sharing.accounts = [accounts::account(), AccountId::default()].into();
    record
}

/// A record that needs the fourth version of the encoding.
fn volume_of_account() -> VolumeRecord {
    VolumeRecord {
        name: None,
        owner: accounts::account(),
        description: "scratch".to_owned(),
        ..volume_with_pending()
    }
}

pub(super) fn snapshot(tags: u8) -> SnapshotRecord {
    SnapshotRecord {
        id: snapshot_id(),
        name: Some("web/daily@2026-01-31".to_owned()),
        owner: AccountId::ADMINISTRATOR,
        description: String::new(),
        size_bytes: 4 << 30,
        state: SnapshotState::Completed(SnapshotContent {
            root: RootId::from_bytes(*chunk_id(9).as_bytes()),
            data_bytes: 486 << 20,
            new_bytes: 1 << 20,
            stored_bytes: 1 << 19,
        }),
        created_at_ns: 1_700_000_000_123_456_789,
        tags: (0..tags)
            .map(|number| (format!("key-{number}"), "wért".repeat(number.into())))
            .collect::<BTreeMap<_, _>>(),
        origin: None,
        parent: None,
        sharing: Sharing::default(),
    }
}

pub(super) fn volume(attached: bool) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId::from_low_bits([0xb7; 9]),
        name: Some("db/data".to_owned()),
        owner: AccountId::ADMINISTRATOR,
        description: String::new(),
        size_bytes: 10 << 30,
        base: attached.then(|| RootId::from_bytes(*chunk_id(9).as_bytes())),
        parent: attached.then(snapshot_id),
        created_at_ns: 1_700_000_000_123_456_789,
        tags: [("tier".to_owned(), "gold".to_owned())].into(),
        attached_at_ns: attached.then_some(1_700_000_001_000_000_000),
        attachments: attached.into(),
        journal_from: 1,
        pending: Vec::new(),
        promised_sequence: 0,
    }
}

pub(super) fn copy(outcome: CopyOutcome) -> CopyRecord {
    let is_known = outcome != CopyOutcome::UnderWay;
    CopyRecord {
        id: CopyId::from_low_bits([0xc3; 9]),
        owner: AccountId::ADMINISTRATOR,
        endpoint: "https://eu.example.com:7420".to_owned(),
        allow_plaintext: !is_known,
        snapshot: "web/1".to_owned(),
        name: "eu/web/1".to_owned(),
        tags: [("from".to_owned(), "eu".to_owned())].into(),
        bytes_per_second: 100 << 20,
        created_at_ns: 1_700_000_000_123_456_789,
        outcome,
        ended_at_ns: is_known.then_some(1_700_000_060_000_000_000),
        root: is_known.then(|| RootId::from_bytes(*chunk_id(9).as_bytes())),
        made: (outcome == CopyOutcome::Completed).then(snapshot_id),
        size_bytes: 4 << 30,
        data_bytes: 500 << 20,
        done_data_bytes: 250 << 20,
        received_chunks: 6000,
        received_bytes: 90 << 20,
        last_error: "connect: connection refused".to_owned(),
        last_error_code: 0,
    }
}

/// Only the second version of the encoding can express it.
fn failed_with_code() -> CopyRecord {
    CopyRecord {
        last_error_code: 14,
        ..copy(CopyOutcome::Failed)
    }
}

pub(super) fn remote(has_files: bool) -> RemoteRecord {
    let file = |path: &str| {
        if has_files {
            path.to_owned()
        } else {
            String::new()
        }
    };
    RemoteRecord {
        owner: AccountId::ADMINISTRATOR,
        name: "eu".to_owned(),
        endpoint: "https://eu.example.com:7420".to_owned(),
        allow_plaintext: !has_files,
        tls_ca: file("/etc/varve/eu-ca.pem"),
        tls_cert: file("/etc/varve/eu.pem"),
        tls_key: file("/etc/varve/eu.key"),
        token_file: String::new(),
        created_at_ns: 1_700_000_000_123_456_789,
    }
}

fn journal_header() -> Vec<u8> {
    let header = FileHeader {
        store: store(),
        volume: VolumeId::from_low_bits([0xb7; 9]),
        number: 3,
        first_sequence: journal::first_sequence_of(3),
        previous_sequence: journal::first_sequence_of(2) + 4711,
        nonce: [0x9e; 16],
    };
    header.encode().to_vec()
}

/// The old encoding, which is still read.
fn journal_header_of_version_1() -> Vec<u8> {
    let mut header = journal_header();
    header[8] = 1;
    header[80..88].fill(0);
    let crc32 = crc32fast::hash(&header[..124]);
    header[124..128].copy_from_slice(&crc32.to_le_bytes());
    header
}

fn owner(attached: bool) -> Vec<u8> {
    let record = OwnerRecord {
        store: store(),
        number: 7,
        volume: volume(attached),
    };
    record.encode().unwrap().to_vec()
}

const fn data(start_block: u32, blocks: u32) -> Entry {
    Entry {
        start_block,
        blocks,
        zeros: false,
    }
}

const fn zeros(start_block: u32, blocks: u32) -> Entry {
    Entry {
        start_block,
        blocks,
        zeros: true,
    }
}

fn descriptor(entries: &[Entry]) -> Vec<u8> {
    let data = entries.iter().filter(|entry| !entry.zeros);
    let blocks: u32 = data.map(|entry| entry.blocks).sum();
    let descriptor = Descriptor {
        file_number: 3,
        sequence: journal::first_sequence_of(3) + 2,
        synced_sequence: journal::first_sequence_of(3) + 1,
        nonce: [0x9e; 16],
        entries: entries.to_vec(),
        data_crcs: (0..blocks)
            .map(|block| crc32fast::hash(&[block as u8]))
            .collect(),
    };
    descriptor.encode().to_vec()
}

fn location(kind: RecordKind) -> Location {
    let pack = PackId {
        kind: kind.pack_kind(),
        number: 7,
    };
    Location {
        pack,
        offset_bytes: 123 * 4096 + 8,
        payload: payload(kind, 4711),
    }
}

fn last_run(outcome: Result<GcReport, String>) -> Vec<u8> {
    let run = LastRun {
        started_at_ns: 1,
        ended_at_ns: 2,
        outcome,
    };
    run.encode()
}

fn stopped() -> GcReport {
    GcReport {
        packs_removed: 3,
        removed_bytes: 3 << 28,
        packs_held: 2,
        held_by: vec!["web".to_owned(), "db".to_owned()],
        packs_damaged: 1,
        damage: vec!["a record".to_owned()],
        stopped: true,
        ..GcReport::default()
    }
}

fn pack_state(phase: PackPhase) -> Vec<u8> {
    let state = PackState {
        pack: CHUNKS,
        indexed_bytes: 1 << 20,
        phase,
    };
    [PackState::key_of(state.pack).as_slice(), &state.encode()].concat()
}

/// Of a kind that is counted and has no field of its own.
fn totals_with_others() -> Vec<u8> {
    let other = Kind::of::<RemoteRecord>("other", 10, "others").with_counter(Counter::Others);
    let mut totals = Totals {
        snapshots: 3,
        ..Totals::default()
    };
    if let Some(count) = totals.count_mut(&other) {
        *count = 1 << 20;
    }
    totals.encode()
}

fn wide_totals() -> Vec<u8> {
    let totals = Totals {
        snapshots: 1 << 21,
        logical_bytes: 1 << 65,
        ..Totals::default()
    };
    totals.encode()
}

fn totals(volumes: u64) -> Vec<u8> {
    let totals = Totals {
        chunks: 1,
        chunk_bytes: 2,
        nodes: 3,
        stored_bytes: 4,
        packs: 5,
        snapshots: 6,
        logical_bytes: 7,
        volumes,
        ..Totals::default()
    };
    totals.encode()
}

fn leaf(entries: u8, blocks: u32) -> Leaf {
    let step = 2048 / u32::from(entries);
    let entries = (0..entries).map(|number| LeafEntry {
        start_block: u32::from(number) * step,
        blocks,
        chunk: chunk_id(number),
    });
    Leaf::new(entries.collect()).unwrap()
}

fn inner(level: u8, children: usize) -> InnerNode {
    let step = 256 / children;
    let children = (0..children).map(|number| ((number * step) as u8, node_id(number as u8)));
    InnerNode::new(level, children.collect()).unwrap()
}

fn root(top: Option<NodeId>) -> Vec<u8> {
    let root = Root {
        size_bytes: 4 << 30,
        chunker_version: CHUNKER_VERSION,
        top,
    };
    root.encode().to_vec()
}

fn chunk_codecs() -> Samples {
    let mut plain = vec![0; 8192];
    Random::seeded(1).fill(&mut plain[..1000]);
    [
        ("raw", Compression::None),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ]
    .map(|(name, compression)| {
        let mut encoder = Encoder::new(compression);
        let (codec, packed) = encoder.encode(&plain);
        let [a, b, c, _] = (plain.len() as u32).to_le_bytes();
        (name, [[codec as u8, a, b, c].as_slice(), packed].concat())
    })
    .into()
}

fn option_data() -> Samples {
    let data = |option: u32, data: &[u8]| [option.to_be_bytes().as_slice(), data].concat();
    let name = b"snapshot/web";
    let mut info = nbd::go_data("snapshot/web");
    info.truncate(info.len() - 2);
    info.extend([0, 3, 0, 1, 0, 2, 0, 3]);
    let mut query = Vec::new();
    for text in [name.as_slice(), &[0, 0, 0, 2], b"base:allocation", b"qemu:"] {
        if text.len() == 4 {
            query.extend(text);
        } else {
            query.extend((text.len() as u32).to_be_bytes());
            query.extend(text);
        }
    }
    vec![
        ("export-name", data(nbd::option::EXPORT_NAME, name)),
        ("go", data(nbd::option::GO, &nbd::go_data("snapshot/web"))),
        ("info", data(nbd::option::INFO, &info)),
        (
            "set-meta-context",
            data(nbd::option::SET_META_CONTEXT, &query),
        ),
    ]
}
