#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use varve_content::RootId;

use super::*;
use crate::format::{
    AccountId, PendingSnapshot, SnapshotId,
    tests::{STORE, assert_bytes, assert_every_byte_counts, hex},
};

fn record() -> OwnerRecord {
    OwnerRecord {
        store: STORE,
        number: 0x1703,
        volume: VolumeRecord {
            id: "vol-0123456789abcdef0".parse().unwrap(),
            name: Some("db".to_owned()),
            owner: AccountId::ADMINISTRATOR,
            description: String::new(),
            size_bytes: 1 << 30,
            base: Some(RootId::from_bytes([0xb5; 32])),
            parent: None,
            created_at_ns: 0x1122,
            tags: BTreeMap::new(),
            attached_at_ns: Some(0x3344),
            attachments: 7,
            journal_from: 0x2a,
            pending: Vec::new(),
            promised_sequence: 0,
        },
    }
}

#[test]
fn the_owner_record_is_pinned() {
    let bytes = record().encode().unwrap();
    assert_bytes(
        &bytes[..142],
        &[
            &hex(b"VARVOWNR"),
            "01000000",
            "66000000",
            "00112233445566778899aabbccddeeff",
            "0317000000000000",
            "0103",
            "00123456789abcdef0",
            "0000004000000000",
            "2211000000000000",
            "0700000000000000",
            "4433000000000000",
            "2a00000000000000",
            &"b5".repeat(32),
            &"00".repeat(9),
            "02000000",
            &hex(b"db"),
            "00000000",
        ],
    );
    assert!(bytes[142..4092].iter().all(|byte| *byte == 0));
    assert_eq!(OwnerRecord::decode(&bytes).unwrap(), record());
}

#[test]
fn every_byte_of_it_counts() {
    assert_every_byte_counts(&record().encode().unwrap(), OwnerRecord::decode);
}

#[test]
fn tags_and_pending_snapshots_are_left_to_the_catalog() {
    let mut full = record();
    full.volume.tags.insert("k".to_owned(), "v".to_owned());
    "what it is for".clone_into(&mut full.volume.description);
    full.volume.pending.push(PendingSnapshot {
        snapshot: SnapshotId::from_low_bits([1; 9]),
        next_file: 0x2b,
    });
    full.volume.promised_sequence = 7;
    assert_eq!(full.encode().unwrap(), record().encode().unwrap());
}

#[test]
fn a_name_that_does_not_fit_is_an_error() {
    let mut long = record();
    long.volume.name = Some("n".repeat(OWNER_SLOT_BYTES));
    let why = long.encode().unwrap_err().to_string();
    assert!(why.contains("length"), "{why}");
}

#[test]
fn the_higher_number_counts_and_a_torn_slot_does_not() {
    let older = record();
    let mut newer = record();
    newer.number += 1;
    newer.volume.size_bytes *= 2;
    assert_eq!(older.offset_bytes(), 4096);
    assert_eq!(newer.offset_bytes(), 0);
    let mut file = [newer.encode().unwrap(), older.encode().unwrap()].concat();
    assert_eq!(OwnerRecord::latest(&file).unwrap(), newer);
    file[100] ^= 1;
    assert_eq!(OwnerRecord::latest(&file).unwrap(), older);
    assert_eq!(
        OwnerRecord::latest(&newer.encode().unwrap()).unwrap(),
        newer
    );
    file[5000] ^= 1;
    let why = OwnerRecord::latest(&file).unwrap_err().to_string();
    assert!(why.contains("CRC-32"), "{why}");
    assert!(OwnerRecord::latest(&[]).is_err());
}

#[test]
fn a_later_version_is_not_passed_over() {
    let mut later = record().encode().unwrap();
    later[8] = 2;
    put_crc32(&mut later);
    let file = [record().encode().unwrap(), later].concat();
    let why = OwnerRecord::latest(&file).unwrap_err();
    assert!(why.is_unknown(), "{why}");
}
