//! Disk images in other formats than raw, by `qemu-img`.
//!
//! A disk's content may itself look like an image in another format, and its guest may have made it so: a raw disk
//! that begins like a qcow2 image names a "backing file" of the guest's choosing. So a format that was only guessed
//! is never followed to other files.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
};

use clap::ValueEnum;
use serde::Deserialize;
use varve_client::{Error, ErrorKind, Result};

/// What an image is written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// The bytes of the disk as they are
    Raw,
    /// QEMU's format
    Qcow2,
    /// VMware's format
    Vmdk,
}

impl Format {
    /// Looks at how the file begins. Block devices are taken as they are.
    pub(crate) fn guess(path: &Path) -> Result<Self> {
        let what = || format!("open {}", path.display());
        let mut file = File::open(path).map_err(|error| Error::file(what(), error))?;
        let kind = file
            .metadata()
            .map_err(|error| Error::file(what(), error))?
            .file_type();
        if kind.is_dir() || kind.is_block_device() {
            return Ok(Self::Raw);
        }
        let mut head = Vec::new();
        file.by_ref()
            .take(32)
            .read_to_end(&mut head)
            .map_err(|error| Error::file(format!("read {}", path.display()), error))?;
        Ok(Self::of_head(&head))
    }

    fn of_head(head: &[u8]) -> Self {
        if head.starts_with(b"QFI\xfb") {
            Self::Qcow2
        } else if [&b"KDMV"[..], b"COWD", b"# Disk DescriptorFile"]
            .iter()
            .any(|magic| head.starts_with(magic))
        {
            Self::Vmdk
        } else {
            Self::Raw
        }
    }

    /// As `qemu-img` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

/// What `qemu-img info` says about an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    full_backing_filename: Option<PathBuf>,
    backing_filename: Option<PathBuf>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    data: FormatData,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<PathBuf>,
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: PathBuf,
}

/// Other files that the content of the image at `path` is read from.
pub(crate) fn files_behind(path: &Path, format: Format) -> Result<Vec<PathBuf>> {
    let what = format!("read {}", path.display());
    let path = absolute(path)?;
    let answer = run(
        &what,
        [
            "info".as_ref(),
            "--output=json".as_ref(),
            "-f".as_ref(),
            format.name().as_ref(),
        ],
        &[path.as_os_str()],
    )?;
    let info: Info = serde_json::from_slice(&answer.stdout).map_err(|error| {
        Error::new(
            ErrorKind::File,
            &what,
            format!("qemu-img info said what is not understood: {error}"),
        )
    })?;
    Ok(info.others(&path))
}

impl Info {
    fn others(self, path: &Path) -> Vec<PathBuf> {
        let data = self.format_specific.map(|specific| specific.data);
        let (data_file, extents) =
            data.map_or((None, Vec::new()), |data| (data.data_file, data.extents));
        let backing = self.full_backing_filename.or(self.backing_filename);
        let extents = extents
            .into_iter()
            .map(|extent| extent.filename)
            .filter(|file| file != path);
        backing
            .into_iter()
            .chain(data_file)
            .chain(extents)
            .collect()
    }
}

/// What `qemu-img check` says about an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Check {
    image_end_offset: Option<u64>,
    #[serde(default)]
    corruptions: u64,
    #[serde(default)]
    check_errors: u64,
    #[serde(default)]
    allocated_clusters: u64,
    #[serde(default)]
    compressed_clusters: u64,
}

impl Check {
    /// What is wrong with an image of `file_bytes`, if anything.
    fn problem(&self, file_bytes: u64) -> Option<String> {
        let end_bytes = self.image_end_offset.unwrap_or(0);
        // The file of an image with compressed clusters may end within its last one, and that of an image without
        // any data, as it was created, within the table behind its header.
        let ends_with_cluster = self.allocated_clusters > 0 && self.compressed_clusters == 0;
        if ends_with_cluster && end_bytes > file_bytes {
            return Some(format!(
                "it is truncated: it has {file_bytes} bytes of at least {end_bytes}"
            ));
        }
        let found = self.corruptions + self.check_errors;
        (found > 0)
            .then(|| format!("it is truncated or damaged: qemu-img check finds {found} errors"))
    }
}

/// That a qcow2 image is whole. Reading one does not tell: what is missing at its end would be read as zeros.
pub(crate) fn check_whole(path: &Path) -> Result<()> {
    let what = format!("read {}", path.display());
    let file_bytes = fs::metadata(path)
        .map_err(|error| Error::file(&what, error))?
        .len();
    let arguments = ["check", "--output=json", "-f", "qcow2"].map(OsStr::new);
    let output = start(&what, arguments, &[absolute(path)?.as_os_str()])?;
    // Its exit code tells of damage too, but leaked clusters count as such.
    let Ok(check) = serde_json::from_slice::<Check>(&output.stdout) else {
        return finished(&what, output).map(drop);
    };
    match check.problem(file_bytes) {
        Some(why) => Err(Error::new(ErrorKind::File, what, why)),
        None => Ok(()),
    }
}

