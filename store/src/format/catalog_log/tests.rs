#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use proptest::prelude::*;

use super::*;
use crate::format::tests::{
    CHANGED, STORE, assert_bytes, assert_every_byte_counts, hex, snapshot, snapshot_of_volume,
    volume, volume_with_pending,
};
use crate::format::{CatalogRecord as _, SnapshotRecord, SnapshotState, VolumeRecord};

fn put() -> Record {
    Record::One(Change::put(&snapshot()))
}

fn delete() -> Record {
    Record::One(Change::delete::<SnapshotRecord>(&snapshot().id))
}

fn put_volume() -> Record {
    Record::One(Change::put(&volume()))
}

/// A volume's snapshot, pending.
fn several() -> Record {
    Record::Several(vec![
        Change::put(&snapshot_of_volume(SnapshotState::Pending)),
        Change::put(&volume_with_pending()),
        Change::delete::<SnapshotRecord>(&snapshot().id),
    ])
}

fn delete_volume() -> Record {
    Record::One(Change::delete::<VolumeRecord>(&volume().id))
}

/// A record of several blocks.
fn put_large() -> Record {
    let mut record = snapshot();
    record.tags = (0..50)
        .map(|n| (format!("{n:0127}"), "v".repeat(255)))
        .collect();
    Record::One(Change::put(&record))
}

/// The records of a log, without its header.
fn log(records: &[Record]) -> Vec<u8> {
    (1..)
        .zip(records)
        .flat_map(|(sequence, record)| record.encode(sequence))
        .collect()
}

fn scan_all(bytes: &[u8]) -> Vec<Found> {
    scan(Kinds::ALL, bytes, Position::START, true).collect()
}

/// The records that are found, and the kind of what ends them.
fn outline(found: &[Found]) -> (usize, &'static str) {
    let records = found
        .iter()
        .filter(|found| matches!(found, Found::Record { .. }))
        .count();
    let end = match found.last() {
        None | Some(Found::Record { .. }) => "clean",
        Some(Found::Torn { .. }) => "torn",
        Some(Found::Damaged { .. }) => "damaged",
        Some(Found::Unknown { .. }) => "unknown",
    };
    (records, end)
}

#[test]
fn log_header_is_pinned() {
    let header = LogHeader::without_checkpoint(STORE);
    let bytes = header.encode();
    assert_bytes(
        &bytes[..64],
        &[
            &hex(b"VARVCLOG"),
            "01000000",
            "00000000",
            "00112233445566778899aabbccddeeff",
            &"00".repeat(28),
            "3f310570",
        ],
    );
    assert_eq!(bytes[64..], [0; LOG_HEADER_BYTES - 64], "{CHANGED}");
    assert_eq!(LogHeader::decode(&bytes), Ok(header));
    assert_every_byte_counts(&bytes, LogHeader::decode);
}

#[test]
fn log_header_with_a_checkpoint_is_pinned() {
    let header = LogHeader {
        store: STORE,
        checkpoint: Some(CheckpointId {
            base_sequence: 0x0102_0304_0506_0708,
            generation: 3,
        }),
    };
    let bytes = header.encode();
    assert_bytes(
        &bytes[..64],
        &[
            &hex(b"VARVCLOG"),
            "02000000",
            "00000000",
            "00112233445566778899aabbccddeeff",
            "0807060504030201",
            "0300000000000000",
            &"00".repeat(12),
            "b43c0275",
        ],
    );
    assert_eq!(bytes[64..], [0; LOG_HEADER_BYTES - 64], "{CHANGED}");
    assert_eq!(LogHeader::decode(&bytes), Ok(header));
    assert_every_byte_counts(&bytes, LogHeader::decode);
}

#[test]
fn a_log_header_of_a_later_version_is_told_so() {
    let header = LogHeader::without_checkpoint(STORE);
    for (version, is_unknown) in [(0, true), (1, false), (3, true), (u32::MAX, true)] {
        let mut bytes = header.encode();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        put_crc32(&mut bytes[..64]);
        let decoded = LogHeader::decode(&bytes);
        assert_eq!(
            decoded.is_err_and(|error| error.is_unknown()),
            is_unknown,
            "{version}"
        );
    }
    // Version 2 without a generation.
    let mut bytes = header.encode();
    bytes[8] = 2;
    put_crc32(&mut bytes[..64]);
    let refused = LogHeader::decode(&bytes).unwrap_err().to_string();
    assert!(refused.contains("generation"), "{refused}");
}

