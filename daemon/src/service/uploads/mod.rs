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
use varve_store::{IncomingChunk, NewSnapshot, PutOutcome, SnapshotRecord};

pub(super) use self::intake::Intake;
pub(crate) use self::{intake::ChunkMessage, table::Uploads};
use super::{
    Service,
    error::{Error, Result},
    request,
};
use crate::{
    auth::{Action, Attempt, Caller, Resource, done},
    error::Classified,
    limits,
    resources::shares::Hold,
};

/// An upload to begin.
#[derive(Debug, Clone)]
pub(crate) struct NewUpload {
    pub(crate) snapshot: NewSnapshot,
    /// Keeps chunks as the caller packed them.
    pub(crate) keep_packed: bool,
}

impl Service {
    /// Begins an upload. Returns its id.
    pub(crate) async fn begin_upload(&self, caller: &Caller, new: NewUpload) -> Result<String> {
        let name = new.snapshot.name.clone();
        let on = [Resource::Snapshot(&name)];
        let sight = self.sight(caller);
        self.pass(caller, Action::BeginUpload, &on, async {
            let snapshot = NewSnapshot {
                owner: sight.account()?,
                ..new.snapshot
            };
            let uploads = &self.0.parts.uploads;
            uploads.make_room(caller.holder())?;
            let size_bytes = snapshot.size_bytes;
            let mut ingest = self.store().begin_ingest(snapshot).await?;
            if new.keep_packed {
                ingest = ingest.keep_packed();
            }
            let id = uploads.open(ingest, caller.holder())?;
            debug!(upload = id, name, size_bytes, "upload begun");
            Ok(id)
        })
        .await
    }

    /// Returns the positions of the chunks that the store does not have.
    pub(crate) async fn find_missing(
        &self,
        caller: &Caller,
        upload: &str,
        ids: &[ChunkId],
    ) -> Result<Vec<u32>> {
        let on = [Resource::Upload(upload)];
        self.pass(caller, Action::FindMissing, &on, async {
            request::at_most("ids", "ids", ids.len(), limits::FIND_IDS_MAX as usize)?;
            let upload = self.0.parts.uploads.lease(upload)?;
            // A request without ids is no progress.
            let _work = (!ids.is_empty()).then(|| upload.work());
            Ok(upload.missing(ids).await?)
        })
        .await
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
        let (intake, uploads) = (&self.0.intake, &self.0.parts.uploads);
        let taken = async {
            match first? {
                Some(first) => {
                    let holder = caller.holder();
                    let taken = intake.take_chunks(uploads, holder, first, messages, moves);
                    taken.await
                }
                None => Ok(PutOutcome::default()),
            }
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
        self.pass(caller, Action::PutLeaves, &on, async {
            let upload = self.0.parts.uploads.lease(upload)?;
            let _work = (!leaves.is_empty()).then(|| upload.work());
            Ok(upload.put_leaves(leaves).await?)
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
    ) -> Result<SnapshotRecord> {
        let on = [Resource::Upload(upload)];
        let uploads = Arc::clone(&self.0.parts.uploads);
        let upload = upload.to_owned();
        let change = async move { Ok(uploads.remove(&upload)?.commit(root).await?) };
        let call = (caller, Action::CommitUpload);
        self.change(call, &on, change, |attempt, record: &SnapshotRecord| {
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
        })
        .await
    }

    /// Aborts an upload. Chunks that arrived stay.
    pub(crate) async fn abort_upload(&self, caller: &Caller, upload: &str) -> Result<()> {
        let on = [Resource::Upload(upload)];
        let uploads = Arc::clone(&self.0.parts.uploads);
        let upload = upload.to_owned();
        let change = async move {
            let ingest = uploads.remove(&upload)?;
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