/// Writes the content of the image at `path` to `raw`, an empty file without a name.
pub(crate) fn to_raw(path: &Path, format: Format, raw: &File) -> Result<()> {
    let what = format!("convert {} from {}", path.display(), format.name());
    let arguments = ["convert", "-f", format.name(), "-O", "raw"].map(OsStr::new);
    run(
        &what,
        arguments,
        &[absolute(path)?.as_os_str(), &open_file(raw)],
    )?;
    Ok(())
}

/// Writes the content of `raw`, a file without a name, as an image at `path`, which exists and is replaced. Errors
/// speak of `target`, which it is to become.
pub(crate) fn from_raw(raw: &File, format: Format, path: &Path, target: &Path) -> Result<()> {
    let what = format!("write {} as {}", target.display(), format.name());
    let arguments = ["convert", "-f", "raw", "-O", format.name()].map(OsStr::new);
    run(
        &what,
        arguments,
        &[&open_file(raw), absolute(path)?.as_os_str()],
    )?;
    Ok(())
}

/// Fails if there is no `qemu-img`.
pub(crate) fn check_installed(what: &str) -> Result<()> {
    run(what, ["--version"].map(OsStr::new), &[]).map(drop)
}

/// A path that another process finds an open file by.
fn open_file(file: &File) -> OsString {
    format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()).into()
}

/// Absolute, because `qemu-img` takes what is before a colon in anything else for a protocol.
fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).map_err(|error| Error::file(format!("open {}", path.display()), error))
}

/// Runs `qemu-img` to a good end.
fn run<const N: usize>(what: &str, arguments: [&OsStr; N], files: &[&OsStr]) -> Result<Output> {
    finished(what, start(what, arguments, files)?)
}

/// Runs `qemu-img`, to whatever end.
fn start<const N: usize>(what: &str, arguments: [&OsStr; N], files: &[&OsStr]) -> Result<Output> {
    let done = Command::new("qemu-img")
        .args(arguments)
        .args(files)
        // What it says is looked at, and shown, in one language.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    done.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            let why =
                "it takes qemu-img, which is not installed; on Debian: apt install qemu-utils";
            Error::new(ErrorKind::File, what, why)
        } else {
            Error::file(format!("{what}: start qemu-img"), error)
        }
    })
}

fn finished(what: &str, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("qemu-img: ");
    let kind = if said.contains("No space left on device") {
        ErrorKind::OutOfSpace
    } else {
        ErrorKind::File
    };
    let why = if said.is_empty() {
        format!("qemu-img ended with {}", output.status)
    } else {
        said.to_owned()
    };
    Err(Error::new(kind, what, why))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn formats_are_told_by_how_a_file_begins() {
        assert_eq!(Format::of_head(b"QFI\xfb\0\0\0\x03"), Format::Qcow2);
        assert_eq!(Format::of_head(b"KDMV\x01"), Format::Vmdk);
        assert_eq!(
            Format::of_head(b"# Disk DescriptorFile\nversion=1"),
            Format::Vmdk
        );
        assert_eq!(Format::of_head(b"QFI"), Format::Raw);
        assert_eq!(Format::of_head(b""), Format::Raw);
    }

    #[test]
    fn an_image_that_is_not_whole_is_told() {
        let problem = |check: &str, file_bytes| {
            serde_json::from_str::<Check>(check)
                .unwrap()
                .problem(file_bytes)
        };
        let whole = r#"{ "image-end-offset": 131072, "allocated-clusters": 9, "check-errors": 0, "leaks": 3 }"#;
        assert_eq!(problem(whole, 131_072), None);
        assert!(
            problem(whole, 131_071)
                .unwrap()
                .contains("131071 bytes of at least 131072")
        );
        let packed = r#"{ "image-end-offset": 131072, "allocated-clusters": 2, "compressed-clusters": 1, "check-errors": 0 }"#;
        assert_eq!(problem(packed, 131_071), None);
        let created = r#"{ "image-end-offset": 262144, "total-clusters": 256, "check-errors": 0 }"#;
        assert_eq!(problem(created, 196_616), None);
        let damaged = r#"{ "image-end-offset": 65536, "corruptions": 3, "check-errors": 1 }"#;
        assert!(problem(damaged, 1 << 20).unwrap().contains("4 errors"));
    }

    #[test]
    fn files_behind_an_image_are_found() {
        let info = r#"{ "virtual-size": 1, "filename": "/a.qcow2", "format": "qcow2", "backing-filename": "base.raw",
            "full-backing-filename": "/base.raw", "format-specific": { "type": "qcow2", "data": { "compat": "1.1" } } }"#;
        let info: Info = serde_json::from_str(info).unwrap();
        assert_eq!(info.others(Path::new("/a.qcow2")), [Path::new("/base.raw")]);

        let info = r#"{ "virtual-size": 1, "filename": "/a.vmdk", "format": "vmdk", "format-specific": { "type": "vmdk",
            "data": { "cid": 1, "create-type": "monolithicFlat", "extents": [ { "filename": "/a.vmdk", "format": "X" },
            { "filename": "/etc/shadow", "format": "FLAT", "virtual-size": 1 } ] } } }"#;
        let info: Info = serde_json::from_str(info).unwrap();
        assert_eq!(
            info.others(Path::new("/a.vmdk")),
            [Path::new("/etc/shadow")]
        );
    }
}
