//! Index and catalog in memory: the model that [`RocksMeta`](super::RocksMeta) is compared with, and a quick stand-in for it in
//! tests. Nothing is kept up to date that can be worked out when it is asked for.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use varve_content::ChunkId;

use super::{
    Batch, Catalog, CopyId, CopyRecord, Index, Meta, Named, NodeKey, PackState, RemoteRecord,
    SnapshotId, SnapshotRecord, Totals, VolumeId, VolumeRecord,
};
use crate::{
    Result,
    format::{Location, PackId, RecordId, catalog_log::Record},
};

/// Index and catalog that are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryMeta(Mutex<Model>);

#[derive(Debug, Clone, Default)]
struct Model {
    chunks: BTreeMap<ChunkId, Location>,
    nodes: BTreeMap<NodeKey, Location>,
    packs: BTreeMap<u64, PackState>,
    snapshots: Records<SnapshotRecord>,
    volumes: Records<VolumeRecord>,
    copies: BTreeMap<CopyId, CopyRecord>,
    remotes: BTreeMap<String, RemoteRecord>,
    catalog_sequence: u64,
}

type Records<R> = BTreeMap<RecordId<<R as Named>::Kind>, R>;

fn named<'a, R: Named>(records: &'a Records<R>, name: &str) -> Option<&'a R> {
    records.values().find(|record| record.name() == name)
}

fn page<R: Named>(
    records: &Records<R>,
    after_name: Option<&str>,
    prefix: &str,
    limit: usize,
) -> Vec<R> {
    let wanted =
        |name: &str| name.starts_with(prefix) && after_name.is_none_or(|after| name > after);
    let mut found: Vec<_> = records
        .values()
        .filter(|record| wanted(record.name()))
        .cloned()
        .collect();
    found.sort_unstable_by(|a, b| a.name().cmp(b.name()));
    found.truncate(limit);
    found
}

fn tagged<R: Named>(
    records: &Records<R>,
    tags: &BTreeMap<String, String>,
    from: &str,
    prefix: &str,
    steps: usize,
) -> (Vec<R>, Option<String>) {
    let mut found = page(records, None, prefix, usize::MAX);
    let has = |record: &R, (key, value): (&String, &String)| record.tags().get(key) == Some(value);
    found.retain(|record| record.name() >= from && tags.iter().all(|tag| has(record, tag)));
    let goes_on = found.get(steps).map(|next| next.name().to_owned());
    found.truncate(steps);
    (found, goes_on)
}

fn put<R: Named>(records: &mut Records<R>, record: R) -> Result<()> {
    if let Some(owner) = named(records, record.name())
        && owner.id() != record.id()
    {
        return Err(owner.name_taken_error());
    }
    records.insert(record.id(), record);
    Ok(())
}

impl Index for MemoryMeta {
    fn chunks(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let model = self.0.lock();
        Ok(ids.iter().map(|id| model.chunks.get(id).copied()).collect())
    }

    fn nodes(&self, keys: &[NodeKey]) -> Result<Vec<Option<Location>>> {
        let model = self.0.lock();
        Ok(keys
            .iter()
            .map(|key| model.nodes.get(key).copied())
            .collect())
    }

    fn pack_state(&self, pack: PackId) -> Result<Option<PackState>> {
        let state = self.0.lock().packs.get(&pack.number).copied();
        Ok(state.filter(|state| state.pack == pack))
    }

    fn pack_states(&self) -> Result<Vec<PackState>> {
        Ok(self.0.lock().packs.values().copied().collect())
    }
}

impl Catalog for MemoryMeta {
    fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>> {
        Ok(self.0.lock().snapshots.get(&id).cloned())
    }

    fn snapshot_by_name(&self, name: &str) -> Result<Option<SnapshotRecord>> {
        Ok(named(&self.0.lock().snapshots, name).cloned())
    }

    fn snapshots(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        Ok(page(&self.0.lock().snapshots, after_name, prefix, limit))
    }

    fn tagged_snapshots(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<SnapshotRecord>, Option<String>)> {
        Ok(tagged(&self.0.lock().snapshots, tags, from, prefix, steps))
    }

    fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        Ok(self.0.lock().volumes.get(&id).cloned())
    }

    fn volume_by_name(&self, name: &str) -> Result<Option<VolumeRecord>> {
        Ok(named(&self.0.lock().volumes, name).cloned())
    }

    fn volumes(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<VolumeRecord>> {
        Ok(page(&self.0.lock().volumes, after_name, prefix, limit))
    }

    fn tagged_volumes(
        &self,
        tags: &BTreeMap<String, String>,
        from: &str,
        prefix: &str,
        steps: usize,
    ) -> Result<(Vec<VolumeRecord>, Option<String>)> {
        Ok(tagged(&self.0.lock().volumes, tags, from, prefix, steps))
    }

    fn copies(&self) -> Result<Vec<CopyRecord>> {
        Ok(self.0.lock().copies.values().cloned().collect())
    }

    fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        Ok(self.0.lock().remotes.values().cloned().collect())
    }

    fn catalog_sequence(&self) -> Result<u64> {
        Ok(self.0.lock().catalog_sequence)
    }
}

impl Meta for MemoryMeta {
    fn apply(&self, batch: Batch, _sync: bool) -> Result<()> {
        let mut current = self.0.lock();
        let mut model = current.clone();
        model.catalog_sequence = batch.sequence_after(model.catalog_sequence)?;
        model.chunks.extend(batch.chunks);
        model.nodes.extend(batch.nodes);
        model.packs.extend(
            batch
                .packs
                .into_iter()
                .map(|(pack, state)| (pack.number, state)),
        );
        let changes = batch.catalog.into_iter().map(|(_, record)| record);
        for change in changes.flat_map(Record::into_changes) {
            match change {
                Record::PutSnapshot(record) => put(&mut model.snapshots, record)?,
                Record::DeleteSnapshot(id) => drop(model.snapshots.remove(&id)),
                Record::PutVolume(record) => put(&mut model.volumes, record)?,
                Record::DeleteVolume(id) => drop(model.volumes.remove(&id)),
                Record::PutCopy(record) => drop(model.copies.insert(record.id, record)),
                Record::DeleteCopy(id) => drop(model.copies.remove(&id)),
                Record::PutRemote(record) => {
                    drop(model.remotes.insert(record.name.clone(), record));
                }
                Record::DeleteRemote(name) => drop(model.remotes.remove(&name)),
                Record::Several(_) => unreachable!("taken apart just above"),
            }
        }
        *current = model;
        Ok(())
    }

    fn totals(&self) -> Result<Totals> {
        let model = self.0.lock();
        let locations = || model.chunks.values().chain(model.nodes.values());
        Ok(Totals {
            chunks: model.chunks.len() as u64,
            chunk_bytes: model
                .chunks
                .values()
                .map(|location| u64::from(location.payload.plain_bytes))
                .sum(),
            nodes: model.nodes.len() as u64,
            stored_bytes: locations()
                .map(|location| location.payload.record_bytes())
                .sum(),
            packs: model.packs.len() as u64,
            snapshots: model.snapshots.len() as u64,
            logical_bytes: model
                .snapshots
                .values()
                .map(|record| u128::from(record.size_bytes))
                .sum(),
            volumes: model.volumes.len() as u64,
        })
    }

    fn is_healthy(&self) -> bool {
        true
    }
}
