//! `snapctl image register`.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use varve_client::{Architecture, BootMode, Client, DeviceSource, ImageDevice, NewImage, Platform};

use super::shown::show;
use crate::{Options, exit::Failure, import::parse_tag, size::parse_size};

/// Arguments of `image register`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A device is NAME=SOURCE, and then any of size=SIZE and delete-on-termination=true|false, with \
commas between them:

    --block-device /dev/sda1=snapshot:debian,size=20G
    --block-device /dev/sdb=empty,size=100G,delete-on-termination=true
    --block-device /dev/sdc=ephemeral0

The volume of a snapshot may be larger than the snapshot. The volume of the root device is deleted \
with the instance, and those of the others are not, unless you say so.")]
pub(crate) struct Register {
    /// Name of the image
    #[arg(long)]
    name: String,
    /// A device: NAME=snapshot:SNAPSHOT, NAME=empty or NAME=ephemeralN; may be given up to 27 times
    #[arg(long = "block-device", value_name = "DEVICE", value_parser = parse_device, required = true)]
    devices: Vec<Device>,
    /// Name of the device to boot from [default: the first one with a snapshot]
    #[arg(long, value_name = "NAME")]
    root_device_name: Option<String>,
    /// A description
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// The processor that it is for
    #[arg(long, value_enum, default_value_t = ArchitectureChoice::X86_64)]
    architecture: ArchitectureChoice,
    /// What runs on it
    #[arg(long, value_enum, default_value_t = PlatformChoice::Linux)]
    platform: PlatformChoice,
    /// The firmware that it boots with
    #[arg(long, value_enum)]
    boot_mode: Option<BootModeChoice>,
    /// A tag for the image; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// An id from elsewhere, as in ami-0123456789abcdef0, for the administrator [default: a random
    /// one]
    #[arg(long)]
    id: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ArchitectureChoice {
    /// 64-bit x86
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM
    #[value(name = "arm64")]
    Arm64,
    /// 32-bit x86
    #[value(name = "i386")]
    I386,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PlatformChoice {
    /// Linux, or another Unix
    Linux,
    /// Windows
    Windows,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BootModeChoice {
    /// BIOS
    Bios,
    /// UEFI
    Uefi,
    /// UEFI where there is one, else BIOS
    UefiPreferred,
}

/// A device on the command line; `None` for one that is left out.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Device(Option<ImageDevice>);

/// Reads a device, as `/dev/sda1=snapshot:debian,size=20G`.
fn parse_device(text: &str) -> Result<Device, String> {
    const HOW: &str = "write NAME=snapshot:SNAPSHOT, NAME=empty,size=SIZE, NAME=ephemeralN or \
                       NAME=none";
    let (name, rest) = text.split_once('=').ok_or(HOW)?;
    let mut parts = rest.split(',');
    let source = match parts.next().unwrap_or_default() {
        "none" => return Ok(Device(None)),
        "empty" => DeviceSource::Empty,
        source => match (
            source.strip_prefix("snapshot:"),
            source.strip_prefix("ephemeral"),
        ) {
            (Some(key), _) if !key.is_empty() => {
                let key = key.strip_prefix("snapshot/").unwrap_or(key);
                DeviceSource::Snapshot(key.to_owned())
            }
            (_, Some(number)) => DeviceSource::Ephemeral(number.parse().map_err(|_| HOW)?),
            _ => return Err(HOW.to_owned()),
        },
    };
    let mut device = ImageDevice {
        name: name.to_owned(),
        source,
        size_bytes: None,
        delete_on_termination: None,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("size", size)) => device.size_bytes = Some(parse_size(size)?),
            Some(("delete-on-termination", value)) => {
                let value = value.parse();
                let value = value.map_err(|_| "delete-on-termination is true or false")?;
                device.delete_on_termination = Some(value);
            }
            _ => {
                return Err(format!(
                    "{part:?} is neither size=SIZE nor delete-on-termination=true|false"
                ));
            }
        }
    }
    Ok(Device(Some(device)))
}

impl Register {
    pub(super) async fn run(self, client: &Client, options: &Options) -> Result<(), Failure> {
        let devices: Vec<_> = self.devices.into_iter().filter_map(|it| it.0).collect();
        let mut with_snapshots = devices
            .iter()
            .filter(|it| matches!(it.source, DeviceSource::Snapshot(_)));
        let first = with_snapshots.next().map(|device| device.name.clone());
        let Some(root_device) = self.root_device_name.or(first) else {
            let what = format!("register image {}", self.name);
            return Err(Failure::usage(
                what,
                "no device has a snapshot to boot from",
            ));
        };
        let new = NewImage {
            root_device,
            devices,
            name: self.name,
            description: self.description,
            architecture: match self.architecture {
                ArchitectureChoice::X86_64 => Architecture::X86_64,
                ArchitectureChoice::Arm64 => Architecture::Arm64,
                ArchitectureChoice::I386 => Architecture::I386,
            },
            platform: match self.platform {
                PlatformChoice::Linux => Platform::Linux,
                PlatformChoice::Windows => Platform::Windows,
            },
            boot_mode: self.boot_mode.map(|mode| match mode {
                BootModeChoice::Bios => BootMode::Bios,
                BootModeChoice::Uefi => BootMode::Uefi,
                BootModeChoice::UefiPreferred => BootMode::UefiPreferred,
            }),
            tags: BTreeMap::from_iter(self.tags),
            id: self.id,
        };
        show(&client.register_image(new).await?, options)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn devices_are_read() {
        let device = |name: &str, source, size_bytes, delete_on_termination| {
            Device(Some(ImageDevice {
                name: name.to_owned(),
                source,
                size_bytes,
                delete_on_termination,
            }))
        };
        let snapshot = |key: &str| DeviceSource::Snapshot(key.to_owned());
        for (text, expected) in [
            (
                "/dev/sda1=snapshot:web",
                device("/dev/sda1", snapshot("web"), None, None),
            ),
            (
                "a=snapshot:snapshot/web,size=2G,delete-on-termination=false",
                device("a", snapshot("web"), Some(2 << 30), Some(false)),
            ),
            (
                "b=empty,size=512",
                device("b", DeviceSource::Empty, Some(512), None),
            ),
            (
                "c=ephemeral3",
                device("c", DeviceSource::Ephemeral(3), None, None),
            ),
            ("d=none", Device(None)),
        ] {
            assert_eq!(parse_device(text).unwrap(), expected);
        }
        for bad in [
            "",
            "a",
            "a=",
            "a=snapshot",
            "a=snapshot:",
            "a=ephemeral",
            "a=ephemeral-1",
            "a=empty,",
            "a=empty,size",
            "a=empty,size=0",
            "a=empty,delete-on-termination=no",
        ] {
            parse_device(bad).unwrap_err();
        }
    }
}
