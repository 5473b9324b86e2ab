//! `snapctl archive`, and archives in `snapctl export` and `snapctl import`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde::Serialize;
use varve_client::{
    ArchiveExportReport, ArchiveFacts, ArchiveImportReport, Client, Control, Error, Existing,
    NewFile, archive_head, verify_archive,
};

use crate::{
    Options,
    exit::Failure,
    export::{Stream, mention_force},
    meter,
    output::{self, Output, SnapshotJson},
    signals,
};

/// Commands on archives that need no daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Archive {
    /// Show the snapshot in an archive
    Show {
        /// The archive; - for standard input
        file: PathBuf,
    },
    /// Check that an archive is complete and undamaged
    Verify {
        /// The archive; - for standard input
        file: PathBuf,
    },
}

/// An archive as JSON.
#[derive(Debug, Serialize)]
struct ArchiveJson<'a> {
    snapshot: SnapshotJson<'a>,
    /// The base that a store must have to import it.
    base: Option<SnapshotJson<'a>>,
    /// Only of an archive that was read to its end, like the following fields.
    chunks: Option<u64>,
    payload_bytes: Option<u64>,
    archive_bytes: Option<u64>,
    seconds: Option<f64>,
}

/// The output of `import --archive` for programs.
#[derive(Debug, Serialize)]
struct RestoreJson<'a> {
    snapshot: SnapshotJson<'a>,
    archive: ArchiveJson<'a>,
    sent_chunks: u64,
    sent_bytes: u64,
    root: String,
    seconds: f64,
}

impl Archive {
    pub(crate) async fn run(self, options: &Options) -> Result<(), Failure> {
        match self {
            Self::Show { file } => {
                let facts = crate::blocking(move || {
                    let (from, name) = open(&file)?;
                    archive_head(from, &name)
                });
                let facts = facts.await?;
                print(&facts, None, None, options)
            }
            Self::Verify { file } => {
                let control = Control::new();
                let verifying = async {
                    let (from, name) = crate::blocking(move || open(&file)).await?;
                    verify_archive().control(&control).run(from, &name).await
                };
                let progress = &control.progress;
                let facts = meter::watch("verify", options.quiet, progress, verifying).await?;
                options.remark("the archive is complete, and every chunk matches its id");
                print(&facts, Some(&facts), None, options)
            }
        }
    }
}

/// A file, or standard input, and its name.
fn open(file: &Path) -> Result<(Box<dyn Read + Send>, String), Error> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin()), "standard input".to_owned()));
    }
    let name = file.display().to_string();
    let opened = File::open(file);
    let opened = opened.map_err(|error| Error::file(format!("open {name}"), error))?;
    Ok((Box::new(opened), name))
}

/// Runs `export --archive`.
pub(crate) async fn write(
    snapshot: &str,
    since: Option<String>,
    file: &Path,
    existing: Existing,
    options: &Options,
) -> Result<(), Failure> {
    let stream = Stream::open(file, existing).await?;
    let target = match stream {
        Some(_) => None,
        None => Some(NewFile::create(file, existing).map_err(mention_force)?),
    };
    let client = options.connect().await?;
    let snapshot = options.named.snapshot(&client, snapshot).await?;
    let control = signals::control();
    let mut archive = client.export_archive(snapshot).control(&control);
    if let Some(since) = since {
        archive = archive.since(options.named.snapshot(&client, &since).await?);
    }
    let name = file.display().to_string();
    let (to, name, is_stdout) = match (stream, &target) {
        (Some(stream), _) => (Some(stream.to), stream.name, stream.is_stdout),
        (None, Some(target)) => (target.file().try_clone().ok(), name, false),
        (None, None) => (None, name, false),
    };
    let to = to.ok_or_else(|| {
        let why = "its descriptor cannot be duplicated";
        Error::new(varve_client::ErrorKind::File, format!("write {name}"), why)
    })?;
    let writing = Box::pin(archive.run(to, &name));
    let report = meter::watch("export", options.quiet, &control.progress, writing).await?;
    if is_stdout {
        return Ok(());
    }
    if let Some(target) = target {
        crate::blocking(move || target.publish()).await?;
    }
    let ArchiveExportReport {
        archive, elapsed, ..
    } = report;
    print(
        &archive,
        Some(&archive),
        Some(elapsed.as_secs_f64()),
        options,
    )
}

