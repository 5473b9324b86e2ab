//! Volumes as NBD exports, while they are attached.
//!
//! A volume is one user's: each time it is attached, or taken over by force, it gets another number. Exports are of one
//! attachment, and refuse everything once there is another, or none.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};
use tracing::{info, warn};
use varve_store::{Error, ReadAhead, Store, Volume, VolumeId, VolumeRecord};

use super::{
    list,
    references::{self, References},
    refuse,
};
use varve_nbd::{Access, ChangedExtent, Export, ExportError, ExportInfo, Extent, Piece};

/// What stands in front of a volume's name.
pub(super) const PREFIX: &str = "volume/";

/// Volumes that are attached and were used since: they stay open until they are detached, so that their journals are read once.
#[derive(Debug)]
pub struct Attachments {
    store: Store,
    used: SyncMutex<HashMap<VolumeId, Arc<Place>>>,
}

/// Where the attachment of one volume is, if it was used. Held while the volume is opened, which takes as long as its journal
/// is long: others do not wait for that.
type Place = Mutex<Option<Arc<Attachment>>>;

/// One attachment of a volume.
#[derive(Debug)]
struct Attachment {
    number: u64,
    /// The volume, until the attachment ends: held by requests, waited for by the end.
    volume: RwLock<Option<Volume>>,
}

impl Attachment {
    /// Refuses all later requests, and waits for those under way, also of clients that have gone away. Gives the volume if this was the
    /// end of it.
    async fn end(&self) -> Option<Volume> {
        let volume = self.volume.write().await.take()?;
        volume.settle().await;
        Some(volume)
    }
}

impl Attachments {
    /// The attached volumes of this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            used: SyncMutex::default(),
        }
    }

    /// Exports of attached volumes whose name sorts after a name.
    pub(super) async fn list(
        &self,
        after_name: Option<String>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let page = |query| self.store.list_volumes(query);
        let export = |record: &VolumeRecord| {
            let is_attached = record.attached_at_ns.is_some();
            is_attached.then(|| info_of(format!("{PREFIX}{}", record.name), record))
        };
        let name = |record: &VolumeRecord| record.name.clone();
        let found = list(after_name, limit, page, export, name).await;
        found.map_err(|error| refuse(error, PREFIX, 0))
    }

    /// The export `name` of the volume `key`.
    pub(super) async fn open(&self, name: &str, key: &str) -> Result<VolumeExport, ExportError> {
        let refused = |error| refuse(error, name, 0);
        let (key, wanted) = split_attachment(key);
        let id = self.store.volume(key).await.map_err(refused)?.id;
        let place = self.place(id);
        let mut used = place.lock().await;
        // As it is now that nobody else changes who has it.
        let record = self.store.volume(&id.to_string()).await.map_err(refused)?;
        if record.attached_at_ns.is_none() {
            return Err(ExportError::Unavailable {
                message: format!("volume {:?} is not attached", record.name),
            });
        }
        if let Some(wanted) = wanted.filter(|wanted| *wanted != record.attachments) {
            let message = format!(
                "volume {:?} was attached again since: this is attachment {}, and not {wanted}",
                record.name, record.attachments
            );
            return Err(ExportError::Unavailable { message });
        }
        let known = used.as_ref().filter(|it| it.number == record.attachments);
        let attachment = match known {
            Some(attachment) => Arc::clone(attachment),
            None => {
                // First, so that the new one is not there before the end of the other if this is dropped half-way.
                if let Some(before) = &*used {
                    before.end().await;
                }
                let opened = self.store.open_volume(&id.to_string()).await;
                // Many clients do not show what they are told.
                let opened = opened.inspect_err(
                    |error| warn!(volume = record.name, %error, "the volume cannot be opened"),
                );
                let attachment = Arc::new(Attachment {
                    number: record.attachments,
                    volume: RwLock::new(Some(opened.map_err(refused)?)),
                });
                *used = Some(Arc::clone(&attachment));
                attachment
            }
        };
        Ok(VolumeExport {
            info: info_of(name.to_owned(), &record),
            references: References::new(self.store.clone()),
            ahead: ReadAhead::default(),
            attachment,
        })
    }

    /// Ends attachments of a volume up to this number: it was detached, or attached again by force. When this returns, nothing
    /// more is written through them, and what was written is durable.
    ///
    /// # Errors
    ///
    /// What was written could not be made durable.
    pub async fn end(&self, id: VolumeId, upto: u64) -> Result<(), Error> {
        let place = self.place(id);
        let mut used = place.lock().await;
        let Some(attachment) = used.as_ref().filter(|it| it.number <= upto) else {
            return Ok(());
        };
        let Some(volume) = attachment.end().await else {
            return Ok(());
        };
        info!(
            volume = volume.record().name,
            "its clients are refused from now on"
        );
        let flushed = volume.flush().await;
        *used = None;
        flushed
    }

    fn place(&self, id: VolumeId) -> Arc<Place> {
        let mut used = self.used.lock();
        // Those that nobody holds and that hold nothing.
        used.retain(|_, place| {
            Arc::strong_count(place) > 1 || !place.try_lock().is_ok_and(|used| used.is_none())
        });
        Arc::clone(used.entry(id).or_default())
    }
}

