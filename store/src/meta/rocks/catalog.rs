//! The catalog: records by id, and ids by name, for snapshots and volumes alike.

use std::collections::BTreeMap;

use rocksdb::{Direction, IteratorMode, WriteBatch};

use super::{
    REMEDY, RocksMeta,
    apply::{add, take},
    undecodable, unreadable,
};
use crate::{
    Error, Result,
    format::{FormatError, RecordId, catalog_log::Record, keys},
    meta::{
        Catalog, CopyRecord, Named, RemoteRecord, SnapshotId, SnapshotRecord, Totals, VolumeId,
        VolumeRecord,
    },
};

/// How records of one kind are kept.
trait Kept: Named {
    /// The column family of the records, by id.
    const RECORDS: &'static str;
    /// The column family of the ids, by name.
    const NAMES: &'static str;

    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self, FormatError>;

    /// The totals that it is part of, and with how much.
    fn counts<'t>(&self, totals: &'t mut Totals) -> Vec<(&'t mut u64, u64)>;
}

impl Kept for SnapshotRecord {
    const RECORDS: &'static str = keys::SNAPSHOTS;
    const NAMES: &'static str = keys::NAMES;

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(bytes)
    }

    fn counts<'t>(&self, totals: &'t mut Totals) -> Vec<(&'t mut u64, u64)> {
        vec![
            (&mut totals.snapshots, 1),
            (&mut totals.logical_bytes, self.size_bytes),
        ]
    }
}

impl Kept for VolumeRecord {
    const RECORDS: &'static str = keys::VOLUMES;
    const NAMES: &'static str = keys::VOLUME_NAMES;

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(bytes)
    }

    fn counts<'t>(&self, totals: &'t mut Totals) -> Vec<(&'t mut u64, u64)> {
        vec![(&mut totals.volumes, 1)]
    }
}

impl RocksMeta {
    fn record<R: Kept>(&self, id: RecordId<R::Kind>) -> Result<Option<R>> {
        let value = self.get(R::RECORDS, id.as_bytes())?;
        value
            .map(|value| <R as Kept>::decode(&value).map_err(undecodable))
            .transpose()
    }

    fn record_by_name<R: Kept>(&self, name: &str) -> Result<Option<R>> {
        let named = self.get(R::NAMES, name.as_bytes())?;
        let Some(id) = named
            .map(|value| keys::decode_named(&value).map_err(undecodable))
            .transpose()?
        else {
            return Ok(None);
        };
        // Deleted between the two questions, and the name perhaps given to another: as if asked a moment earlier.
        self.record(id)
    }

    fn records<R: Kept>(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<R>> {
        // Both families as they were at one moment.
        let view = self.db.snapshot();
        let after = after_name.unwrap_or_default().as_bytes();
        let start = after.max(prefix.as_bytes());
        let names = view.iterator_cf(
            self.family(R::NAMES)?,
            IteratorMode::From(start, Direction::Forward),
        );
        let mut ids: Vec<RecordId<R::Kind>> = Vec::new();
        for entry in names {
            let (name, id) = entry.map_err(unreadable)?;
            if ids.len() == limit || !name.starts_with(prefix.as_bytes()) {
                break;
            }
            if after_name.is_none() || *name > *after {
                ids.push(keys::decode_named(&id).map_err(undecodable)?);
            }
        }
        let family = self.family(R::RECORDS)?;
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            let value = view.get_cf(family, id.as_bytes()).map_err(unreadable)?;
            let value = value.ok_or_else(|| Error::Index {
                verb: "list its catalog",
                message: format!("{id} has a name and no record; {REMEDY}"),
            })?;
            records.push(<R as Kept>::decode(&value).map_err(undecodable)?);
        }
        Ok(records)
    }

    /// All records of a family that has only some.
    fn all<R>(
        &self,
        family: &'static str,
        decode: fn(&[u8]) -> std::result::Result<R, FormatError>,
    ) -> Result<Vec<R>> {
        let entries = self
            .db
            .iterator_cf(self.family(family)?, IteratorMode::Start);
        let records = entries.map(|entry| {
            let (_, value) = entry.map_err(unreadable)?;
            decode(&value).map_err(undecodable)
        });
        records.collect()
    }

