//! Records that running work relies on are kept, and swept packs take nothing with them that a root
//! reaches.

use std::{collections::HashSet, io::ErrorKind};

use varve_content::{chunker::End, codec::Codec};

use super::{
    Random, assert_holds, block_on,
    collections::eager,
    cut,
    machine::{Machine, pack_path},
    new_snapshot, seed, send, upload,
};
use crate::{
    Error, GcSettings, Result, Store,
    engine::HeldPack,
    format::{Name, PackId, PackKind, PackPhase},
    gc::{Sweep, Swept, pace::Pace},
    io::sim::Call,
    limits,
    pack::EncodedRecord,
};

pub(super) const PACK_BYTES: u64 = 128 << 10;
pub(super) const EACCES: i32 = rustix::io::Errno::ACCESS.raw_os_error();

/// A machine whose packs are small.
pub(super) fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.pack_bytes_max = PACK_BYTES;
    machine
}

/// The sealed packs, by number.
pub(super) fn sealed(store: &Store) -> Vec<PackId> {
    let states = store.engine().meta.pack_states().unwrap();
    let sealed = states.iter().filter(|it| it.phase == PackPhase::Sealed);
    sealed.map(|state| state.pack).collect()
}

/// The names of all records that snapshots reach.
pub(super) async fn reached(store: &Store, snapshots: &[&str]) -> HashSet<Name> {
    let mut names = HashSet::new();
    let engine = store.engine();
    for snapshot in snapshots {
        let reader = store.open_snapshot(&(*snapshot).into()).await.unwrap();
        names.insert(Name::root(reader.root().id()));
        let mut inner: Vec<_> = reader.root().top.into_iter().collect();
        while let Some(id) = inner.pop() {
            names.insert(Name::inner(id));
            let node = engine.inner_node(id).await.unwrap();
            let children = node.children().iter().map(|(_, id)| *id);
            if node.level() > 1 {
                inner.extend(children);
                continue;
            }
            for id in children {
                names.insert(Name::leaf(id));
                let leaf = engine.plain_leaf(id).await.unwrap();
                names.extend(leaf.entries().iter().map(|entry| Name::chunk(entry.chunk)));
            }
        }
    }
    names
}

/// Condemns packs, and sweeps those that no guard holds.
pub(super) async fn sweep(
    store: &Store,
    packs: &[PackId],
    live: &HashSet<Name>,
) -> Result<(Swept, Vec<HeldPack>)> {
    let engine = store.engine();
    let held = engine.commit.condemn(packs.to_vec()).await.unwrap();
    let condemned = engine.reliance.condemned();
    let mut sweep = Sweep::new(engine.clone());
    let pace = Pace::new(None);
    for pack in packs.iter().filter(|pack| condemned.contains(pack)) {
        sweep
            .empty(*pack, &|name, _| live.contains(name), &pace)
            .await?;
    }
    Ok((sweep.finish().await?, held))
}

/// Blocks of noise, so that packs fill up.
pub(super) fn image(seed: u64, blocks: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = (0..blocks * 512).flat_map(|_| random.next().to_le_bytes());
    words.collect()
}

pub(super) fn has_file(machine: &Machine, pack: PackId) -> bool {
    machine.disk.contents(&pack_path(pack)).is_ok()
}

