//! Detection of a file's format from its first and last bytes.

use std::path::Path;

use varve_client::Result;

use super::{Format, Packing, Part, vhd};

/// Number of bytes at the front of a file that identify its format.
const HEAD_BYTES: usize = 512;

/// The detected format of a file. The content of a raw disk may look like anything, because its
/// guest writes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Looks {
    /// A disk image.
    Image(Format),
    /// Something packed.
    Packed(Packing),
    /// A tar that begins with the description of a virtual machine.
    Ova,
    /// Varve's own archive.
    Archive,
    /// A format that may contain disks, and is not supported.
    Other(&'static str),
}

/// The first bytes of unsupported formats.
const OTHERS: [(&[u8], &str); 21] = [
    (b"QFI\xfb\0\0\0\x01", "a qcow image of version 1"),
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x04\x22\x4d\x18", "a file packed by lz4"),
    (b"\x89LZO\0", "a file packed by lzop"),
    (b"LZIP", "a file packed by lzip"),
    (b"\x5d\0\0\x80\0", "a file packed by lzma"),
    (b"\x1f\x9d", "a file packed by compress"),
    (b"partclone-image", "an image of partclone"),
    (b"MSWIM\0\0\0", "a WIM archive"),
    (b"EVF\x09\x0d\x0a\xff\0", "an EnCase image"),
    (b"EVF2\x0d\x0a\x81\0", "an EnCase image"),
    (b"LVF\x09\x0d\x0a\xff\0", "an EnCase image"),
    (b"AFF10\x0d\x0a\0", "an AFF image"),
    (b"\x3a\xff\x26\xed", "a sparse image of Android"),
    (b"VMA\0", "a VMA archive of Proxmox"),
    (b"Bochs Virtual HD Image", "an image of Bochs"),
    (b"#!/bin/sh\n#V2.0 Format\n", "a cloop image"),
    (b"\xbe\xba\xfe\xca\0\0\0\0", "a SESPARSE extent of a vmdk"),
    (b"<?xml", "an XML file, as an OVF description is"),
];

impl Looks {
    /// Looks at a file. Block devices are taken as they are.
    pub(crate) fn at(part: &Part) -> Result<Self> {
        if part.is_device() {
            return Ok(Self::Image(Format::Raw));
        }
        let head = part.bytes(0, HEAD_BYTES)?;
        let tail_at = part.len().saturating_sub(512);
        Ok(Self::of(&head, &part.bytes(tail_at, 512)?))
    }

    /// By the first and the last 512 bytes.
    pub(crate) fn of(head: &[u8], tail: &[u8]) -> Self {
        if varve_client::is_archive(head) {
            return Self::Archive;
        }
        if let Some(packing) = Packing::of_head(head) {
            return Self::Packed(packing);
        }
        let other = OTHERS.iter().find(|(magic, _)| head.starts_with(magic));
        if let Some((_, name)) = other {
            return Self::Other(name);
        }
        let magics: [(&[u8], Format); 11] = [
            (b"QFI\xfb", Format::Qcow2),
            (b"KDMV", Format::Vmdk),
            (b"COWD", Format::Vmdk),
            (b"# Disk DescriptorFile", Format::Vmdk),
            (b"conectix", Format::Vhd),
            (b"vhdxfile", Format::Vhdx),
            (b"QED\0", Format::Qed),
            (b"WithoutFreeSpace", Format::Parallels),
            (b"WithouFreSpacExt", Format::Parallels),
            (b"# disk descriptorfile", Format::Vmdk),
            (b"# Disk Descriptor File", Format::Vmdk),
        ];
        if let Some((_, format)) = magics.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Self::Image(*format);
        }
        // VirtualBox and QEMU put different words in front of the magic number.
        if head.get(64..68) == Some(b"\x7f\x10\xda\xbe") {
            return Self::Image(Format::Vdi);
        }
        // A fixed VHD is a disk with a footer, which old ones end a byte early.
        if vhd::has_footer(tail) {
            return Self::Image(Format::Vhd);
        }
        if tail.starts_with(b"koly") && tail.len() == 512 {
            return Self::Other("a DMG image");
        }
        if head.get(257..262) == Some(b"ustar") {
            let name = head.get(..100).unwrap_or_default();
            let end = name.iter().position(|byte| *byte == 0);
            let name = &name[..end.unwrap_or(name.len())];
            return if name.to_ascii_lowercase().ends_with(b".ovf") {
                Self::Ova
            } else {
                Self::Other("a tar archive")
            };
        }
        Self::Image(Format::Raw)
    }
}

