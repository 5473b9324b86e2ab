//! The standard health service: it reports whether snapshots and content can be written and read.
//!
//! The whole daemon (the empty name) and the services that write are NOT_SERVING when the store has
//! stopped writing, and all services are when the daemon stops.

use tonic::server::NamedService;
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, HealthService},
};
use tracing::{error, warn};
use varve_proto::v1::{
    content_service_server::ContentServiceServer, snapshot_service_server::SnapshotServiceServer,
    status_service_server::StatusServiceServer, volume_service_server::VolumeServiceServer,
};
use varve_store::Store;

use super::{content::Content, snapshots::Snapshots, status::StatusOf, volumes::Volumes};
use crate::limits;

/// The daemon as a whole, as the health protocol calls it.
const WHOLE: &str = "";
const CONTENT: &str = <ContentServiceServer<Content> as NamedService>::NAME;
const SNAPSHOTS: &str = <SnapshotServiceServer<Snapshots> as NamedService>::NAME;
const VOLUMES: &str = <VolumeServiceServer<Volumes> as NamedService>::NAME;
const STATUS: &str = <StatusServiceServer<StatusOf> as NamedService>::NAME;

/// The answers of the health service.
#[derive(Debug, Clone, Default)]
pub struct Health(HealthReporter);

impl Health {
    /// Reports that all services run.
    pub async fn serving(&self) {
        self.say(
            &[WHOLE, SNAPSHOTS, VOLUMES, CONTENT, STATUS],
            ServingStatus::Serving,
        )
        .await;
    }

    /// Reports that the daemon stops.
    pub async fn stopping(&self) {
        self.say(
            &[WHOLE, SNAPSHOTS, VOLUMES, CONTENT, STATUS],
            ServingStatus::NotServing,
        )
        .await;
    }

    /// Watches the store until it stops writing. It does not start again before a restart.
    pub async fn watch(&self, store: Store) {
        loop {
            tokio::time::sleep(limits::HEALTH_INTERVAL).await;
            match store.status().await.map(|status| status.read_only_reason) {
                Ok(None) => {}
                Ok(Some(reason)) => {
                    error!(reason, "the store has stopped writing");
                    self.say(
                        &[WHOLE, SNAPSHOTS, VOLUMES, CONTENT],
                        ServingStatus::NotServing,
                    )
                    .await;
                    return;
                }
                Err(varve_store::Error::Closing) => return,
                Err(error) => warn!(%error, "cannot read the state of the store"),
            }
        }
    }

    pub(super) fn service(&self) -> HealthService {
        HealthService::from_health_reporter(self.0.clone())
    }

    async fn say(&self, services: &[&str], status: ServingStatus) {
        for service in services {
            self.0.set_service_status(service, status).await;
        }
    }
}
