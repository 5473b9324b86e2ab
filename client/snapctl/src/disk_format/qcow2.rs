//! The header of a qcow2 image: its references to other files, and the end of its compressed
//! clusters.

use varve_client::Result;

use super::{Format, Part, be32, be64, chain::Reference};

/// The longest header, with its extensions: it is in the first cluster.
const HEADER_BYTES_MAX: usize = 2 << 20;
/// The longest table of level 1 that QEMU takes.
const L1_BYTES_MAX: u64 = 32 << 20;
/// The longest name that QEMU takes.
const NAME_BYTES_MAX: u32 = 1023;

const DATA_FILE_BIT: u64 = 1 << 2;
const WIDE_L2_BIT: u64 = 1 << 4;
const RAW_DATA_BIT: u64 = 1 << 1;
const PACKED_BIT: u64 = 1 << 62;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;

/// The fields of the header.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Header {
    /// The image behind this one, for content that this one lacks.
    pub(crate) backing: Option<Reference>,
    /// The file with its own content, if that is another file.
    pub(crate) data_file: Option<Vec<u8>>,
    /// True if the other file is a raw disk by itself.
    pub(crate) data_file_is_raw: bool,
    pub(crate) size_bytes: u64,
    cluster_bits: u32,
    l1_entries: u32,
    l1_offset: u64,
    wide_l2: bool,
}

impl Header {
    /// Reads the header of the image.
    pub(crate) fn read(part: &Part) -> Result<Self> {
        let head = part.exact(0, 72, "its header")?;
        let bits = be32(&head, 20).unwrap_or_default();
        if !(9..=21).contains(&bits) {
            return Err(part.damaged(format!("its header says clusters of 2^{bits} bytes")));
        }
        let bytes = part.bytes(0, HEADER_BYTES_MAX.min(1 << bits))?;
        Self::parse(&bytes).map_err(|why| part.damaged(why))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let word = |at| be32(bytes, at).ok_or("its header is cut off");
        let long = |at| be64(bytes, at).ok_or("its header is cut off");
        let version = word(4)?;
        let mut header = Self {
            size_bytes: long(24)?,
            cluster_bits: word(20)?,
            l1_entries: word(36)?,
            l1_offset: long(40)?,
            ..Self::default()
        };
        if word(32)? != 0 {
            return Err("it is encrypted, which is not supported".to_owned());
        }
        let (features, hints, header_bytes) = match version {
            2 => (0, 0, 72),
            3 => (long(72)?, long(88)?, word(100)?),
            other => return Err(format!("it has version {other}, which is not supported")),
        };
        header.wide_l2 = features & WIDE_L2_BIT != 0;
        header.data_file_is_raw = hints & RAW_DATA_BIT != 0;
        let mut backing_format = None;
        let (name_at, name_len) = (long(8)?, word(16)?);
        let mut at = header_bytes as usize;
        // Extensions end where the name of the backing file begins.
        while name_at == 0 || (at as u64) < name_at {
            let (kind, len) = match (be32(bytes, at), be32(bytes, at + 4)) {
                (Some(kind), Some(len)) if kind != 0 => (kind, len as usize),
                _ => break,
            };
            let value = bytes.get(at + 8..).and_then(|rest| rest.get(..len));
            let value = value.ok_or("an extension of its header is cut off")?;
            match kind {
                BACKING_FORMAT => backing_format = Some(value.to_vec()),
                DATA_FILE_NAME => header.data_file = Some(value.to_vec()),
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        if features & DATA_FILE_BIT == 0 {
            header.data_file = None;
        } else if header.data_file.is_none() {
            return Err("its content is in another file, which it does not name".to_owned());
        }
        if name_at != 0 {
            let name = usize::try_from(name_at)
                .ok()
                .filter(|_| name_len > 0 && name_len <= NAME_BYTES_MAX)
                .and_then(|at| bytes.get(at..)?.get(..name_len as usize))
                .ok_or("the name of its backing file is not where its header says")?;
            let format = match backing_format {
                None => None,
                Some(format) => Some(Format::of_driver(&format).ok_or_else(|| {
                    let format = String::from_utf8_lossy(&format);
                    format!("its backing file has format {format:?}, which is not supported")
                })?),
            };
            header.backing = Some(Reference {
                name: name.to_vec(),
                format,
            });
        }
        Ok(header)
    }

    /// Checks that all packed clusters are there: `qemu-img` shows the places of the others, but
    /// not of these.
    pub(crate) fn check_packed(&self, part: &Part) -> Result<()> {
        if self.data_file.is_some() {
            return Ok(());
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > L1_BYTES_MAX {
            return Err(part.damaged(format!("its table of level 1 has {l1_bytes} bytes")));
        }
        let l1_bytes = usize::try_from(l1_bytes).unwrap_or_default();
        let l1 = part.exact(self.l1_offset, l1_bytes, "its table of level 1")?;
        let entry_bytes = if self.wide_l2 { 16 } else { 8 };
        for entry in l1.chunks_exact(8) {
            let offset = be64(entry, 0).unwrap_or_default() & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            let l2 = part.exact(offset, 1 << self.cluster_bits, "a table of level 2")?;
            for entry in l2.chunks_exact(entry_bytes) {
                let entry = be64(entry, 0).unwrap_or_default();
                if entry & PACKED_BIT == 0 {
                    continue;
                }
                let end = packed_end(entry, self.cluster_bits);
                if end > part.len() {
                    return Err(part.truncated("a packed cluster", end));
                }
            }
        }
        Ok(())
    }
}

/// The end of a packed cluster: its entry has the offset and, above it, the number of sectors after
/// the first.
fn packed_end(entry: u64, cluster_bits: u32) -> u64 {
    let offset_bits = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << offset_bits) - 1);
    let sectors = (entry & (PACKED_BIT - 1)) >> offset_bits;
    (offset / 512 + sectors + 1) * 512
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn image() -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
        bytes
    }

