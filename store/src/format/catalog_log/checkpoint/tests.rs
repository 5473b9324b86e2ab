#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use proptest::prelude::*;

use super::*;
use crate::format::{
    CatalogRecord as _, SnapshotRecord, VolumeRecord,
    tests::{CHANGED, assert_bytes, assert_every_byte_counts, hex, snapshot, volume},
};

const GENERATION: u64 = 7;

fn deletion() -> Change {
    Change::delete::<VolumeRecord>(&volume().id)
}

/// A snapshot whose record has some 20 KiB.
fn large(number: usize) -> Change {
    let mut record = snapshot();
    record.name = Some(format!("s{number}"));
    record.tags = (0..50)
        .map(|n| (format!("{n:0127}"), "v".repeat(255)))
        .collect();
    Change::put(&record)
}

fn written(changes: &[Change]) -> Vec<u8> {
    let mut writer = BlockWriter::new(GENERATION);
    let mut bytes = Vec::new();
    for change in changes {
        bytes.extend(writer.push(change).unwrap_or_default());
    }
    bytes.extend(writer.finish());
    bytes
}

/// All changes, and how many bytes they and the end mark take.
fn read(mut bytes: &[u8]) -> Result<(Vec<Change>, usize), FormatError> {
    let mut reader = BlockReader::new(Kinds::ALL, GENERATION);
    let (mut changes, mut used) = (Vec::new(), 0);
    loop {
        let (len, part) = reader.part(bytes)?;
        assert!(len > 0 && len.is_multiple_of(LOG_ALIGN) && len <= BLOCK_BYTES_MAX);
        bytes = bytes.get(len..).unwrap_or_default();
        used += len;
        match part {
            Part::Block(more) => changes.extend(more),
            Part::End => return Ok((changes, used)),
        }
    }
}

#[test]
fn blocks_and_end_marks_are_pinned() {
    let put = Change::put(&snapshot());
    let bytes = written(&[put.clone(), deletion()]);
    let payload = snapshot().encode();
    let len = (payload.len() as u32).to_le_bytes();
    let both = [
        &[1][..],
        &len,
        &payload,
        &[4, 10, 0, 0, 0, 1],
        volume().id.as_bytes(),
    ]
    .concat();
    assert_eq!(bytes.len(), 2 * LOG_ALIGN);
    let (block, mark) = bytes.split_at(LOG_ALIGN);
    assert_bytes(
        &block[..24],
        &[
            &hex(b"VCKB"),
            "01000000",
            "0700000000000000",
            "02000000",
            &hex(&(both.len() as u32).to_le_bytes()),
        ],
    );
    assert_eq!(block[24..28], crc32fast::hash(&both).to_le_bytes());
    assert_eq!(block[28..32], crc32fast::hash(&block[..28]).to_le_bytes());
    assert_eq!(block[32..32 + both.len()], both, "{CHANGED}");
    assert!(block[32 + both.len()..].iter().all(|byte| *byte == 0));
    assert_bytes(
        &mark[..28],
        &[
            &hex(b"VCKE"),
            "01000000",
            "0700000000000000",
            "0200000000000000",
            "00000000",
        ],
    );
    assert_eq!(mark[28..32], crc32fast::hash(&mark[..28]).to_le_bytes());
    assert!(mark[32..].iter().all(|byte| *byte == 0));
    assert_eq!(read(&bytes), Ok((vec![put, deletion()], bytes.len())));
    assert!(is_end_mark(mark) && !is_end_mark(block) && !is_end_mark(&[]));
}

#[test]
fn every_byte_of_a_checkpoint_counts() {
    assert_every_byte_counts(&written(&[Change::put(&snapshot()), deletion()]), read);
    assert_every_byte_counts(&written(&[]), read);
}

#[test]
fn a_checkpoint_of_nothing_is_an_end_mark() {
    let bytes = written(&[]);
    assert_eq!(bytes.len(), LOG_ALIGN);
    assert_eq!(read(&bytes), Ok((Vec::new(), LOG_ALIGN)));
}

