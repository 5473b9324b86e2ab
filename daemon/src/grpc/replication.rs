//! `ReplicationService`: nodes and chunks for another store that copies a snapshot.

use tonic::{Request, Response, Status, async_trait};
use varve_proto::v1::{self, replication_service_server::ReplicationService};

use super::{
    calls::{self, AnswerStream},
    convert,
};
use crate::{auth::Action, service::Service};

/// The service.
#[derive(Debug)]
pub(super) struct Replication(pub(super) Service);

#[async_trait]
impl ReplicationService for Replication {
    type HoldStream = AnswerStream<v1::HoldResponse>;
    type FetchChunksStream = AnswerStream<v1::FetchChunksResponse>;

    async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let held = self.0.hold_snapshot(&caller, &request.snapshot);
        calls::stream(held, |snapshot| v1::HoldResponse {
            snapshot: snapshot.map(convert::snapshot),
        })
        .await
    }

    async fn fetch_nodes(
        &self,
        request: Request<v1::FetchNodesRequest>,
    ) -> Result<Response<v1::FetchNodesResponse>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let nodes = || request.nodes.iter().map(convert::node_request).collect();
        let nodes = calls::decoded(&self.0, &caller, Action::FetchNodes, nodes)?;
        let exported = self.0.export_nodes(&caller, &request.snapshots, nodes);
        calls::answer(exported, |nodes| v1::FetchNodesResponse {
            nodes: nodes.into_iter().map(convert::node).collect(),
        })
        .await
    }

    async fn fetch_chunks(
        &self,
        request: Request<v1::FetchChunksRequest>,
    ) -> Result<Response<Self::FetchChunksStream>, Status> {
        let (caller, request) = calls::opened(&self.0, request)?;
        let v1::FetchChunksRequest { leaves, snapshots } = request;
        let requests = || leaves.into_iter().map(convert::chunk_request).collect();
        let requests = calls::decoded(&self.0, &caller, Action::FetchChunks, requests)?;
        let chunks = self.0.export_chunks(&caller, &snapshots, requests);
        calls::stream(chunks, |chunks| v1::FetchChunksResponse {
            chunks: chunks.into_iter().map(convert::stored_chunk).collect(),
        })
        .await
    }
}
