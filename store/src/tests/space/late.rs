//! Changes while marks are made, and errors that stop the marks.

use super::*;
use crate::{
    Error,
    gc::{
        GcSettings,
        mark::mark,
        ranks::names_max,
        survey::{names_of_a_pass, survey},
        tally::Tallies,
    },
    tests::{cut, new_snapshot, send, volume_data::new_volume},
};

async fn ranked(engine: &Arc<Engine>) -> Arc<Ranks> {
    Ranks::build(engine, [0; 32], names_of_a_pass())
        .await
        .unwrap()
}

/// Content that is stored, or stored again, between the view of the ranks and the marks: none of
/// it counts as dead.
#[test]
fn records_that_come_while_marks_are_made_are_needed() {
    let machine = machine();
    let mut random = Random::new(seed());
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        let mut image = random_image(&mut random, 5000);
        upload(&store, "old", &image).await.unwrap();
        let old = store.snapshot(&"old".into()).await.unwrap().root().unwrap();
        store.delete_snapshot(&"old".into()).await.unwrap();
        let ranks = ranked(engine).await;
        // Its leaves are new; most of its chunks, and some of its leaves, are from deleted content.
        scribble(&mut random, &mut image, 3);
        upload(&store, "new", &image).await.unwrap();
        let new = store.snapshot(&"new".into()).await.unwrap().root().unwrap();
        let live = marked(engine, &ranks).await;
        let needed = reach(engine, new).await;
        let rows = rows(engine);
        let mut dead = 0;
        for (name, place) in &rows {
            if needed.contains(name) {
                assert!(live.needs(name, place), "{name}");
            } else {
                dead += u64::from(!live.needs(name, place));
            }
        }
        // And records that only the old one had are dead.
        let only_old = &reach(engine, old).await - &needed;
        assert_eq!(dead, only_old.len() as u64);
        let tallies = Tallies::default().count(engine, Arc::new(live)).await;
        let packs = tallies.unwrap().finish(engine).await.unwrap();
        let counted: u64 = packs.iter().map(|it| it.live.records).sum();
        assert_eq!(counted, rows.len() as u64 - dead);
    });
}

/// Content of which nothing was there in the view: slots of its names would be nonsense. All of it
/// is needed, and nothing else is needed because of it.
#[test]
fn other_content_that_comes_while_marks_are_made_is_needed_and_nothing_else() {
    let machine = machine();
    let mut random = Random::new(seed());
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        upload(&store, "old", &random_image(&mut random, 5000))
            .await
            .unwrap();
        store.delete_snapshot(&"old".into()).await.unwrap();
        let old = rows(engine);
        let ranks = ranked(engine).await;
        upload(&store, "new", &random_image(&mut random, 5000))
            .await
            .unwrap();
        let new = store.snapshot(&"new".into()).await.unwrap().root().unwrap();
        let live = marked(engine, &ranks).await;
        let needed = reach(engine, new).await;
        for (name, place) in rows(engine) {
            let is_needed = needed.contains(&name);
            // A few chunks may be of both.
            assert!(is_needed || old.contains_key(&name));
            assert_eq!(live.needs(&name, &place), is_needed, "{name}");
        }
        let late = needed.iter().filter(|name| !old.contains_key(*name));
        assert!(late.count() > 100);
    });
}

#[test]
fn roots_that_come_late_are_added() {
    let machine = machine();
    let mut random = Random::new(seed());
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        let image = random_image(&mut random, 3000);
        let other = random_image(&mut random, 3000);
        upload(&store, "a", &image).await.unwrap();
        upload(&store, "b", &other).await.unwrap();
        let ranks = ranked(engine).await;
        let all = roots::of_records(engine, None).await.unwrap();
        let live = mark(engine, &ranks, &unpaced(), &all[..1]).await.unwrap();
        let rows = rows(engine);
        let needs = |live: &Live| -> BTreeSet<Name> {
            let needed = rows.iter().filter(|(name, place)| live.needs(name, place));
            needed.map(|(name, _)| *name).collect()
        };
        assert_eq!(needs(&live), reach(engine, all[0].root).await);
        let live = live.and(engine, &unpaced(), &all).await.unwrap();
        let both = reach_all(engine, all.iter().map(|it| it.root)).await;
        assert_eq!(needs(&live), both);
    });
}

/// An upload that is under way when the ranks are made: its chunks are there, its nodes come later.
#[test]
fn a_snapshot_that_is_completed_while_marks_are_made_is_needed() {
    let machine = machine();
    let mut random = Random::new(seed());
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        let image = random_image(&mut random, 3000);
        let cut = cut(&image);
        let ingest = store
            .begin_ingest(new_snapshot("s", image.len()))
            .await
            .unwrap();
        send(&ingest, &cut).await.unwrap();
        let generation = engine.commit.generation().unwrap();
        engine.commit.flush(generation).await.unwrap();
        let ranks = ranked(engine).await;
        assert!(ranks.len() > 0);
        ingest.commit(cut.root).await.unwrap();
        let live = marked(engine, &ranks).await;
        for (name, place) in rows(engine) {
            assert!(live.needs(&name, &place), "{name}");
        }
    });
}

/// Flips a bit of the payload of a record.
fn damage(machine: &Machine, at: &Location) {
    let path = pack_path(at.pack);
    machine
        .disk
        .flip(&path, at.offset_bytes + 64 + 9, 4)
        .unwrap();
}