    pub(super) fn add_catalog(
        &self,
        records: Vec<(u64, Record)>,
        write: &mut WriteBatch,
        totals: &mut Totals,
    ) -> Result<()> {
        let mut snapshots = Changes::<SnapshotRecord>::new(self);
        let mut volumes = Changes::<VolumeRecord>::new(self);
        let copies = self.family(keys::COPIES)?;
        let remotes = self.family(keys::REMOTES)?;
        let changes = records.into_iter().map(|(_, record)| record);
        for change in changes.flat_map(Record::into_changes) {
            match change {
                Record::PutSnapshot(record) => snapshots.put(record, totals)?,
                Record::DeleteSnapshot(id) => snapshots.delete(id, totals)?,
                Record::PutVolume(record) => volumes.put(record, totals)?,
                Record::DeleteVolume(id) => volumes.delete(id, totals)?,
                Record::PutCopy(record) => {
                    write.put_cf(copies, record.id.as_bytes(), record.encode());
                }
                Record::DeleteCopy(id) => write.delete_cf(copies, id.as_bytes()),
                Record::PutRemote(record) => write.put_cf(remotes, &record.name, record.encode()),
                Record::DeleteRemote(name) => write.delete_cf(remotes, name),
                Record::Several(_) => unreachable!("taken apart just above"),
            }
        }
        snapshots.write(write)?;
        volumes.write(write)
    }
}

impl Catalog for RocksMeta {
    fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>> {
        self.record(id)
    }

    fn snapshot_by_name(&self, name: &str) -> Result<Option<SnapshotRecord>> {
        self.record_by_name(name)
    }

    fn snapshots(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        self.records(after_name, prefix, limit)
    }

    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        self.record(id)
    }

    fn volume_by_name(&self, name: &str) -> Result<Option<VolumeRecord>> {
        self.record_by_name(name)
    }

    fn volumes(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<VolumeRecord>> {
        self.records(after_name, prefix, limit)
    }

    fn copies(&self) -> Result<Vec<CopyRecord>> {
        self.all(keys::COPIES, CopyRecord::decode)
    }

    fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        self.all(keys::REMOTES, RemoteRecord::decode)
    }

    fn catalog_sequence(&self) -> Result<u64> {
        Ok(self.known.read().catalog_sequence)
    }
}

/// The records of a kind as they are, and what those of one batch make of them: later ones see what earlier ones did.
struct Changes<'a, R: Kept> {
    meta: &'a RocksMeta,
    records: BTreeMap<RecordId<R::Kind>, Option<R>>,
    names: BTreeMap<String, Option<RecordId<R::Kind>>>,
}

impl<'a, R: Kept> Changes<'a, R> {
    fn new(meta: &'a RocksMeta) -> Self {
        Self {
            meta,
            records: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    fn owner(&self, name: &str) -> Result<Option<RecordId<R::Kind>>> {
        match self.names.get(name) {
            Some(changed) => Ok(*changed),
            None => {
                let owner = self.meta.record_by_name::<R>(name)?;
                Ok(owner.map(|record| record.id()))
            }
        }
    }

    fn put(&mut self, record: R, totals: &mut Totals) -> Result<()> {
        if let Some(owner) = self.owner(record.name())?
            && owner != record.id()
        {
            return Err(Error::AlreadyExists {
                what: R::WHAT,
                name: record.name().to_owned(),
                id: owner.to_string(),
            });
        }
        self.delete(record.id(), totals)?;
        for (total, amount) in record.counts(totals) {
            add(total, amount)?;
        }
        self.names
            .insert(record.name().to_owned(), Some(record.id()));
        self.records.insert(record.id(), Some(record));
        Ok(())
    }

    fn delete(&mut self, id: RecordId<R::Kind>, totals: &mut Totals) -> Result<()> {
        let present = match self.records.get(&id) {
            Some(changed) => changed.clone(),
            None => self.meta.record(id)?,
        };
        let Some(present) = present else {
            return Ok(());
        };
        for (total, amount) in present.counts(totals) {
            take(total, amount)?;
        }
        self.names.insert(present.name().to_owned(), None);
        self.records.insert(id, None);
        Ok(())
    }

    fn write(self, write: &mut WriteBatch) -> Result<()> {
        let records = self.meta.family(R::RECORDS)?;
        for (id, record) in self.records {
            match record {
                Some(record) => write.put_cf(records, id.as_bytes(), Kept::encode(&record)),
                None => write.delete_cf(records, id.as_bytes()),
            }
        }
        let names = self.meta.family(R::NAMES)?;
        for (name, id) in self.names {
            match id {
                Some(id) => write.put_cf(names, name, id.as_bytes()),
                None => write.delete_cf(names, name),
            }
        }
        Ok(())
    }
}
