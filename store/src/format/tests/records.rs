//! Records of snapshots, of volumes and of copies.

use super::*;

#[test]
fn snapshot_record_is_pinned() {
    let bytes = snapshot().encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            "00123456789abcdef0",
            "0000000001000000",
            "0000601e00000000",
            "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
            "15cdb2c77e681618",
            "0000001e00000000",
            "0000a00a00000000",
            "07000000766d2f6469736b",
            "02000000",
            "010000006b0100000076",
            "020000006f730c000000d0b4d0b5d0b1d0b8d0b0d0bd",
        ],
    );
    assert_eq!(SnapshotRecord::decode(&bytes), Ok(snapshot()));
    for len in 0..bytes.len() {
        assert!(SnapshotRecord::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn snapshot_records_that_are_none() {
    let good = snapshot().encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        SnapshotRecord::decode(&bytes).unwrap_err()
    };
    assert!(with(0, 4).is_unknown());
    assert!(with(1, 0x10).to_string().contains("68 bits"));
    // The name's length, and its first byte.
    assert!(matches!(with(85, 0xff), FormatError::Short { .. }));
    assert!(with(86, 0xff).to_string().contains("UTF-8"));
    // The first tag's key, behind the second's.
    assert!(with(101, b'z').to_string().contains("a key behind \"z\""));
    let mut longer = good;
    longer.push(0);
    assert!(SnapshotRecord::decode(&longer).is_err());
}

#[test]
fn snapshot_records_of_volumes_are_pinned() {
    let completed = snapshot().state;
    let failed = SnapshotState::Failed {
        reason: "full".to_owned(),
    };
    let content = [
        "0000601e00000000",
        "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
        "15cdb2c77e681618",
        "0000001e00000000",
        "0000a00a00000000",
    ];
    let none = [
        "0000000000000000",
        &"00".repeat(32),
        "15cdb2c77e681618",
        "0000000000000000",
        "0000000000000000",
    ];
    for (state, head, content, reason) in [
        (completed, "020103", content, "00000000"),
        (SnapshotState::Pending, "020203", none, "00000000"),
        (failed, "020303", none, "0400000066756c6c"),
    ] {
        let record = snapshot_of_volume(state);
        let bytes = record.encode();
        assert_bytes(
            &bytes,
            &[
                head,
                "00123456789abcdef0",
                "0000000001000000",
                &content.concat(),
                "00fedcba9876543210",
                "011111111111111111",
                "07000000766d2f6469736b",
                "02000000766d",
                reason,
                "02000000",
                "010000006b0100000076",
                "020000006f730c000000d0b4d0b5d0b1d0b8d0b0d0bd",
            ],
        );
        assert_eq!(SnapshotRecord::decode(&bytes), Ok(record));
        for len in 0..bytes.len() {
            assert!(SnapshotRecord::decode(&bytes[..len]).is_err());
        }
    }
}

/// Each record has one encoding: what the first version can say is not said in the second.
#[test]
fn snapshot_records_of_volumes_that_are_none() {
    let good = snapshot_of_volume(SnapshotState::Pending).encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        SnapshotRecord::decode(&bytes).unwrap_err()
    };
    assert!(with(1, 4).is_unknown());
    for (at, byte, why) in [
        (2, 0x04, "flags of a snapshot's record"),
        (2, 0x01, "zeros in reserved fields"),
        (2, 0x02, "zeros in reserved fields"),
        // Data of one that is pending.
        (20, 0x01, "zeros in reserved fields"),
    ] {
        let error = with(at, byte).to_string();
        assert!(error.contains(why), "byte {at}: {error}");
    }
    let mut failed = snapshot_of_volume(SnapshotState::Failed {
        reason: "full".to_owned(),
    })
    .encode();
    failed[1] = 2;
    let error = SnapshotRecord::decode(&failed).unwrap_err();
    assert!(error.to_string().contains("or no failure"), "{error}");
    let plain = snapshot().encode();
    let mut again = vec![2, 1, 0];
    again.extend_from_slice(&plain[1..82]);
    again.extend_from_slice(&[0; 18]);
    again.extend_from_slice(&plain[82..93]);
    again.extend_from_slice(&[0; 8]);
    again.extend_from_slice(&plain[93..]);
    let error = SnapshotRecord::decode(&again).unwrap_err();
    assert!(
        error.to_string().contains("the first that can express"),
        "{error}"
    );
}

