//! The standard behaviour of gRPC servers: health, reflection, status, a clean stop.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1 as reflection, v1alpha as reflection_alpha};

use super::*;
use crate::server::StartError;

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_for_the_daemon_and_each_service() {
    let daemon = Daemon::start().await;
    let mut health = HealthClient::new(daemon.channel.clone());
    let mut check = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        health
            .check(request)
            .await
            .map(|answer| answer.into_inner().status)
    };
    for service in [
        "",
        "varve.v1.SnapshotService",
        "varve.v1.VolumeService",
        "varve.v1.ContentService",
        "varve.v1.StatusService",
    ] {
        assert_eq!(
            check(service).await.unwrap(),
            i32::from(ServingStatus::Serving),
            "{service:?}"
        );
    }
    assert_eq!(
        check("varve.v1.NoService").await.unwrap_err().code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_hears_of_the_stop() {
    let daemon = Daemon::start().await;
    let mut health = HealthClient::new(daemon.channel.clone());
    let mut watch = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    let hear = async {
        assert_eq!(
            watch.message().await.unwrap().unwrap().status(),
            ServingStatus::NotServing
        );
        drop(watch);
        drop(health);
    };
    tokio::join!(hear, daemon.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_describes_the_services() {
    use reflection::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let daemon = Daemon::start().await;
    let request = |message_request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message_request),
    };
    let requests = [
        request(MessageRequest::ListServices(String::new())),
        request(MessageRequest::FileContainingSymbol(
            "varve.v1.ContentService.PutChunks".to_owned(),
        )),
        request(MessageRequest::FileByFilename(
            "google/protobuf/timestamp.proto".to_owned(),
        )),
    ];
    let mut answers = ServerReflectionClient::new(daemon.channel.clone())
        .server_reflection_info(futures::stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let services: Vec<_> = list
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for service in [
        "varve.v1.SnapshotService",
        "varve.v1.VolumeService",
        "varve.v1.ContentService",
        "grpc.health.v1.Health",
    ] {
        assert!(services.contains(&service), "{services:?}");
    }
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap().message_response;
        assert!(
            matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))),
            "{answer:?}"
        );
    }
    drop(answers);

    let older = reflection_alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            reflection_alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = reflection_alpha::server_reflection_client::ServerReflectionClient::new(
        daemon.channel.clone(),
    )
    .server_reflection_info(futures::stream::iter([older]))
    .await
    .unwrap()
    .into_inner();
    assert!(answers.message().await.unwrap().is_some());
    drop(answers);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_what_the_daemon_holds() {
    let daemon = Daemon::start().await;
    let volume = sparse_volume(1);
    let snapshot = daemon.upload("web", &volume).await;
    let status = daemon
        .status()
        .get_status(v1::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.store_id.len(), 32, "{}", status.store_id);
    assert_eq!(status.chunker_version, CHUNKER_VERSION);
    assert_eq!(status.data_dir, daemon.dir.path().to_str().unwrap());
    assert_eq!(
        (status.snapshots, status.logical_bytes),
        (1, volume.len() as u64)
    );
    assert_eq!(status.chunk_bytes, snapshot.data_bytes);
    assert!(
        status.stored_bytes > 0 && status.packs > 0 && status.chunks > 0 && status.free_bytes > 0
    );
    assert_eq!((status.uploads, status.nbd_connections), (0, 0));
    assert_eq!(status.read_only_reason, "");
    assert_eq!(status.compression, "zstd");
    assert!(["io_uring", "blocking"].contains(&status.io_engine.as_str()));
    let socket = daemon.dir.path().join("nbd.sock");
    let socket = socket.to_str().unwrap().to_owned();
    assert_eq!(status.nbd_uris, [format!("nbd+unix:///?socket={socket}")]);
    assert!(status.started_at.is_some());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_kept_away_and_the_first_goes_on() {
    let daemon = Daemon::start().await;
    let error = Server::start(&daemon.config).await.unwrap_err();
    assert!(
        matches!(&error, StartError::Store(varve_store::Error::InUse(_))),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(daemon.dir.path().to_str().unwrap()),
        "{error}"
    );
    daemon.upload("web", &noise(1, 1 << 20)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_listened_on_or_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::for_data_dir(dir.path().join("data")).unwrap();
    config.nbd.unix = Some(dir.path().join("absent/nbd.sock"));
    let error = Server::start(&config).await.unwrap_err().to_string();
    assert!(error.contains("absent/nbd.sock"), "{error}");
    assert!(
        !config.data_dir.join("grpc.sock").exists(),
        "what was made before is removed"
    );

    config.nbd.unix = Some(dir.path().join("nbd.sock"));
    config.grpc.tcp = Some("127.0.0.1:0".parse().unwrap());
    let tls = crate::config::TlsConfig {
        client_ca: None,
        cert: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    config.grpc.tls = Some(tls.clone());
    let error = Server::start(&config).await.unwrap_err().to_string();
    assert!(error.contains("cert.pem"), "{error}");
    std::fs::write(&tls.cert, "rubbish").unwrap();
    std::fs::write(&tls.key, "rubbish").unwrap();
    let error = Server::start(&config).await.unwrap_err().to_string();
    assert!(error.contains("cert.pem"), "{error}");

    config.grpc.tls = None;
    let server = Server::start(&config).await.unwrap();
    assert_ne!(server.addresses().grpc_tcp.unwrap().port(), 0);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_do_not_hold_up_the_stop() {
    let daemon = Daemon::start().await;
    let mut silent = Vec::new();
    for number in 0..10 {
        let socket = daemon.dir.path().join("grpc.sock");
        let mut socket = tokio::net::UnixStream::connect(socket).await.unwrap();
        if number % 2 == 0 {
            // An HTTP/2 client that sends empty settings and answers nothing.
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            socket
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .unwrap();
            socket.write_all(&settings).await.unwrap();
        }
        silent.push(socket);
    }
    // This call is served, so the other connections were accepted before.
    assert!(daemon.names().await.is_empty());
    let started = std::time::Instant::now();
    daemon.stop().await;
    assert!(
        started.elapsed() < crate::limits::STOP_GRACE / 2,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_the_stop_cuts_short_ends_with_an_error() {
    let daemon = Daemon::start().await;
    daemon.upload("web", &noise(1, 40 << 20)).await;
    let request = v1::DownloadRequest {
        snapshot: "web".to_owned(),
        plain: true,
    };
    let mut messages = daemon
        .content()
        .download(request)
        .await
        .unwrap()
        .into_inner();
    messages.message().await.unwrap().unwrap();
    // Takes nothing until the daemon has given up waiting.
    let taken = async {
        tokio::time::sleep(crate::limits::STOP_GRACE + Duration::from_secs(1)).await;
        loop {
            match messages.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        }
    };
    let (ended, _) = tokio::join!(taken, daemon.stop());
    assert_eq!(
        ended.expect("a part does not pass for the whole").code(),
        Code::Unavailable
    );
}
