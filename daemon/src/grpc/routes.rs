//! The services put together, and how their connections are tuned.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tonic::{
    service::Routes,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};
use tonic_health::pb::health_server::HealthServer;
use varve_client::Tls;
use varve_proto::{
    DESCRIPTORS,
    v1::{
        content_service_server::ContentServiceServer, copy_service_server::CopyServiceServer,
        replication_service_server::ReplicationServiceServer,
        snapshot_service_server::SnapshotServiceServer, status_service_server::StatusServiceServer,
        volume_service_server::VolumeServiceServer,
    },
};
use varve_store::{Ingest, Store};

use super::{
    Facts, Health, Uploads, content::Content, copies::CopyCalls, replication::Replication,
    snapshots::Snapshots, status::StatusOf, volumes::Volumes,
};
use crate::{
    config::{CopiesConfig, TlsConfig},
    copies::Copies,
    exports::Attachments,
    limits,
    tasks::Tasks,
};

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
    /// A file of the TLS identity cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    ReadTls {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files are no identity.
    #[error("cannot serve TLS with {} and {}: {why}", files.cert.display(), files.key.display())]
    Tls {
        /// The files.
        files: TlsConfig,
        /// Why.
        why: String,
    },
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
    let snapshots = Snapshots {
        store: context.store.clone(),
        tasks: context.tasks.clone(),
    };
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

/// How other daemons are asked.
///
/// # Errors
///
/// Files that cannot be read.
pub fn client_tls(config: &CopiesConfig) -> Result<Tls, RoutesError> {
    let mut tls = Tls::default();
    if let Some(authorities) = &config.ca {
        tls = tls.trusting(read_tls(authorities)?);
    }
    if let Some((cert, key)) = &config.identity {
        tls = tls.showing(read_tls(cert)?, read_tls(key)?);
    }
    Ok(tls)
}

fn read_tls(path: &Path) -> Result<Vec<u8>, RoutesError> {
    std::fs::read(path).map_err(|source| RoutesError::ReadTls {
        path: path.to_owned(),
        source,
    })
}

/// A server for one listener.
///
/// # Errors
///
/// TLS files that cannot be read or used.
pub fn builder(tls: Option<&TlsConfig>) -> Result<Server, RoutesError> {
    let server = Server::builder()
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits::CONNECTION_STREAMS_MAX)
        .max_frame_size(limits::FRAME_BYTES)
        .http2_max_header_list_size(limits::HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT));
    let Some(files) = tls else {
        return Ok(server);
    };
    let identity = Identity::from_pem(read_tls(&files.cert)?, read_tls(&files.key)?);
    let mut tls = ServerTlsConfig::new()
        .identity(identity)
        .timeout(limits::TLS_HANDSHAKE_TIMEOUT);
    if let Some(authorities) = &files.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read_tls(authorities)?));
    }
    server.tls_config(tls).map_err(|error| RoutesError::Tls {
        files: files.clone(),
        why: innermost(&error),
    })
}

/// The cause that says what is wrong; those around it only say where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
