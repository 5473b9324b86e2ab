//! Checkpoints of idle journals.
//!
//! A journal is read whenever its volume is opened, and takes space that no other volume can use.
//! So the journal of a detached guest or of a killed process is checkpointed, whatever its size.
//! The idle journal of an open volume is checkpointed only if it is large: otherwise a guest that
//! writes a block now and then would cause a change of the catalog each time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    Error, ListPlace, ListQuery, Result,
    io::offload,
    limits,
    meta::{AccountId, Key, VolumeId, VolumeRecord},
    volume::{Volumes, journal::last_journal_file, volume::Volume},
};

/// Journals of closed volumes that could not be emptied, with their last files. They are tried
/// again when they have grown.
pub(crate) type Tried = HashMap<VolumeId, u64>;

impl Volumes {
    /// Takes idle journals into the store, as long as it is polled and the store is open.
    pub(crate) async fn empty_idle_journals(self: &Arc<Self>) {
        let mut tried = Tried::new();
        loop {
            tokio::time::sleep(limits::JOURNAL_IDLE).await;
            match self.empty_journals(limits::JOURNAL_IDLE, &mut tried).await {
                Ok(()) => {}
                Err(Error::Closing) => return,
                Err(error) => tracing::warn!(%error, "idle journals are not checkpointed"),
            }
        }
    }

    /// Goes through all volumes once, one after the other.
    pub(crate) async fn empty_journals(
        self: &Arc<Self>,
        idle: Duration,
        tried: &mut Tried,
    ) -> Result<()> {
        let mut after = None;
        loop {
            let query = ListQuery {
                after: after.take(),
                limit: limits::PAGE_MAX,
                ..ListQuery::default()
            };
            let records: Vec<VolumeRecord> = self.engine.list(query).await?;
            let Some(last) = records.last() else {
                return Ok(());
            };
            after = Some(ListPlace::of(last));
            for record in records {
                self.engine.commit.writable()?;
                if self.engine.commit.is_closing() {
                    return Err(Error::Closing);
                }
                let name = record.label().into_owned();
                match self.empty_journal(record, idle, tried).await {
                    Ok(()) => {}
                    Err(Error::Closing) => return Err(Error::Closing),
                    // It was deleted meanwhile.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => {
                        tracing::warn!(volume = name, %error, "its idle journal was not \
                             checkpointed");
                    }
                }
            }
        }
    }

    /// Takes the journals of an account's volumes into the store, as far as possible. Returns true
    /// if there is nothing of what guests wrote before left in them. The journal of a closed volume
    /// that cannot be read is tried once, and counts for nothing: nobody writes to it.
    pub(crate) async fn take_in(
        self: &Arc<Self>,
        account: AccountId,
        tried: &mut Tried,
    ) -> Result<bool> {
        let (mut is_all, mut after) = (true, None);
        loop {
            let query = ListQuery {
                owner: Some(account),
                after: after.take(),
                limit: limits::PAGE_MAX,
                ..ListQuery::default()
            };
            let records: Vec<VolumeRecord> = self.engine.list(query).await?;
            let Some(last) = records.last() else {
                return Ok(is_all);
            };
            after = Some(ListPlace::of(last));
            for record in records {
                let name = record.label().into_owned();
                let open = self.open.get(record.id);
                let is_open = open.is_some();
                let taken = match open {
                    // To ask for it would try its pending snapshot again.
                    Some(volume) if volume.inner().checkpoints.is_stalled() => {
                        is_all = false;
                        continue;
                    }
                    Some(volume) => self.content_now(&volume).await.map(drop),
                    None => {
                        self.empty_journal(record, limits::JOURNAL_IDLE, tried)
                            .await
                    }
                };
                match taken {
                    Ok(()) | Err(Error::NotFound { .. }) => {}
                    Err(error) => {
                        is_all &= !is_open;
                        tracing::debug!(volume = name, %error, "its journal is not counted");
                    }
                }
            }
        }
    }

    async fn empty_journal(
        self: &Arc<Self>,
        record: VolumeRecord,
        idle: Duration,
        tried: &mut Tried,
    ) -> Result<()> {
        let id = record.id;
        if let Some(volume) = self.open.get(id) {
            tried.remove(&id);
            if volume.rests(idle) && volume.journal_bytes() >= limits::JOURNAL_IDLE_BYTES {
                self.content_now(&volume).await?;
                tracing::debug!(
                    volume = &*record.label(),
                    "an idle journal was checkpointed"
                );
            }
            return Ok(());
        }
        let engine = Arc::clone(&self.engine);
        let last_file = move || {
            let (disk, data_dir) = (&*engine.disk, &engine.options.data_dir);
            last_journal_file(disk, data_dir, id, record.journal_from)
        };
        let Some(last) = offload(last_file).await?? else {
            tried.remove(&id);
            return Ok(());
        };
        if tried.get(&id) == Some(&last) {
            return Ok(());
        }
        let emptied = async {
            let volume = self.open_volume(&Key::Id(id)).await?;
            self.content_now(&volume).await?;
            Ok(volume)
        };
        let volume = emptied.await.inspect_err(|_: &Error| {
            tried.insert(id, last);
        })?;
        let name = volume.record().label();
        tracing::info!(
            volume = %name,
            "the remaining journal was checkpointed"
        );
        Ok(())
    }
}

impl Volume {
    /// Returns true if nothing was written for this long.
    fn rests(&self, idle: Duration) -> bool {
        self.inner().journal.begun_at().elapsed() >= idle
    }
}
