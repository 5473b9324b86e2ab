//! An image's record, as the catalog log and the catalog keep it.

use varve_content::RootId;

use super::{
    AccountRecord, CatalogRecord, Counter, Keys, Kind, Owned, Shareable, Sharing, Tagged, Tags,
};
use crate::format::{
    AccountId, FormatError, IdKind, RecordId, SnapshotId,
    fields::{Fields, optional, put_count, put_tags, put_text},
    keys::Holdings,
};

/// The version of [`ImageRecord`]'s encoding, its first byte.
const VERSION: u8 = 1;

const DISABLED: u8 = 1;
const HAS_DEPRECATION: u8 = 2;

const WITH_SNAPSHOT: u8 = 1;
const EMPTY: u8 = 2;
const EPHEMERAL: u8 = 3;

/// The kind of id that images have.
#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OfImage {}

impl IdKind for OfImage {
    const WHAT: &'static str = "id of an image";
    const PREFIX: &'static str = "ami-";
    const DIGITS_LEAST: usize = 8;
}

/// Id of an image: `ami-` and 17 hexadecimal digits, or 8 to 16 if it was given one from elsewhere.
pub type ImageId = RecordId<OfImage>;

/// The catalog record of an image: what a machine boots from. Its content is that of its snapshots,
/// which stay as long as it does.
///
/// | bytes | field |
/// | --- | --- |
/// | 1 | version: 1 |
/// | 1 | flags: 1 disabled, 2 has a time of deprecation |
/// | 1 | architecture: 1 x86-64, 2 arm64, 3 i386 |
/// | 1 | platform: 1 Linux, 2 Windows |
/// | 1 | boot mode: 0 not said, 1 BIOS, 2 UEFI, 3 UEFI preferred |
/// | 1 | protection: 0 none, 1 protected, 2 with a cooldown, 3 in its cooldown |
/// | 9 | id |
/// | 8 | owner |
/// | 8 | created |
/// | 8 | deprecated from then on; zero if there is no such time |
/// | 8 | end of the cooldown; zero unless it is in its cooldown |
/// | 4 + n | name: length, UTF-8 |
/// | 4 + n | description |
/// | 4 + n | name of the root device |
/// | 4 | number of devices, in the order of the image |
/// | | each: name (4 + n), 1 snapshot, 2 empty, or 3 ephemeral (1), 1 if it goes with the instance (1), size (8), id of the snapshot (9), number (4); zeros where it has none |
/// | 4 | number of tags, ascending by key |
/// | 4 + n, 4 + n | each tag: key, value |
/// | 1 | 1 if it is shared with everybody, else 0 |
/// | 4 | number of accounts that it is shared with, ascending |
/// | 8 | each of them, as a number |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Its id.
    pub id: ImageId,
    /// Its name: no other image of its owner has the same.
    pub name: String,
    /// The account that it belongs to.
    pub owner: AccountId,
    /// A description by the user; empty: none.
    pub description: String,
    /// When it was registered, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// The processor that it is for.
    pub architecture: Architecture,
    /// What runs on it.
    pub platform: Platform,
    /// The firmware that it boots with; `None`: not said.
    pub boot_mode: Option<BootMode>,
    /// The name of the device that it boots from, one of `devices`.
    pub root_device: String,
    /// The disks of a machine that boots it.
    pub devices: Vec<BlockDevice>,
    /// True while nobody may use it.
    pub is_disabled: bool,
    /// From when on it is deprecated, in nanoseconds since 1970.
    pub deprecated_at_ns: Option<u64>,
    /// Whether it may be deregistered.
    pub protection: Protection,
    /// Its tags.
    pub tags: Tags,
    /// Who may see and launch it beside its owner.
    pub sharing: Sharing,
}

/// The processor that an image is for.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86.
    #[default]
    X86_64,
    /// 64-bit ARM.
    Arm64,
    /// 32-bit x86.
    I386,
}

/// What runs on an image.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub enum Platform {
    /// Linux, or another Unix.
    #[default]
    Linux,
    /// Windows.
    Windows,
}

/// The firmware that an image boots with.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum BootMode {
    /// BIOS.
    Bios,
    /// UEFI.
    Uefi,
    /// UEFI where there is one, else BIOS.
    UefiPreferred,
}

/// Whether an image may be deregistered.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub enum Protection {
    /// It may.
    #[default]
    Off,
    /// It may not.
    On,
    /// It may not, and for a day after that was ended.
    WithCooldown,
    /// It may after this time, in nanoseconds since 1970.
    Cooldown {
        /// The end of the cooldown.
        until_ns: u64,
    },
}

/// A disk of a machine that boots an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its name: no other device of the image has the same.
    pub name: String,
    /// Its first content.
    pub source: DeviceSource,
    /// True if its volume is deleted with the instance.
    pub delete_on_termination: bool,
}

/// The first content of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSource {
    /// That of a snapshot.
    Snapshot {
        /// The snapshot.
        id: SnapshotId,
        /// Size of the volume, which is not less than that of the snapshot.
        size_bytes: u64,
    },
    /// Zeros.
    Empty {
        /// Size of the volume.
        size_bytes: u64,
    },
    /// A scratch volume: it is never in a snapshot.
    Ephemeral {
        /// Its number: `ephemeral0` has 0.
        number: u32,
    },
}

