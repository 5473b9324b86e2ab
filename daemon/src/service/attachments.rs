//! Volumes that are attached and in use.
//!
//! A volume has one user at a time: each time it is attached, or taken over by force, it gets
//! another number. An [`AttachedVolume`] belongs to one attachment, and refuses every request once
//! that attachment has ended.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};
use tracing::{debug, warn};
use varve_store::{Error as StoreError, Store, Volume, VolumeId, VolumeKey, VolumeRecord};

use super::error::{Error, Result};

/// Volumes that were used since they were attached. They stay open until they are detached, so that
/// their journals are read once. Clones are handles to the same table.
#[derive(Debug, Clone)]
pub(super) struct Attachments {
    store: Store,
    used: Arc<SyncMutex<HashMap<VolumeId, Arc<Place>>>>,
}

/// The slot for the attachment of one volume; `None` until it is used. Locked while the volume is
/// opened, which takes longer the longer its journal is; other volumes do not wait for that.
type Place = Mutex<Option<Arc<Attachment>>>;

/// One attachment of a volume.
#[derive(Debug)]
struct Attachment {
    number: u64,
    /// The volume, until the attachment ends. Requests hold the lock; the end waits for them.
    volume: RwLock<Option<Volume>>,
}

impl Attachment {
    /// Refuses all later requests, and waits for those under way, even if their clients have gone
    /// away. Returns the volume if this call ended the attachment.
    async fn end(&self) -> Option<Volume> {
        let volume = self.volume.write().await.take()?;
        volume.settle().await;
        Some(volume)
    }
}

/// A volume for as long as it stays attached. Clones are handles to the same attachment.
#[derive(Debug, Clone)]
pub(crate) struct AttachedVolume {
    /// The record when the volume was opened.
    record: Arc<VolumeRecord>,
    attachment: Arc<Attachment>,
}

impl AttachedVolume {
    /// The volume's record when it was opened.
    pub(crate) fn record(&self) -> &VolumeRecord {
        &self.record
    }

    /// The volume for one request. The attachment does not end before the guard is dropped.
    ///
    /// # Errors
    ///
    /// The attachment has ended.
    pub(crate) async fn volume(&self) -> Result<RwLockReadGuard<'_, Volume>> {
        let volume = &self.attachment.volume;
        let guard = match volume.try_read() {
            Ok(guard) => guard,
            Err(_) => volume.read().await,
        };
        RwLockReadGuard::try_map(guard, Option::as_ref).map_err(|_| Error::Detached)
    }
}

impl Attachments {
    /// The attached volumes of this store.
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            used: Arc::default(),
        }
    }

    /// Opens a volume. Its attachment must have the number `wanted`, if there is one.
    ///
    /// # Errors
    ///
    /// The volume is not attached, or its attachment has another number; and errors of the store.
    pub(super) async fn open(&self, key: VolumeKey, wanted: Option<u64>) -> Result<AttachedVolume> {
        let id = match key {
            VolumeKey::Id(id) => id,
            // First, so that nobody waits for the volume of another account.
            VolumeKey::Owned { .. } | VolumeKey::Readable { .. } | VolumeKey::Name { .. } => {
                self.store.volume(&key).await?.id
            }
        };
        let place = self.place(id);
        let mut used = place.lock().await;
        // Read the record again: no attachment ends or begins while the place is locked.
        let key = match key {
            VolumeKey::Name { owner, .. } => VolumeKey::Owned { owner, id },
            key => key,
        };
        // The key also says whose it must be, in case it was given away meanwhile.
        let record = self.store.volume(&key).await?;
        if record.attached_at_ns.is_none() {
            let name = record.label().into_owned();
            return Err(Error::NotAttached { name });
        }
        if let Some(wanted) = wanted.filter(|wanted| *wanted != record.attachments) {
            return Err(Error::AttachedAgain {
                name: record.label().into_owned(),
                current: record.attachments,
                wanted,
            });
        }
        let known = used.as_ref().filter(|it| it.number == record.attachments);
        let attachment = match known {
            Some(attachment) => Arc::clone(attachment),
            None => {
                // End the old attachment first: if this future is dropped half-way, there is no
                // new attachment beside one that has not ended.
                if let Some(before) = &*used {
                    before.end().await;
                }
                let opened = self.store.open_volume(&VolumeKey::Id(id)).await;
                // Many clients do not show the error that they receive.
                let opened = opened.inspect_err(|error| {
                    let error = error.to_string();
                    warn!(
                        volume = &*record.label(),
                        error, "the volume cannot be opened"
                    );
                });
                let attachment = Arc::new(Attachment {
                    number: record.attachments,
                    volume: RwLock::new(Some(opened?)),
                });
                *used = Some(Arc::clone(&attachment));
                attachment
            }
        };
        Ok(AttachedVolume {
            record: Arc::new(record),
            attachment,
        })
    }

    /// Ends attachments of a volume up to this number, after it was detached, or attached again by
    /// force. Afterwards nothing more is written through them, and all their writes are durable.
    ///
    /// # Errors
    ///
    /// The writes could not be made durable.
    pub(super) async fn end(&self, id: VolumeId, upto: u64) -> Result<(), StoreError> {
        let place = self.place(id);
        let mut used = place.lock().await;
        let Some(attachment) = used.as_ref().filter(|it| it.number <= upto) else {
            return Ok(());
        };
        let Some(volume) = attachment.end().await else {
            return Ok(());
        };
        debug!(
            volume = &*volume.record().label(),
            "its clients are refused from now on"
        );
        let flushed = volume.flush().await;
        *used = None;
        flushed
    }

    fn place(&self, id: VolumeId) -> Arc<Place> {
        let mut used = self.used.lock();
        // Remove places that are empty and that nobody holds.
        used.retain(|_, place| {
            Arc::strong_count(place) > 1 || !place.try_lock().is_ok_and(|used| used.is_none())
        });
        Arc::clone(used.entry(id).or_default())
    }
}

/// Splits `vol-...@7` into the key and the number that the attachment must have.
pub(super) fn split_attachment(key: &str) -> (&str, Option<u64>) {
    let split = key.rsplit_once('@').and_then(|(id, number)| {
        let number = number.parse().ok()?;
        // The name of a volume may end in `@7`, too.
        VolumeId::is_of_its_form(id).then_some((id, Some(number)))
    });
    split.unwrap_or((key, None))
}
