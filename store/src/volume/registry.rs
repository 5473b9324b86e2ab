//! The open volumes: each once, because a journal has one writer.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::{
    Volumes,
    journal::{JournalReport, journal_bytes},
    records,
    volume::{OpenVolume, Volume},
};
use crate::{
    Error, Result,
    io::offload,
    limits,
    meta::{Key, VolumeId, VolumeKey, VolumeRecord},
};

/// The open volumes of a store.
#[derive(Debug, Default)]
pub(crate) struct OpenVolumes(Mutex<HashMap<VolumeId, Arc<Slot>>>);

#[derive(Debug, Default)]
struct Slot {
    /// Held while the volume is being opened, which takes time for a long journal. It does not
    /// block other volumes.
    handle: Arc<AsyncMutex<Weak<OpenVolume>>>,
    /// Held by the task that writes the journal until all of it is durable.
    writing: Arc<AsyncMutex<()>>,
}

impl Slot {
    /// Returns true if the volume is neither open nor being opened.
    fn is_free(slot: &Arc<Self>) -> bool {
        let unused = |handle: &Weak<OpenVolume>| handle.strong_count() == 0;
        Arc::strong_count(slot) == 1
            && slot.handle.try_lock().is_ok_and(|handle| unused(&handle))
            && slot.writing.try_lock().is_ok()
    }
}

impl OpenVolumes {
    fn slot(&self, id: VolumeId) -> Arc<Slot> {
        let mut slots = self.0.lock();
        slots.retain(|_, slot| !Slot::is_free(slot));
        Arc::clone(slots.entry(id).or_default())
    }

    /// Keeps others from opening a volume.
    pub(super) async fn opening(&self, id: VolumeId) -> Opening {
        let slot = self.slot(id);
        let handle = Arc::clone(&slot.handle).lock_owned().await;
        Opening { handle, slot }
    }

    /// The volume with the largest map, of those without a checkpoint under way.
    pub(super) fn largest_map(&self) -> Option<Volume> {
        let slots: Vec<_> = self.0.lock().values().cloned().collect();
        let open = slots.iter().filter_map(|slot| {
            let handle = slot.handle.try_lock().ok()?.upgrade()?;
            Some(Volume(handle))
        });
        open.filter(|volume| !volume.inner().checkpoints.is_under_way())
            .max_by_key(Volume::map_bytes)
            .filter(|volume| volume.map_bytes() > 0)
    }

    /// The volume, if it is open.
    pub(super) fn get(&self, id: VolumeId) -> Option<Volume> {
        let slot = self.0.lock().get(&id).cloned()?;
        let handle = slot.handle.try_lock().ok()?.upgrade()?;
        Some(Volume(handle))
    }
}

/// The right to open a volume.
#[derive(Debug)]
pub(super) struct Opening {
    handle: OwnedMutexGuard<Weak<OpenVolume>>,
    slot: Arc<Slot>,
}

impl Opening {
    /// The volume, if it is open.
    pub(super) fn volume(&self) -> Option<Volume> {
        self.handle.upgrade().map(Volume)
    }

    async fn open(mut self, volumes: Arc<Volumes>, id: VolumeId) -> Result<Volume> {
        if let Some(volume) = self.volume() {
            return Ok(volume);
        }
        // The task of an earlier opening may still be writing what was in its queue.
        let writing = Arc::clone(&self.slot.writing).lock_owned().await;
        // Its checkpoints may have changed the record.
        let record = volumes.engine.find(Key::Id(id)).await?;
        let volume = Volume::open(volumes, record, writing).await?;
        *self.handle = Arc::downgrade(&volume.0);
        Ok(volume)
    }
}

/// The state of a volume beside its record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Bytes that its journal takes on disk.
    pub journal_bytes: u64,
    /// Limit of the journal in bytes.
    pub journal_bytes_max: u64,
    /// Approximate memory of the journal's map, in bytes; 0 while the volume is not open.
    pub map_bytes: u64,
    /// The content of its journal when the volume was opened; `None` while it is not open.
    pub found: Option<JournalReport>,
}

impl Volumes {
    /// Opens a volume, or gives the one that is open already. Its journal is read first, if there
    /// is one.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when the journal is, in a place that was durable.
    pub(crate) async fn open_volume(self: &Arc<Self>, key: &VolumeKey) -> Result<Volume> {
        let id = self.volume(key).await?.id;
        let opening = self.open.opening(id).await;
        if let Some(volume) = opening.volume() {
            return Ok(volume);
        }
        // To its end: a sync that fails must be seen, and a caller that asks again finds the
        // journal read.
        let (commit, volumes) = (Arc::clone(&self.engine.commit), Arc::clone(self));
        commit.to_the_end(move |_| opening.open(volumes, id)).await
    }

    /// Lets a volume grow, attached or not; what it grows by reads as zeros. It does not shrink.
    pub(crate) async fn resize_volume(
        &self,
        key: &VolumeKey,
        size_bytes: u64,
    ) -> Result<VolumeRecord> {
        let change = move |record: VolumeRecord| {
            records::check_size(format_args!("volume {:?}", record.label()), size_bytes)?;
            if size_bytes < record.size_bytes {
                return Err(Error::Invalid(format!(
                    "volume {:?} has {} bytes, more than {size_bytes}: volumes only grow",
                    record.label(),
                    record.size_bytes
                )));
            }
            Ok(VolumeRecord {
                size_bytes,
                ..record
            })
        };
        let id = self.volume(key).await?.id;
        // The volume cannot be opened meanwhile with the old record.
        let opening = self.open.opening(id).await;
        let resized = self.engine.commit.update(id, change).await?;
        if let Some(volume) = opening.volume() {
            // Before anything is written behind the old end.
            volume.inner().record_owner().await?;
            volume.grow(resized.size_bytes);
        }
        Ok(resized)
    }

    /// The state of a volume beside its record.
    pub(crate) async fn volume_status(&self, key: &VolumeKey) -> Result<VolumeStatus> {
        let record = self.volume(key).await?;
        let engine = &self.engine;
        let status = VolumeStatus {
            journal_bytes_max: engine.options.journal_bytes_max,
            ..VolumeStatus::default()
        };
        match self.open.get(record.id) {
            Some(volume) => Ok(VolumeStatus {
                journal_bytes: volume.journal_bytes(),
                map_bytes: volume.map_bytes(),
                found: Some(volume.journal_report().clone()),
                ..status
            }),
            None => {
                let engine = Arc::clone(engine);
                let look = move || {
                    let (disk, data_dir) = (&*engine.disk, &engine.options.data_dir);
                    journal_bytes(disk, data_dir, record.id, record.journal_from)
                };
                Ok(VolumeStatus {
                    journal_bytes: offload(look).await??,
                    ..status
                })
            }
        }
    }

    /// Makes durable what was written to volumes, and closes them.
    pub(crate) async fn close_all(&self) -> Result<()> {
        let slots: Vec<_> = self.open.0.lock().values().cloned().collect();
        let closes = stream::iter(slots).map(|slot| async move {
            let handle = slot.handle.lock().await.upgrade();
            if let Some(handle) = handle {
                return Volume(handle).close().await;
            }
            // The last handle is gone, and its task may still be making writes durable.
            drop(slot.writing.lock().await);
            self.engine.commit.writable()
        });
        // Side by side, so that the ends of many journals are recorded together.
        let closes = closes.buffer_unordered(limits::JOURNAL_CLOSES);
        closes
            .fold(Ok(()), async |all, closed| Result::and(all, closed))
            .await
    }
}
