//! Checking a snapshot: the daemon reads and checks all of its data.

use std::fmt;

use varve_proto::v1;

use crate::{
    cancel::unless_cancelled,
    connect::Client,
    control::Control,
    error::{Error, ErrorKind, Result},
};

/// A check of a snapshot: see [`Client::verify_snapshot`].
#[must_use = "a snapshot is not checked until this is run"]
pub struct Verify<'a> {
    client: &'a Client,
    snapshot: String,
    control: Control,
    on_violation: Box<dyn FnMut(Violation) + Send + 'a>,
}

/// The outcome of checking a snapshot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Distinct chunks and nodes that were read and checked.
    pub checked: u64,
    /// Plain bytes of those chunks.
    pub checked_bytes: u64,
    /// Violations that were found. The snapshot is sound if there are none.
    pub violations: u64,
}

/// Damage in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// A description with pack, offset and id.
    pub message: String,
    /// The first offset in the snapshot, in bytes, that the damage affects.
    pub offset_bytes: u64,
}

impl Client {
    /// Prepares the check of the snapshot with this name or id: the daemon reads every chunk and
    /// node of it from disk.
    ///
    /// Damage is a result, not an error: see [`VerifyReport::violations`].
    pub fn verify_snapshot(&self, snapshot: impl Into<String>) -> Verify<'_> {
        Verify {
            client: self,
            snapshot: snapshot.into(),
            control: Control::default(),
            on_violation: Box::new(drop),
        }
    }
}

impl<'a> Verify<'a> {
    /// Sets the control of the check. Its progress counts bytes of data, without holes.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Sets a function that takes each violation when it is found. There may be millions: a lost
    /// pack causes one for each of its chunks.
    pub fn on_violation(mut self, take: impl FnMut(Violation) + Send + 'a) -> Self {
        self.on_violation = Box::new(take);
        self
    }

    /// Checks the snapshot.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such snapshot, [`ErrorKind::Conflict`] if it is not
    /// completed, [`ErrorKind::Cancelled`]; errors of the connection.
    pub async fn run(self) -> Result<VerifyReport> {
        let Self {
            client,
            snapshot,
            control,
            mut on_violation,
        } = self;
        let what = format!("verify snapshot {snapshot}");
        let checking = async {
            let request = v1::VerifySnapshotRequest { snapshot };
            let answers = client.snapshot_service().verify_snapshot(request).await;
            let mut answers = answers
                .map_err(|status| Error::rpc(&what, status))?
                .into_inner();
            let mut report = VerifyReport::default();
            let mut done = false;
            while let Some(answer) = answers
                .message()
                .await
                .map_err(|status| Error::rpc(&what, status))?
            {
                control.progress.set_total(answer.total_bytes);
                control.progress.set_done(answer.checked_bytes);
                report.checked = answer.checked;
                report.checked_bytes = answer.checked_bytes;
                report.violations += answer.violations.len() as u64;
                done = answer.done;
                for violation in answer.violations {
                    on_violation(Violation {
                        message: violation.message,
                        offset_bytes: violation.offset_bytes,
                    });
                }
            }
            if !done {
                let why = "the daemon ended before everything was checked";
                return Err(Error::new(ErrorKind::Internal, &what, why));
            }
            Ok(report)
        };
        unless_cancelled(&what, "it was cancelled", &control.cancel, checking).await
    }
}

impl fmt::Debug for Verify<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify")
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}
