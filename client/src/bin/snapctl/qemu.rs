//! Disk images in other formats than raw, by `qemu-img`.
//!
//! A disk's content may itself look like an image in another format, and its guest may have made it so: a raw disk
//! that begins like a qcow2 image names a "backing file" of the guest's choosing. So a format that was only guessed
//! is never followed to other files.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::FileTypeExt},
    path::{self, Path, PathBuf},
    process::{self, Command, Output, Stdio},
};

use serde::Deserialize;
use varve_client::{Error, ErrorKind, Result};

/// What an image is written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
        if varve_client::is_archive(&head) {
            let why = "it looks like an archive: say --archive if it is to be read as one, and --format raw if it is a raw disk";
            let what = format!("import {}", path.display());
            return Err(Error::new(ErrorKind::Invalid, what, why));
        }
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
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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

/// Other files that the content of the image at `path`, called `name` in errors, is read from.
pub(crate) fn files_behind(path: &Path, format: Format, name: &str) -> Result<Vec<PathBuf>> {
    let what = format!("read {name}");
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
    #[serde(default)]
    corruptions: u64,
    #[serde(default)]
    check_errors: u64,
}

/// That a qcow2 image is whole. Reading one does not tell: what is missing at its end would be read as zeros.
///
/// Less than a cluster cannot be told: the file of a good image may end within its last one.
pub(crate) fn check_whole(path: &Path, name: &str) -> Result<()> {
    let what = format!("read {name}");
    let arguments = ["check", "--output=json", "-f", "qcow2"].map(OsStr::new);
    let output = start(&what, arguments, &[absolute(path)?.as_os_str()])?;
    // Its exit code tells of damage too, but leaked clusters count as such.
    let Ok(check) = serde_json::from_slice::<Check>(&output.stdout) else {
        return finished(&what, output).map(drop);
    };
    let found = check.corruptions + check.check_errors;
    if found > 0 {
        let why = format!("it is truncated or damaged: qemu-img check finds {found} errors");
        return Err(Error::new(ErrorKind::File, what, why));
    }
    Ok(())
}

/// Writes the content of the image at `path` to `raw`, an empty file without a name.
pub(crate) fn to_raw(path: &Path, format: Format, name: &str, raw: &File) -> Result<()> {
    let what = format!("convert {name} from {format}");
    let arguments = ["convert", "-f", format.name(), "-O", "raw"].map(OsStr::new);
    run(
        &what,
        arguments,
        &[absolute(path)?.as_os_str(), open_file(raw).as_os_str()],
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
        &[open_file(raw).as_os_str(), absolute(path)?.as_os_str()],
    )?;
    Ok(())
}

/// Fails if there is no `qemu-img`.
pub(crate) fn check_installed(what: &str) -> Result<()> {
    run(what, ["--version"].map(OsStr::new), &[]).map(drop)
}

/// A path that another process finds an open file by, also one that has no name.
pub(crate) fn open_file(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()).into()
}

/// Absolute, because `qemu-img` takes what is before a colon in anything else for a protocol. Links are not
/// followed: that of an open file may lead to no name.
fn absolute(path: &Path) -> Result<PathBuf> {
    path::absolute(path).map_err(|error| Error::file(format!("open {}", path.display()), error))
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
