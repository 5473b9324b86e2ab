//! Conformance of indexes: rows and the packs that they point into.

use std::ops::ControlFlow;

use super::*;
use crate::format::{GcReport, LastRun};

fn pack(number: u64) -> PackId {
    PackId {
        kind: PackKind::Chunks,
        number,
    }
}

/// A batch by which packs are there.
fn with_packs(numbers: impl IntoIterator<Item = u64>) -> Batch {
    let states = numbers.into_iter().map(|number| PackState {
        pack: pack(number),
        indexed_bytes: 1 << 20,
        phase: PackPhase::Sealed,
    });
    let mut batch = Batch::default();
    batch.packs(&states.collect::<Vec<_>>());
    batch
}

fn row_of(meta: &dyn Meta, number: u64) -> Option<Location> {
    meta.lookup(&[chunk(number)]).unwrap()[0]
}

/// Checks that the totals are those of exactly these chunks.
#[track_caller]
fn assert_chunks(meta: &dyn Meta, rows: &[Location]) {
    let totals = meta.totals().unwrap();
    assert_eq!(totals.chunks, rows.len() as u64);
    let plain = rows.iter().map(|row| u64::from(row.payload.plain_bytes));
    assert_eq!(totals.chunk_bytes, plain.sum::<u64>());
    let stored = rows.iter().map(|row| row.payload.record_bytes());
    assert_eq!(totals.stored_bytes, stored.sum::<u64>());
}

pub(super) fn a_record_is_put_unless_the_pack_that_has_it_is_there(meta: &dyn Meta) {
    let (first, second) = (chunk_at(1, 0, 100), chunk_at(2, 8, 5000));
    let mut batch = with_packs([1, 2]);
    batch.put_unless_kept(chunk(1), first);
    assert_eq!(meta.apply(batch, false).unwrap(), Outcome::default());
    let offer = |batch: &mut Batch| batch.put_unless_kept(chunk(1), second);

    let mut batch = Batch::default();
    offer(&mut batch);
    let outcome = meta.apply(batch, false).unwrap();
    assert_eq!(outcome.kept, [chunk(1)]);
    assert_eq!(row_of(meta, 1), Some(first));
    assert_chunks(meta, &[first]);

    // The file is gone, though the index knows the pack.
    let mut batch = Batch::default();
    batch.pack_is_gone(pack(1));
    offer(&mut batch);
    assert_eq!(meta.apply(batch, false).unwrap(), Outcome::default());
    assert_eq!(row_of(meta, 1), Some(second));
    assert_chunks(meta, &[second]);

    // The index knows nothing of the pack, or is told to forget it in the same batch.
    for forgets in [false, true] {
        let mut batch = Batch::default();
        batch.put(chunk(1), chunk_at(7, 0, 100));
        if forgets {
            batch.packs(&[PackState {
                pack: pack(7),
                indexed_bytes: 4096,
                phase: PackPhase::Open,
            }]);
        }
        meta.apply(batch, false).unwrap();
        let mut batch = Batch::default();
        if forgets {
            batch.forget_pack(pack(7));
        }
        offer(&mut batch);
        assert_eq!(meta.apply(batch, false).unwrap(), Outcome::default());
        assert_eq!(row_of(meta, 1), Some(second));
    }
    assert_chunks(meta, &[second]);
}

