//! Copies of snapshots from other stores: create, show, limit, cancel.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use futures::Stream;
use tonic::{Response, Status};
use varve_content::tree::RootId;
use varve_proto::v1;

use crate::{
    connect::Client,
    convert::{self, system_time},
    error::{Error, ErrorKind, Result},
    pages, retry,
};

/// The source of a copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CopySource {
    /// Endpoint of the other daemon, as seen from the daemon that copies: `unix:PATH`,
    /// `http://HOST:PORT` or `https://HOST:PORT`; or the name of a remote.
    pub endpoint: String,
    /// Name or id of the snapshot there.
    pub snapshot: String,
    /// True if plain HTTP is allowed even to another machine.
    pub allow_plaintext: bool,
}

/// The settings of a new copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewCopy {
    /// The snapshot that is copied.
    pub source: CopySource,
    /// Name of the snapshot here. Empty: its name at the source.
    pub name: String,
    /// Tags of the snapshot here, in addition to those at the source.
    pub tags: BTreeMap<String, String>,
    /// Limit on the rate, in payload bytes per second as the source stores them; 0: no limit.
    pub bytes_per_second: u64,
}

/// The states of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum CopyState {
    /// Waiting for its turn: the limit of running copies is reached.
    Queued,
    /// Under way.
    Running,
    /// Waiting for the next attempt, after an error.
    Waiting,
    /// The snapshot exists here, with the root of the source.
    Completed,
    /// Failed; the daemon does not retry it.
    Failed,
    /// Cancelled by a user.
    Cancelled,
    /// A state that this version of the client does not know.
    Unknown,
}

impl CopyState {
    /// The state as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }

    /// Returns true if the copy has completed, failed or was cancelled.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A copy, as its daemon describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Copy {
    /// `copy-` and 17 hexadecimal digits.
    pub id: String,
    /// The snapshot that is copied.
    pub source: CopySource,
    /// Name of the snapshot here; empty until the source has reported it.
    pub name: String,
    /// Its state.
    pub state: CopyState,
    /// When it was begun.
    pub created_at: SystemTime,
    /// When it ended.
    pub ended_at: Option<SystemTime>,
    /// Root of the content. For a completed copy, the root of both snapshots.
    pub root: Option<RootId>,
    /// Size of the volume, in bytes.
    pub size_bytes: u64,
    /// Bytes of the snapshot that are not holes.
    pub data_bytes: u64,
    /// Bytes of those that are here.
    pub done_data_bytes: u64,
    /// Chunks that have arrived.
    pub received_chunks: u64,
    /// Payload of those chunks, in bytes.
    pub received_bytes: u64,
    /// Rate over the last seconds, in payload bytes per second.
    pub rate_bytes_per_second: u64,
    /// Limit on the rate, in payload bytes per second; 0: none.
    pub limit_bytes_per_second: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// Kind of the last error. `None` for copies that ended before daemons kept it.
    pub last_error_kind: Option<ErrorKind>,
    /// The snapshot here, when it is completed.
    pub snapshot_id: Option<String>,
    /// Tags of the snapshot here, in addition to those at the source.
    pub tags: BTreeMap<String, String>,
    /// Id of the account that it belongs to, 12 decimal digits. Empty from daemons without
    /// accounts.
    pub owner: String,
}

