//! Archives that are as they should be, and archives that lie.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::{Arc as Shared, Mutex};

use varve_content::{
    block::BLOCK_BYTES,
    codec::Codec,
    tree::{Leaf, LeafEntry, TreeBuilder},
};
use varve_proto::v1::{self, archive_record::Record};

use super::{read::Reader, verify::check, write::Writer, *};
use crate::{control::Control, convert::chunk_message, error::ErrorKind, upload::leaf_message};

/// A file that somebody else looks at, too.
#[derive(Clone, Default)]
struct File(Shared<Mutex<Vec<u8>>>);

impl std::io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const SIZE_BYTES: u64 = 24 << 20;

/// A chunk of one block of this byte.
fn chunk(byte: u8) -> (ChunkId, v1::Chunk) {
    let plain = vec![byte; BLOCK_BYTES];
    let id = ChunkId::of(&plain);
    (id, chunk_message(id, Codec::Raw, BLOCK_BYTES, plain.into()))
}

fn leaf(bytes: &[u8]) -> Leaf {
    let entries = bytes.iter().zip(0..).map(|(byte, at)| LeafEntry {
        start_block: at * 3,
        blocks: 1,
        chunk: chunk(*byte).0,
    });
    Leaf::new(entries.collect()).unwrap()
}

fn batch(bytes: &[u8]) -> Record {
    Record::Chunks(v1::ChunkBatch {
        chunks: bytes.iter().map(|byte| chunk(*byte).1).collect(),
    })
}

/// Segments 0 and 2.
fn leaves() -> [(u32, Leaf); 2] {
    [(0, leaf(&[1, 2, 1])), (2, leaf(&[2, 3]))]
}

fn snapshot(name: &str, leaves: &[(u32, Leaf)]) -> v1::Snapshot {
    let mut tree = TreeBuilder::new(SIZE_BYTES).unwrap();
    for (segment, leaf) in leaves {
        tree.push(*segment, leaf.id()).unwrap();
    }
    v1::Snapshot {
        id: "snap-0123456789abcdef0".to_owned(),
        name: name.to_owned(),
        state: v1::SnapshotState::Completed.into(),
        size_bytes: SIZE_BYTES,
        data_bytes: 5 * BLOCK_BYTES as u64,
        root: tree.finish().0.id().as_bytes().to_vec().into(),
        created_at: Some(prost_types::Timestamp::default()),
        ..v1::Snapshot::default()
    }
}

fn head() -> v1::ArchiveHead {
    v1::ArchiveHead {
        snapshot: Some(snapshot("web", &leaves())),
        base: None,
        chunker: Some(v1::ChunkerParameters { version: 1 }),
    }
}

/// The records of a good archive, but for its end.
fn records() -> Vec<Record> {
    let [(first, one), (second, other)] = leaves();
    vec![
        Record::Head(head()),
        Record::Leaf(leaf_message(first, &one)),
        batch(&[1]),
        batch(&[2]),
        Record::Leaf(leaf_message(second, &other)),
        batch(&[3]),
    ]
}

/// A file with these records, and its end.
fn file(records: Vec<Record>) -> Vec<u8> {
    let file = File::default();
    let mut writer = Writer::new(file.clone()).unwrap();
    for record in records {
        writer.record(record).unwrap();
    }
    writer.finish().unwrap();
    let bytes = file.0.lock().unwrap();
    bytes.clone()
}

fn refusal(bytes: &[u8]) -> (ErrorKind, String) {
    let error = check(bytes, "x", &Control::default()).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn an_archive_is_read_as_it_was_written() {
    let bytes = file(records());
    let facts = check(&bytes[..], "x", &Control::default()).unwrap();
    assert_eq!((facts.chunks, facts.payload_bytes), (3, 3 * 4096));
    assert_eq!(facts.archive_bytes, bytes.len() as u64);
    assert_eq!(facts.snapshot.name, "web");
    assert_eq!(facts.base, None);
    assert_eq!(
        archive_head(&bytes[..], "x").unwrap().snapshot,
        facts.snapshot
    );
    let mut reader = Reader::open(&bytes[..], "x").unwrap();
    let mut found = Vec::new();
    while let Some(group) = reader.next().unwrap() {
        found.push((group.segment, group.chunks.len()));
    }
    assert_eq!(found, [(0, 2), (2, 1)]);
    assert!(reader.next().unwrap().is_none(), "it stays at its end");
}

/// The layout is a promise.
#[test]
fn the_beginning_and_the_end_are_pinned() {
    let bytes = file(records());
    assert_eq!(&bytes[..16], b"varve archive 1\n");
    assert!(is_archive(&bytes) && !is_archive(b"varve archive 2\n"));
    let len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    assert_eq!(bytes[20], 0x0a, "the head is field 1 of the first record");
    assert_eq!(bytes[20 + len + 4], 0x12, "then a leaf, field 2");
    // The end: field 5 of 36 bytes, in it the number of chunks and the digest.
    let end = &bytes[bytes.len() - 42..];
    assert_eq!(end[..4], 38u32.to_le_bytes());
    assert_eq!(end[4..10], [0x2a, 36, 0x08, 3, 0x12, 32]);
    let digest = blake3::hash(&bytes[..bytes.len() - 42]);
    assert_eq!(end[10..], digest.as_bytes()[..]);
}

#[test]
fn every_cut_and_every_changed_byte_is_found() {
    let good = file(records());
    for len in 0..good.len() {
        let (kind, why) = refusal(&good[..len]);
        let expected = if len < 16 {
            ErrorKind::File
        } else {
            ErrorKind::Damaged
        };
        assert_eq!(kind, expected, "cut to {len}: {why}");
    }
    for at in (0..good.len()).step_by(7).chain(0..64) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        let (kind, why) = refusal(&bad);
        assert!(
            matches!(kind, ErrorKind::Damaged | ErrorKind::File),
            "byte {at}: {why}"
        );
        assert!(why.contains('x'), "{why}");
    }
    let mut longer = good;
    longer.push(0);
    assert!(refusal(&longer).1.contains("behind its end"));
}

