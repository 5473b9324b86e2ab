//! `RemoteService`: other daemons that have names here.

use tonic::{Request, Response, Status, async_trait};
use tracing::info;
use varve_proto::v1::{self, remote_service_server::RemoteService};
use varve_store::RemoteRecord;

use super::{calls, convert, copies::failure, failure::Failure};
use crate::copies::Copies;

/// The service.
#[derive(Debug)]
pub(super) struct RemoteCalls {
    pub(super) copies: Copies,
}

#[async_trait]
impl RemoteService for RemoteCalls {
    async fn add_remote(
        &self,
        request: Request<v1::AddRemoteRequest>,
    ) -> Result<Response<v1::Remote>, Status> {
        calls::answer("AddRemote", async {
            let remote = record(request.into_inner().remote)?;
            let added = self.copies.add_remote(remote).await.map_err(failure)?;
            info!(name = added.name, endpoint = added.endpoint, "remote added");
            Ok(message(added))
        })
        .await
    }

    async fn list_remotes(
        &self,
        _request: Request<v1::ListRemotesRequest>,
    ) -> Result<Response<v1::ListRemotesResponse>, Status> {
        calls::answer("ListRemotes", async {
            let remotes = self.copies.remotes().await?;
            Ok(v1::ListRemotesResponse {
                remotes: remotes.into_iter().map(message).collect(),
            })
        })
        .await
    }

    async fn remove_remote(
        &self,
        request: Request<v1::RemoveRemoteRequest>,
    ) -> Result<Response<v1::RemoveRemoteResponse>, Status> {
        calls::answer("RemoveRemote", async {
            let name = request.into_inner().name;
            let removed = self.copies.remove_remote(name.clone());
            removed.await.map_err(failure)?;
            info!(name, "remote removed");
            Ok(v1::RemoveRemoteResponse {})
        })
        .await
    }
}

fn record(remote: Option<v1::Remote>) -> Result<RemoteRecord, Failure> {
    let remote = remote.ok_or_else(|| Failure::field("remote", "it is missing"))?;
    for (field, text) in [
        ("remote.endpoint", &remote.endpoint),
        ("remote.tls_ca", &remote.tls_ca),
        ("remote.tls_cert", &remote.tls_cert),
        ("remote.tls_key", &remote.tls_key),
    ] {
        convert::check_remote_text(field, text)?;
    }
    Ok(RemoteRecord {
        name: remote.name,
        endpoint: remote.endpoint,
        allow_plaintext: remote.allow_plaintext,
        tls_ca: remote.tls_ca,
        tls_cert: remote.tls_cert,
        tls_key: remote.tls_key,
        created_at_ns: 0,
    })
}

fn message(remote: RemoteRecord) -> v1::Remote {
    v1::Remote {
        name: remote.name,
        endpoint: remote.endpoint,
        allow_plaintext: remote.allow_plaintext,
        tls_ca: remote.tls_ca,
        tls_cert: remote.tls_cert,
        tls_key: remote.tls_key,
        created_at: Some(convert::timestamp(remote.created_at_ns)),
    }
}
