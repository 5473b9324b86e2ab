//! Makes index and catalog again from the packs and the catalog log.

use std::{fmt, path::PathBuf, sync::Arc};

use super::{
    RecoveryReport, create_missing_dir, lock_directory, open_log, packs, packs::Believe,
    read_identity, replay_log, sync_dir,
};
use crate::{
    Damage, Error, Result,
    format::names,
    io, limits,
    meta::{Meta, RocksMeta},
    pack::{PackHome as _, PackSet},
    store::Options,
};

/// What a rebuild made.
#[derive(Debug, Clone, Default)]
pub struct RebuildReport {
    /// Packs that were read.
    pub packs: u64,
    /// Chunks indexed.
    pub chunks: u64,
    /// Snapshots in the catalog.
    pub snapshots: u64,
    /// Volumes in the catalog.
    pub volumes: u64,
    /// Where the old index was put aside, if there was one.
    pub old_index: Option<PathBuf>,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
    /// The end of the catalog log that could not be read and was cut off, if any: a record that was being written, or
    /// the last one, damaged.
    pub torn_log: Option<String>,
    /// Names of snapshots whose root is in no pack.
    pub incomplete: Vec<String>,
}

impl fmt::Display for RebuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "indexed {} chunks of {} packs, {} snapshots, {} volumes",
            self.chunks, self.packs, self.snapshots, self.volumes
        )?;
        if let Some(old) = &self.old_index {
            write!(f, "; the old index is kept in {}", old.display())?;
        }
        for damage in &self.damage {
            write!(f, "\n{damage}")?;
        }
        if let Some(torn) = &self.torn_log {
            write!(f, "\ncut off the end of the catalog log: {torn}")?;
        }
        for name in &self.incomplete {
            write!(
                f,
                "\nsnapshot {name:?} is incomplete: its root is in no pack"
            )?;
        }
        Ok(())
    }
}

/// Makes index and catalog of a store again. The store must not be open; its packs are read whole, every record
/// checked by its checksum.
///
/// The new index takes the old one's place only when it is complete, and the old one is kept beside it.
pub async fn rebuild(options: Options) -> Result<RebuildReport> {
    let dir = &options.data_dir;
    if !dir.is_dir() {
        return Err(Error::NotFound {
            what: "data directory",
            name: dir.display().to_string(),
        });
    }
    let _lock = lock_directory(dir)?;
    let Some(identity) = read_identity(dir)? else {
        return Err(Error::Incompatible {
            path: names::store_file(dir),
            why: "it is missing: this is not a Varve store".to_owned(),
        });
    };
    let disk = io::choose(options.io_engine)
        .map_err(|source| Error::io("set up input and output for", dir, source))?;
    create_missing_dir(&disk, dir, &names::packs(dir)).await?;
    let packs = PackSet::open(Arc::clone(&disk), dir, identity.store)?;
    let (mut log, replay) = open_log(&disk, dir, identity.store, &packs).await?;

    let temporary = names::index_unfinished(dir);
    RocksMeta::destroy(&temporary)?;
    let mut found = RecoveryReport::default();
    let mut report = RebuildReport::default();
    {
        let meta = RocksMeta::create(&temporary, identity.store)?;
        let (chunks, nodes) = packs::recover(&packs, &meta, Believe::Packs, &mut found).await?;
        drop(chunks.close().await?);
        drop(nodes.close().await?);
        replay_log(&meta, &mut log, replay, &mut found).await?;
        let totals = meta.totals()?;
        report.packs = packs.list()?.len() as u64;
        report.chunks = totals.chunks;
        report.snapshots = totals.snapshots;
        report.volumes = totals.volumes;
        report.incomplete = incomplete(&meta)?;
    }
    report.damage = found.damage;
    report.torn_log = found.torn_log;

    // Before it is used: what it lacks must not be taken for granted.
    create_missing_dir(&disk, dir, &names::rebuilt(dir)).await?;
    let index = names::index(dir);
    if index.exists() {
        let old = names::index_old(dir);
        RocksMeta::destroy(&old)?;
        disk.rename(&index, &old)
            .map_err(|source| Error::io("rename to", &old, source))?;
        report.old_index = Some(old);
    }
    disk.rename(&temporary, &index)
        .map_err(|source| Error::io("rename to", &index, source))?;
    sync_dir(&disk, dir).await?;
    Ok(report)
}

/// Snapshots whose root is in no pack. What is below a root is left to verify.
fn incomplete(meta: &RocksMeta) -> Result<Vec<String>> {
    use crate::meta::{Catalog as _, Index as _, NodeKey};
    let mut incomplete = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = meta.snapshots(after.as_deref(), "", limits::PAGE_MAX)?;
        let Some(last) = page.last() else {
            return Ok(incomplete);
        };
        after = Some(last.name.clone());
        // Those that are pending have none yet.
        let roots = page
            .into_iter()
            .filter_map(|record| record.root().map(|root| (record.name, NodeKey::Root(root))));
        let (names, keys): (Vec<_>, Vec<_>) = roots.unzip();
        let places = meta.nodes(&keys)?;
        let absent = names
            .into_iter()
            .zip(places)
            .filter(|(_, place)| place.is_none());
        incomplete.extend(absent.map(|(name, _)| name));
    }
}
