//! Clones: volumes that begin with the content of a snapshot, or of another volume at one instant.
//!
//! A clone of a snapshot, or of a volume with an empty journal, is only a record: both share the
//! root. The journal of a volume is checkpointed first, which takes time in proportion to its size.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::oneshot;

use super::{
    Volumes,
    checkpoint::{Job, Purpose},
    records::{NewVolume, Origin},
    volume::Volume,
};
use crate::{
    Error, Result, SnapshotRecord,
    engine::Priority,
    meta::{
        self, AccountId, Key, Lookup as _, Meta, SnapshotKey, VolumeId, VolumeKey, VolumeRecord,
    },
};

/// A clone to be made.
#[derive(Debug, Clone)]
pub struct NewClone {
    /// The source of its content.
    pub source: CloneSource,
    /// The account that the new volume will belong to.
    pub owner: AccountId,
    /// The new volume's name.
    pub name: String,
    /// Its size, a multiple of 512 bytes and not less than the source's; `None`: as the source's.
    pub size_bytes: Option<u64>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// The source of a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloneSource {
    /// A snapshot.
    Snapshot(SnapshotKey),
    /// A volume, as it is now.
    Volume(VolumeKey),
    /// The one of the two that exists: a user wrote an id or a name without its kind.
    Either {
        /// The text as the key of a snapshot.
        snapshot: SnapshotKey,
        /// The same text as the key of a volume.
        volume: VolumeKey,
    },
}

/// The record of a source.
enum Source {
    Snapshot(SnapshotRecord),
    Volume(VolumeRecord),
}

impl Volumes {
    /// Makes a volume, detached, with the content of a snapshot, or of another volume now.
    pub(crate) async fn clone_volume(self: &Arc<Self>, new: NewClone) -> Result<VolumeRecord> {
        meta::check_name("volume", &new.name)?;
        meta::check_tags("volume", &new.tags)?;
        self.engine.ledgers.of(new.owner).check()?;
        let (source, key) = self.clone_source(&new.source).await?;
        let origin = match source {
            Source::Snapshot(snapshot) => {
                let root_of = |snapshot: &SnapshotRecord| Ok(snapshot.completed()?.root);
                let (snapshot, pin) = self.engine.pin_root(snapshot, root_of).await?;
                Origin {
                    pin: Some(pin),
                    ..Origin::of(&snapshot)?
                }
            }
            Source::Volume(record) => {
                // Refused before anything is done.
                let volume = NewVolume {
                    size_bytes: Some(new.size_bytes.unwrap_or(record.size_bytes)),
                    ..new.as_volume()
                };
                let (id, least) = (VolumeId::random()?, Origin::at_least(&record));
                let check = move |meta: &dyn Meta| {
                    let record = volume.into_record_of(id, meta, Some(least))?;
                    match record.taken_by(meta)? {
                        Some(taken) => Err(taken.name_taken_error()),
                        None => Ok(()),
                    }
                };
                self.engine.meta(Priority::Read, check).await?;
                let volume = self.open_volume(&Key::Id(record.id)).await?;
                self.content_now(&volume).await?
            }
        };
        let (volume, id) = (new.as_volume(), VolumeId::random()?);
        let pin = origin.pin.clone();
        self.engine
            .commit
            .create(pin, move |meta| {
                // The source may have been given to another account meanwhile.
                if let Some((key, id)) = &key {
                    key.check(&VolumeRecord::find(meta, &Key::Id(*id))?)?;
                }
                volume
                    .clone()
                    .into_record_of(id, meta, Some(origin.clone()))
            })
            .await
    }

    /// The source, and for a volume its key and its id: what is cloned is its content of later.
    async fn clone_source(
        &self,
        source: &CloneSource,
    ) -> Result<(Source, Option<(VolumeKey, VolumeId)>)> {
        let of_volume = |key: &VolumeKey, record: VolumeRecord| {
            let key = Some((key.clone(), record.id));
            (Source::Volume(record), key)
        };
        let (snapshot_key, volume_key) = match source {
            CloneSource::Snapshot(key) => {
                let snapshot = self.snapshot(key).await?;
                return Ok((Source::Snapshot(snapshot), None));
            }
            CloneSource::Volume(key) => return Ok(of_volume(key, self.volume(key).await?)),
            CloneSource::Either { snapshot, volume } => (snapshot, volume),
        };
        let snapshot = found(self.snapshot(snapshot_key).await)?;
        let volume = found(self.volume(volume_key).await)?;
        match (snapshot, volume) {
            (Some(snapshot), None) => Ok((Source::Snapshot(snapshot), None)),
            (None, Some(volume)) => Ok(of_volume(volume_key, volume)),
            (None, None) => Err(Error::NotFound {
                what: "snapshot or volume",
                name: snapshot_key.to_string(),
            }),
            (Some(_), Some(_)) => {
                let (snapshot, volume) = (snapshot_key.to_string(), volume_key.to_string());
                Err(Error::Invalid(format!(
                    "there is a snapshot {snapshot:?} and a volume {volume:?}: \
                     write snapshot/{snapshot} or volume/{volume}"
                )))
            }
        }
    }

    /// Takes the current content of a volume into the store.
    pub(super) async fn content_now(&self, volume: &Volume) -> Result<Origin> {
        let inner = volume.inner();
        let cutting = inner.checkpoints.cutting.lock().await;
        // The record is looked up after that: its base is the volume's content, or equal to it.
        let is_base = inner.layers.read().is_base();
        let record = self.volume(&Key::Id(inner.record.id)).await?;
        let (record, pin) = self.engine.pin_named(record, |it| Ok(it.base)).await?;
        let at_instant = Origin {
            owner: format!("volume {:?}", record.label()),
            size_bytes: volume.size_bytes(),
            root: record.base,
            pin,
            parent: record.parent,
        };
        if is_base {
            return Ok(at_instant);
        }
        let cut = volume.cut().await?;
        let (reply, root) = oneshot::channel();
        volume.checkpoint_later(Job {
            cut,
            purpose: Purpose::Root(reply),
        });
        drop(cutting);
        let pin = root.await.map_err(|_| Error::Closing)??;
        Ok(Origin {
            size_bytes: cut.size_bytes,
            root: Some(pin.root()),
            pin: Some(pin),
            ..at_instant
        })
    }
}

impl NewClone {
    fn as_volume(&self) -> NewVolume {
        NewVolume {
            owner: self.owner,
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            from: None,
            tags: self.tags.clone(),
        }
    }
}

/// Takes a record that is not there for `None`.
fn found<R>(result: Result<R>) -> Result<Option<R>> {
    match result {
        Ok(record) => Ok(Some(record)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
