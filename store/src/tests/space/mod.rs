//! Space: the needed records and the space that each owner takes, against a count by brute force.

mod late;
mod model;
mod surveys;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
};

use varve_content::{
    RootId,
    tree::{LeafWalk, Node},
};

use super::{
    Random, block_on,
    machine::{Machine, pack_path},
    random_image, scribble, seed, upload,
};
use crate::{
    Store,
    engine::{Engine, walked},
    format::{Location, Name, PackKind},
    gc::{mark::Live, pace::Pace, ranks::Ranks, roots},
    meta::IndexView,
};

/// A machine whose packs are small.
pub(super) fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.cpu_threads = 2;
    machine.pack_bytes_max = 256 << 10;
    machine
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

/// All records under a root, found by reading the tree as a reader does.
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
