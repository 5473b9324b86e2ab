//! `snapctl import`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use varve_client::{Error, ErrorKind, FileSource, Progress, UploadReport, scratch_file};

use crate::{
    Options, archive,
    exit::Failure,
    meter,
    output::{self, Output, SnapshotJson},
    qemu::{self, Format},
};

/// What `import` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Standard input is copied to a temporary file in $TMPDIR (or /var/tmp) first, zeros left out, unless it is a file. \
So are images in other formats than raw, by qemu-img.

An interrupted import leaves nothing visible; running it again sends only what is still missing.")]
pub(crate) struct Import {
    /// A disk image, block device or archive; - for standard input
    file: PathBuf,
    /// Name of the snapshot [default of an archive: as it was called]
    #[arg(long, value_name = "NAME", required_unless_present = "archive")]
    name: Option<String>,
    /// What the image is written in; with auto, images that refer to other files are refused
    #[arg(long, value_enum, default_value_t = FormatChoice::Auto)]
    format: FormatChoice,
    /// The file is an archive, written by `export --archive`
    #[arg(long, conflicts_with = "format")]
    archive: bool,
    /// A tag for the snapshot; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum FormatChoice {
    /// Told by how the file begins
    Auto,
    /// The bytes of the disk as they are
    Raw,
    /// QEMU's format
    Qcow2,
    /// VMware's format
    Vmdk,
}

impl FormatChoice {
    /// The format, from how the file begins if need be.
    fn resolve(self, file: &Path) -> Result<Format, Error> {
        match self {
            Self::Auto => Format::guess(file),
            Self::Raw => Ok(Format::Raw),
            Self::Qcow2 => Ok(Format::Qcow2),
            Self::Vmdk => Ok(Format::Vmdk),
        }
    }
}

/// What `import` prints for programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    snapshot: SnapshotJson<'a>,
    size_bytes: u64,
    data_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    /// Bytes of chunks that went to the daemon, as they went.
    sent_bytes: u64,
    root: String,
    seconds: f64,
    bytes_per_second: u64,
}

impl Import {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        let client = options.connect().await?;
        let Self {
            file,
            name,
            format,
            archive,
            tags,
        } = self;
        let name = match (archive, name) {
            (true, name) => {
                return Box::pin(archive::read(&client, &file, name, tags, options)).await;
            }
            (false, name) => name.unwrap_or_default(),
        };
        let source = if self_contained(&file, format)? {
            FileSource::open(&file)?
        } else {
            // Copying may take long: rather find out now that the name is taken.
            match client.snapshot(&name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
                Ok(taken) => {
                    let why = format!("snapshot {name} exists already ({})", taken.id);
                    return Err(Error::new(
                        ErrorKind::AlreadyExists,
                        format!("import {}", file.display()),
                        why,
                    )
                    .into());
                }
            }
            prepare(&file, format, options)?
        };
        let progress = Arc::new(Progress::default());
        let upload = client
            .upload(name)
            .tags(BTreeMap::from_iter(tags))
            .progress(Arc::clone(&progress))
            .cancel_on(crate::interrupted())
            .run(source);
        let report = meter::watch("import", options.quiet, progress, upload).await?;
        print(&report, options.output)
    }
}

/// Whether the file can be read as it is.
fn self_contained(file: &Path, choice: FormatChoice) -> Result<bool, Failure> {
    Ok(file != Path::new("-") && choice.resolve(file)? == Format::Raw)
}

/// Copies standard input, and converts other formats than raw.
fn prepare(file: &Path, choice: FormatChoice, options: &Options) -> Result<FileSource, Failure> {
    if file != Path::new("-") {
        return Ok(convert(file, choice, &file.display().to_string(), options)?);
    }
    const STDIN: &str = "standard input";
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let mut stdin = stdin.map_err(|error| Error::file("open standard input", error))?;
    let is_file = stdin.metadata().is_ok_and(|metadata| metadata.is_file());
    let copy = if is_file && stdin.stream_position().is_ok_and(|position| position == 0) {
        stdin
    } else {
        options.remark(format_args!(
            "copying standard input to {}",
            varve_client::spool_dir().display()
        ));
        FileSource::spool(&mut stdin, STDIN)?.into_file()
    };
    let path = qemu::open_file(&copy);
    if choice.resolve(&path)? == Format::Raw {
        return Ok(FileSource::from_file(copy, STDIN)?);
    }
    Ok(convert(&path, choice, STDIN, options)?)
}

/// Converts the image at `path`, called `name` in messages, to a raw file.
fn convert(
    path: &Path,
    choice: FormatChoice,
    name: &str,
    options: &Options,
) -> Result<FileSource, Error> {
    let format = choice.resolve(path)?;
    let behind = qemu::files_behind(path, format, name)?;
    if let Some(first) = behind.first()
        && choice == FormatChoice::Auto
    {
        let why = format!(
            "it looks like a {format} image whose content is in {}; if that is to be read, say --format {format}, \
             and --format raw if the image is a raw disk",
            first.display(),
        );
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("import {name}"),
            why,
        ));
    }
    for file in behind {
        options.remark(format_args!(
            "{name} is read together with {}",
            file.display()
        ));
    }
    if format == Format::Qcow2 {
        qemu::check_whole(path, name)?;
    }
    options.remark(format_args!("converting {name} from {format}"));
    let raw = scratch_file()?;
    qemu::to_raw(path, format, name, &raw)?;
    FileSource::from_file(raw, name)
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
    output::write(text.as_bytes())
}

/// `KEY=VALUE`; the value may be empty and hold further equals signs.
pub(crate) fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}
