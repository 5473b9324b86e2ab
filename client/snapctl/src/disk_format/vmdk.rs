//! The description of a VMDK: the text that names its extents and its parent.

use varve_client::Result;

use super::{Part, le32, le64};

/// The longest description that QEMU takes.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
/// The most extents of a description: the largest disk in extents of 2 GiB.
const EXTENTS_MAX: usize = 8192;
/// The types that QEMU reads correctly.
const CREATE_TYPES: [&str; 8] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
    "vmfs",
    "vmfsSparse",
    "vmfsThin",
];

/// The content of the description.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Description {
    pub(crate) create_type: String,
    cid: String,
    parent_cid: String,
    /// The parent, for content that this image lacks.
    pub(crate) parent: Option<Vec<u8>>,
    /// An image that contains its description has one: itself.
    pub(crate) extents: Vec<Extent>,
}

/// A stretch of the disk, in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Extent {
    pub(crate) sectors: u64,
    kind: String,
    pub(crate) name: String,
    pub(crate) offset_sectors: u64,
}

/// The place of the description.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// The file has only the description; the content is in other files.
    Descriptor,
    /// The file has the content, and the description within.
    Sparse,
}

/// Reads the description of an image.
pub(crate) fn read(part: &Part) -> Result<(Kind, Description)> {
    let head = part.bytes(0, 512)?;
    let (kind, at, len) = if head.starts_with(b"KDMV") {
        if head.len() < 512 {
            return Err(part.truncated("its header", 512));
        }
        if le64(&head, 12) == Some(0) {
            return Err(part.refused("its header says that it has no content of its own"));
        }
        let sectors = |at| le64(&head, at).unwrap_or_default().checked_mul(512);
        match (sectors(28), sectors(36)) {
            (Some(0), _) | (_, Some(0)) => return Ok((Kind::Sparse, Description::default())),
            (Some(at), Some(len)) => (Kind::Sparse, at, len),
            _ => return Err(part.damaged("its header says that its description is nowhere")),
        }
    } else if head.starts_with(b"COWD") {
        return Ok((Kind::Sparse, Description::default()));
    } else {
        (Kind::Descriptor, 0, part.len())
    };
    if len > DESCRIPTION_BYTES_MAX {
        return Err(part.damaged(format!("its description has {len} bytes")));
    }
    let len = usize::try_from(len).unwrap_or_default();
    let bytes = part.exact(at, len, "its description")?;
    let description = Description::parse(&bytes).map_err(|why| part.refused(why))?;
    Ok((kind, description))
}

/// The sectors that a sparse extent has, by its header; `None` if it has none.
pub(crate) fn sparse_sectors(head: &[u8]) -> Option<u64> {
    if head.starts_with(b"KDMV") {
        le64(head, 12)
    } else if head.starts_with(b"COWD") {
        le32(head, 12).map(u64::from)
    } else {
        None
    }
}

impl Extent {
    /// The file has the bytes as they are.
    pub(crate) fn is_flat(&self) -> bool {
        matches!(self.kind.as_str(), "FLAT" | "VMFS")
    }

    fn parse(line: &str) -> Result<Self, String> {
        let wrong = || format!("the extent {line:?} is not understood");
        let (front, rest) = line.split_once('"').ok_or_else(wrong)?;
        let (name, rest) = rest.split_once('"').ok_or_else(wrong)?;
        let front: Vec<_> = front.split_ascii_whitespace().collect();
        let [access, sectors, kind] = front[..] else {
            return Err(wrong());
        };
        if access != "RW" {
            return Err(format!(
                "the extent {line:?} is not RW, and only RW extents are supported"
            ));
        }
        if !matches!(kind, "FLAT" | "VMFS" | "SPARSE" | "VMFSSPARSE") {
            return Err(format!("an extent of type {kind} is not supported"));
        }
        let mut rest = rest.split_ascii_whitespace();
        let offset_sectors = match (rest.next(), rest.next()) {
            (None, _) => 0,
            (Some(offset), None) => offset.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        Ok(Self {
            sectors: sectors.parse().map_err(|_| wrong())?,
            kind: kind.to_owned(),
            name: name.to_owned(),
            offset_sectors,
        })
    }
}

impl Description {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let end = bytes.iter().position(|byte| *byte == 0);
        let bytes = &bytes[..end.unwrap_or(bytes.len())];
        let mut description = Self::default();
        let mut parent_name = None;
        for line in bytes.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let line = String::from_utf8_lossy(line.trim_ascii());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let is_extent = ["RW ", "RDONLY ", "NOACCESS "]
                .iter()
                .any(|access| line.starts_with(access));
            if is_extent {
                if description.extents.len() == EXTENTS_MAX {
                    return Err(format!("it has more than {EXTENTS_MAX} extents"));
                }
                description.extents.push(Extent::parse(&line)?);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim().trim_matches('"');
            match &*key.trim().to_ascii_lowercase() {
                "cid" => description.cid = hexadecimal(value)?,
                "parentcid" => description.parent_cid = hexadecimal(value)?,
                "createtype" => description.create_type = value.to_owned(),
                "parentfilenamehint" => parent_name = Some(value.as_bytes().to_vec()),
                _ => {}
            }
        }
        let create_type = &description.create_type;
        if !CREATE_TYPES.contains(&&**create_type) {
            return Err(format!("a vmdk of type {create_type:?} is not supported"));
        }
        let has_parent = !description.parent_cid.is_empty() && description.parent_cid != "ffffffff";
        description.parent = match (has_parent, parent_name) {
            (false, _) => None,
            (true, Some(name)) => Some(name),
            (true, None) => return Err("it has a parent, which it does not name".to_owned()),
        };
        Ok(description)
    }