#[test]
fn live_records_move_and_the_rest_goes_with_the_pack() {
    let machine = machine();
    let (kept, deleted) = (image(1, 300), image(2, 300));
    let both: Vec<u8> = kept.chunks(40 << 12).zip(deleted.chunks(40 << 12)).fold(
        Vec::new(),
        |mut all, (kept, deleted)| {
            all.extend_from_slice(kept);
            all.extend_from_slice(deleted);
            all
        },
    );
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        // So that packs have chunks of both.
        upload(&store, "both", &both).await.unwrap();
        upload(&store, "kept", &kept).await.unwrap();
        upload(&store, "deleted", &deleted).await.unwrap();
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        for name in ["both", "deleted"] {
            store.delete_snapshot(&name.into()).await.unwrap();
        }
        let live = reached(&store, &["kept"]).await;
        let packs = sealed(&store);
        assert!(packs.iter().any(|pack| pack.kind == PackKind::Chunks));
        let before = store.status().await.unwrap();
        let reader = store.open_snapshot(&"kept".into()).await.unwrap();
        let segment = reader.segment(0).await.unwrap().unwrap();
        let (swept, held) = sweep(&store, &packs, &live).await.unwrap();
        assert_eq!((held, &*swept.kept), (vec![], &[][..]));
        assert_eq!(swept.packs, packs.len() as u64);
        let after = store.status().await.unwrap();
        assert!(
            after.stored_bytes < before.stored_bytes * 6 / 10,
            "{after:?}"
        );
        for pack in &packs {
            assert!(!has_file(&machine, *pack));
            assert_eq!(store.engine().meta.pack_state(*pack).unwrap(), None);
        }
        // A reader with places of packs that are gone finds the records elsewhere.
        reader.chunks(&segment).await.unwrap();
        reader.stored_chunks(&segment).await.unwrap();
        assert_holds(&store, "kept", &kept).await;
        // Removed records are unknown, and can be stored again.
        upload(&store, "again", &deleted).await.unwrap();
        assert_holds(&store, "again", &deleted).await;
        store.close().await.unwrap();
    });
    let machine = machine.crash(&mut Random::new(7));
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_holds(&store, "kept", &kept).await;
        assert_holds(&store, "again", &deleted).await;
    });
}

#[test]
fn an_ingest_keeps_the_packs_of_what_it_was_told_is_there() {
    let machine = machine();
    let content = image(3, 300);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "first", &content).await.unwrap();
        let packs = sealed(&store);
        let cut = cut(&content);
        let ids: Vec<_> = cut.chunks.keys().copied().collect();
        let ingest = store
            .begin_ingest(new_snapshot("second", content.len()))
            .await
            .unwrap();
        assert_eq!(ingest.missing(&ids, &[]).await.unwrap(), []);
        store.delete_snapshot(&"first".into()).await.unwrap();
        let (swept, held) = sweep(&store, &packs, &HashSet::new()).await.unwrap();
        assert_eq!(swept.packs, 0);
        assert!(held.iter().all(|held| held.by == "second") && held.len() == packs.len());
        // The guard ends with the ingest, not with the look-up.
        ingest.put_leaves(cut.leaves.clone()).await.unwrap();
        ingest.commit(cut.root).await.unwrap();
        drop(ingest);
        assert_holds(&store, "second", &content).await;
        let live = reached(&store, &["second"]).await;
        let (swept, held) = sweep(&store, &packs, &live).await.unwrap();
        assert_eq!((swept.packs, held), (packs.len() as u64, vec![]));
        assert_holds(&store, "second", &content).await;
    });
}

#[test]
fn what_is_in_a_condemned_pack_is_unknown_and_its_new_copy_counts() {
    let machine = machine();
    let content = image(4, 300);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "first", &content).await.unwrap();
        store.delete_snapshot(&"first".into()).await.unwrap();
        let packs = sealed(&store);
        let engine = store.engine();
        assert_eq!(engine.commit.condemn(packs.to_vec()).await.unwrap(), []);
        // Nothing is swept yet, and all of it is sent again.
        let outcome = {
            let cut = cut(&content);
            let new = new_snapshot("second", content.len());
            let ingest = store.begin_ingest(new).await.unwrap();
            let outcome = send(&ingest, &cut).await.unwrap();
            ingest.commit(cut.root).await.unwrap();
            outcome
        };
        assert!(outcome.new_bytes > PACK_BYTES * packs.len() as u64 / 2);
        for name in reached(&store, &["second"]).await {
            let row = engine.meta.lookup(&[name]).unwrap()[0].unwrap();
            assert!(!packs.contains(&row.pack), "{name} is in {}", row.pack);
        }
        // As the mark was before.
        let (swept, held) = sweep(&store, &packs, &HashSet::new()).await.unwrap();
        assert_eq!((swept.packs, held), (packs.len() as u64, vec![]));
        assert_holds(&store, "second", &content).await;
    });
}