impl DeviceSource {
    /// The snapshot with the first content, if it has any.
    #[must_use]
    pub const fn snapshot(&self) -> Option<SnapshotId> {
        match self {
            Self::Snapshot { id, .. } => Some(*id),
            Self::Empty { .. } | Self::Ephemeral { .. } => None,
        }
    }

    /// Size of the volume; `None`: the one who launches says it.
    #[must_use]
    pub const fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::Snapshot { size_bytes, .. } | Self::Empty { size_bytes } => Some(*size_bytes),
            Self::Ephemeral { .. } => None,
        }
    }

    const fn to_byte(&self) -> u8 {
        match self {
            Self::Snapshot { .. } => WITH_SNAPSHOT,
            Self::Empty { .. } => EMPTY,
            Self::Ephemeral { .. } => EPHEMERAL,
        }
    }
}

impl ImageRecord {
    /// The device of that name.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&BlockDevice> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// Returns true once its time of deprecation has come.
    #[must_use]
    pub fn is_deprecated(&self, now_ns: u64) -> bool {
        self.deprecated_at_ns.is_some_and(|at| at <= now_ns)
    }
}

impl Owned for ImageRecord {
    /// The new owner has not shared it with anybody.
    fn give(&mut self, to: AccountId) {
        self.owner = to;
        self.sharing = Sharing::default();
    }
}

impl Shareable for ImageRecord {
    fn sharing_mut(&mut self) -> &mut Sharing {
        &mut self.sharing
    }

    fn is_private(owner: Option<&AccountRecord>) -> bool {
        owner.is_none_or(|owner| !owner.allows_public_images)
    }
}

impl Tagged for ImageRecord {
    fn tags_mut(&mut self) -> &mut Tags {
        &mut self.tags
    }
}

impl CatalogRecord for ImageRecord {
    type Id = ImageId;

    const KIND: &'static Kind = &Kind::of::<Self>("image", 16, "images")
        .with_labels("image-names")
        .with_tags("image-tags")
        .with_counter(Counter::Others);

    fn keys(&self) -> Keys<'_, ImageId> {
        Keys {
            id: self.id,
            owner: self.owner,
            name: Some(&self.name),
            tags: Some(&self.tags),
        }
    }

    fn holdings(&self) -> Holdings {
        Holdings {
            images: 1,
            ..Holdings::default()
        }
    }

    /// None: its snapshots have them, and stay as long as it does.
    fn roots(&self) -> Vec<RootId> {
        Vec::new()
    }

    fn snapshots(&self) -> Vec<SnapshotId> {
        let snapshots = self.devices.iter();
        let mut snapshots: Vec<_> = snapshots.filter_map(|it| it.source.snapshot()).collect();
        snapshots.sort_unstable();
        snapshots.dedup();
        snapshots
    }

    fn sharing(&self) -> Option<&Sharing> {
        Some(&self.sharing)
    }

    fn encode(&self) -> Vec<u8> {
        let (protection, until_ns) = self.protection.to_fields();
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.is_disabled, DISABLED)
            | flag(self.deprecated_at_ns.is_some(), HAS_DEPRECATION);
        let mut bytes = vec![
            VERSION,
            flags,
            self.architecture.to_byte(),
            self.platform.to_byte(),
            self.boot_mode.map_or(0, BootMode::to_byte),
            protection,
        ];
        bytes.extend_from_slice(self.id.as_bytes());
        for number in [
            self.owner.number(),
            self.created_at_ns,
            self.deprecated_at_ns.unwrap_or_default(),
            until_ns,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        put_text(&mut bytes, &self.name);
        put_text(&mut bytes, &self.description);
        put_text(&mut bytes, &self.root_device);
        put_count(&mut bytes, self.devices.len());
        for device in &self.devices {
            device.encode_into(&mut bytes);
        }
        put_tags(&mut bytes, &self.tags);
        self.sharing.encode_into(&mut bytes);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields::new("record of an image", bytes);
        let version = fields.u8()?;
        if version != VERSION {
            let what = "version of an image's record";
            return Err(FormatError::unknown(what, VERSION, version));
        }
        let flags = fields.u8()?;
        if flags & !(DISABLED | HAS_DEPRECATION) != 0 {
            return Err(FormatError::differs(
                "flags of an image's record",
                "1 (disabled), 2 (time of deprecation)",
                format_args!("{flags:#04x}"),
            ));
        }
        let architecture = Architecture::from_byte(fields.u8()?)?;
        let platform = Platform::from_byte(fields.u8()?)?;
        let boot_mode = BootMode::from_byte(fields.u8()?)?;
        let protection = fields.u8()?;
        let id = ImageId::decode_from(&mut fields)?;
        let owner = AccountId::decode_from(&mut fields)?;
        let created_at_ns = fields.u64()?;
        let has_deprecation = flags & HAS_DEPRECATION != 0;
        let deprecated_at_ns = optional(&mut fields, has_deprecation, 8, Fields::u64)?;
        let protection = Protection::from_fields(protection, &mut fields)?;
        let name = fields.text()?;
        let description = fields.text()?;
        let root_device = fields.text()?;
        let mut devices = Vec::new();
        for _ in 0..fields.u32()? {
            devices.push(BlockDevice::decode_from(&mut fields)?);
        }
        let tags = fields.tags()?;
        let sharing = Sharing::decode_from(&mut fields)?;
        fields.end()?;
        Ok(Self {
            id,
            name,
            owner,
            description,
            created_at_ns,
            architecture,
            platform,
            boot_mode,
            root_device,
            devices,
            is_disabled: flags & DISABLED != 0,
            deprecated_at_ns,
            protection,
            tags,
            sharing,
        })
    }
}

