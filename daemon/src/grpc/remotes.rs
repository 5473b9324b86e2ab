//! `RemoteService`: names for other daemons.

use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, remote_service_server::RemoteService};

use super::{calls, convert};
use crate::{auth::Action, service::Service};

/// The service.
#[derive(Debug)]
pub(super) struct RemoteCalls(pub(super) Service);

#[async_trait]
impl RemoteService for RemoteCalls {
    async fn add_remote(
        &self,
        request: Request<v1::AddRemoteRequest>,
    ) -> Result<Response<v1::Remote>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let v1::AddRemoteRequest { remote, account } = request;
        let remote = || convert::new_remote(remote);
        let remote = calls::decoded(&self.0, &caller, Action::AddRemote, remote)?;
        let added = self.0.add_remote(&caller, remote, &account);
        calls::answer(added, convert::remote).await
    }

    async fn list_remotes(
        &self,
        request: Request<v1::ListRemotesRequest>,
    ) -> Result<Response<v1::ListRemotesResponse>, Status> {
        let (caller, _) = calls::opened(&self.0, request)?;
        calls::answer(self.0.list_remotes(&caller), |remotes| {
            v1::ListRemotesResponse {
                remotes: remotes.into_iter().map(convert::remote).collect(),
            }
        })
        .await
    }

    async fn remove_remote(
        &self,
        request: Request<v1::RemoveRemoteRequest>,
    ) -> Result<Response<v1::RemoveRemoteResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let removed = self
            .0
            .remove_remote(&caller, &request.name, &request.account);
        calls::answer(removed, |()| v1::RemoveRemoteResponse {}).await
    }
}