#[test]
fn a_row_that_is_there_stays_when_its_record_is_stored_twice() {
    let machine = machine();
    let content = image(5, 100);
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let cut = cut(&content);
        // Both are told that the store has nothing.
        let mut ingests = Vec::new();
        for name in ["a", "b"] {
            let new = new_snapshot(name, content.len());
            ingests.push(store.begin_ingest(new).await.unwrap());
        }
        let ids: Vec<_> = cut.chunks.keys().copied().collect();
        for ingest in &ingests {
            assert_eq!(ingest.missing(&ids, &[]).await.unwrap().len(), ids.len());
        }
        let engine = store.engine();
        let name = Name::chunk(ids[0]);
        let record = || {
            EncodedRecord::chunk(
                name,
                Codec::Raw,
                End::Settled,
                cut.chunks[&ids[0]].len() as u32,
                &cut.chunks[&ids[0]],
            )
        };
        let mut rows = Vec::new();
        for _ in 0..2 {
            let generation = engine.commit.generation().unwrap();
            let append = engine
                .commit
                .append(generation, PackKind::Chunks, vec![record()]);
            append.await.unwrap();
            engine.commit.flush(generation).await.unwrap();
            rows.push(engine.meta.lookup(&[name]).unwrap()[0].unwrap());
        }
        assert_eq!(rows[0], rows[1]);
    });
}

#[test]
fn rows_that_are_made_later_are_at_or_above_the_floors() {
    let machine = machine();
    let mut random = Random::new(seed());
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        let engine = store.engine();
        for round in 0..20 {
            let floors = engine.reliance.begin("test", engine.commit.floors());
            let before: HashSet<_> = sealed(&store).into_iter().collect();
            let content = image(random.next(), 1 + random.below(120));
            upload(&store, &format!("s{round}"), &content)
                .await
                .unwrap();
            let new = reached(&store, &[&*format!("s{round}")]).await;
            for name in new {
                let row = engine.meta.lookup(&[name]).unwrap()[0].unwrap();
                assert!(
                    !engine.reliance.floors().are_above(row.pack),
                    "{name} {}",
                    row.pack
                );
                assert!(!before.contains(&row.pack));
            }
            drop(floors);
        }
        // And once nothing is under way they hold back only packs that are not sealed.
        let floors = engine.reliance.floors().lower(engine.commit.floors());
        let kept = sealed(&store)
            .into_iter()
            .filter(|pack| !floors.are_above(*pack));
        assert_eq!(kept.count(), 0);
    });
}

#[test]
fn a_power_cut_at_every_operation_of_a_sweep_takes_nothing() {
    let seed = seed();
    let mut operations = 1;
    while swept_until(operations, seed) {
        operations += 1;
    }
    assert!(
        operations > 8,
        "the sweep is long enough to be cut: {operations} operations"
    );
}

/// Cuts the power after `operations` operations of a sweep. False when it ended before.
fn swept_until(operations: u64, seed: u64) -> bool {
    let mut random = Random::new(seed ^ operations);
    let machine = machine();
    let (kept, deleted) = (image(6, 60), image(7, 60));
    let both = [&*kept, &*deleted].concat();
    let finished = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "both", &both).await.unwrap();
        upload(&store, "kept", &kept).await.unwrap();
        store.delete_snapshot(&"both".into()).await.unwrap();
        let live = reached(&store, &["kept"]).await;
        let packs = sealed(&store);
        let before = machine.disk.operations();
        machine.disk.power_off_after(before + operations);
        sweep(&store, &packs, &live).await.map(drop)
    });
    let is_cut = finished.is_err();
    let machine = match random.below(3) {
        0 => machine.kill(random.next()),
        _ => machine.crash(&mut random),
    };
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, [], "after {operations} operations");
        assert_holds(&store, "kept", &kept).await;
        // Nothing that was emptied is left.
        for state in store.engine().meta.pack_states().unwrap() {
            assert_ne!(state.phase, PackPhase::Emptied);
        }
        let live = reached(&store, &["kept"]).await;
        let packs = sealed(&store);
        sweep(&store, &packs, &live).await.unwrap();
        assert_holds(&store, "kept", &kept).await;
        upload(&store, "both", &both).await.unwrap();
        assert_holds(&store, "both", &both).await;
        store.close().await.unwrap();
    });
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert_eq!(report.damage, [], "after {operations} operations");
        assert_holds(&store, "kept", &kept).await;
        assert_holds(&store, "both", &both).await;
    });
    is_cut
}

