//! An image and all files with its content: opened once, and passed to `qemu-img` as descriptors.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde_json::{Value, json};
use varve_client::{Error, Result, scratch_file};

use super::{
    Format, Looks, Part, qcow2, qed, vhd,
    vmdk::{self, Description, Extent},
};

/// The most images in a chain. A circle of images ends there, too.
const LAYERS_MAX: usize = 200;

/// A file that an image names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Reference {
    pub(crate) name: Vec<u8>,
    /// The format that the image declares.
    pub(crate) format: Option<Format>,
}

/// The permission to read files that an image refers to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    /// None, because the format of the image was guessed.
    guessed: bool,
    /// Directories whose files may be read.
    dirs: Vec<PathBuf>,
}

impl Reach {
    /// None, because the user has not given a format.
    pub(crate) fn nothing() -> Self {
        Self {
            guessed: true,
            dirs: Vec::new(),
        }
    }

    /// Files below the directory of the image and below `others`.
    pub(crate) fn below(image_dir: Option<&Path>, others: &[PathBuf]) -> Result<Self> {
        let dirs = image_dir
            .into_iter()
            .chain(others.iter().map(PathBuf::as_path));
        let dirs = dirs.map(|dir| {
            let real = fs::canonicalize(dir);
            real.map_err(|error| Error::file(format!("open {}", dir.display()), error))
        });
        Ok(Self {
            guessed: false,
            dirs: dirs.collect::<Result<_>>()?,
        })
    }

    fn allows(&self, path: &Path) -> bool {
        self.dirs.iter().any(|dir| path.starts_with(dir))
    }
}

/// An image with all images behind it, the image itself first.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Layer>,
    /// The other files, as text for people.
    pub(crate) others: Vec<PathBuf>,
}

/// One image of a chain.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) part: Part,
    pub(crate) format: Format,
    /// The directory at which names in it begin; `None` if there is no such directory.
    dir: Option<PathBuf>,
    /// The file with its own content, if that is another file.
    data_file: Option<Part>,
    /// The extents of a vmdk whose content is in other files.
    extents: Vec<(Extent, Part)>,
    /// The description that QEMU reads in place of the image's own.
    description: Option<(Description, Part)>,
}

/// A question to `qemu-img map`: all mapped content lies within `len` bytes.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) node: Value,
    pub(crate) name: String,
    pub(crate) len: u64,
    /// Held open for the node.
    _description: Option<Part>,
}

impl Image {
    /// Opens the image in `part`, which is in `dir`, and all files behind it. Checks their lengths,
    /// as far as that needs no `qemu-img`. Blocks.
    pub(crate) fn open(
        part: Part,
        format: Format,
        dir: Option<PathBuf>,
        reach: &Reach,
    ) -> Result<Self> {
        let mut image = Self {
            layers: Vec::new(),
            others: Vec::new(),
        };
        let mut next = Some((part, format, dir, reach.guessed));
        while let Some((part, format, dir, guessed)) = next.take() {
            if image.layers.len() == LAYERS_MAX {
                let why = format!("the chain of backing files is longer than {LAYERS_MAX} images");
                return Err(part.refused(why));
            }
            let mut layer = Layer {
                part,
                format,
                dir,
                data_file: None,
                extents: Vec::new(),
                description: None,
            };
            let backing = layer.look(reach, guessed, &mut image.others)?;
            if let Some(backing) = backing {
                let (part, path) = layer.open_other(&backing.name, reach, guessed)?;
                image.others.push(path.clone());
                let (format, guessed) = match backing.format {
                    Some(format) => (format, false),
                    None => (guess(&part)?, true),
                };
                let dir = path.parent().map(Path::to_path_buf);
                next = Some((part, format, dir, guessed));
            }
            image.layers.push(layer);
        }
        Ok(image)
    }

    /// The whole chain as a block node for `qemu-img`.
    pub(crate) fn node(&self) -> Value {
        let layers = self.layers.iter().rev();
        layers.fold(Value::Null, |behind, layer| layer.node(behind))
    }

    /// The requested image.
    pub(crate) fn top(&self) -> Option<&Layer> {
        self.layers.first()
    }
}

