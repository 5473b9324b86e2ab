//! Copies that follow the script of a test, and names of other daemons.

use tonic::{Request, Response, Status};
use varve_client::ADMINISTRATOR;
use varve_proto::v1::{
    self, copy_service_server::CopyService, remote_service_server::RemoteService,
};

use super::Service;

const TIME: prost_types::Timestamp = prost_types::Timestamp {
    seconds: 1_700_000_000,
    nanos: 0,
};

impl Service {
    /// The next states that the daemon reports of the copy; it repeats the last one.
    fn next(&self, id: &str) -> Result<v1::Copy, Status> {
        let mut state = self.state();
        let script = state.copies.get_mut(id);
        let script = script.ok_or_else(|| Status::not_found(format!("no copy {id}")))?;
        let now = script[0].clone();
        if script.len() > 1 {
            script.remove(0);
        }
        Ok(now)
    }
}

#[tonic::async_trait]
impl CopyService for Service {
    async fn create_copy(
        &self,
        request: Request<v1::CreateCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let id = format!("copy-{:017x}", state.copies.len() + 1);
        let copy = v1::Copy {
            id: id.clone(),
            source: request.source,
            name: request.name,
            state: v1::CopyState::Queued.into(),
            created_at: Some(TIME),
            limit_bytes_per_second: request.bytes_per_second,
            tags: request.tags,
            owner: ADMINISTRATOR.to_owned(),
            ..v1::Copy::default()
        };
        let course = state.course.clone();
        let course = course.into_iter().map(|step| v1::Copy {
            state: step.state,
            last_error: step.last_error,
            last_error_code: step.last_error_code,
            ..copy.clone()
        });
        let script = std::iter::once(copy.clone()).chain(course).collect();
        state.copies.insert(id, script);
        Ok(Response::new(copy))
    }

    async fn get_copy(
        &self,
        request: Request<v1::GetCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        self.next(&request.into_inner().copy).map(Response::new)
    }

    async fn list_copies(
        &self,
        _: Request<v1::ListCopiesRequest>,
    ) -> Result<Response<v1::ListCopiesResponse>, Status> {
        let state = self.state();
        let copies = state.copies.values().rev();
        Ok(Response::new(v1::ListCopiesResponse {
            copies: copies.map(|script| script[0].clone()).collect(),
            next_page_token: String::new(),
        }))
    }

    async fn cancel_copy(
        &self,
        request: Request<v1::CancelCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let mut copy = self.next(&request.into_inner().copy)?;
        copy.set_state(v1::CopyState::Cancelled);
        let script = vec![copy.clone()];
        self.state().copies.insert(copy.id.clone(), script);
        Ok(Response::new(copy))
    }

    async fn limit_copy(
        &self,
        request: Request<v1::LimitCopyRequest>,
    ) -> Result<Response<v1::Copy>, Status> {
        let request = request.into_inner();
        let mut copy = self.next(&request.copy)?;
        copy.limit_bytes_per_second = request.bytes_per_second;
        Ok(Response::new(copy))
    }

    async fn estimate_copy(
        &self,
        _: Request<v1::EstimateCopyRequest>,
    ) -> Result<Response<v1::EstimateCopyResponse>, Status> {
        Ok(Response::new(v1::EstimateCopyResponse {
            root: vec![7; 32].into(),
            size_bytes: 4 << 20,
            missing_chunks: 3,
            missing_bytes: 1 << 20,
            present_data_bytes: 1 << 20,
            data_bytes: 2 << 20,
        }))
    }
}

#[tonic::async_trait]
impl RemoteService for Service {
    async fn add_remote(
        &self,
        request: Request<v1::AddRemoteRequest>,
    ) -> Result<Response<v1::Remote>, Status> {
        let request = request.into_inner();
        let mut remote = request.remote.unwrap_or_default();
        remote.owner = request.account;
        let mut state = self.state();
        state.remotes.insert(remote.name.clone(), remote.clone());
        Ok(Response::new(remote))
    }

    async fn list_remotes(
        &self,
        _: Request<v1::ListRemotesRequest>,
    ) -> Result<Response<v1::ListRemotesResponse>, Status> {
        let remotes = self.state().remotes.values().cloned().collect();
        Ok(Response::new(v1::ListRemotesResponse { remotes }))
    }

    async fn remove_remote(
        &self,
        request: Request<v1::RemoveRemoteRequest>,
    ) -> Result<Response<v1::RemoveRemoteResponse>, Status> {
        let name = request.into_inner().name;
        let removed = self.state().remotes.remove(&name);
        removed.ok_or_else(|| Status::not_found(format!("no remote {name}")))?;
        Ok(Response::new(v1::RemoveRemoteResponse {}))
    }
}