#[test]
fn volume_record_with_pending_snapshots_is_pinned() {
    let record = volume_with_pending();
    let bytes = record.encode();
    let plain = volume().encode();
    let behind = plain.len();
    assert_bytes(&bytes[..1], &["02"]);
    assert_eq!(bytes[1..behind], plain[1..], "{CHANGED}");
    assert_bytes(
        &bytes[behind..],
        &[
            "02000000",
            "012121212121212121",
            "0600000000000000",
            "022222222222222222",
            "0600000000000000",
        ],
    );
    assert_eq!(VolumeRecord::decode(&bytes), Ok(record.clone()));
    for len in 0..bytes.len() {
        assert!(VolumeRecord::decode(&bytes[..len]).is_err());
    }
    let mut none = plain;
    none[0] = 2;
    none.extend_from_slice(&[0; 4]);
    let error = VolumeRecord::decode(&none).unwrap_err();
    assert!(error.to_string().contains("the first that"), "{error}");
    for files in [[4, 6], [7, 6]] {
        let mut record = record.clone();
        for (pending, next_file) in record.pending.iter_mut().zip(files) {
            pending.next_file = next_file;
        }
        let error = VolumeRecord::decode(&record.encode()).unwrap_err();
        assert!(error.to_string().contains("ascend"), "{error}");
    }
}

#[test]
fn volume_record_with_a_promise_is_pinned() {
    for pending in [true, false] {
        let mut record = volume_with_promise();
        let mut without = volume_with_pending();
        if !pending {
            record.pending.clear();
            without.pending.clear();
        }
        let bytes = record.encode();
        let mut behind = without.encode();
        // A record without either has no number of pending snapshots.
        if !pending {
            behind.extend_from_slice(&[0; 4]);
        }
        assert_bytes(&bytes[..1], &["03"]);
        assert_eq!(bytes[1..behind.len()], behind[1..], "{CHANGED}");
        assert_bytes(&bytes[behind.len()..], &["4100000005000000"]);
        assert_eq!(VolumeRecord::decode(&bytes), Ok(record));
        for len in 0..bytes.len() {
            assert!(VolumeRecord::decode(&bytes[..len]).is_err());
        }
        behind[0] = 3;
        behind.extend_from_slice(&[0; 8]);
        let error = VolumeRecord::decode(&behind).unwrap_err();
        assert!(error.to_string().contains("the first that"), "{error}");
    }
}

#[test]
fn snapshot_ids_have_one_form() {
    let id: SnapshotId = "snap-0123456789abcdef0".parse().unwrap();
    assert_eq!(
        id.as_bytes(),
        &[0x00, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0]
    );
    assert_eq!(id.to_string(), "snap-0123456789abcdef0");
    assert_eq!(
        SnapshotId::from_low_bits([0xff; 9]).to_string(),
        "snap-fffffffffffffffff"
    );
    for text in [
        "",
        "snap-",
        "0123456789abcdef0",
        "snap-0123456789abcdef",
        "snap-0123456789abcdef01",
        "snap-0123456789ABCDEF0",
        "snap-+123456789abcdef0",
        "Snap-0123456789abcdef0",
    ] {
        assert!(text.parse::<SnapshotId>().is_err(), "{text}");
    }
    assert!(SnapshotId::is_of_its_form("Snap-0123456789ABCDEF0"));
    assert!(!SnapshotId::is_of_its_form("snap-0123456789abcdef"));
}

