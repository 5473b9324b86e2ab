//! `snapctl status`.

use serde::Serialize;
use varve_client::Status;

use crate::{
    Options,
    exit::Failure,
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
        (
            "Chunks",
            format!(
                "{} of {} in all",
                status.chunks,
                output::size(status.chunk_bytes)
            ),
        ),
        (
            "Stored",
            format!(
                "{} in {} packs, {}",
                output::size(status.stored_bytes),
                status.packs,
                status.compression
            ),
        ),
        ("Free", output::size(status.free_bytes)),
        ("Disk access", status.io_engine.clone()),
        ("Uploads", status.uploads.to_string()),
        ("NBD connections", status.nbd_connections.to_string()),
    ];
    facts.extend(status.nbd_uris.iter().map(|uri| ("NBD", uri.clone())));
    if let Some(reason) = &status.read_only_reason {
        facts.push(("READ-ONLY", reason.clone()));
    }
    output::facts(&facts)
}
