//! Records of images, and ids that are shorter than those of this store.

use super::*;
use crate::format::{
    Architecture, BlockDevice, BootMode, DeviceSource, ImageId, ImageRecord, Platform, Protection,
};

pub(super) fn image() -> ImageRecord {
    ImageRecord {
        id: "ami-0123456789abcdef0".parse().unwrap(),
        name: "web 12".to_owned(),
        owner: AccountId::from_number(123_456_789_012).unwrap(),
        description: "nå".to_owned(),
        created_at_ns: 1_735_689_600_123_456_789,
        architecture: Architecture::Arm64,
        platform: Platform::Windows,
        boot_mode: Some(BootMode::UefiPreferred),
        root_device: "/dev/sda1".to_owned(),
        devices: vec![
            BlockDevice {
                name: "/dev/sda1".to_owned(),
                source: DeviceSource::Snapshot {
                    id: snapshot().id,
                    size_bytes: 8 << 30,
                },
                delete_on_termination: true,
            },
            BlockDevice {
                name: "sdb".to_owned(),
                source: DeviceSource::Empty { size_bytes: 512 },
                delete_on_termination: false,
            },
            BlockDevice {
                name: "sdc".to_owned(),
                source: DeviceSource::Ephemeral { number: 3 },
                delete_on_termination: false,
            },
        ],
        is_disabled: true,
        deprecated_at_ns: Some(0x0102_0304_0506_0708),
        protection: Protection::Cooldown { until_ns: 0x11 },
        tags: [("k".to_owned(), "v".to_owned())].into(),
        sharing: Sharing {
            everybody: true,
            accounts: [AccountId::from_number(7).unwrap()].into(),
        },
    }
}

#[test]
fn image_record_is_pinned() {
    let bytes = image().encode();
    assert_bytes(
        &bytes,
        &[
            "01",
            "03",
            "02",
            "02",
            "03",
            "03",
            "00123456789abcdef0",
            "141a99be1c000000",
            "15cdb2c77e681618",
            "0807060504030201",
            "1100000000000000",
            "06000000776562203132",
            "030000006ec3a5",
            "090000002f6465762f73646131",
            "03000000",
            "090000002f6465762f73646131",
            "0101",
            "0000000002000000",
            "00123456789abcdef0",
            "00000000",
            "03000000736462",
            "0200",
            "0002000000000000",
            "000000000000000000",
            "00000000",
            "03000000736463",
            "0300",
            "0000000000000000",
            "000000000000000000",
            "03000000",
            "01000000",
            "010000006b0100000076",
            "01",
            "01000000",
            "0700000000000000",
        ],
    );
    assert_eq!(ImageRecord::decode(&bytes), Ok(image()));
    for len in 0..bytes.len() {
        assert!(ImageRecord::decode(&bytes[..len]).is_err());
    }
}

#[test]
fn image_records_are_read_as_written_or_refused() {
    let plain = ImageRecord {
        boot_mode: None,
        is_disabled: false,
        deprecated_at_ns: None,
        protection: Protection::Off,
        sharing: Sharing::default(),
        ..image()
    };
    for protection in [Protection::Off, Protection::On, Protection::WithCooldown] {
        let record = ImageRecord {
            protection,
            ..plain.clone()
        };
        assert_eq!(ImageRecord::decode(&record.encode()), Ok(record));
    }
    let bytes = plain.encode();
    // Version, flags, architecture, platform, boot mode and protection.
    for (at, byte) in [
        (0, 2),
        (1, 4),
        (2, 0),
        (2, 4),
        (3, 3),
        (4, 4),
        (5, 4),
        (5, 3),
    ] {
        let mut changed = bytes.clone();
        changed[at] = byte;
        let decoded = ImageRecord::decode(&changed);
        // With a cooldown at the time 0 it is another record, which is written in the same way.
        match decoded {
            Ok(record) => assert_eq!((at, record.encode()), (5, changed)),
            Err(_) => assert_ne!((at, byte), (5, 3)),
        }
    }
}

#[test]
fn ids_from_elsewhere_keep_their_length() {
    for text in [
        "ami-12345678",
        "ami-0668776718e604f",
        "ami-0000000000000000",
        "ami-00000000000000000",
        "ami-ffffffffffffffff",
        "ami-fffffffffffffffff",
    ] {
        let id: ImageId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(ImageId::decode(id.as_bytes()), Ok(id));
        assert!(ImageId::is_of_its_form(
            &text.to_uppercase().replace("AMI", "ami")
        ));
    }
    for text in [
        "ami-1234567",
        "ami-012345678901234567",
        "ami-1234567g",
        "snap-12345678",
    ] {
        assert!(text.parse::<ImageId>().is_err(), "{text}");
    }
    assert!("snap-12345678".parse::<SnapshotId>().is_err());
    let short: ImageId = "ami-12345678".parse().unwrap();
    assert!(SnapshotId::decode(short.as_bytes()).is_err());
    let mut bytes = *short.as_bytes();
    // A digit more than it says, and a length that there is not.
    bytes[4] = 1;
    assert!(ImageId::decode(&bytes).is_err());
    for length in 0xa..=0xf_u8 {
        let mut bytes = *short.as_bytes();
        bytes[0] = length << 4;
        assert!(ImageId::decode(&bytes).is_err());
    }
}

#[test]
fn holdings_with_images_have_a_version_of_their_own() {
    let without = Holdings {
        volumes: 1,
        snapshots: 2,
        attached_volumes: 3,
        images: 0,
    };
    assert_eq!(without.encode()[0], 1);
    let with = Holdings {
        images: 4,
        ..without
    };
    assert_eq!(with.encode()[0], 2);
    for holdings in [with, without] {
        assert_eq!(Holdings::decode(&holdings.encode()), Ok(holdings));
    }
    let mut none = with.encode();
    none[25] = 0;
    assert!(Holdings::decode(&none).is_err(), "that is version 1");
}
