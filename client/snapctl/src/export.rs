//! `snapctl export`.

use std::{
    fs::{File, Metadata},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use varve_client::{
    Client, DownloadReport, Error, ErrorKind, Existing, FileSink, NewFile, Progress, Sink,
    StreamSink, open_stream, scratch_file, scratch_name,
};

use crate::{
    Options, archive,
    disk_format::{Format, expected_by_name},
    exit::Failure,
    meter,
    output::{self, Output, SnapshotJson},
    qemu, signals,
};

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The file gets its name only when it is complete and checked; holes stay holes. With --force it \
gets the owner and mode of \
the file that it replaces; a symbolic link stays, and its target is replaced. A block device is \
written in place, with \
holes as zeros. A pipe or a character device is written like standard output. For qcow2, the \
content goes to a temporary \
file in $TMPDIR (or /var/tmp) first, and qemu-img converts it.

\
An archive has the snapshot's chunks as they are stored. `snapctl archive verify` checks it \
without a store.")]
pub(crate) struct Export {
    /// Name or id of the snapshot
    snapshot: String,
    /// File or block device to write; - for standard output
    file: PathBuf,
    /// Format of the image [default: raw]
    #[arg(long, value_enum)]
    format: Option<FormatChoice>,
    /// Write an archive: the snapshot with its name and tags, compressed, for `import --archive`
    /// into another store
    #[arg(long, conflicts_with = "format")]
    archive: bool,
    /// Write only the difference to this snapshot, which the other store must have; needs
    /// --archive
    #[arg(long, value_name = "SNAPSHOT", requires = "archive")]
    since: Option<String>,
    /// Replace an existing file; write to a block device
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum FormatChoice {
    /// The bytes of the disk
    Raw,
    /// QEMU's format
    Qcow2,
}

/// The output of `export` for programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    snapshot: SnapshotJson<'a>,
    size_bytes: u64,
    data_bytes: u64,
    /// Bytes of chunks received from the daemon, as received.
    received_bytes: u64,
    root: String,
    seconds: f64,
    bytes_per_second: u64,
}

impl Export {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let existing = if self.force {
            Existing::Replace
        } else {
            Existing::Keep
        };
        if self.archive {
            return archive::write(&self.snapshot, self.since, &self.file, existing, options).await;
        }
        let stream = Stream::open(&self.file, existing).await?;
        let is_stdout = stream.as_ref().is_some_and(|stream| stream.is_stdout);
        if let (None, None, Some(looks)) = (self.format, &stream, expected_by_name(&self.file)) {
            let file = self.file.display();
            let advice = match looks {
                Format::Qcow2 => "for a qcow2 image, use --format qcow2",
                _ => "export writes only raw and qcow2",
            };
            options.remark(format_args!("{file} is written as a raw image; {advice}"));
        }
        let report = match (self.format.unwrap_or(FormatChoice::Raw), stream) {
            (FormatChoice::Raw, Some(stream)) => {
                let client = options.connect().await?;
                let sink = StreamSink::new(stream.to, stream.name);
                download(&client, &self.snapshot, sink, options).await?
            }
            (FormatChoice::Raw, None) => {
                let sink = FileSink::create(&self.file, existing).map_err(mention_force)?;
                let client = options.connect().await?;
                download(&client, &self.snapshot, sink, options).await?
            }
            (FormatChoice::Qcow2, Some(_)) => {
                let what = format!("export {}", self.snapshot);
                return Err(Error::new(
                    ErrorKind::Invalid,
                    what,
                    "qcow2 cannot be written to a pipe: give a file",
                )
                .into());
            }
            (FormatChoice::Qcow2, None) => {
                qemu::check_installed(&format!("export {} as qcow2", self.snapshot)).await?;
                let target = NewFile::create(&self.file, existing).map_err(mention_force)?;
                let client = options.connect().await?;
                let raw = scratch_file()?;
                let sink = FileSink::scratch(&raw, scratch_name())?;
                let report = download(&client, &self.snapshot, sink, options).await?;
                options.remark(format_args!("converting {} to qcow2", self.file.display()));
                let progress = Progress::new();
                let converting =
                    qemu::from_raw(&raw, Format::Qcow2, target.file(), &self.file, &progress);
                meter::watch("convert", options.quiet, &progress, converting).await?;
                crate::blocking(move || target.publish()).await?;
                report
            }
        };
        // Standard output has the content of the volume.
        if is_stdout {
            Ok(())
        } else {
            print(&report, &self.file, options.output)
        }
    }
}

/// A target that is written only from front to back.
pub(crate) struct Stream {
    pub(crate) to: File,
    /// Its name in errors.
    pub(crate) name: String,
    pub(crate) is_stdout: bool,
}

impl Stream {
    /// Opens `path` if it is one: `-`, a pipe, a character device, `/dev/stdout`.
    pub(crate) async fn open(path: &Path, existing: Existing) -> Result<Option<Self>, Error> {
        let failed = |error| Error::file("open standard output", error);
        if path == Path::new("-") {
            let to = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
            return Ok(Some(Self {
                to: to.into(),
                name: "standard output".to_owned(),
                is_stdout: true,
            }));
        }
        let owned = path.to_path_buf();
        // Opening a pipe waits for its reader.
        let opened = crate::blocking(move || open_stream(&owned, existing)).await;
        let Some(to) = opened.map_err(mention_force)? else {
            return Ok(None);
        };
        let same = |one: &Metadata, other: &Metadata| {
            (one.dev(), one.ino(), one.rdev()) == (other.dev(), other.ino(), other.rdev())
        };
        let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
        let stdout = stdout.and_then(|stdout| stdout.metadata());
        let is_stdout = match (stdout, to.metadata()) {
            (Ok(stdout), Ok(to)) => same(&stdout, &to),
            _ => false,
        };
        Ok(Some(Self {
            to,
            name: path.display().to_string(),
            is_stdout,
        }))
    }
}

/// Adds advice about a file that is in the way.
pub(crate) fn mention_force(error: Error) -> Error {
    if error.kind() != ErrorKind::AlreadyExists {
        return error;
    }
    let why = format!("{}; --force overwrites it", error.why());
    Error::new(error.kind(), error.what(), why)
}

async fn download(
    client: &Client,
    snapshot: &str,
    sink: impl Sink,
    options: &Options,
) -> Result<DownloadReport, Failure> {
    let control = signals::control();
    let snapshot = options.named.snapshot(client, snapshot).await?;
    let download = client.download(snapshot).control(&control).run(sink);
    Ok(meter::watch("export", options.quiet, &control.progress, download).await?)
}

fn print(report: &DownloadReport, file: &Path, output: Output) -> Result<(), Failure> {
    let snapshot = &report.snapshot;
    let seconds = report.elapsed.as_secs_f64();
    let bytes_per_second = output::per_second(report.data_bytes, report.elapsed);
    if output == Output::Json {
        return output::json(&Report {
            snapshot: snapshot.into(),
            size_bytes: snapshot.size_bytes,
            data_bytes: report.data_bytes,
            received_bytes: report.received_bytes,
            root: output::root(snapshot),
            seconds,
            bytes_per_second,
        });
    }
    let text = output::facts(&[
        ("Snapshot", format!("{} ({})", snapshot.name, snapshot.id)),
        ("File", file.display().to_string()),
        ("Size", output::size(snapshot.size_bytes)),
        ("Data", output::size(report.data_bytes)),
        ("Received", output::size(report.received_bytes)),
        ("Root", output::root(snapshot)),
        ("Time", format!("{seconds:.2} s")),
        ("Rate", output::rate(bytes_per_second)),
    ]);
    output::write(&text)
}
