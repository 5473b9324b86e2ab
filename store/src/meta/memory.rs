//! Index and catalog in memory: the model that [`RocksMeta`](super::RocksMeta) is compared with, and a quick stand-in for it in
//! tests. Nothing is kept up to date that can be worked out when it is asked for.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use varve_content::ChunkId;

use super::{Batch, Catalog, Index, Meta, NodeKey, PackState, SnapshotId, SnapshotRecord, Totals};
use crate::{
    Error, Result,
    format::{Location, PackId, catalog_log::Record},
};

/// Index and catalog that are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryMeta(Mutex<Model>);

#[derive(Debug, Clone, Default)]
struct Model {
    chunks: BTreeMap<ChunkId, Location>,
    nodes: BTreeMap<NodeKey, Location>,
    packs: BTreeMap<u64, PackState>,
    snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    catalog_sequence: u64,
}

impl Model {
    fn named(&self, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots.values().find(|record| record.name == name)
    }
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
        Ok(self.0.lock().named(name).cloned())
    }

    fn snapshots(
        &self,
        after_name: Option<&str>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        let model = self.0.lock();
        let wanted =
            |name: &str| name.starts_with(prefix) && after_name.is_none_or(|after| name > after);
        let mut records: Vec<_> = model
            .snapshots
            .values()
            .filter(|record| wanted(&record.name))
            .cloned()
            .collect();
        records.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        records.truncate(limit);
        Ok(records)
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
        for (_, record) in batch.catalog {
            match record {
                Record::PutSnapshot(record) => {
                    if let Some(owner) = model.named(&record.name)
                        && owner.id != record.id
                    {
                        return Err(Error::AlreadyExists {
                            name: record.name,
                            id: owner.id.to_string(),
                        });
                    }
                    model.snapshots.insert(record.id, record);
                }
                Record::DeleteSnapshot(id) => {
                    model.snapshots.remove(&id);
                }
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
                .map(|record| record.size_bytes)
                .sum(),
        })
    }

    fn is_healthy(&self) -> bool {
        true
    }
}