    /// The description that QEMU is given in place of the image's own: extents `which`, each at its
    /// path in `paths`.
    pub(crate) fn rewritten(&self, extents: &[(Extent, String)], alone: bool) -> String {
        let (create_type, parent_cid) = if alone {
            ("twoGbMaxExtentSparse", "ffffffff")
        } else {
            let create_type = match &*self.create_type {
                "vmfsThin" => "vmfs",
                other => other,
            };
            let parent_cid = match &*self.parent_cid {
                "" => "ffffffff",
                cid => cid,
            };
            (create_type, parent_cid)
        };
        let cid = match &*self.cid {
            "" => "fffffffe",
            cid => cid,
        };
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={cid}\nparentCID={parent_cid}\ncreateType=\"{create_type}\"\n\n\
             # Extent description\n"
        );
        for (extent, path) in extents {
            let Extent {
                sectors,
                kind,
                offset_sectors,
                ..
            } = extent;
            text.push_str(&format!("RW {sectors} {kind} \"{path}\""));
            if extent.is_flat() {
                text.push_str(&format!(" {offset_sectors}"));
            }
            text.push('\n');
        }
        text
    }
}

/// A content id, as it is written.
fn hexadecimal(value: &str) -> Result<String, String> {
    if value.is_empty() || value.len() > 8 || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("{value:?} is not a content id"));
    }
    Ok(value.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const FLAT: &str = "# Disk DescriptorFile\nversion=1\nCID=efcb2b67\nparentCID=ffffffff\n\
        createType=\"monolithicFlat\"\r\n\n# Extent description\nRW 40960 FLAT \"my disk-flat.vmdk\" 128\n\
        # The Disk Data Base\n#DDB\nddb.adapterType = \"ide\"\n";

    #[test]
    fn a_description_is_read_and_written_anew() {
        let description = Description::parse(FLAT.as_bytes()).unwrap();
        let extent = Extent {
            sectors: 40960,
            kind: "FLAT".to_owned(),
            name: "my disk-flat.vmdk".to_owned(),
            offset_sectors: 128,
        };
        assert_eq!(description.extents, std::slice::from_ref(&extent));
        assert_eq!(description.parent, None);
        let text = description.rewritten(&[(extent, "/proc/1/fd/7".to_owned())], false);
        assert!(
            text.contains("createType=\"monolithicFlat\"")
                && text.contains("\nCID=efcb2b67\n")
                && text.ends_with("\nRW 40960 FLAT \"/proc/1/fd/7\" 128\n"),
            "{text}"
        );
    }

    #[test]
    fn a_parent_is_found() {
        let text = FLAT.replace(
            "parentCID=ffffffff",
            "parentCID=12AB\nparentFileNameHint=\"/base.vmdk\"",
        );
        let description = Description::parse(text.as_bytes()).unwrap();
        assert_eq!(description.parent.as_deref(), Some(&b"/base.vmdk"[..]));
        let text = FLAT.replace("parentCID=ffffffff", "parentCID=12ab");
        let why = Description::parse(text.as_bytes()).unwrap_err();
        assert!(why.contains("does not name"), "{why}");
    }

    /// QEMU skips extents that it does not support, and then puts all following content in the
    /// wrong place.
    #[test]
    fn what_would_be_read_wrongly_is_refused() {
        for (from, to, said) in [
            ("RW 40960 FLAT", "RDONLY 40960 FLAT", "not RW"),
            ("RW 40960 FLAT", "RW 40960 SESPARSE", "type SESPARSE"),
            ("\"my disk-flat.vmdk\" 128", "\"a\" b", "not understood"),
            ("FLAT \"my disk-flat.vmdk\" 128", "ZERO", "not understood"),
            ("40960", "-1", "not understood"),
            ("monolithicFlat", "vmfsRawDeviceMap", "vmfsRawDeviceMap"),
            ("efcb2b67", "\"x\"", "not a content id"),
        ] {
            let why = Description::parse(FLAT.replace(from, to).as_bytes()).unwrap_err();
            assert!(why.contains(said), "{to}: {why}");
        }
    }
}
