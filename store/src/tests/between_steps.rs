//! Scenes between two steps of a collection: one for each rule without which it would lose data.
//! `tests/mutations/gc.toml` lists which scene fails without which rule.

use std::{io::ErrorKind, path::Path};

use varve_content::{ChunkId, NodeId, chunker::End, codec::Codec};

use super::{
    Cut, Random, assert_holds, block_on,
    collections::eager,
    cut, incoming,
    machine::{DATA_DIR, Look, Machine, pack_path},
    new_snapshot,
    pending::clone_of,
    send,
    sweeps::{image, sealed},
    upload,
};
use crate::{
    CloneSource, Ingest, RootPin, Store,
    format::{Location, Name, PackId, PackKind, names},
    gc::{Sweep, pace::Pace, roots},
    pack::EncodedRecord,
};

/// A machine whose packs hold one chunk, or some nodes: all but the last of each kind are sealed.
fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.pack_bytes_max = 12 << 10;
    machine
}

/// The store of a machine, with content that was deleted and not collected.
async fn with_garbage(machine: &Machine, content: &[u8]) -> Store {
    let store = machine.open_undamaged().await;
    upload(&store, "deleted", content).await.unwrap();
    upload(&store, "behind", &image(90, 12)).await.unwrap();
    store.delete_snapshot(&"deleted".into()).await.unwrap();
    store
}

async fn begin(store: &Store, name: &str, content: &[u8]) -> Ingest {
    let new = new_snapshot(name, content.len());
    store.begin_ingest(new).await.unwrap()
}

/// Takes over all leaves of a root.
fn take_over(ingest: &Ingest, of: &RootPin, cut: &Cut) {
    let leaves = cut.leaves.iter();
    let data_blocks = leaves.map(|(_, leaf)| u64::from(leaf.data_blocks())).sum();
    let leaves = cut.leaves.iter();
    let leaves = leaves.map(|(segment, leaf)| (*segment, leaf.id()));
    let kept = ingest.keep_leaves(of, leaves.collect(), data_blocks);
    kept.unwrap();
}

fn row(store: &Store, name: Name) -> Option<Location> {
    store.engine().meta.lookup(&[name]).unwrap()[0]
}

/// Empties packs that are condemned, of which either all records are live or none.
async fn empty(sweep: &mut Sweep, packs: &[PackId], is_live: bool) {
    let (is_live, pace) = (move |_: &Name, _: &Location| is_live, Pace::new(None));
    for pack in packs {
        sweep.empty(*pack, &is_live, &pace).await.unwrap();
    }
}

#[test]
fn what_an_open_upload_has_stored_stays() {
    let machine = machine();
    let content = image(31, 60);
    block_on(async {
        let store = machine.open_undamaged().await;
        let cut = cut(&content);
        let ingest = begin(&store, "s", &content).await;
        send(&ingest, &cut).await.unwrap();
        ingest.flush().await.unwrap();
        // Others seal the packs of its nodes, too.
        for other in 0..4 {
            let name = format!("other{other}");
            upload(&store, &name, &image(32 + other, 20)).await.unwrap();
        }
        let stored = cut.chunks.keys().copied().map(Name::chunk);
        let stored = stored.chain(cut.leaves.iter().map(|(_, leaf)| Name::leaf(leaf.id())));
        let before: Vec<_> = stored.map(|name| (name, row(&store, name))).collect();
        let sealed = sealed(&store);
        let of_kind = |kind| {
            let mut rows = before
                .iter()
                .filter(|(name, _)| name.kind().pack_kind() == kind);
            rows.any(|(_, row)| sealed.contains(&row.unwrap().pack))
        };
        assert!(of_kind(PackKind::Chunks) && of_kind(PackKind::Nodes));
        store.gc_run(eager()).await.unwrap();
        for (name, place) in before {
            assert_eq!(row(&store, name), place, "{name}");
        }
        ingest.commit(cut.root).await.unwrap();
        assert_holds(&store, "s", &content).await;
    });
}