/// With an end that fits: only their content gives them away.
#[test]
fn archives_that_lie_are_refused() {
    let changed = |change: fn(&mut Vec<Record>)| {
        let mut records = records();
        change(&mut records);
        refusal(&file(records))
    };
    type Change = fn(&mut Vec<Record>);
    let cases: [(&str, Change); 16] = [
        ("not a head", |it| drop(it.remove(0))),
        ("a second head", |it| it.push(Record::Head(head()))),
        ("belong to no leaf", |it| it.insert(1, batch(&[1]))),
        // Without an end of them, nobody would see that the reading was cancelled.
        ("a batch without chunks", |it| it.insert(2, batch(&[]))),
        ("not in its leaf, or out of order", |it| {
            it.push(batch(&[1]))
        }),
        ("not in its leaf, or out of order", |it| {
            it.push(batch(&[3]))
        }),
        ("not in its leaf, or out of order", |it| it.swap(2, 3)),
        ("is not in it", |it| drop(it.remove(2))),
        ("leaf of the base", |it| {
            it.push(Record::KnownLeaf(v1::KnownLeaf::default()));
        }),
        ("its leaves have root", |it| it.truncate(4)),
        // One that comes twice, and one that comes too early.
        ("segment", |it| {
            let again = it[1].clone();
            it.push(again);
        }),
        ("segment 9", |it| {
            it.push(Record::Leaf(leaf_message(9, &leaf(&[1]))))
        }),
        ("where 4096 belong", |it| {
            let (_, mut long) = chunk(3);
            long.plain_bytes = 8192;
            it[5] = Record::Chunks(v1::ChunkBatch { chunks: vec![long] });
        }),
        ("its bytes have the id", |it| {
            let (_, mut other) = chunk(3);
            other.payload = vec![4; BLOCK_BYTES].into();
            it[5] = Record::Chunks(v1::ChunkBatch {
                chunks: vec![other],
            });
        }),
        ("unknown codec 9", |it| {
            let (_, mut other) = chunk(3);
            other.codec = 9;
            it[5] = Record::Chunks(v1::ChunkBatch {
                chunks: vec![other],
            });
        }),
        ("is not completed", |it| {
            let mut head = head();
            head.snapshot.as_mut().unwrap().state = v1::SnapshotState::Pending.into();
            it[0] = Record::Head(head);
        }),
    ];
    for (says, change) in cases {
        let (kind, why) = changed(change);
        assert!(why.contains(says), "{says}: {why}");
        assert_eq!(kind, ErrorKind::Damaged, "{why}");
    }
    let (kind, why) = changed(|it| {
        let mut head = head();
        head.chunker = Some(v1::ChunkerParameters { version: 7 });
        it[0] = Record::Head(head);
    });
    assert!(
        kind == ErrorKind::File && why.contains("version 7"),
        "{why}"
    );
    // A record that would take all memory.
    let mut endless = file(records())[..16].to_vec();
    endless.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(refusal(&endless).1.contains("the longest has"));
}

/// Each leaf is right by itself, and so is the chunk.
#[test]
fn a_chunk_that_another_leaf_says_is_longer_is_found() {
    let mut long = leaf(&[1]).entries().to_vec();
    long[0].blocks = 2;
    let leaves = [(0, leaf(&[1])), (2, Leaf::new(long).unwrap())];
    let [(first, one), (second, other)] = &leaves;
    let bytes = file(vec![
        Record::Head(v1::ArchiveHead {
            snapshot: Some(snapshot("web", &leaves)),
            ..head()
        }),
        Record::Leaf(leaf_message(*first, one)),
        batch(&[1]),
        Record::Leaf(leaf_message(*second, other)),
    ]);
    let (kind, why) = refusal(&bytes);
    assert_eq!(kind, ErrorKind::Damaged, "{why}");
    assert!(why.contains("has another length in it"), "{why}");
}

#[test]
fn an_archive_with_a_base_names_leaves_and_chunks_that_it_has_not() {
    let [(first, one), (second, other)] = leaves();
    let known = v1::KnownLeaf {
        segment: first,
        leaf_id: one.id().as_bytes().to_vec().into(),
    };
    let bytes = file(vec![
        Record::Head(v1::ArchiveHead {
            base: Some(snapshot("old", &leaves()[..1])),
            ..head()
        }),
        Record::KnownLeaf(known),
        Record::Leaf(leaf_message(second, &other)),
        batch(&[3]),
    ]);
    let facts = check(&bytes[..], "x", &Control::default()).unwrap();
    assert_eq!(facts.base.unwrap().name, "old");
    assert_eq!(facts.chunks, 1);
}

#[test]
fn a_set_that_is_full_takes_nothing_for_old_that_is_new() {
    let mut seen = Seen::with_room(2);
    assert!(seen.is_new(chunk(1).0) && !seen.is_full());
    assert!(!seen.is_new(chunk(1).0));
    assert!(seen.is_new(chunk(2).0) && seen.is_full());
    assert!(seen.is_new(chunk(3).0));
    assert!(seen.is_new(chunk(3).0), "it cannot be told to be old");
    assert!(!seen.is_new(chunk(2).0));
}
