//! Packs that are gone though the index still has them.
//!
//! RocksDB loses the end of its log where that is damaged, and then has the state from before a
//! collection, with packs that the collection has removed. A start finds the moved records in the
//! packs of survivors, and gives them rows there. That leaves rows of records that nobody needed,
//! and states of packs without a file, which each start would report as damage. A pack with needed
//! records stays reported.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use super::{
    look::{Wanted, look},
    tally::PackTally,
};
use crate::{
    Damage, Result,
    engine::Engine,
    format::{Location, Name, PackId, PackKind},
    meta::{Batch, IndexView},
};

/// Rows that are removed at a time.
const ROWS_AT_A_TIME: usize = 8192;

/// Forgets the packs that a start has found to be gone, and their rows, if nothing in them is
/// needed. Nobody relies on such a row: what is lost counts as unknown.
///
/// # Errors
///
/// Those of the index.
pub(super) async fn forget(engine: &Arc<Engine>, packs: &[PackTally]) -> Result<()> {
    let gone: BTreeSet<PackId> = {
        let lost = engine.lost.read();
        let gone = packs
            .iter()
            .filter(|it| it.file_bytes == 0 && it.live.records == 0 && lost.hold_all_of(it.pack));
        gone.map(|it| it.pack).collect()
    };
    if gone.is_empty() {
        return Ok(());
    }
    let gone = Arc::new(gone);
    for kind in [PackKind::Nodes, PackKind::Chunks] {
        let mut from = Some([0; 32]);
        while let Some(start) = from {
            let (rows, next) = rows(engine, &gone, kind, start).await?;
            let mut batch = Batch::default();
            for (name, pack) in rows {
                batch.remove_from(name, pack);
            }
            engine.commit.relocate(vec![batch]).await?;
            from = next;
        }
    }
    let mut last = Batch::default();
    for pack in &*gone {
        tracing::warn!(%pack, "a pack that is gone is forgotten: nothing in it is needed");
        last.forget_pack(*pack);
    }
    engine.commit.relocate(vec![last]).await?;
    let mut lost = engine.lost.write();
    gone.iter().for_each(|pack| lost.forget(*pack));
    Ok(())
}

/// The damage of packs that have no file, and of which something is needed.
pub(super) fn missing(packs: &[PackTally]) -> Vec<Damage> {
    let missing = packs
        .iter()
        .filter(|it| it.file_bytes == 0 && it.live.records > 0);
    let damage = missing.map(|it| {
        let why = format!(
            "the file is gone or empty, and {} records in it are live",
            it.live.records
        );
        Damage::in_pack(it.pack, 0, "pack", why)
    });
    damage.collect()
}

/// Returns some rows that point into `packs`, and the name from which to look for the rest.
async fn rows(
    engine: &Arc<Engine>,
    packs: &Arc<BTreeSet<PackId>>,
    kind: PackKind,
    from: [u8; 32],
) -> Result<(Vec<(Name, PackId)>, Option<[u8; 32]>)> {
    let packs = Arc::clone(packs);
    let find = move |view: &dyn IndexView, wanted: &Wanted| {
        let (mut rows, mut next) = (Vec::new(), None);
        let mut row = |name: Name, place: Location| {
            if !packs.contains(&place.pack) {
                return ControlFlow::Continue(());
            }
            if rows.len() == ROWS_AT_A_TIME {
                next = Some(*name.as_bytes());
                return ControlFlow::Break(());
            }
            rows.push((name, place.pack));
            ControlFlow::Continue(())
        };
        wanted.scan(view, kind, &from, &mut row)?;
        Ok((rows, next))
    };
    look(engine, find).await
}