/// An upload that begins once a collection has read the roots, and whose packs are sealed before
/// the collection counts their content.
#[test]
fn what_is_stored_after_the_roots_were_read_stays() {
    let machine = machine();
    let content = image(33, 60);
    block_on(async {
        let store = machine.open_undamaged().await;
        let cut = cut(&content);
        let roots_are_read = machine.stop(Look::Catalog, 0);
        let (collected, ingest) = tokio::join!(
            store.gc_run(eager()),
            roots_are_read.meanwhile(async {
                let ingest = begin(&store, "s", &content).await;
                send(&ingest, &cut).await.unwrap();
                ingest.flush().await.unwrap();
                ingest
            })
        );
        assert_eq!(collected.unwrap().packs_removed, 0);
        ingest.commit(cut.root).await.unwrap();
        assert_holds(&store, "s", &content).await;
    });
}

/// A reader pins the root that a record named before, and gives it back when the record names
/// another.
#[test]
fn a_pin_on_content_that_is_gone_is_no_damage_once_it_was_given_back() {
    for looks in [0, 1] {
        let machine = machine();
        block_on(async {
            let store = machine.open_undamaged().await;
            let gone = upload(&store, "gone", &image(92, 30)).await.unwrap();
            let gone = gone.root().unwrap();
            // So that nothing of it is in an open pack.
            for other in 0..8 {
                let name = format!("other{other}");
                upload(&store, &name, &image(95 + other, 20)).await.unwrap();
                store.delete_snapshot(&name.as_str().into()).await.unwrap();
            }
            store.delete_snapshot(&"gone".into()).await.unwrap();
            upload(&store, "kept", &image(93, 30)).await.unwrap();
            store.gc_run(eager()).await.unwrap();
            assert_eq!(row(&store, Name::root(gone)), None);
            upload(&store, "garbage", &image(94, 30)).await.unwrap();
            store.delete_snapshot(&"garbage".into()).await.unwrap();
            let pins = &store.engine().pins;
            let roots_are_read = machine.stop(Look::Catalog, looks);
            let (collected, ()) = tokio::join!(
                store.gc_run(eager()),
                roots_are_read.meanwhile(async { drop(pins.pin(gone)) })
            );
            assert!(collected.unwrap().packs_removed > 0);
            assert_holds(&store, "kept", &image(93, 30)).await;
        });
    }
}

/// Garbage that an upload finds in the store and names while a collection takes it for garbage.
#[test]
fn what_is_named_while_marks_are_made_stays() {
    let machine = machine();
    let content = image(34, 60);
    block_on(async {
        let store = with_garbage(&machine, &content).await;
        let ranks_are_made = machine.stop(Look::Index, 0);
        let (collected, ()) = tokio::join!(
            store.gc_run(eager()),
            ranks_are_made.meanwhile(async {
                let stored = store.status().await.unwrap().stored_bytes;
                upload(&store, "s", &content).await.unwrap();
                assert_eq!(store.status().await.unwrap().stored_bytes, stored);
            })
        );
        assert!(collected.unwrap().copied_bytes > 0);
        assert_holds(&store, "s", &content).await;
    });
}

/// The same, and while the collection looks for such roots, a reader takes it over from the record.
#[test]
fn what_is_pinned_while_roots_are_read_stays() {
    let machine = machine();
    let content = image(35, 60);
    block_on(async {
        let store = with_garbage(&machine, &content).await;
        let ranks_are_made = machine.stop(Look::Index, 0);
        let late_roots_are_read = machine.stop(Look::Catalog, 1);
        let (collected, reader) = tokio::join!(store.gc_run(eager()), async {
            let upload = upload(&store, "s", &content);
            ranks_are_made.meanwhile(upload).await.unwrap();
            let taken_over = late_roots_are_read.meanwhile(async {
                let reader = store.open_snapshot(&"s".into()).await.unwrap();
                store.delete_snapshot(&"s".into()).await.unwrap();
                reader
            });
            taken_over.await
        });
        assert!(collected.unwrap().copied_bytes > 0);
        let mut found = Vec::new();
        for piece in reader.read(0, content.len()).await.unwrap() {
            piece.append_to(&mut found);
        }
        assert!(found == content);
    });
}

