//! Having the daemon read and check all that a snapshot is made of.

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

/// What the check of a snapshot came to.
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

/// Something in the store that is not as it must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// In words, naming pack, offset and id.
    pub message: String,
    /// Offset in the snapshot, in bytes, where it is seen first.
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
    /// Follows the check and ends it early. Counted are bytes of data, holes left out.
    pub fn control(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Takes each violation when it is found. There may be millions: a pack that is lost is one for
    /// each of its chunks.
    pub fn on_violation(mut self, take: impl FnMut(Violation) + Send + 'a) -> Self {
        self.on_violation = Box::new(take);
        self
    }

    /// Checks the snapshot.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] without such a snapshot, [`ErrorKind::Conflict`] for one that is not
    /// completed, [`ErrorKind::Cancelled`]; those of the connection.
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
