//! The catalog: records by id, and ids by name, for snapshots and volumes alike.

use std::collections::BTreeMap;

use rocksdb::{DBRawIterator, Direction, IteratorMode, WriteBatch};

use super::{
    Database, REMEDY, RocksMeta,
    apply::{add, take},
    undecodable, unreadable,
};
use crate::{
    Error, Result,
    format::{FormatError, IdKind, RecordId, catalog_log::Record, keys},
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
    /// The column family of the ids, by tag and name.
    const TAGS: &'static str;

    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self, FormatError>;

    /// The totals that it is part of, and with how much.
    fn counts<'t>(&self, totals: &'t mut Totals) -> Vec<(&'t mut u64, u64)>;

    /// What it adds to the sizes of snapshots.
    fn logical_bytes(&self) -> u64 {
        0
    }
}

impl Kept for SnapshotRecord {
    const RECORDS: &'static str = keys::SNAPSHOTS;
    const NAMES: &'static str = keys::NAMES;
    const TAGS: &'static str = keys::SNAPSHOT_TAGS;

    fn encode(&self) -> Vec<u8> {
        self.encode()
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::decode(bytes)
    }

    fn counts<'t>(&self, totals: &'t mut Totals) -> Vec<(&'t mut u64, u64)> {
        vec![(&mut totals.snapshots, 1)]
    }

    fn logical_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Kept for VolumeRecord {
    const RECORDS: &'static str = keys::VOLUMES;
    const NAMES: &'static str = keys::VOLUME_NAMES;
    const TAGS: &'static str = keys::VOLUME_TAGS;

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

/// Index entries of tags that are written at once where an index gets them that had none.
const TAGS_BATCH_BYTES: usize = 1 << 20;

/// The keys of a record's tags.
fn tag_keys(record: &impl Named) -> impl Iterator<Item = Vec<u8>> {
    let name = record.name().as_bytes();
    let tags = record.tags().iter();
    tags.map(move |(key, value)| [&*keys::tag_prefix(key, value), name].concat())
}

/// The first record from a name on that has a tag.
fn first_named<K: IdKind>(
    names: &mut DBRawIterator<'_>,
    tag: &[u8],
    from: &str,
) -> Result<Option<(String, RecordId<K>)>> {
    names.seek([tag, from.as_bytes()].concat());
    names.status().map_err(unreadable)?;
    let Some((key, id)) = names.item() else {
        return Ok(None);
    };
    let Some(name) = key.strip_prefix(tag) else {
        return Ok(None);
    };
    let name = str::from_utf8(name).map_err(|_| Error::Index {
        verb: "list its catalog",
        message: format!("{name:?} is no name; {REMEDY}"),
    })?;
    let id = keys::decode_named(id).map_err(undecodable)?;
    Ok(Some((name.to_owned(), id)))
}

impl Database {
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

    /// Records by name that have all of the tags.
    ///
    /// All tags are asked in turn for their first name from one on. If they name the same it is one; if not, the next can only be the
    /// last of what they named. So what a rare tag skips is skipped by all.
    fn tagged<R: Kept>(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<R>, Option<String>)> {
        // Both families as they were at one moment.
        let view = self.db.snapshot();
        let (family, records) = (self.family(R::TAGS)?, self.family(R::RECORDS)?);
        let mut tags: Vec<_> = tags
            .iter()
            .map(|(key, value)| (keys::tag_prefix(key, value), view.raw_iterator_cf(family)))
            .collect();
        let mut from = from.max(prefix).to_owned();
        let mut found = Vec::new();
        for _ in 0..steps.div_ceil(tags.len().max(1)) {
            let mut last: Option<(String, RecordId<R::Kind>)> = None;
            let mut is_one = true;
            for (tag, names) in &mut tags {
                let Some(named) = first_named(names, tag, &from)? else {
                    return Ok((found, None));
                };
                is_one &= last.as_ref().is_none_or(|(name, _)| *name == named.0);
                last = last.max(Some(named));
            }
            let Some((name, id)) = last.filter(|(name, _)| name.starts_with(prefix)) else {
                return Ok((found, None));
            };
            from = name;
            if is_one {
                let value = view.get_cf(records, id.as_bytes()).map_err(unreadable)?;
                let value = value.ok_or_else(|| Error::Index {
                    verb: "list its catalog",
                    message: format!("{id} has a tag and no record; {REMEDY}"),
                })?;
                found.push(<R as Kept>::decode(&value).map_err(undecodable)?);
                // The least that is behind the name.
                from.push('\0');
            }
        }
        Ok((found, Some(from)))
    }

    /// Fills the families of tags, in an index from before there were any. It is cut short without harm: it is done again then.
    pub(super) fn index_tags(&self) -> Result<()> {
        self.index_tags_of::<SnapshotRecord>()?;
        self.index_tags_of::<VolumeRecord>()?;
        let mut write = WriteBatch::default();
        write.put_cf(self.family(keys::META)?, keys::TAGS_INDEXED, []);
        self.put(write, true)
    }

    fn index_tags_of<R: Kept>(&self) -> Result<()> {
        let (records, tags) = (self.family(R::RECORDS)?, self.family(R::TAGS)?);
        let mut write = WriteBatch::default();
        for entry in self.db.iterator_cf(records, IteratorMode::Start) {
            let (_, value) = entry.map_err(unreadable)?;
            let record = <R as Kept>::decode(&value).map_err(undecodable)?;
            for key in tag_keys(&record) {
                write.put_cf(tags, key, record.id().as_bytes());
            }
            if write.size_in_bytes() >= TAGS_BATCH_BYTES {
                self.put(std::mem::take(&mut write), false)?;
            }
        }
        self.put(write, false)
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
        self.reading(|database| database.record(id))
    }

    fn snapshot_by_name(&self, name: &str) -> Result<Option<SnapshotRecord>> {
        self.reading(|database| database.record_by_name(name))
    }

    fn snapshots(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        self.reading(|database| database.records(after_name, prefix, limit))
    }

    fn tagged_snapshots(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<SnapshotRecord>, Option<String>)> {
        self.reading(|database| database.tagged(tags, from, prefix, steps))
    }

    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        self.reading(|database| database.record(id))
    }

    fn volume_by_name(&self, name: &str) -> Result<Option<VolumeRecord>> {
        self.reading(|database| database.record_by_name(name))
    }

    fn volumes(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<VolumeRecord>> {
        self.reading(|database| database.records(after_name, prefix, limit))
    }

    fn tagged_volumes(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<VolumeRecord>, Option<String>)> {
        self.reading(|database| database.tagged(tags, from, prefix, steps))
    }

    fn copies(&self) -> Result<Vec<CopyRecord>> {
        self.reading(|database| database.all(keys::COPIES, CopyRecord::decode))
    }

    fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        self.reading(|database| database.all(keys::REMOTES, RemoteRecord::decode))
    }

    fn catalog_sequence(&self) -> Result<u64> {
        Ok(self.known.read().catalog_sequence)
    }
}

