//! `StatusService`: what the daemon is and how it is doing.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, status_service_server::StatusService};
use varve_store::{Ingest, Store};

use super::{Uploads, calls, failure::Failure};
use crate::{exports::StoreExports, nbd};

/// What there is to know about the daemon beside its store.
#[derive(Debug)]
pub struct Facts {
    /// Where the store is.
    pub data_dir: PathBuf,
    /// When the daemon began to serve.
    pub started_at: SystemTime,
    /// Where exports are served.
    pub nbd_uris: Vec<String>,
    /// Knows who is connected to them.
    pub nbd: Arc<nbd::Server<StoreExports>>,
}

/// The service.
#[derive(Debug)]
pub(super) struct StatusOf {
    pub(super) store: Store,
    pub(super) uploads: Arc<Uploads<Ingest>>,
    pub(super) facts: Arc<Facts>,
}

#[async_trait]
impl StatusService for StatusOf {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        calls::answer("GetStatus", self.status()).await
    }
}

impl StatusOf {
    async fn status(&self) -> Result<v1::GetStatusResponse, Failure> {
        let store = self.store.status().await?;
        Ok(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_id: store.store_id,
            format_version: store.format_version,
            chunker_version: store.chunker_version,
            data_dir: self.facts.data_dir.to_string_lossy().into_owned(),
            started_at: Some(self.facts.started_at.into()),
            snapshots: store.snapshots,
            volumes: store.volumes,
            logical_bytes: store.logical_bytes,
            chunks: store.chunks,
            chunk_bytes: store.chunk_bytes,
            stored_bytes: store.stored_bytes,
            packs: store.packs,
            uploads: self.uploads.len() as u64,
            nbd_connections: self.facts.nbd.connections() as u64,
            io_engine: store.io_engine.to_owned(),
            compression: store.compression.to_string(),
            free_bytes: store.free_bytes,
            read_only_reason: store.read_only_reason.unwrap_or_default(),
            nbd_uris: self.facts.nbd_uris.clone(),
        })
    }
}
