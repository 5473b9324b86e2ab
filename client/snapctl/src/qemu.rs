//! Disk images in other formats than raw, by `qemu-img`.
//!
//! It gets its input files as descriptors, and never follows a name in an image. It runs in a
//! process group of its own, so that signals of the terminal reach only this program, which ends
//! it.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    process::{self, ExitStatus, Stdio},
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};
use varve_client::{Error, ErrorKind, Progress, Result, scratch_file, scratch_name};

use crate::disk_format::{Format, Image, Layer, Probe};

/// Bytes kept of its standard error.
const SAID_BYTES_MAX: usize = 64 << 10;
/// The longest line that it prints for programs.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The longest answer that is not read line by line.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The output of `qemu-img check` for an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Check {
    #[serde(default)]
    corruptions: u64,
    #[serde(default)]
    check_errors: u64,
}

/// The output of `qemu-img map` for one extent of an image.
#[derive(Debug, Deserialize)]
struct Mapped {
    length: u64,
    data: bool,
    /// In the file.
    offset: Option<u64>,
}

/// Checks that an image and all files behind it are whole. Reading does not show that: missing
/// bytes at the end of a file would read as zeros.
pub(crate) async fn check_whole(image: &Image) -> Result<()> {
    for layer in &image.layers {
        for probe in layer.probes()? {
            check_ends(&probe, layer.format).await?;
        }
        check_metadata(layer).await?;
    }
    Ok(())
}

/// The check that the format offers.
async fn check_metadata(layer: &Layer) -> Result<()> {
    // A raw disk has nothing to check, and QEMU cannot check a VHD.
    if matches!(layer.format, Format::Raw | Format::Vhd) {
        return Ok(());
    }
    let what = format!("read {}", layer.part.name());
    let arguments = ["check".into(), "--output=json".into(), shown(layer.alone())];
    let mut running = Running::start(&what, arguments)?;
    let answer = running.answer().await?;
    let Ok(check) = serde_json::from_slice::<Check>(&answer) else {
        return Err(running.failed().await);
    };
    let status = running.end().await?;
    let found = check.corruptions + check.check_errors;
    if found > 0 {
        let why = format!("it is truncated or damaged: qemu-img check finds {found} errors");
        return Err(Error::new(ErrorKind::File, what, why));
    }
    // Leaked clusters have an exit code, too, but do no harm.
    if !status.success() && status.code() != Some(3) {
        return Err(running.failed().await);
    }
    Ok(())
}

/// Checks that all content ends within its file.
async fn check_ends(probe: &Probe, format: Format) -> Result<()> {
    let what = format!("read {}", probe.name);
    let arguments = [
        "map".into(),
        "--output=json".into(),
        shown(probe.node.clone()),
    ];
    let mut running = Running::start(&what, arguments)?;
    while let Some(line) = running.line().await? {
        let line = line.trim_matches(['[', ']', ',', '\n', ' ']);
        if line.is_empty() {
            continue;
        }
        let mapped: Mapped = serde_json::from_str(line).map_err(|error| {
            let why = format!("cannot parse the output of qemu-img map: {error}");
            Error::new(ErrorKind::File, &what, why)
        })?;
        // The zero clusters that qcow2 allocates are not read.
        let Some(offset) = mapped
            .offset
            .filter(|_| mapped.data || format != Format::Qcow2)
        else {
            continue;
        };
        let end = offset.saturating_add(mapped.length);
        if end > probe.len {
            let why = format!(
                "it is truncated: it has content up to {end}, and the file ends at {}",
                probe.len
            );
            return Err(Error::new(ErrorKind::File, what, why));
        }
    }
    running.finish().await
}

/// Writes the content of an image, called `name`, to `raw`, an empty file without a name.
pub(crate) async fn to_raw(
    image: &Image,
    name: &str,
    raw: &File,
    progress: &Progress,
) -> Result<()> {
    let format = image.top().map_or(Format::Raw, |layer| layer.format);
    let what = format!("convert {name} from {format} to {}", scratch_name());
    let arguments = [
        "convert".into(),
        "-p".into(),
        "-O".into(),
        "raw".into(),
        shown(image.node()),
        open_file(raw).into(),
    ];
    let mut running = Running::start(&what, arguments)?;
    running
        .progress(|hundredths| {
            // The file has its final length before its first bytes are written.
            let total = raw.metadata().map_or(0, |metadata| metadata.len());
            progress.set_total(total);
            progress.set_done(part_of(total, hundredths));
        })
        .await?;
    running.finish().await
}

/// Writes the content of `raw`, a file without a name, as an image into the open file `to`. Errors
/// name `target`, the path that it will have.
pub(crate) async fn from_raw(
    raw: &File,
    format: Format,
    to: &File,
    target: &Path,
    progress: &Progress,
) -> Result<()> {
    let what = format!("write {} as {format}", target.display());
    let arguments = [
        "convert".into(),
        "-p".into(),
        "-f".into(),
        "raw".into(),
        "-O".into(),
        format.driver().into(),
        open_file(raw).into(),
        open_file(to).into(),
    ];
    let total = raw.metadata().map_or(0, |metadata| metadata.len());
    progress.set_total(total);
    let mut running = Running::start(&what, arguments)?;
    running
        .progress(|hundredths| progress.set_done(part_of(total, hundredths)))
        .await?;
    running.finish().await
}

/// Fails if there is no `qemu-img`.
pub(crate) async fn check_installed(what: &str) -> Result<()> {
    let mut running = Running::start(what, ["--version".into()])?;
    running.answer().await?;
    running.finish().await
}