#[test]
fn records_are_pinned() {
    let bytes = delete().encode(7);
    assert_bytes(
        &bytes[..48],
        &[
            &hex(b"VCAT"),
            "02000000",
            "0700000000000000",
            "0a000000",
            "82e830c1",
            "00000000",
            "d5708dfa",
            "01",
            "00123456789abcdef0",
            "000000000000",
        ],
    );
    assert_eq!(bytes[48..], [0; LOG_ALIGN - 48], "{CHANGED}");

    let bytes = put().encode(7);
    let payload = snapshot().encode();
    assert_bytes(&bytes[..5], &[&hex(b"VCAT"), "01"]);
    assert_eq!(bytes[32..32 + payload.len()], payload);

    let bytes = delete_volume().encode(7);
    assert_bytes(
        &bytes[..48],
        &[
            &hex(b"VCAT"),
            "04000000",
            "0700000000000000",
            "0a000000",
            "fa0dcb05",
            "00000000",
            "d1865d07",
            "01",
            "00fedcba9876543210",
            "000000000000",
        ],
    );
    assert_eq!(bytes[48..], [0; LOG_ALIGN - 48], "{CHANGED}");

    let bytes = put_volume().encode(7);
    let payload = volume().encode();
    assert_bytes(&bytes[..5], &[&hex(b"VCAT"), "03"]);
    assert_eq!(bytes[32..32 + payload.len()], payload);

    let bytes = several().encode(7);
    assert_bytes(&bytes[..5], &[&hex(b"VCAT"), "05"]);
    let snapshot = snapshot_of_volume(SnapshotState::Pending).encode();
    let volume = volume_with_pending().encode();
    let mut payload = String::from("0103000000");
    for (kind, part) in [("01", snapshot), ("03", volume)] {
        let len = (part.len() as u32).to_le_bytes();
        payload += &[kind.to_owned(), hex(&len), hex(&part)].concat();
    }
    payload += "020a0000000100123456789abcdef0";
    assert_bytes(&bytes[32..32 + payload.len() / 2], &[&payload]);
}

#[test]
fn every_byte_of_a_record_counts() {
    for record in [put(), delete(), put_volume(), delete_volume(), several()] {
        let decode = |bytes: &[u8]| decode_record(Kinds::ALL, bytes, 7);
        assert_every_byte_counts(&record.encode(7), decode);
    }
}

#[test]
fn the_largest_record_fits() {
    let mut record = snapshot();
    record.name = Some("n".repeat(128));
    record.description = "🏔".repeat(255);
    record.tags = (0..50)
        .map(|n| (format!("{n}{}", "🏔".repeat(125)), "🏔".repeat(255)))
        .collect();
    let volume = VolumeRecord {
        name: record.name.clone(),
        tags: record.tags.clone(),
        description: record.description.clone(),
        ..volume()
    };
    let both = [Change::put(&record), Change::put(&volume)];
    for change in both.clone() {
        let record = Record::One(change);
        let bytes = record.encode(1);
        assert!(bytes.len() < 80 << 10);
        let found = decode_record(Kinds::ALL, &bytes, 1);
        assert_eq!(found, Ok((bytes.len(), record)));
    }
    assert!(Record::Several(both.to_vec()).fits());
    let many = std::iter::repeat_n(both, 4).flatten();
    assert!(!Record::Several(many.collect()).fits());
}

#[test]
fn a_whole_log_reads_back() {
    let records = [
        put(),
        put_large(),
        several(),
        put_volume(),
        delete(),
        delete_volume(),
    ];
    let bytes = log(&records);
    let mut scan = scan(Kinds::ALL, &bytes, Position::START, true);
    let mut offset = LOG_HEADER_BYTES as u64;
    for (expected, record) in (1..).zip(records) {
        let len = record.encode(expected).len() as u64;
        let found = Found::Record {
            offset_bytes: offset,
            sequence: expected,
            record,
        };
        assert_eq!(scan.next(), Some(found));
        offset += len;
    }
    assert_eq!(scan.next(), None);
    let end = Position {
        offset_bytes: offset,
        next_sequence: 7,
    };
    assert_eq!(scan.position(), end);
}

#[test]
fn an_empty_log_is_clean() {
    assert_eq!(scan_all(&[]), []);
}

