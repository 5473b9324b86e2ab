//! Space: what is needed and what takes how much, against a count by brute force.

mod late;
mod model;
mod surveys;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use varve_content::{
    RootId,
    codec::Compression,
    tree::{LeafWalk, Node},
};

use super::{Random, block_on, random_image, scribble, seed, upload};
use crate::{
    Options, Store,
    engine::{DirectoryLock, Engine, walked},
    format::{Location, Name, PackId, PackKind, StoreId, names},
    gc::{mark::Live, pace::Pace, ranks::Ranks, roots},
    io::{Disk, sim::SimDisk},
    meta::{IndexView, MemoryMeta, Meta},
    recovery::{Base, RecoveryReport, assemble},
};

const DATA_DIR: &str = "/data";

/// A store on a simulated disk, with small packs.
pub(super) struct Place {
    pub(super) disk: Arc<SimDisk>,
    meta: Arc<MemoryMeta>,
    /// Only for the lock.
    real: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let disk = SimDisk::new();
        disk.create_dir(Path::new(DATA_DIR)).unwrap();
        block_on(disk.sync_dir(Path::new("/"))).unwrap();
        Self {
            disk,
            meta: Arc::default(),
            real: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) async fn open(&self) -> Store {
        let mut options = Options::new(PathBuf::from(DATA_DIR));
        options.cpu_threads = 2;
        options.journal_bytes_max = 256 << 20;
        options.pack_bytes_max = 256 << 10;
        let base = Base {
            disk: Arc::<SimDisk>::clone(&self.disk),
            store: StoreId::from_bytes([7; 16]),
            compression: Compression::Lz4,
            options,
            lock: DirectoryLock::take(self.real.path()).unwrap(),
        };
        let meta: Arc<dyn Meta> = Arc::<MemoryMeta>::clone(&self.meta);
        let mut report = RecoveryReport::default();
        let engine = assemble(base, &mut report, |_| Ok(meta)).await.unwrap();
        assert_eq!(report.damage, []);
        Store::of(engine).await
    }

    pub(super) fn pack_path(pack: PackId) -> PathBuf {
        names::pack(Path::new(DATA_DIR), pack)
    }
}

pub(super) fn unpaced() -> Pace {
    Pace::new(None)
}

/// All rows of the index.
pub(super) fn rows(engine: &Engine) -> BTreeMap<Name, Location> {
    let mut rows = BTreeMap::new();
    let mut add = |name, place| {
        rows.insert(name, place);
        ControlFlow::Continue(())
    };
    let mut look = |view: &dyn IndexView| {
        view.scan(PackKind::Chunks, &mut add)?;
        view.scan(PackKind::Nodes, &mut add)
    };
    engine.meta.view(&mut look).unwrap();
    rows
}

/// All that hangs on a root, by reading the tree as a reader does.
pub(super) async fn reach(engine: &Engine, id: RootId) -> BTreeSet<Name> {
    let mut names = BTreeSet::from([Name::root(id)]);
    let root = engine.root(id).await.unwrap();
    let mut nodes: Vec<_> = root.top.into_iter().collect();
    while let Some(id) = nodes.pop() {
        names.insert(Name::inner(id));
        let inner = engine.inner_node(id).await.unwrap();
        for (_, child) in inner.children() {
            match inner.level() {
                1 => drop(names.insert(Name::leaf(*child))),
                _ => nodes.push(*child),
            }
        }
    }
    let mut walk = LeafWalk::new(&root, 0);
    while let Some((_, id)) = walk.next(engine).await.map_err(walked).unwrap() {
        let leaf = engine.plain_leaf(id).await.unwrap();
        assert_eq!(Node::Leaf((*leaf).clone()).id(), id);
        names.extend(leaf.entries().iter().map(|it| Name::chunk(it.chunk)));
    }
    names
}

/// All that any of these roots need.
pub(super) async fn reach_all(
    engine: &Engine,
    roots: impl IntoIterator<Item = RootId>,
) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    for root in roots {
        names.append(&mut reach(engine, root).await);
    }
    names
}

/// The bytes that these records take.
pub(super) fn bytes_of<'a>(
    rows: &BTreeMap<Name, Location>,
    names: impl IntoIterator<Item = &'a Name>,
) -> u64 {
    let bytes = names
        .into_iter()
        .map(|name| rows[name].payload.record_bytes());
    bytes.sum()
}

/// All roots, marked with ranks that were made before.
pub(super) async fn marked(engine: &Arc<Engine>, ranks: &Arc<Ranks>) -> Live {
    let roots = roots::collect(engine).await.unwrap();
    crate::gc::mark::mark(engine, ranks, &unpaced(), &roots)
        .await
        .unwrap()
}