#[test]
fn volume_record_is_pinned() {
    let bytes = volume().encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            "07",
            "00fedcba9876543210",
            "0000000001000000",
            "15cdb2c77e681618",
            "0300000000000000",
            "151700f77e681618",
            "0500000000000000",
            "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a",
            "00123456789abcdef0",
            "07000000766d2f6469736b",
            "01000000",
            "010000006b0100000076",
        ],
    );
    assert_eq!(VolumeRecord::decode(&bytes), Ok(volume()));
    for len in 0..bytes.len() {
        assert!(VolumeRecord::decode(&bytes[..len]).is_err());
    }
    let fresh = VolumeRecord {
        base: None,
        parent: None,
        attached_at_ns: None,
        attachments: 0,
        journal_from: 1,
        ..volume()
    };
    let bytes = fresh.encode();
    assert_bytes(&bytes[..2], &["01", "00"]);
    assert_bytes(&bytes[51..92], &[&"00".repeat(41)]);
    assert_eq!(VolumeRecord::decode(&bytes), Ok(fresh));
}

/// A change that only makes another number, id or text is left to the log's checksum.
#[test]
fn volume_records_that_are_none() {
    let good = volume().encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        VolumeRecord::decode(&bytes).unwrap_err()
    };
    let refusals = [
        (1, 0x0f, "flags of a volume's record"),
        // Flags that do not fit what is in the fields, each way.
        (1, 0x06, "zeros in reserved fields"),
        (1, 0x05, "zeros in reserved fields"),
        (1, 0x03, "zeros in reserved fields"),
        (2, 0x10, "68 bits"),
        (11, 0x01, "a multiple of 512"),
        (27, 0x00, "number of a volume's attachment"),
        (43, 0x00, "first journal file"),
        (83, 0x10, "68 bits"),
        (96, 0xff, "UTF-8"),
    ];
    assert!(with(0, 5).is_unknown());
    for (at, byte, why) in refusals {
        let error = with(at, byte).to_string();
        assert!(error.contains(why), "byte {at}: {error}");
    }
    assert!(matches!(with(92, 0xff), FormatError::Short { .. }));
    let orphan = VolumeRecord {
        base: None,
        ..volume()
    };
    let error = VolumeRecord::decode(&orphan.encode()).unwrap_err();
    assert!(error.to_string().contains("has a parent"), "{error}");
    let empty = VolumeRecord {
        size_bytes: 0,
        ..volume()
    };
    assert!(VolumeRecord::decode(&empty.encode()).is_err());
    let mut longer = good;
    longer.push(0);
    assert!(VolumeRecord::decode(&longer).is_err());
}

#[test]
fn ids_of_volumes_are_not_ids_of_snapshots() {
    let id: VolumeId = "vol-0fedcba9876543210".parse().unwrap();
    assert_eq!(id, volume().id);
    assert_eq!(id.to_string(), "vol-0fedcba9876543210");
    for text in ["vol-", "snap-0fedcba9876543210", "vol-0FEDCBA9876543210"] {
        assert!(text.parse::<VolumeId>().is_err(), "{text}");
    }
    assert!("vol-0fedcba9876543210".parse::<SnapshotId>().is_err());
    assert!(VolumeId::is_of_its_form("VOL-0FEDCBA9876543210"));
}

