//! Uploads: content on its way in.
//!
//! - `table`: open uploads by their ids.
//! - `intake`: chunks of all uploads, bounded in bytes.

mod intake;
mod table;

use std::sync::Arc;

use futures::Stream;
use tracing::debug;
use varve_content::{ChunkId, RootId, tree::Leaf};
use varve_store::{IncomingChunk, Ingest, NewSnapshot, PutOutcome, SnapshotRecord};

pub(super) use self::intake::Intake;
use self::table::{Lease, Uploader};
pub(crate) use self::{intake::ChunkMessage, table::Uploads};
use super::{
    Service, Snapshot,
    error::{Error, Result},
    request,
    sight::Sight,
};
use crate::{
    auth::{Action, Attempt, Caller, Denied, Resource, done},
    error::Classified,
    limits,
    resources::shares::Hold,
};

/// An upload to begin.
#[derive(Debug, Clone)]
pub(crate) struct NewUpload {
    pub(crate) snapshot: NewSnapshot,
    /// Name or id of a snapshot whose content the caller need not send; empty: none.
    pub(crate) base: String,
    /// Keeps chunks as the caller packed them.
    pub(crate) keep_packed: bool,
}

impl Service {
    /// Begins an upload. Returns its id.
    pub(crate) async fn begin_upload(&self, caller: &Caller, new: NewUpload) -> Result<String> {
        let name = new.snapshot.name.clone();
        let mut on = vec![Resource::Snapshot(&name)];
        on.extend((!new.base.is_empty()).then_some(Resource::Snapshot(&new.base)));
        let sight = self.sight(caller);
        self.pass(caller, Action::BeginUpload, &on, async {
            let snapshot = NewSnapshot {
                owner: sight.account()?,
                ..new.snapshot
            };
            let uploads = &self.0.parts.uploads;
            let principal = self.directory().principal(caller);
            let principal = principal.ok_or(Error::Denied(Denied::Nobody))?;
            let uploader = Uploader {
                holder: caller.holder(),
                account: principal.account,
            };
            uploads.make_room(&uploader)?;
            let size_bytes = snapshot.size_bytes;
            let base = match &*new.base {
                "" => None,
                base => {
                    let base = sight.readable_snapshot("base", base)?;
                    let base = Box::pin(self.store().open_snapshot(&base)).await?;
                    Some((*base.root(), base.pin().clone()))
                }
            };
            let mut ingest = self.store().begin_ingest(snapshot).await?;
            // The administrator may read everything, so it has nothing to prove.
            if !sight.sees_others() {
                ingest = ingest.only_what_is_proved(base)?;
                if self.0.parts.hides_dedupe {
                    ingest = ingest.write_known();
                }
            }
            // The form that a chunk has in the store would tell an account who was first.
            if new.keep_packed && sight.sees_others() {
                ingest = ingest.keep_packed();
            }
            let id = uploads.open(ingest, &uploader)?;
            debug!(upload = id, name, size_bytes, "upload begun");
            Ok(id)
        })
        .await
    }

    /// Returns the positions of the chunks that the caller has to send: the store does not have
    /// them, or the caller has not proved that it has. `segments` are those that they are in.
    pub(crate) async fn find_missing(
        &self,
        caller: &Caller,
        upload: &str,
        ids: &[ChunkId],
        segments: &[u32],
    ) -> Result<Vec<u32>> {
        let on = [Resource::Upload(upload)];
        let sight = self.sight(caller);
        self.pass(caller, Action::FindMissing, &on, async {
            request::at_most("ids", "ids", ids.len(), limits::FIND_IDS_MAX as usize)?;
            let most = limits::FIND_SEGMENTS_MAX;
            request::at_most("segments", "segments", segments.len(), most)?;
            let upload = self.upload(&sight, upload)?;
            // A request without ids is no progress.
            let _work = (!ids.is_empty()).then(|| upload.work());
            Ok(upload.missing(ids, segments).await?)
        })
        .await
    }

    /// An upload of the caller's account, for one call.
    fn upload(&self, sight: &Sight, id: &str) -> Result<Lease<Ingest>> {
        let upload = self.0.parts.uploads.lease(id)?;
        match upload.new_snapshot().owner == sight.account()? {
            true => Ok(upload),
            false => Err(upload.not_found().into()),
        }
    }

