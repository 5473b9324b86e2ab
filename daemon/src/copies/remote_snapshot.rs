//! The snapshot at the source of a copy. The source keeps its content meanwhile.

use std::sync::Arc;

use futures::stream;
use tokio::{sync::Mutex as AsyncMutex, time::sleep};
use tracing::debug;
use varve_client::{ErrorKind, FETCH_NODES_MAX, SnapshotHold, SnapshotState};
use varve_content::{
    chunker::CHUNKER_VERSION,
    tree::{CompareError, ComparedLeaves, LeafComparison, Root, WalkError},
};
use varve_store::AccountId;

use super::{
    base::{self, Base},
    remotes::{Remotes, Source},
    source::{Connections, CopyError},
    tree::Nodes,
};
use crate::{
    limits::{COPY_KEPT_LEAVES, COPY_PAUSES},
    resources::shares::Hold,
};

/// A snapshot at the source, and the connections to it.
pub(super) struct RemoteSnapshot {
    pub(super) endpoint: String,
    pub(super) connections: Connections,
    pub(super) snapshot: varve_client::Snapshot,
    pub(super) root: Root,
    /// The id of the snapshot, for requests.
    of: [String; 1],
    /// Keeps the content at the source. `None` if the source is older than holds. The work that
    /// needs the content locks it.
    hold: AsyncMutex<Option<SnapshotHold>>,
}

impl RemoteSnapshot {
    /// Asks the source for the snapshot, and to keep its content.
    pub(super) async fn find(
        owner: AccountId,
        source: &Source,
        remotes: &Remotes,
        place: Arc<Hold>,
    ) -> Result<Self, CopyError> {
        let connections = Connections::open(&remotes.address(owner, source).await?, place).await?;
        let client = connections.client();
        let snapshot = connections.heard(client.snapshot(&source.snapshot)).await?;
        let id = match (snapshot.state, snapshot.root) {
            (SnapshotState::Completed, Some(id)) => id,
            (state, _) => {
                return Err(CopyError::NotCompleted {
                    name: snapshot.name,
                    state: state.as_str(),
                    endpoint: source.endpoint.clone(),
                });
            }
        };
        // Hold by id: no other snapshot ever has the same.
        let hold = connections
            .heard(client.hold_snapshot(&snapshot.id))
            .await?;
        let of = [snapshot.id.clone()];
        let root = connections.heard(client.fetch_root(&of, id)).await?;
        if root.chunker_version != CHUNKER_VERSION {
            return Err(CopyError::Refused(format!(
                "{} cuts with chunker version {}, this store with {CHUNKER_VERSION}: they would \
                 share no chunks",
                source.endpoint, root.chunker_version
            )));
        }
        if root.size_bytes != snapshot.size_bytes {
            return Err(CopyError::Refused(format!(
                "{} says that snapshot {} has {} bytes, and its root {}",
                source.endpoint, snapshot.name, snapshot.size_bytes, root.size_bytes
            )));
        }
        Ok(Self {
            endpoint: source.endpoint.clone(),
            connections,
            snapshot,
            root,
            of,
            hold: AsyncMutex::new(hold),
        })
    }

    /// The snapshot, as requests for its nodes and chunks name it.
    pub(super) const fn of(&self) -> &[String] {
        &self.of
    }

    /// Does work that needs the content of the snapshot, while the source keeps it.
    pub(super) async fn held<T>(
        &self,
        work: impl Future<Output = Result<T, CopyError>>,
    ) -> Result<T, CopyError> {
        let error = tokio::select! {
            biased;
            done = work => match done {
                Ok(done) => return Ok(done),
                Err(error) => error,
            },
            error = self.keep() => error,
        };
        // The reason for a missing node may be that the snapshot was deleted.
        match &error {
            CopyError::Source(missing) if missing.kind() == ErrorKind::NotFound => {
                let client = self.connections.client();
                let asked = self.connections.heard(client.snapshot(&self.snapshot.id));
                match asked.await {
                    Err(CopyError::Source(it)) if it.kind() == ErrorKind::NotFound => {
                        Err(self.deleted())
                    }
                    _ => Err(error),
                }
            }
            _ => Err(error),
        }
    }

    /// Holds the snapshot again whenever the hold is lost, until that fails. As long as the
    /// snapshot exists, its content is complete.
    async fn keep(&self) -> CopyError {
        let mut hold = self.hold.lock().await;
        loop {
            let lost = match &mut *hold {
                Some(hold) => hold.lost().await,
                None => std::future::pending().await,
            };
            let (id, error) = (&*self.snapshot.id, lost.to_string());
            debug!(id, error, "the source is asked again to hold the snapshot");
            let client = self.connections.client();
            *hold = match self.connections.heard(client.hold_snapshot(id)).await {
                Ok(again) => again,
                Err(error) => return error,
            };
            // Pause, in case the source ends each hold at once.
            sleep(COPY_PAUSES.0).await;
        }
    }

    fn deleted(&self) -> CopyError {
        CopyError::Deleted {
            name: self.snapshot.name.clone(),
            endpoint: self.endpoint.clone(),
        }
    }

    /// The leaves of the snapshot, in batches.
    pub(super) fn batches<'a>(
        &self,
        nodes: &'a Nodes<'a>,
        base: Option<&'a Base>,
    ) -> impl futures::Stream<Item = Result<ComparedLeaves, CopyError>> + 'a {
        let walk = LeafComparison::new(&self.root, base.map(Base::root));
        stream::try_unfold(walk, move |mut walk| async move {
            let batch = match base {
                Some(base) => walk
                    .next(nodes, base, FETCH_NODES_MAX, COPY_KEPT_LEAVES)
                    .await
                    .map_err(|error| match error {
                        CompareError::Tree(error) => walked(error),
                        CompareError::Base(error) => base::walked(error),
                    })?,
                None => walk
                    .next(nodes, nodes, FETCH_NODES_MAX, COPY_KEPT_LEAVES)
                    .await
                    .map_err(|error| match error {
                        CompareError::Tree(error) | CompareError::Base(error) => walked(error),
                    })?,
            };
            Ok(batch.map(|batch| (batch, walk)))
        })
    }
}

/// Converts an error of a walk through the source's tree.
fn walked(error: WalkError<CopyError>) -> CopyError {
    match error {
        WalkError::Source(error) => error,
        WalkError::Level { .. } | WalkError::Outside { .. } => {
            CopyError::Mismatch(format!("the source's tree cannot be: {error}"))
        }
    }
}
