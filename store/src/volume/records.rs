//! Volumes in the catalog: create, find, attach, detach, delete.

use std::{collections::BTreeMap, fmt, sync::Arc};

use varve_content::RootId;

use super::{Volumes, journal::remove_journal};
use crate::{
    Error, Result,
    engine::RootPin,
    format::{keys::Holdings, volume::SECTOR_BYTES},
    io::offload,
    limits,
    meta::{
        self, AccountId, Lookup as _, Meta, SnapshotId, SnapshotKey, SnapshotRecord, VolumeId,
        VolumeKey, VolumeRecord,
    },
};

/// The settings of a new volume.
#[derive(Debug, Clone, Default)]
pub struct NewVolume {
    /// The account that it will belong to.
    pub owner: AccountId,
    /// Its name.
    pub name: String,
    /// Its size in bytes, a multiple of 512. `None`: the size of the snapshot.
    pub size_bytes: Option<u64>,
    /// The snapshot with its first content. `None`: zeros.
    pub from: Option<SnapshotKey>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl NewVolume {
    /// The record that it becomes.
    fn into_record(self, id: VolumeId, meta: &dyn Meta) -> Result<VolumeRecord> {
        let from = match &self.from {
            Some(key) => Some(Origin::of(&SnapshotRecord::find(meta, key)?)?),
            None => None,
        };
        self.into_record_of(id, meta, from)
    }

    /// The same, with the content that was found for it.
    pub(super) fn into_record_of(
        self,
        id: VolumeId,
        meta: &dyn Meta,
        from: Option<Origin>,
    ) -> Result<VolumeRecord> {
        if meta.totals()?.volumes >= limits::VOLUMES_MAX {
            return Err(Error::TooMany {
                what: "volumes",
                most: limits::VOLUMES_MAX,
            });
        }
        let more = Holdings {
            volumes: 1,
            ..Holdings::default()
        };
        meta::check_room(meta, self.owner, more)?;
        Ok(VolumeRecord {
            id,
            size_bytes: size(&self.name, self.size_bytes, from.as_ref())?,
            name: Some(self.name),
            owner: self.owner,
            description: String::new(),
            base: from.as_ref().and_then(|origin| origin.root),
            parent: from.as_ref().and_then(|origin| origin.parent),
            created_at_ns: meta::now_ns(),
            tags: self.tags,
            attached_at_ns: None,
            attachments: 0,
            journal_from: 1,
            pending: Vec::new(),
            promised_sequence: 0,
        })
    }
}

/// The content that a volume begins with.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// The snapshot or volume that it is of, for people.
    pub(super) owner: String,
    pub(super) size_bytes: u64,
    /// `None`: zeros.
    pub(super) root: Option<RootId>,
    /// Keeps that content until the volume's record names it. `None` where the catalog does not
    /// change meanwhile.
    pub(super) pin: Option<RootPin>,
    pub(super) parent: Option<SnapshotId>,
}

impl Origin {
    /// The content of a volume, as far as its size matters.
    pub(super) fn at_least(volume: &VolumeRecord) -> Self {
        Self {
            owner: format!("volume {:?}", volume.label()),
            size_bytes: volume.size_bytes,
            root: None,
            pin: None,
            parent: None,
        }
    }

    /// The content of a snapshot.
    pub(super) fn of(snapshot: &SnapshotRecord) -> Result<Self> {
        Ok(Self {
            owner: format!("snapshot {:?}", snapshot.label()),
            size_bytes: snapshot.size_bytes,
            root: Some(snapshot.completed()?.root),
            pin: None,
            parent: Some(snapshot.id),
        })
    }
}

/// The size of a new volume. A snapshot may end within a sector, a volume does not.
fn size(name: &str, wanted: Option<u64>, from: Option<&Origin>) -> Result<u64> {
    let invalid = |why: String| Err(Error::Invalid(format!("volume {name:?}: {why}")));
    let size_bytes = match (wanted, from) {
        (Some(wanted), _) => wanted,
        (None, Some(from)) => from.size_bytes.next_multiple_of(SECTOR_BYTES),
        (None, None) => return invalid("a size is needed without a snapshot".to_owned()),
    };
    check_size(format_args!("volume {name:?}"), size_bytes)?;
    if let Some(from) = from
        && size_bytes < from.size_bytes
    {
        return invalid(format!(
            "{size_bytes} bytes are too few for {}, which has {}",
            from.owner, from.size_bytes
        ));
    }
    Ok(size_bytes)
}

