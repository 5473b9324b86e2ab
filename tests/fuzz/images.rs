//! Encodings of images.

use varve_store::format::{
    Architecture, BlockDevice, BootMode, CatalogRecord as _, DeviceSource, ImageId, ImageRecord,
    Platform, Protection, SnapshotId, record::Sharing,
};

use super::{accounts::account, samples::Samples};

fn id(text: &str) -> ImageId {
    text.parse()
        .unwrap_or_else(|_| ImageId::from_low_bits([7; 9]))
}

fn device(name: &str, source: DeviceSource) -> BlockDevice {
    BlockDevice {
        name: name.to_owned(),
        source,
        delete_on_termination: name == "sda",
    }
}

fn plain() -> ImageRecord {
    let root = DeviceSource::Snapshot {
        id: SnapshotId::from_low_bits([7; 9]),
        size_bytes: 8 << 30,
    };
    ImageRecord {
        id: id("ami-0123456789abcdef0"),
        name: "web 12".to_owned(),
        owner: account(),
        description: String::new(),
        created_at_ns: 1_735_689_600_123_456_789,
        architecture: Architecture::X86_64,
        platform: Platform::Linux,
        boot_mode: None,
        root_device: "sda".to_owned(),
        devices: vec![device("sda", root)],
        is_disabled: false,
        deprecated_at_ns: None,
        protection: Protection::Off,
        tags: [("os".to_owned(), "debian".to_owned())].into(),
        sharing: Sharing::default(),
    }
}

fn full() -> ImageRecord {
    let mut record = ImageRecord {
        id: id("ami-12345678"),
        architecture: Architecture::I386,
        platform: Platform::Windows,
        boot_mode: Some(BootMode::Uefi),
        is_disabled: true,
        deprecated_at_ns: Some(9),
        protection: Protection::Cooldown { until_ns: 8 },
        sharing: Sharing {
            everybody: true,
            accounts: [account()].into(),
        },
        ..plain()
    };
    record.devices.extend([
        device("sdb", DeviceSource::Empty { size_bytes: 512 }),
        device("sdc", DeviceSource::Ephemeral { number: 3 }),
    ]);
    record
}

/// The samples of a decoder, by file name.
pub(super) fn of(decoder: &str) -> Samples {
    match decoder {
        "image-record" => vec![("plain", plain().encode()), ("full", full().encode())],
        "image-id" => vec![
            ("id", plain().id.to_string().into_bytes()),
            ("short", full().id.to_string().into_bytes()),
        ],
        other => super::accounts::of(other),
    }
}
