//! The status of a daemon and its store.

use std::time::SystemTime;

use varve_proto::v1;

use crate::{
    connect::Client,
    convert::system_time,
    error::{Error, Result},
    gc::GcStatus,
    retry,
};

/// The status of a daemon and its store.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Id of the store, which never changes.
    pub store_id: String,
    /// Version of the format on disk.
    pub format_version: u32,
    /// Version of the rule that cuts chunks.
    pub chunker_version: u32,
    /// The daemon's data directory.
    pub data_dir: String,
    /// When the daemon started.
    pub started_at: Option<SystemTime>,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of images.
    pub images: u64,
    /// Sum of the snapshots' sizes.
    pub logical_bytes: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Plain bytes of all chunks.
    pub chunk_bytes: u64,
    /// Bytes that chunks and tree nodes take in packs.
    pub stored_bytes: u64,
    /// Number of packs.
    pub packs: u64,
    /// Uploads under way.
    pub uploads: u64,
    /// NBD connections that are open.
    pub nbd_connections: u64,
    /// The engine for reads and writes: `io_uring` or `blocking`.
    pub io_engine: String,
    /// The codec that new chunks are packed with: `zstd`, `lz4` or `none`.
    pub compression: String,
    /// Bytes free on the store's file system.
    pub free_bytes: u64,
    /// The reason why the store has stopped writing, if it has.
    pub read_only_reason: Option<String>,
    /// NBD URIs of the daemon, without an export name.
    pub nbd_uris: Vec<String>,
    /// Garbage collection; `None` if the daemon is older than garbage collection.
    pub gc: Option<GcStatus>,
    /// Bytes of dead records that the last collection has left. `None` if no collection has ended
    /// well.
    pub dead_bytes: Option<u64>,
}

impl Client {
    /// Returns the state of the daemon and its store.
    ///
    /// # Errors
    ///
    /// Only errors of the connection: [`ErrorKind::Unreachable`](crate::ErrorKind::Unreachable),
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
    pub async fn status(&self) -> Result<Status> {
        const WHAT: &str = "get the daemon's status";
        let answer = retry::idempotent(|| {
            let mut service = self.status_service();
            async move { service.get_status(v1::GetStatusRequest {}).await }
        })
        .await
        .map_err(|status| Error::rpc(WHAT, status))?
        .into_inner();
        let gc = answer.gc.map(|gc| GcStatus::from_proto(WHAT, gc));
        Ok(Status {
            started_at: answer.started_at.and_then(system_time),
            version: answer.version,
            store_id: answer.store_id,
            format_version: answer.format_version,
            chunker_version: answer.chunker_version,
            data_dir: answer.data_dir,
            snapshots: answer.snapshots,
            volumes: answer.volumes,
            images: answer.images,
            logical_bytes: answer.logical_bytes,
            chunks: answer.chunks,
            chunk_bytes: answer.chunk_bytes,
            stored_bytes: answer.stored_bytes,
            packs: answer.packs,
            uploads: answer.uploads,
            nbd_connections: answer.nbd_connections,
            io_engine: answer.io_engine,
            compression: answer.compression,
            free_bytes: answer.free_bytes,
            read_only_reason: (!answer.read_only_reason.is_empty())
                .then_some(answer.read_only_reason),
            nbd_uris: answer.nbd_uris,
            gc: gc.transpose()?,
            dead_bytes: answer.dead_bytes,
        })
    }
}