/// Runs `import --archive`.
pub(crate) async fn read(
    client: &Client,
    file: &Path,
    name: Option<String>,
    tags: Vec<(String, String)>,
    options: &Options,
) -> Result<(), Failure> {
    let owned = file.to_path_buf();
    let (from, file) = crate::blocking(move || open(&owned)).await?;
    let control = signals::control();
    let mut archive = client
        .import_archive()
        .tags(BTreeMap::from_iter(tags))
        .control(&control);
    if let Some(name) = name {
        archive = archive.name(name);
    }
    let reading = Box::pin(archive.run(from, &file));
    let report = meter::watch("import", options.quiet, &control.progress, reading).await?;
    print_restored(&report, options)
}

fn json<'a>(
    facts: &'a ArchiveFacts,
    whole: Option<&ArchiveFacts>,
    seconds: Option<f64>,
) -> ArchiveJson<'a> {
    ArchiveJson {
        snapshot: (&facts.snapshot).into(),
        base: facts.base.as_ref().map(SnapshotJson::from),
        chunks: whole.map(|whole| whole.chunks),
        payload_bytes: whole.map(|whole| whole.payload_bytes),
        archive_bytes: whole.map(|whole| whole.archive_bytes),
        seconds,
    }
}

/// Prints the snapshot of an archive. The amount of data is known only after reading or writing the
/// archive to its end.
fn print(
    facts: &ArchiveFacts,
    whole: Option<&ArchiveFacts>,
    seconds: Option<f64>,
    options: &Options,
) -> Result<(), Failure> {
    if options.output == Output::Json {
        return output::json(&json(facts, whole, seconds));
    }
    let snapshot = &facts.snapshot;
    let mut lines = vec![("Snapshot", format!("{} ({})", snapshot.name, snapshot.id))];
    if let Some(base) = &facts.base {
        lines.push(("Since", format!("{} ({})", base.name, base.id)));
    }
    lines.extend([
        ("Size", output::size(snapshot.size_bytes)),
        ("Data", output::size(snapshot.data_bytes)),
        ("Created", output::time(snapshot.created_at)),
        ("Root", output::root(snapshot)),
    ]);
    if let Some(whole) = whole {
        lines.push((
            "Archive",
            format!(
                "{}, with {} chunks",
                output::size(whole.archive_bytes),
                whole.chunks
            ),
        ));
    }
    lines.extend(seconds.map(|seconds| ("Time", format!("{seconds:.2} s"))));
    output::write(&output::facts(&lines))
}

fn print_restored(report: &ArchiveImportReport, options: &Options) -> Result<(), Failure> {
    let snapshot = &report.snapshot;
    let seconds = report.elapsed.as_secs_f64();
    if options.output == Output::Json {
        return output::json(&RestoreJson {
            snapshot: snapshot.into(),
            archive: json(&report.archive, Some(&report.archive), None),
            sent_chunks: report.sent_chunks,
            sent_bytes: report.sent_bytes,
            root: output::root(snapshot),
            seconds,
        });
    }
    let archive = &report.archive;
    let text = output::facts(&[
        ("Snapshot", format!("{} ({})", snapshot.name, snapshot.id)),
        ("Size", output::size(snapshot.size_bytes)),
        ("Data", output::size(snapshot.data_bytes)),
        (
            "Archive",
            format!(
                "{}, with {} chunks",
                output::size(archive.archive_bytes),
                archive.chunks
            ),
        ),
        (
            "Sent",
            format!(
                "{} in {} chunks",
                output::size(report.sent_bytes),
                report.sent_chunks
            ),
        ),
        ("Root", output::root(snapshot)),
        ("Time", format!("{seconds:.2} s")),
    ]);
    output::write(&text)
}