/// A root goes from a pin to a record after the late roots were read from the catalog, and before
/// the pins are read.
#[test]
fn what_is_named_once_late_roots_were_read_stays() {
    let machine = machine();
    let content = image(45, 60);
    block_on(async {
        let store = with_garbage(&machine, &content).await;
        let cut = cut(&content);
        let ranks_are_made = machine.stop(Look::Index, 0);
        let late_roots_were_read = machine.stop(Look::CatalogSeen, 1);
        let (collected, ()) = tokio::join!(store.gc_run(eager()), async {
            let pinned = ranks_are_made.meanwhile(async {
                upload(&store, "before", &content).await.unwrap();
                let before = store.open_snapshot(&"before".into()).await.unwrap();
                let ingest = begin(&store, "s", &content).await;
                take_over(&ingest, before.pin(), &cut);
                store.delete_snapshot(&"before".into()).await.unwrap();
                ingest
            });
            let ingest = pinned.await;
            let named = late_roots_were_read.meanwhile(async {
                ingest.commit(cut.root).await.unwrap();
            });
            named.await;
        });
        assert!(collected.unwrap().packs_removed > 0);
        assert_holds(&store, "s", &content).await;
    });
}

/// Records that an upload found, or took over from a snapshot that is deleted, are kept until the
/// change of the catalog that names them is made.
#[test]
fn what_an_upload_relies_on_stays_until_its_record_is_there() {
    let content = image(36, 40);
    let log = names::catalog_log(Path::new(DATA_DIR));
    for takes_over in [false, true] {
        let machine = machine();
        block_on(async {
            let store = with_garbage(&machine, &content).await;
            let cut = cut(&content);
            let ingest = begin(&store, "s", &content).await;
            if takes_over {
                upload(&store, "before", &content).await.unwrap();
                let before = store.open_snapshot(&"before".into()).await.unwrap();
                take_over(&ingest, before.pin(), &cut);
                drop(before);
                store.delete_snapshot(&"before".into()).await.unwrap();
            } else {
                send(&ingest, &cut).await.unwrap();
            }
            machine.disk.hold_up(&log, 0);
            let (made, ()) = tokio::join!(ingest.commit(cut.root), async {
                machine.disk.holds_up().await;
                store.gc_run(eager()).await.unwrap();
                machine.disk.let_go_on();
            });
            made.unwrap();
            assert_holds(&store, "s", &content).await;
        });
    }
}

/// A clone waits for the deletion of its source, and pins the content until its own record is
/// there.
#[test]
fn what_a_clone_relies_on_stays_until_its_record_is_there() {
    // Rarely the deletion goes on between the pin of the clone and its second look, and the clone
    // is right to fail.
    let is_made = (0..20).any(|_| a_clone_is_made_of_what_is_being_deleted());
    assert!(is_made, "a clone is made");
}

/// Returns false if the clone found its source deleted.
fn a_clone_is_made_of_what_is_being_deleted() -> bool {
    let machine = machine();
    let content = image(37, 40);
    let log = names::catalog_log(Path::new(DATA_DIR));
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &content).await.unwrap();
        upload(&store, "behind", &image(90, 12)).await.unwrap();
        machine.disk.hold_up(&log, 0);
        let source = "s".into();
        let deleted = store.delete_snapshot(&source);
        // Behind the deletion in any case.
        let cloned = async {
            machine.disk.holds_up().await;
            let clone = clone_of(CloneSource::Snapshot("s".into()), "v");
            store.clone_volume(clone).await
        };
        let ((deleted, cloned), ()) =
            tokio::join!(async { tokio::join!(deleted, cloned) }, async {
                // The deletion is under way, and the clone waits for it.
                machine.disk.holds_up().await;
                let engine = store.engine();
                let root = store.snapshot(&"s".into()).await.unwrap().root().unwrap();
                while engine.pins.count(root) == 0 {
                    tokio::task::yield_now().await;
                }
                machine.disk.let_go_on();
                // The deletion is not synced yet. The next change is the record of the clone.
                machine.disk.hold_up(&log, 1);
                // Nothing is held up if the clone has failed.
                let held = machine.disk.holds_up();
                let _ = tokio::time::timeout(std::time::Duration::from_secs(5), held).await;
                store.gc_run(eager()).await.unwrap();
                machine.disk.let_go_on();
            });
        deleted.unwrap();
        if matches!(cloned, Err(crate::Error::NotFound { .. })) {
            return false;
        }
        cloned.unwrap();
        let volume = store.open_volume(&"v".into()).await.unwrap();
        assert!(super::volume_data::contents(&volume).await == content);
        drop(volume);
        store.close().await.unwrap();
        true
    })
}

