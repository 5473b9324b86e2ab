//! Records with an owner, with a description and without a name: version 3 of a snapshot's, version
//! 4 of a volume's.

use super::*;

#[test]
fn snapshot_record_of_an_account_is_pinned() {
    let bytes = snapshot_of_nobody().encode();
    assert_bytes(
        &bytes,
        &[
            "03",
            "01",
            "04",
            "00123456789abcdef0",
            "0000000001000000",
            "0000601e00000000",
            &"5a".repeat(32),
            "15cdb2c77e681618",
            "0000001e00000000",
            "0000a00a00000000",
            &"00".repeat(9),
            &"00".repeat(9),
            "00000000",
            "00000000",
            "00000000",
            "02000000",
            "010000006b0100000076",
            "020000006f730c000000d0b4d0b5d0b1d0b8d0b0d0bd",
            "141a99be1c000000",
            "040000006ec3a965",
        ],
    );
    assert_eq!(SnapshotRecord::decode(&bytes), Ok(snapshot_of_nobody()));
    for len in 0..bytes.len() {
        assert!(SnapshotRecord::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn volume_record_of_an_account_is_pinned() {
    let bytes = volume_of_nobody().encode();
    assert_bytes(
        &bytes,
        &[
            "04",
            "0f",
            "00fedcba9876543210",
            "0000000001000000",
            "15cdb2c77e681618",
            "0300000000000000",
            "151700f77e681618",
            "0500000000000000",
            &"5a".repeat(32),
            "00123456789abcdef0",
            "00000000",
            "01000000",
            "010000006b0100000076",
            "00000000",
            "0000000000000000",
            "141a99be1c000000",
            "040000006ec3a965",
        ],
    );
    assert_eq!(VolumeRecord::decode(&bytes), Ok(volume_of_nobody()));
    for len in 0..bytes.len() {
        assert!(VolumeRecord::decode(&bytes[..len]).is_err());
    }
}

/// The log's checksum notices every change. The record itself notices each that makes none of it,
/// or another encoding.
#[test]
fn a_changed_byte_is_refused_or_makes_another_record() {
    fn check<R: CatalogRecord>(record: &R) {
        let bytes = record.encode();
        let mut changed = bytes.clone();
        for at in 0..bytes.len() {
            for mask in [0x01, 0x80, 0xff] {
                changed[at] ^= mask;
                if let Ok(found) = R::decode(&changed) {
                    assert_ne!(found, *record, "byte {at} ^ {mask:#04x}");
                    assert_eq!(found.encode(), changed, "byte {at} ^ {mask:#04x}");
                }
                changed[at] ^= mask;
            }
        }
    }
    check(&snapshot());
    check(&snapshot_of_volume(SnapshotState::Pending));
    check(&snapshot_of_nobody());
    check(&volume());
    check(&volume_with_promise());
    check(&volume_of_nobody());
    check(&copy());
    check(&remote());
}

/// Each record has one encoding: the first that can say what it says.
#[test]
fn each_of_the_three_needs_the_last_version() {
    let plain = snapshot();
    assert_eq!(plain.encode()[0], 1);
    assert_eq!(volume().encode()[0], 1);
    let versions = |named: bool, owned: bool, described: bool| {
        let all = snapshot_of_nobody();
        let owner = if owned {
            all.owner
        } else {
            AccountId::ADMINISTRATOR
        };
        let description = if described {
            all.description
        } else {
            String::new()
        };
        let snapshot = SnapshotRecord {
            name: plain.name.clone().filter(|_| named),
            owner,
            description: description.clone(),
            ..plain.clone()
        };
        let volume = VolumeRecord {
            name: plain.name.clone().filter(|_| named),
            owner,
            description,
            ..volume()
        };
        assert_eq!(
            SnapshotRecord::decode(&snapshot.encode()),
            Ok(snapshot.clone())
        );
        assert_eq!(VolumeRecord::decode(&volume.encode()), Ok(volume.clone()));
        (snapshot.encode()[0], volume.encode()[0])
    };
    assert_eq!(versions(true, false, false), (1, 1));
    assert_eq!(versions(false, false, false), (3, 4));
    assert_eq!(versions(true, true, false), (3, 4));
    assert_eq!(versions(true, false, true), (3, 4));
}

#[test]
fn records_of_accounts_that_are_none() {
    let snapshot_with = |at: usize, byte: u8| {
        let mut bytes = snapshot_of_nobody().encode();
        bytes[at] = byte;
        SnapshotRecord::decode(&bytes).unwrap_err().to_string()
    };
    let end = snapshot_of_nobody().encode().len();
    for (at, byte, why) in [
        (0, 2, "flags of a snapshot's record"),
        (0, 4, "version of a snapshot's record"),
        (2, 0x08, "flags of a snapshot's record"),
        // Of 13 digits.
        (end - 12, 0xff, "id of an account"),
    ] {
        let error = snapshot_with(at, byte);
        assert!(error.contains(why), "byte {at}: {error}");
    }
    // A name in a record without one.
    let mut named = SnapshotRecord {
        name: Some("web".to_owned()),
        ..snapshot_of_nobody()
    }
    .encode();
    named[2] |= 4;
    let error = SnapshotRecord::decode(&named).unwrap_err().to_string();
    assert!(error.contains("no name, as its flags say"), "{error}");

    let mut said_before = snapshot_of_nobody().encode();
    said_before[2] = 0;
    said_before[end - 16..end - 8].fill(0);
    said_before.truncate(end - 4);
    said_before[end - 8..].fill(0);
    let error = SnapshotRecord::decode(&said_before)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the first that can express"), "{error}");

    let mut volume = volume_of_nobody().encode();
    volume[0] = 3;
    let error = VolumeRecord::decode(&volume).unwrap_err().to_string();
    assert!(error.contains("flags of a volume's record"), "{error}");
}
