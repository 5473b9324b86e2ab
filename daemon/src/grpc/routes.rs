//! The services put together.

use std::sync::Arc;

use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use varve_proto::{
    DESCRIPTORS,
    v1::{
        content_service_server::ContentServiceServer, copy_service_server::CopyServiceServer,
        remote_service_server::RemoteServiceServer,
        replication_service_server::ReplicationServiceServer,
        snapshot_service_server::SnapshotServiceServer, status_service_server::StatusServiceServer,
        volume_service_server::VolumeServiceServer,
    },
};
use varve_store::{Ingest, Store};

use super::{
    Facts, Health, Uploads, content::Content, copies::CopyCalls, remotes::RemoteCalls,
    replication::Replication, snapshots::Snapshots, status::StatusOf, volumes::Volumes,
};
use crate::{copies::Copies, exports::Attachments, limits, tasks::Tasks};

/// What the services work with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The store.
    pub store: Store,
    /// Where calls run.
    pub tasks: Tasks,
    /// Open uploads.
    pub uploads: Arc<Uploads<Ingest>>,
    /// What there is to know about the daemon.
    pub facts: Arc<Facts>,
    /// Volumes that are used over NBD.
    pub attachments: Arc<Attachments>,
    /// Copies from other stores.
    pub copies: Copies,
    /// What the health service says.
    pub health: Health,
}

/// Why gRPC cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// The descriptors that reflection serves are broken: a defect of the build.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Every service.
///
/// # Errors
///
/// Only a defect of the build.
pub fn routes(context: &Context) -> Result<Routes, RoutesError> {
    let content = Content::new(
        context.store.clone(),
        context.tasks.clone(),
        Arc::clone(&context.uploads),
    );
    let snapshots = Snapshots::new(context.store.clone(), context.tasks.clone());
    let volumes = Volumes {
        store: context.store.clone(),
        tasks: context.tasks.clone(),
        facts: Arc::clone(&context.facts),
        attachments: Arc::clone(&context.attachments),
    };
    let replication = Replication::new(context.store.clone(), context.tasks.clone());
    let copies = CopyCalls {
        copies: context.copies.clone(),
        tasks: context.tasks.clone(),
    };
    let remotes = RemoteCalls {
        copies: context.copies.clone(),
    };
    let status = StatusOf {
        store: context.store.clone(),
        uploads: Arc::clone(&context.uploads),
        facts: Arc::clone(&context.facts),
    };
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let small = limits::SMALL_MESSAGE_BYTES_MAX;
    let mut routes = Routes::builder();
    routes
        .add_service(
            ContentServiceServer::new(content).max_decoding_message_size(limits::MESSAGE_BYTES_MAX),
        )
        .add_service(SnapshotServiceServer::new(snapshots).max_decoding_message_size(small))
        .add_service(VolumeServiceServer::new(volumes).max_decoding_message_size(small))
        .add_service(ReplicationServiceServer::new(replication).max_decoding_message_size(small))
        .add_service(CopyServiceServer::new(copies).max_decoding_message_size(small))
        .add_service(RemoteServiceServer::new(remotes).max_decoding_message_size(small))
        .add_service(StatusServiceServer::new(status).max_decoding_message_size(small))
        .add_service(HealthServer::new(context.health.service()).max_decoding_message_size(small))
        .add_service(reflection().build_v1()?.max_decoding_message_size(small))
        .add_service(
            reflection()
                .build_v1alpha()?
                .max_decoding_message_size(small),
        );
    Ok(routes.routes())
}
