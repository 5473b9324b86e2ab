//! A disk in an OVA: a tar that begins with the description of a virtual machine, in XML.

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Component, Path},
};

use roxmltree::{Document, Node};
use varve_client::Result;

use super::Part;

/// The longest description that is read.
const DESCRIPTION_BYTES_MAX: u64 = 4 << 20;
/// Files in an OVA, at most.
const FILES_MAX: usize = 10_000;

/// A file in the tar.
#[derive(Debug)]
struct Entry {
    name: String,
    start: u64,
    len: u64,
}

/// A disk, as the description has it.
#[derive(Debug, Eq, PartialEq)]
struct Disk {
    id: String,
    href: String,
    /// Length of its file in bytes, if the description has it.
    len: Option<u64>,
}

/// The disk with this number in the OVA, counted from 1; without a number the only one.
pub(crate) fn choose_disk(ova: &Part, number: Option<usize>) -> Result<Part> {
    let entries = entries(ova)?;
    let description = entries
        .first()
        .filter(|entry| entry.len <= DESCRIPTION_BYTES_MAX)
        .ok_or_else(|| ova.refused("its description is too long"))?;
    let len = usize::try_from(description.len).unwrap_or_default();
    let text = ova.exact(description.start, len, "its description")?;
    let text = String::from_utf8_lossy(&text);
    let disks = disks(&text).map_err(|why| ova.refused(why))?;
    let disk = match number {
        Some(number) => number.checked_sub(1).and_then(|at| disks.get(at)),
        None if disks.len() == 1 => disks.first(),
        None => None,
    };
    let disk = disk.ok_or_else(|| {
        let listed = (1..).zip(&disks);
        let listed = listed.map(|(number, disk)| format!("{number} is {}", disk.href));
        let listed = listed.collect::<Vec<_>>().join(", ");
        ova.refused(match disks.len() {
            0 => "it has no disk in a file".to_owned(),
            1 => format!("it has one disk: {listed}"),
            count => format!("it has {count} disks: choose one with --disk; {listed}"),
        })
    })?;
    let entry = entries
        .iter()
        .find(|entry| same_name(&entry.name, &disk.href));
    let entry = entry
        .ok_or_else(|| ova.damaged(format!("disk {} ({}) is not in it", disk.id, disk.href)))?;
    if let Some(len) = disk.len
        && len != entry.len
    {
        return Err(ova.damaged(format!(
            "disk {} has {} bytes, and its description says {len}",
            disk.href, entry.len
        )));
    }
    let name = format!("{} in {}", disk.href, ova.name());
    let stretch = ova.stretch(entry.start, entry.len, name);
    stretch.ok_or_else(|| {
        let end = entry.start.saturating_add(entry.len);
        ova.truncated(&format!("disk {}", disk.href), end)
    })
}

/// The files in it, in their order.
fn entries(ova: &Part) -> Result<Vec<Entry>> {
    let failed = |error: io::Error| ova.damaged(error.to_string());
    let mut archive = tar::Archive::new(Cursor {
        part: ova,
        position: 0,
    });
    let mut entries = Vec::new();
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if entries.len() == FILES_MAX {
            return Err(ova.refused(format!("more than {FILES_MAX} files are in it")));
        }
        entries.push(Entry {
            name: String::from_utf8_lossy(&entry.path_bytes()).into_owned(),
            start: entry.raw_file_position(),
            len: entry.size(),
        });
    }
    Ok(entries)
}

/// Names of one file, with or without `./` in front.
fn same_name(one: &str, other: &str) -> bool {
    let plain = |name| {
        let components = Path::new(name).components();
        components.filter(|component| *component != Component::CurDir)
    };
    plain(one).eq(plain(other))
}

/// The disks that a description has, in its order.
fn disks(text: &str) -> Result<Vec<Disk>, String> {
    let document = Document::parse(text.trim_start_matches('\u{feff}'));
    let document = document.map_err(|error| format!("its description is not XML: {error}"))?;
    let named = |name| {
        let nodes = document.descendants();
        nodes.filter(move |node: &Node<'_, '_>| node.tag_name().name() == name)
    };
    let mut disks = Vec::new();
    for disk in named("Disk") {
        let (Some(id), Some(file)) = (attribute(disk, "diskId"), attribute(disk, "fileRef")) else {
            // An empty disk, which is made for the machine.
            continue;
        };
        if attribute(disk, "parentRef").is_some() {
            return Err(format!("disk {id} is only the difference to another disk"));
        }
        let file = named("File")
            .find(|node| attribute(*node, "id") == Some(file))
            .ok_or_else(|| format!("the file {file} of disk {id} is not described"))?;
        let href = attribute(file, "href").ok_or_else(|| format!("disk {id} has no file"))?;
        if attribute(file, "chunkSize").is_some() {
            return Err(format!(
                "disk {id} is in several pieces, which is not supported"
            ));
        }
        disks.push(Disk {
            id: id.to_owned(),
            href: href.to_owned(),
            len: attribute(file, "size").and_then(|len| len.parse().ok()),
        });
    }
    Ok(disks)
}

/// An attribute, in any name space.
fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let mut attributes = node.attributes();
    let found = attributes.find(|attribute| attribute.name() == name);
    found.map(|attribute| attribute.value())
}

/// A part as `tar` reads it.
struct Cursor<'a> {
    part: &'a Part,
    position: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.part.bytes(self.position, buffer.len());
        let bytes = bytes.map_err(|error| io::Error::other(error.to_string()))?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.part.len().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const OVF: &str = r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:id="file2" ovf:href="data.vmdk"/>
    <File ovf:id="file1" ovf:href="root.vmdk" ovf:size="512"/>
  </References>
  <DiskSection>
    <Disk ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:capacity="8"/>
    <Disk ovf:diskId="empty" ovf:capacity="8"/>
    <Disk ovf:diskId="vmdisk2" ovf:fileRef="file2" ovf:capacity="8"/>
  </DiskSection>
</Envelope>"#;

    #[test]
    fn disks_are_found_in_the_order_of_the_description() {
        let disk = |id: &str, href: &str, len| Disk {
            id: id.to_owned(),
            href: href.to_owned(),
            len,
        };
        assert_eq!(
            disks(OVF).unwrap(),
            [
                disk("vmdisk1", "root.vmdk", Some(512)),
                disk("vmdisk2", "data.vmdk", None)
            ]
        );
        let pieces = OVF.replace("ovf:size", "ovf:chunkSize");
        assert!(disks(&pieces).unwrap_err().contains("pieces"));
        let parent = OVF.replace(
            "ovf:fileRef=\"file1\"",
            "ovf:fileRef=\"file1\" ovf:parentRef=\"x\"",
        );
        assert!(disks(&parent).unwrap_err().contains("the difference to"));
        let missing = OVF.replace("id=\"file1\"", "id=\"file3\"");
        assert!(disks(&missing).unwrap_err().contains("not described"));
        assert!(disks("<a><b></a>").unwrap_err().contains("not XML"));
    }

    #[test]
    fn names_are_compared_as_paths() {
        assert!(same_name("./root.vmdk", "root.vmdk"));
        assert!(!same_name("a/root.vmdk", "root.vmdk"));
    }
}