/// Checks that a volume may have a size. `of` is what asks for it, for the error.
pub(crate) fn check_size(of: fmt::Arguments<'_>, size_bytes: u64) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(format!("{of}: {why}")));
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return invalid(format!(
            "its size must be a multiple of {SECTOR_BYTES} bytes, more than 0; \
             {size_bytes} is not"
        ));
    }
    if size_bytes > limits::VOLUME_BYTES_MAX {
        return invalid(format!(
            "a volume has at most {} bytes, and this one would have {size_bytes}",
            limits::VOLUME_BYTES_MAX
        ));
    }
    Ok(())
}

impl Volumes {
    /// Makes a volume, detached.
    pub(crate) async fn create_volume(&self, new: NewVolume) -> Result<VolumeRecord> {
        meta::check_name("volume", &new.name)?;
        meta::check_tags("volume", &new.tags)?;
        if new.from.is_some() {
            self.engine.ledgers.of(new.owner).check()?;
        }
        let id = VolumeId::random()?;
        // The snapshot is looked up where nobody can delete it before the volume's record has its
        // root.
        self.engine
            .commit
            .create((), move |meta| new.clone().into_record(id, meta))
            .await
    }

    /// The volume of that name or id.
    pub(crate) async fn volume(&self, key: &VolumeKey) -> Result<VolumeRecord> {
        self.engine.find(key.clone()).await
    }

    /// Deletes a volume and its journal, unless it is attached or has pending snapshots. Its
    /// snapshots stay.
    pub(crate) async fn delete_volume(&self, key: &VolumeKey) -> Result<VolumeRecord> {
        let id = self.volume(key).await?.id;
        let key = key.clone();
        let may_go = move |record: &VolumeRecord| {
            key.check(record)?;
            detached(record)?;
            has_no_pending(record)
        };
        let engine = &self.engine;
        // The volume cannot be opened meanwhile.
        let opening = self.open.opening(id).await;
        let deleted = engine.commit.delete(id, may_go).await?;
        let removed = async {
            if let Some(volume) = opening.volume() {
                volume.close().await?;
            }
            let (engine, files) = (Arc::clone(engine), Arc::clone(&self.journal_files));
            let remove = move || {
                files.remove_spares_of(id);
                remove_journal(&*engine.disk, &engine.options.data_dir, id)
            };
            offload(remove).await?
        };
        if let Err(error) = removed.await {
            // The volume is gone. Its journal goes at the next start.
            tracing::warn!(volume = &*deleted.label(), %error, "the journal was not removed");
        }
        Ok(deleted)
    }

    /// Attaches a volume, and numbers the attachment.
    ///
    /// `force` takes over a volume that is attached already, as after its user died without
    /// detaching it. The number goes up with that, too, so the former user can be told apart.
    pub(crate) async fn attach_volume(&self, key: &VolumeKey, force: bool) -> Result<VolumeRecord> {
        let change = move |mut record: VolumeRecord| {
            if !force {
                detached(&record)?;
            }
            record.attachments = record.attachments.checked_add(1).ok_or(Error::TooMany {
                what: "attachments of a volume",
                most: u64::MAX,
            })?;
            record.attached_at_ns = Some(meta::now_ns());
            Ok(record)
        };
        self.change_volume(key, change).await
    }

    /// Detaches a volume. One that is not attached stays as it is, so a caller that lost the answer
    /// may ask again.
    pub(crate) async fn detach_volume(&self, key: &VolumeKey) -> Result<VolumeRecord> {
        let change = |mut record: VolumeRecord| {
            record.attached_at_ns = None;
            Ok(record)
        };
        self.change_volume(key, change).await
    }

    /// Gives a volume that is not attached, and has no pending snapshots, to another account.
    pub(crate) async fn give_volume(&self, id: VolumeId, to: AccountId) -> Result<VolumeRecord> {
        let give = move |meta: &dyn Meta| {
            let (changes, given) = meta::given::<VolumeRecord>(meta, &id, to)?;
            detached(&given)?;
            // They are snapshots of the account that took them.
            has_no_pending(&given)?;
            Ok((changes, given))
        };
        // It is not opened meanwhile with the ledger of the account before.
        let opening = self.open.opening(id).await;
        let given = self.engine.commit.change((), give).await?;
        if let Some(volume) = opening.volume() {
            *volume.inner().ledger.write() = self.engine.ledgers.of(to);
            volume.inner().record_owner().await?;
        }
        Ok(given)
    }

    pub(super) async fn change_volume<F>(&self, key: &VolumeKey, change: F) -> Result<VolumeRecord>
    where
        F: Fn(VolumeRecord) -> Result<VolumeRecord> + Send + 'static,
    {
        let id = self.volume(key).await?.id;
        let key = key.clone();
        let change = move |record: VolumeRecord| {
            key.check(&record)?;
            change(record)
        };
        let changed = self.engine.commit.update(id, change).await?;
        self.record_owner(id).await?;
        Ok(changed)
    }