/// The format that a file with this name should have, if its content does not show it: a fixed VHD
/// that was cut off has lost its footer, and a qcow2 image whose front was never written is zeros.
pub(crate) fn expected_by_name(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (stem, extension) = name.rsplit_once('.')?;
    match extension {
        "qcow2" => Some(Format::Qcow2),
        "vhd" | "vpc" => Some(Format::Vhd),
        "vhdx" => Some(Format::Vhdx),
        "vdi" => Some(Format::Vdi),
        "qed" => Some(Format::Qed),
        // The extents of a flat vmdk are raw.
        "vmdk" if !is_flat_extent(stem) => Some(Format::Vmdk),
        _ => None,
    }
}

/// `disk-flat`, `disk-f001`.
fn is_flat_extent(stem: &str) -> bool {
    let end = stem.rsplit_once('-').map_or("", |(_, end)| end);
    let number = end.strip_prefix('f').unwrap_or_default();
    end == "flat" || (number.len() == 3 && number.bytes().all(|digit| digit.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(head: &[u8]) -> Looks {
        Looks::of(head, &[])
    }

    #[test]
    fn formats_are_told_by_how_a_file_begins() {
        for (head, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], Format::Qcow2),
            (b"QFI\xfb\0\0\0\x02", Format::Qcow2),
            (b"KDMV\x01", Format::Vmdk),
            (b"# Disk DescriptorFile\nversion=1", Format::Vmdk),
            (b"vhdxfileQ", Format::Vhdx),
            (b"conectix\0\0", Format::Vhd),
            (b"QED\0\0\0", Format::Qed),
            (b"WithouFreSpacExt", Format::Parallels),
            (b"QFI", Format::Raw),
            (b"", Format::Raw),
            // LUKS, and a file system without partitions: disks.
            (b"LUKS\xba\xbe\0\x02", Format::Raw),
            (b"XFSB\0\0\x10\0", Format::Raw),
        ] {
            assert_eq!(looks(head), Looks::Image(format), "{head:?}");
        }
        let mut vdi = b"<<< Oracle VM VirtualBox Disk Image >>>\n".to_vec();
        vdi.resize(64, 0);
        vdi.extend([0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(looks(&vdi), Looks::Image(Format::Vdi));
    }

    #[test]
    fn a_footer_tells_too() {
        let mut tail = b"conectix".to_vec();
        tail.resize(512, 0);
        assert_eq!(Looks::of(&[0; 512], &tail), Looks::Image(Format::Vhd));
        tail.rotate_right(1);
        assert_eq!(Looks::of(&[0; 512], &tail), Looks::Image(Format::Vhd));
        tail.rotate_right(1);
        assert_eq!(Looks::of(&[0; 512], &tail), Looks::Image(Format::Raw));
        let mut tail = b"koly".to_vec();
        tail.resize(512, 0);
        assert_eq!(Looks::of(&[0; 512], &tail), Looks::Other("a DMG image"));
    }

    #[test]
    fn what_is_packed_and_what_is_not_read_is_told() {
        assert_eq!(
            looks(b"\x1f\x8b\x08\0\0\0\0\0"),
            Looks::Packed(Packing::Gzip)
        );
        assert_eq!(looks(b"PK\x03\x04\x14\0"), Looks::Other("a zip archive"));
        assert_eq!(
            looks(b"QFI\xfb\0\0\0\x01"),
            Looks::Other("a qcow image of version 1")
        );
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        tar[..6].copy_from_slice(b"vm.OVF");
        assert_eq!(looks(&tar), Looks::Ova);
        tar[..6].copy_from_slice(b"vm.img");
        assert_eq!(looks(&tar), Looks::Other("a tar archive"));
    }

    #[test]
    fn names_say_what_a_file_should_be() {
        for (name, format) in [
            ("/a/disk.VHD", Some(Format::Vhd)),
            ("disk.vmdk", Some(Format::Vmdk)),
            ("disk-flat.vmdk", None),
            ("disk-f001.vmdk", None),
            ("disk-s001.vmdk", Some(Format::Vmdk)),
            ("disk.img", None),
            ("qcow2", None),
        ] {
            assert_eq!(expected_by_name(Path::new(name)), format, "{name}");
        }
    }
}