impl BlockDevice {
    fn encode_into(&self, bytes: &mut Vec<u8>) {
        let (size_bytes, snapshot, number) = match &self.source {
            DeviceSource::Snapshot { id, size_bytes } => (*size_bytes, *id.as_bytes(), 0),
            DeviceSource::Empty { size_bytes } => (*size_bytes, [0; 9], 0),
            DeviceSource::Ephemeral { number } => (0, [0; 9], *number),
        };
        put_text(bytes, &self.name);
        bytes.push(self.source.to_byte());
        bytes.push(self.delete_on_termination.into());
        bytes.extend_from_slice(&size_bytes.to_le_bytes());
        bytes.extend_from_slice(&snapshot);
        bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn decode_from(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        const WHAT: &str = "device of an image";
        let name = fields.text()?;
        let source = fields.u8()?;
        let delete_on_termination = match fields.u8()? {
            0 => false,
            1 => true,
            other => {
                let expected = "0 or 1 for its end with the instance";
                return Err(FormatError::unknown(WHAT, expected, other));
            }
        };
        let has_snapshot = source == WITH_SNAPSHOT;
        let size_bytes = optional(fields, source != EPHEMERAL, 8, Fields::u64)?;
        let snapshot = optional(fields, has_snapshot, 9, SnapshotId::decode_from)?;
        let number = optional(fields, source == EPHEMERAL, 4, Fields::u32)?;
        let source = match (source, size_bytes, snapshot, number) {
            (WITH_SNAPSHOT, Some(size_bytes), Some(id), None) => {
                DeviceSource::Snapshot { id, size_bytes }
            }
            (EMPTY, Some(size_bytes), None, None) => DeviceSource::Empty { size_bytes },
            (EPHEMERAL, None, None, Some(number)) => DeviceSource::Ephemeral { number },
            _ => {
                let expected = "1 (snapshot), 2 (empty), 3 (ephemeral)";
                return Err(FormatError::unknown(WHAT, expected, source));
            }
        };
        Ok(Self {
            name,
            source,
            delete_on_termination,
        })
    }
}

impl Architecture {
    const fn to_byte(self) -> u8 {
        match self {
            Self::X86_64 => 1,
            Self::Arm64 => 2,
            Self::I386 => 3,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        Ok(match byte {
            1 => Self::X86_64,
            2 => Self::Arm64,
            3 => Self::I386,
            other => {
                let what = "architecture of an image";
                return Err(FormatError::unknown(what, "1 to 3", other));
            }
        })
    }
}

impl Platform {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Linux => 1,
            Self::Windows => 2,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, FormatError> {
        Ok(match byte {
            1 => Self::Linux,
            2 => Self::Windows,
            other => {
                let what = "platform of an image";
                return Err(FormatError::unknown(what, "1 and 2", other));
            }
        })
    }
}

impl BootMode {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Bios => 1,
            Self::Uefi => 2,
            Self::UefiPreferred => 3,
        }
    }

    fn from_byte(byte: u8) -> Result<Option<Self>, FormatError> {
        Ok(match byte {
            0 => None,
            1 => Some(Self::Bios),
            2 => Some(Self::Uefi),
            3 => Some(Self::UefiPreferred),
            other => {
                let what = "boot mode of an image";
                return Err(FormatError::unknown(what, "0 to 3", other));
            }
        })
    }
}

impl Protection {
    const COOLDOWN: u8 = 3;

    const fn to_fields(self) -> (u8, u64) {
        match self {
            Self::Off => (0, 0),
            Self::On => (1, 0),
            Self::WithCooldown => (2, 0),
            Self::Cooldown { until_ns } => (Self::COOLDOWN, until_ns),
        }
    }

    fn from_fields(byte: u8, fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let until_ns = optional(fields, byte == Self::COOLDOWN, 8, Fields::u64)?;
        Ok(match (byte, until_ns) {
            (0, _) => Self::Off,
            (1, _) => Self::On,
            (2, _) => Self::WithCooldown,
            (Self::COOLDOWN, Some(until_ns)) => Self::Cooldown { until_ns },
            (other, _) => {
                let what = "protection of an image";
                return Err(FormatError::unknown(what, "0 to 3", other));
            }
        })
    }
}