    /// Writes the record of a volume beside its journal, if it is open.
    async fn record_owner(&self, id: VolumeId) -> Result<()> {
        match self.open.get(id) {
            Some(volume) => volume.inner().record_owner().await,
            None => Ok(()),
        }
    }
}

fn has_no_pending(record: &VolumeRecord) -> Result<()> {
    match record.pending.len() {
        0 => Ok(()),
        count => Err(Error::HasPending {
            name: record.label().into_owned(),
            count,
        }),
    }
}

fn detached(record: &VolumeRecord) -> Result<()> {
    match record.attached_at_ns {
        Some(_) => Err(Error::Attached {
            name: record.label().into_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::{
        format::{Change, catalog_log::Record},
        meta::{Batch, Catalog as _, MemoryMeta, Sharing, SnapshotContent, SnapshotState},
    };

    const ID: VolumeId = VolumeId::from_low_bits([7; 9]);

    fn put(meta: &MemoryMeta, record: Record) {
        let mut batch = Batch::default();
        batch.catalog(meta.catalog_sequence().unwrap() + 1, record);
        meta.apply(batch, true).unwrap();
    }

    fn meta_with_snapshot(size_bytes: u64) -> (MemoryMeta, SnapshotRecord) {
        let record = SnapshotRecord {
            id: SnapshotId::from_low_bits([1; 9]),
            name: Some("base".to_owned()),
            owner: AccountId::ADMINISTRATOR,
            description: String::new(),
            size_bytes,
            state: SnapshotState::Completed(SnapshotContent {
                root: RootId::from_bytes([3; 32]),
                data_bytes: 0,
                new_bytes: 0,
                stored_bytes: 0,
            }),
            created_at_ns: 1,
            tags: BTreeMap::new(),
            origin: None,
            parent: None,
            sharing: Sharing::default(),
        };
        let meta = MemoryMeta::default();
        put(&meta, Record::One(Change::put(&record)));
        (meta, record)
    }

    fn new(size_bytes: Option<u64>, from: Option<&str>) -> NewVolume {
        NewVolume {
            name: "v".to_owned(),
            size_bytes,
            from: from.map(SnapshotKey::from),
            ..NewVolume::default()
        }
    }

    #[test]
    fn a_volume_of_a_snapshot_is_as_large_or_larger() {
        let (meta, snapshot) = meta_with_snapshot(1000);
        for (wanted, size_bytes) in [(None, 1024), (Some(1024), 1024), (Some(4096), 4096)] {
            for key in ["base", &snapshot.id.to_string()] {
                let made = new(wanted, Some(key)).into_record(ID, &meta).unwrap();
                assert_eq!(made.size_bytes, size_bytes);
                assert_eq!(made.base, snapshot.root());
                assert_eq!(made.parent, Some(snapshot.id));
            }
        }
        let made = new(Some(512), None).into_record(ID, &meta).unwrap();
        assert_eq!((made.base, made.parent), (None, None));
        assert_eq!((made.attachments, made.journal_from), (0, 1));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let (meta, _) = meta_with_snapshot(1000);
        for (wanted, from, why) in [
            (None, None, "a size is needed"),
            (Some(0), None, "multiple of 512"),
            (Some(1000), Some("base"), "multiple of 512"),
            (Some(512), Some("base"), "are too few for snapshot \"base\""),
            (Some(limits::VOLUME_BYTES_MAX + 512), None, "at most"),
            (Some(u64::MAX), None, "multiple of 512"),
        ] {
            let error = new(wanted, from).into_record(ID, &meta).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error:?}");
            assert!(error.to_string().contains(why), "{error}");
        }
        let error = new(None, Some("none")).into_record(ID, &meta).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }

    #[test]
    fn volumes_are_bounded() {
        let meta = MemoryMeta::default();
        let mut batch = Batch::default();
        for number in 1..=limits::VOLUMES_MAX {
            let [.., a, b] = number.to_be_bytes();
            let id = VolumeId::from_low_bits([0, 0, 0, 0, 0, 0, 0, a, b]);
            let mut record = new(Some(512), None).into_record(id, &meta).unwrap();
            record.name = Some(format!("v{number}"));
            batch.catalog(number, Record::One(Change::put(&record)));
        }
        meta.apply(batch, true).unwrap();
        let error = new(Some(512), None).into_record(ID, &meta).unwrap_err();
        assert!(matches!(error, Error::TooMany { .. }), "{error:?}");
    }
}