impl Copy {
    /// The remaining time at the rate of the last seconds, if the rest compresses like the part
    /// that is done. `None` unless the copy runs.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.data_bytes.checked_sub(self.done_data_bytes)?;
        if self.state != CopyState::Running || self.done_data_bytes == 0 {
            return None;
        }
        // Received bytes for each byte of data so far.
        let left = u128::from(left) * u128::from(self.received_bytes);
        let rate = u128::from(self.rate_bytes_per_second) * u128::from(self.done_data_bytes);
        let seconds = left.checked_div(rate)?;
        Some(Duration::from_secs(u64::try_from(seconds).ok()?))
    }

    pub(crate) fn from_proto(what: &str, copy: v1::Copy) -> Result<Self> {
        let state = match copy.state() {
            v1::CopyState::Queued => CopyState::Queued,
            v1::CopyState::Running => CopyState::Running,
            v1::CopyState::Waiting => CopyState::Waiting,
            v1::CopyState::Completed => CopyState::Completed,
            v1::CopyState::Failed => CopyState::Failed,
            v1::CopyState::Cancelled => CopyState::Cancelled,
            v1::CopyState::Unspecified => CopyState::Unknown,
        };
        let source = copy.source.unwrap_or_default();
        let filled = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            id: copy.id,
            source: CopySource {
                endpoint: source.endpoint,
                snapshot: source.snapshot,
                allow_plaintext: source.allow_plaintext,
            },
            name: copy.name,
            state,
            created_at: copy
                .created_at
                .and_then(system_time)
                .ok_or_else(|| Error::protocol(what, "a copy without a time"))?,
            ended_at: copy.ended_at.and_then(system_time),
            root: convert::root(what, "a copy", &copy.root)?,
            size_bytes: copy.size_bytes,
            data_bytes: copy.data_bytes,
            done_data_bytes: copy.done_data_bytes,
            received_chunks: copy.received_chunks,
            received_bytes: copy.received_bytes,
            rate_bytes_per_second: copy.rate_bytes_per_second,
            limit_bytes_per_second: copy.limit_bytes_per_second,
            last_error: filled(copy.last_error),
            last_error_kind: i32::try_from(copy.last_error_code)
                .ok()
                .filter(|code| *code != 0)
                .map(|code| ErrorKind::from_code(code.into())),
            snapshot_id: filled(copy.snapshot_id),
            tags: copy.tags,
            owner: copy.owner,
        })
    }
}

/// An estimate of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CopyEstimate {
    /// Root of the content.
    pub root: RootId,
    /// Size of the volume, in bytes.
    pub size_bytes: u64,
    /// Distinct chunks that are missing here.
    pub missing_chunks: u64,
    /// Payload of those chunks as the source stores it, in bytes: the amount to transfer.
    pub missing_bytes: u64,
    /// Bytes of data whose chunks are here.
    pub present_data_bytes: u64,
    /// Bytes of data in all.
    pub data_bytes: u64,
}

impl Client {
    /// Begins a copy to the store of this client's daemon. The daemon runs it in the background:
    /// see [`wait_for_copies`](Self::wait_for_copies).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for an invalid endpoint or name, [`ErrorKind::AlreadyExists`] if the
    /// name is taken; errors of the connection to this client's daemon.
    pub async fn copy(&self, new: NewCopy) -> Result<Copy> {
        let what = format!("copy {} from {}", new.source.snapshot, new.source.endpoint);
        let request = v1::CreateCopyRequest {
            source: Some(source(new.source)),
            name: new.name,
            tags: new.tags,
            bytes_per_second: new.bytes_per_second,
        };
        answered(
            &what,
            retry::while_busy(|| {
                let (mut service, request) = (self.copy_service(), request.clone());
                async move { service.create_copy(request).await }
            })
            .await,
        )
    }

    /// Finds the copy with this id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such copy; errors of the connection.
    pub async fn copy_status(&self, id: &str) -> Result<Copy> {
        let what = format!("show copy {id}");
        let request = v1::GetCopyRequest {
            copy: id.to_owned(),
        };
        let answer = retry::idempotent(|| {
            let (mut service, request) = (self.copy_service(), request.clone());
            async move { service.get_copy(request).await }
        });
        answered(&what, answer.await)
    }