    fn extension(bytes: &mut [u8], at: usize, kind: u32, value: &[u8]) {
        bytes[at..at + 4].copy_from_slice(&kind.to_be_bytes());
        let len = u32::try_from(value.len()).unwrap();
        bytes[at + 4..at + 8].copy_from_slice(&len.to_be_bytes());
        bytes[at + 8..at + 8 + value.len()].copy_from_slice(value);
    }

    #[test]
    fn other_files_are_found() {
        let mut bytes = image();
        extension(&mut bytes, 104, BACKING_FORMAT, b"raw");
        extension(&mut bytes, 120, DATA_FILE_NAME, b"disk.data");
        bytes[8..16].copy_from_slice(&300_u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&8_u32.to_be_bytes());
        bytes[300..308].copy_from_slice(b"base.raw");
        let header = Header::parse(&bytes).unwrap();
        let backing = Reference {
            name: b"base.raw".to_vec(),
            format: Some(Format::Raw),
        };
        assert_eq!(header.backing, Some(backing));
        // Without the bit the name means nothing.
        assert_eq!(header.data_file, None);
        bytes[79] = 4;
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.data_file.as_deref(), Some(&b"disk.data"[..]));
    }

    #[test]
    fn a_header_that_cannot_be_is_refused() {
        let refusal = |spoil: fn(&mut Vec<u8>)| {
            let mut bytes = image();
            spoil(&mut bytes);
            Header::parse(&bytes).unwrap_err()
        };
        assert!(refusal(|bytes| bytes.truncate(90)).contains("cut off"));
        assert!(refusal(|bytes| bytes[7] = 4).contains("version 4"));
        assert!(refusal(|bytes| bytes[35] = 2).contains("encrypted"));
        assert!(refusal(|bytes| bytes[79] = 4).contains("does not name"));
        assert!(refusal(|bytes| bytes[15] = 200).contains("backing file"));
        assert!(refusal(|bytes| bytes[8..20].fill(0xff)).contains("backing file"));
        assert!(refusal(|bytes| bytes[104..112].fill(0xff)).contains("extension"));
        let format = refusal(|bytes| {
            extension(bytes, 104, BACKING_FORMAT, b"nbd");
            bytes[15] = 200;
            bytes[19] = 1;
        });
        assert!(format.contains("\"nbd\""), "{format}");
    }

    #[test]
    fn packed_clusters_end_in_whole_sectors() {
        // Clusters of 64 KiB: 54 bits of offset, 8 of sectors.
        assert_eq!(packed_end(PACKED_BIT | 0x50_000, 16), 0x50_200);
        assert_eq!(packed_end(PACKED_BIT | 3 << 54 | 0x50_1ff, 16), 0x50_800);
        assert_eq!(packed_end(u64::MAX, 16), (1 << 54) + 255 * 512);
    }
}
