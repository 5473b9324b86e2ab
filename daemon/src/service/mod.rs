//! The operations of the daemon, independent of the protocol of their callers.
//!
//! ```text
//! grpc ────┐
//! exports ─┴──> Service ──door──> operations ──> store, copies
//! ```
//!
//! | file | operations on |
//! | --- | --- |
//! | [`snapshots`] | snapshots as records, their differences, their verification |
//! | [`volumes`] | volumes as records |
//! | [`images`] | images: what a machine boots from |
//! | [`uploads`] | content on its way in |
//! | [`content`] | content on its way out |
//! | [`replication`] | nodes and chunks for another store that copies a snapshot |
//! | [`copies`] | snapshots copied from other stores |
//! | [`remotes`] | other daemons that have names here |
//! | [`accounts`] | accounts, tokens and access keys |
//! | [`gc`] | garbage collection, and what snapshots and volumes take |
//! | [`exports`] | snapshots and volumes as block devices |
//! | [`status`] | the daemon itself |
//!
//! - [`error`]: why an operation fails. `request`: what a request may hold.
//! - [`pages`]: listings in pages. [`streams`]: answers that are streams.
//! - `attachments`: volumes that are in use. `holds`: snapshots that other stores copy.
//! - `sight`: what a caller sees.
//!
//! Invariants: an operation has a [`Caller`], and passes the one door ([`Service::pass`],
//! [`Service::change`], [`Service::pass_stream`]) before it looks anything up. It takes and returns
//! types of the store and of the service, and knows no protocol. Limits of a request are checked
//! here or in the store, once. Names and ids arrive as the caller wrote them, so that the door logs
//! them as such, and go on to the store as typed keys.

mod accounts;
mod attachments;
mod audit;
mod content;
mod copies;
mod error;
mod exports;
mod gc;
mod holds;
mod images;
mod page_token;
mod pages;
mod remotes;
mod replication;
mod request;
mod sight;
mod snapshots;
mod status;
mod streams;
mod uploads;
mod volumes;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use varve_store::{GcSettings, Ingest, Store};

pub(crate) use self::{
    accounts::{AccountChange, AccountUse, NewAccount, NewToken, WhoAmI},
    attachments::AttachedVolume,
    audit::{AuditEntry, AuditPage, AuditQuery},
    content::{DownloadPart, RangeContent, RangePart, SentChunk},
    copies::{CopySource, CopyState, CopyStatus, Estimate, NewCopy},
    error::{Error, Result},
    exports::Descendant,
    gc::{GcChoice, GcState},
    images::{DeviceContent, DeviceRequest, Filter as ImageFilter, ImageListRequest, ImageRequest},
    pages::ListRequest,
    replication::{ChunkRequest, NodeRequest},
    sight::Grantees,
    snapshots::{Snapshot, SnapshotsRequest, TagChange, VerifyState},
    status::{Facts, Status},
    streams::Items,
    uploads::{ChunkMessage, NewUpload, Uploads},
    volumes::{AttachRequest, CloneRequest, VolumeDetails, VolumeRequest},
};
use self::{attachments::Attachments, holds::Holds, sight::Sight, uploads::Intake};
use crate::{
    auth::{Accounts, Action, Attempt, Caller, Changed, Directory, Door, Failures, Resource},
    copies::Copies,
    limits,
    resources::shares::{Hold, Shares},
    tasks::Tasks,
};

/// The parts of the daemon that operations use.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Store,
    /// Runs operations that continue without their callers.
    pub(crate) tasks: Tasks,
    pub(crate) copies: Copies,
    /// Ends answers that have no end of their own.
    pub(crate) stop: CancellationToken,
    /// Open uploads.
    pub(crate) uploads: Arc<Uploads<Ingest>>,
    /// Uploads of accounts write what the store has, too.
    pub(crate) hides_dedupe: bool,
    /// How garbage is collected unless a caller says otherwise.
    pub(crate) gc: GcSettings,
    /// Accounts, and whom callers act for.
    pub(crate) accounts: Accounts,
    /// What every operation passes.
    pub(crate) door: Door,
    /// Facts about the daemon itself.
    pub(crate) facts: Facts,
}