    /// Lists the copies under way, and the last ones that have ended, the newest first. Pages are
    /// fetched on demand.
    ///
    /// The stream ends with its first error: one of the connection.
    pub fn copies(&self) -> impl Stream<Item = Result<Copy>> + Send + use<> {
        const WHAT: &str = "list copies";
        let client = self.clone();
        pages::listed(WHAT, move |page_token| {
            let client = client.clone();
            async move {
                let request = v1::ListCopiesRequest {
                    page_size: 0,
                    page_token,
                };
                let answer = retry::idempotent(|| {
                    let (mut service, request) = (client.copy_service(), request.clone());
                    async move { service.list_copies(request).await }
                });
                let page = answer.await.map_err(|status| Error::rpc(WHAT, status))?;
                let page = page.into_inner();
                let copies = page.copies.into_iter();
                let copies = copies.map(|copy| Copy::from_proto(WHAT, copy));
                Ok((copies.collect::<Result<_>>()?, page.next_page_token))
            }
        })
    }

    /// Ends the copy with this id. Chunks that have arrived stay in the store.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such copy; errors of the connection.
    pub async fn cancel_copy(&self, id: &str) -> Result<Copy> {
        let what = format!("cancel copy {id}");
        let request = v1::CancelCopyRequest {
            copy: id.to_owned(),
        };
        answered(
            &what,
            retry::while_busy(|| {
                let (mut service, request) = (self.copy_service(), request.clone());
                async move { service.cancel_copy(request).await }
            })
            .await,
        )
    }

    /// Limits the rate of the copy with this id from now on, in payload bytes per second; 0: no
    /// limit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such copy; errors of the connection.
    pub async fn limit_copy(&self, id: &str, bytes_per_second: u64) -> Result<Copy> {
        let what = format!("limit copy {id}");
        let request = v1::LimitCopyRequest {
            copy: id.to_owned(),
            bytes_per_second,
        };
        answered(
            &what,
            retry::while_busy(|| {
                let (mut service, request) = (self.copy_service(), request.clone());
                async move { service.limit_copy(request).await }
            })
            .await,
        )
    }

    /// Estimates the amount that a copy would transfer now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if the snapshot does not exist, [`ErrorKind::Unreachable`] and
    /// others if the source cannot be asked; errors of the connection.
    pub async fn estimate_copy(&self, of: CopySource) -> Result<CopyEstimate> {
        let what = format!("estimate the copy of {} from {}", of.snapshot, of.endpoint);
        let request = v1::EstimateCopyRequest {
            source: Some(source(of)),
        };
        let answer = retry::while_busy(|| {
            let (mut service, request) = (self.copy_service(), request.clone());
            async move { service.estimate_copy(request).await }
        })
        .await;
        let estimate = answer
            .map_err(|status| Error::rpc(&what, status))?
            .into_inner();
        let root = convert::root(&what, "an estimate", &estimate.root)?;
        Ok(CopyEstimate {
            root: root.ok_or_else(|| Error::protocol(&what, "an estimate without a root"))?,
            size_bytes: estimate.size_bytes,
            missing_chunks: estimate.missing_chunks,
            missing_bytes: estimate.missing_bytes,
            present_data_bytes: estimate.present_data_bytes,
            data_bytes: estimate.data_bytes,
        })
    }
}

fn answered(what: &str, answer: Result<Response<v1::Copy>, Status>) -> Result<Copy> {
    let copy = answer.map_err(|status| Error::rpc(what, status))?;
    Copy::from_proto(what, copy.into_inner())
}

fn source(source: CopySource) -> v1::CopySource {
    v1::CopySource {
        endpoint: source.endpoint,
        snapshot: source.snapshot,
        allow_plaintext: source.allow_plaintext,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_left_is_told_by_the_rate() {
        let running = v1::Copy {
            state: v1::CopyState::Running.into(),
            created_at: Some(prost_types::Timestamp::default()),
            data_bytes: 10_000,
            done_data_bytes: 4000,
            received_bytes: 1000,
            rate_bytes_per_second: 100,
            ..v1::Copy::default()
        };
        let copy = Copy::from_proto("show", running.clone()).unwrap();
        // 1500 bytes are still to come.
        assert_eq!(copy.remaining(), Some(Duration::from_secs(15)));
        let still = v1::Copy {
            rate_bytes_per_second: 0,
            ..running
        };
        let copy = Copy::from_proto("show", still).unwrap();
        assert_eq!(copy.remaining(), None);
    }
}
