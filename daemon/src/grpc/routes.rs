//! The routes of all services.

use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use varve_proto::{
    DESCRIPTORS,
    v1::{
        account_service_server::AccountServiceServer, content_service_server::ContentServiceServer,
        copy_service_server::CopyServiceServer, gc_service_server::GcServiceServer,
        image_service_server::ImageServiceServer, remote_service_server::RemoteServiceServer,
        replication_service_server::ReplicationServiceServer,
        snapshot_service_server::SnapshotServiceServer, status_service_server::StatusServiceServer,
        volume_service_server::VolumeServiceServer,
    },
};

use super::{
    Health, accounts::AccountCalls, content::Content, copies::CopyCalls, gc::GcCalls,
    images::Images, remotes::RemoteCalls, replication::Replication, snapshots::Snapshots,
    status::StatusOf, volumes::Volumes,
};
use crate::{limits, service::Service};

/// The reason why gRPC cannot be served.
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
pub(crate) fn routes(service: &Service, health: &Health) -> Result<Routes, RoutesError> {
    let content = Content(service.clone());
    let snapshots = Snapshots(service.clone());
    let volumes = Volumes(service.clone());
    let replication = Replication(service.clone());
    let copies = CopyCalls(service.clone());
    let remotes = RemoteCalls(service.clone());
    let accounts = AccountCalls(service.clone());
    let images = Images(service.clone());
    let gc = GcCalls(service.clone());
    let status = StatusOf(service.clone());
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
        .add_service(ImageServiceServer::new(images).max_decoding_message_size(small))
        .add_service(ReplicationServiceServer::new(replication).max_decoding_message_size(small))
        .add_service(CopyServiceServer::new(copies).max_decoding_message_size(small))
        .add_service(RemoteServiceServer::new(remotes).max_decoding_message_size(small))
        .add_service(AccountServiceServer::new(accounts).max_decoding_message_size(small))
        .add_service(GcServiceServer::new(gc).max_decoding_message_size(limits::MESSAGE_BYTES_MAX))
        .add_service(StatusServiceServer::new(status).max_decoding_message_size(small))
        .add_service(HealthServer::new(health.service()).max_decoding_message_size(small))
        .add_service(reflection().build_v1()?.max_decoding_message_size(small))
        .add_service(
            reflection()
                .build_v1alpha()?
                .max_decoding_message_size(small),
        );
    Ok(routes.routes())
}