#[test]
fn blocks_are_filled_and_no_longer_than_they_may_be() {
    let changes: Vec<_> = (0..100).map(large).collect();
    let bytes = written(&changes);
    let mut reader = BlockReader::new(Kinds::ALL, GENERATION);
    let (first, _) = reader.part(&bytes).unwrap();
    assert!(first > BLOCK_BYTES_MAX - large(0).log_bytes() - LOG_ALIGN);
    assert_eq!(read(&bytes), Ok((changes, bytes.len())));
}

/// Blocks that are missing, come twice, change places, or are of another checkpoint.
#[test]
fn blocks_are_read_only_in_their_order_and_all_of_them() {
    let changes: Vec<_> = (0..60).map(large).collect();
    let bytes = written(&changes);
    let mut reader = BlockReader::new(Kinds::ALL, GENERATION);
    let (first, _) = reader.part(&bytes).unwrap();
    let (second, _) = reader.part(&bytes[first..]).unwrap();
    let blocks = (
        &bytes[..first],
        &bytes[first..first + second],
        &bytes[first + second..],
    );
    for wrong in [
        [blocks.1, blocks.2, &[]],
        [blocks.0, blocks.2, &[]],
        [blocks.1, blocks.0, blocks.2],
        [blocks.0, blocks.0, blocks.2],
    ] {
        assert!(read(&wrong.concat()).is_err());
    }
    // Without its last block, and with a mark that another checkpoint has.
    let mark = written(&[]);
    assert!(read(&[blocks.0, &mark].concat()).is_err());
    let mut other = BlockReader::new(Kinds::ALL, GENERATION + 1);
    let refused = other.part(&bytes).unwrap_err().to_string();
    assert!(refused.contains("generation"), "{refused}");
    let refused = other.part(&mark).unwrap_err().to_string();
    assert!(refused.contains("generation"), "{refused}");
}

/// Headers with right checksums and wrong counts and lengths cost no memory and no panic.
#[test]
fn hostile_counts_are_refused() {
    let bytes = written(&[Change::put(&snapshot()), deletion()]);
    for (at, value) in [
        (16, u32::MAX),
        (16, 0),
        (16, 1),
        (16, 3),
        (20, u32::MAX),
        (20, PAYLOAD_BYTES_MAX as u32 + 1),
        (20, PAYLOAD_BYTES_MAX as u32),
        (20, 0),
    ] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put_crc32(&mut bytes[..HEADER_BYTES]);
        assert!(read(&bytes).is_err(), "{value} at {at}");
    }
    let mark = bytes.len() - LOG_ALIGN;
    for at in [4, 16] {
        let mut bytes = bytes.clone();
        bytes[mark + at] ^= 1;
        put_crc32(&mut bytes[mark..mark + HEADER_BYTES]);
        assert!(read(&bytes).is_err(), "total at {at}");
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        changes in prop::collection::vec(
            prop_oneof![
                (0..1000usize).prop_map(large),
                Just(deletion()),
                Just(Change::put(&volume())),
                Just(Change::delete::<SnapshotRecord>(&snapshot().id)),
            ],
            0..80,
        ),
    ) {
        let bytes = written(&changes);
        prop_assert_eq!(read(&bytes), Ok((changes, bytes.len())));
    }

    #[test]
    fn any_bytes_are_taken(
        mut bytes in prop::collection::vec(any::<u8>(), 0..9000),
        is_mark: bool,
    ) {
        let magic = if is_mark { END_MAGIC } else { BLOCK_MAGIC };
        if let Some(head) = bytes.get_mut(..HEADER_BYTES) {
            head[..4].copy_from_slice(&magic);
            put_crc32(head);
        }
        let _ = BlockReader::new(Kinds::ALL, GENERATION).part(&bytes);
        let _ = is_end_mark(&bytes);
    }
}