/// Wherever the last write tears, the records before it stay, and the log ends there.
#[test]
fn a_torn_last_record_ends_the_log() {
    for last in [delete(), put_large()] {
        let bytes = log(&[put(), last]);
        let whole = put().encode(1).len();
        for len in (whole + 1..bytes.len()).step_by(509) {
            let mut scan = scan(Kinds::ALL, &bytes[..len], Position::START, true);
            let found: Vec<_> = scan.by_ref().collect();
            assert_eq!(outline(&found), (1, "torn"), "cut at {len}");
            assert_eq!(
                scan.position().offset_bytes,
                (LOG_HEADER_BYTES + whole) as u64
            );
        }
        // Blocks of it that did not arrive, though the file was made longer.
        for block in (whole..bytes.len()).step_by(LOG_ALIGN) {
            let mut bytes = bytes.clone();
            bytes[block..block + LOG_ALIGN].fill(0);
            assert_eq!(outline(&scan_all(&bytes)), (1, "torn"), "zeros at {block}");
        }
    }
}

#[test]
fn damage_before_a_record_is_not_a_torn_end() {
    let bytes = log(&[put(), put_large(), delete()]);
    let last = bytes.len() - LOG_ALIGN;
    for at in (0..last).step_by(97) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let (records, end) = outline(&scan_all(&bytes));
        assert_eq!(end, "damaged", "byte {at}");
        assert_eq!(records, usize::from(at >= put().encode(1).len()));
    }
    assert_eq!(outline(&scan_all(&bytes)), (3, "clean"));
}

#[test]
fn a_tail_longer_than_any_record_is_damage() {
    let mut bytes = log(&[put()]);
    bytes.resize(bytes.len() + LOG_RECORD_BYTES_MAX, 0xee);
    assert_eq!(outline(&scan_all(&bytes)), (1, "torn"));
    bytes.push(0xee);
    assert_eq!(outline(&scan_all(&bytes)), (1, "damaged"));
}

#[test]
fn a_record_that_is_missing_is_damage() {
    let bytes = [put().encode(1), delete().encode(3), put().encode(4)].concat();
    let found = scan_all(&bytes);
    assert_eq!(outline(&found), (1, "damaged"));
    let Some(Found::Damaged { offset_bytes, why }) = found.last() else {
        panic!("{found:?}");
    };
    assert_eq!(*offset_bytes, 8192);
    assert!(why.to_string().contains("sequence number"), "{why}");
}

#[test]
fn records_of_a_later_version_are_told_so() {
    for (at, value) in [(4, 6), (RECORD_HEADER_BYTES, 2)] {
        let mut bytes = delete().encode(1);
        bytes[at] = value;
        let payload_crc32 = crc32fast::hash(&bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + 10]);
        bytes[20..24].copy_from_slice(&payload_crc32.to_le_bytes());
        put_crc32(&mut bytes[..RECORD_HEADER_BYTES]);
        let bytes = [bytes, put().encode(2)].concat();
        assert_eq!(outline(&scan_all(&bytes)), (0, "unknown"));
    }
}

/// Reads a log as a caller does that cannot hold all of it.
fn scan_in_windows(bytes: &[u8], window_bytes: usize) -> Vec<Found> {
    let mut found = Vec::new();
    let mut position = Position::START;
    loop {
        let start = position.offset_bytes as usize - LOG_HEADER_BYTES;
        let end = bytes.len().min(start + window_bytes);
        let mut scan = scan(Kinds::ALL, &bytes[start..end], position, end == bytes.len());
        found.extend(scan.by_ref());
        position = scan.position();
        if end == bytes.len() || !matches!(found.last(), Some(Found::Record { .. })) {
            return found;
        }
    }
}

proptest! {
    /// The findings do not depend on the size of the reads, whatever was changed.
    #[test]
    fn windows_do_not_matter(
        records in prop::collection::vec(prop::sample::select(vec![put(), delete(), put_large(), put_volume(), delete_volume(), several()]), 1..24),
        change in prop::option::of((any::<prop::sample::Index>(), 1u8..)),
        cut in prop::option::of(any::<prop::sample::Index>()),
        window_blocks in 129usize..200,
    ) {
        let mut bytes = log(&records);
        if let Some((at, mask)) = change {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        if let Some(len) = cut {
            bytes.truncate(len.index(bytes.len()));
        }
        prop_assert_eq!(scan_in_windows(&bytes, window_blocks * LOG_ALIGN), scan_all(&bytes));
    }
}