/// RocksDB loses the end of its log, as it does where that is damaged: rows point into packs that
/// are gone, and it does not know the packs that their records were moved to.
#[test]
fn an_index_from_before_a_sweep_finds_what_was_moved() {
    let machine = machine();
    let (kept, deleted) = (image(13, 100), image(14, 100));
    let both = [&*kept, &*deleted].concat();
    let go_back = block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "both", &both).await.unwrap();
        upload(&store, "kept", &kept).await.unwrap();
        store.delete_snapshot(&"both".into()).await.unwrap();
        let live = reached(&store, &["kept"]).await;
        let packs = sealed(&store);
        let go_back = machine.index_of_now();
        sweep(&store, &packs, &live).await.unwrap();
        assert!(packs.iter().all(|pack| !has_file(&machine, *pack)));
        go_back
    });
    let mut machine = machine.kill(1);
    go_back(&mut machine);
    block_on(async {
        let (store, report) = machine.open().await.unwrap();
        assert!(!report.damage.is_empty());
        assert_holds(&store, "kept", &kept).await;
        upload(&store, "deleted", &deleted).await.unwrap();
        store.gc_run(GcSettings::default()).await.unwrap();
        assert_holds(&store, "kept", &kept).await;
        assert_holds(&store, "deleted", &deleted).await;
        store.close().await.unwrap();
    });
    block_on(async {
        // The packs that are gone are forgotten.
        let store = machine.open_undamaged().await;
        assert_holds(&store, "kept", &kept).await;
        assert_holds(&store, "deleted", &deleted).await;
    });
}

/// A rewrite for which there is no space does not hold up steps that give space back.
#[test]
fn packs_with_nothing_needed_go_first_after_a_run_that_found_the_disk_full() {
    let machine = machine();
    let (mixed, kept, deleted) = (image(18, 60), image(19, 60), image(20, 300));
    let both = [&*mixed, &*kept].concat();
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "both", &both).await.unwrap();
        upload(&store, "kept", &kept).await.unwrap();
        // As left by a run that could not copy the needed records.
        let condemned = store.engine().commit.condemn(sealed(&store)).await;
        assert_eq!(condemned.unwrap(), []);
        upload(&store, "deleted", &deleted).await.unwrap();
        for name in ["both", "deleted"] {
            store.delete_snapshot(&name.into()).await.unwrap();
        }
        machine.disk.set_capacity(Some(1));
        let before = sealed(&store).len();
        let refused = store.gc_run(eager()).await;
        assert!(
            matches!(refused, Err(Error::Full { .. } | Error::Dropped)),
            "{refused:?}"
        );
        let after = sealed(&store).len();
        assert!(after < before, "{after} of {before} packs");
        machine.disk.set_capacity(None);
        store.gc_run(eager()).await.unwrap();
        assert!(store.engine().reliance.condemned().is_empty());
        assert_holds(&store, "kept", &kept).await;
    });
}