/// Detects the format of a file for which none was given.
fn guess(part: &Part) -> Result<Format> {
    match Looks::at(part)? {
        Looks::Image(format) => Ok(format),
        _ => Err(part.refused("an image refers to it as an image, and it is not one")),
    }
}

impl Layer {
    /// Reads the image's header, and opens the files that it consists of; returns the file behind
    /// it.
    fn look(
        &mut self,
        reach: &Reach,
        guessed: bool,
        others: &mut Vec<PathBuf>,
    ) -> Result<Option<Reference>> {
        match self.format {
            Format::Raw => {
                if !self.part.is_device()
                    && !others.is_empty()
                    && !self.part.len().is_multiple_of(512)
                {
                    let why = format!(
                        "it is truncated: its {} bytes are no whole number of sectors",
                        self.part.len()
                    );
                    return Err(self.part.damaged(why));
                }
                Ok(None)
            }
            Format::Qcow2 => {
                let header = qcow2::Header::read(&self.part)?;
                header.check_packed(&self.part)?;
                if let Some(name) = &header.data_file {
                    let (data, path) = self.open_other(name, reach, guessed)?;
                    others.push(path);
                    if header.data_file_is_raw && data.len() < header.size_bytes {
                        return Err(data.truncated("the disk in it", header.size_bytes));
                    }
                    self.data_file = Some(data);
                }
                Ok(header.backing)
            }
            Format::Qed => qed::backing(&self.part),
            Format::Vmdk => {
                let (kind, description) = vmdk::read(&self.part)?;
                if kind == vmdk::Kind::Descriptor {
                    self.open_extents(&description, reach, guessed, others)?;
                    let extents = self.extents_by_path();
                    let text = description.rewritten(&extents, false);
                    let rewritten = described(&text, self.part.name())?;
                    self.description = Some((description.clone(), rewritten));
                }
                Ok(description.parent.map(|name| Reference {
                    name,
                    format: Some(Format::Vmdk),
                }))
            }
            Format::Vhd => vhd::check(&self.part).map(|()| None),
            // All content begins and ends at a mebibyte, and QEMU looks at whole sectors only.
            Format::Vhdx if !self.part.is_device() && !self.part.len().is_multiple_of(512) => {
                let why = format!(
                    "it is truncated: its {} bytes are no whole number of sectors",
                    self.part.len()
                );
                Err(self.part.damaged(why))
            }
            Format::Vhdx | Format::Vdi | Format::Parallels => Ok(None),
        }
    }

    fn open_extents(
        &mut self,
        description: &Description,
        reach: &Reach,
        guessed: bool,
        others: &mut Vec<PathBuf>,
    ) -> Result<()> {
        if description.extents.is_empty() {
            return Err(self.part.damaged("it names no extents"));
        }
        for extent in &description.extents {
            let (part, path) = self.open_other(extent.name.as_bytes(), reach, guessed)?;
            others.push(path);
            let end = extent.sectors.checked_add(extent.offset_sectors);
            let end = end.and_then(|end| end.checked_mul(512));
            let end = end.ok_or_else(|| self.part.damaged("an extent of it has no end"))?;
            if extent.is_flat() {
                if end > part.len() {
                    return Err(part.truncated("the extent in it", end));
                }
            } else {
                let found = vmdk::sparse_sectors(&part.bytes(0, 512)?);
                if found.is_none_or(|found| found < extent.sectors) {
                    let why = format!(
                        "it should be a sparse extent of {} sectors, but is smaller or not one",
                        extent.sectors
                    );
                    return Err(part.damaged(why));
                }
            }
            self.extents.push((extent.clone(), part));
        }
        Ok(())
    }

    fn extents_by_path(&self) -> Vec<(Extent, String)> {
        let extents = self.extents.iter();
        extents
            .map(|(extent, part)| (extent.clone(), part.path()))
            .collect()
    }