/// Records that an upload sent again, because those in a condemned pack are unknown, count even if
/// the run ends before it has emptied the pack.
#[test]
fn a_pack_stays_condemned_when_its_run_has_failed() {
    let machine = machine();
    let content = image(38, 40);
    block_on(async {
        let store = with_garbage(&machine, &content).await;
        let engine = store.engine();
        let cut = cut(&content);
        let packs = sealed(&store);
        assert_eq!(engine.commit.condemn(packs.clone()).await.unwrap(), []);
        let mut sweep = Sweep::new(engine.clone());
        let ingest = begin(&store, "s", &content).await;
        assert!(send(&ingest, &cut).await.unwrap().new_bytes > 0);
        machine.disk.fail_write(1, ErrorKind::StorageFull);
        empty(&mut sweep, &packs[..1], true).await;
        sweep.finish().await.unwrap_err();
        ingest.flush().await.unwrap();
        store.gc_run(eager()).await.unwrap();
        ingest.commit(cut.root).await.unwrap();
        assert_holds(&store, "s", &content).await;
    });
}

/// Records of a pack that is being emptied come again, and get rows of their own before those of
/// the pack are moved and removed.
#[test]
fn a_row_that_was_made_during_a_sweep_stays_as_it_is() {
    for is_live in [true, false] {
        let machine = machine();
        let content = image(39, 40);
        block_on(async {
            let store = with_garbage(&machine, &content).await;
            let engine = store.engine();
            let cut = cut(&content);
            let packs = sealed(&store);
            assert_eq!(engine.commit.condemn(packs.clone()).await.unwrap(), []);
            let mut sweep = Sweep::new(engine.clone());
            empty(&mut sweep, &packs, is_live).await;
            let ingest = begin(&store, "s", &content).await;
            send(&ingest, &cut).await.unwrap();
            ingest.flush().await.unwrap();
            let chunks = cut.chunks.keys().copied().map(Name::chunk);
            let made: Vec<_> = chunks.map(|name| (name, row(&store, name))).collect();
            sweep.finish().await.unwrap();
            for (name, place) in made {
                assert_eq!(row(&store, name), place, "{name}");
            }
            ingest.commit(cut.root).await.unwrap();
            assert_holds(&store, "s", &content).await;
        });
    }
}

/// A flush seals a pack of nodes that has a record for the next flush.
#[test]
fn records_on_their_way_to_the_index_are_at_or_above_the_floors() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let engine = store.engine();
        let generation = engine.commit.generation().unwrap();
        let append = async |kind, record| {
            let appended = engine.commit.append(generation, kind, vec![record]);
            appended.await.unwrap();
        };
        let node = |number: u8, len: usize| {
            let name = Name::leaf(NodeId::from_bytes([number; 32]));
            EncodedRecord::node(name, &image(number.into(), 2)[..len])
        };
        let plain = image(44, 1);
        let name = Name::chunk(ChunkId::of(&plain));
        let chunk = EncodedRecord::chunk(name, Codec::Raw, End::Settled, 4096, &plain);
        append(PackKind::Chunks, chunk).await;
        append(PackKind::Nodes, node(1, 1000)).await;
        let first = PackId {
            kind: PackKind::Chunks,
            number: 1,
        };
        machine.disk.hold_up(&pack_path(first), 0);
        let (flushed, ()) = tokio::join!(engine.commit.flush(generation), async {
            machine.disk.holds_up().await;
            append(PackKind::Nodes, node(2, 5000)).await;
            // There is no room for it beside the others.
            append(PackKind::Nodes, node(3, 5000)).await;
            machine.disk.let_go_on();
        });
        flushed.unwrap();
        let name = node(2, 5000).name();
        assert_eq!(row(&store, name), None);
        let guard = engine.rely("test");
        let known = engine.known(Some(&guard), vec![name]).await.unwrap();
        assert!(known[0].is_some());
        engine.commit.flush(generation).await.unwrap();
        let pack = row(&store, name).unwrap().pack;
        assert!(sealed(&store).contains(&pack) && engine.commit.floors().are_above(pack));
        assert!(!engine.reliance.floors().are_above(pack), "{pack} may go");
    });
}