/// All operations. Clones are handles to the same service.
#[derive(Debug, Clone)]
pub(crate) struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    attachments: Attachments,
    /// Slows down who shows wrong tickets.
    wrong_tickets: Failures,
    intake: Intake,
    /// Places for downloads and reads.
    readers: Shares,
    /// Segments that downloads may read ahead.
    read_ahead: Arc<Semaphore>,
    /// Places for comparisons and verifications.
    checks: Shares,
    /// Places for streams of chunks to other stores.
    fetches: Shares,
    /// Snapshots that other stores copy, and the places for that.
    holds: Holds,
}

impl Service {
    pub(crate) fn new(parts: Parts) -> Self {
        let places = streams::places;
        Self(Arc::new(Inner {
            attachments: Attachments::new(parts.store.clone()),
            wrong_tickets: Failures::default(),
            intake: Intake::new(),
            readers: places("exports and reads", limits::READ_STREAMS_MAX),
            read_ahead: Arc::new(Semaphore::new(limits::READ_AHEAD_SEGMENTS_SHARED)),
            checks: places("comparisons and verifications", limits::CHECK_STREAMS_MAX),
            fetches: places("fetches of chunks", limits::COPY_STREAMS_MAX),
            holds: Holds::new(),
            parts,
        }))
    }

    fn store(&self) -> &Store {
        &self.0.parts.store
    }

    fn tasks(&self) -> &Tasks {
        &self.0.parts.tasks
    }

    /// Passes an operation that changes nothing, or nothing by itself.
    async fn pass<T>(
        &self,
        caller: &Caller,
        action: Action,
        on: &[Resource<'_>],
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let attempt = self.begin(caller, action, on)?;
        attempt.carry_out(work, |attempt, _| attempt.served()).await
    }

    /// Begins an operation, if the policy permits it.
    fn begin(&self, caller: &Caller, action: Action, on: &[Resource<'_>]) -> Result<Attempt> {
        Ok(Attempt::begin(&self.0.parts.door, caller, action, on)?)
    }

    /// A caller whose principal is looked up now, for all parts of one operation.
    pub(crate) fn resolved(&self, caller: &Caller) -> Caller {
        caller.clone().resolved(self.directory())
    }

    /// Refuses a request that cannot be decoded, if the policy permits the operation at all.
    pub(crate) fn refuse(&self, caller: &Caller, action: Action, error: Error) -> Error {
        match self.begin(caller, action, &[]) {
            Ok(attempt) => {
                attempt.fail(&error);
                error
            }
            Err(denied) => denied,
        }
    }

    /// What a caller sees.
    fn sight(&self, caller: &Caller) -> Sight {
        let directory = self.directory();
        let principal = directory.principal(caller);
        Sight::new(directory.clone(), principal.as_ref())
    }

    fn directory(&self) -> &Directory {
        &self.0.parts.door.directory
    }

    /// Passes a change. A task makes it and logs it with `tell`: a change that has begun is
    /// completed, even if the caller goes away.
    async fn change<T: Changed + Send + 'static>(
        &self,
        (caller, action): (&Caller, Action),
        on: &[Resource<'_>],
        work: impl Future<Output = Result<T>> + Send + 'static,
        tell: impl FnOnce(&Attempt, &T) + Send + 'static,
    ) -> Result<T> {
        let attempt = self.begin(caller, action, on)?.of_task();
        let work = attempt.carry_out_change(work, tell);
        self.tasks().spawn(action.name(), work).await?
    }

    /// Passes an operation whose answer is a stream: `open` opens it and takes its place, `work`
    /// makes the items, and `tell` logs the success of the work.
    async fn pass_stream<T, O, R, W>(
        &self,
        (caller, action): (&Caller, Action),
        on: &[Resource<'_>],
        open: impl Future<Output = Result<(O, Hold)>>,
        work: impl FnOnce(O, streams::Outlet<T>) -> W,
        tell: impl FnOnce(&Attempt, &R) + Send + 'static,
    ) -> Result<Items<T>>
    where
        T: Send + 'static,
        R: Send + 'static,
        W: Future<Output = Result<R>> + Send + 'static,
    {
        let attempt = self.begin(caller, action, on)?;
        let (opened, place) = match open.await {
            Ok(opened) => opened,
            Err(error) => {
                attempt.fail(&error);
                return Err(error);
            }
        };
        let work = |outlet| work(opened, outlet);
        Ok(streams::spawn(
            self.tasks(),
            attempt,
            Some(place),
            work,
            tell,
        ))
    }
}