/// What is asked for, and the number of the attachment that it has to be of: `vol-...@7`.
fn split_attachment(key: &str) -> (&str, Option<u64>) {
    let split = key.rsplit_once('@').and_then(|(id, number)| {
        let number = number.parse().ok()?;
        // A name may have such an end as well.
        VolumeId::is_of_its_form(id).then_some((id, Some(number)))
    });
    split.unwrap_or((key, None))
}

fn info_of(name: String, record: &VolumeRecord) -> ExportInfo {
    ExportInfo {
        name,
        description: format!("volume {} of {} bytes", record.id, record.size_bytes),
        size_bytes: record.size_bytes,
        access: Access::Writable {
            // One journal takes the writes of all connections.
            flush_covers_all: true,
        },
    }
}

/// One volume, as long as it stays attached.
#[derive(Debug)]
pub struct VolumeExport {
    info: ExportInfo,
    attachment: Arc<Attachment>,
    references: References,
    ahead: ReadAhead,
}

impl VolumeExport {
    async fn request(&self) -> Result<RwLockReadGuard<'_, Volume>, ExportError> {
        let volume = &self.attachment.volume;
        let guard = match volume.try_read() {
            Ok(guard) => guard,
            Err(_) => volume.read().await,
        };
        RwLockReadGuard::try_map(guard, Option::as_ref).map_err(|_| ExportError::Detached {
            message: "the volume was detached, or attached elsewhere".to_owned(),
        })
    }

    fn refused(&self, offset: u64) -> impl FnOnce(Error) -> ExportError {
        move |error| refuse(error, &self.info.name, offset)
    }

    async fn finish(&self, volume: &Volume, durable: bool, offset: u64) -> Result<(), ExportError> {
        if durable {
            volume.flush().await.map_err(self.refused(offset))?;
        }
        Ok(())
    }
}

impl Export for VolumeExport {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<Vec<Piece>, ExportError> {
        let end = self.info.size_bytes;
        self.ahead.follow(offset, length_bytes.into(), end, |next| {
            let attachment = Arc::clone(&self.attachment);
            async move {
                if let Some(volume) = &*attachment.volume.read().await {
                    let length_bytes = usize::try_from(next.end - next.start).unwrap_or(usize::MAX);
                    volume.read_ahead(next.start, length_bytes).await;
                }
            }
        });
        let volume = self.request().await?;
        let pieces = volume
            .read(offset, length_bytes as usize)
            .await
            .map_err(self.refused(offset))?;
        Ok(super::pieces(pieces))
    }

    async fn extents(&self, offset: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        let volume = self.request().await?;
        let extents = volume
            .extents(offset, length_bytes)
            .await
            .map_err(self.refused(offset))?;
        Ok(super::extents(&extents))
    }

    async fn choose_references(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.references.choose(snapshots).await
    }

    async fn has_references(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.references.has(snapshots).await
    }

    async fn ancestors(&self, limit: usize) -> Result<Vec<String>, ExportError> {
        let id = self.request().await?.record().id;
        let parent = self.references.last_of(id).await?;
        self.references.ancestors(parent, limit).await
    }

    async fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> Result<Vec<ChangedExtent>, ExportError> {
        let since = self.references.get(reference)?;
        let volume = self.request().await?;
        let changes = volume.changes_since(since, offset, length_bytes);
        let changes = changes.await.map_err(self.refused(offset))?;
        Ok(references::changes(&changes))
    }

    async fn prefetch(&self, offset: u64, length_bytes: u32) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .prefetch(offset, length_bytes as usize)
            .await
            .map_err(self.refused(offset))
    }

    async fn write(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .write(offset, data)
            .await
            .map_err(self.refused(offset))?;
        self.finish(&volume, durable, offset).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        _may_punch_hole: bool,
        durable: bool,
    ) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .write_zeroes(offset, length_bytes)
            .await
            .map_err(self.refused(offset))?;
        self.finish(&volume, durable, offset).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, durable: bool) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .trim(offset, length_bytes)
            .await
            .map_err(self.refused(offset))?;
        self.finish(&volume, durable, offset).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume.flush().await.map_err(self.refused(0))
    }
}