    /// Takes the chunks of one stream. The first error ends it; `E` is the error of the stream
    /// itself. `moves` receives the place that has to move while the rest of the stream arrives.
    pub(crate) async fn put_chunks<S, C, E>(
        &self,
        caller: &Caller,
        mut messages: S,
        moves: impl FnOnce(&Arc<Hold>),
    ) -> Result<PutOutcome, E>
    where
        S: Stream<Item = Result<ChunkMessage<C>, E>> + Unpin,
        C: ExactSizeIterator<Item = Result<IncomingChunk>>,
        E: Classified + From<Error>,
    {
        use futures::StreamExt as _;

        let mut attempt = self.begin(caller, Action::PutChunks, &[])?;
        // The first message has the same deadline as a request. It names the upload of the stream.
        let first = messages.next().await.transpose();
        if let Ok(Some(first)) = &first {
            attempt.is_on(&[Resource::Upload(&first.upload)]);
        }
        let (sight, idle) = (self.sight(caller), self.0.parts.uploads.idle());
        let taken = async {
            let Some(first) = first? else {
                return Ok(PutOutcome::default());
            };
            let to = (self.upload(&sight, &first.upload)?, idle);
            let intake = &self.0.intake;
            let taken = intake.take_chunks(to, caller.holder(), first, messages, moves);
            let mut outcome = taken.await?;
            if !sight.sees_others() {
                // It would tell of the content of other accounts.
                outcome.new_bytes = 0;
            }
            Ok(outcome)
        };
        let tell = |attempt: &Attempt, _: &_| attempt.served();
        attempt.carry_out(taken, tell).await
    }

    /// Puts leaves, with their segments. The store must have all their chunks.
    pub(crate) async fn put_leaves(
        &self,
        caller: &Caller,
        upload: &str,
        leaves: Vec<(u32, Leaf)>,
    ) -> Result<()> {
        let on = [Resource::Upload(upload)];
        let sight = self.sight(caller);
        self.pass(caller, Action::PutLeaves, &on, async {
            let upload = self.upload(&sight, upload)?;
            let _work = (!leaves.is_empty()).then(|| upload.work());
            Ok(Box::pin(upload.put_leaves(leaves)).await?)
        })
        .await
    }

    /// Makes the snapshot, if its root is the one that the caller expects. A commit closes the
    /// upload, whether or not it succeeds.
    pub(crate) async fn commit_upload(
        &self,
        caller: &Caller,
        upload: &str,
        root: RootId,
    ) -> Result<Snapshot> {
        let on = [Resource::Upload(upload)];
        let (service, seen, upload) = (self.clone(), self.sight(caller), upload.to_owned());
        let sight = seen.clone();
        let change = async move { Ok(service.close(&sight, &upload)?.commit(root).await?) };
        let call = (caller, Action::CommitUpload);
        let committed = self.change(call, &on, change, |attempt, record: &SnapshotRecord| {
            let content = record.content();
            done!(
                attempt,
                id = %record.id,
                name = record.name,
                size_bytes = record.size_bytes,
                data_bytes = content.map(|content| content.data_bytes),
                new_bytes = content.map(|content| content.new_bytes),
                stored_bytes = content.map(|content| content.stored_bytes),
                root = content.map(|content| tracing::field::display(content.root)),
                "snapshot committed"
            );
        });
        Ok(self.described(&seen, committed.await?))
    }

    /// Takes an upload of the caller's account out of the open ones.
    fn close(&self, sight: &Sight, id: &str) -> Result<Arc<Ingest>> {
        self.upload(sight, id)?;
        Ok(self.0.parts.uploads.remove(id)?)
    }

    /// Aborts an upload. Chunks that arrived stay.
    pub(crate) async fn abort_upload(&self, caller: &Caller, upload: &str) -> Result<()> {
        let on = [Resource::Upload(upload)];
        let (service, sight, upload) = (self.clone(), self.sight(caller), upload.to_owned());
        let change = async move {
            let ingest = service.close(&sight, &upload)?;
            Ok((upload, ingest.new_snapshot().name.clone()))
        };
        let call = (caller, Action::AbortUpload);
        let aborted = self.change(call, &on, change, |attempt, aborted: &(String, String)| {
            let (upload, name) = aborted;
            done!(attempt, upload, name, "upload aborted by its client");
        });
        aborted.await.map(drop)
    }
}