/// A record in a condemned pack is sent again and waits to be indexed, while the collection moves
/// it into a pack that it began before the upload.
#[test]
fn a_row_that_was_moved_during_an_upload_is_at_or_above_its_floors() {
    let mut machine = machine();
    machine.pack_bytes_max = 512 << 10;
    let content = image(40, 400);
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &content).await.unwrap();
        let engine = store.engine();
        let cut = cut(&content);
        let packs = sealed(&store).into_iter();
        let packs = packs.filter(|pack| pack.kind == PackKind::Chunks);
        let packs: Vec<_> = packs.take(2).collect();
        // Both are small: there is room for them in one pack.
        let [one, other] = [packs[0], packs[1]].map(|pack| {
            let in_pack = |id: &&ChunkId| row(&store, Name::chunk(**id)).unwrap().pack == pack;
            let ids = cut.chunks.keys().filter(in_pack);
            *ids.min_by_key(|id| cut.chunks[*id].len()).unwrap()
        });
        assert_eq!(engine.commit.condemn(packs.clone()).await.unwrap(), []);
        let mut sweep = Sweep::new(engine.clone());
        let pace = Pace::new(None);
        let is_one = |name: &Name, _: &Location| *name == Name::chunk(one);
        sweep.empty(packs[0], &is_one, &pace).await.unwrap();
        // Now the pack that others append to has a higher number than that of the sweep.
        upload(&store, "t", &image(43, 300)).await.unwrap();

        let ingest = begin(&store, "u", &content).await;
        let name = Name::chunk(other);
        assert_eq!(ingest.missing(&[other], &[]).await.unwrap(), [0]);
        let sent = vec![incoming(other, &cut.chunks[&other])];
        ingest.put_chunks(sent).await.unwrap();
        let is_other = |name: &Name, _: &Location| *name == Name::chunk(other);
        sweep.empty(packs[1], &is_other, &pace).await.unwrap();
        sweep.finish().await.unwrap();
        ingest.flush().await.unwrap();
        let pack = row(&store, name).unwrap().pack;
        let floors = engine.commit.floors();
        assert!(floors.are_above(pack), "{pack} is sealed: {floors:?}");
        assert!(!engine.reliance.floors().are_above(pack), "{pack} may go");
    });
}

#[test]
fn roots_of_the_catalog_are_read_before_those_that_are_pinned() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        let root = upload(&store, "s", &image(41, 8)).await.unwrap().root();
        let catalog_is_read = machine.stop(Look::Catalog, 0);
        let engine = store.engine();
        let (found, _reader) = tokio::join!(
            roots::collect(engine),
            catalog_is_read.meanwhile(async {
                let reader = store.open_snapshot(&"s".into()).await.unwrap();
                store.delete_snapshot(&"s".into()).await.unwrap();
                reader
            })
        );
        let found = found.unwrap();
        assert!(found.iter().any(|it| Some(it.root) == root));
    });
}

/// The pack with the highest number is removed, and the next one has another number.
#[test]
fn numbers_of_removed_packs_are_not_given_again() {
    let machine = machine();
    block_on(async {
        let store = machine.open_undamaged().await;
        upload(&store, "s", &image(42, 40)).await.unwrap();
        store.close().await.unwrap();
    });
    let highest = block_on(async {
        let store = machine.open_undamaged().await;
        store.delete_snapshot(&"s".into()).await.unwrap();
        let engine = store.engine();
        let packs = sealed(&store);
        let highest = engine.stage.next_number() - 1;
        assert!(packs.iter().any(|pack| pack.number == highest));
        assert_eq!(engine.commit.condemn(packs.clone()).await.unwrap(), []);
        let mut sweep = Sweep::new(engine.clone());
        empty(&mut sweep, &packs, false).await;
        sweep.finish().await.unwrap();
        store.close().await.unwrap();
        highest
    });
    let machine = machine.crash(&mut Random::new(1));
    block_on(async {
        let store = machine.open_undamaged().await;
        assert!(store.engine().stage.next_number() > highest);
    });
}