/// A path by which another process finds an open file, even if the file has no name.
fn open_file(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()).into()
}

/// An input in the syntax of `qemu-img`.
fn shown(node: Value) -> OsString {
    format!("json:{node}").into()
}

fn part_of(total: u64, hundredths: u64) -> u64 {
    let part = u128::from(total) * u128::from(hundredths) / 10_000;
    u64::try_from(part).unwrap_or(total)
}

/// `qemu-img` at work. Killed if it is dropped.
struct Running {
    what: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Its standard error: a file takes any amount while nobody reads.
    stderr: File,
}

impl Running {
    fn start(what: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let failed = |error| Error::file(format!("{what}: start qemu-img"), error);
        let stderr = scratch_file()?;
        let child = Command::new("qemu-img")
            .args(arguments)
            // Its messages are parsed and shown in one language.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone().map_err(failed)?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                let why = "this needs qemu-img, which is not installed; on Debian: apt install \
                     qemu-utils";
                return Error::new(ErrorKind::File, what, why);
            }
            failed(error)
        })?;
        let stdout = child.stdout.take();
        let stdout = stdout.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            what: what.to_owned(),
            child,
            stdout: BufReader::new(stdout),
            stderr,
        })
    }

    fn unreadable(&self, error: io::Error) -> Error {
        Error::file(format!("{}: listen to qemu-img", self.what), error)
    }

    /// The next line of its output; `None` after the last.
    async fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stdout).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(String::from_utf8_lossy(&line).into_owned())),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// All of its output.
    async fn answer(&mut self) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        let mut limited = (&mut self.stdout).take(ANSWER_BYTES_MAX);
        let read = limited.read_to_end(&mut answer).await;
        read.map_err(|error| self.unreadable(error))?;
        Ok(answer)
    }

    /// Reports progress, in hundredths of a percent, until its output ends.
    async fn progress(&mut self, mut tell: impl FnMut(u64)) -> Result<()> {
        let mut rest = Vec::new();
        loop {
            let mut piece = [0; 1024];
            let read = self.stdout.read(&mut piece).await;
            let read = read.map_err(|error| self.unreadable(error))?;
            if read == 0 {
                return Ok(());
            }
            rest.extend_from_slice(&piece[..read]);
            let end = rest.iter().rposition(|byte| matches!(byte, b'\r' | b'\n'));
            let Some(end) = end else {
                // No line of its output is this long.
                if rest.len() > piece.len() {
                    rest.clear();
                }
                continue;
            };
            let told = rest[..end].rsplit(|byte| matches!(byte, b'\r' | b'\n'));
            if let Some(hundredths) = told.filter_map(hundredths).next() {
                tell(hundredths);
            }
            rest.drain(..=end);
        }
    }

    /// Waits for its end, successful or not.
    async fn end(&mut self) -> Result<ExitStatus> {
        let ended = self.child.wait().await;
        ended.map_err(|error| Error::file(format!("{}: wait for qemu-img", self.what), error))
    }

    /// Waits for its end. Fails if it failed.
    async fn finish(mut self) -> Result<()> {
        if self.end().await?.success() {
            return Ok(());
        }
        Err(self.failed().await)
    }

    /// The reason why it failed.
    async fn failed(mut self) -> Error {
        let status = match self.end().await {
            Ok(status) => status,
            Err(error) => return error,
        };
        let mut said = vec![0; SAID_BYTES_MAX];
        let read = self.stderr.read_at(&mut said, 0).unwrap_or_default();
        let said = String::from_utf8_lossy(&said[..read]);
        let said = said.trim().trim_start_matches("qemu-img: ");
        let kind = if said.contains("No space left on device") {
            ErrorKind::OutOfSpace
        } else {
            ErrorKind::File
        };
        let why = if said.is_empty() {
            format!("qemu-img ended with {status}")
        } else {
            plain(said, &self.what)
        };
        Error::new(kind, self.what, why)
    }
}

/// Its message, without the descriptions of its inputs, which are long and have no names in them.
fn plain(said: &str, what: &str) -> String {
    let mut lines = said.lines().map(|line| match line.find("json:{") {
        Some(at) => {
            let end = line.rfind('}').map_or(line.len(), |end| end + 1);
            let front = line[..at].trim_end_matches(['\'', '"']);
            let back = line.get(end..).unwrap_or_default();
            format!("{front}the image{}", back.trim_start_matches(['\'', '"']))
        }
        None => line.to_owned(),
    });
    let first = lines.next();
    first.map_or_else(
        || what.to_owned(),
        |first| lines.fold(first, |all, line| all + "; " + &line),
    )
}

/// Parses a line of `-p`: ` (12.34/100%)`.
fn hundredths(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?.trim();
    let percent = line.strip_prefix('(')?.strip_suffix("/100%)")?;
    let (whole, part) = percent.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        assert_eq!(hundredths(b"    (12.34/100%)"), Some(1234));
        assert_eq!(hundredths(b"    (100.00/100%)"), Some(10_000));
        assert_eq!(hundredths(b"Formatting"), None);
        assert_eq!(part_of(u64::MAX, 10_000), u64::MAX);
        assert_eq!(part_of(3 << 40, 5_000), 3 << 39);
    }

    #[test]
    fn what_it_said_is_shown_without_what_it_was_told() {
        let said =
            "Could not open 'json:{\"driver\":\"vhdx\",\"file\":{}}': log needs to be replayed";
        assert_eq!(
            plain(said, "read x"),
            "Could not open the image: log needs to be replayed"
        );
        assert_eq!(plain("one\ntwo", "read x"), "one; two");
    }
}
