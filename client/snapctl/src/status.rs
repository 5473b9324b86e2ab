//! `snapctl status`.

use serde::Serialize;
use varve_client::Status;

use crate::{
    Options,
    exit::Failure,
    gc,
    output::{self, Output},
};

/// The output of `status` for programs: the fields of the protocol.
#[derive(Debug, Serialize)]
struct StatusJson<'a> {
    version: &'a str,
    store_id: &'a str,
    format_version: u32,
    chunker_version: u32,
    data_dir: &'a str,
    started_at: Option<String>,
    snapshots: u64,
    volumes: u64,
    images: u64,
    logical_bytes: u64,
    chunks: u64,
    chunk_bytes: u64,
    stored_bytes: u64,
    packs: u64,
    uploads: u64,
    nbd_connections: u64,
    io_engine: &'a str,
    compression: &'a str,
    free_bytes: u64,
    read_only_reason: Option<&'a str>,
    nbd_uris: &'a [String],
    /// `null` until a collection has ended well.
    dead_bytes: Option<u64>,
    /// Logical to unique bytes; `null` for an empty store.
    dedupe_ratio: Option<f64>,
    /// Unique to stored bytes; `null` for an empty store.
    compression_ratio: Option<f64>,
    /// `null` if the daemon is older than garbage collection.
    gc: Option<gc::StatusJson<'a>>,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let client = options.connect().await?;
    let status = client.status().await?;
    match options.output {
        Output::Json => output::json(&StatusJson::from(&status)),
        Output::Table | Output::Wide => {
            output::write(&text(&status, &client.endpoint().to_string()))
        }
    }
}

impl<'a> From<&'a Status> for StatusJson<'a> {
    fn from(status: &'a Status) -> Self {
        Self {
            version: &status.version,
            store_id: &status.store_id,
            format_version: status.format_version,
            chunker_version: status.chunker_version,
            data_dir: &status.data_dir,
            started_at: status.started_at.and_then(output::rfc3339),
            snapshots: status.snapshots,
            volumes: status.volumes,
            images: status.images,
            logical_bytes: status.logical_bytes,
            chunks: status.chunks,
            chunk_bytes: status.chunk_bytes,
            stored_bytes: status.stored_bytes,
            packs: status.packs,
            uploads: status.uploads,
            nbd_connections: status.nbd_connections,
            io_engine: &status.io_engine,
            compression: &status.compression,
            free_bytes: status.free_bytes,
            read_only_reason: status.read_only_reason.as_deref(),
            nbd_uris: &status.nbd_uris,
            dead_bytes: status.dead_bytes,
            dedupe_ratio: ratio(status.logical_bytes, status.chunk_bytes),
            compression_ratio: ratio(status.chunk_bytes, status.stored_bytes),
            gc: status.gc.as_ref().map(gc::StatusJson::from),
        }
    }
}

fn text(status: &Status, endpoint: &str) -> String {
    let mut facts = vec![
        ("Endpoint", endpoint.to_owned()),
        ("Version", status.version.clone()),
        (
            "Running since",
            status
                .started_at
                .map_or_else(|| "?".to_owned(), output::time),
        ),
        ("Data directory", status.data_dir.clone()),
        (
            "Store",
            format!("{}, format {}", status.store_id, status.format_version),
        ),
        (
            "Snapshots",
            format!(
                "{} of {} in all",
                status.snapshots,
                output::size(status.logical_bytes)
            ),
        ),
        ("Volumes", status.volumes.to_string()),
        ("Images", status.images.to_string()),
        (
            "Unique",
            format!(
                "{} in {} chunks{}",
                output::size(status.chunk_bytes),
                status.chunks,
                times("deduplicated", status.logical_bytes, status.chunk_bytes)
            ),
        ),
        (
            "Stored",
            format!(
                "{} in {} packs, {}{}",
                output::size(status.stored_bytes),
                status.packs,
                status.compression,
                times("compressed", status.chunk_bytes, status.stored_bytes)
            ),
        ),
        (
            "Dead",
            status.dead_bytes.map_or_else(
                || "unknown until the first collection".to_owned(),
                |bytes| format!("{} after the last collection", output::size(bytes)),
            ),
        ),
        ("Free", output::size(status.free_bytes)),
        ("Disk access", status.io_engine.clone()),
        ("Uploads", status.uploads.to_string()),
        ("NBD connections", status.nbd_connections.to_string()),
    ];
    let collections = status.gc.iter();
    facts.extend(collections.map(|gc| ("Collection", gc::line(gc))));
    facts.extend(status.nbd_uris.iter().map(|uri| ("NBD", uri.clone())));
    if let Some(reason) = &status.read_only_reason {
        facts.push(("READ-ONLY", reason.clone()));
    }
    output::facts(&facts)
}

/// The first number divided by the second; `None` for none.
fn ratio(whole: u64, part: u64) -> Option<f64> {
    (part > 0).then(|| whole as f64 / part as f64)
}

/// A ratio for people, after its name.
fn times(what: &str, whole: u64, part: u64) -> String {
    ratio(whole, part).map_or_else(String::new, |ratio| format!(", {what} {ratio:.1} times"))
}
