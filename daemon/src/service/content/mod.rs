//! Content on its way out.
//!
//! - `download`: a whole snapshot, as leaves and chunks.
//! - `read`: a range of a snapshot, as bytes and holes.

mod download;
mod read;

use std::sync::Arc;

pub(super) use self::download::message_sized;
use self::download::{Download, Downloaded};
pub(crate) use self::{
    download::{DownloadPart, SentChunk},
    read::{RangeContent, RangePart},
};
use super::{
    Service,
    error::Result,
    streams::{self, Items},
};
use crate::auth::{Action, Attempt, Caller, Resource};

impl Service {
    /// All of a snapshot: its record first, then leaves in ascending order, each before its chunks.
    /// `plain`: chunks are unpacked here.
    pub(crate) async fn download(
        &self,
        caller: &Caller,
        key: &str,
        plain: bool,
    ) -> Result<Items<DownloadPart>> {
        let on = [Resource::Snapshot(key)];
        let sight = self.sight(caller);
        let open = async {
            let key = sight.readable_snapshot("snapshot", key)?;
            let place = streams::place(&self.0.readers, caller).await?;
            let reader = self.store().open_snapshot(&key).await?;
            let download = Download {
                shown: self.described(&sight, reader.record().clone()),
                reader,
                plain,
                tasks: self.tasks().clone(),
                read_ahead: Arc::clone(&self.0.read_ahead),
            };
            Ok((download, place))
        };
        let (call, tell) = ((caller, Action::Download), Downloaded::tell);
        self.pass_stream(call, &on, open, Download::send, tell)
            .await
    }

    /// A range of a snapshot, in ascending order and without gaps. A length of 0 bytes means: to
    /// the end.
    pub(crate) async fn read_snapshot(
        &self,
        caller: &Caller,
        key: &str,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<Items<RangePart>> {
        let on = [Resource::Snapshot(key)];
        let sight = self.sight(caller);
        let open = async {
            let key = sight.readable_snapshot("snapshot", key)?;
            let place = streams::place(&self.0.readers, caller).await?;
            let reader = self.store().open_snapshot(&key).await?;
            let range = read::range(reader.size_bytes(), offset_bytes, length_bytes)?;
            Ok(((reader, range), place))
        };
        let work = |(reader, range), outlet| read::send(reader, range, outlet);
        let (call, tell) = ((caller, Action::ReadSnapshot), |it: &Attempt, (): &()| {
            it.served()
        });
        self.pass_stream(call, &on, open, work, tell).await
    }
}
