//! Clones: volumes that begin with the content of a snapshot, or of another volume at one instant.
//!
//! A clone of a snapshot, or of a volume with an empty journal, is a record and no more: both share
//! the root. What a volume's journal holds is taken into the store first, which takes time in
//! proportion to it.

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
    meta::{self, Meta, Named, VolumeId, VolumeRecord},
};

/// The prefix of a key that names a snapshot, and of one that names a volume.
const SNAPSHOT: &str = "snapshot/";
const VOLUME: &str = "volume/";

/// A clone to be made.
#[derive(Debug, Clone, Default)]
pub struct NewClone {
    /// A snapshot or a volume: an id, a name that only one of them has, or a name with the prefix
    /// `snapshot/` or `volume/`.
    pub source: String,
    /// The new volume's name.
    pub name: String,
    /// Its size, a multiple of 512 bytes and not less than the source's; `None`: as the source's.
    pub size_bytes: Option<u64>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

enum Source {
    Snapshot(SnapshotRecord),
    Volume(VolumeRecord),
}

impl Volumes {
    /// Makes a volume, detached, with the content of a snapshot, or of another volume now.
    pub(crate) async fn clone_volume(self: &Arc<Self>, new: NewClone) -> Result<VolumeRecord> {
        meta::check_name("volume", &new.name)?;
        meta::check_tags("volume", &new.tags)?;
        let origin = match self.clone_source(&new.source).await? {
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
                    match VolumeRecord::by_name(meta, &record.name)? {
                        Some(taken) => Err(taken.name_taken_error()),
                        None => Ok(()),
                    }
                };
                self.engine.meta(Priority::Read, check).await?;
                let volume = self.open_volume(&record.id.to_string()).await?;
                self.content_now(&volume).await?
            }
        };
        let (volume, id) = (new.as_volume(), VolumeId::random()?);
        let pin = origin.pin.clone();
        self.engine
            .commit
            .create(pin, move |meta| {
                volume.into_record_of(id, meta, Some(origin))
            })
            .await
    }

    async fn clone_source(&self, source: &str) -> Result<Source> {
        if let Some(name) = source.strip_prefix(SNAPSHOT) {
            return self.snapshot(name).await.map(Source::Snapshot);
        }
        if let Some(name) = source.strip_prefix(VOLUME) {
            return self.volume(name).await.map(Source::Volume);
        }
        let snapshot = found(self.snapshot(source).await)?;
        let volume = found(self.volume(source).await)?;
        match (snapshot, volume) {
            (Some(snapshot), None) => Ok(Source::Snapshot(snapshot)),
            (None, Some(volume)) => Ok(Source::Volume(volume)),
            (None, None) => Err(Error::NotFound {
                what: "snapshot or volume",
                name: source.to_owned(),
            }),
            (Some(_), Some(_)) => Err(Error::Invalid(format!(
                "there is a snapshot {source:?} and a volume {source:?}: \
                 write {SNAPSHOT}{source} or {VOLUME}{source}"
            ))),
        }
    }

    /// Takes what a volume holds at this instant into the store.
    pub(super) async fn content_now(&self, volume: &Volume) -> Result<Origin> {
        let inner = volume.inner();
        let cutting = inner.checkpoints.cutting.lock().await;
        // The record is looked up after that: its base is the volume's content, or equal to it.
        let is_base = inner.layers.read().is_base();
        let record = self.volume(&inner.record.id.to_string()).await?;
        let (record, pin) = self.engine.pin_named(record, |it| Ok(it.base)).await?;
        let at_instant = Origin {
            owner: format!("volume {:?}", record.name),
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
