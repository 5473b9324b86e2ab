//! The status of the daemon.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use varve_nbd::ServerUri;
use varve_store::{GcStatus, StoreStatus};

use super::{Service, error::Result};
use crate::{
    auth::{Action, Caller},
    net::places::Places,
};

/// Facts about the daemon beside its store.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The directory of the store.
    pub(crate) data_dir: PathBuf,
    /// When the daemon began to serve.
    pub(crate) started_at: SystemTime,
    /// The addresses that serve exports.
    pub(crate) nbd_servers: Vec<ServerUri>,
    /// The connections that have an export.
    pub(crate) nbd_places: Arc<Places>,
}

/// The status of the daemon.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) store: StoreStatus,
    pub(crate) gc: GcStatus,
    pub(crate) data_dir: PathBuf,
    pub(crate) started_at: SystemTime,
    pub(crate) nbd_uris: Vec<String>,
    /// Number of open uploads.
    pub(crate) uploads: usize,
    /// Number of NBD connections that have an export.
    pub(crate) nbd_connections: usize,
}

impl Service {
    /// The status of the daemon now.
    pub(crate) async fn status(&self, caller: &Caller) -> Result<Status> {
        self.pass(caller, Action::GetStatus, &[], async {
            let facts = &self.0.parts.facts;
            Ok(Status {
                store: self.store().status().await?,
                gc: self.store().gc_status(),
                data_dir: facts.data_dir.clone(),
                started_at: facts.started_at,
                nbd_uris: facts.nbd_servers.iter().map(ServerUri::to_string).collect(),
                uploads: self.0.parts.uploads.len(),
                nbd_connections: facts.nbd_places.taken(),
            })
        })
        .await
    }
}
