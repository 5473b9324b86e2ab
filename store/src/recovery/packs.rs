//! Packs after a restart: their ends, and the place where writing continues.

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    path::PathBuf,
    sync::Arc,
};

use crate::{
    Damage, Error, Result,
    format::{PackId, PackKind},
    meta::{Batch, Meta, PackPhase, PackState},
    pack::{LocalPacks, LostPlaces, PackStage, PackStore, PackWriter, PlacedRecord, recover_tail},
    recovery::RecoveryReport,
};

/// The source of truth about unsealed packs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Believe {
    /// The index: up to where it knows a pack, everything was durable; behind, a tear is the end.
    /// It knows nothing of a pack of which not even the first flush was indexed: that may be all
    /// torn, but may also be a pack that an older index does not know of.
    Index,
    /// The packs themselves: the index is being rebuilt, and every record may have been promised.
    Packs,
}

/// The result of recovering the packs.
pub(super) struct Recovered {
    pub(super) chunks: PackWriter,
    pub(super) nodes: PackWriter,
    /// Records that the index has and the packs do not have.
    pub(super) lost: LostPlaces,
}

/// Indexes what the index does not know, and opens the writers of chunks and of nodes.
pub(super) async fn recover(
    packs: &Arc<LocalPacks>,
    meta: &dyn Meta,
    believe: Believe,
    report: &mut RecoveryReport,
) -> Result<Recovered> {
    let mut lost = LostPlaces::default();
    let mut known: HashMap<_, PackState> = meta
        .pack_states()?
        .into_iter()
        .map(|state| (state.pack, state))
        .collect();
    // The pack with the highest number may be gone, from the disk and from the index.
    packs.keep_numbers_above(meta.last_pack_number()?);
    remove_emptied(packs, meta, &mut known).await?;
    let present = packs.list()?;
    let are_there: HashSet<_> = present.iter().copied().collect();
    for pack in known.keys().filter(|pack| !are_there.contains(pack)) {
        let mut damage = Damage::missing(format!("pack {pack}"));
        "its file is missing, and the index has records in it".clone_into(&mut damage.problem);
        report.damage.push(damage);
        lost.add_pack(*pack);
    }

    if let Some(first) = present.first() {
        let synced = packs.sync_names().await;
        let path = path_of(packs, *first);
        synced.map_err(|source| Error::io("sync the directory of", &path, source))?;
    }
    let mut chunks = Vec::new();
    let mut nodes = Vec::new();
    let mut found_behind = Vec::new();
    for pack in present {
        let state = known.get(&pack);
        if let Some(state) = state.filter(|state| state.phase == PackPhase::Sealed) {
            let len_bytes = packs
                .len_bytes(pack)
                .await
                .map_err(|source| Error::io("read the length of", &path_of(packs, pack), source))?;
            if len_bytes < state.indexed_bytes {
                let why = format!(
                    "the pack ends here, it was sealed with records up to {}",
                    state.indexed_bytes
                );
                let damage = Damage::in_pack(pack, len_bytes, "records", why);
                report.damage.push(damage);
                lost.add_end(pack, len_bytes);
            }
            continue;
        }
        let promised_bytes = state.map_or(0, |state| state.indexed_bytes);
        let promise = match believe {
            Believe::Index => Some(promised_bytes),
            Believe::Packs => None,
        };
        make_durable(&**packs, pack).await?;
        let found = recover_tail(&**packs, pack, promise).await?;
        report.damage.extend(found.damage.iter().cloned());
        if found.is_foreign {
            // If the file gets its name back, no other pack has that number.
            packs.keep_numbers_above(found.names_number);
            if state.is_some() {
                lost.add_pack(pack);
            }
            continue;
        }
        lost.add_recovered(&found);
        if let Some(torn) = &found.torn {
            report.torn_packs.push(format!("{pack}: {torn}"));
        }
        // The undamaged records before it are in the index.
        let behind = found
            .records
            .iter()
            .filter(|record| record.location.offset_bytes >= promised_bytes);
        let behind: Vec<_> = behind.copied().collect();
        report.recovered_records += behind.len() as u64;
        if found.sealed {
            let state = PackState {
                pack,
                indexed_bytes: found.end_bytes,
                phase: PackPhase::Sealed,
            };
            index(meta, &behind, &[state], false)?;
            continue;
        }
        found_behind.push(behind);
        match pack.kind {
            PackKind::Chunks => chunks.push(found),
            PackKind::Nodes => nodes.push(found),
        }
    }
    let stage: Arc<dyn PackStage> = Arc::<LocalPacks>::clone(packs);
    let (chunks, chunk_states) =
        PackWriter::resume(Arc::clone(&stage), PackKind::Chunks, chunks).await?;
    let (nodes, node_states) = PackWriter::resume(stage, PackKind::Nodes, nodes).await?;
    // Only now are the ends of the packs synced that these are in.
    for records in &found_behind {
        index(meta, records, &[], false)?;
    }
    index(meta, &[], &[chunk_states, node_states].concat(), true)?;
    Ok(Recovered {
        chunks,
        nodes,
        lost,
    })
}

/// Removes the packs that the last process emptied and did not live to remove.
async fn remove_emptied(
    packs: &LocalPacks,
    meta: &dyn Meta,
    known: &mut HashMap<PackId, PackState>,
) -> Result<()> {
    let emptied = known.extract_if(|_, state| state.phase == PackPhase::Emptied);
    let emptied: Vec<_> = emptied.map(|(pack, _)| pack).collect();
    if emptied.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::default();
    for pack in emptied {
        match packs.delete(pack).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("remove", &path_of(packs, pack), source)),
        }
        batch.forget_pack(pack);
    }
    let dir = PackStage::dir(packs);
    let synced = packs.sync_names().await;
    synced.map_err(|source| Error::io("sync", &dir, source))?;
    meta.apply(batch, false).map(drop)
}

fn path_of(packs: &LocalPacks, pack: PackId) -> PathBuf {
    PackStage::path(packs, pack)
}

/// Syncs a pack as found: its last process may not have lived to do so. After a failed sync, the
/// cache may have more than the disk.
async fn make_durable(stage: &dyn PackStage, pack: PackId) -> Result<()> {
    let file = stage.open_to_mend(pack)?;
    let synced = stage.disk().sync_data(&file).await;
    synced.map_err(|source| Error::io("sync", &stage.path(pack), source))?;
    stage.disk().forget_cached(&file);
    Ok(())
}

fn index(
    meta: &dyn Meta,
    records: &[PlacedRecord],
    states: &[PackState],
    sync: bool,
) -> Result<()> {
    let mut batch = Batch::default();
    for record in records {
        batch.put(record.name, record.location);
    }
    batch.packs(states);
    meta.apply(batch, sync).map(drop)
}