pub(super) fn a_row_moves_only_from_the_pack_that_it_points_into(meta: &dyn Meta) {
    let (old, new) = (chunk_at(1, 0, 100), chunk_at(3, 8, 100));
    let name = leaf(9);
    let (leaf, moved) = (
        location(RecordKind::Leaf, 4, 0, 100),
        location(RecordKind::Leaf, 5, 0, 100),
    );
    let mut batch = chunks([(1, old), (2, chunk_at(2, 0, 300))]);
    batch.put(name, leaf);
    meta.apply(batch, false).unwrap();

    let mut batch = Batch::default();
    batch.move_from(chunk(1), pack(1), new);
    batch.move_from(chunk(2), pack(1), new);
    batch.move_from(chunk(3), pack(1), new);
    batch.move_from(name, leaf.pack, moved);
    let outcome = meta.apply(batch.clone(), true).unwrap();
    assert_eq!(outcome.kept, kept([2, 3]));
    assert_eq!(row_of(meta, 1), Some(new));
    assert_eq!(row_of(meta, 2), Some(chunk_at(2, 0, 300)));
    assert_eq!(row_of(meta, 3), None);
    assert_eq!(meta.lookup(&[name]).unwrap(), [Some(moved)]);
    let nodes = meta.totals().unwrap();
    assert_eq!((nodes.chunks, nodes.nodes), (2, 1));

    // Once more: nothing points there any more.
    let outcome = meta.apply(batch, true).unwrap();
    assert_eq!(outcome.kept.len(), 4);
    assert_eq!(row_of(meta, 1), Some(new));
}

/// The names of rows, ascending.
fn kept<const N: usize>(numbers: [u64; N]) -> Vec<Name> {
    let mut kept = numbers.map(chunk).to_vec();
    kept.sort_unstable();
    kept
}

pub(super) fn a_row_is_removed_only_with_the_pack_that_it_points_into(meta: &dyn Meta) {
    let stays = chunk_at(2, 0, 300);
    meta.apply(chunks([(1, chunk_at(1, 0, 100)), (2, stays)]), false)
        .unwrap();
    let mut batch = Batch::default();
    for number in 1..=3 {
        batch.remove_from(chunk(number), pack(1));
    }
    let outcome = meta.apply(batch, true).unwrap();
    assert_eq!(outcome.kept, kept([2, 3]));
    assert_eq!((row_of(meta, 1), row_of(meta, 2)), (None, Some(stays)));
    assert_chunks(meta, &[stays]);
    // It can be put again.
    meta.apply(chunks([(1, chunk_at(3, 0, 100))]), false)
        .unwrap();
    assert_chunks(meta, &[chunk_at(3, 0, 100), stays]);
}

pub(super) fn of_two_changes_of_a_row_the_later_counts(meta: &dyn Meta) {
    let (old, new) = (chunk_at(1, 0, 100), chunk_at(2, 0, 100));
    meta.apply(chunks([(1, old)]), false).unwrap();
    let mut batch = Batch::default();
    batch.put(chunk(1), new);
    batch.remove_from(chunk(1), pack(1));
    assert_eq!(meta.apply(batch, false).unwrap(), Outcome::default());
    assert_eq!(row_of(meta, 1), None);
    let mut batch = Batch::default();
    batch.remove_from(chunk(1), pack(1));
    batch.put(chunk(1), new);
    assert_eq!(meta.apply(batch, false).unwrap(), Outcome::default());
    assert_eq!(row_of(meta, 1), Some(new));
    assert_chunks(meta, &[new]);
}

/// All rows of a kind.
fn rows(view: &dyn IndexView, kind: PackKind) -> Vec<(Name, Location)> {
    let mut rows = Vec::new();
    let mut keep = |name, location| {
        rows.push((name, location));
        ControlFlow::Continue(())
    };
    view.scan(kind, &mut keep).unwrap();
    rows
}

pub(super) fn a_view_stays_as_it_was(meta: &dyn Meta) {
    let mut batch = with_packs([1]);
    batch.put(chunk(1), chunk_at(1, 0, 100));
    meta.apply(batch, false).unwrap();
    let mut looked = 0;
    let mut look = |view: &dyn IndexView| {
        looked += 1;
        let before = rows(view, PackKind::Chunks);
        let mut batch = with_packs([1, 2]);
        batch.put(chunk(2), chunk_at(2, 0, 100));
        batch.remove_from(chunk(1), pack(1));
        meta.apply(batch, true)?;
        assert_eq!(rows(view, PackKind::Chunks), before);
        assert_eq!(view.pack_states()?.len(), 1);
        assert_eq!(row_of(meta, 1), None);
        Ok(())
    };
    meta.view(&mut look).unwrap();
    assert_eq!(looked, 1);
    let mut look = |view: &dyn IndexView| {
        let expected = (chunk(2), chunk_at(2, 0, 100));
        assert_eq!(rows(view, PackKind::Chunks), [expected]);
        Err(Error::Closing)
    };
    assert!(matches!(meta.view(&mut look), Err(Error::Closing)));
}