#[test]
fn a_damaged_node_ends_the_marks_and_is_named_with_who_needs_it() {
    for (kind, of_volume) in [
        (crate::format::pack::RecordKind::Leaf, false),
        (crate::format::pack::RecordKind::Leaf, true),
        (crate::format::pack::RecordKind::Inner, false),
        (crate::format::pack::RecordKind::Root, true),
    ] {
        let machine = machine();
        let mut random = Random::new(7);
        block_on(async {
            let store = machine.open_undamaged().await;
            let engine = store.engine();
            let image = random_image(&mut random, 5000);
            upload(&store, "good", &random_image(&mut random, 500))
                .await
                .unwrap();
            upload(&store, "web", &image).await.unwrap();
            if of_volume {
                let mut new = new_volume("db", image.len().next_multiple_of(512));
                new.from = Some("web".into());
                store.create_volume(new).await.unwrap();
            }
            let web = store.snapshot(&"web".into()).await.unwrap().root().unwrap();
            if of_volume {
                store.delete_snapshot(&"web".into()).await.unwrap();
            }
            let nodes = reach(engine, web).await;
            let rows = rows(engine);
            let node = nodes.iter().find(|it| it.kind() == kind).unwrap();
            damage(&machine, &rows[node]);
            let roots = roots::collect(engine).await.unwrap();
            let failed = survey(engine, &unpaced(), &roots, names_of_a_pass()).await;
            let error = failed.unwrap_err();
            let said = error.to_string();
            let owner = match of_volume {
                true => "needed by volume \"db\"",
                false => "needed by snapshot web",
            };
            assert!(matches!(error, Error::Damaged(_)), "{said}");
            assert!(
                said.contains(&node.to_string()) && said.contains(owner),
                "{said}"
            );
            let settings = GcSettings::default();
            let refused = store.gc_plan(&settings).await.unwrap_err();
            assert!(refused.to_string().contains(owner), "{refused}");
            // Nothing of it is held.
            drop(engine.stocktaking.try_lock().unwrap());
        });
    }
}

/// A node without a row must not pass for one that was reached before.
#[test]
fn a_missing_node_ends_the_marks() {
    let machine = machine();
    let mut random = Random::new(8);
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        upload(&store, "web", &random_image(&mut random, 9000))
            .await
            .unwrap();
        let rows = rows(engine);
        for (name, at) in rows
            .iter()
            .filter(|it| it.0.kind().pack_kind() == PackKind::Nodes)
        {
            let mut batch = crate::meta::Batch::default();
            batch.remove_from(*name, at.pack);
            engine.meta.apply(batch, true).unwrap();
            let roots = roots::collect(engine).await.unwrap();
            let failed = survey(engine, &unpaced(), &roots, names_of_a_pass()).await;
            let said = failed.unwrap_err().to_string();
            assert!(said.contains(&format!("{name} is missing")), "{said}");
            assert!(said.contains("needed by snapshot web"), "{said}");
            let mut batch = crate::meta::Batch::default();
            batch.put(*name, *at);
            engine.meta.apply(batch, true).unwrap();
        }
        let roots = roots::collect(engine).await.unwrap();
        survey(engine, &unpaced(), &roots, names_of_a_pass())
            .await
            .unwrap();
    });
}

/// A node that was missing when the ranks were made, and is stored again while marks are made: its
/// slot is nonsense, and everything under it is needed all the same.
#[test]
fn a_node_that_comes_back_is_not_taken_for_another() {
    let machine = machine();
    let mut random = Random::new(9);
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        let image = random_image(&mut random, 9000);
        upload(&store, "web", &image).await.unwrap();
        let root = store.snapshot(&"web".into()).await.unwrap().root().unwrap();
        let needed = reach(engine, root).await;
        let before = rows(engine);
        let leaves = needed
            .iter()
            .filter(|it| it.kind() == crate::format::pack::RecordKind::Leaf);
        for leaf in leaves {
            let at = before[leaf];
            let mut batch = crate::meta::Batch::default();
            batch.remove_from(*leaf, at.pack);
            engine.meta.apply(batch, true).unwrap();
            let ranks = ranked(engine).await;
            engine.cache.forget(*leaf);
            upload(&store, "again", &image).await.unwrap();
            let live = marked(engine, &ranks).await;
            for (name, place) in rows(engine) {
                assert!(live.needs(&name, &place), "{name}");
            }
            store.delete_snapshot(&"again".into()).await.unwrap();
        }
    });
}

#[test]
fn too_many_nodes_for_the_memory_are_refused() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        upload(&store, "web", &random_image(&mut Random::new(10), 9000))
            .await
            .unwrap();
        let refused = Ranks::build(engine, [0; 32], 6).await.unwrap_err();
        assert!(matches!(refused, Error::Limit(_)), "{refused}");
        assert!(names_max(1) > 90_000_000);
    });
}

#[test]
fn the_cache_of_reads_gets_its_memory_back_and_is_not_filled() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "web", &random_image(&mut Random::new(11), 9000))
            .await
            .unwrap();
        let root = store.snapshot(&"web".into()).await.unwrap().root().unwrap();
        let settings = GcSettings::default();
        // Given up at any moment, it leaves nothing behind.
        for polls in 0..200 {
            let mut plan = Box::pin(store.gc_plan(&settings));
            for _ in 0..polls {
                if futures::poll!(&mut plan).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(plan);
            drop(store.engine().stocktaking.try_lock().unwrap());
        }
        store.gc_plan(&settings).await.unwrap();
        for name in reach_names_of_leaves(&store, root).await {
            assert!(store.engine().cache.leaf(name).is_none());
        }
    });
}

/// The names of the leaves of a tree, without reading any.
async fn reach_names_of_leaves(store: &Store, root: RootId) -> Vec<Name> {
    let engine = store.engine();
    let root = engine.root(root).await.unwrap();
    let mut walk = LeafWalk::new(&root, 0);
    let mut names = Vec::new();
    while let Some((_, id)) = walk.next(&**engine).await.map_err(walked).unwrap() {
        names.push(Name::leaf(id));
    }
    names
}