/// The records of a kind as they are, and what those of one batch make of them: later ones see what earlier ones did.
struct Changes<'a, R: Kept> {
    meta: &'a Database,
    records: BTreeMap<RecordId<R::Kind>, Option<R>>,
    names: BTreeMap<String, Option<RecordId<R::Kind>>>,
    /// Keys of tags.
    tags: BTreeMap<Vec<u8>, Option<RecordId<R::Kind>>>,
}

impl<'a, R: Kept> Changes<'a, R> {
    fn new(meta: &'a Database) -> Self {
        Self {
            meta,
            records: BTreeMap::new(),
            names: BTreeMap::new(),
            tags: BTreeMap::new(),
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
        // It cannot overflow: not with so many records as 64 bits count.
        totals.logical_bytes = (totals.logical_bytes).saturating_add(record.logical_bytes().into());
        self.names
            .insert(record.name().to_owned(), Some(record.id()));
        let tags = tag_keys(&record).map(|key| (key, Some(record.id())));
        self.tags.extend(tags);
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
        take(&mut totals.logical_bytes, present.logical_bytes().into())?;
        self.names.insert(present.name().to_owned(), None);
        self.tags.extend(tag_keys(&present).map(|key| (key, None)));
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
        let (names, tags) = (self.meta.family(R::NAMES)?, self.meta.family(R::TAGS)?);
        let by_name = self.names.into_iter();
        let by_name = by_name.map(|(name, id)| (names, name.into_bytes(), id));
        let by_tag = self.tags.into_iter().map(|(key, id)| (tags, key, id));
        for (family, key, id) in by_name.chain(by_tag) {
            match id {
                Some(id) => write.put_cf(family, key, id.as_bytes()),
                None => write.delete_cf(family, key),
            }
        }
        Ok(())
    }
}