/// A copy looks up nodes that nobody needs, while a collection removes them.
#[test]
fn a_node_that_goes_while_it_is_looked_for_is_not_there() {
    let mut machine = machine();
    machine.pack_bytes_max = 12 << 10;
    let contents: Vec<_> = (0..20).map(|at| image(21 + at, 40)).collect();
    block_on(async {
        let store = machine.open_undamaged().await;
        for (number, content) in contents.iter().enumerate() {
            let name = format!("s{number}");
            upload(&store, &name, content).await.unwrap();
        }
        let packs = sealed(&store);
        let leaf = cut(&contents[0]).leaves[0].1.id();
        let engine = store.engine();
        let place = engine.meta.lookup(&[Name::leaf(leaf)]).unwrap()[0].unwrap();
        assert!(packs.contains(&place.pack));
        // Its read waits until the pack is gone.
        let budget = limits::READ_BYTES_IN_FLIGHT as u32;
        let others = engine.budgets.reads.acquire_many(budget).await.unwrap();
        let (known, ()) = tokio::join!(store.known_leaf(leaf), async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            sweep(&store, &[place.pack], &HashSet::new()).await.unwrap();
            drop(others);
        });
        assert!(known.unwrap().is_none());
    });
}

/// As with uploads.
#[test]
fn a_pack_that_cannot_be_made_ends_the_sweep_and_not_the_store() {
    let machine = machine();
    let (content, more) = (image(11, 120), image(12, 120));
    block_on(async {
        let (store, _) = machine.open().await.unwrap();
        upload(&store, "s", &content).await.unwrap();
        let live = reached(&store, &["s"]).await;
        let packs = sealed(&store);
        machine.disk.refuse(Call::Create, 1, EACCES);
        let refused = sweep(&store, &packs, &live).await.unwrap_err();
        assert!(
            matches!(refused, Error::Io { verb: "create", .. }),
            "{refused:?}"
        );
        upload(&store, "more", &more).await.unwrap();
        let live = reached(&store, &["s", "more"]).await;
        let (swept, _) = sweep(&store, &packs, &live).await.unwrap();
        assert_eq!(swept.packs, packs.len() as u64);
        assert_holds(&store, "s", &content).await;
        assert_holds(&store, "more", &more).await;
    });
}

#[test]
fn a_disk_that_is_full_ends_the_sweep_and_not_the_store() {
    let (kept, deleted) = (image(9, 120), image(10, 120));
    let both = [&*kept, &*deleted].concat();
    for write in 1..40 {
        let machine = machine();
        let ended = block_on(async {
            let (store, _) = machine.open().await.unwrap();
            upload(&store, "both", &both).await.unwrap();
            upload(&store, "kept", &kept).await.unwrap();
            store.delete_snapshot(&"both".into()).await.unwrap();
            let live = reached(&store, &["kept"]).await;
            let packs = sealed(&store);
            // An upload under way loses nothing by it.
            let cut = cut(&deleted);
            let new = new_snapshot("beside", deleted.len());
            let ingest = store.begin_ingest(new).await.unwrap();
            machine.disk.fail_write(write, ErrorKind::StorageFull);
            let failed = sweep(&store, &packs, &live).await;
            if failed.is_ok() {
                return false;
            }
            let error = failed.unwrap_err();
            assert!(
                matches!(error, Error::Full { .. } | Error::Dropped),
                "{error:?}"
            );
            send(&ingest, &cut).await.unwrap();
            ingest.commit(cut.root).await.unwrap();
            assert_holds(&store, "beside", &deleted).await;
            assert_holds(&store, "kept", &kept).await;
            // The next one continues with the condemned packs.
            let live = reached(&store, &["kept", "beside"]).await;
            let condemned: Vec<_> = store.engine().reliance.condemned().into_iter().collect();
            let (swept, _) = sweep(&store, &condemned, &live).await.unwrap();
            assert_eq!(swept.packs, condemned.len() as u64);
            assert_holds(&store, "beside", &deleted).await;
            assert_holds(&store, "kept", &kept).await;
            store.close().await.unwrap();
            true
        });
        if !ended {
            assert!(write > 2, "{write} writes");
            return;
        }
        block_on(async {
            let (store, report) = machine.open().await.unwrap();
            assert_eq!(report.damage, []);
            assert_holds(&store, "beside", &deleted).await;
            assert_holds(&store, "kept", &kept).await;
        });
    }
    panic!("the sweep has no end");
}
