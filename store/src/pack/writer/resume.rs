//! Resuming a writer where the last process stopped.

use std::sync::Arc;

use super::{OpenPack, PackWriter, seal};
use crate::{
    Error, Result,
    format::{
        PackKind, PackPhase, PackState,
        pack::{FooterEntry, PACK_RECORDS_MAX, encode_padding, padding_bytes},
    },
    io::{AlignedBuf, File},
    pack::{PackStage, RecoveredPack},
};

impl PackWriter {
    /// Opens a writer. `unsealed` are the packs of its kind that have no footer; for a new store
    /// there are none.
    ///
    /// Cuts off their torn ends, and makes the rest durable. Continues the newest pack if it is
    /// sound and not full, so that restarts do not leave many small packs. Seals the others, and
    /// removes packs without a record. A damaged pack stays without a footer: so each start surveys
    /// it, and knows its damage. Returns the packs that remain: only now may their surveyed records
    /// be indexed.
    ///
    /// Durable bytes are not written again: a flush ends at 4 KiB, so a record that shares its 4
    /// KiB with padding was never promised to anyone.
    pub async fn resume(
        stage: Arc<dyn PackStage>,
        kind: PackKind,
        mut unsealed: Vec<RecoveredPack>,
    ) -> Result<(Self, Vec<PackState>)> {
        assert!(
            unsealed
                .iter()
                .all(|recovered| recovered.pack.kind == kind && !recovered.sealed),
            "packs of the writer's kind, without a footer"
        );
        unsealed.sort_unstable_by_key(|recovered| recovered.pack);
        let mut packs = Vec::new();
        let mut states = Vec::new();
        let mut current: Option<OpenPack> = None;
        let first = unsealed.first().map(|recovered| recovered.pack);
        for recovered in unsealed {
            if recovered.is_empty() {
                stage.remove(recovered.pack)?;
                continue;
            }
            let is_sound = recovered.damage.is_empty();
            let pack = take_on(&*stage, recovered).await?;
            if !is_sound {
                states.push(state_of(&pack, PackPhase::Open));
                continue;
            }
            // The newest pack that can be continued stays open.
            let done = if pack.is_full {
                Some(pack)
            } else {
                current.replace(pack)
            };
            if let Some(older) = done {
                let (sealed, left) = seal_or_keep(&*stage, older).await?;
                states.push(sealed);
                packs.extend(left);
            }
        }
        if let Some(mut current) = current {
            current.file = stage.reopen(current.id)?;
            states.push(state_of(&current, PackPhase::Open));
            packs.push(current);
        }
        if let Some(first) = first {
            // The process that made a pack may have died before its name was durable.
            let path = stage.path(first);
            stage
                .sync_names()
                .await
                .map_err(|source| Error::io("sync the directory of", &path, source))?;
        }
        Ok((Self::new(stage, kind, packs), states))
    }
}

/// Makes a pack's end clean and durable.
async fn take_on(stage: &dyn PackStage, recovered: RecoveredPack) -> Result<OpenPack> {
    let path = stage.path(recovered.pack);
    let path = path.as_path();
    let failed = |verb| move |source| Error::io(verb, path, source);
    let file = stage.open_to_mend(recovered.pack)?;
    let disk = stage.disk();
    if disk.len(&file).map_err(failed("read the length of"))? != recovered.end_bytes {
        disk.set_len(&file, recovered.end_bytes)
            .map_err(failed("cut the torn tail of"))?;
    }
    pad(stage, &file, recovered.end_bytes)
        .await
        .map_err(failed("pad"))?;
    // A pack that needs no mending may also come from a process that died before syncing it.
    disk.sync_data(&file).await.map_err(failed("sync"))?;
    let end_bytes = recovered.aligned_end_bytes();
    let entries: Vec<_> = recovered
        .records
        .iter()
        .map(|record| FooterEntry {
            id: *record.name.as_bytes(),
            offset_bytes: record.location.offset_bytes,
            payload: record.location.payload,
        })
        .collect();
    Ok(OpenPack {
        id: recovered.pack,
        nonce: recovered.nonce,
        file,
        end_bytes,
        begun_bytes: end_bytes,
        durable_bytes: end_bytes,
        durable_records: entries.len(),
        // A pack of version 1: new records might look like a footer.
        is_full: recovered.nonce.is_none()
            || end_bytes >= stage.pack_bytes_max()
            || entries.len() >= PACK_RECORDS_MAX as usize,
        entries,
    })
}

async fn pad(stage: &dyn PackStage, file: &File, end_bytes: u64) -> std::io::Result<()> {
    let padding = padding_bytes(end_bytes);
    if padding == 0 {
        return Ok(());
    }
    let header = encode_padding(end_bytes);
    let mut bytes = AlignedBuf::with_capacity(padding as usize);
    bytes.extend_from_slice(&header);
    bytes.extend_zeros(padding as usize - header.len());
    stage.disk().write(file, end_bytes, bytes).await.map(drop)
}

/// Seals a pack, or leaves it unsealed if there is no space for its footer.
async fn seal_or_keep(
    stage: &dyn PackStage,
    mut pack: OpenPack,
) -> Result<(PackState, Option<OpenPack>)> {
    match seal(stage, &pack).await {
        Ok(()) => Ok((state_of(&pack, PackPhase::Sealed), None)),
        Err(error @ Error::Full { .. }) => {
            tracing::warn!(pack = %pack.id, %error, "the pack is not sealed yet");
            pack.is_full = true;
            Ok((state_of(&pack, PackPhase::Open), Some(pack)))
        }
        Err(error) => Err(error),
    }
}

const fn state_of(pack: &OpenPack, phase: PackPhase) -> PackState {
    PackState {
        pack: pack.id,
        indexed_bytes: pack.end_bytes,
        phase,
    }
}