#[test]
fn copy_record_is_pinned() {
    let bytes = copy().encode();
    assert_bytes(
        &bytes,
        &[
            "020f02",
            "00a1b2c3d4e5f60718",
            "15cdb2c77e681618",
            "151700f77e681618",
            "0000100000000000",
            &"5a".repeat(32),
            "00123456789abcdef0",
            "0000000001000000",
            "0000200000000000",
            "0000100000000000",
            "0500000000000000",
            "000c000000000000",
            "07000000756e69783a2f78",
            "03000000776562",
            "0600000065752f776562",
            "03000000637574",
            "01000000010000006b0100000076",
            "0e",
        ],
    );
    assert_eq!(CopyRecord::decode(&bytes), Ok(copy()));
    // As it was before the kind of an error was kept.
    let mut first = bytes[..bytes.len() - 1].to_vec();
    first[0] = 1;
    let without = CopyRecord {
        last_error_code: 0,
        ..copy()
    };
    assert_eq!(without.encode(), first);
    assert_eq!(CopyRecord::decode(&first), Ok(without));
    let mut zero = bytes.clone();
    *zero.last_mut().unwrap() = 0;
    assert!(
        CopyRecord::decode(&zero).is_err(),
        "one encoding of a value"
    );
    for len in 0..bytes.len() {
        assert!(CopyRecord::decode(&bytes[..len]).is_err());
    }
    let begun = CopyRecord {
        outcome: CopyOutcome::UnderWay,
        ended_at_ns: None,
        root: None,
        made: None,
        ..copy()
    };
    assert_eq!(CopyRecord::decode(&begun.encode()), Ok(begun));
}

#[test]
fn copy_records_that_are_none() {
    let good = copy().encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        CopyRecord::decode(&bytes).unwrap_err()
    };
    assert!(with(0, 4).is_unknown());
    assert!(with(2, 5).is_unknown());
    for (at, byte, why) in [
        (1, 0x1f, "flags of a copy's record"),
        // Completed without a snapshot, without a root that is there, without an end; and one under
        // way that has ended.
        (1, 0x0b, "zeros in reserved fields"),
        (1, 0x0d, "zeros in reserved fields"),
        (1, 0x07, "zeros in reserved fields"),
        (2, 1, "an end if it has ended"),
        (3, 0x10, "68 bits"),
    ] {
        let error = with(at, byte).to_string();
        assert!(error.contains(why), "byte {at}: {error}");
    }
    let unmade = CopyRecord {
        made: None,
        ..copy()
    };
    assert!(CopyRecord::decode(&unmade.encode()).is_err());
    let mut longer = good;
    longer.push(0);
    assert!(CopyRecord::decode(&longer).is_err());
}

#[test]
fn remote_record_is_pinned() {
    let bytes = remote().encode();
    assert_bytes(
        &bytes,
        &[
            "0101",
            "15cdb2c77e681618",
            "020000006575",
            "0c00000068747470733a2f2f65753a31",
            "030000002f6361",
            "020000002f63",
            "020000002f6b",
        ],
    );
    assert_eq!(RemoteRecord::decode(&bytes), Ok(remote()));
    let owned = remote_of_account().encode();
    assert_bytes(&owned[..1], &["02"]);
    assert_eq!(owned[1..bytes.len()], bytes[1..]);
    assert_bytes(&owned[bytes.len()..], &["020000002f74", "0700000000000000"]);
    assert_eq!(RemoteRecord::decode(&owned), Ok(remote_of_account()));
    assert_eq!(remote_of_account().id(), "000000000007:eu");
    // What the first version can express is written in it.
    let mut plain = [&bytes[..], &[0; 12]].concat();
    plain[0] = 2;
    let error = RemoteRecord::decode(&plain).unwrap_err().to_string();
    assert!(error.contains("version of a remote's record"), "{error}");
    for len in 0..owned.len() {
        assert!(RemoteRecord::decode(&owned[..len]).is_err());
    }
    for len in 0..bytes.len() {
        assert!(RemoteRecord::decode(&bytes[..len]).is_err());
    }
    for (at, byte, why) in [
        (0, 3, "it knows 1 to 2, found 3"),
        (1, 2, "flags of a remote's record"),
    ] {
        let mut wrong = bytes.clone();
        wrong[at] = byte;
        let error = RemoteRecord::decode(&wrong).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let deleted = Change::delete::<RemoteRecord>(&"eu".to_owned());
    let deleted = catalog_log::Record::One(deleted).encode(7);
    assert_bytes(&deleted[32..40], &["01", "020000006575", "00"]);
}
