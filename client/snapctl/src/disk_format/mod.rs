//! Disk images in files: formats, compression, and the other files that an image refers to.
//!
//! | | |
//! | --- | --- |
//! | `part` | an open file, or an extent of one |
//! | `looks` | detection of a file's format from its first and last bytes |
//! | `unpack` | gzip, xz, zstd, bzip2 |
//! | `ova` | a disk in an OVA |
//! | `chain` | an image and all files with its content |
//! | `qcow2`, `qed`, `vhd`, `vmdk` | references of these formats to other files, and their own length |
//!
//! Invariants: no file is opened because an image names it, unless the user has given the format of
//! the image and has allowed the file's directory. The checked file is the file that is read,
//! because `qemu-img` gets descriptors and no names. Malformed images are errors, never panics.

mod chain;
mod looks;
mod ova;
mod part;
mod qcow2;
mod qed;
mod unpack;
mod vhd;
mod vmdk;

use std::fmt;

use clap::ValueEnum;

pub(crate) use self::{
    chain::{Image, Layer, Probe, Reach},
    looks::{Looks, expected_by_name},
    ova::choose_disk,
    part::Part,
    unpack::{Packing, unpacked},
};

/// The format of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the disk as they are
    Raw,
    /// QEMU's format
    Qcow2,
    /// VMware's format
    Vmdk,
    /// The format of Virtual PC, Hyper-V and Azure
    #[value(alias = "vpc")]
    Vhd,
    /// The newer format of Hyper-V
    Vhdx,
    /// VirtualBox's format
    Vdi,
    /// QEMU's older format
    Qed,
    /// The format of Parallels and Virtuozzo
    #[value(alias = "hdd")]
    Parallels,
}

impl Format {
    /// As `--format` takes it.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
        }
    }

    /// As `qemu-img` calls it.
    pub(crate) fn driver(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// The format that `qemu-img` calls so; `None` for one that is not read here.
    fn of_driver(name: &[u8]) -> Option<Self> {
        match name {
            b"host_device" | b"file" => Some(Self::Raw),
            name => Self::value_variants()
                .iter()
                .copied()
                .find(|format| format.driver().as_bytes() == name),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A big-endian number at `at`; `None` behind the end.
fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    be64(bytes, at).map(u64::swap_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    be32(bytes, at).map(u32::swap_bytes)
}
