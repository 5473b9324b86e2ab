//! `snapctl import`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum, builder::PossibleValue};
use serde::Serialize;
use varve_client::{Client, Error, ErrorKind, UploadReport};

use crate::{
    Options, archive,
    disk_format::Format,
    exit::Failure,
    intake::Intake,
    meter,
    output::{self, Output, SnapshotJson},
    signals,
};

/// Arguments of `import`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Raw disks and block devices are read in place. Input from a pipe, packed files (gzip, xz, zstd, \
bzip2) and images in other \
formats go through a sparse temporary file in $TMPDIR (or /var/tmp); qemu-img reads the other \
formats. Of an OVA, the disk is \
imported that its description names.

An image may refer to other files: its backing file, its extents. They are read only if --format \
gives the format of the \
image, and only below its own directory or one given by --allow-dir. Truncated images are refused; \
a truncated raw disk \
cannot be detected.

An interrupted import leaves nothing visible; the next run sends only the missing chunks.")]
pub(crate) struct Import {
    /// A disk image, block device, OVA or archive; - for standard input
    file: PathBuf,
    /// Name of the snapshot [default for an archive: its name there]
    #[arg(long, value_name = "NAME", required_unless_present = "archive")]
    name: Option<String>,
    /// Format of the image; auto refuses images that refer to other files, and raw does not unpack
    #[arg(long, value_enum, default_value_t = FormatChoice::Auto)]
    format: FormatChoice,
    /// Number of the disk in an OVA with several disks, from 1
    #[arg(long, value_name = "NUMBER", conflicts_with = "archive")]
    disk: Option<usize>,
    /// Another directory with files that the image may refer to; may be given more than once
    #[arg(long = "allow-dir", value_name = "DIR", conflicts_with = "archive")]
    allow_dirs: Vec<PathBuf>,
    /// The file is an archive, written by `export --archive`
    #[arg(long, conflicts_with = "format")]
    archive: bool,
    /// Do not send what this snapshot has at the same place; only accounts need this, because the
    /// administrator sends nothing that the store has
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "archive")]
    similar_to: Option<String>,
    /// A tag for the snapshot; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FormatChoice {
    Auto,
    Is(Format),
}

impl ValueEnum for FormatChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Auto,
            Self::Is(Format::Raw),
            Self::Is(Format::Qcow2),
            Self::Is(Format::Vmdk),
            Self::Is(Format::Vhd),
            Self::Is(Format::Vhdx),
            Self::Is(Format::Vdi),
            Self::Is(Format::Qed),
            Self::Is(Format::Parallels),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Auto => Some(PossibleValue::new("auto").help("Detected from the content")),
            Self::Is(format) => format.to_possible_value(),
        }
    }
}

/// The output of `import` for programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    snapshot: SnapshotJson<'a>,
    size_bytes: u64,
    data_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    /// Bytes of chunks sent to the daemon, as sent.
    sent_bytes: u64,
    root: String,
    seconds: f64,
    bytes_per_second: u64,
}

impl Import {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        let name = match (self.archive, self.name) {
            (true, name) => {
                let reading = archive::read(&client, &self.file, name, self.tags, options);
                return Box::pin(reading).await;
            }
            (false, name) => name.unwrap_or_default(),
        };
        let intake = Intake::open(&self.file).await?;
        if !intake.is_ready(self.format).await? {
            // Copying may take long, so check now whether the name is taken.
            check_free(&client, &name, &self.file).await?;
        }
        let source = intake
            .source(self.format, self.disk, &self.allow_dirs, options)
            .await?;
        let control = signals::control();
        let mut upload = client
            .upload(name)
            .tags(BTreeMap::from_iter(self.tags))
            .control(&control);
        if let Some(snapshot) = &self.similar_to {
            upload = upload.similar_to(options.named.snapshot(&client, snapshot).await?);
        }
        let upload = Box::pin(upload.run(source));
        let report = meter::watch("import", options.quiet, &control.progress, upload).await?;
        print(&report, options.output)
    }
}

/// Fails if a snapshot has this name.
async fn check_free(client: &Client, name: &str, file: &Path) -> Result<(), Error> {
    match client.snapshot(name).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(taken) => {
            let why = format!("snapshot {name} exists already ({})", taken.id);
            let what = format!("import {}", file.display());
            Err(Error::new(ErrorKind::AlreadyExists, what, why))
        }
    }
}

fn print(report: &UploadReport, output: Output) -> Result<(), Failure> {
    let snapshot = &report.snapshot;
    let seconds = report.elapsed.as_secs_f64();
    let bytes_per_second = output::per_second(snapshot.data_bytes, report.elapsed);
    if output == Output::Json {
        return output::json(&Report {
            snapshot: snapshot.into(),
            size_bytes: snapshot.size_bytes,
            data_bytes: snapshot.data_bytes,
            new_bytes: snapshot.new_bytes,
            stored_bytes: snapshot.stored_bytes,
            sent_bytes: report.sent_bytes,
            root: output::root(snapshot),
            seconds,
            bytes_per_second,
        });
    }
    let text = output::facts(&[
        ("Snapshot", format!("{} ({})", snapshot.name, snapshot.id)),
        ("Size", output::size(snapshot.size_bytes)),
        ("Data", output::size(snapshot.data_bytes)),
        ("New", output::size(snapshot.new_bytes)),
        ("Stored", output::size(snapshot.stored_bytes)),
        ("Root", output::root(snapshot)),
        ("Time", format!("{seconds:.2} s")),
        ("Rate", output::rate(bytes_per_second)),
    ]);
    output::write(&text)
}

/// `KEY=VALUE`; the value may be empty and hold further equals signs.
pub(crate) fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