    /// Opens a file that the image names, if the user allows it.
    fn open_other(&self, name: &[u8], reach: &Reach, guessed: bool) -> Result<(Part, PathBuf)> {
        let shown = String::from_utf8_lossy(name).escape_debug().to_string();
        let name = Path::new(OsStr::from_bytes(name));
        let format = self.format;
        if guessed {
            let why = format!(
                "it looks like a {format} image with content in {shown}; to read that file, use \
                 --format {format}, and --format raw if the image is a raw disk"
            );
            return Err(self.part.refused(why));
        }
        if is_protocol(name) {
            let why = format!("its content is in {shown}, which is not a file");
            return Err(self.part.refused(why));
        }
        let path = match &self.dir {
            _ if name.is_absolute() => name.to_path_buf(),
            Some(dir) => dir.join(name),
            None => {
                let why = format!("its content is in {shown}, and it has no directory of its own");
                return Err(self.part.refused(why));
            }
        };
        let what = || {
            format!(
                "open {}, which {} is read from",
                path.display(),
                self.part.name()
            )
        };
        let outside = |real: &Path| {
            let dir = real.parent().unwrap_or(real).display();
            let why = format!(
                "its content is in {}, which is not below its own directory; allow it with \
                 --allow-dir {dir}",
                real.display()
            );
            self.part.refused(why)
        };
        let real = fs::canonicalize(&path).map_err(|error| Error::file(what(), error))?;
        if !reach.allows(&real) {
            return Err(outside(&real));
        }
        // Opening a pipe would wait for its writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&real)
            .map_err(|error| Error::file(what(), error))?;
        let opened = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let opened = opened.map_err(|error| Error::file(what(), error))?;
        if !reach.allows(&opened) {
            return Err(outside(&opened));
        }
        let part = Part::whole(file, real.display().to_string())?;
        Ok((part, real))
    }

    /// The layer as a block node for `qemu-img`, in front of `behind`.
    fn node(&self, behind: Value) -> Value {
        let main = match &self.description {
            Some((_, description)) => description,
            None => &self.part,
        };
        let mut node = json!({ "driver": self.format.driver(), "file": main.node() });
        if let Some(data) = &self.data_file {
            node["data-file"] = json!(data.node());
        }
        if matches!(self.format, Format::Qcow2 | Format::Qed | Format::Vmdk) {
            node["backing"] = behind;
        }
        if self.format == Format::Vhd {
            node["force_size_calc"] = json!("current_size");
        }
        node
    }

    /// This image alone.
    pub(crate) fn alone(&self) -> Value {
        self.node(Value::Null)
    }

    /// The question to `qemu-img` about the place of the content.
    pub(crate) fn probes(&self) -> Result<Vec<Probe>> {
        // For these formats QEMU reports no places, but checks them itself.
        if matches!(self.format, Format::Raw | Format::Vhdx) {
            return Ok(Vec::new());
        }
        let Some((description, _)) = &self.description else {
            let content = self.data_file.as_ref().unwrap_or(&self.part);
            return Ok(vec![Probe {
                node: self.alone(),
                name: content.name().to_owned(),
                len: content.len(),
                _description: None,
            }]);
        };
        // If the content is in several files, QEMU does not say in which of them.
        let sparse = self.extents.iter().filter(|(extent, _)| !extent.is_flat());
        let probes = sparse.map(|(extent, part)| {
            let text = description.rewritten(&[(extent.clone(), part.path())], true);
            let description = described(&text, part.name())?;
            let file = description.node();
            Ok(Probe {
                node: json!({ "driver": self.format.driver(), "file": file, "backing": null }),
                name: part.name().to_owned(),
                len: part.len(),
                _description: Some(description),
            })
        });
        probes.collect()
    }
}

/// A temporary file with a description of a vmdk, which is called `name`.
fn described(text: &str, name: &str) -> Result<Part> {
    let mut file = scratch_file()?;
    let written = file.write_all(text.as_bytes());
    written.map_err(|error| Error::file(format!("describe the extents of {name}"), error))?;
    Part::whole(file, name)
}

/// QEMU takes what is before a colon for a protocol, unless a slash is before that.
fn is_protocol(name: &Path) -> bool {
    let name = name.as_os_str().as_bytes();
    let end = name.iter().position(|byte| matches!(byte, b':' | b'/'));
    end.is_some_and(|at| name.get(at) == Some(&b':'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn protocols_are_told_from_files() {
        for (name, protocol) in [
            ("nbd://host/x", true),
            ("json:{\"driver\":\"file\"}", true),
            ("ssh:x", true),
            ("base.qcow2", false),
            ("./a:b", false),
            ("/a:b/c", false),
        ] {
            assert_eq!(is_protocol(Path::new(name)), protocol, "{name}");
        }
    }
}
