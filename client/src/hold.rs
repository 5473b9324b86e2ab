//! Holding a snapshot: its content stays in the store, even if its record is deleted.

use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use varve_proto::v1;

use crate::{
    connect::Client,
    error::{Error, ErrorKind, Result},
    limits::HOLD_SILENCE,
    retry,
    snapshots::Snapshot,
};

/// A snapshot whose content stays in its store while this value and its connection exist: see
/// [`Client::hold_snapshot`].
#[derive(Debug)]
#[must_use = "the snapshot is held only for as long as this lives"]
pub struct SnapshotHold {
    what: String,
    snapshot: Snapshot,
    answers: Streaming<v1::HoldResponse>,
}

impl Client {
    /// Holds the completed snapshot with this name or id. Returns `None` if the daemon is older
    /// than holds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such snapshot, [`ErrorKind::Conflict`] if it is not
    /// completed; errors of the connection.
    pub async fn hold_snapshot(&self, snapshot: &str) -> Result<Option<SnapshotHold>> {
        let what = format!("hold snapshot {snapshot}");
        let request = v1::HoldRequest {
            snapshot: snapshot.to_owned(),
        };
        let opened = retry::idempotent(|| {
            let (mut service, request) = (self.replication_service(), request.clone());
            async move {
                let mut answers = service.hold(request).await?.into_inner();
                let first = answers.message().await?;
                Ok::<_, Status>((first, answers))
            }
        });
        let (first, answers) = match opened.await {
            Ok(opened) => opened,
            Err(status) if status.code() == Code::Unimplemented => return Ok(None),
            Err(status) => return Err(Error::rpc(what, status)),
        };
        let snapshot = Snapshot::from_proto(&what, first.and_then(|first| first.snapshot))?;
        Ok(Some(SnapshotHold {
            what,
            snapshot,
            answers,
        }))
    }
}

impl SnapshotHold {
    /// Returns the snapshot as it was when the hold began.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Waits until the hold is lost, and returns the reason. Then hold the snapshot again: if it
    /// still exists, its content is complete.
    pub async fn lost(&mut self) -> Error {
        loop {
            match timeout(HOLD_SILENCE, self.answers.message()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Error::protocol(&self.what, "it ended the hold"),
                Ok(Err(status)) => return Error::rpc(&self.what, status),
                Err(_) => {
                    let seconds = HOLD_SILENCE.as_secs();
                    let why = format!("the daemon has said nothing for {seconds} seconds");
                    return Error::new(ErrorKind::Unreachable, &self.what, why);
                }
            }
        }
    }
}