pub(super) fn a_scan_gives_all_rows_in_order_until_it_breaks_off(meta: &dyn Meta) {
    const COUNT: u64 = 3000;
    let mut batch = chunks((0..COUNT).map(|n| (n, chunk_at(1, 64 * n, 9))));
    // By their bytes, whatever their kinds.
    let (low, high) = (
        Name::new(RecordKind::Root, [1; 32]),
        Name::new(RecordKind::Leaf, [2; 32]),
    );
    let root = location(RecordKind::Root, 2, 80, 48);
    let node = location(RecordKind::Leaf, 2, 0, 100);
    batch.put(low, root);
    batch.put(high, node);
    meta.apply(batch, false).unwrap();
    let mut look = |view: &dyn IndexView| {
        let found = rows(view, PackKind::Chunks);
        assert!(found.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut expected: Vec<_> = (0..COUNT).map(chunk).collect();
        expected.sort_unstable();
        let names = found.iter().map(|(name, _)| *name);
        assert_eq!(names.collect::<Vec<_>>(), expected);
        assert_eq!(rows(view, PackKind::Nodes), [(low, root), (high, node)]);

        let mut seen = 0;
        let mut stop = |_, _| {
            seen += 1;
            match seen {
                10 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        };
        view.scan(PackKind::Chunks, &mut stop)?;
        assert_eq!(seen, 10);

        for at in [0, 1, 1234, expected.len() - 1] {
            let mut from = *expected[at].as_bytes();
            let mut rest = Vec::new();
            let mut keep = |name, _| {
                rest.push(name);
                ControlFlow::Continue(())
            };
            view.scan_from(PackKind::Chunks, &from, &mut keep)?;
            assert_eq!(rest, expected[at..]);
            // Behind it, and before the next one.
            from[31] = from[31].wrapping_add(1).max(1);
            let mut first = None;
            let mut keep = |name, _| {
                first = Some(name);
                ControlFlow::Break(())
            };
            view.scan_from(PackKind::Chunks, &from, &mut keep)?;
            let behind = |name: &&Name| *name.as_bytes() >= from;
            assert_eq!(first, expected.iter().find(behind).copied());
        }
        Ok(())
    };
    meta.view(&mut look).unwrap();
}

pub(super) fn numbers_of_packs_that_are_forgotten_are_known(meta: &dyn Meta) {
    assert_eq!(meta.last_pack_number().unwrap(), 0);
    meta.apply(with_packs([3, 9]), false).unwrap();
    assert_eq!(meta.last_pack_number().unwrap(), 9);
    let mut batch = Batch::default();
    batch.forget_pack(pack(9));
    batch.forget_pack(pack(5));
    meta.apply(batch, true).unwrap();
    assert_eq!(meta.pack_states().unwrap().len(), 1);
    assert_eq!(meta.pack_state(pack(9)).unwrap(), None);
    assert_eq!(meta.totals().unwrap().packs, 1);
    assert_eq!(meta.last_pack_number().unwrap(), 9);
    meta.apply(with_packs([10]), false).unwrap();
    assert_eq!(meta.last_pack_number().unwrap(), 10);
}

pub(super) fn the_last_collection_is_kept(meta: &dyn Meta) {
    assert_eq!(meta.last_run().unwrap(), None);
    let mut run = LastRun {
        started_at_ns: 1,
        ended_at_ns: 2,
        outcome: Ok(GcReport::default()),
    };
    for outcome in [Ok(GcReport::default()), Err("the disk is full".to_owned())] {
        run.outcome = outcome;
        let mut batch = Batch::default();
        batch.last_run(run.clone());
        assert!(!batch.is_empty());
        meta.apply(batch, true).unwrap();
        meta.apply(with_packs([3]), false).unwrap();
        assert_eq!(meta.last_run().unwrap(), Some(run.clone()));
    }
}
